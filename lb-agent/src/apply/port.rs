//! What is kept of Services and of their ports. The rest is read from the tables.

use std::net::IpAddr;

use smallvec::SmallVec;

use super::backend::BackendRow;
use super::key::TableKey;
use crate::dataplane::memory::TableMemory;
use crate::model::{Few, KeyHash, Numbers, ObjectName};
use crate::plan::ServicePortKey;

/// A Service port in the tables.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) key: ServicePortKey,
    /// Creation time of its Service; `None` also while only the tables are known.
    pub(super) created: Option<i64>,
    /// Rows of its backends, in the order of their addresses and ports.
    pub(super) backends: SmallVec<[u32; 4]>,
    /// Frontends it claims.
    pub(super) frontends: Few<TableKey>,
    /// The next port of its Service, 0 = none: row 0 is never used.
    next: u32,
}

impl Port {
    pub(super) fn new(key: ServicePortKey, created: Option<i64>) -> Self {
        Self { key, created, backends: SmallVec::new(), frontends: Few::new(), next: 0 }
    }

    /// Address and port of the backend in a row.
    pub(super) fn target(&self, memory: &impl TableMemory, row: u32) -> (IpAddr, u16) {
        BackendRow::load(memory, self.key.family, row).target()
    }

    /// Adds rows, keeping the order.
    pub(super) fn add_backends(&mut self, memory: &impl TableMemory, rows: &[u32]) {
        if rows.is_empty() {
            return;
        }
        let ordered = self.backends.is_empty();
        self.backends.reserve_exact(rows.len());
        self.backends.extend_from_slice(rows);
        if !ordered {
            let family = self.key.family;
            self.backends.sort_by_key(|row| BackendRow::load(memory, family, *row).target());
        }
    }
}

/// The Service ports in the tables, by their rows, and their Services by name.
#[derive(Debug, Default)]
pub(super) struct Ports {
    rows: Vec<Option<Box<Port>>>,
    /// The first port of each Service; each leads to the next one.
    first: Numbers,
}

impl Ports {
    pub(super) fn get(&self, index: u32) -> Option<&Port> {
        self.rows.get(index as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Port> {
        self.rows.get_mut(index as usize)?.as_deref_mut()
    }

    /// Every row that has a port is below.
    pub(super) fn end(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Number of Services.
    pub(super) fn service_count(&self) -> usize {
        self.first.len()
    }

    /// The Services, in no order.
    pub(super) fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.first.iter().filter_map(|index| Some(&self.get(index)?.key.service))
    }

    /// The ports of a Service, in the order in which they came.
    pub(super) fn of(&self, service: &ObjectName) -> impl Iterator<Item = u32> {
        self.of_hash(self.first.hash(service), service)
    }

    fn of_hash(&self, hash: KeyHash, service: &ObjectName) -> impl Iterator<Item = u32> {
        let is_of = |index| self.get(index).is_some_and(|port| port.key.service == *service);
        let first = self.first.find(hash, is_of);
        let next = |index: &u32| self.get(*index).map(|port| port.next).filter(|next| *next != 0);
        std::iter::successors(first, next)
    }

    /// True when a Service has a port in the tables.
    pub(super) fn has(&self, service: &ObjectName) -> bool {
        self.of(service).next().is_some()
    }

    /// The row of a port.
    pub(super) fn find(&self, key: &ServicePortKey) -> Option<u32> {
        let is = |port: &Port| {
            // The Service is known to be the same.
            (port.key.family, port.key.protocol) == (key.family, key.protocol)
                && port.key.port_name == key.port_name
        };
        self.of(&key.service).find(|index| self.get(*index).is_some_and(is))
    }

    /// Adds a port in a row that has none.
    pub(super) fn insert(&mut self, index: u32, port: Port) {
        let hash = self.first.hash(&port.key.service);
        let last = self.of_hash(hash, &port.key.service).last();
        match last.and_then(|last| self.get_mut(last)) {
            Some(last) => last.next = index,
            None => self.first.insert(hash, index),
        }
        let place = index as usize;
        if place >= self.rows.len() {
            self.rows.resize_with(place + 1, || None);
        }
        self.rows[place] = Some(Box::new(port));
    }

    /// Forgets a port.
    pub(super) fn remove(&mut self, index: u32) {
        let Some(Port { key, next, .. }) = self.get(index) else { return };
        let (next, hash) = (*next, self.first.hash(&key.service));
        let before =
            self.of(&key.service).find(|other| self.get(*other).is_some_and(|port| port.next == index));
        match before.and_then(|before| self.get_mut(before)) {
            Some(before) => before.next = next,
            None if next != 0 => {
                self.first.replace(hash, index, next);
            }
            None => {
                self.first.remove(hash, index);
            }
        }
        self.rows[index as usize] = None;
    }

    /// Notes when a Service was created.
    pub(super) fn set_created(&mut self, service: &ObjectName, created: Option<i64>) {
        let mut at = self.of(service).next();
        while let Some(port) = at.and_then(|index| self.get_mut(index)) {
            port.created = created;
            at = Some(port.next).filter(|next| *next != 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol};

    fn key(service: &str, port: &str) -> ServicePortKey {
        let service = ObjectName::new("default", service);
        ServicePortKey { service, port_name: port.into(), protocol: Protocol::Tcp, family: Family::V4 }
    }

    #[test]
    fn ports_are_found_by_service_in_the_order_in_which_they_came() {
        let mut ports = Ports::default();
        let all = [("a", "x", 1), ("b", "x", 2), ("a", "y", 3), ("a", "z", 9)];
        for (service, port, index) in all {
            assert_eq!(ports.find(&key(service, port)), None);
            ports.insert(index, Port::new(key(service, port), None));
        }
        let of = |ports: &Ports, service| ports.of(&ObjectName::new("default", service)).collect::<Vec<_>>();
        assert!(all.iter().all(|(service, port, index)| ports.find(&key(service, port)) == Some(*index)));
        assert_eq!((of(&ports, "a"), of(&ports, "b"), ports.service_count()), (vec![1, 3, 9], vec![2], 2));

        ports.set_created(&ObjectName::new("default", "a"), Some(7));
        let created = [1, 2, 3, 9].map(|index| ports.get(index).unwrap().created);
        assert_eq!(created, [Some(7), None, Some(7), Some(7)]);

        // In the middle, first, last, and the only one.
        for (index, left) in [(3, vec![1, 9]), (1, vec![9]), (9, vec![])] {
            ports.remove(index);
            assert_eq!((of(&ports, "a"), of(&ports, "b")), (left, vec![2]));
        }
        assert_eq!(ports.services().cloned().collect::<Vec<_>>(), [ObjectName::new("default", "b")]);
        assert!(ports.get(9).is_none() && ports.has(&ObjectName::new("default", "b")));
    }
}
