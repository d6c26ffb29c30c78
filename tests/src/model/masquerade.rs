//! The first packet of a flow, where it leaves: some get an address of the node as their source.

use std::net::SocketAddr;

use lb_common::reason::Reason;

use super::begin::Claim;
use super::{Entry, Expected, Model, Passage, State};
use crate::datapath::entries::Ends;

impl Model {
    /// Makes the second pair of a flow that is to be masqueraded, or says what else becomes of the packet.
    pub(super) fn masquerade(&mut self, passage: &Passage<'_>) -> Result<(), Expected> {
        let key = passage.key();
        let answers = self.entries.get(&key.turned()).filter(|answers| answers.reply && answers.masquerade);
        let Some(answers) = answers.cloned() else { return Err(passage.untouched()) };
        let Some(address) = self.tables.masquerade else {
            return Err(self.drop(Reason::NoMasqueradeAddress, Some(answers.service), passage.bytes));
        };
        let own = self.own_port(key.src.port());
        let port = if answers.masquerade_port != 0 { answers.masquerade_port } else { own };
        let mut entry = Entry {
            becomes: Ends { src: SocketAddr::new(address, port), ..key },
            service: answers.service,
            backend: answers.backend,
            created: self.now,
            last_seen: self.now,
            interface: 0,
            mac: [0; 6],
            state: State::first(key.protocol),
            reply: false,
            hairpin: false,
            net: false,
            masquerade: false,
            source: true,
            masquerade_port: 0,
        };
        if self.claim(passage, &entry) == Claim::Taken {
            self.lost |= passage.hides_ports();
            // Some other port, unless chance found none that is free.
            let Some(other) = self.port_taken_instead(passage, &entry, self.masquerade_ports) else {
                return Err(self.drop(Reason::NoFreePort, Some(answers.service), passage.bytes));
            };
            assert_eq!(self.claim(passage, &other), Claim::Made, "the port was found free");
            entry = other;
        }
        if let Some(answers) = self.entries.get_mut(&key.turned()) {
            answers.masquerade_port = entry.becomes.src.port();
        }
        Ok(())
    }

    /// The client's own port, moved into the range.
    fn own_port(&self, port: u16) -> u16 {
        let (first, count) = self.masquerade_ports;
        // A port below the range wraps round 32 bits.
        let above = u32::from(port).wrapping_sub(u32::from(first));
        first + (above % u32::from(count)) as u16
    }
}
