//! Tables in kernel memory: `BPF_F_MMAPABLE` array maps, mapped into the agent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::layout::Table;

use super::memory::{StoreError, TableMemory};

/// What may be done with mapped tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only.
    Read,
    /// Loads and stores.
    Write,
}

/// Why a table could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel refused the mapping.
    #[error("mmap of {} ({bytes} bytes) failed: {source}", table.map_name())]
    Mmap {
        /// The table.
        table: Table,
        /// Length asked for.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// A table is missing from the maps given.
    #[error("no map given for {}", .0.map_name())]
    Missing(Table),
}

/// Every table of the service side in kernel memory.
#[derive(Debug)]
pub struct MappedMemory {
    tables: Vec<Mapping>,
    access: Access,
}

impl MappedMemory {
    /// Maps every table. `map_of` gives the map of a table: its descriptor and its number of entries. The
    /// descriptors may be closed afterwards.
    ///
    /// # Errors
    /// When a table has no map or the kernel refuses to map it.
    pub fn new<'fd>(
        access: Access,
        mut map_of: impl FnMut(Table) -> Option<(BorrowedFd<'fd>, u32)>,
    ) -> Result<Self, MapError> {
        let mut tables = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            let (fd, rows) = map_of(table).ok_or(MapError::Missing(table))?;
            tables.push(Mapping::new(table, fd, rows, access)?);
        }
        Ok(Self { tables, access })
    }

    fn word(&self, table: Table, row: u32, word: usize) -> Option<&AtomicU64> {
        let width = table.row_words();
        if word >= width {
            return None;
        }
        self.tables.get(table as usize)?.words().get(row as usize * width + word)
    }

    fn writable(&self, table: Table, row: u32, word: usize) -> Result<&AtomicU64, StoreError> {
        if self.access == Access::Read {
            return Err(StoreError::ReadOnly(table));
        }
        self.word(table, row, word).ok_or(StoreError::OutOfRange { table, row, word })
    }
}

impl TableMemory for MappedMemory {
    fn rows(&self, table: Table) -> u32 {
        self.tables.get(table as usize).map_or(0, |mapping| mapping.rows)
    }

    fn load(&self, table: Table, row: u32, word: usize) -> u64 {
        self.word(table, row, word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, table: Table, row: u32, word: usize, value: u64) -> Result<(), StoreError> {
        self.writable(table, row, word)?.store(value, Ordering::Release);
        Ok(())
    }

    fn add(&self, table: Table, row: u32, word: usize, n: u64) -> Result<(), StoreError> {
        self.writable(table, row, word)?.fetch_add(n, Ordering::AcqRel);
        Ok(())
    }
}

/// One mapped table. Elements of an array map lie one after the other, each rounded up to 8 bytes
/// (`array_map_alloc`, `kernel/bpf/arraymap.c`); ours are whole words anyway.
#[derive(Debug)]
struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
    bytes: usize,
    rows: u32,
}

// SAFETY: the mapping is shared memory, reached through atomics only, and owned by this value until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above: every access is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(table: Table, fd: BorrowedFd<'_>, rows: u32, access: Access) -> Result<Self, MapError> {
        let words = rows as usize * table.row_words();
        let bytes = (words * size_of::<u64>()).next_multiple_of(page_size());
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new shared mapping at an address of the kernel's choice; no memory of ours is touched.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(MapError::Mmap { table, bytes, source: io::Error::last_os_error() });
        }
        match NonNull::new(start.cast::<AtomicU64>()) {
            Some(start) => Ok(Self { start, words, bytes, rows }),
            None => Err(MapError::Mmap { table, bytes, source: io::ErrorKind::AddrNotAvailable.into() }),
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping covers `words` words, is page-aligned, lives as long as `self`, and whoever else
        // changes it does so by atomic 64-bit accesses.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping made in `new`, and no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf only reads a system constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::super::memory::TableSizes;
    use super::*;

    const SIZES: TableSizes = TableSizes { frontend_buckets: 8, services: 5, slot_words: 600, backends: 7 };

    /// Files stand in for maps: the kernel maps both alike.
    fn files() -> Vec<File> {
        let file = |table: &Table| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(u64::from(SIZES.rows(*table)) * table.row_words() as u64 * 8).unwrap();
            file
        };
        Table::ALL.iter().map(file).collect()
    }

    fn map(files: &[File], access: Access) -> MappedMemory {
        MappedMemory::new(access, |table| Some((files[table as usize].as_fd(), SIZES.rows(table)))).unwrap()
    }

    #[test]
    fn stores_are_seen_through_every_mapping_and_outlive_them() {
        let files = files();
        let (one, other) = (map(&files, Access::Write), map(&files, Access::Read));
        for table in Table::ALL {
            let last = SIZES.rows(table) - 1;
            one.store(table, last, table.row_words() - 1, 7).unwrap();
            one.add(table, last, table.row_words() - 1, 5).unwrap();
            assert_eq!(other.load(table, last, table.row_words() - 1), 12);
            assert_eq!(other.rows(table), SIZES.rows(table));
        }
        drop((one, other));
        assert_eq!(map(&files, Access::Read).load(Table::Slots, 599, 0), 12);
    }

    #[test]
    fn what_is_out_of_range_or_read_only_is_refused() {
        let files = files();
        let (writable, readable) = (map(&files, Access::Write), map(&files, Access::Read));
        let outside = StoreError::OutOfRange { table: Table::Services, row: 5, word: 0 };
        assert_eq!(writable.store(Table::Services, 5, 0, 1), Err(outside));
        assert_eq!(writable.load(Table::Services, 0, 2), 0);
        assert_eq!(readable.store(Table::Services, 1, 0, 1), Err(StoreError::ReadOnly(Table::Services)));
        assert_eq!(readable.add(Table::Control, 1, 0, 1), Err(StoreError::ReadOnly(Table::Control)));
    }

    #[test]
    fn a_missing_map_is_named() {
        let error = MappedMemory::new(Access::Read, |_| None).unwrap_err();
        assert_eq!(error.to_string(), "no map given for CONTROL");
    }
}
