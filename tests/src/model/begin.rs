//! The first packet of a flow, where it comes in.

use std::net::{IpAddr, SocketAddr};

use lb_common::proto::{self, tcp};
use lb_common::reason::Reason;

use super::state;
use super::tables::{self, Address, Class, Frontend, Kind, Published};
use super::{Affinity, Entry, Expected, Model, Passage, Read, State};
use crate::datapath::counters::Event;
use crate::datapath::entries::Ends;
use crate::datapath::{Program, Verdict};

/// Seconds of silence after which a datagram flow's port may be taken.
const SILENCE: u32 = 240;

/// What the table said to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Made,
    Taken,
}

impl Model {
    /// Makes the entries of a new flow, or says what else becomes of the packet.
    pub(super) fn begin(&mut self, passage: &Passage<'_>) -> Result<(), Expected> {
        let (src, dst, protocol) = (passage.seen.src, passage.seen.dst, passage.seen.protocol);
        let Some(frontend) = self.tables.frontend(dst, protocol) else {
            return Err(match self.tables.whose(dst.ip()) {
                Address::ClusterIp if self.is_spoofed(passage) => {
                    self.drop(Reason::SpoofedSource, None, passage.bytes)
                }
                Address::ClusterIp => self.refuse(passage, Reason::UnknownPort),
                Address::Unallocated => self.drop(Reason::UnallocatedAddress, None, passage.bytes),
                Address::Foreign => {
                    self.give_way(passage);
                    passage.untouched()
                }
            });
        };
        let index = frontend.service;
        let service = self.tables.service(index).clone();
        if self.is_spoofed(passage) {
            return Err(self.drop(Reason::SpoofedSource, Some(index), passage.bytes));
        }
        if passage.seen.flags & tcp::RST != 0 {
            return Err(self.drop(Reason::ResetWithoutFlow, Some(index), passage.bytes));
        }
        let outside = passage.at == Program::FromNet;
        if let (Kind::LoadBalancer, Some(sources)) = (frontend.kind, &service.sources) {
            let allowed =
                sources.iter().any(|(network, prefix)| tables::contains(*network, *prefix, src.ip()));
            if !allowed {
                return Err(self.drop(Reason::SourceNotAllowed, Some(index), passage.bytes));
            }
        }
        let class = match (frontend.kind, outside) {
            (Kind::ClusterIp, _) => Class::Internal,
            (_, true) => Class::External,
            (_, false) => Class::Cluster,
        };
        let backend = self.choose(passage, &service, class)?;
        self.enter(passage, frontend, backend)
    }

    /// True for a segment that may end a connection through a Service ([`Self::give_way`]).
    pub fn may_give_way(&self, bytes: &[u8]) -> bool {
        let Read::Flow(seen) = super::read(bytes) else { return false };
        seen.protocol == proto::TCP
            && state::is_question(seen.flags)
            && self.entries.contains_key(&seen.ends().turned())
    }

    /// A client talks to someone itself: what has been there between the same ends through a Service, from a port that is
    /// the same there and here, gives way. For a connection what is over; all of it for a pod's datagram.
    fn give_way(&mut self, passage: &Passage<'_>) {
        let outside = match passage.at {
            Program::FromPod => false,
            Program::FromNet => true,
            _ => return,
        };
        let datagram = passage.seen.protocol == proto::UDP && !outside;
        if !(datagram || state::is_question(passage.seen.flags)) {
            return;
        }
        let key = passage.key().turned();
        let Some(answers) = self.entries.get(&key) else { return };
        if !answers.reply || answers.source || answers.net != outside || answers.hairpin {
            return;
        }
        let client = answers.other();
        match self.entries.get(&client).filter(|client| client.other() == key) {
            // The kernel evicted it.
            None => drop(self.entries.remove(&key)),
            Some(there) if datagram || self.is_unused(there) => self.remove_flow(&client),
            Some(_) => {}
        }
    }

    /// True for a source that nobody in order has.
    fn is_spoofed(&self, passage: &Passage<'_>) -> bool {
        let (src, dst) = (passage.seen.src.ip(), passage.seen.dst.ip());
        let nobody = match src {
            IpAddr::V4(src) => {
                src.octets()[0] == 0 || src.is_loopback() || src.is_multicast() || src.is_broadcast()
            }
            IpAddr::V6(src) => src.is_unspecified() || src.is_loopback() || src.is_multicast(),
        };
        let node = passage.at == Program::FromNet && self.tables.node_addresses.contains(&src);
        nobody || node || src == dst || self.tables.whose(src) != Address::Foreign
    }

    /// The backend row for a new connection.
    fn choose(
        &mut self,
        passage: &Passage<'_>,
        service: &tables::Service,
        class: Class,
    ) -> Result<u32, Expected> {
        let key = (passage.seen.src.ip(), service.index);
        let now = self.now;
        if service.affinity != 0
            && let Some(affinity) = self.affinities.get_mut(&key)
        {
            let stays = self.tables.backends.iter().any(|backend| {
                backend.index == affinity.backend
                    && backend.endpoint == affinity.endpoint
                    && backend.service == service.index
                    && backend.listed[class as usize]
            });
            if stays && now - affinity.last_new < service.affinity {
                affinity.last_new = now;
                return Ok(affinity.backend);
            }
        }
        let rows = match &service.lists[class as usize] {
            Published::OneOf(rows) => rows.clone(),
            Published::Reject => {
                self.events.push(Event::Refused(service.index));
                return Err(self.refuse(passage, Reason::NoEndpoint));
            }
            Published::Drop => {
                return Err(self.drop(Reason::NoLocalEndpoint, Some(service.index), passage.bytes));
            }
        };
        // Chance decides: where did the packet go? If to none of these, the first one shows the difference.
        let went = super::read(&passage.did.packet).dst();
        let endpoint = |row: u32| self.tables.backend(row).expect("a backend that there is").endpoint;
        let row = rows.iter().copied().find(|row| Some(endpoint(*row).ip()) == went).unwrap_or(rows[0]);
        if service.affinity != 0 {
            let affinity = Affinity { endpoint: endpoint(row), backend: row, last_new: now };
            self.affinities.insert(key, affinity);
        }
        Ok(row)
    }

    /// Makes both entries of a flow to a backend.
    fn enter(&mut self, passage: &Passage<'_>, frontend: Frontend, row: u32) -> Result<(), Expected> {
        let (src, dst, protocol) = (passage.seen.src, passage.seen.dst, passage.seen.protocol);
        let service = self.tables.service(frontend.service);
        let backend = *self.tables.backend(row).expect("a backend that there is");
        let outside = passage.at == Program::FromNet;
        let masquerades = if frontend.kind == Kind::ClusterIp { outside } else { !service.preserve_source };
        // A pod that reached itself sees the Service's address, unless it would see the node's anyway.
        let hairpin = backend.endpoint.ip() == src.ip() && !(outside && masquerades);
        let from = if hairpin { dst.ip() } else { src.ip() };
        let entry = Entry {
            becomes: Ends { src: SocketAddr::new(from, src.port()), dst: backend.endpoint, protocol },
            service: frontend.service,
            backend: row,
            created: self.now,
            last_seen: self.now,
            interface: 0,
            mac: [0; 6],
            state: State::first(protocol),
            reply: false,
            hairpin,
            net: outside,
            masquerade: masquerades && !hairpin,
            source: false,
            masquerade_port: 0,
        };
        if self.claim(passage, &entry) == Claim::Taken {
            self.lost |= passage.hides_ports();
            // Another flow has the client's port: some other port, unless there is none.
            let free = self.port_taken_instead(passage, &entry, (1024, 64_512));
            let Some(entry) = free else {
                return Err(self.drop(Reason::NoFreePort, Some(frontend.service), passage.bytes));
            };
            assert_eq!(self.claim(passage, &entry), Claim::Made, "the port was found free");
        }
        self.events.push(Event::Opened(frontend.service, row));
        Ok(())
    }

    /// The entry with the port that the programs took instead of its own, when they did and might.
    pub(super) fn port_taken_instead(
        &self,
        passage: &Passage<'_>,
        entry: &Entry,
        (first, count): (u16, u16),
    ) -> Option<Entry> {
        let may = |port: u16| {
            let mut other = entry.clone();
            other.becomes.src.set_port(port);
            let in_range = (u32::from(first)..u32::from(first) + u32::from(count)).contains(&u32::from(port));
            (in_range && self.is_free(&other)).then_some(other)
        };
        match super::read(&passage.did.packet) {
            Read::Flow(seen) if passage.did.verdict != Verdict::Drop => may(seen.src.port()),
            _ => None,
        }
    }

    /// True when an entry's answers can be told from those of every other flow.
    fn is_free(&self, entry: &Entry) -> bool {
        let Some(there) = self.entries.get(&entry.other()) else { return true };
        let Some(client) = self.entries.get(&there.other()) else { return true };
        self.is_unused(client)
    }

    /// True when nobody uses the flow of a client's entry any more.
    fn is_unused(&self, client: &Entry) -> bool {
        let silent = client.state.is_udp() && self.now - client.last_seen > SILENCE;
        silent || client.state.is_over(self.now - client.last_seen)
    }

    /// Enters an entry and its counterpart, unless another flow has the port.
    pub(super) fn claim(&mut self, passage: &Passage<'_>, entry: &Entry) -> Claim {
        let (key, other) = (passage.key(), entry.other());
        if let Some(there) = self.entries.get(&other).cloned()
            && there.becomes != key.turned()
        {
            if !self.is_free(entry) {
                return Claim::Taken;
            }
            self.entries.remove(&there.other());
        }
        let counterpart = self.counterpart(&key, entry, passage);
        self.entries.insert(other, counterpart);
        self.entries.insert(key, entry.clone());
        Claim::Made
    }
}
