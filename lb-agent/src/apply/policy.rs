//! The policy of a Service port: affinity, whose source address is kept, and who may use load balancer VIPs (S-34).
//!
//! Source ranges lie in runs of rows. A new run is written first, then the word that names it, then the flag that says
//! that there are any; in the other direction the flag goes first. So every source is let in by the old ranges or by
//! the new ones at any moment. Ranges that cannot be stored are replaced by none at all with the flag set: then the
//! VIPs are open to nobody, since being open to everybody is what the ranges are to prevent.

use lb_common::address::{Ip4, Ip6};
use lb_common::layout::{Family as LayoutFamily, FrontendKind, Policy, Service, SourceRanges, Table, V4, V6};

use super::frontends::{Leaving, frontend_keys};
use super::key::TableKey;
use super::ranges;
use super::{Applier, ApplyError};
use crate::dataplane::memory::{HostTables, StoreError, TableMemory};
use crate::model::{Cidr, Family};
use crate::plan::ServicePortPlan;

const RESTRICTED: u32 = Policy::SOURCE_RANGES | Policy::HOST_ALLOWED;

impl<M: TableMemory> Applier<M> {
    /// What has to be true before lists change: a list of remote endpoints is never used without masquerade, or their
    /// answers would not come back this way.
    pub(super) fn before_publishing(&mut self, index: u32, plan: &ServicePortPlan) -> Result<(), StoreError> {
        let keeps = plan.external.as_ref().is_some_and(|external| external.preserve_source);
        if keeps { Ok(()) } else { self.change_policy(index, Policy::PRESERVE_SOURCE, 0, None) }
    }

    /// Stores affinity, and that the source is kept once the lists are there.
    pub(super) fn sync_policy(&mut self, index: u32, plan: &ServicePortPlan) -> Result<(), StoreError> {
        let keeps = plan.external.as_ref().is_some_and(|external| external.preserve_source);
        let set = if keeps { Policy::PRESERVE_SOURCE } else { 0 };
        let host = if self.policy(index).flags & Policy::SOURCE_RANGES != 0 && self.host_is_allowed(index) {
            Policy::HOST_ALLOWED
        } else {
            0
        };
        let mask = Policy::PRESERVE_SOURCE | Policy::HOST_ALLOWED;
        self.change_policy(index, mask, set | host, Some(plan.affinity_timeout.unwrap_or(0)))
    }

    /// Makes the row say which sources may use the VIPs.
    pub(super) fn sync_sources(&mut self, index: u32, plan: &ServicePortPlan) -> Result<(), ApplyError> {
        let wanted = plan.external.as_ref().map(|external| external.source_ranges.as_slice());
        let wanted = wanted.unwrap_or_default();
        let restricted = self.policy(index).flags & Policy::SOURCE_RANGES != 0;
        if restricted != wanted.is_empty() && self.holds_sources(index, wanted) {
            return Ok(());
        }
        self.release_leaving_vips(index, plan)?;
        if wanted.is_empty() {
            self.change_policy(index, RESTRICTED, 0, None)?;
            return Ok(self.store_sources(index, SourceRanges::default())?);
        }
        let mut written = self.write_sources(wanted, plan);
        if matches!(written, Err(ApplyError::TableFull { .. })) && restricted {
            // Closed for as long as it takes, its own old rows may be enough.
            self.store_sources(index, SourceRanges::default())?;
            written = self.write_sources(wanted, plan);
        }
        let run = match written {
            Ok(run) => run,
            Err(ApplyError::Store(error)) => return Err(error.into()),
            Err(error) => {
                self.closed.insert(plan.key.service.clone(), error);
                SourceRanges::default()
            }
        };
        if let Err(error) = self.store_sources(index, run) {
            if run.count > 0 {
                self.writer.sources.give_back(run.first, run.count);
            }
            return Err(error.into());
        }
        // What the row says of the node was said of other ranges.
        let host = self.local_addresses().is_some() && self.host_is_allowed(index);
        let host = if host { Policy::HOST_ALLOWED } else { 0 };
        Ok(self.change_policy(index, RESTRICTED, Policy::SOURCE_RANGES | host, None)?)
    }

    /// Frees the row of everything but its generation.
    pub(super) fn clear_policy(&mut self, index: u32) -> Result<(), StoreError> {
        self.change_policy(index, Policy::PRESERVE_SOURCE | RESTRICTED, 0, Some(0))?;
        self.store_sources(index, SourceRanges::default())
    }

    /// Decides anew, for every restricted Service port, whether processes of the node may use its VIPs.
    pub(super) fn sync_hosts(&mut self) -> Result<(), StoreError> {
        for index in 0..self.ports.end() {
            if self.port(index).is_none() || self.policy(index).flags & Policy::SOURCE_RANGES == 0 {
                continue;
            }
            let host = if self.host_is_allowed(index) { Policy::HOST_ALLOWED } else { 0 };
            self.change_policy(index, Policy::HOST_ALLOWED, host, None)?;
        }
        Ok(())
    }

    /// The run of source ranges that a row names.
    pub(super) fn sources(&self, index: u32) -> SourceRanges {
        SourceRanges::decode(self.writer.memory.load(Table::Services, index, Service::SOURCE_RANGES))
    }

    pub(super) fn policy(&self, index: u32) -> Policy {
        Policy::decode(self.writer.memory.load(Table::Services, index, Service::POLICY))
    }

    /// Sets those of the flags in `mask` that are in `set`, clears the others of them; with a timeout, sets that too.
    fn change_policy(
        &self,
        index: u32,
        mask: u32,
        set: u32,
        affinity_timeout: Option<u32>,
    ) -> Result<(), StoreError> {
        let now = self.policy(index);
        let affinity_timeout = affinity_timeout.unwrap_or(now.affinity_timeout);
        let wanted = Policy { affinity_timeout, flags: now.flags & !mask | set };
        if now == wanted {
            return Ok(());
        }
        self.writer.memory.store(Table::Services, index, Service::POLICY, wanted.encode())
    }

    /// VIPs that go while the ranges change are gone before: else a source that only the new ranges have could use them
    /// for a moment.
    fn release_leaving_vips(&mut self, index: u32, plan: &ServicePortPlan) -> Result<(), ApplyError> {
        let Some(port) = self.port(index) else { return Ok(()) };
        let stays = |key: &TableKey| frontend_keys(plan).any(|(other, _)| other == *key);
        let is_vip = |key: &TableKey| self.claims.kind(key, index) == Some(FrontendKind::LoadBalancer);
        let frontends = port.frontends.iter().filter(|key| is_vip(key) && !stays(key)).copied().collect();
        self.release_frontends(&[Leaving { port: index, frontends }])
    }

    fn write_sources(&mut self, wanted: &[Cidr], plan: &ServicePortPlan) -> Result<SourceRanges, ApplyError> {
        let Some(count) = u32::try_from(wanted.len()).ok().filter(|count| *count <= SourceRanges::MAX) else {
            let (service, count) = (plan.key.to_string(), wanted.len());
            return Err(ApplyError::TooManySources { service, count, max: SourceRanges::MAX });
        };
        let first = self.writer.allocate_sources(count)?;
        for (row, range) in (first..).zip(wanted) {
            if let Err(error) = ranges::write(&self.writer.memory, Table::SourceRanges, row, *range) {
                self.writer.sources.give_back(first, count);
                return Err(error.into());
            }
        }
        Ok(SourceRanges { first, count })
    }

    fn store_sources(&mut self, index: u32, run: SourceRanges) -> Result<(), StoreError> {
        let before = self.sources(index);
        if before == run {
            return Ok(());
        }
        self.writer.memory.store(Table::Services, index, Service::SOURCE_RANGES, run.encode())?;
        if before.count > 0 {
            self.writer.sources.retire(before.first, before.count);
        }
        Ok(())
    }

    fn holds_sources(&self, index: u32, wanted: &[Cidr]) -> bool {
        let run = self.sources(index);
        let same = |(row, range): (u32, &Cidr)| {
            ranges::load(&self.writer.memory, Table::SourceRanges, row) == ranges::row(*range)
        };
        run.count as usize == wanted.len() && (run.first..).zip(wanted).all(same)
    }

    /// True when one of the row's ranges has an address of the node (S-34). Until those are known, what the row says
    /// holds, and new rows say no.
    fn host_is_allowed(&self, index: u32) -> bool {
        let Some(local) = self.local_addresses() else {
            return self.policy(index).flags & Policy::HOST_ALLOWED != 0;
        };
        let Some(family) = self.port(index).map(|port| port.key.family) else { return false };
        let (tables, run) = (HostTables(&self.writer.memory), self.sources(index));
        local.iter().any(|address| match (address, family) {
            (std::net::IpAddr::V4(address), Family::V4) => {
                V4::in_source_ranges(&tables, run, Ip4::from(*address))
            }
            (std::net::IpAddr::V6(address), Family::V6) => {
                V6::in_source_ranges(&tables, run, Ip6::from(*address))
            }
            _ => false,
        })
    }
}
