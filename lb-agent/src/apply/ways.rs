//! Ways: over which device, and to which MAC address, an endpoint is reached without the host's stack.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::layout::BackendFlags;

use super::backend::{BackendRow, CLASS_FLAGS};
use super::{Applier, ApplyError};
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::Family;

/// The way to an address. An address without one is left to the host's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// Local: the host side of the pod's device. Neighbour: the network card.
    pub interface: u32,
    /// MAC address of a local endpoint.
    pub mac: [u8; 6],
    /// Which of the two.
    pub kind: WayKind,
}

/// How the datapath uses a [`Way`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WayKind {
    /// Into the peer of `interface`.
    Local,
    /// Out of `interface`; the kernel resolves the neighbour.
    Neighbour,
}

impl<M: TableMemory> Applier<M> {
    /// Sets or forgets the way to an address, for every backend with that address now or later.
    ///
    /// # Errors
    /// When a store failed; the next call of any kind tries again.
    pub fn set_way(&mut self, address: IpAddr, way: Option<Way>) -> Result<(), ApplyError> {
        self.note_way(address, way);
        self.sync_ways()
    }

    /// Makes these the only ways; whatever has another one loses it.
    ///
    /// # Errors
    /// As for [`Applier::set_way`].
    pub fn set_ways(&mut self, ways: HashMap<IpAddr, Way>) -> Result<(), ApplyError> {
        let gone: Vec<IpAddr> =
            self.ways.keys().filter(|address| !ways.contains_key(address)).copied().collect();
        for address in gone {
            self.note_way(address, None);
        }
        for (address, way) in ways {
            self.note_way(address, Some(way));
        }
        self.sync_ways()
    }

    fn note_way(&mut self, address: IpAddr, way: Option<Way>) {
        let before = match way {
            Some(way) => self.ways.insert(address, way),
            None => self.ways.remove(&address),
        };
        if before != way {
            self.stale_ways.insert(address);
        }
    }

    pub(super) fn sync_ways(&mut self) -> Result<(), ApplyError> {
        while let Some(address) = self.stale_ways.first().copied() {
            let family = Family::of(address);
            for row in self.registry.rows(&self.writer.memory, address) {
                let now = BackendRow::load(&self.writer.memory, family, row);
                let lasting = now.flags & (BackendFlags::SERVING | CLASS_FLAGS);
                self.sync_backend(family, row, now.service, now.target(), lasting)?;
            }
            self.stale_ways.pop_first();
        }
        Ok(self.advance_epoch()?)
    }

    /// What a backend row has to say. `lasting` are the flags that the plan decides: that it serves, and its classes.
    pub(super) fn backend_row(
        &self,
        service: u32,
        (address, port): (IpAddr, u16),
        lasting: u16,
        local: bool,
    ) -> BackendRow {
        let mut flags = BackendFlags::IN_USE | lasting;
        let (mut interface, mut mac) = (0, [0; 6]);
        // The way knows better than the plan where an endpoint is: it was learned from the node itself.
        match self.ways.get(&address) {
            Some(way) => {
                (interface, mac) = (way.interface, way.mac);
                flags |= match way.kind {
                    WayKind::Local => BackendFlags::LOCAL,
                    WayKind::Neighbour => BackendFlags::NEIGHBOUR,
                };
            }
            None if local => flags |= BackendFlags::LOCAL,
            None => {}
        }
        BackendRow { address, port, flags, service, interface, mac }
    }

    /// Makes a row in use say what it has to.
    pub(super) fn sync_backend(
        &mut self,
        family: Family,
        row: u32,
        service: u32,
        target: (IpAddr, u16),
        lasting: u16,
    ) -> Result<(), StoreError> {
        let wanted = self.backend_row(service, target, lasting, self.registry.is_local(family, row));
        let now = BackendRow::load(&self.writer.memory, family, row);
        if now == wanted {
            return Ok(());
        }
        // Remembered flows may use the old way, or an endpoint that no longer serves; a new server they do not, and
        // which classes list it concerns new flows only.
        const KIND: u16 = BackendFlags::LOCAL | BackendFlags::NEIGHBOUR;
        let stops = now.flags & !wanted.flags & BackendFlags::SERVING != 0;
        let moves = (now.flags ^ wanted.flags) & KIND != 0;
        if stops || moves || (now.interface, now.mac) != (wanted.interface, wanted.mac) {
            self.epoch_due = true;
        }
        wanted.update(&self.writer.memory, row)
    }
}
