//! A shadow of the programs that serve: the same object with the same constants, reading the same tables, but with
//! connections, affinities, caches and counters of its own. What is sent through it shows what would happen, and leaves no
//! trace.
//!
//! Packets go in by `BPF_PROG_TEST_RUN`; nothing is attached.

mod flow;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::Map as LoadedMap;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::util::nr_cpus;
use lb_common::address::{Ip4, Ip6};
use lb_common::layout::{AffinityKey, Forwarding, SeenPorts};
use lb_common::reason::Reason;

use super::attached::tag_text;
use super::constants::Constants;
use super::error::{Error, Result};
use super::load::{self, Hook, Instance, LoadOptions, Sharing};
use super::maps::Maps;
use super::object;
use super::pins::Pins;
use super::shape::Map;
use super::sizes::Sizes;
use super::sys;

pub use flow::{Affinity, Ends, ShadowFlow, affinity};

/// Sizes of the shadow's own maps: a few packets go through it.
const SIZES: Sizes =
    Sizes { services: 16, endpoints: 16, connections: 1024, flow_cache_sets: 1, slots: None };
/// `struct __sk_buff`, include/uapi/linux/bpf.h: its length, and where `ifindex` lies in it.
const CONTEXT: usize = 192;
const IFINDEX: usize = 40;
/// What a refusal or a held fragment may add to a packet.
const GROWTH: usize = 256;

/// What a program did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on: to the next program, or the stack.
    Pass,
    /// It is dropped.
    Drop,
    /// It is sent out of another device, into another pod, or back.
    Redirect,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What became of the packet.
    pub fate: Fate,
    /// The packet afterwards, Ethernet header first.
    pub packet: Vec<u8>,
    /// The reasons that the program counted, in the order of their numbers.
    pub reasons: Vec<Reason>,
}

/// The programs at devices, loaded a second time.
#[derive(Debug)]
pub struct Shadow {
    ebpf: Ebpf,
    cpus: usize,
}

impl Shadow {
    /// Loads `hooks` with what the programs that serve were loaded with, or with defaults where that is not known.
    ///
    /// # Errors
    /// As [`super::Datapath::load`].
    pub fn load(
        pins: &Pins,
        maps: &Maps,
        object: Option<&Path>,
        constants: Option<&Constants>,
        hooks: &[Hook],
    ) -> Result<Self> {
        sys::unlimit_locked_memory();
        let bytes = object::bytes(object)?;
        let options = LoadOptions {
            object: object.map(Path::to_owned),
            sizes: SIZES,
            forwarding: Forwarding::Stack,
            log: false,
            masquerade_ports: 1024..=32_767,
            echo_reply: false,
            sockets: None,
        };
        let entries =
            |map: Map| if map.is_read_only() { maps.max_entries(map) } else { map.max_entries(&SIZES) };
        // A shadow tells no log, and its flow cache is small.
        let own = [aya_log::LEVEL, "FLOW_MASK"];
        let given: Vec<_> = constants.map(Constants::values).unwrap_or_default().to_vec();
        let given: Vec<_> = given.into_iter().filter(|(name, _)| !own.contains(&&**name)).collect();
        let instance = Instance { sharing: Sharing::ReadOnly(pins), hooks, given: &given };
        let ebpf = instance.load(&bytes, &options, entries)?;
        let cpus = nr_cpus().map_err(|(path, source)| Error::path("read", path.as_ref(), source))?;
        Ok(Self { ebpf, cpus })
    }

    /// The tag of a program, to be compared with that of the one that serves.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel does not tell.
    pub fn tag(&self, hook: Hook) -> Result<String> {
        let program = load::program_fd(&self.ebpf, hook)?;
        let info = sys::program_info(program)
            .map_err(|source| Error::bpf(format!("examining the program {}", hook.program()), source))?;
        Ok(tag_text(info.tag))
    }

    /// Sends a packet, Ethernet header first, through the program of a hook as if at that device.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel refuses to run it.
    pub fn run(&self, hook: Hook, packet: &[u8], interface: u32) -> Result<Ran> {
        let name = hook.program();
        let before = self.reasons()?;
        let program: &SchedClassifier = self
            .ebpf
            .program(name)
            .ok_or(Error::NoProgram(name))?
            .try_into()
            .map_err(|_| Error::NoProgram(name))?;
        let mut context = [0; CONTEXT];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&interface.to_ne_bytes());
        let mut out = vec![0; packet.len() + GROWTH];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .map_err(|error| {
                Error::bpf(format!("running {name} on a packet"), std::io::Error::other(error))
            })?;
        out.truncate(result.data_size_out as usize);
        let after = self.reasons()?;
        let counted = before.iter().zip(&after).filter(|((_, before), (_, after))| before != after);
        Ok(Ran {
            // `TCX_NEXT`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`, include/uapi/linux/{bpf,pkt_cls}.h.
            fate: match result.return_value as i32 {
                2 => Fate::Drop,
                7 => Fate::Redirect,
                _ => Fate::Pass,
            },
            packet: out,
            reasons: counted.map(|((reason, _), _)| *reason).collect(),
        })
    }

    /// Copies what the tables that serve know of a flow, so that its next packet is met as there. Returns the entry of that
    /// direction, if there is one.
    ///
    /// # Errors
    /// [`Error::Bpf`] when a table cannot be read or written.
    pub fn copy_flow(&self, maps: &Maps, ends: &Ends) -> Result<Option<ShadowFlow>> {
        let copied = match ends.tuples() {
            flow::Tuples::V4(key) => flow::copy::<Ip4>(maps, self.map_of(Map::Connections4)?, &key),
            flow::Tuples::V6(key) => flow::copy::<Ip6>(maps, self.map_of(Map::Connections6)?, &key),
        };
        let copied = copied.map_err(|source| Error::bpf("copying a connection's entries", source))?;
        // Programs look for entries only where a port was noted.
        let (row, mut ports) = ((SeenPorts::Flows as u32).to_ne_bytes(), [0; SeenPorts::PLACES]);
        let own = self.map_of(Map::Ports)?;
        sys::lookup(maps.fd(Map::Ports), &row, &mut ports)
            .and_then(|_| sys::update(own, &row, &ports))
            .map_err(|source| Error::bpf("copying the ports of connections", source))?;
        Ok(copied)
    }

    /// The entry that the shadow has for a direction of a flow.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the table cannot be read.
    pub fn flow(&self, ends: &Ends) -> Result<Option<ShadowFlow>> {
        let found = match ends.tuples() {
            flow::Tuples::V4(key) => flow::get::<Ip4>(self.map_of(Map::Connections4)?, &key),
            flow::Tuples::V6(key) => flow::get::<Ip6>(self.map_of(Map::Connections6)?, &key),
        };
        found.map_err(|source| Error::bpf("reading a connection's entry", source))
    }

    /// Copies the affinity of a client to a Service port, by the index and generation of its row. False when there is none.
    ///
    /// # Errors
    /// [`Error::Bpf`] when a table cannot be read or written.
    pub fn copy_affinity(&self, maps: &Maps, client: IpAddr, service: u32, generation: u32) -> Result<bool> {
        let copied = match client {
            IpAddr::V4(client) => {
                let key = AffinityKey { client: Ip4::from(client), service, generation };
                flow::copy_affinity(maps.fd(Map::Affinity4), self.map_of(Map::Affinity4)?, &key)
            }
            IpAddr::V6(client) => {
                let key = AffinityKey { client: Ip6::from(client), service, generation };
                flow::copy_affinity(maps.fd(Map::Affinity6), self.map_of(Map::Affinity6)?, &key)
            }
        };
        copied.map_err(|source| Error::bpf("copying an affinity", source))
    }

    /// Counters by reason, of the shadow alone.
    fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        let map = self.map_of(Map::Reasons)?;
        let count = |reason: Reason| {
            let mut rows = vec![0; self.cpus * 8];
            sys::lookup(map, &(reason as u32).to_ne_bytes(), &mut rows)
                .map_err(|source| Error::bpf("reading counters", source))?;
            let (words, _) = rows.as_chunks::<8>();
            Ok((reason, words.iter().map(|word| u64::from_ne_bytes(*word)).sum()))
        };
        Reason::ALL.into_iter().map(count).collect()
    }

    /// Descriptor of one of the shadow's own maps.
    fn map_of(&self, map: Map) -> Result<BorrowedFd<'_>> {
        match self.ebpf.map(map.name()) {
            Some(LoadedMap::LruHashMap(data) | LoadedMap::PerCpuArray(data) | LoadedMap::Array(data)) => {
                Ok(data.fd().as_fd())
            }
            _ => Err(Error::NoProgram(map.name())),
        }
    }
}
