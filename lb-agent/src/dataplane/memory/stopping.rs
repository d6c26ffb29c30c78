//! Table memory whose writer dies after a number of stores.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::layout::Table;

use super::{StoreError, TableMemory};

/// Counts stores, and lets only the first `limit` through: what stays is what a killed agent leaves behind.
#[derive(Debug)]
pub struct StoppingMemory<M> {
    inner: M,
    limit: AtomicU64,
    stores: AtomicU64,
}

impl<M> StoppingMemory<M> {
    /// Over `inner`; `u64::MAX` only counts.
    pub const fn new(inner: M, limit: u64) -> Self {
        Self { inner, limit: AtomicU64::new(limit), stores: AtomicU64::new(0) }
    }

    /// Stores tried so far.
    pub fn stores(&self) -> u64 {
        self.stores.load(Ordering::Relaxed)
    }

    /// Lets `more` stores through from now on, and none after them.
    pub fn stop_after(&self, more: u64) {
        self.limit.store(self.stores().saturating_add(more), Ordering::Relaxed);
    }

    /// The memory as it is now.
    pub fn into_inner(self) -> M {
        self.inner
    }

    fn admit(&self) -> Result<(), StoreError> {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        if number < self.limit.load(Ordering::Relaxed) { Ok(()) } else { Err(StoreError::Refused) }
    }
}

impl<M: TableMemory> TableMemory for StoppingMemory<M> {
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
