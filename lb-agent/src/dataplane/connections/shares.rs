//! Whose the entries of the connection tables are: the truth that the programs' own counts are put right by.

use std::collections::BTreeMap;

use lb_common::layout::{Control, Table};

use super::super::memory::{StoreError, TableMemory};

/// Entries by index of the Service port, IPv4 and IPv6.
pub type Entries = BTreeMap<u32, [u64; 2]>;

/// Row of the totals.
const TOTAL: u32 = 0;

/// The programs' counts as they were before the tables were read.
#[derive(Clone, Debug)]
pub struct Shares {
    before: Vec<[u64; 2]>,
}

impl Shares {
    /// Remembers the counts. To be called before the tables are read.
    pub fn begin(memory: &impl TableMemory) -> Self {
        let row = |row| [0, 1].map(|family| memory.load(Table::Shares, row, family));
        Self { before: (0..memory.rows(Table::Shares)).map(row).collect() }
    }

    /// Puts the counts right: to what was found at second `now` of the monotonic clock, and what the programs have added since
    /// then.
    ///
    /// # Errors
    /// When the memory refuses a store.
    pub fn settle(&self, memory: &impl TableMemory, found: &Entries, now: u32) -> Result<(), StoreError> {
        let mut total = [0; 2];
        let mut sharers = [0_u64; 2];
        for (service, entries) in found {
            for family in [0, 1] {
                total[family] += entries[family];
                sharers[family] += u64::from(entries[family] != 0 && *service != TOTAL);
            }
        }
        for (row, before) in (0..).zip(&self.before) {
            let entries = if row == TOTAL { total } else { found.get(&row).copied().unwrap_or_default() };
            for family in [0, 1] {
                if entries[family] != before[family] {
                    memory.add(Table::Shares, row, family, entries[family].wrapping_sub(before[family]))?;
                }
            }
        }
        let [four, six] = sharers.map(|count| count.min(u32::MAX.into()));
        memory.store(Table::Control, Control::Sharers as u32, 0, six << 32 | four)?;
        memory.store(Table::Control, Control::Counted as u32, 0, now.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::{TableSizes, VecMemory};
    use super::*;

    fn memory() -> VecMemory {
        VecMemory::new(TableSizes { frontend_buckets: 8, services: 5, slot_words: 8, backends: 8 })
    }

    fn counts(memory: &VecMemory, row: u32) -> [u64; 2] {
        [0, 1].map(|family| memory.load(Table::Shares, row, family))
    }

    #[test]
    fn counts_become_what_was_found_and_keep_what_came_meanwhile() {
        let memory = memory();
        for (row, family, entries) in [(0, 0, 900), (1, 0, 400), (2, 0, 500), (3, 1, 7), (0, 1, 7)] {
            memory.add(Table::Shares, row, family, entries).unwrap();
        }
        let shares = Shares::begin(&memory);
        for row in [0, 2] {
            memory.add(Table::Shares, row, 0, 30).unwrap();
        }
        let found = Entries::from([(1, [410, 0]), (2, [90, 2])]);
        shares.settle(&memory, &found, 77).unwrap();
        assert_eq!(counts(&memory, 0), [530, 2]);
        assert_eq!(counts(&memory, 1), [410, 0]);
        assert_eq!(counts(&memory, 2), [120, 2]);
        assert_eq!(counts(&memory, 3), [0, 0], "all of it was evicted");
        assert_eq!(memory.load(Table::Control, Control::Counted as u32, 0), 77);
        assert_eq!(memory.load(Table::Control, Control::Sharers as u32, 0), 1 << 32 | 2);
    }

    #[test]
    fn entries_of_services_that_the_tables_have_no_row_for_count_as_everybodys() {
        let memory = memory();
        Shares::begin(&memory).settle(&memory, &Entries::from([(9, [4, 0]), (0, [1, 0])]), 1).unwrap();
        assert_eq!(counts(&memory, 0), [5, 0]);
    }

    #[test]
    fn a_count_that_ran_below_zero_is_put_right() {
        let memory = memory();
        memory.add(Table::Shares, 1, 0, 2_u64.wrapping_neg()).unwrap();
        Shares::begin(&memory).settle(&memory, &Entries::from([(1, [6, 0])]), 1).unwrap();
        assert_eq!(counts(&memory, 1), [6, 0]);
    }
}
