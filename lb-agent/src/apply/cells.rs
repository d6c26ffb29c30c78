//! Entries of the frontend tables: finding, writing and removing them, in the order the layout asks for.

use std::net::IpAddr;

use lb_common::address::{Ip4, Ip6};
use lb_common::layout::{Bucket4, Bucket6, Table};

use super::key::TableKey;
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::Few;

/// Entries in a bucket, the same for both families.
pub(super) const ENTRIES: usize = Bucket4::ENTRIES;
const _: () = assert!(Bucket4::ENTRIES == Bucket6::ENTRIES);

/// Place of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) table: Table,
    pub(super) bucket: u32,
    pub(super) entry: usize,
}

/// The entries of a bucket.
pub(super) fn cells_of(table: Table, bucket: u32) -> impl Iterator<Item = Cell> {
    (0..ENTRIES).map(move |entry| Cell { table, bucket, entry })
}

/// The two buckets of a key in this memory.
pub(super) fn buckets_of(memory: &impl TableMemory, key: &TableKey) -> (u32, u32) {
    key.buckets(memory.rows(key.table()).wrapping_sub(1))
}

/// The cells that hold a key, the one that look-ups find first. More than one only while an entry moves.
pub(super) fn find<'a>(
    memory: &'a impl TableMemory,
    key: &TableKey,
) -> impl Iterator<Item = (Cell, u32)> + 'a {
    let (first, second) = buckets_of(memory, key);
    let (table, key) = (key.table(), StoredKey::of(key));
    let second = (second != first).then_some(second);
    [Some(first), second]
        .into_iter()
        .flatten()
        .flat_map(move |bucket| cells_of(table, bucket))
        .filter_map(move |cell| Some((cell, cell.value_of(memory, &key)?)))
}

/// What the two buckets of a key hold of it, and how much room they have.
pub(super) struct Look {
    /// The cells that hold the key, the one that look-ups find first.
    pub(super) found: Few<(Cell, u32)>,
    /// The first empty cell of the emptier bucket.
    pub(super) room: Option<Cell>,
}

/// Looks at every cell of a key's buckets once. Cells that are `taken` have no room although nothing is in them.
pub(super) fn look(memory: &impl TableMemory, key: &TableKey, taken: impl Fn(&Cell) -> bool) -> Look {
    let (first, second) = buckets_of(memory, key);
    let (table, stored) = (key.table(), StoredKey::of(key));
    let mut found = Few::new();
    let mut search = |bucket| {
        let mut empty: (usize, Option<Cell>) = (0, None);
        for cell in cells_of(table, bucket) {
            if cell.is_empty(memory) {
                if !taken(&cell) {
                    empty = (empty.0 + 1, empty.1.or(Some(cell)));
                }
            } else if let Some(value) = cell.value_of(memory, &stored) {
                found.push((cell, value));
            }
        }
        empty
    };
    let one = search(first);
    let two = if second == first { one } else { search(second) };
    Look { found, room: if two.0 > one.0 { two.1 } else { one.1 } }
}

/// A key as cells hold it: compared without decoding what is in them.
#[derive(Clone, Copy, Debug)]
enum StoredKey {
    V4(u64),
    /// Address, and the half of the word beside the value.
    V6([u64; 2], u32),
}

impl StoredKey {
    fn of(key: &TableKey) -> Self {
        match key.address {
            IpAddr::V4(address) => Self::V4(key.v4(address).word()),
            IpAddr::V6(address) => {
                let key = key.v6(address);
                let words = [key.address.first(), key.address.last()];
                Self::V6(words, (Bucket6::publish(&key, 0) >> 32) as u32)
            }
        }
    }
}

impl Cell {
    /// The value in it, if it is the key's.
    fn value_of(&self, memory: &impl TableMemory, key: &StoredKey) -> Option<u32> {
        let word = |word| memory.load(self.table, self.bucket, word);
        match *key {
            StoredKey::V4(key) => {
                let (values, shift) = Bucket4::value_position(self.entry);
                (word(self.entry) == key).then(|| (word(values) >> shift) as u32)
            }
            StoredKey::V6(address, rest) => {
                let at = Bucket6::position(self.entry);
                let published = word(at + 2);
                let is = (published >> 32) as u32 == rest && [word(at), word(at + 1)] == address;
                is.then_some(published as u32)
            }
        }
    }

    /// The key and the value in it.
    pub(super) fn load(&self, memory: &impl TableMemory) -> Option<(TableKey, u32)> {
        let word = |word| memory.load(self.table, self.bucket, word);
        if self.table == Table::Frontends4 {
            let key = word(self.entry);
            let (values, shift) = Bucket4::value_position(self.entry);
            let address = Ip4::from_raw(key as u32);
            return (key != 0).then(|| {
                (TableKey::from_parts(address, (key >> 32) as u32), (word(values) >> shift) as u32)
            });
        }
        let at = Bucket6::position(self.entry);
        let published = word(at + 2);
        let address = || Ip6::from_raw(word(at), word(at + 1));
        (published != 0)
            .then(|| (TableKey::from_parts(address(), (published >> 32) as u32), published as u32))
    }

    /// True when nothing is in it.
    pub(super) fn is_empty(&self, memory: &impl TableMemory) -> bool {
        memory.load(self.table, self.bucket, self.key_word()) == 0
    }

    /// Fills an empty cell: value first, key last.
    pub(super) fn write(
        &self,
        memory: &impl TableMemory,
        key: &TableKey,
        value: u32,
    ) -> Result<(), StoreError> {
        let store = |word, content| memory.store(self.table, self.bucket, word, content);
        match key.address {
            IpAddr::V4(address) => {
                self.set_value4(memory, value)?;
                store(self.key_word(), key.v4(address).word())
            }
            IpAddr::V6(address) => {
                let at = Bucket6::position(self.entry);
                let key = key.v6(address);
                store(at, key.address.first())?;
                store(at + 1, key.address.last())?;
                store(at + 2, Bucket6::publish(&key, value))
            }
        }
    }

    /// Gives the entry in it another value, in one store.
    pub(super) fn set_value(
        &self,
        memory: &impl TableMemory,
        key: &TableKey,
        value: u32,
    ) -> Result<(), StoreError> {
        match key.address {
            IpAddr::V4(_) => self.set_value4(memory, value),
            IpAddr::V6(address) => {
                let word = Bucket6::publish(&key.v6(address), value);
                memory.store(self.table, self.bucket, self.key_word(), word)
            }
        }
    }

    /// Removes the entry.
    pub(super) fn clear(&self, memory: &impl TableMemory) -> Result<(), StoreError> {
        memory.store(self.table, self.bucket, self.key_word(), 0)
    }

    /// The word that is 0 when the cell is empty.
    fn key_word(&self) -> usize {
        if self.table == Table::Frontends4 { self.entry } else { Bucket6::position(self.entry) + 2 }
    }

    fn set_value4(&self, memory: &impl TableMemory, value: u32) -> Result<(), StoreError> {
        let (word, shift) = Bucket4::value_position(self.entry);
        let before = memory.load(self.table, self.bucket, word);
        let after = before & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
        if before == after { Ok(()) } else { memory.store(self.table, self.bucket, word, after) }
    }
}
