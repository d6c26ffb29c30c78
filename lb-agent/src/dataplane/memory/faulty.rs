//! Table memory in which some stores fail.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::hash;
use lb_common::layout::Table;

use super::{StoreError, TableMemory};

/// Refuses one store in `one_in`, chosen by a seed: shows that whoever stores can start again anywhere.
#[derive(Debug)]
pub struct FaultyMemory<M> {
    inner: M,
    seed: u64,
    one_in: u64,
    stores: AtomicU64,
}

impl<M> FaultyMemory<M> {
    /// Over `inner`; `one_in` = 0 refuses nothing, 1 everything.
    pub const fn new(inner: M, seed: u64, one_in: u64) -> Self {
        Self { inner, seed, one_in, stores: AtomicU64::new(0) }
    }

    fn admit(&self) -> Result<(), StoreError> {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        if self.one_in != 0 && hash::mix2(self.seed, number).is_multiple_of(self.one_in) {
            return Err(StoreError::Refused);
        }
        Ok(())
    }
}

impl<M: TableMemory> TableMemory for FaultyMemory<M> {
    fn rows(&self, table: Table) -> u32 {
        self.inner.rows(table)
    }

    fn load(&self, table: Table, row: u32, word: usize) -> u64 {
        self.inner.load(table, row, word)
    }

    fn store(&self, table: Table, row: u32, word: usize, value: u64) -> Result<(), StoreError> {
        self.admit()?;
        self.inner.store(table, row, word, value)
    }

    fn add(&self, table: Table, row: u32, word: usize, n: u64) -> Result<(), StoreError> {
        self.admit()?;
        self.inner.add(table, row, word, n)
    }
}
