//! Batches: first everything that is added, then everything that goes.
//!
//! In that order a frontend that moves from one Service port to another changes hands in one store.

use std::collections::HashSet;
use std::mem;

use tracing::debug;

use super::grow::Grown;
use super::{Applier, ApplyError, Failure, Report};
use crate::dataplane::memory::TableMemory;
use crate::model::ObjectName;
use crate::plan::{PlanBatch, ServicePlan, ServicePortKey, ServicePortPlan};

/// A Service and its plan; `None` = gone.
type Wanted = (ObjectName, Option<ServicePlan>);

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
        let to_shrink = self.add(&wanted, &mut failed);
        self.remove(&wanted, to_shrink, &mut failed);
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
        self.finish();
        self.warn_of_conflicts();
        let mut report = mem::take(&mut self.report);
        for (at, error) in failed {
            let (service, plan) = &wanted[at];
            self.closed.remove(service);
            self.by_chance.remove(service);
            report.failures.push(Failure { service: service.clone(), error });
            self.pending.insert(service.clone(), plan.clone());
        }
        // Everything of these is in the tables, only that nobody may use their VIPs, or that chance chooses.
        let by_chance = mem::take(&mut self.by_chance);
        for (service, error) in by_chance.into_iter().chain(mem::take(&mut self.closed)) {
            if let Some((_, plan)) = wanted.iter().find(|(name, _)| *name == service) {
                self.pending.insert(service.clone(), plan.clone());
            }
            report.failures.push(Failure { service, error });
        }
        report
    }

    /// Adds what the plans have. Returns the Services that may have too much afterwards.
    fn add(&mut self, wanted: &[Wanted], failed: &mut Vec<(usize, ApplyError)>) -> Vec<usize> {
        let mut to_shrink = Vec::new();
        let mut grown = Vec::new();
        for (at, (_, plan)) in wanted.iter().enumerate() {
            let Some(plan) = plan else {
                to_shrink.push(at);
                continue;
            };
            let (done, result) = self.grow(plan);
            grown.push((at, &plan.ports[..done]));
            match result {
                Ok(Grown::New) => {}
                Ok(Grown::Changed) => to_shrink.push(at),
                Err(error) => failed.push((at, error)),
            }
        }
        let changed: Vec<_> =
            grown.into_iter().map(|(at, ports)| (at, self.claim_frontends(ports))).collect();
        for (at, keys) in changed {
            if let Err(error) = self.sync_frontends(keys) {
                to_shrink.retain(|other| *other != at);
                failed.retain(|(other, _)| *other != at);
                failed.push((at, error));
            }
        }
        to_shrink
    }

    /// Removes what the plans do not have.
    fn remove(&mut self, wanted: &[Wanted], to_shrink: Vec<usize>, failed: &mut Vec<(usize, ApplyError)>) {
        let leaving: Vec<_> = to_shrink
            .into_iter()
            .map(|at| {
                let (service, plan) = &wanted[at];
                let leaving = self.leaving(service, plan.as_ref());
                let changed = self.withdraw(&leaving);
                (at, leaving, changed)
            })
            .collect();
        for (at, leaving, changed) in leaving {
            let (service, plan) = &wanted[at];
            let released = self.release(&leaving, changed);
            if let Err(error) = released.and_then(|()| self.shrink(service, plan.as_ref())) {
                failed.push((at, error));
            }
        }
    }

    /// What belongs to no Service alone: it is made up for now or with the next call.
    fn finish(&mut self) {
        let stale: Vec<_> = mem::take(&mut self.stale_frontends).into_iter().collect();
        if let Err(error) = self.sync_frontends(stale) {
            debug!(%error, "frontends not stored, next time");
        }
        if let Err(error) = self.sync_addresses() {
            debug!(%error, "whether cluster IPs have endpoints is not stored, next time");
        }
        if let Err(error) = self.sync_nodes() {
            debug!(%error, "addresses of the node not stored, next time");
        }
        if let Err(error) = self.sync_ways() {
            debug!(%error, "ways or epoch not stored, next time");
        }
    }

    fn make_do(&mut self, service: &ObjectName, plan: Option<&ServicePlan>) -> Result<(), ApplyError> {
        if let Some(plan) = plan {
            self.remove_ports(service, |key| find_port(plan, key).is_none())?;
            let (done, result) = self.grow(plan);
            let changed = self.claim_frontends(&plan.ports[..done]);
            self.sync_frontends(changed)?;
            result?;
        }
        self.release_frontends(&self.leaving(service, plan))?;
        self.shrink(service, plan)
    }
}

/// The port of a plan with that key.
pub(super) fn find_port<'a>(plan: &'a ServicePlan, key: &ServicePortKey) -> Option<&'a ServicePortPlan> {
    plan.ports.iter().find(|port| port.key == *key)
}
