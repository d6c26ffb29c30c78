//! The pinned maps of a running or dead agent, opened.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lb_common::layout::{Control, LAYOUT_VERSION, Table};

use super::error::{Error, Result};
use super::mapped::{Access, MapError, MappedMemory};
use super::pins::Pins;
use super::shape::Map;
use super::sys::{self, MapInfo};

/// All pinned maps, checked to be of this agent's layout.
#[derive(Debug)]
pub struct Maps {
    maps: BTreeMap<Map, (OwnedFd, MapInfo)>,
}

/// What lies below a bpf root.
#[derive(Debug)]
pub enum Found {
    /// No maps at all.
    Nothing,
    /// Maps that this agent can go on with.
    Compatible(Maps),
    /// Maps of another layout, or only some of ours; why.
    Incompatible(String),
}

impl Maps {
    /// Looks at the pins without touching anything.
    ///
    /// # Errors
    /// [`Error::Path`] or [`Error::Bpf`] when looking fails.
    pub fn find(pins: &Pins) -> Result<Found> {
        if Pins::list(&pins.maps())?.is_empty() {
            return Ok(Found::Nothing);
        }
        let mut maps = BTreeMap::new();
        for map in Map::all() {
            let path = pins.map(map.name());
            let fd = match sys::open_pin(&path) {
                Ok(fd) => fd,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Found::Incompatible(format!("map {} is missing", map.name())));
                }
                Err(source) => return Err(Error::path("open", &path, source)),
            };
            let info = sys::map_info(fd.as_fd())
                .map_err(|source| Error::bpf(format!("asking for the shape of {}", map.name()), source))?;
            if let Some(difference) = map.difference(&info) {
                return Ok(Found::Incompatible(difference));
            }
            maps.insert(map, (fd, info));
        }
        let maps = Self { maps };
        if let Some(difference) = maps.related_difference() {
            return Ok(Found::Incompatible(difference));
        }
        match maps.layout_version()? {
            // 0: made, but its agent died before it wrote anything.
            0 | LAYOUT_VERSION => Ok(Found::Compatible(maps)),
            other => {
                Ok(Found::Incompatible(format!("their layout is version {other}, not {LAYOUT_VERSION}")))
            }
        }
    }

    /// Opens the pinned maps.
    ///
    /// # Errors
    /// [`Error::NoTables`] or [`Error::Incompatible`] when there is nothing this agent can read.
    pub fn open(pins: &Pins) -> Result<Self> {
        match Self::find(pins)? {
            Found::Compatible(maps) => Ok(maps),
            Found::Nothing => Err(Error::NoTables(pins.root().to_owned())),
            Found::Incompatible(reason) => Err(Error::Incompatible { root: pins.root().to_owned(), reason }),
        }
    }

    /// Pins again what is not pinned any more, so that the next agent finds it. Returns the names of these maps.
    ///
    /// # Errors
    /// The first [`Error::Path`]; the other maps are seen to all the same.
    pub fn keep_pinned(&self, pins: &Pins) -> Result<Vec<&'static str>> {
        // One look at the directory instead of one at each pin: this is done twice a second, for ever.
        let there = Pins::list(&pins.maps())?;
        let is_missing = |map: &Map| there.iter().all(|name| name != map.name());
        let missing: Vec<Map> = self.maps.keys().copied().filter(is_missing).collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        pins.create()?;
        let (mut pinned, mut failed) = (Vec::new(), None);
        for map in missing {
            let path = pins.map(map.name());
            match sys::pin(self.fd(map), &path) {
                Ok(()) => pinned.push(map.name()),
                Err(source) => failed = Some(Error::path("pin the map", &path, source)),
            }
        }
        failed.map_or(Ok(pinned), Err)
    }

    /// Maps that are indexed alike have to be equally long.
    fn related_difference(&self) -> Option<String> {
        let related = [
            (Map::Table(Table::Services), Map::Table(Table::Names)),
            (Map::Table(Table::Services), Map::Table(Table::Shares)),
            (Map::Table(Table::Services), Map::ServiceStats),
            (Map::Table(Table::Backends4), Map::BackendStats4),
            (Map::Table(Table::Backends6), Map::BackendStats6),
        ];
        related.into_iter().find_map(|(one, other)| {
            let (a, b) = (self.max_entries(one), self.max_entries(other));
            (a != b).then(|| format!("map {} has {a} elements, but {} has {b}", one.name(), other.name()))
        })
    }

    /// [`LAYOUT_VERSION`] of the agent that made them, 0 when nothing was written yet.
    fn layout_version(&self) -> Result<u64> {
        let mut word = [0; 8];
        let key = (Control::Version as u32).to_ne_bytes();
        sys::lookup(self.fd(Map::Table(Table::Control)), &key, &mut word)
            .map_err(|source| Error::bpf("reading the layout version", source))?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Maps the tables of the service side into memory; the mapping outlives this value.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tables(&self, access: Access) -> std::result::Result<MappedMemory, MapError> {
        let map_of = |table: Table| Some((self.fd(Map::Table(table)), self.max_entries(Map::Table(table))));
        MappedMemory::new(access, map_of)
    }

    /// Descriptor of a map.
    pub fn fd(&self, map: Map) -> BorrowedFd<'_> {
        self.maps[&map].0.as_fd()
    }

    /// Elements a map can hold.
    pub fn max_entries(&self, map: Map) -> u32 {
        self.maps[&map].1.max_entries
    }
}
