//! Table memory: the service side's tables as rows of 64-bit words, wherever they lie.
//!
//! Every change of a table is one 64-bit store through [`TableMemory::store`], so that tests can count stores,
//! let them fail, or stop an agent between any two of them. There is one writer; readers come and go.

mod faulty;
mod grace;
mod stopping;
mod vec;

use std::sync::Arc;

use lb_common::layout::{Control, Row, Table};
use lb_common::lookup::Tables;

pub use faulty::FaultyMemory;
pub use grace::{CountedGrace, Grace, Membarrier};
pub use stopping::StoppingMemory;
pub use vec::VecMemory;

/// A store that did not happen; the word is what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The table has no such row or word.
    #[error("{} has no row {row} word {word}", table.map_name())]
    OutOfRange {
        /// The table.
        table: Table,
        /// The row asked for.
        row: u32,
        /// The word asked for.
        word: usize,
    },
    /// The table was opened for reading only.
    #[error("{} is open for reading only", .0.map_name())]
    ReadOnly(Table),
    /// The memory refused the store (tests).
    #[error("the table memory refused a store")]
    Refused,
}

/// The tables of the service side, word by word.
///
/// Loads are acquire loads and stores release stores: whoever sees a store sees all stores before it.
pub trait TableMemory {
    /// Number of rows of a table.
    fn rows(&self, table: Table) -> u32;

    /// A word; 0 for a row or word that is not there.
    fn load(&self, table: Table, row: u32, word: usize) -> u64;

    /// Stores a word.
    ///
    /// # Errors
    /// When the word is not there or may not be written; then nothing changed.
    fn store(&self, table: Table, row: u32, word: usize, value: u64) -> Result<(), StoreError>;

    /// Adds to a word that the kernel programs add to as well, atomically.
    ///
    /// # Errors
    /// As for [`TableMemory::store`].
    fn add(&self, table: Table, row: u32, word: usize, n: u64) -> Result<(), StoreError>;
}

macro_rules! delegate {
    ($($holder:ty),*) => {$(
        impl<M: TableMemory + ?Sized> TableMemory for $holder {
            fn rows(&self, table: Table) -> u32 {
                (**self).rows(table)
            }

            fn load(&self, table: Table, row: u32, word: usize) -> u64 {
                (**self).load(table, row, word)
            }

            fn store(&self, table: Table, row: u32, word: usize, value: u64) -> Result<(), StoreError> {
                (**self).store(table, row, word, value)
            }

            fn add(&self, table: Table, row: u32, word: usize, n: u64) -> Result<(), StoreError> {
                (**self).add(table, row, word, n)
            }
        }
    )*};
}

delegate!(&M, Arc<M>);

/// Number of rows of each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Buckets of five frontends, each family; a power of two.
    pub frontend_buckets: u32,
    /// Service ports, each also in its family; row 0 included.
    pub services: u32,
    /// Words of two slots.
    pub slot_words: u32,
    /// Backends of each family; row 0 included.
    pub backends: u32,
}

impl Default for TableSizes {
    /// Room for some 65,000 Service ports and 250,000 endpoints of either family.
    fn default() -> Self {
        Self { frontend_buckets: 1 << 15, services: 1 << 16, slot_words: 1 << 19, backends: 1 << 18 }
    }
}

impl TableSizes {
    /// Rows of a table.
    pub const fn rows(&self, table: Table) -> u32 {
        match table {
            Table::Control => Control::WORDS,
            Table::Frontends4 | Table::Frontends6 => self.frontend_buckets,
            Table::Services | Table::Names | Table::Shares => self.services,
            Table::Slots => self.slot_words,
            Table::Backends4 | Table::Backends6 => self.backends,
            Table::ServiceRanges => Control::MAX_SERVICE_RANGES,
            Table::SourceRanges => self.services,
            Table::Generations => Control::GENERATIONS,
        }
    }
}

/// The look-ups of the kernel programs ([`lb_common::lookup`]) over table memory.
#[derive(Clone, Copy, Debug)]
pub struct HostTables<'a, M>(pub &'a M);

/// A row of [`HostTables`].
#[derive(Clone, Copy, Debug)]
pub struct HostRow<'a, M> {
    memory: &'a M,
    table: Table,
    row: u32,
}

impl<M: TableMemory> Row for HostRow<'_, M> {
    fn word(&self, index: usize) -> u64 {
        self.memory.load(self.table, self.row, index)
    }
}

impl<'a, M: TableMemory> HostTables<'a, M> {
    fn row(&self, table: Table, row: u32) -> Option<HostRow<'a, M>> {
        (row < self.0.rows(table)).then_some(HostRow { memory: self.0, table, row })
    }
}

impl<'a, M: TableMemory> Tables for HostTables<'a, M> {
    type Row = HostRow<'a, M>;

    fn frontend_mask4(&self) -> u32 {
        self.0.rows(Table::Frontends4).wrapping_sub(1)
    }

    fn frontend_mask6(&self) -> u32 {
        self.0.rows(Table::Frontends6).wrapping_sub(1)
    }

    fn control(&self, index: u32) -> Option<Self::Row> {
        self.row(Table::Control, index)
    }

    fn frontends4(&self, bucket: u32) -> Option<Self::Row> {
        self.row(Table::Frontends4, bucket)
    }

    fn frontends6(&self, bucket: u32) -> Option<Self::Row> {
        self.row(Table::Frontends6, bucket)
    }

    fn service(&self, index: u32) -> Option<Self::Row> {
        self.row(Table::Services, index)
    }

    fn slots(&self, word: u32) -> Option<Self::Row> {
        self.row(Table::Slots, word)
    }

    fn backends4(&self, index: u32) -> Option<Self::Row> {
        self.row(Table::Backends4, index)
    }

    fn backends6(&self, index: u32) -> Option<Self::Row> {
        self.row(Table::Backends6, index)
    }

    fn service_range(&self, index: u32) -> Option<Self::Row> {
        self.row(Table::ServiceRanges, index)
    }

    fn source_range(&self, index: u32) -> Option<Self::Row> {
        self.row(Table::SourceRanges, index)
    }
}
