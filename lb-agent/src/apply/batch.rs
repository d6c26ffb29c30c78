//! Batches: first everything that is added, then everything that goes.
//!
//! In that order a frontend that moves from one Service port to another changes hands in one store.

use std::mem;

use lb_common::layout::FrontendKind;
use tracing::debug;

use super::frontends::frontend_keys;
use super::grow::Grown;
use super::key::TableKey;
use super::{Applier, ApplyError, Failure, Report};
use crate::dataplane::memory::TableMemory;
use crate::model::{KeyedSet, ObjectName};
use crate::plan::{PlanBatch, PlanChange, ServicePlan, ServicePortKey, ServicePortPlan};

/// What is left to do about a Service whose change failed.
#[derive(Debug)]
pub(super) enum Pending {
    /// To make the tables say this.
    Plan(ServicePlan),
    /// To remove it.
    Gone,
    /// To store its frontends: everything behind them is in the tables.
    Frontends,
}

impl Pending {
    const fn plan(&self) -> Option<&ServicePlan> {
        match self {
            Self::Plan(plan) => Some(plan),
            Self::Gone | Self::Frontends => None,
        }
    }
}

/// A claim that a new Service makes: it needs no more of its plan, and of tens of thousands not all are kept until the last
/// one is there.
#[derive(Debug)]
struct NewClaim {
    port: u32,
    key: TableKey,
    kind: FrontendKind,
}

/// A Service that was taken in and may have to be looked at again.
#[derive(Debug)]
struct Taken {
    service: ObjectName,
    pending: Pending,
    /// Ports of the plan that are in the tables and claim their frontends.
    grown: usize,
    /// What it has may be too much.
    shrinks: bool,
    error: Option<ApplyError>,
}

/// What was taken in since the last commit.
#[derive(Debug, Default)]
pub(super) struct Run {
    taken: Vec<Taken>,
    /// Claims of new Services, each with how many of `taken` came before it.
    new: Vec<(usize, NewClaim)>,
    /// How many Services these are.
    new_services: usize,
}

/// Whose frontends changed.
#[derive(Clone, Copy, Debug)]
enum Claimant {
    /// A place in [`Run::taken`].
    Taken(usize),
    /// A port of a new Service.
    New(u32),
}

impl<M: TableMemory> Applier<M> {
    /// Applies a batch, and what failed before. A Service that fails is reported and does not hold up the others;
    /// it is tried again with the next call.
    pub fn apply(&mut self, batch: PlanBatch) -> Report {
        for change in batch.changes {
            self.take(change);
        }
        self.commit(batch.full)
    }

    /// Takes in one change of a batch: its endpoints, lists and policies go into the tables, in which nothing leads to them
    /// yet unless the Service was there. [`Applier::commit`] has to follow when all changes are taken in.
    pub fn take(&mut self, change: PlanChange) {
        let PlanChange { service, plan, .. } = change;
        self.pending.remove(&service);
        self.take_pending(service, plan.map_or(Pending::Gone, Pending::Plan));
    }

    fn take_pending(&mut self, service: ObjectName, pending: Pending) {
        let mut taken = Taken { service, pending, grown: 0, shrinks: false, error: None };
        match &taken.pending {
            Pending::Plan(plan) => {
                let (grown, result) = self.grow(plan);
                taken.grown = grown;
                match result {
                    Ok(Grown::New) if self.is_whole(&taken.service) => return self.note_claims(plan),
                    Ok(Grown::New) => {}
                    Ok(Grown::Changed) => taken.shrinks = true,
                    Err(error) => taken.error = Some(error),
                }
            }
            Pending::Gone => taken.shrinks = true,
            Pending::Frontends => {}
        }
        self.run.taken.push(taken);
    }

    /// True when the last growing of a Service left nothing out.
    fn is_whole(&self, service: &ObjectName) -> bool {
        !self.closed.contains_key(service) && !self.by_chance.contains_key(service)
    }

    /// Notes what a new Service claims, instead of its plan.
    fn note_claims(&mut self, plan: &ServicePlan) {
        let before = self.run.taken.len();
        // They came in this order.
        for (port, index) in plan.ports.iter().zip(self.ports.of(&plan.service)) {
            let claims = frontend_keys(port).map(|(key, kind)| (before, NewClaim { port: index, key, kind }));
            self.run.new.extend(claims);
        }
        // One without ports leaves nothing behind.
        self.run.new_services += usize::from(!plan.ports.is_empty());
    }

    /// Tries again what failed before.
    pub fn retry(&mut self) -> Report {
        self.commit(false)
    }

    /// Makes everything that was taken in take effect, and what failed before. `full`: what was taken in is all there is,
    /// and every other Service goes.
    pub fn commit(&mut self, full: bool) -> Report {
        let pending = mem::take(&mut self.pending);
        if full {
            for service in self.others() {
                self.take_pending(service, Pending::Gone);
            }
        } else {
            for (service, pending) in pending {
                self.take_pending(service, pending);
            }
        }
        self.orphans.swept |= full;
        let Run { mut taken, new, .. } = mem::take(&mut self.run);
        self.add_frontends(&mut taken, new);
        self.remove(&mut taken);
        if let Err(error) = self.sweep_orphans() {
            debug!(%error, "leftovers of the previous agent stay for now");
        }
        // What had no room may have some now that others have gone, or by giving up its own old ports first.
        for Taken { service, pending, error, .. } in taken.iter_mut().filter(|taken| taken.error.is_some()) {
            *error = self.make_do(service, pending).err();
        }
        self.finish();
        self.warn_of_conflicts();
        let mut report = mem::take(&mut self.report);
        for Taken { service, pending, error, .. } in taken {
            if let Some(error) = error {
                self.closed.remove(&service);
                self.by_chance.remove(&service);
                report.failures.push(Failure { service: service.clone(), error });
                self.pending.insert(service, pending);
            } else if !self.is_whole(&service) {
                self.pending.insert(service, pending);
            }
        }
        // Everything of these is in the tables, only that nobody may use their VIPs, or that chance chooses.
        let by_chance = mem::take(&mut self.by_chance).into_iter();
        let unwhole = by_chance.chain(mem::take(&mut self.closed));
        report.failures.extend(unwhole.map(|(service, error)| Failure { service, error }));
        report
    }

    /// The Services in the tables that were not taken in, sorted.
    fn others(&self) -> Vec<ObjectName> {
        let Run { taken, new, new_services } = &self.run;
        let known = taken.iter().filter(|taken| self.ports.has(&taken.service)).count();
        if self.ports.service_count() == known + new_services {
            return Vec::new();
        }
        let new = new.iter().filter_map(|(_, claim)| Some(&self.port(claim.port)?.key.service));
        let named: KeyedSet<&ObjectName> = taken.iter().map(|taken| &taken.service).chain(new).collect();
        let others = self.ports.services().filter(|service| !named.contains(service));
        let mut others: Vec<ObjectName> = others.cloned().collect();
        others.sort_unstable();
        others
    }

    /// Makes every claim, then every store that they ask for: what was decided in between nobody may see.
    fn add_frontends(&mut self, taken: &mut Vec<Taken>, new: Vec<(usize, NewClaim)>) {
        self.claims.reserve(new.len());
        let mut changed = Vec::with_capacity(new.len());
        // Who changed them, and the end of what it changed.
        let mut runs: Vec<(Claimant, usize)> = Vec::with_capacity(new.len() + taken.len());
        let mut new = new.into_iter().peekable();
        for place in 0..=taken.len() {
            while let Some((_, NewClaim { port, key, kind })) = new.next_if(|(before, _)| *before <= place) {
                self.claim_frontend(port, key, kind, &mut changed);
                runs.push((Claimant::New(port), changed.len()));
            }
            match taken.get(place) {
                Some(Taken { pending: Pending::Plan(plan), grown, .. }) => {
                    self.claim_frontends(&plan.ports[..*grown], &mut changed);
                }
                Some(Taken { pending: Pending::Frontends, service, .. }) => {
                    changed.extend(self.frontends_of(service));
                }
                Some(Taken { pending: Pending::Gone, .. }) | None => {}
            }
            runs.push((Claimant::Taken(place), changed.len()));
        }
        let mut begin = 0;
        for (claimant, end) in runs {
            let keys = &changed[mem::replace(&mut begin, end)..end];
            let Err(error) = self.sync_frontends(keys) else { continue };
            match claimant {
                Claimant::Taken(place) => {
                    (taken[place].shrinks, taken[place].error) = (false, Some(error));
                }
                Claimant::New(port) => {
                    let Some(service) = self.port(port).map(|port| port.key.service.clone()) else {
                        continue;
                    };
                    match taken.last_mut().filter(|last| last.service == service) {
                        Some(last) => last.error = Some(error),
                        None => {
                            let (pending, error) = (Pending::Frontends, Some(error));
                            taken.push(Taken { service, pending, grown: 0, shrinks: false, error });
                        }
                    }
                }
            }
        }
    }

    /// Frontends that the ports of a Service claim.
    fn frontends_of(&self, service: &ObjectName) -> Vec<TableKey> {
        let ports = self.ports.of(service).filter_map(|index| self.port(index));
        ports.flat_map(|port| &port.frontends).copied().collect()
    }

    /// Removes what the plans do not have.
    fn remove(&mut self, taken: &mut [Taken]) {
        let mut leaving = Vec::new();
        for (place, Taken { service, pending, .. }) in
            taken.iter().enumerate().filter(|(_, taken)| taken.shrinks)
        {
            let gone = self.leaving(service, pending.plan());
            let changed = self.withdraw(&gone);
            leaving.push((place, gone, changed));
        }
        for (place, gone, changed) in leaving {
            let Taken { service, pending, error, .. } = &mut taken[place];
            let released = self.release(&gone, changed);
            if let Err(found) = released.and_then(|()| self.shrink(service, pending.plan())) {
                *error = Some(found);
            }
        }
    }

    /// What belongs to no Service alone: it is made up for now or with the next call.
    fn finish(&mut self) {
        let stale: Vec<_> = mem::take(&mut self.stale_frontends).into_iter().collect();
        if let Err(error) = self.sync_frontends(&stale) {
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

    fn make_do(&mut self, service: &ObjectName, pending: &Pending) -> Result<(), ApplyError> {
        let plan = pending.plan();
        if let Some(plan) = plan {
            self.remove_ports(service, |key| find_port(plan, key).is_none())?;
            let (done, result) = self.grow(plan);
            let mut changed = Vec::new();
            self.claim_frontends(&plan.ports[..done], &mut changed);
            self.sync_frontends(&changed)?;
            result?;
        } else if matches!(pending, Pending::Frontends) {
            return self.sync_frontends(&self.frontends_of(service));
        }
        self.release_frontends(&self.leaving(service, plan))?;
        self.shrink(service, plan)
    }
}

/// The port of a plan with that key.
pub(super) fn find_port<'a>(plan: &'a ServicePlan, key: &ServicePortKey) -> Option<&'a ServicePortPlan> {
    plan.ports.iter().find(|port| port.key == *key)
}
