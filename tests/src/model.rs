//! The slow, obvious model: what the programs must do with a packet, given the tables and what was there before it.
//!
//! It shares no code with the programs and none with `lb-common`: packets are read byte by byte, tables are lists that are
//! searched from the front, flows are a hash map, there is no flow cache and no clock but its own. Where the programs
//! choose at random the model says among what, and goes on with what they chose.

mod begin;
mod bytes;
mod carry;
mod echo;
mod error;
mod masquerade;
mod refusal;
mod sctp;
mod state;
mod tables;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::proto;
use lb_common::reason::Reason;

use crate::datapath::counters::Event;
use crate::datapath::entries::Ends;
use crate::datapath::packet::Mac;
use crate::datapath::{Outcome, Program, Verdict};

pub use self::bytes::{Datagram, Part, Read, Seen, looks_uncompleted, read};
pub use self::state::State;
pub use self::tables::{Address, Backend, Class, Frontend, Kind, Published, Service, Tables};

/// Index of the device that every packet of the model is met at.
pub const INTERFACE: u32 = 1;

/// What is to come of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The return value of the program.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Offsets of checksum fields in which 0 and 0xffff mean the same.
    pub sums: Vec<usize>,
}

/// One direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What its packets become.
    pub becomes: Ends,
    /// Index of the Service.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// Second of the first packet.
    pub created: u32,
    /// Second of the last packet.
    pub last_seen: u32,
    /// Device of the client (entries of answers).
    pub interface: u32,
    /// MAC address of the client (entries of answers).
    pub mac: Mac,
    /// State; that of the client's direction counts.
    pub state: State,
    /// The entry is of the answers.
    pub reply: bool,
    /// Client and endpoint are one pod.
    pub hairpin: bool,
    /// The client is outside.
    pub net: bool,
    /// The flow is to get another source.
    pub masquerade: bool,
    /// One of the pair that gives it that source.
    pub source: bool,
    /// The source port it got.
    pub masquerade_port: u16,
}

/// What is remembered of a client with an affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Its backend row.
    pub backend: u32,
    /// Second of the last new connection.
    pub last_new: u32,
}

/// What the first fragment of a datagram said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Second in which it came.
    pub seen: u32,
}

/// Everything the model knows.
#[derive(Clone, Debug)]
pub struct Model {
    /// The tables.
    pub tables: Tables,
    /// True in forwarding mode `redirect`.
    pub redirect: bool,
    /// True when pings of cluster IPs are answered.
    pub answers_echo: bool,
    /// First source port of masqueraded flows, and how many.
    pub masquerade_ports: (u16, u16),
    /// The connection table.
    pub entries: HashMap<Ends, Entry>,
    /// The affinities, by client and Service.
    pub affinities: HashMap<(IpAddr, u32), Affinity>,
    /// The first fragments.
    pub datagrams: HashMap<Datagram, Ports>,
    /// Later fragments that wait for their first one: the hook they were met at, their datagram, and what they are.
    pub waiting: Vec<(Program, Datagram, Vec<u8>)>,
    /// Something was decided by chance that no packet shows: the model does not know how to go on.
    pub lost: bool,
    /// What was counted.
    pub events: Vec<Event>,
    /// The second it is.
    pub now: u32,
}

/// A packet at a hook, on its way through the model.
struct Passage<'a> {
    at: Program,
    bytes: &'a [u8],
    seen: Seen,
    /// What the programs did: consulted where chance decides.
    did: &'a Outcome,
}

impl Passage<'_> {
    /// True when the packet does not show afterwards which ports it got: it has none, or is dropped.
    fn hides_ports(&self) -> bool {
        let is_sctp = self.seen.protocol == proto::SCTP;
        self.seen.part == Part::Later || (is_sctp && self.seen.part != Part::Whole)
    }

    fn comes_in(&self) -> bool {
        matches!(self.at, Program::FromPod | Program::FromNet)
    }

    fn key(&self) -> Ends {
        self.seen.ends()
    }

    fn source_mac(&self) -> Mac {
        self.bytes[6..12].try_into().expect("six bytes")
    }

    /// The packet is none of our business.
    fn untouched(&self) -> Expected {
        Expected { verdict: Verdict::Pass, packet: self.bytes.to_vec(), sums: Vec::new() }
    }
}

impl Model {
    /// A model without Services.
    pub fn new(redirect: bool, answers_echo: bool, masquerade_ports: (u16, u16)) -> Self {
        Self {
            tables: Tables::default(),
            redirect,
            answers_echo,
            masquerade_ports,
            entries: HashMap::new(),
            affinities: HashMap::new(),
            datagrams: HashMap::new(),
            waiting: Vec::new(),
            lost: false,
            events: Vec::new(),
            now: 1_000_000,
        }
    }

    /// True for a later fragment whose first one is not known: the programs may hold it back until that comes, and send both
    /// on themselves. The model knows nothing of that.
    pub fn waits(&self, at: Program, bytes: &[u8]) -> bool {
        let Read::Later(datagram, named, _) = read(bytes) else { return false };
        at != Program::ToNet && is_carried(named) && self.first_fragment(&datagram).is_none()
    }

    /// What the first fragment of a datagram said, as long as the kernel waits for what is missing.
    fn first_fragment(&self, datagram: &Datagram) -> Option<Ports> {
        let lifetime = if datagram.0.is_ipv6() { 60 } else { 30 };
        self.datagrams.get(datagram).filter(|ports| self.now - ports.seen < lifetime).copied()
    }

    /// What is to come of a packet at a program, and of the model itself. `did` is what the programs made of it.
    pub fn expect(&mut self, at: Program, bytes: &[u8], did: &Outcome) -> Expected {
        let pass = Expected { verdict: Verdict::Pass, packet: bytes.to_vec(), sums: Vec::new() };
        let comes_in = matches!(at, Program::FromPod | Program::FromNet);
        match read(bytes) {
            Read::NotIp => pass,
            // Of the hooks that packets leave by none judges what it cannot carry.
            Read::Malformed(_) | Read::Other(_) if !comes_in => pass,
            Read::Malformed(dst) => self.odd(dst, Reason::Malformed, bytes),
            Read::Other(dst) => self.odd(dst, Reason::NotProxied, bytes),
            Read::IcmpError(error) => self.error(at, bytes, &error),
            Read::Echo(message) => self.echo(at, bytes, &message),
            Read::Flow(seen) => {
                if let Part::First(id) = seen.part {
                    let protocol = if seen.src.is_ipv6() { 0 } else { seen.protocol };
                    let ports = Ports {
                        src: seen.src.port(),
                        dst: seen.dst.port(),
                        protocol: seen.protocol,
                        seen: self.now,
                    };
                    let datagram = (seen.src.ip(), seen.dst.ip(), id, protocol);
                    self.datagrams.insert(datagram, ports);
                    if let Some(gone) = self.let_go(at, &datagram, did) {
                        return gone;
                    }
                }
                self.flow(&Passage { at, bytes, seen, did })
            }
            Read::Later(datagram, named, transport) => {
                let (src, dst, ..) = datagram;
                match self.first_fragment(&datagram) {
                    Some(ports) => {
                        let seen = Seen {
                            src: SocketAddr::new(src, ports.src),
                            dst: SocketAddr::new(dst, ports.dst),
                            protocol: ports.protocol,
                            transport,
                            flags: 0,
                            promised: 0,
                            part: Part::Later,
                        };
                        self.flow(&Passage { at, bytes, seen, did })
                    }
                    None if at == Program::ToNet => pass,
                    None if ![proto::TCP, proto::UDP, proto::SCTP].contains(&named) => {
                        if comes_in {
                            self.odd(dst, Reason::NotProxied, bytes)
                        } else {
                            pass
                        }
                    }
                    None => match (self.tables.whose(dst), at) {
                        (Address::Unallocated, Program::FromPod | Program::FromNet) => {
                            self.drop(Reason::UnallocatedAddress, None, bytes)
                        }
                        // Of what goes through the node for others, the first may go another way.
                        (Address::Foreign, Program::FromNet)
                            if !self.tables.node_addresses.contains(&dst) =>
                        {
                            pass
                        }
                        _ => {
                            self.waiting.push((at, datagram, bytes.to_vec()));
                            Expected { verdict: Verdict::Drop, ..pass }
                        }
                    },
                }
            }
        }
    }

    /// A first fragment that others wait for is put in again where it was met, and they behind it: nothing else comes of it
    /// this time. It is gone as one of them, in whatever order they left.
    fn let_go(&mut self, at: Program, datagram: &Datagram, did: &Outcome) -> Option<Expected> {
        let waits = |(hook, of, _): &(Program, Datagram, Vec<u8>)| *hook == at && of == datagram;
        let gone: Vec<Vec<u8>> = self.waiting.extract_if(.., |held| waits(held)).map(|held| held.2).collect();
        let last = gone.iter().find(|frame| **frame == did.packet).or(gone.last())?;
        Some(Expected { verdict: Verdict::Drop, packet: last.clone(), sums: Vec::new() })
    }

    /// A packet that comes in and that no Service can carry: only its address counts (S-23, S-70).
    fn odd(&mut self, dst: IpAddr, reason: Reason, bytes: &[u8]) -> Expected {
        match self.tables.whose(dst) {
            Address::ClusterIp => self.drop(reason, None, bytes),
            Address::Unallocated => self.drop(Reason::UnallocatedAddress, None, bytes),
            Address::Foreign => Expected { verdict: Verdict::Pass, packet: bytes.to_vec(), sums: Vec::new() },
        }
    }

    /// A packet with ports.
    fn flow(&mut self, passage: &Passage<'_>) -> Expected {
        if let Some(expected) = self.carry(passage, false) {
            return expected;
        }
        let begun = if passage.comes_in() { self.begin(passage) } else { self.masquerade(passage) };
        match begun {
            Err(expected) => expected,
            Ok(()) => self.carry(passage, true).expect("the entry was made a moment ago"),
        }
    }

    /// Drops a packet for a reason, of a Service where there is one.
    fn drop(&mut self, reason: Reason, service: Option<u32>, bytes: &[u8]) -> Expected {
        self.events.push(Event::Reason(reason));
        self.events.extend(service.map(Event::Dropped));
        Expected { verdict: Verdict::Drop, packet: bytes.to_vec(), sums: Vec::new() }
    }
}

/// True for the protocols that Services carry.
fn is_carried(protocol: u8) -> bool {
    [proto::TCP, proto::UDP, proto::SCTP].contains(&protocol)
}
