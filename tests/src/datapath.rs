//! The programs, loaded into the kernel without any device: packets go in through `BPF_PROG_TEST_RUN`.
//!
//! Tables are written with the layouts of `lb-common` alone, so that a packet test says in its own words what the
//! tables hold, whatever the agent would have written.

pub mod affinity;
pub mod case;
pub mod counters;
pub mod entries;
mod fragments;
mod held;
pub mod icmp;
pub mod journey;
pub mod packet;
pub mod path;
pub mod pieces;
pub mod sample;
pub mod sizes;
mod summed;
mod tables;
pub mod trip;
pub mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::layout::{BackendFlags, Control, Forwarding, FragmentEntry, HeldFragment};
use lb_common::share;

use self::sizes::Sizes;

/// Buckets of each frontend table.
const BUCKETS: u32 = 4096;
const SERVICES: u32 = 1024;
const BACKENDS: u32 = 4096;
const SLOTS: u32 = 8192;
const FLOW_SETS: u32 = 1024;
/// Entries of each connection table.
pub const CONNECTIONS: u32 = 65_536;
/// Source ports of masqueraded flows: the first, and how many.
pub const MASQUERADE_PORTS: (u32, u32) = (1024, 31_744);
/// Places in each ring of recent flows.
pub const RECENT: u32 = share::ring_length(CONNECTIONS);
const AFFINITIES: u32 = 4096;
const SOURCE_RANGES: u32 = 1024;

/// The programs at devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// What a pod sends.
    FromPod,
    /// What a pod receives.
    ToPod,
    /// What comes in from outside.
    FromNet,
    /// What leaves the node.
    ToNet,
    /// What comes in from outside, before the stack (XDP).
    FromWire,
}

impl Program {
    /// Every one of the stack.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromNet, Self::ToNet];

    /// Name of the program in the object.
    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNet => "from_net",
            Self::ToNet => "to_net",
            Self::FromWire => "from_wire",
        }
    }
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its return value.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Vec<u8>,
}

/// Return values of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on (`TCX_NEXT`, `XDP_PASS`).
    Pass,
    /// Dropped (`TC_ACT_SHOT`).
    Drop,
    /// Sent elsewhere (`TC_ACT_REDIRECT`, `XDP_REDIRECT`).
    Redirect,
    /// Sent back (`XDP_TX`).
    Back,
}

impl Verdict {
    fn of(program: Program, value: u32) -> Result<Self> {
        match (program, value as i32) {
            (Program::FromWire, 2) => Ok(Self::Pass),
            (Program::FromWire, 3) => Ok(Self::Back),
            (Program::FromWire, 4) => Ok(Self::Redirect),
            (Program::FromWire, other) => anyhow::bail!("unexpected return value {other}"),
            (_, -1) => Ok(Self::Pass),
            (_, 2) => Ok(Self::Drop),
            (_, 7) => Ok(Self::Redirect),
            (_, other) => anyhow::bail!("unexpected return value {other}"),
        }
    }
}

/// A backend to write.
#[derive(Clone, Copy, Debug)]
pub struct BackendSpec {
    /// Endpoint address and port.
    pub endpoint: SocketAddr,
    /// Flags beside `IN_USE`.
    pub flags: u16,
    /// Device, 0 for none.
    pub interface: u32,
    /// MAC address.
    pub mac: [u8; 6],
}

impl BackendSpec {
    /// A serving endpoint without a known way.
    pub fn serving(endpoint: SocketAddr) -> Self {
        Self { endpoint, flags: BackendFlags::SERVING, interface: 0, mac: [0; 6] }
    }
}

/// The loaded programs with tables of their own.
pub struct Datapath {
    ebpf: Ebpf,
    services: u32,
    backends: u32,
    slots: u32,
    ranges: u32,
    source_ranges: u32,
    subnets: u8,
    /// Device that the XDP program meets packets at.
    ingress: wire::Device,
    frontend_mask: u32,
    /// Buckets of the frontend tables that were written: family (IPv6?) and index.
    buckets: Vec<(bool, u32)>,
}

/// Path of the object: `LB_EBPF_OBJECT`, or where `cargo xtask build-ebpf` leaves it.
pub fn object_path() -> PathBuf {
    std::env::var_os("LB_EBPF_OBJECT").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/lb-ebpf.o")),
        PathBuf::from,
    )
}

/// What the programs are loaded with: names and bytes of the constants in `lb-ebpf/src/config.rs`.
fn constants(forwarding: Forwarding, (first, count): (u32, u32)) -> Vec<(&'static str, Vec<u8>)> {
    let words = [
        ("FORWARDING", forwarding as u32),
        ("FRONTEND_MASK4", BUCKETS - 1),
        ("FRONTEND_MASK6", BUCKETS - 1),
        ("FLOW_MASK", FLOW_SETS - 1),
        ("CONNECTIONS", CONNECTIONS),
        ("RECENT_LENGTH", RECENT),
        ("MASQUERADE_PORT_FIRST", first),
        ("MASQUERADE_PORT_COUNT", count),
        ("FLOW_REFRESH", u32::MAX),
    ];
    let words = words.into_iter().map(|(name, value)| (name, value.to_ne_bytes().to_vec()));
    words.chain([("AYA_LOG_LEVEL", vec![0])]).collect()
}

impl Datapath {
    /// Loads the programs.
    ///
    /// # Errors
    /// When the object is missing, or the kernel refuses it (the verifier's words are in the error).
    pub fn load(forwarding: Forwarding) -> Result<Self> {
        Self::load_with_ports(forwarding, MASQUERADE_PORTS)
    }

    /// As [`Datapath::load`], with these source ports for masqueraded flows: the first, and how many.
    ///
    /// # Errors
    /// As [`Datapath::load`].
    pub fn load_with_ports(forwarding: Forwarding, ports: (u32, u32)) -> Result<Self> {
        Self::load_as(forwarding, ports, false)
    }

    /// As [`Datapath::load`], with programs that answer echo requests (S-70).
    ///
    /// # Errors
    /// As [`Datapath::load`].
    pub fn load_with_echo(forwarding: Forwarding) -> Result<Self> {
        Self::load_as(forwarding, MASQUERADE_PORTS, true)
    }

    /// As [`Datapath::load_with_ports`], with programs that answer echo requests or do not.
    ///
    /// # Errors
    /// As [`Datapath::load`].
    pub fn load_as(forwarding: Forwarding, ports: (u32, u32), echo: bool) -> Result<Self> {
        Self::load_sized(forwarding, ports, echo, &Sizes::default())
    }

    /// As [`Datapath::load_as`], with tables of these sizes.
    ///
    /// # Errors
    /// As [`Datapath::load`].
    pub fn load_sized(forwarding: Forwarding, ports: (u32, u32), echo: bool, sizes: &Sizes) -> Result<Self> {
        let path = object_path();
        let object = std::fs::read(&path)
            .with_context(|| format!("{}: run `cargo xtask build-ebpf` first", path.display()))?;
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))? as u32;
        let mut constants = constants(forwarding, ports);
        constants.push(("ECHO_REPLY", u32::from(echo).to_ne_bytes().to_vec()));
        // The later ones count.
        constants.extend(sizes.constants());
        let mut loader = EbpfLoader::new();
        for (name, value) in &constants {
            loader.override_global(name, value.as_slice(), true);
        }
        for (map, entries) in [
            ("FRONTENDS4", BUCKETS),
            ("FRONTENDS6", BUCKETS),
            ("SERVICES", SERVICES),
            ("NAMES", SERVICES),
            ("SERVICE_STATS", SERVICES),
            ("SHARES", SERVICES),
            ("RECENT4", RECENT * share::RINGS),
            ("RECENT6", RECENT * share::RINGS),
            ("SLOTS", SLOTS / 2),
            ("BACKENDS4", BACKENDS),
            ("BACKENDS6", BACKENDS),
            ("BACKEND_STATS4", BACKENDS),
            ("BACKEND_STATS6", BACKENDS),
            ("CONNS4", CONNECTIONS),
            ("CONNS6", CONNECTIONS),
            ("AFFINITY4", AFFINITIES),
            ("AFFINITY6", AFFINITIES),
            ("FRAGMENTS4", FragmentEntry::ROWS),
            ("FRAGMENTS6", FragmentEntry::ROWS),
            ("HELD", HeldFragment::ROWS),
            ("HELD_LOCKS", HeldFragment::ROWS),
            ("SOURCE_RANGES", SOURCE_RANGES),
            ("FLOWS4", FLOW_SETS * cpus),
            ("FLOWS6", FLOW_SETS * cpus),
            ("WIRE_FLOWS4", FLOW_SETS * cpus),
            ("WIRE_FLOWS6", FLOW_SETS * cpus),
        ] {
            loader.map_max_entries(map, entries);
        }
        for (map, entries) in sizes.maps(cpus) {
            loader.map_max_entries(map, entries);
        }
        let mut ebpf = loader.load(&object)?;
        for program in Program::ALL {
            let program: &mut SchedClassifier =
                ebpf.program_mut(program.name()).context("program missing in the object")?.try_into()?;
            program.load()?;
        }
        let wire: &mut Xdp =
            ebpf.program_mut("from_wire").context("program missing in the object")?.try_into()?;
        wire.load()?;
        Ok(Self {
            ebpf,
            services: 1,
            backends: 1,
            slots: 0,
            ranges: 0,
            source_ranges: 0,
            subnets: 0,
            ingress: wire::Device::One,
            frontend_mask: sizes.buckets - 1,
            buckets: Vec::new(),
        })
    }

    /// The object as aya sees it.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// True when [`Datapath::subnet`] has that many numbers left.
    pub fn has_subnets(&self, count: u8) -> bool {
        self.subnets < u8::MAX - count
    }

    /// True when so many rows of Service ranges are left for [`Datapath::range`].
    pub fn has_ranges(&self, count: u32) -> bool {
        self.ranges + count <= Control::MAX_SERVICE_RANGES
    }

    /// A number no one got before, for addresses of one's own; from 1 on.
    pub fn subnet(&mut self) -> u8 {
        self.subnets += 1;
        assert!(self.subnets < u8::MAX, "more than 254 networks of test packets");
        self.subnets
    }

    /// Runs a program on a packet that begins with its Ethernet header.
    ///
    /// # Errors
    /// When the kernel refuses to run it (a packet shorter than an Ethernet header, for one).
    pub fn run(&self, program: Program, packet: &[u8]) -> Result<Outcome> {
        if program == Program::FromWire {
            return self.run_wire(packet);
        }
        self.run_with(program, packet, None)
    }

    /// Runs a program on a super-packet of that many segments of `size` bytes each.
    ///
    /// # Errors
    /// As [`Datapath::run`].
    pub fn run_segments(&self, program: Program, packet: &[u8], segments: u32, size: u32) -> Result<Outcome> {
        // `struct __sk_buff`, include/uapi/linux/bpf.h: gso_segs at 164, gso_size at 176, and nothing else set.
        let mut context = [0; 192];
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        context[176..180].copy_from_slice(&size.to_ne_bytes());
        self.run_with(program, packet, Some(&context))
    }

    /// A loaded program.
    ///
    /// # Errors
    /// When the object lacks it.
    pub fn program(&self, program: Program) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program(program.name()).context("program missing in the object")?.try_into()?)
    }

    /// The XDP program.
    ///
    /// # Errors
    /// When the object lacks it.
    pub fn wire(&self) -> Result<&Xdp> {
        let name = Program::FromWire.name();
        Ok(self.ebpf.program(name).context("program missing in the object")?.try_into()?)
    }

    fn run_with(&self, program: Program, packet: &[u8], context: Option<&[u8]>) -> Result<Outcome> {
        // A first fragment that others wait for becomes the last of these.
        let mut out = vec![0; packet.len().max(HeldFragment::FRAME) + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::default()
        };
        let result = self.program(program)?.test_run(options)?;
        let (value, length) = (result.return_value, result.data_size_out as usize);
        out.truncate(length);
        Ok(Outcome { verdict: Verdict::of(program, value)?, packet: out })
    }
}

/// Keeps this thread on the CPU it is on: the flow cache is one of a CPU, and a packet that is to find its flow there
/// has to come to the same one.
pub fn pin() {
    // SAFETY: a call without arguments.
    pin_to(unsafe { libc::sched_getcpu() }.max(0) as usize);
}

/// Keeps this thread on a CPU.
pub fn pin_to(cpu: usize) {
    // SAFETY: a set of CPUs is plain bits, and `sched_setaffinity` reads one of the size that is passed.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    assert_eq!(pinned, 0, "sched_setaffinity: {}", std::io::Error::last_os_error());
}

/// The CPUs this thread may run on.
pub fn cpus() -> Vec<usize> {
    // SAFETY: as in `pin_to`; `sched_getaffinity` writes one set of the size that is passed.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let got = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        assert_eq!(got, 0, "sched_getaffinity: {}", std::io::Error::last_os_error());
        (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
    }
}
