//! Row numbers of a table: longest free first, so that a flow that still names a row finds it empty, not taken.

use std::collections::VecDeque;

/// Allocates rows from 1 on; row 0 is never used.
#[derive(Debug)]
pub(super) struct RowAllocator {
    rows: u32,
    /// The next row not handed out yet.
    fresh: u32,
    /// Rows below were in use before, or may have been.
    touched: u32,
    free: VecDeque<u32>,
    retired: Vec<u32>,
}

impl RowAllocator {
    /// An allocator for a table that nobody ever used.
    pub(super) const fn new(rows: u32) -> Self {
        Self { rows, fresh: 1, touched: 1, free: VecDeque::new(), retired: Vec::new() }
    }

    /// An allocator in which the rows that `used` says are taken. Every other row may have been in use before.
    pub(super) fn with_used(rows: u32, used: impl Fn(u32) -> bool) -> Self {
        let fresh = (1..rows).rev().find(|row| used(*row)).map_or(1, |last| last + 1);
        let free = (1..fresh).filter(|row| !used(*row)).collect();
        Self { fresh, touched: rows, free, ..Self::new(rows) }
    }

    /// The row longest free; true when it was in use before.
    pub(super) fn allocate(&mut self) -> Option<(u32, bool)> {
        if self.fresh < self.rows {
            self.fresh += 1;
            return Some((self.fresh - 1, self.fresh <= self.touched));
        }
        self.free.pop_front().map(|row| (row, true))
    }

    /// Returns a row that no program ever saw.
    pub(super) fn give_back(&mut self, row: u32) {
        if row + 1 == self.fresh {
            self.fresh = row;
        } else {
            self.free.push_front(row);
        }
    }

    /// Returns a row that programs may still read.
    pub(super) fn retire(&mut self, row: u32) {
        self.retired.push(row);
    }

    pub(super) fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// What was retired is free now.
    pub(super) fn settle(&mut self) {
        self.free.extend(self.retired.drain(..));
    }

    pub(super) fn used(&self) -> u32 {
        self.fresh - 1 - (self.free.len() + self.retired.len()) as u32
    }
}
