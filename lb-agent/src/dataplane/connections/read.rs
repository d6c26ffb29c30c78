//! Reading a connection table as a whole: in batches, or key by key where the kernel has no batches.

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::layout::ConnEntry;
use lb_common::tuple::Tuple;

use super::super::sys::{self, Cursor};

/// Entries read by one call.
const BATCH: usize = 4096;

/// Addresses whose table entries may be read from plain bytes.
///
/// # Safety
/// `Tuple<Self>` and `ConnEntry<Self>` consist of integers without padding, so that every pattern of bits is one.
pub(in super::super) unsafe trait Plain: Address {}

// SAFETY: an address is a `u32`, and the layout crate's tests fix the sizes of both structures.
unsafe impl Plain for Ip4 {}
// SAFETY: an address is two `u64`, and the layout crate's tests fix the sizes of both structures.
unsafe impl Plain for Ip6 {}

/// An entry with its key.
pub(super) type Entry<A> = (Tuple<A>, ConnEntry<A>);

/// One connection table.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTable<'m, A> {
    fd: BorrowedFd<'m>,
    max_entries: u32,
    family: PhantomData<A>,
}

/// Reads a table from its beginning to its end.
#[derive(Debug)]
pub(super) struct Reader<'m, A> {
    table: ConnectionTable<'m, A>,
    keys: Vec<u8>,
    values: Vec<u8>,
    capacity: usize,
    position: Position<A>,
}

#[derive(Debug)]
enum Position<A> {
    /// In batches, from this cursor on.
    Batch(Cursor),
    /// Key by key, after this one; with the number of keys still to look at, because a key that is deleted under
    /// the reader throws it back to the start.
    Key(Option<Tuple<A>>, u64),
    End,
}

const fn key_size<A>() -> usize {
    size_of::<Tuple<A>>()
}

const fn value_size<A>() -> usize {
    size_of::<ConnEntry<A>>()
}

/// The bytes of a key, as the kernel takes it.
pub(in super::super) fn bytes_of<A: Plain>(tuple: &Tuple<A>) -> &[u8] {
    // SAFETY: `Plain` says that there is no padding: all bytes are initialised.
    unsafe { std::slice::from_raw_parts(ptr::from_ref(tuple).cast(), key_size::<A>()) }
}

fn key_at<A: Plain>(bytes: &[u8], index: usize) -> Tuple<A> {
    let bytes = &bytes[index * key_size::<A>()..(index + 1) * key_size::<A>()];
    // SAFETY: the slice has the size of a key, and `Plain` says that every pattern of bits is one.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

pub(in super::super) fn value_at<A: Plain>(bytes: &[u8], index: usize) -> ConnEntry<A> {
    let bytes = &bytes[index * value_size::<A>()..(index + 1) * value_size::<A>()];
    // SAFETY: the slice has the size of a value, and `Plain` says that every pattern of bits is one.
    unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
}

impl<'m, A: Plain> ConnectionTable<'m, A> {
    pub(super) fn new(fd: BorrowedFd<'m>, max_entries: u32) -> Self {
        Self { fd, max_entries, family: PhantomData }
    }

    pub(super) fn reader(self) -> Reader<'m, A> {
        Reader {
            table: self,
            keys: vec![0; BATCH * key_size::<A>()],
            values: vec![0; BATCH * value_size::<A>()],
            capacity: BATCH,
            position: Position::Batch(Cursor::default()),
        }
    }

    /// The entry of a key.
    pub(super) fn get(&self, key: &Tuple<A>) -> io::Result<Option<ConnEntry<A>>> {
        let mut value = vec![0; value_size::<A>()];
        Ok(sys::lookup(self.fd, bytes_of(key), &mut value)?.then(|| value_at(&value, 0)))
    }

    /// Deletes entries; those that are gone already do not matter.
    pub(super) fn delete(&self, keys: &[Tuple<A>]) -> io::Result<()> {
        let mut bytes: Vec<u8> = Vec::with_capacity(keys.len() * key_size::<A>());
        for key in keys {
            bytes.extend_from_slice(bytes_of(key));
        }
        let mut at = 0;
        while at < keys.len() {
            let left = keys.len() - at;
            match sys::delete_batch(self.fd, &bytes[at * key_size::<A>()..], left) {
                // The kernel stops at a key that is not there: go on after it.
                Ok(done) => at += if done < left { done + 1 } else { left },
                Err(error) if no_batches(&error) => {
                    sys::delete(self.fd, bytes_of(&keys[at]))?;
                    at += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// True when the kernel (before 5.6) has no batches.
fn no_batches(error: &io::Error) -> bool {
    /// `ENOTSUPP`, a number of the kernel's own.
    const NOT_SUPPORTED: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED))
}

impl<A: Plain> Reader<'_, A> {
    /// The next entries into `entries`, which is emptied first; false when the table has no more.
    pub(super) fn next(&mut self, entries: &mut Vec<Entry<A>>) -> io::Result<bool> {
        entries.clear();
        match self.position {
            Position::End => Ok(false),
            Position::Batch(cursor) => self.next_batch(cursor, entries),
            Position::Key(key, left) => self.next_keys(key, left, entries),
        }
    }

    fn next_batch(&mut self, mut cursor: Cursor, entries: &mut Vec<Entry<A>>) -> io::Result<bool> {
        let read =
            sys::lookup_batch(self.table.fd, &mut cursor, &mut self.keys, &mut self.values, self.capacity);
        match read {
            Ok(read) => {
                entries
                    .extend((0..read.count).map(|at| (key_at(&self.keys, at), value_at(&self.values, at))));
                self.position = if read.end { Position::End } else { Position::Batch(cursor) };
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                // One hash bucket holds more than a batch.
                self.capacity *= 2;
                self.keys.resize(self.capacity * key_size::<A>(), 0);
                self.values.resize(self.capacity * value_size::<A>(), 0);
                Ok(true)
            }
            Err(error) if no_batches(&error) && cursor == Cursor::default() => {
                self.position = Position::Key(None, u64::from(self.table.max_entries) * 2);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn next_keys(
        &mut self,
        mut key: Option<Tuple<A>>,
        left: u64,
        entries: &mut Vec<Entry<A>>,
    ) -> io::Result<bool> {
        let count = left.min(BATCH as u64);
        for _ in 0..count {
            let next = &mut self.keys[..key_size::<A>()];
            if !sys::next_key(self.table.fd, key.as_ref().map(bytes_of), next)? {
                self.position = Position::End;
                return Ok(true);
            }
            let found = key_at(next, 0);
            key = Some(found);
            if let Some(entry) = self.table.get(&found)? {
                entries.push((found, entry));
            }
        }
        self.position = if left == count { Position::End } else { Position::Key(key, left - count) };
        Ok(true)
    }
}
