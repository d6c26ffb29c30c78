//! Removing: what the tables have and a plan has not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::layout::Table;

use super::backend::BackendRow;
use super::batch::find_port;
use super::frontends::{Leaving, frontend_keys};
use super::grow::lasting_flags;
use super::key::TableKey;
use super::{Applier, ApplyError};
use crate::dataplane::memory::TableMemory;
use crate::model::ObjectName;
use crate::plan::{ServicePlan, ServicePortKey, ServicePortPlan};

impl<M: TableMemory> Applier<M> {
    /// The frontends that the plan does not have; without a plan, all of the Service.
    pub(super) fn leaving(&self, service: &ObjectName, plan: Option<&ServicePlan>) -> Vec<Leaving> {
        let leaving = self.ports.of(service).filter_map(|index| {
            let port = self.port(index)?;
            let plan = plan.and_then(|plan| find_port(plan, &port.key));
            let wanted: BTreeSet<TableKey> =
                plan.into_iter().flat_map(frontend_keys).map(|(key, _)| key).collect();
            let frontends = port.frontends.iter().filter(|key| !wanted.contains(key)).copied().collect();
            Some(Leaving { port: index, frontends })
        });
        leaving.filter(|leaving| !leaving.frontends.is_empty()).collect()
    }

    /// Removes what the plan does not have; without a plan, the Service. Its frontends that leave ([`Applier::leaving`]) are
    /// given up already.
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

    /// Lists that nothing leads to go first, then flags of endpoints and endpoints.
    fn shrink_port(&mut self, plan: &ServicePortPlan) -> Result<(), ApplyError> {
        let Some(index) = self.service_index(&plan.key) else { return Ok(()) };
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
        let is_gone = |index: &u32| self.port(*index).is_some_and(|port| gone(&port.key));
        let indices: Vec<u32> = self.ports.of(service).filter(is_gone).collect();
        let frontends = |port: &u32| self.port(*port).map(|port| port.frontends.to_vec()).unwrap_or_default();
        let leaving: Vec<Leaving> =
            indices.iter().map(|port| Leaving { port: *port, frontends: frontends(port) }).collect();
        self.release_frontends(&leaving)?;
        for index in indices {
            self.remove_port(index)?;
        }
        Ok(())
    }

    /// Removes a row that nothing leads to any more: its verdicts and policies, then backends and name.
    fn remove_port(&mut self, index: u32) -> Result<(), ApplyError> {
        let Some(port) = self.port(index) else { return Ok(()) };
        let backends = port.backends.clone();
        self.clear_row(index)?;
        self.remove_backends(index, &backends)?;
        self.writer.memory.store(Table::Names, index, 0, 0)?;
        self.writer.services.retire(index);
        self.ports.remove(index);
        Ok(())
    }

    /// Empties a Service row, except for its generation.
    pub(super) fn clear_row(&mut self, index: u32) -> Result<(), ApplyError> {
        self.clear_publish(index)?;
        Ok(self.clear_policy(index)?)
    }
}
