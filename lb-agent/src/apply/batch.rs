//! Batches: first everything that is added, then everything that goes.
//!
//! In that order a frontend that moves from one Service port to another changes hands in one store.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem;
use std::net::IpAddr;

use lb_common::layout::{BackendFlags, Publish, ServiceName, ServiceVerdict, Table, slot_of_word};
use tracing::{debug, warn};

use super::backend::BackendRow;
use super::key::TableKey;
use super::port::{Port, ServiceState};
use super::slots::words_of;
use super::{Applier, ApplyError, Failure, Report};
use crate::dataplane::memory::{StoreError, TableMemory};
use crate::model::{Family, ObjectName};
use crate::plan::{
    EndpointPlan, FrontendKind, PlanBatch, ServicePlan, ServicePortKey, ServicePortPlan, Verdict,
};

/// A Service and its plan; `None` = gone.
type Wanted = (ObjectName, Option<ServicePlan>);

/// What [`Applier::grow`] met.
enum Grown {
    /// The Service was not in the tables: nothing of it can be too much.
    New,
    /// It was.
    Changed,
}

impl<M: TableMemory> Applier<M> {
    /// Applies a batch, and what failed before. A Service that fails is reported and does not hold up the others;
    /// it is tried again with the next call.
    pub fn apply(&mut self, batch: PlanBatch) -> Report {
        let mut pending = mem::take(&mut self.pending);
        let mut wanted: Vec<Wanted> =
            batch.changes.into_iter().map(|change| (change.service, change.plan)).collect();
        if batch.full {
            let named: HashSet<&ObjectName> = wanted.iter().map(|(service, _)| service).collect();
            let mut gone: Vec<ObjectName> =
                self.services.keys().filter(|service| !named.contains(service)).cloned().collect();
            gone.sort_unstable();
            wanted.extend(gone.into_iter().map(|service| (service, None)));
        } else if !pending.is_empty() {
            for (service, _) in &wanted {
                pending.remove(service);
            }
            wanted.extend(pending);
        }
        self.run(wanted, batch.full)
    }

    /// Tries again what failed before.
    pub fn retry(&mut self) -> Report {
        let wanted = mem::take(&mut self.pending).into_iter().collect();
        self.run(wanted, false)
    }

    fn run(&mut self, wanted: Vec<Wanted>, full: bool) -> Report {
        self.orphans.swept |= full;
        for (service, plan) in &wanted {
            if let (Some(plan), Some(state)) = (plan, self.services.get_mut(service)) {
                state.created = plan.created;
            }
        }
        let mut failed: Vec<(usize, ApplyError)> = Vec::new();
        let mut to_shrink = Vec::new();
        for (at, (_, plan)) in wanted.iter().enumerate() {
            match plan.as_ref().map(|plan| self.grow(plan)) {
                Some(Ok(Grown::New)) => {}
                Some(Ok(Grown::Changed)) | None => to_shrink.push(at),
                Some(Err(error)) => failed.push((at, error)),
            }
        }
        for at in to_shrink {
            let (service, plan) = &wanted[at];
            if let Err(error) = self.shrink(service, plan.as_ref()) {
                failed.push((at, error));
            }
        }
        if let Err(error) = self.sweep_orphans() {
            debug!(%error, "leftovers of the previous agent stay for now");
        }
        // What had no room may have some now that others have gone, or by giving up its own old ports first.
        failed.retain_mut(|(at, error)| {
            let (service, plan) = &wanted[*at];
            match self.make_do(service, plan.as_ref()) {
                Ok(()) => false,
                Err(now) => {
                    *error = now;
                    true
                }
            }
        });
        if let Err(error) = self.sync_ways() {
            debug!(%error, "ways or epoch not stored, next time");
        }
        self.warn_of_conflicts();
        let mut report = mem::take(&mut self.report);
        for (at, error) in failed {
            let (service, plan) = &wanted[at];
            report.failures.push(Failure { service: service.clone(), error });
            self.pending.insert(service.clone(), plan.clone());
        }
        report
    }

    fn make_do(&mut self, service: &ObjectName, plan: Option<&ServicePlan>) -> Result<(), ApplyError> {
        if let Some(plan) = plan {
            self.remove_ports(service, |key| find_port(plan, key).is_none())?;
            self.grow(plan)?;
        }
        self.shrink(service, plan)
    }

    /// Adds what the plan has, and switches every port of it over.
    fn grow(&mut self, plan: &ServicePlan) -> Result<Grown, ApplyError> {
        let grown = if self.services.contains_key(&plan.service) { Grown::Changed } else { Grown::New };
        for port in &plan.ports {
            let index = self.index_of(plan, port)?;
            let rows = self.grow_backends(index, port)?;
            self.publish(index, port, &rows)?;
            self.claim_frontends(index, port)?;
        }
        Ok(grown)
    }

    /// The row of a port: its own, or a new one with its name written.
    fn index_of(&mut self, plan: &ServicePlan, port: &ServicePortPlan) -> Result<u32, ApplyError> {
        if let Some(index) = self.service_index(&port.key) {
            return Ok(index);
        }
        let name = encode_name(&port.key)?;
        let (index, reused) = self.writer.allocate_service()?;
        if let Err(error) = write_name(&self.writer.memory, index, &name) {
            self.writer.services.give_back(index);
            return Err(error.into());
        }
        if reused {
            self.report.reused_services.push(index);
        }
        self.insert_port(index, Port::new(port.key.clone()));
        let state = self.services.entry(plan.service.clone()).or_default();
        state.created = plan.created;
        state.ports.push(index);
        Ok(index)
    }

    pub(super) fn insert_port(&mut self, index: u32, port: Port) {
        let place = index as usize;
        if place >= self.ports.len() {
            self.ports.resize_with(place + 1, || None);
        }
        self.ports[place] = Some(Box::new(port));
    }

    /// Makes sure that every endpoint of the plan has a row, and returns the rows in the plan's order. Rows that
    /// the plan does not have, and conditions that get worse, are left for [`Applier::shrink`].
    fn grow_backends(&mut self, index: u32, plan: &ServicePortPlan) -> Result<Vec<u32>, ApplyError> {
        let mut rows = Vec::with_capacity(plan.endpoints.len());
        let mut added = Vec::new();
        let result = self.find_or_add_backends(index, plan, &mut rows, &mut added);
        let Self { ports, writer, .. } = self;
        if let Some(port) = ports.get_mut(index as usize).and_then(Option::as_deref_mut) {
            port.add_backends(&writer.memory, &added);
        }
        result.map(|()| rows)
    }

    fn find_or_add_backends(
        &mut self,
        index: u32,
        plan: &ServicePortPlan,
        rows: &mut Vec<u32>,
        added: &mut Vec<u32>,
    ) -> Result<(), ApplyError> {
        let family = plan.key.family;
        let mut at = 0;
        let mut before = None;
        for endpoint in &plan.endpoints {
            let target = (endpoint.address, endpoint.port);
            let found = match before {
                Some((same, row)) if same == target => Some(row),
                _ => self.advance(index, &mut at, target),
            };
            let row = match found {
                Some(row) => {
                    let now = BackendRow::load(&self.writer.memory, family, row);
                    let serving = now.flags & BackendFlags::SERVING != 0;
                    if endpoint.serving && !serving {
                        self.sync_endpoint(index, row, endpoint)?;
                    }
                    row
                }
                None => {
                    let row = self.add_backend(index, family, endpoint)?;
                    added.push(row);
                    row
                }
            };
            rows.push(row);
            before = Some((target, row));
        }
        Ok(())
    }

    /// Moves on in the ordered backends of a port until `target`; its row when it is there.
    fn advance(&self, index: u32, at: &mut usize, target: (IpAddr, u16)) -> Option<u32> {
        let port = self.port(index)?;
        while let Some(row) = port.backends.get(*at) {
            let found = port.target(&self.writer.memory, *row);
            if found >= target {
                return (found == target).then_some(*row);
            }
            *at += 1;
        }
        None
    }

    fn add_backend(
        &mut self,
        index: u32,
        family: Family,
        endpoint: &EndpointPlan,
    ) -> Result<u32, ApplyError> {
        let EndpointPlan { address, port, local, serving } = *endpoint;
        let (row, reused) = self.writer.allocate_backend(family)?;
        let content = self.backend_row(index, (address, port), serving, local);
        if let Err(error) = content.write_new(&self.writer.memory, row) {
            self.writer.backends(family).give_back(row);
            return Err(error.into());
        }
        if reused {
            self.report.reused_backends.push((family, row));
        }
        self.registry.add(address, row);
        self.registry.set_local(family, row, local);
        Ok(row)
    }

    fn sync_endpoint(&mut self, index: u32, row: u32, endpoint: &EndpointPlan) -> Result<(), StoreError> {
        let family = Family::of(endpoint.address);
        self.registry.set_local(family, row, endpoint.local);
        self.sync_backend(family, row, index, (endpoint.address, endpoint.port), endpoint.serving)
    }

    /// Stores the verdict, if it is another: a new run of slots, then the publish word.
    fn publish(&mut self, index: u32, plan: &ServicePortPlan, rows: &[u32]) -> Result<(), ApplyError> {
        let memory = &self.writer.memory;
        let before = Publish::decode(memory.load(Table::Services, index, 0));
        let invalid = || ApplyError::InvalidPlan(plan.key.to_string());
        let chosen: Vec<u32> = match &plan.internal.verdict {
            Verdict::Balance(chosen) => {
                let row = |position: &u32| rows.get(*position as usize).copied();
                chosen.iter().map(row).collect::<Option<_>>().ok_or_else(invalid)?
            }
            Verdict::Reject | Verdict::Drop => Vec::new(),
        };
        let count = u32::try_from(chosen.len()).ok().filter(|count| *count <= Publish::MAX_COUNT);
        let count = count.ok_or_else(invalid)?;
        let verdict = match plan.internal.verdict {
            Verdict::Balance(_) if count > 0 => ServiceVerdict::Random,
            Verdict::Drop => ServiceVerdict::Drop,
            Verdict::Balance(_) | Verdict::Reject => ServiceVerdict::Reject,
        };
        if (before.verdict, before.count) == (verdict as u8, count) && holds(memory, before, &chosen) {
            return Ok(());
        }
        let words = words_of(count);
        let start = if words == 0 { 0 } else { self.writer.allocate_slots(words)? };
        let publish = Publish { base: start * 2, count, verdict: verdict as u8 };
        if let Err(error) = write_run(&self.writer.memory, start, &chosen)
            .and_then(|()| self.writer.memory.store(Table::Services, index, 0, publish.encode()))
        {
            if words != 0 {
                self.writer.slots.give_back(start, words);
            }
            return Err(error.into());
        }
        self.retire_run(before);
        Ok(())
    }

    pub(super) fn retire_run(&mut self, publish: Publish) {
        if publish.verdict == ServiceVerdict::Random as u8 && publish.count > 0 {
            self.writer.slots.retire(publish.base / 2, words_of(publish.count));
        }
    }

    fn claim_frontends(&mut self, index: u32, plan: &ServicePortPlan) -> Result<(), ApplyError> {
        for key in frontend_keys(plan) {
            if let Some(port) = self.port_mut(index)
                && !port.frontends.contains(&key)
            {
                port.frontends.push(key);
            }
            let Self { claims, ports, services, .. } = self;
            claims.claim(key, index, |claimant| {
                let port = ports.get(claimant as usize).and_then(Option::as_deref);
                let key = port.map(|port| port.key.clone());
                let created = key.as_ref().and_then(|key| services.get(&key.service)?.created);
                // Whose age is not known comes last.
                (Reverse(created.map(Reverse)), key)
            });
            self.sync_frontend(&key)?;
        }
        Ok(())
    }

    /// Makes the tables agree with the claims on a frontend and on its address.
    pub(super) fn sync_frontend(&mut self, key: &TableKey) -> Result<(), ApplyError> {
        let owner = self.claims.owner(key);
        if key.is_carried() && self.writer.frontend(key) != owner {
            self.epoch_due = true;
            self.writer.set_frontend(key, owner)?;
        }
        // The value of an address entry says nothing.
        let address = TableKey::address(key.address);
        let wanted = self.claims.has_address(&key.address).then_some(0);
        if self.writer.frontend(&address) != wanted {
            self.epoch_due = true;
            self.writer.set_frontend(&address, wanted)?;
        }
        Ok(())
    }

    /// Removes what the plan does not have; without a plan, the Service.
    fn shrink(&mut self, service: &ObjectName, plan: Option<&ServicePlan>) -> Result<(), ApplyError> {
        if let Some(plan) = plan {
            for port in &plan.ports {
                self.shrink_port(port)?;
            }
        }
        self.remove_ports(service, |key| plan.is_none_or(|plan| find_port(plan, key).is_none()))
    }

    fn shrink_port(&mut self, plan: &ServicePortPlan) -> Result<(), ApplyError> {
        let Some(index) = self.service_index(&plan.key) else { return Ok(()) };
        let Some(port) = self.port(index) else { return Ok(()) };
        let wanted: BTreeSet<TableKey> = frontend_keys(plan).collect();
        let gone: Vec<TableKey> =
            port.frontends.iter().filter(|key| !wanted.contains(key)).copied().collect();
        self.release_frontends(index, &gone)?;
        let mut at = 0;
        for endpoint in &plan.endpoints {
            if let Some(row) = self.advance(index, &mut at, (endpoint.address, endpoint.port)) {
                self.sync_endpoint(index, row, endpoint)?;
            }
        }
        let is_wanted = |target: (IpAddr, u16)| {
            plan.endpoints.binary_search_by_key(&target, |endpoint| (endpoint.address, endpoint.port)).is_ok()
        };
        let Some(port) = self.port(index) else { return Ok(()) };
        let mut before = None;
        let mut gone = Vec::new();
        for row in &port.backends {
            let target = port.target(&self.writer.memory, *row);
            // The same endpoint twice: `advance` takes the first.
            if !is_wanted(target) || before.replace(target) == Some(target) {
                gone.push(*row);
            }
        }
        self.remove_backends(index, &gone)
    }

    fn release_frontends(&mut self, index: u32, gone: &[TableKey]) -> Result<(), ApplyError> {
        for key in gone {
            self.claims.release(key, index);
            self.sync_frontend(key)?;
            if let Some(port) = self.port_mut(index) {
                port.frontends.retain(|other| other != key);
            }
        }
        Ok(())
    }

    fn remove_backends(&mut self, index: u32, gone: &[u32]) -> Result<(), ApplyError> {
        let Some(family) = self.port(index).map(|port| port.key.family) else { return Ok(()) };
        let mut removed = 0;
        let result = gone.iter().try_for_each(|row| {
            let address = BackendRow::load(&self.writer.memory, family, *row).address;
            self.epoch_due = true;
            BackendRow::clear(&self.writer.memory, family, *row)?;
            self.registry.remove(address, *row);
            self.writer.backends(family).retire(*row);
            removed += 1;
            Ok(())
        });
        let removed: BTreeSet<u32> = gone[..removed].iter().copied().collect();
        if let Some(port) = self.port_mut(index)
            && !removed.is_empty()
        {
            port.backends.retain(|row| !removed.contains(row));
        }
        result
    }

    fn remove_ports(
        &mut self,
        service: &ObjectName,
        gone: impl Fn(&ServicePortKey) -> bool,
    ) -> Result<(), ApplyError> {
        let Some(state) = self.services.get(service) else { return Ok(()) };
        let is_gone = |index: &u32| self.port(*index).is_some_and(|port| gone(&port.key));
        let indices: Vec<u32> = state.ports.iter().copied().filter(is_gone).collect();
        for index in indices {
            self.remove_port(index)?;
            if let Some(state) = self.services.get_mut(service) {
                state.ports.retain(|other| *other != index);
            }
        }
        if self.services.get(service).is_some_and(|ServiceState { ports, .. }| ports.is_empty()) {
            self.services.remove(service);
        }
        Ok(())
    }

    /// Frontends first, so that nothing leads to the row; then its verdict, backends and name.
    fn remove_port(&mut self, index: u32) -> Result<(), ApplyError> {
        let Some(port) = self.port(index) else { return Ok(()) };
        let (frontends, backends) = (port.frontends.clone(), port.backends.clone());
        self.release_frontends(index, &frontends)?;
        let memory = &self.writer.memory;
        let publish = Publish::decode(memory.load(Table::Services, index, 0));
        if publish.encode() != 0 {
            memory.store(Table::Services, index, 0, 0)?;
            self.retire_run(publish);
        }
        self.remove_backends(index, &backends)?;
        self.writer.memory.store(Table::Names, index, 0, 0)?;
        self.writer.services.retire(index);
        if let Some(place) = self.ports.get_mut(index as usize) {
            *place = None;
        }
        Ok(())
    }

    fn warn_of_conflicts(&mut self) {
        let contested: BTreeMap<TableKey, u32> =
            self.claims.contested().map(|(key, owner, _)| (key, owner)).collect();
        if contested == self.warned {
            return;
        }
        for conflict in self.conflicts() {
            let TableKey { address, port, .. } = conflict.frontend;
            if self.warned.get(&conflict.frontend) != contested.get(&conflict.frontend) {
                let losers: Vec<String> = conflict.losers.iter().map(ToString::to_string).collect();
                warn!(%address, port, owner = %conflict.owner, ?losers, "several Services want the same frontend");
            }
        }
        self.warned = contested;
    }
}

/// The port of a plan with that key.
fn find_port<'a>(plan: &'a ServicePlan, key: &ServicePortKey) -> Option<&'a ServicePortPlan> {
    plan.ports.iter().find(|port| port.key == *key)
}

/// The frontends of a port that are programmed.
fn frontend_keys(plan: &ServicePortPlan) -> impl Iterator<Item = TableKey> {
    let protocol = plan.key.protocol.number();
    let cluster = plan.internal.frontends.iter().filter(|frontend| frontend.kind == FrontendKind::ClusterIp);
    cluster.map(move |frontend| TableKey::service(frontend.address, frontend.port, protocol))
}

/// True when a published run names exactly these rows.
fn holds(memory: &impl TableMemory, publish: Publish, rows: &[u32]) -> bool {
    rows.iter().zip(publish.base..).all(|(row, slot)| {
        let (word, shift) = slot_of_word(slot);
        (memory.load(Table::Slots, word, 0) >> shift) as u32 == *row
    })
}

fn write_run(memory: &impl TableMemory, start: u32, rows: &[u32]) -> Result<(), StoreError> {
    for (word, pair) in (start..).zip(rows.chunks(2)) {
        let value = pair.iter().rev().fold(0, |value, row| value << 32 | u64::from(*row));
        if memory.load(Table::Slots, word, 0) != value {
            memory.store(Table::Slots, word, 0, value)?;
        }
    }
    Ok(())
}

fn encode_name(key: &ServicePortKey) -> Result<[u8; ServiceName::BYTES], ApplyError> {
    let name = ServiceName {
        namespace: &key.service.namespace,
        name: &key.service.name,
        port_name: &key.port_name,
        protocol: key.protocol.number(),
        v6: key.family == Family::V6,
    };
    name.encode().ok_or_else(|| ApplyError::NameTooLong(key.to_string()))
}

/// Writes a name: word 0, without which it is none, last. Words after its end are left as they are.
fn write_name(
    memory: &impl TableMemory,
    index: u32,
    row: &[u8; ServiceName::BYTES],
) -> Result<(), StoreError> {
    let length = 8 + row[2..5].iter().map(|length| usize::from(*length)).sum::<usize>();
    let (words, _) = row.as_chunks::<8>();
    for (word, bytes) in words.iter().enumerate().take(length.div_ceil(8)).skip(1) {
        memory.store(Table::Names, index, word, u64::from_ne_bytes(*bytes))?;
    }
    memory.store(Table::Names, index, 0, u64::from_ne_bytes(words[0]))
}
