//! Taking over the tables of the agent before: everything is read back from them, also after it was killed between
//! any two stores.
//!
//! Nothing that is published changes before the first full batch. That batch overwrites what is wrong, and what it
//! does not want goes.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::{
    BackendFlags, Class, Control, FrontendValue, LAYOUT_VERSION, SCOPE_ADDRESS, SCOPE_NODE_ADDRESS, Table,
};

use super::backend::{BackendRow, backend_table};
use super::batch::Run;
use super::claims::{Claim, Claims};
use super::key::TableKey;
use super::maglev;
use super::nodes::Nodes;
use super::port::{Port, Ports};
use super::publish::run_of;
use super::registry::Registry;
use super::rows::RowAllocator;
use super::slots::SlotAllocator;
use super::view::{backends, frontends, name};
use super::writer::Writer;
use super::{AdoptError, Applier, ApplyError, Report, Way, WayKind};
use crate::dataplane::memory::{Grace, TableMemory};
use crate::model::{Family, KeyedMap};

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
        let rows = |table| RowAllocator::new(memory.rows(table));
        let writer = Writer {
            services: rows(Table::Services),
            backends4: rows(Table::Backends4),
            backends6: rows(Table::Backends6),
            slots: SlotAllocator::new(memory.rows(Table::Slots)),
            sources: SlotAllocator::new(memory.rows(Table::SourceRanges)),
            retired_cells: Default::default(),
            entries: [0; 2],
            grace,
            memory,
        };
        Self {
            writer,
            ports: Ports::default(),
            claims: Claims::default(),
            registry: Registry::default(),
            ways: KeyedMap::default(),
            stale_ways: BTreeSet::new(),
            stale_frontends: BTreeSet::new(),
            stale_addresses: BTreeSet::new(),
            nodes: Nodes::default(),
            closed: BTreeMap::new(),
            by_chance: BTreeMap::new(),
            // Tests stop agents after every store.
            maglev_sizes: if cfg!(test) { maglev::TEST_SIZES } else { maglev::SIZES },
            pending: BTreeMap::new(),
            run: Run::default(),
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
        let (mut runs, mut sources) = (Vec::new(), Vec::new());
        for index in 1..rows {
            let published = Class::ALL.map(|class| self.published(index, class));
            let ranges = self.sources(index);
            let key = name(&self.writer.memory, index);
            if key.is_none() && published.iter().all(|publish| publish.encode() == 0) && ranges.count == 0 {
                continue;
            }
            used[index as usize] = true;
            // Classes of a row share runs.
            let mut own: Vec<(u32, u32)> = Vec::new();
            for publish in published {
                let Some(run) = run_of(publish) else { continue };
                if !publish.base.is_multiple_of(2) {
                    return Err(AdoptError::Damaged(format!("service {index}: slots begin inside a word")));
                }
                if !own.contains(&run) {
                    own.push(run);
                }
            }
            runs.append(&mut own);
            if ranges.count > 0 {
                sources.push((ranges.first, ranges.count));
            }
            match key {
                Some(key) if self.service_index(&key).is_none() => {
                    self.ports.insert(index, Port::new(key, None));
                }
                _ => {
                    self.orphans.services.insert(index);
                }
            }
        }
        let writer = &mut self.writer;
        let taken = |table, runs| SlotAllocator::with_used(writer.memory.rows(table), runs);
        let damaged = |what| AdoptError::Damaged(format!("runs of {what} overlap or lie outside the table"));
        let (slots, sources) = (taken(Table::Slots, runs), taken(Table::SourceRanges, sources));
        writer.slots = slots.ok_or_else(|| damaged("slots"))?;
        writer.sources = sources.ok_or_else(|| damaged("source ranges"))?;
        writer.services = RowAllocator::with_used(rows, |index| used[index as usize]);
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
            self.registry.add(&self.writer.memory, content.address, *row);
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
            if let Some(port) = ports.get_mut(index) {
                port.backends = rows.into();
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
        for (key, value) in frontends(&self.writer.memory) {
            self.writer.entries[usize::from(key.family() == Family::V6)] += 1;
            let kept = match key.scope {
                // Kept when some port has the address; asked again at the first full batch.
                SCOPE_ADDRESS => false,
                SCOPE_NODE_ADDRESS => self.adopt_node_address(key.address),
                _ => self.adopt_frontend(key, FrontendValue::decode(value)),
            };
            // Of two copies of a moving entry both say the same; the second is removed with the full batch.
            if !kept {
                self.orphans.frontends.insert(key);
            }
        }
    }

    /// Gives a frontend to the Service port it leads to; false when that cannot be.
    fn adopt_frontend(&mut self, key: TableKey, value: FrontendValue) -> bool {
        let FrontendValue { service, kind } = value;
        let belongs = self.port(service).is_some_and(|port| {
            port.key.family == key.family() && port.key.protocol.number() == key.protocol
        });
        if !belongs || self.claims.is_claimed(&key) {
            return false;
        }
        self.claims.claim(key, Claim { port: service, kind }, |port| port, &mut Vec::new());
        if let Some(port) = self.port_mut(service) {
            port.frontends.push(key);
        }
        true
    }

    /// After the first full batch: removes what belongs to no Service port.
    pub(super) fn sweep_orphans(&mut self) -> Result<(), ApplyError> {
        if !self.orphans.swept {
            return Ok(());
        }
        while let Some(key) = self.orphans.frontends.first().copied() {
            self.epoch_due = true;
            let wanted = match key.scope {
                SCOPE_ADDRESS => self.address_value(key.address),
                SCOPE_NODE_ADDRESS => self.is_node_address(&key.address).then_some(0),
                _ => self.claims.owner(&key).map(Claim::value),
            };
            self.writer.set_frontend(&key, wanted)?;
            self.orphans.frontends.pop_first();
        }
        while let Some(index) = self.orphans.services.first().copied() {
            self.clear_row(index)?;
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
            Table::Names | Table::Shares => rows >= memory.rows(Table::Services),
            Table::Services => (2..=FrontendValue::MAX_SERVICES).contains(&rows),
            _ => rows >= 2,
        };
        if !usable {
            return Err(AdoptError::Size { table, rows });
        }
    }
    Ok(())
}
