//! Removing: what the tables have and a plan has not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::layout::Table;

use super::backend::BackendRow;
use super::batch::find_port;
use super::frontends::frontend_keys;
use super::grow::lasting_flags;
use super::key::TableKey;
use super::port::ServiceState;
use super::{Applier, ApplyError};
use crate::dataplane::memory::TableMemory;
use crate::model::ObjectName;
use crate::plan::{ServicePlan, ServicePortKey, ServicePortPlan};

impl<M: TableMemory> Applier<M> {
    /// Removes what the plan does not have; without a plan, the Service.
    pub(super) fn shrink(
        &mut self,
        service: &ObjectName,
        plan: Option<&ServicePlan>,
    ) -> Result<(), ApplyError> {
        if let Some(plan) = plan {
            for port in &plan.ports {
                self.shrink_port(port)?;
            }
        }
        self.remove_ports(service, |key| plan.is_none_or(|plan| find_port(plan, key).is_none()))
    }

    /// Frontends go first, then lists that nothing leads to, then flags of endpoints and endpoints.
    fn shrink_port(&mut self, plan: &ServicePortPlan) -> Result<(), ApplyError> {
        let Some(index) = self.service_index(&plan.key) else { return Ok(()) };
        let Some(port) = self.port(index) else { return Ok(()) };
        let wanted: BTreeSet<TableKey> = frontend_keys(plan).map(|(key, _)| key).collect();
        let gone: Vec<TableKey> =
            port.frontends.iter().filter(|key| !wanted.contains(key)).copied().collect();
        self.release_frontends(index, &gone)?;
        self.unpublish(index, plan)?;
        let mut at = 0;
        for (endpoint, lasting) in plan.endpoints.iter().zip(lasting_flags(plan)) {
            if let Some(row) = self.advance(index, &mut at, (endpoint.address, endpoint.port)) {
                self.sync_endpoint(index, row, endpoint, lasting)?;
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

    pub(super) fn remove_ports(
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

    /// Frontends first, so that nothing leads to the row; then its verdicts and policies, backends and name.
    fn remove_port(&mut self, index: u32) -> Result<(), ApplyError> {
        let Some(port) = self.port(index) else { return Ok(()) };
        let (frontends, backends) = (port.frontends.clone(), port.backends.clone());
        self.release_frontends(index, &frontends)?;
        self.clear_row(index)?;
        self.remove_backends(index, &backends)?;
        self.writer.memory.store(Table::Names, index, 0, 0)?;
        self.writer.services.retire(index);
        if let Some(place) = self.ports.get_mut(index as usize) {
            *place = None;
        }
        Ok(())
    }

    /// Empties a Service row, except for its generation.
    pub(super) fn clear_row(&mut self, index: u32) -> Result<(), ApplyError> {
        self.clear_publish(index)?;
        Ok(self.clear_policy(index)?)
    }
}
