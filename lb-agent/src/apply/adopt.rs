//! Taking over the tables of the agent before: everything is read back from them, also after it was killed between
//! any two stores.
//!
//! Nothing that is published changes before the first full batch. That batch overwrites what is wrong, and what it
//! does not want goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::layout::{BackendFlags, Control, LAYOUT_VERSION, Publish, ServiceVerdict, Table};

use super::backend::{BackendRow, backend_table};
use super::claims::Claims;
use super::key::TableKey;
use super::port::Port;
use super::registry::Registry;
use super::rows::RowAllocator;
use super::slots::{SlotAllocator, words_of};
use super::view::{backends, frontends, name};
use super::writer::Writer;
use super::{AdoptError, Applier, ApplyError, Report, Way, WayKind};
use crate::dataplane::memory::{Grace, TableMemory};
use crate::model::Family;

/// What the tables hold that belongs to no Service port: removed with the first full batch.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    frontends: BTreeSet<TableKey>,
    backends: BTreeSet<(Family, u32)>,
    services: BTreeSet<u32>,
    /// A full batch was seen.
    pub(super) swept: bool,
}

impl Orphans {
    /// A full batch was seen and something is left to remove.
    pub(super) fn is_due(&self) -> bool {
        self.swept && !(self.frontends.is_empty() && self.backends.is_empty() && self.services.is_empty())
    }
}

impl<M: TableMemory> Applier<M> {
    /// Takes over tables, new (all words 0) or those of the agent before, with the ways to endpoints in them:
    /// [`Applier::set_ways`] says which of those still hold.
    ///
    /// # Errors
    /// When they are of another layout, of an impossible size or damaged.
    pub fn adopt(memory: M, grace: impl Grace + Send + 'static) -> Result<Self, AdoptError> {
        check_sizes(&memory)?;
        let fresh = match memory.load(Table::Control, Control::Version as u32, 0) {
            0 => true,
            LAYOUT_VERSION => false,
            found => return Err(AdoptError::Version { found, wanted: LAYOUT_VERSION }),
        };
        if fresh {
            memory.store(Table::Control, Control::Version as u32, 0, LAYOUT_VERSION)?;
        } else {
            // Programs may still read what the agent before freed last.
            grace.wait();
        }
        let mut applier = Self::empty(memory, Box::new(grace));
        if !fresh {
            applier.read_back()?;
            applier.epoch_due = true;
            applier.advance_epoch()?;
        }
        Ok(applier)
    }

    fn empty(memory: M, grace: Box<dyn Grace + Send>) -> Self {
        let rows = |table| RowAllocator::with_used(memory.rows(table), |_| false);
        let writer = Writer {
            services: rows(Table::Services),
            backends4: rows(Table::Backends4),
            backends6: rows(Table::Backends6),
            slots: SlotAllocator::new(memory.rows(Table::Slots)),
            retired_cells: Default::default(),
            entries: [0; 2],
            grace,
            memory,
        };
        Self {
            writer,
            services: HashMap::new(),
            ports: Vec::new(),
            claims: Claims::default(),
            registry: Registry::default(),
            ways: HashMap::new(),
            stale_ways: BTreeSet::new(),
            pending: BTreeMap::new(),
            orphans: Orphans::default(),
            warned: BTreeMap::new(),
            epoch_due: false,
            report: Report::default(),
        }
    }

    fn read_back(&mut self) -> Result<(), AdoptError> {
        self.read_services()?;
        self.read_backends(Family::V4);
        self.read_backends(Family::V6);
        self.read_frontends();
        Ok(())
    }

    fn read_services(&mut self) -> Result<(), AdoptError> {
        let rows = self.writer.memory.rows(Table::Services);
        let mut used = vec![false; rows as usize];
        let mut runs = Vec::new();
        for index in 1..rows {
            let memory = &self.writer.memory;
            let publish = Publish::decode(memory.load(Table::Services, index, 0));
            let key = name(memory, index);
            if key.is_none() && publish.encode() == 0 {
                continue;
            }
            used[index as usize] = true;
            if publish.verdict == ServiceVerdict::Random as u8 {
                if !publish.base.is_multiple_of(2) {
                    return Err(AdoptError::Damaged(format!("service {index}: slots begin inside a word")));
                }
                runs.push((publish.base / 2, words_of(publish.count)));
            }
            match key {
                Some(key) if self.service_index(&key).is_none() => {
                    self.services.entry(key.service.clone()).or_default().ports.push(index);
                    self.insert_port(index, Port::new(key));
                }
                _ => {
                    self.orphans.services.insert(index);
                }
            }
        }
        let words = self.writer.memory.rows(Table::Slots);
        self.writer.slots = SlotAllocator::with_used(words, runs)
            .ok_or_else(|| AdoptError::Damaged("runs of slots overlap or lie outside the table".into()))?;
        self.writer.services = RowAllocator::with_used(rows, |index| used[index as usize]);
        Ok(())
    }

    fn read_backends(&mut self, family: Family) {
        let found: Vec<(u32, BackendRow)> = backends(&self.writer.memory, family).collect();
        let mut of_port: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (row, content) in &found {
            if self.port(content.service).is_none_or(|port| port.key.family != family) {
                self.orphans.backends.insert((family, *row));
                continue;
            }
            of_port.entry(content.service).or_default().push(*row);
            let local = content.flags & BackendFlags::LOCAL != 0;
            self.registry.add(content.address, *row);
            self.registry.set_local(family, *row, local);
            if content.interface != 0 {
                let kind = if local { WayKind::Local } else { WayKind::Neighbour };
                let way = Way { interface: content.interface, mac: content.mac, kind };
                self.ways.insert(content.address, way);
            }
        }
        let Self { ports, writer, .. } = self;
        for (index, mut rows) in of_port {
            rows.sort_by_key(|row| BackendRow::load(&writer.memory, family, *row).target());
            if let Some(port) = ports.get_mut(index as usize).and_then(Option::as_deref_mut) {
                port.backends = rows;
            }
        }
        let rows = writer.memory.rows(backend_table(family));
        let mut used = vec![false; rows as usize];
        for (row, _) in &found {
            used[*row as usize] = true;
        }
        *writer.backends(family) = RowAllocator::with_used(rows, |row| used[row as usize]);
    }

    fn read_frontends(&mut self) {
        for (key, service) in frontends(&self.writer.memory) {
            self.writer.entries[usize::from(key.family() == Family::V6)] += 1;
            if key == TableKey::address(key.address) {
                // Kept when some port has the address; asked again at the first full batch.
                self.orphans.frontends.insert(key);
                continue;
            }
            // Of two copies of a moving entry both say the same; the second is removed with the full batch.
            let belongs = self.port(service).is_some_and(|port| {
                port.key.family == key.family() && port.key.protocol.number() == key.protocol
            });
            if !belongs || self.claims.owner(&key).is_some() {
                self.orphans.frontends.insert(key);
                continue;
            }
            self.claims.claim(key, service, |port| port);
            if let Some(port) = self.port_mut(service) {
                port.frontends.push(key);
            }
        }
    }

    /// After the first full batch: removes what belongs to no Service port.
    pub(super) fn sweep_orphans(&mut self) -> Result<(), ApplyError> {
        if !self.orphans.swept {
            return Ok(());
        }
        while let Some(key) = self.orphans.frontends.first().copied() {
            self.epoch_due = true;
            let wanted = if key == TableKey::address(key.address) {
                self.claims.has_address(&key.address).then_some(0)
            } else {
                self.claims.owner(&key)
            };
            self.writer.set_frontend(&key, wanted)?;
            self.orphans.frontends.pop_first();
        }
        while let Some(index) = self.orphans.services.first().copied() {
            let publish = Publish::decode(self.writer.memory.load(Table::Services, index, 0));
            self.writer.memory.store(Table::Services, index, 0, 0)?;
            self.retire_run(publish);
            self.writer.memory.store(Table::Names, index, 0, 0)?;
            self.writer.services.retire(index);
            self.orphans.services.pop_first();
        }
        while let Some((family, row)) = self.orphans.backends.first().copied() {
            BackendRow::clear(&self.writer.memory, family, row)?;
            self.writer.backends(family).retire(row);
            self.orphans.backends.pop_first();
        }
        Ok(())
    }
}

fn check_sizes(memory: &impl TableMemory) -> Result<(), AdoptError> {
    for table in Table::ALL {
        let rows = memory.rows(table);
        let usable = match table {
            Table::Frontends4 | Table::Frontends6 => rows.is_power_of_two(),
            Table::Names => rows >= memory.rows(Table::Services),
            _ => rows >= 2,
        };
        if !usable {
            return Err(AdoptError::Size { table, rows });
        }
    }
    Ok(())
}
