//! Who owns a frontend: every Service port that wants it claims it, one owns it (S-83).
//!
//! A cluster IP is stronger than an external IP or load balancer VIP, whoever is older: those addresses anyone may write
//! into a Service, cluster IPs are allocated (CVE-2020-8554). This holds for all ports of the address: what is some
//! Service's cluster IP is no other Service's external address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::layout::{FrontendKind, FrontendValue, SCOPE_SERVICE};

use super::key::TableKey;

/// What a Service port, named by its index, wants of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) port: u32,
    pub(super) kind: FrontendKind,
}

impl Claim {
    /// What the frontend table says when the claim is granted.
    pub(super) const fn value(self) -> u32 {
        FrontendValue { service: self.port, kind: self.kind }.encode()
    }

    pub(super) const fn is_cluster_ip(self) -> bool {
        matches!(self.kind, FrontendKind::ClusterIp)
    }
}

/// Claims on frontends.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The first claim on each frontend.
    owners: BTreeMap<TableKey, Claim>,
    /// The others that want it, in their order; few frontends have any.
    losers: BTreeMap<TableKey, Vec<Claim>>,
    /// Claims on ports of a cluster IP, all protocols.
    cluster_ips: HashMap<IpAddr, u32>,
    /// Frontends nobody gets, because their address is a cluster IP.
    blocked: BTreeSet<TableKey>,
}

impl Claims {
    /// Who has a frontend.
    pub(super) fn owner(&self, key: &TableKey) -> Option<Claim> {
        if self.blocked.contains(key) { None } else { self.owners.get(key).copied() }
    }

    /// True when some Service port wants the frontend.
    pub(super) fn is_claimed(&self, key: &TableKey) -> bool {
        self.owners.contains_key(key)
    }

    /// True when the address is some Service's cluster IP.
    pub(super) fn is_cluster_ip(&self, address: &IpAddr) -> bool {
        self.cluster_ips.contains_key(address)
    }

    /// Adds a claim or changes its kind, and decides anew who owns the frontend: the one that `rank` puts first, of
    /// those that want it as a cluster IP, if there are any. Returns the frontends that may have to change.
    pub(super) fn claim<R: Ord>(
        &mut self,
        key: TableKey,
        claim: Claim,
        rank: impl Fn(u32) -> R,
    ) -> Vec<TableKey> {
        let owner = self.owners.get(&key).copied();
        if owner == Some(claim) && !self.losers.contains_key(&key) {
            return vec![key];
        }
        let mut all = self.all(&key);
        all.retain(|other| other.port != claim.port);
        all.push(claim);
        // The stronger kind first; all kinds but cluster IPs are alike.
        all.sort_by_cached_key(|claim| (!claim.is_cluster_ip(), rank(claim.port)));
        self.set(key, all)
    }

    /// Withdraws a claim, if there is one; the frontend goes to the next. Returns the frontends that may have to change.
    pub(super) fn release(&mut self, key: &TableKey, port: u32) -> Vec<TableKey> {
        let mut all = self.all(key);
        all.retain(|other| other.port != port);
        self.set(*key, all)
    }

    /// How a Service port wants a frontend.
    pub(super) fn kind(&self, key: &TableKey, port: u32) -> Option<FrontendKind> {
        self.all(key).into_iter().find(|claim| claim.port == port).map(|claim| claim.kind)
    }

    /// Contested frontends with who has it and who would like to; of a blocked one, a Service port with the cluster IP.
    pub(super) fn contested(&self) -> Vec<(TableKey, u32, Vec<u32>)> {
        let ports = |claims: Vec<Claim>| claims.into_iter().map(|claim| claim.port).collect();
        let blocked = self.blocked.iter().filter_map(|key| {
            let owner = self.at(key.address).find(|(_, claim)| claim.is_cluster_ip())?.1;
            Some((*key, owner.port, ports(self.all(key))))
        });
        let others = self.losers.iter().filter(|(key, _)| !self.blocked.contains(key));
        let contested = others.filter_map(|(key, losers)| {
            let owner = self.owners.get(key)?;
            Some((*key, owner.port, ports(losers.clone())))
        });
        blocked.chain(contested).collect()
    }

    /// The frontends of an address, each with its first claim.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = (&TableKey, &Claim)> {
        let first = TableKey { address, port: 0, protocol: 0, scope: 0 };
        let last = TableKey { address, port: u16::MAX, protocol: u8::MAX, scope: u8::MAX };
        self.owners.range(first..=last)
    }

    /// Every claim on a frontend, in their order.
    fn all(&self, key: &TableKey) -> Vec<Claim> {
        let losers = self.losers.get(key).map(Vec::as_slice).unwrap_or_default();
        self.owners.get(key).into_iter().chain(losers).copied().collect()
    }

    fn set(&mut self, key: TableKey, mut all: Vec<Claim>) -> Vec<TableKey> {
        let count = |claims: &[Claim]| claims.iter().filter(|claim| claim.is_cluster_ip()).count() as u32;
        let (before, after) = (count(&self.all(&key)), count(&all));
        self.losers.remove(&key);
        if all.is_empty() {
            self.owners.remove(&key);
        } else {
            self.owners.insert(key, all.remove(0));
            if !all.is_empty() {
                self.losers.insert(key, all);
            }
        }
        let mut changed = vec![key];
        if before != after {
            let claims = self.cluster_ips.entry(key.address).or_default();
            let was = *claims > 0;
            *claims = *claims - before + after;
            let is = *claims > 0;
            if !is {
                self.cluster_ips.remove(&key.address);
            }
            if was != is {
                changed.extend(self.at(key.address).map(|(other, _)| *other).filter(|other| *other != key));
            }
        }
        for key in &changed {
            let external = self.owners.get(key).is_some_and(|claim| !claim.is_cluster_ip());
            if external && key.scope == SCOPE_SERVICE && self.is_cluster_ip(&key.address) {
                self.blocked.insert(*key);
            } else {
                self.blocked.remove(key);
            }
        }
        changed
    }
}
