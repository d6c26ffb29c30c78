//! A packet of a flow that is known.

use lb_common::proto;
use lb_common::reason::Reason;

use super::bytes::write_ends;
use super::state;
use super::{Entry, Expected, INTERFACE, Model, Part, Passage, State};
use crate::datapath::counters::Event;
use crate::datapath::entries::Ends;
use crate::datapath::packet::Mac;
use crate::datapath::{Program, Verdict};

impl Entry {
    /// Where packets of the other direction are found.
    pub fn other(&self) -> Ends {
        self.becomes.turned()
    }
}

/// How a packet leaves.
pub(super) enum Way {
    /// The host's stack finds it.
    Stack,
    /// To that MAC address, by a redirect.
    Device(Mac),
    /// By a redirect that finds the MAC address itself.
    Neighbour,
}

impl Way {
    /// Addresses the packet, and says by which verdict it leaves.
    pub(super) fn apply(&self, packet: &mut [u8]) -> Verdict {
        match self {
            Self::Stack => Verdict::Pass,
            Self::Neighbour => Verdict::Redirect,
            Self::Device(mac) => {
                packet[..6].copy_from_slice(mac);
                Verdict::Redirect
            }
        }
    }
}

impl Model {
    /// Carries a packet of a flow that is known; `None` when it is not, or is over.
    pub(super) fn carry(&mut self, passage: &Passage<'_>, is_first: bool) -> Option<Expected> {
        let key = passage.key();
        let entry = self.entries.get(&key)?.clone();
        let asks = state::is_question(passage.seen.flags);
        let own = passage.at == Program::FromPod || (passage.at == Program::FromNet && asks);
        if !is_first && own && entry.source && !entry.reply {
            // The client's own: one of its flow through the Service gets its source where it leaves.
            return None;
        }
        if !is_first && self.is_over(passage, &entry) {
            return None;
        }
        let Some(way) = self.way(passage.at, &entry, passage.source_mac()) else {
            return Some(passage.untouched());
        };
        self.note(passage, &key);
        let becomes = &entry.becomes;
        let ports = (becomes.src.port(), becomes.dst.port()) != (key.src.port(), key.dst.port());
        if key.protocol == proto::SCTP && ports && matches!(passage.seen.part, Part::First(_)) {
            // How long the whole is, which its checksum is of, is not known.
            // Nor, when the flow began with it, which endpoint was chosen.
            self.lost |= is_first;
            return Some(self.drop(Reason::RewriteFailed, Some(entry.service), passage.bytes));
        }
        let mut packet = passage.bytes.to_vec();
        let sums = write_ends(&mut packet, &passage.seen, &entry.becomes);
        if !entry.source {
            let (service, backend, bytes) = (entry.service, entry.backend, passage.bytes.len() as u64 - 14);
            self.events.push(if entry.reply {
                Event::Reply(service, backend, bytes)
            } else {
                Event::Forward(service, backend, bytes)
            });
        }
        let verdict = way.apply(&mut packet);
        Some(Expected { verdict, packet, sums })
    }

    /// How packets of an entry leave, sent from a MAC address; `None` when they are not translated at that hook.
    pub(super) fn way(&self, at: Program, entry: &Entry, mac: Mac) -> Option<Way> {
        let comes_in = matches!(at, Program::FromPod | Program::FromNet);
        // In mode `redirect` the answers between pods do not go through the stack at all.
        let straight =
            at == Program::FromPod && self.redirect && !entry.net && !entry.masquerade && !entry.source;
        let here = match (comes_in, entry.source) {
            _ if entry.hairpin => comes_in,
            _ if straight => true,
            // Destinations are translated where packets come in, and their answers where they leave.
            (true, false) => !entry.reply,
            (false, false) => entry.reply,
            // Sources the other way round.
            (true, true) => entry.reply,
            (false, true) => !entry.reply,
        };
        here.then(|| match (entry.hairpin, straight, entry.reply) {
            (true, _, true) => Way::Device(entry.mac),
            (true, _, false) => Way::Device(mac),
            (false, true, true) if entry.interface != 0 => Way::Device(entry.mac),
            (false, true, false) => self.way_to_backend(entry),
            _ => Way::Stack,
        })
    }

    /// True when the packet is of a new connection on the ends of an old one, which is forgotten then.
    fn is_over(&mut self, passage: &Passage<'_>, entry: &Entry) -> bool {
        let later = passage.seen.part == Part::Later;
        // The first fragment decided.
        if entry.reply || (later && passage.comes_in()) {
            return false;
        }
        let key = passage.key();
        let (flags, age) = (passage.seen.flags, self.now - entry.created);
        match (passage.comes_in(), entry.source) {
            (true, false) => {
                let over = if entry.becomes.protocol != proto::UDP {
                    let asks = entry.state.wants_endpoint(flags);
                    entry.state.gives_way(flags, age) || (asks && !self.serves(entry))
                } else {
                    !self.serves(entry)
                };
                if over {
                    self.remove_flow(&key);
                    self.events.push(Event::Reselected(entry.service));
                }
                over
            }
            (false, true) => {
                let answers = self.entries.get(&key.turned());
                let unwanted = answers.is_some_and(|answers| !answers.masquerade);
                let over = unwanted || entry.state.gives_way(flags, age);
                if over {
                    self.remove_pair(&key);
                }
                over
            }
            _ => false,
        }
    }

    /// Removes all of a flow, whose client's entry has that key.
    pub(super) fn remove_flow(&mut self, key: &Ends) {
        let Some(entry) = self.entries.get(key).cloned() else { return };
        self.remove_pair(key);
        let second = entry.becomes;
        if entry.masquerade && self.entries.get(&second).is_some_and(|entry| entry.source) {
            self.remove_pair(&second);
        }
    }

    /// Removes both directions.
    fn remove_pair(&mut self, key: &Ends) {
        if let Some(entry) = self.entries.remove(key) {
            self.entries.remove(&entry.other());
        }
    }

    /// True when the flow's endpoint still is one of its Service and serves.
    fn serves(&self, entry: &Entry) -> bool {
        self.tables.backend(entry.backend).is_some_and(|backend| {
            backend.endpoint == entry.becomes.dst && backend.service == entry.service && backend.serving
        })
    }

    fn way_to_backend(&self, entry: &Entry) -> Way {
        let Some(backend) = self.tables.backend(entry.backend) else { return Way::Stack };
        let same = backend.endpoint == entry.becomes.dst && backend.service == entry.service;
        match (same, backend.interface, backend.neighbour) {
            (false, ..) | (true, 0, _) => Way::Stack,
            (true, _, true) => Way::Neighbour,
            (true, _, false) => Way::Device(backend.mac),
        }
    }

    /// Notes a packet in the entries of both directions.
    fn note(&mut self, passage: &Passage<'_>, key: &Ends) {
        let entry = self.entries[key].clone();
        let other_key = entry.other();
        if !self.entries.contains_key(&other_key) {
            let restored = self.counterpart(key, &entry, passage);
            self.entries.insert(other_key, restored);
        }
        let now = self.now;
        for key in [key, &other_key] {
            self.entries.get_mut(key).expect("both are there").last_seen = now;
        }
        if !entry.reply && !entry.net && !entry.source {
            let other = self.entries.get_mut(&other_key).expect("both are there");
            if other.interface != INTERFACE {
                (other.interface, other.mac) = (INTERFACE, passage.source_mac());
            }
        }
        let forward = if entry.reply { &other_key } else { key };
        let forward = self.entries.get_mut(forward).expect("both are there");
        if passage.seen.part != Part::Later {
            let before = forward.state;
            let age = self.now - forward.created;
            forward.state = before.after(passage.seen.flags, !entry.reply, age);
            if forward.state == State::ResetSyn && before != State::ResetSyn {
                // The wait for the endpoint begins.
                forward.created = self.now;
            }
        }
    }

    /// The entry of the other direction.
    pub(super) fn counterpart(&self, key: &Ends, entry: &Entry, passage: &Passage<'_>) -> Entry {
        let of_client = !entry.reply;
        Entry {
            becomes: key.turned(),
            reply: !entry.reply,
            interface: if of_client { INTERFACE } else { 0 },
            mac: if of_client { passage.source_mac() } else { [0; 6] },
            masquerade_port: 0,
            ..entry.clone()
        }
    }
}
