//! Frontends: who wants them, who has them, and what the tables say.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::layout::{Class, FrontendKind, HAS_ENDPOINTS, SCOPE_SERVICE};
use tracing::warn;

use super::claims::Claim;
use super::key::TableKey;
use super::writer::FrontendChange;
use super::{Applier, ApplyError, Conflict};
use crate::dataplane::memory::TableMemory;
use crate::plan::ServicePortPlan;

/// Frontends that a Service port gives up.
pub(super) struct Leaving {
    /// Index of the port.
    pub(super) port: u32,
    pub(super) frontends: Vec<TableKey>,
}

impl<M: TableMemory> Applier<M> {
    /// Frontends that several Service ports want. A node port also loses, at one address of the node, to an external IP
    /// or load balancer VIP that is this address: look-ups go by the exact address first.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let key = |index: &u32| self.port(*index).map(|port| port.key.clone());
        let conflict = |(frontend, owner, losers): (TableKey, u32, Vec<u32>)| {
            Some(Conflict { frontend, owner: key(&owner)?, losers: losers.iter().filter_map(key).collect() })
        };
        self.contested().into_iter().filter_map(conflict).collect()
    }

    fn contested(&self) -> Vec<(TableKey, u32, Vec<u32>)> {
        let mut contested = self.claims.contested();
        for (key, _) in self.node_addresses().flat_map(|address| self.claims.at(address)) {
            let node_port = TableKey::node_port(key.family(), key.port, key.protocol);
            if let (Some(owner), Some(loser)) = (self.claims.owner(&key), self.claims.owner(&node_port))
                && loser.port != owner.port
            {
                contested.push((key, owner.port, vec![loser.port]));
            }
        }
        contested
    }

    /// Claims the frontends of these ports. Adds those that may have to change to `changed`: the tables follow with
    /// [`Applier::sync_frontends`] when every claim of the batch is made, because a claim of one port decides over
    /// frontends of others, and nobody may see what was decided in between.
    pub(super) fn claim_frontends(&mut self, ports: &[ServicePortPlan], changed: &mut Vec<TableKey>) {
        for port in ports {
            if let Some(index) = self.service_index(&port.key) {
                for (key, kind) in frontend_keys(port) {
                    self.claim_frontend(index, key, kind, changed);
                }
            }
        }
    }

    /// Claims one frontend, as [`Applier::claim_frontends`] does.
    pub(super) fn claim_frontend(
        &mut self,
        index: u32,
        key: TableKey,
        kind: FrontendKind,
        changed: &mut Vec<TableKey>,
    ) {
        let Self { claims, ports, .. } = self;
        if let Some(port) = ports.get_mut(index)
            && !port.frontends.contains(&key)
        {
            port.frontends.push(key);
        }
        let rank = |claimant| {
            let port = ports.get(claimant);
            // Whose age is not known comes last.
            let created = port.and_then(|port| port.created);
            (Reverse(created.map(Reverse)), port.map(|port| port.key.clone()))
        };
        claims.claim(key, Claim { port: index, kind }, rank, changed);
    }

    /// Gives up the claims on frontends. Returns the frontends that may have to change, as
    /// [`Applier::claim_frontends`] does, and for the same reason.
    pub(super) fn withdraw(&mut self, leaving: &[Leaving]) -> Vec<TableKey> {
        let all =
            leaving.iter().flat_map(|Leaving { port, frontends }| frontends.iter().map(|key| (*port, key)));
        let mut changed = Vec::new();
        for (port, key) in all {
            self.claims.release(key, port, &mut changed);
        }
        changed
    }

    /// Makes the tables agree with what [`Applier::withdraw`] decided, and forgets the frontends.
    pub(super) fn release(&mut self, leaving: &[Leaving], changed: Vec<TableKey>) -> Result<(), ApplyError> {
        self.sync_frontends(&changed)?;
        for Leaving { port, frontends } in leaving {
            if let Some(port) = self.port_mut(*port) {
                port.frontends.retain(|key| !frontends.contains(key));
            }
        }
        Ok(())
    }

    /// Gives up frontends at once.
    pub(super) fn release_frontends(&mut self, leaving: &[Leaving]) -> Result<(), ApplyError> {
        let changed = self.withdraw(leaving);
        self.release(leaving, changed)
    }

    /// Makes the tables agree with the claims on these frontends. What fails is kept for the next call.
    pub(super) fn sync_frontends(&mut self, keys: &[TableKey]) -> Result<(), ApplyError> {
        let mut result = Ok(());
        for key in keys {
            match self.sync_frontend(key) {
                Ok(()) => {
                    self.stale_frontends.remove(key);
                }
                Err(error) => {
                    self.stale_frontends.insert(*key);
                    result = Err(error);
                }
            }
        }
        result
    }

    /// Makes the tables agree with the claims on a frontend, and on its address.
    fn sync_frontend(&mut self, key: &TableKey) -> Result<(), ApplyError> {
        let wanted = self.claims.owner(key).map(Claim::value);
        let changed = self.writer.set_frontend(key, wanted);
        // Of what failed a part may be done.
        self.epoch_due |= !matches!(changed, Ok(None));
        changed?;
        if key.scope != SCOPE_SERVICE {
            return Ok(());
        }
        self.sync_address(key.address)
    }

    /// Makes the tables say whether an address is a cluster IP, and whether that has endpoints.
    fn sync_address(&mut self, address: IpAddr) -> Result<(), ApplyError> {
        let key = TableKey::address(address);
        let changed = self.writer.set_frontend(&key, self.address_value(address));
        // Programs remember whose an address is, and not what its entry says.
        self.epoch_due |= !matches!(changed, Ok(None | Some(FrontendChange::Value)));
        changed?;
        self.stale_addresses.remove(&address);
        Ok(())
    }

    /// The entry of an address: none unless it is a cluster IP; its value says whether any port there has endpoints.
    pub(super) fn address_value(&self, address: IpAddr) -> Option<u32> {
        if !self.claims.is_cluster_ip(&address) {
            return None;
        }
        let has_endpoints = |claim: &Claim| {
            let publish = self.published(claim.port, Class::Internal);
            claim.is_cluster_ip() && publish.algorithm().is_some()
        };
        let has_endpoints = self.claims.at(address).any(|(_, claim)| has_endpoints(&claim));
        Some(if has_endpoints { HAS_ENDPOINTS } else { 0 })
    }

    /// A port has its first endpoint for its cluster IPs, or its last one no more: their entries follow with
    /// [`Applier::sync_addresses`].
    pub(super) fn endpoints_came_or_went(&mut self, index: u32) {
        let Some(port) = self.port(index) else { return };
        let addresses = port.frontends.iter().map(|key| key.address);
        let addresses: Vec<IpAddr> = addresses.filter(|address| self.claims.is_cluster_ip(address)).collect();
        self.stale_addresses.extend(addresses);
    }

    /// Makes the entries of addresses agree with the lists. What fails is kept for the next call.
    pub(super) fn sync_addresses(&mut self) -> Result<(), ApplyError> {
        let stale: Vec<IpAddr> = self.stale_addresses.iter().copied().collect();
        stale.into_iter().try_for_each(|address| self.sync_address(address))
    }

    pub(super) fn warn_of_conflicts(&mut self) {
        let contested: BTreeMap<TableKey, u32> =
            self.contested().into_iter().map(|(key, owner, _)| (key, owner)).collect();
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

/// The keys of a port's frontends in the tables.
pub(super) fn frontend_keys(plan: &ServicePortPlan) -> impl Iterator<Item = (TableKey, FrontendKind)> {
    let (family, protocol) = (plan.key.family, plan.key.protocol.number());
    plan.frontends().map(move |frontend| {
        let key = match frontend.kind {
            FrontendKind::NodePort => TableKey::node_port(family, frontend.port, protocol),
            _ => TableKey::service(frontend.address, frontend.port, protocol),
        };
        (key, frontend.kind)
    })
}
