//! Counters of the programs: per-CPU rows, summed up.

use std::os::fd::BorrowedFd;

use aya::util::nr_cpus;
use lb_common::handshake::Histogram;
use lb_common::layout::{BackendStat, EventRate, ServiceStat, Table, WireStat};
use lb_common::reason::Reason;

use super::error::{Error, Result};
use super::maps::Maps;
use super::shape::Map;
use super::sys;

/// Counters of one Service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters(pub [u64; ServiceStat::WORDS]);

impl ServiceCounters {
    /// One counter.
    pub fn get(&self, stat: ServiceStat) -> u64 {
        self.0[stat as usize]
    }
}

/// Counters of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounters(pub [u64; BackendStat::WORDS]);

impl BackendCounters {
    /// One counter.
    pub fn get(&self, stat: BackendStat) -> u64 {
        self.0[stat as usize]
    }
}

/// Access to all counters.
#[derive(Clone, Copy, Debug)]
pub struct Counters<'m> {
    maps: &'m Maps,
    cpus: usize,
}

impl<'m> Counters<'m> {
    /// The counters among `maps`.
    ///
    /// # Errors
    /// [`Error::Path`] when the number of CPUs cannot be read.
    pub fn new(maps: &'m Maps) -> Result<Self> {
        let cpus = nr_cpus().map_err(|(path, source)| Error::path("read", path.as_ref(), source))?;
        Ok(Self { maps, cpus })
    }

    /// Counters of the Service port at an index.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn service(&self, index: u32) -> Result<ServiceCounters> {
        self.sum(self.maps.fd(Map::ServiceStats), index).map(ServiceCounters)
    }

    /// Counters of the backend at an index of its family.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn backend(&self, v6: bool, index: u32) -> Result<BackendCounters> {
        let map = if v6 { Map::BackendStats6 } else { Map::BackendStats4 };
        self.sum(self.maps.fd(map), index).map(BackendCounters)
    }

    /// Entries of the connection tables that the Service port at an index has: as the agent counted them last, and the
    /// programs go on.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn entries(&self, index: u32) -> Result<u64> {
        let mut bytes = [0; 16];
        sys::lookup(self.maps.fd(Map::Table(Table::Shares)), &index.to_ne_bytes(), &mut bytes)
            .map_err(|source| Error::bpf("reading shares of the connection tables", source))?;
        let (words, _) = bytes.as_chunks::<8>();
        // Between two counts a word may be a little below zero.
        Ok(words.iter().map(|word| i64::from_ne_bytes(*word).max(0) as u64).sum())
    }

    /// Sets the counters of a Service port to 0.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be written.
    pub fn reset_service(&self, index: u32) -> Result<()> {
        self.reset::<{ ServiceStat::WORDS }>(self.maps.fd(Map::ServiceStats), index)
    }

    /// Sets the counters of a backend to 0.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be written.
    pub fn reset_backend(&self, v6: bool, index: u32) -> Result<()> {
        let map = if v6 { Map::BackendStats6 } else { Map::BackendStats4 };
        self.reset::<{ BackendStat::WORDS }>(self.maps.fd(map), index)
    }

    /// Packets dropped or refused, by reason, in the order of [`Reason::ALL`].
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        let map = self.maps.fd(Map::Reasons);
        let count = |reason: Reason| Ok((reason, self.sum::<1>(map, reason as u32)?[0]));
        Reason::ALL.into_iter().map(count).collect()
    }

    /// Packets that the XDP program sent on, by where to.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn wire(&self) -> Result<Vec<(WireStat, u64)>> {
        let map = self.maps.fd(Map::WireStats);
        let count = |stat: WireStat| Ok((stat, self.sum::<1>(map, stat as u32)?[0]));
        WireStat::ALL.into_iter().map(count).collect()
    }

    /// Handshakes by duration: a row of a [`Histogram`].
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn handshakes(&self) -> Result<[u64; Histogram::WORDS]> {
        self.sum(self.maps.fd(Map::Handshakes), 0)
    }

    /// Events that nobody was told of since the tables were made, because there were too many.
    ///
    /// # Errors
    /// [`Error::Bpf`] when they cannot be read.
    pub fn events_lost(&self) -> Result<u64> {
        Ok(self.sum::<{ EventRate::WORDS }>(self.maps.fd(Map::EventRates), 0)?[EventRate::LOST])
    }

    fn reset<const WORDS: usize>(&self, map: BorrowedFd<'_>, index: u32) -> Result<()> {
        sys::update(map, &index.to_ne_bytes(), &vec![0; self.cpus * WORDS * 8])
            .map_err(|source| Error::bpf("resetting counters", source))
    }

    fn sum<const WORDS: usize>(&self, map: BorrowedFd<'_>, index: u32) -> Result<[u64; WORDS]> {
        let mut bytes = vec![0; self.cpus * WORDS * 8];
        sys::lookup(map, &index.to_ne_bytes(), &mut bytes)
            .map_err(|source| Error::bpf("reading counters", source))?;
        Ok(add_up(&bytes))
    }
}

/// Sums the rows of all CPUs, which lie one behind the other.
fn add_up<const WORDS: usize>(bytes: &[u8]) -> [u64; WORDS] {
    let mut sums = [0u64; WORDS];
    let (words, _) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let sum = &mut sums[at % WORDS];
        *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_all_cpus_are_added_word_by_word() {
        let bytes: Vec<u8> = [1u64, 2, 3, 10, 20, 30].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(add_up::<3>(&bytes), [11, 22, 33]);
    }
}
