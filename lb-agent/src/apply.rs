//! Makes the tables say what the planner wants: the only writer of the service side.
//!
//! [`Applier::apply`] takes batches of Service plans and compares them with the table memory itself, which it may
//! read as cheaply as its own: what is already there is not stored again, and a change that failed or was
//! interrupted anywhere is simply made again.
//!
//! Between any two stores every frontend leads, for each traffic class, to the complete old or the complete new set of
//! endpoints of its Service: backends are written before slots, slots before the publish word of the class (one
//! store), policies after those, frontends last; in the other direction frontends go first, then the publish words,
//! policies, backends and name. What was freed is used again only after a grace period
//! ([`crate::dataplane::memory::Grace`]), which is waited for when room is needed.
//!
//! Each Service port keeps its row while it lives, each endpoint of it too.

mod adopt;
mod backend;
mod batch;
mod cells;
mod claims;
mod error;
mod frontends;
mod grow;
mod key;
pub mod maglev;
mod nodes;
mod policy;
mod port;
mod publish;
mod ranges;
mod registry;
mod rows;
mod shrink;
mod slots;
mod view;
mod ways;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::layout::{Control, Table};
use serde::Serialize;

use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::{Family, KeyedMap, ObjectName};
use crate::plan::ServicePortKey;
use adopt::Orphans;
use batch::{Pending, Run};
use claims::Claims;
use nodes::Nodes;
use port::{Port, Ports};
use registry::Registry;
use writer::Writer;

pub use error::{AdoptError, ApplyError, Failure};
pub use key::TableKey;
pub use nodes::NodeAddresses;
pub use view::{
    BackendView, ClassView, FrontendEntry, FrontendView, PolicyView, ServiceView, TablesView, view,
};
pub use ways::{Way, WayKind};

/// Keeps the tables as planned. One at a time may exist for the same tables.
pub struct Applier<M> {
    writer: Writer<M>,
    ports: Ports,
    claims: Claims,
    registry: Registry,
    ways: KeyedMap<IpAddr, Way>,
    /// Addresses whose way could not be stored everywhere.
    stale_ways: BTreeSet<IpAddr>,
    /// Frontends that could not be made to agree with the claims.
    stale_frontends: BTreeSet<TableKey>,
    /// Cluster IPs of which the tables may be wrong about whether they have endpoints.
    stale_addresses: BTreeSet<IpAddr>,
    nodes: Nodes,
    /// Services whose source ranges could not be stored in the present run: nobody may use their VIPs.
    closed: BTreeMap<ObjectName, ApplyError>,
    /// Services whose Maglev table had no room in the present run: chance decides instead.
    by_chance: BTreeMap<ObjectName, ApplyError>,
    maglev_sizes: maglev::Sizes,
    /// Services whose last change failed, and what is left to do.
    pending: BTreeMap<ObjectName, Pending>,
    /// What was taken in since the last commit.
    run: Run,
    orphans: Orphans,
    /// Contested frontends already warned of, with their owner.
    warned: BTreeMap<TableKey, u32>,
    epoch_due: bool,
    report: Report,
}

/// What a call did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Services whose change is not (wholly) in the tables; they are tried again with the next call.
    pub failures: Vec<Failure>,
    /// Service rows that belong to another Service port than before: their counters start anew.
    pub reused_services: Vec<u32>,
    /// Backend rows that belong to another endpoint than before: their counters start anew.
    pub reused_backends: Vec<(Family, u32)>,
}

/// A frontend that several Service ports want (S-83). A cluster IP goes before external IPs and load balancer VIPs, whose
/// Services do not get the address at all while it is one (CVE-2020-8554).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The address and port.
    pub frontend: TableKey,
    /// Who has it, or the cluster IP: the oldest Service, then the smallest name.
    pub owner: ServicePortKey,
    /// Who else wants it, in the order in which they would get it.
    pub losers: Vec<ServicePortKey>,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Name of the table.
    pub table: &'static str,
    /// Rows in use (frontend tables: entries; slots: words of two).
    pub used: u32,
    /// Rows there are, row 0 not counted where it is never used.
    pub capacity: u32,
}

impl<M: TableMemory> Applier<M> {
    /// The row of a Service port, which it keeps while it lives.
    pub fn service_index(&self, key: &ServicePortKey) -> Option<u32> {
        self.ports.find(key)
    }

    /// Number of Services in the tables.
    pub fn service_count(&self) -> usize {
        self.ports.service_count()
    }

    /// Services whose last change failed and is going to be tried again.
    pub fn pending(&self) -> impl Iterator<Item = &ObjectName> {
        self.pending.keys()
    }

    /// True when something is left to be stored that a call of [`Applier::retry`] may get done.
    pub fn needs_retry(&self) -> bool {
        !self.pending.is_empty()
            || !self.stale_ways.is_empty()
            || !self.stale_frontends.is_empty()
            || !self.stale_addresses.is_empty()
            || self.nodes.due
            || self.epoch_due
            || self.orphans.is_due()
    }

    /// How full the tables are.
    pub fn occupancy(&self) -> Vec<Occupancy> {
        let writer = &self.writer;
        let rows = |table: Table| writer.memory.rows(table);
        let entries = cells::ENTRIES as u32;
        [
            (Table::Services, writer.services.used(), rows(Table::Services) - 1),
            (Table::Frontends4, writer.entries[0], rows(Table::Frontends4).saturating_mul(entries)),
            (Table::Frontends6, writer.entries[1], rows(Table::Frontends6).saturating_mul(entries)),
            (Table::Slots, writer.slots.used(), rows(Table::Slots)),
            (Table::SourceRanges, writer.sources.used(), rows(Table::SourceRanges)),
            (Table::Backends4, writer.backends4.used(), rows(Table::Backends4) - 1),
            (Table::Backends6, writer.backends6.used(), rows(Table::Backends6) - 1),
        ]
        .map(|(table, used, capacity)| Occupancy { table: table.map_name(), used, capacity })
        .to_vec()
    }

    /// The table memory.
    pub fn memory(&self) -> &M {
        &self.writer.memory
    }

    /// Voids what programs remember of flows: a device by which they leave is not what it was.
    ///
    /// # Errors
    /// The table cannot be written.
    pub fn void_ways(&mut self) -> Result<(), StoreError> {
        self.epoch_due = true;
        self.advance_epoch()
    }

    fn port(&self, index: u32) -> Option<&Port> {
        self.ports.get(index)
    }

    fn port_mut(&mut self, index: u32) -> Option<&mut Port> {
        self.ports.get_mut(index)
    }

    /// Voids what programs remember of flows, when something they may remember changed.
    fn advance_epoch(&mut self) -> Result<(), StoreError> {
        if self.epoch_due {
            self.writer.memory.add(Table::Control, Control::Epoch as u32, 0, 1)?;
            self.epoch_due = false;
        }
        Ok(())
    }
}
