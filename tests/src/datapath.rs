//! The programs, loaded into the kernel without any device: packets go in through `BPF_PROG_TEST_RUN`.
//!
//! Tables are written with the layouts of `lb-common` alone, so that a packet test says in its own words what the
//! tables hold, whatever the agent would have written.

pub mod case;
pub mod counters;
pub mod entries;
pub mod packet;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{
    Backend, BackendFlags, Bucket4, Bucket6, Control, FlowEntry, Forwarding, FrontendKey, Publish,
    ServiceVerdict, slot_of_word,
};

/// Buckets of each frontend table.
const BUCKETS: u32 = 1024;
const SERVICES: u32 = 1024;
const BACKENDS: u32 = 4096;
const SLOTS: u32 = 8192;
const FLOW_SETS: u32 = 1024;
const CONNECTIONS: u32 = 65_536;

/// The two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// What a pod sends.
    FromPod,
    /// What a pod receives.
    ToPod,
}

impl Program {
    /// Name of the program in the object.
    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
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
    /// Go on (`TCX_NEXT`).
    Pass,
    /// Dropped (`TC_ACT_SHOT`).
    Drop,
    /// Sent elsewhere (`TC_ACT_REDIRECT`).
    Redirect,
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
    subnets: u8,
}

/// Path of the object: `LB_EBPF_OBJECT`, or where `cargo xtask build-ebpf` leaves it.
pub fn object_path() -> PathBuf {
    std::env::var_os("LB_EBPF_OBJECT").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/lb-ebpf.o")),
        PathBuf::from,
    )
}

impl Datapath {
    /// Loads both programs.
    ///
    /// # Errors
    /// When the object is missing, or the kernel refuses it (the verifier's words are in the error).
    pub fn load(forwarding: Forwarding) -> Result<Self> {
        let path = object_path();
        let object = std::fs::read(&path)
            .with_context(|| format!("{}: run `cargo xtask build-ebpf` first", path.display()))?;
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))? as u32;
        let mode = forwarding as u32;
        let (bucket_mask, flow_mask) = (BUCKETS - 1, FLOW_SETS - 1);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("FORWARDING", &mode, true)
            .override_global("FRONTEND_MASK4", &bucket_mask, true)
            .override_global("FRONTEND_MASK6", &bucket_mask, true)
            .override_global("FLOW_MASK", &flow_mask, true)
            .override_global("FLOW_REFRESH", &u32::MAX, true);
        for (map, entries) in [
            ("FRONTENDS4", BUCKETS),
            ("FRONTENDS6", BUCKETS),
            ("SERVICES", SERVICES),
            ("NAMES", SERVICES),
            ("SERVICE_STATS", SERVICES),
            ("SLOTS", SLOTS / 2),
            ("BACKENDS4", BACKENDS),
            ("BACKENDS6", BACKENDS),
            ("BACKEND_STATS4", BACKENDS),
            ("BACKEND_STATS6", BACKENDS),
            ("CONNS4", CONNECTIONS),
            ("CONNS6", CONNECTIONS),
            ("FLOWS4", FLOW_SETS * cpus),
            ("FLOWS6", FLOW_SETS * cpus),
        ] {
            loader.map_max_entries(map, entries);
        }
        let mut ebpf = loader.load(&object)?;
        for program in [Program::FromPod, Program::ToPod] {
            let program: &mut SchedClassifier =
                ebpf.program_mut(program.name()).context("program missing in the object")?.try_into()?;
            program.load()?;
        }
        Ok(Self { ebpf, services: 1, backends: 1, slots: 0, ranges: 0, subnets: 0 })
    }

    /// The object as aya sees it.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Writes a Service with one frontend; its index is returned.
    ///
    /// # Errors
    /// When a table is full or the kernel refuses a store.
    pub fn service(
        &mut self,
        frontend: SocketAddr,
        protocol: u8,
        verdict: ServiceVerdict,
        backends: &[BackendSpec],
    ) -> Result<u32> {
        let service = self.services;
        self.services += 1;
        let indices = backends.iter().map(|spec| self.backend(service, spec)).collect::<Result<Vec<_>>>()?;
        self.publish(service, verdict, &indices)?;
        let port = Be16::new(frontend.port());
        match frontend.ip() {
            IpAddr::V4(address) => {
                self.frontend4(&FrontendKey::service(Ip4::from(address), port, protocol), service)?;
                self.frontend4(&FrontendKey::address(Ip4::from(address)), 0)?;
            }
            IpAddr::V6(address) => {
                self.frontend6(&FrontendKey::service(Ip6::from(address), port, protocol), service)?;
                self.frontend6(&FrontendKey::address(Ip6::from(address)), 0)?;
            }
        }
        Ok(service)
    }

    /// Publishes a verdict and a new run of slots for a Service.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn publish(&mut self, service: u32, verdict: ServiceVerdict, backends: &[u32]) -> Result<()> {
        let publish = Publish { base: self.slots, count: backends.len() as u32, verdict: verdict as u8 };
        for backend in backends {
            self.set_slot(self.slots, *backend)?;
            self.slots += 1;
        }
        Ok(self.array::<[u64; 2]>("SERVICES")?.set(service, [publish.encode(), 0], 0)?)
    }

    /// Adds a Service range (S-23).
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn range(&mut self, network: IpAddr, prefix: u32) -> Result<()> {
        let (network, prefix) = match network {
            IpAddr::V4(network) => (network.to_ipv6_mapped(), prefix + 96),
            IpAddr::V6(network) => (network, prefix),
        };
        let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
        let words = |bits: u128| {
            let address = Ip6::from(std::net::Ipv6Addr::from_bits(bits));
            [address.first(), address.last()]
        };
        let ([a, b], [c, d]) = (words(network.to_bits() & mask), words(mask));
        let row = self.ranges;
        self.array::<[u64; 4]>("SERVICE_RANGES")?.set(row, [a, b, c, d], 0)?;
        self.ranges += 1;
        let ranges = u64::from(self.ranges);
        Ok(self.array::<u64>("CONTROL")?.set(Control::ServiceRanges as u32, ranges, 0)?)
    }

    /// Writes a backend row; its index is returned.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn backend(&mut self, service: u32, spec: &BackendSpec) -> Result<u32> {
        let index = self.backends;
        self.backends += 1;
        self.set_backend(index, service, spec)?;
        Ok(index)
    }

    /// The index that the next backend gets.
    pub fn next_backend(&self) -> u32 {
        self.backends
    }

    /// Overwrites a backend row.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn set_backend(&mut self, index: u32, service: u32, spec: &BackendSpec) -> Result<()> {
        let port = Be16::new(spec.endpoint.port());
        let flags = spec.flags | BackendFlags::IN_USE;
        let (interface, mac) = (spec.interface, spec.mac);
        match spec.endpoint.ip() {
            IpAddr::V4(address) => {
                let row = Backend { address: Ip4::from(address), port, flags, service, interface, mac };
                self.array::<[u64; 4]>("BACKENDS4")?.set(index, row.encode4(), 0)?;
            }
            IpAddr::V6(address) => {
                let row = Backend { address: Ip6::from(address), port, flags, service, interface, mac };
                self.array::<[u64; 6]>("BACKENDS6")?.set(index, row.encode6(), 0)?;
            }
        }
        Ok(())
    }

    /// Moves the epoch on: what the flow cache holds is void.
    ///
    /// # Errors
    /// When the kernel refuses the store.
    pub fn advance_epoch(&mut self) -> Result<()> {
        let mut control = self.array::<u64>("CONTROL")?;
        let epoch = control.get(&(Control::Epoch as u32), 0)?;
        Ok(control.set(Control::Epoch as u32, epoch + 1, 0)?)
    }

    /// Lets every entry of the flow cache forget that its flow carried a complete checksum.
    ///
    /// # Errors
    /// When the kernel refuses a store.
    pub fn forget_complete_checksums(&mut self) -> Result<()> {
        // The flags are the last byte of an entry, two entries to a set.
        let mut four = self.array::<[[u8; 64]; 2]>("FLOWS4")?;
        for set in 0..four.len() {
            let mut entries = four.get(&set, 0)?;
            entries.iter_mut().for_each(|entry| entry[63] &= !FlowEntry::<Ip4>::COMPLETE_CHECKSUM);
            four.set(set, entries, 0)?;
        }
        let mut six = self.array::<[[u8; 112]; 2]>("FLOWS6")?;
        for set in 0..six.len() {
            let mut entries = six.get(&set, 0)?;
            entries.iter_mut().for_each(|entry| entry[111] &= !FlowEntry::<Ip6>::COMPLETE_CHECKSUM);
            six.set(set, entries, 0)?;
        }
        Ok(())
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

    fn run_with(&self, program: Program, packet: &[u8], context: Option<&[u8]>) -> Result<Outcome> {
        let mut out = vec![0; packet.len() + 256];
        let program = self.ebpf.program(program.name()).context("program missing in the object")?;
        let program: &SchedClassifier = program.try_into()?;
        let result = program.test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value as i32 {
            -1 => Verdict::Pass,
            2 => Verdict::Drop,
            7 => Verdict::Redirect,
            other => anyhow::bail!("unexpected return value {other}"),
        };
        Ok(Outcome { verdict, packet: out })
    }

    fn set_slot(&mut self, slot: u32, backend: u32) -> Result<()> {
        let (word, shift) = slot_of_word(slot);
        let mut slots = self.array::<u64>("SLOTS")?;
        let old = slots.get(&word, 0)?;
        let new = old & !(0xffff_ffff << shift) | u64::from(backend) << shift;
        Ok(slots.set(word, new, 0)?)
    }

    fn frontend4(&mut self, key: &FrontendKey<Ip4>, service: u32) -> Result<()> {
        let (bucket, _) = key.buckets(BUCKETS - 1);
        let mut table = self.array::<[u64; Bucket4::WORDS]>("FRONTENDS4")?;
        let mut row = table.get(&bucket, 0)?;
        let taken = |word: u64| word != 0 && word != key.word();
        let entry = row[..Bucket4::ENTRIES].iter().position(|word| !taken(*word)).context("bucket full")?;
        let (word, shift) = Bucket4::value_position(entry);
        row[word] = row[word] & !(0xffff_ffff << shift) | u64::from(service) << shift;
        row[entry] = key.word();
        Ok(table.set(bucket, row, 0)?)
    }

    fn frontend6(&mut self, key: &FrontendKey<Ip6>, service: u32) -> Result<()> {
        let (_, bucket) = key.buckets(BUCKETS - 1);
        let mut table = self.array::<[u64; Bucket6::WORDS]>("FRONTENDS6")?;
        let mut row = table.get(&bucket, 0)?;
        let free = (0..Bucket6::ENTRIES).map(Bucket6::position).find(|at| row[at + 2] == 0);
        let at = free.context("bucket full")?;
        ensure!(at + 2 < Bucket6::WORDS);
        row[at] = key.address.first();
        row[at + 1] = key.address.last();
        row[at + 2] = Bucket6::publish(key, service);
        Ok(table.set(bucket, row, 0)?)
    }

    fn array<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("map {name}"))?;
        Ok(map.try_into()?)
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
