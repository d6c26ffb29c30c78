//! Records of the programs for somebody who watches: asking for them, and reading them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use aya::maps::{Map as AyaMap, MapData, RingBuf};
use lb_common::layout::{Control, Event, Table, Watch};

use super::error::{Error, Result};
use super::maps::Maps;
use super::pins::Pins;
use super::shape::Map;
use super::sys;

/// Reads the ring buffer. There must be one reader only: who reads takes.
pub struct Events<'m> {
    maps: &'m Maps,
    ring: RingBuf<MapData>,
}

impl<'m> Events<'m> {
    /// Services that can be watched at once, when not all are.
    pub const SERVICES: u32 = 4096;

    /// Opens the pinned ring buffer and leaves out what lies in it.
    ///
    /// # Errors
    /// [`Error::Path`] or [`Error::Bpf`] when the kernel refuses.
    pub fn open(pins: &Pins, maps: &'m Maps) -> Result<Self> {
        let refused = |error| Error::bpf("opening the ring buffer of events", io::Error::other(error));
        let path = pins.map(Map::Events.name());
        let pin: OwnedFd = sys::open_pin(&path).map_err(|source| Error::path("open", &path, source))?;
        let data = MapData::from_fd(pin).map_err(refused)?;
        let mut ring = RingBuf::try_from(AyaMap::RingBuf(data)).map_err(refused)?;
        while ring.next().is_some() {}
        Ok(Self { maps, ring })
    }

    /// Asks for records until the second that `watch` names. What is not asked for again ends by itself.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel refuses.
    pub fn ask(&self, watch: Watch) -> Result<()> {
        let key = (Control::Watch as u32).to_ne_bytes();
        sys::update(self.maps.fd(Map::Table(Table::Control)), &key, &watch.encode().to_ne_bytes())
            .map_err(|source| Error::bpf("asking for events", source))
    }

    /// Says which Service ports are watched, by their rows.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel refuses, or there are more than [`Self::SERVICES`].
    pub fn choose(&self, services: &BTreeSet<u32>) -> Result<()> {
        let refused = |source| Error::bpf("naming the Services to be watched", source);
        let map = self.maps.fd(Map::Watched);
        let mut key = [0; 4];
        let mut last = None;
        let mut stale = Vec::new();
        while sys::next_key(map, last.as_ref().map(<[u8; 4]>::as_slice), &mut key).map_err(refused)? {
            if !services.contains(&u32::from_ne_bytes(key)) {
                stale.push(key);
            }
            last = Some(key);
        }
        for key in stale {
            sys::delete(map, &key).map_err(refused)?;
        }
        for service in services {
            sys::update(map, &service.to_ne_bytes(), &1_u32.to_ne_bytes()).map_err(refused)?;
        }
        Ok(())
    }

    /// The next record that lies ready.
    pub fn take(&mut self) -> Option<Event> {
        loop {
            // A record of another length would be another version's; their layouts are told apart before.
            if let Some(event) = Event::decode(&self.ring.next()?) {
                return Some(event);
            }
        }
    }

    /// Waits until there is one, or the time is over.
    ///
    /// # Errors
    /// The kernel's, other than having been interrupted.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        let mut poll = libc::pollfd { fd: self.ring.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(most.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one entry, which outlives the call.
        if unsafe { libc::poll(&mut poll, 1, millis) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        Ok(())
    }

    /// Monotonic nanoseconds now, as the records count them (`CLOCK_MONOTONIC`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn now() -> io::Result<u64> {
        sys::monotonic_nanos()
    }
}
