//! Tables on the heap, for dry runs and tests.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::layout::Table;

use super::{StoreError, TableMemory, TableSizes};

/// Tables on the heap, all words 0 at first. Words are atomic, so that other threads may read meanwhile.
#[derive(Debug)]
pub struct VecMemory {
    tables: Vec<Vec<AtomicU64>>,
}

impl VecMemory {
    /// Tables of these sizes.
    pub fn new(sizes: TableSizes) -> Self {
        let words = |table: Table| sizes.rows(table) as usize * table.row_words();
        let tables = Table::ALL.iter().map(|table| (0..words(*table)).map(|_| AtomicU64::new(0)).collect());
        Self { tables: tables.collect() }
    }

    fn word(&self, table: Table, row: u32, word: usize) -> Option<&AtomicU64> {
        let width = table.row_words();
        if word >= width {
            return None;
        }
        self.tables.get(table as usize)?.get(row as usize * width + word)
    }
}

impl TableMemory for VecMemory {
    fn rows(&self, table: Table) -> u32 {
        self.tables.get(table as usize).map_or(0, |words| (words.len() / table.row_words()) as u32)
    }

    fn load(&self, table: Table, row: u32, word: usize) -> u64 {
        self.word(table, row, word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, table: Table, row: u32, word: usize, value: u64) -> Result<(), StoreError> {
        let place = self.word(table, row, word).ok_or(StoreError::OutOfRange { table, row, word })?;
        place.store(value, Ordering::Release);
        Ok(())
    }

    fn add(&self, table: Table, row: u32, word: usize, n: u64) -> Result<(), StoreError> {
        let place = self.word(table, row, word).ok_or(StoreError::OutOfRange { table, row, word })?;
        place.fetch_add(n, Ordering::AcqRel);
        Ok(())
    }
}
