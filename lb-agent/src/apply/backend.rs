//! Backend rows of either family.

use std::net::IpAddr;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{Backend, BackendFlags, Table};

use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::Family;

/// The backend table of a family.
pub(super) const fn backend_table(family: Family) -> Table {
    match family {
        Family::V4 => Table::Backends4,
        Family::V6 => Table::Backends6,
    }
}

/// Positions of the words that change in a row's life, and the number of words.
#[derive(Clone, Copy, Debug)]
struct Shape {
    flags: usize,
    interface: usize,
    mac: usize,
    words: usize,
}

const fn shape<A: Address>() -> Shape {
    Shape {
        flags: Backend::<A>::FLAGS_WORD,
        interface: Backend::<A>::INTERFACE_WORD,
        mac: Backend::<A>::MAC_WORD,
        words: Backend::<A>::WORDS,
    }
}

const fn shape_of(family: Family) -> Shape {
    match family {
        Family::V4 => shape::<Ip4>(),
        Family::V6 => shape::<Ip6>(),
    }
}

/// The flags that say which classes list a backend.
pub(super) const CLASS_FLAGS: u16 =
    BackendFlags::IN_INTERNAL | BackendFlags::IN_EXTERNAL | BackendFlags::IN_CLUSTER;

/// A backend row, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackendRow {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) flags: u16,
    pub(super) service: u32,
    pub(super) interface: u32,
    pub(super) mac: [u8; 6],
}

impl BackendRow {
    /// Reads a row.
    pub(super) fn load(memory: &impl TableMemory, family: Family, row: u32) -> Self {
        let word = |word| memory.load(backend_table(family), row, word);
        match family {
            Family::V4 => Backend::decode4([word(0), word(1), word(2), word(3)]).into(),
            Family::V6 => Backend::decode6([word(0), word(1), word(2), word(3), word(4), word(5)]).into(),
        }
    }

    /// Address and port: what identifies it within its Service port.
    pub(super) const fn target(&self) -> (IpAddr, u16) {
        (self.address, self.port)
    }

    const fn family(&self) -> Family {
        match self.address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// As stored; of four words the last two are unused.
    fn encode(&self) -> [u64; 6] {
        let Self { address, port, flags, service, interface, mac } = *self;
        let port = Be16::new(port);
        match address {
            IpAddr::V4(address) => {
                let address = Ip4::from(address);
                let [a, b, c, d] = Backend { address, port, flags, service, interface, mac }.encode4();
                [a, b, c, d, 0, 0]
            }
            IpAddr::V6(address) => {
                let address = Ip6::from(address);
                Backend { address, port, flags, service, interface, mac }.encode6()
            }
        }
    }

    /// Writes a row that nothing names yet: the flags last, since they say that it is in use.
    pub(super) fn write_new(&self, memory: &impl TableMemory, row: u32) -> Result<(), StoreError> {
        let (table, shape, words) = (backend_table(self.family()), shape_of(self.family()), self.encode());
        for word in (0..shape.words).filter(|word| *word != shape.flags) {
            if memory.load(table, row, word) != words[word] {
                memory.store(table, row, word, words[word])?;
            }
        }
        memory.store(table, row, shape.flags, words[shape.flags])
    }

    /// Makes a row that may be named say this: interface 0, flags, MAC, interface (see `lb_common::layout`).
    pub(super) fn update(&self, memory: &impl TableMemory, row: u32) -> Result<(), StoreError> {
        let family = self.family();
        let before = Self::load(memory, family, row);
        let (table, shape, words) = (backend_table(family), shape_of(family), self.encode());
        const KIND: u16 = BackendFlags::LOCAL | BackendFlags::NEIGHBOUR;
        let way_changes = before.mac != self.mac || (before.flags ^ self.flags) & KIND != 0;
        if before.interface != 0 && way_changes {
            let without = Self { interface: 0, ..before }.encode();
            memory.store(table, row, shape.interface, without[shape.interface])?;
        }
        for word in [shape.flags, shape.mac, shape.interface] {
            if memory.load(table, row, word) != words[word] {
                memory.store(table, row, word, words[word])?;
            }
        }
        Ok(())
    }

    /// Empties a row: flags 0 say that it is not in use, interface 0 that no device leads there.
    pub(super) fn clear(memory: &impl TableMemory, family: Family, row: u32) -> Result<(), StoreError> {
        let before = Self::load(memory, family, row);
        let (table, shape) = (backend_table(family), shape_of(family));
        let words = Self { flags: 0, interface: 0, ..before }.encode();
        for word in [shape.flags, shape.interface] {
            if memory.load(table, row, word) != words[word] {
                memory.store(table, row, word, words[word])?;
            }
        }
        Ok(())
    }
}

impl<A: Address> From<Backend<A>> for BackendRow {
    fn from(backend: Backend<A>) -> Self {
        let Backend { address, port, flags, service, interface, mac } = backend;
        Self { address: address.to_ip(), port: port.host(), flags, service, interface, mac }
    }
}
