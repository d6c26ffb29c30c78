//! Room in the tables: rows, slots and frontend cells, and the grace period before anything is used again.

use std::collections::HashSet;

use lb_common::layout::Table;

use super::backend::backend_table;
use super::cells::{self, Cell, Look, buckets_of, cells_of};
use super::error::ApplyError;
use super::key::TableKey;
use super::rows::RowAllocator;
use super::slots::SlotAllocator;
use crate::dataplane::memory::{Grace, StoreError, TableMemory};
use crate::model::{Family, KeyedSet};

/// Entries that a relocation may look at before the table counts as full.
const SEARCH: usize = 250;

/// What look-ups of a frontend meet that they did not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrontendChange {
    /// An entry, or none.
    Entry,
    /// Another value.
    Value,
}

/// The table memory with everything that decides where things go in it.
pub(super) struct Writer<M> {
    pub(super) memory: M,
    pub(super) services: RowAllocator,
    pub(super) backends4: RowAllocator,
    pub(super) backends6: RowAllocator,
    pub(super) slots: SlotAllocator,
    /// Rows of [`Table::SourceRanges`].
    pub(super) sources: SlotAllocator,
    /// Emptied cells that programs may still read.
    pub(super) retired_cells: KeyedSet<Cell>,
    /// Frontend entries in use: IPv4, IPv6.
    pub(super) entries: [u32; 2],
    pub(super) grace: Box<dyn Grace + Send>,
}

impl<M: TableMemory> Writer<M> {
    /// The backend rows of a family.
    pub(super) fn backends(&mut self, family: Family) -> &mut RowAllocator {
        match family {
            Family::V4 => &mut self.backends4,
            Family::V6 => &mut self.backends6,
        }
    }

    /// A free service row; true when it was in use before.
    pub(super) fn allocate_service(&mut self) -> Result<(u32, bool), ApplyError> {
        self.reclaiming(|writer| writer.services.allocate())
            .ok_or_else(|| self.full(Table::Services, self.services.used()))
    }

    /// A free backend row; true when it was in use before.
    pub(super) fn allocate_backend(&mut self, family: Family) -> Result<(u32, bool), ApplyError> {
        self.reclaiming(|writer| writer.backends(family).allocate()).ok_or_else(|| {
            let used = self.backends(family).used();
            self.full(backend_table(family), used)
        })
    }

    /// A free run of slot words.
    pub(super) fn allocate_slots(&mut self, words: u32) -> Result<u32, ApplyError> {
        self.reclaiming(|writer| writer.slots.allocate(words))
            .ok_or_else(|| self.full(Table::Slots, self.slots.used()))
    }

    /// A free run of slot words for a Maglev table. A quarter of all words stays for lists that need less: that one Service
    /// would like a large table is to hold up no other's change.
    pub(super) fn allocate_maglev(&mut self, words: u32) -> Result<u32, ApplyError> {
        let most = self.memory.rows(Table::Slots) / 4 * 3;
        if self.slots.used().saturating_add(words) > most {
            return Err(self.full(Table::Slots, self.slots.used()));
        }
        self.allocate_slots(words)
    }

    /// A free run of source ranges.
    pub(super) fn allocate_sources(&mut self, rows: u32) -> Result<u32, ApplyError> {
        self.reclaiming(|writer| writer.sources.allocate(rows))
            .ok_or_else(|| self.full(Table::SourceRanges, self.sources.used()))
    }

    /// Makes look-ups of a key give `value`, or nothing; `None` when they do.
    pub(super) fn set_frontend(
        &mut self,
        key: &TableKey,
        value: Option<u32>,
    ) -> Result<Option<FrontendChange>, ApplyError> {
        let Look { mut found, room } = self.look(key);
        let Some(value) = value else {
            for (cell, _) in &found {
                self.clear_cell(*cell)?;
            }
            return Ok((!found.is_empty()).then_some(FrontendChange::Entry));
        };
        if found.is_empty() {
            let cell = match room {
                Some(cell) => cell,
                None => self.make_cell(key)?,
            };
            cell.write(&self.memory, key, value)?;
            self.entries[family_slot(key.family())] += 1;
            return Ok(Some(FrontendChange::Entry));
        }
        // More than one is what an interrupted move left behind; those that look-ups do not see go first.
        for (cell, _) in found.drain(1..) {
            self.clear_cell(cell)?;
        }
        let (cell, now) = found[0];
        if now == value {
            return Ok(None);
        }
        cell.set_value(&self.memory, key, value)?;
        Ok(Some(FrontendChange::Value))
    }

    fn clear_cell(&mut self, cell: Cell) -> Result<(), StoreError> {
        cell.clear(&self.memory)?;
        self.retired_cells.insert(cell);
        self.entries[usize::from(cell.table == Table::Frontends6)] -= 1;
        Ok(())
    }

    /// A cell for a key whose buckets have none: after a grace period; else made by moving other entries to their other
    /// bucket.
    fn make_cell(&mut self, key: &TableKey) -> Result<Cell, ApplyError> {
        if let Some(cell) = self.reclaiming(|writer| writer.look(key).room) {
            return Ok(cell);
        }
        if let Some(path) = self.path_to_room(key) {
            return self.make_room(path).map_err(ApplyError::from);
        }
        Err(self.full(key.table(), self.entries[family_slot(key.family())]))
    }

    fn look(&self, key: &TableKey) -> Look {
        cells::look(&self.memory, key, |cell| self.retired_cells.contains(cell))
    }

    fn empty_cells(&self, table: Table, bucket: u32) -> impl Iterator<Item = Cell> {
        cells_of(table, bucket)
            .filter(|cell| cell.is_empty(&self.memory) && !self.retired_cells.contains(cell))
    }

    /// Searches, breadth first, entries to move so that a cell in one of the key's buckets gets empty: the cells
    /// from the last to move to the first, preceded by the empty one.
    fn path_to_room(&self, key: &TableKey) -> Option<Vec<Cell>> {
        let (first, second) = buckets_of(&self.memory, key);
        let mut seen = HashSet::from([first, second]);
        let mut queue: Vec<(Cell, Option<usize>)> =
            seen.iter().flat_map(|bucket| cells_of(key.table(), *bucket)).map(|cell| (cell, None)).collect();
        queue.sort_unstable();
        let mut at = 0;
        while at < queue.len() && at < SEARCH {
            let (cell, _) = queue[at];
            let other = cell.load(&self.memory).map(|(held, _)| {
                let (one, two) = buckets_of(&self.memory, &held);
                if one == cell.bucket { two } else { one }
            });
            if let Some(other) = other {
                if let Some(empty) = self.empty_cells(cell.table, other).next() {
                    let mut path = vec![empty];
                    let mut step = Some(at);
                    while let Some(index) = step {
                        path.push(queue[index].0);
                        step = queue[index].1;
                    }
                    return Some(path);
                }
                if seen.insert(other) {
                    queue.extend(cells_of(cell.table, other).map(|cell| (cell, Some(at))));
                }
            }
            at += 1;
        }
        None
    }

    /// Moves entries along a path and returns its last cell, empty. A moving entry is in both buckets for a grace
    /// period, so that a program which has searched one of them already finds it in the other.
    fn make_room(&mut self, path: Vec<Cell>) -> Result<Cell, StoreError> {
        let mut cells = path.into_iter();
        let Some(mut empty) = cells.next() else { return Err(StoreError::Refused) };
        for cell in cells {
            if let Some((key, value)) = cell.load(&self.memory) {
                // It may be in both already, when a move was interrupted.
                if cells::find(&self.memory, &key).count() == 1 {
                    empty.write(&self.memory, &key, value)?;
                    self.entries[family_slot(key.family())] += 1;
                }
                self.grace.wait();
                self.clear_cell(cell)?;
                self.settle();
            }
            empty = cell;
        }
        Ok(empty)
    }

    /// What `take` finds, if need be after a grace period.
    fn reclaiming<T>(&mut self, take: impl Fn(&mut Self) -> Option<T>) -> Option<T> {
        if let Some(found) = take(self) {
            return Some(found);
        }
        if !self.has_retired() {
            return None;
        }
        self.settle();
        take(self)
    }

    fn has_retired(&self) -> bool {
        self.services.has_retired()
            || self.backends4.has_retired()
            || self.backends6.has_retired()
            || self.slots.has_retired()
            || self.sources.has_retired()
            || !self.retired_cells.is_empty()
    }

    /// Waits a grace period; everything retired before is free afterwards.
    pub(super) fn settle(&mut self) {
        self.grace.wait();
        self.services.settle();
        self.backends4.settle();
        self.backends6.settle();
        self.slots.settle();
        self.sources.settle();
        self.retired_cells.clear();
    }

    fn full(&self, table: Table, used: u32) -> ApplyError {
        let entries = match table {
            Table::Frontends4 | Table::Frontends6 => cells::ENTRIES as u32,
            _ => 1,
        };
        ApplyError::TableFull { table, used, rows: self.memory.rows(table).saturating_mul(entries) }
    }
}

const fn family_slot(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}
