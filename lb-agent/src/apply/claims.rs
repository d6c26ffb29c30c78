//! Who owns a frontend: every Service port that wants it claims it, one owns it (S-83).
//!
//! A cluster IP is stronger than an external IP or load balancer VIP, whoever is older: those addresses anyone may write
//! into a Service, cluster IPs are allocated (CVE-2020-8554). This holds for all ports of the address: what is some
//! Service's cluster IP is no other Service's external address.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::layout::{FrontendKind, FrontendValue, SCOPE_SERVICE};

use super::key::TableKey;
use crate::model::KeyedMap;

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

/// A frontend of an address: port, protocol, scope.
type Place = (u16, u8, u8);

const fn place(key: &TableKey) -> Place {
    (key.port, key.protocol, key.scope)
}

/// The first claim on each frontend of an address. Most addresses have one.
#[derive(Debug)]
struct Owners {
    /// The smallest.
    first: (Place, Claim),
    #[expect(clippy::box_collection, reason = "hardly any address has others: a word instead of three")]
    others: Option<Box<BTreeMap<Place, Claim>>>,
    /// How many of the claims are on a cluster IP.
    cluster_ips: u32,
}

impl Owners {
    fn get(&self, place: Place) -> Option<Claim> {
        if self.first.0 == place { Some(self.first.1) } else { self.others.as_ref()?.get(&place).copied() }
    }

    fn iter(&self) -> impl Iterator<Item = (Place, Claim)> {
        let others = self.others.iter().flat_map(|others| others.iter());
        std::iter::once(self.first).chain(others.map(|(place, claim)| (*place, *claim)))
    }

    fn insert(&mut self, place: Place, claim: Claim) {
        let before = self.get(place).is_some_and(Claim::is_cluster_ip);
        self.cluster_ips = self.cluster_ips + u32::from(claim.is_cluster_ip()) - u32::from(before);
        if place == self.first.0 {
            self.first.1 = claim;
            return;
        }
        let smaller = self.first.0.min(place);
        let (place, claim) = if smaller == place {
            std::mem::replace(&mut self.first, (place, claim))
        } else {
            (place, claim)
        };
        self.others.get_or_insert_default().insert(place, claim);
    }

    /// Removes a claim; false when it was the last one, which then stays.
    fn remove(&mut self, place: Place) -> bool {
        let cluster_ip = self.get(place).is_some_and(Claim::is_cluster_ip);
        if place == self.first.0 {
            let Some(next) = self.others.as_mut().and_then(|others| others.pop_first()) else { return false };
            self.first = next;
        } else if let Some(others) = &mut self.others {
            others.remove(&place);
        }
        self.others.take_if(|others| others.is_empty());
        self.cluster_ips -= u32::from(cluster_ip);
        true
    }
}

/// Claims on frontends.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The first claim on each frontend, by address. A cluster IP's goes before all others, so that an address is one when a
    /// first claim says so.
    owners: KeyedMap<IpAddr, Owners>,
    /// The others that want it, in their order; few frontends have any.
    losers: BTreeMap<TableKey, Vec<Claim>>,
    /// Frontends nobody gets, because their address is a cluster IP.
    blocked: BTreeSet<TableKey>,
}

impl Claims {
    /// Who has a frontend.
    pub(super) fn owner(&self, key: &TableKey) -> Option<Claim> {
        if self.blocked.contains(key) { None } else { self.first(key) }
    }

    /// The first claim on a frontend.
    fn first(&self, key: &TableKey) -> Option<Claim> {
        self.owners.get(&key.address)?.get(place(key))
    }

    /// True when some Service port wants the frontend.
    pub(super) fn is_claimed(&self, key: &TableKey) -> bool {
        self.first(key).is_some()
    }

    /// True when the address is some Service's cluster IP.
    pub(super) fn is_cluster_ip(&self, address: &IpAddr) -> bool {
        self.owners.get(address).is_some_and(|owners| owners.cluster_ips > 0)
    }

    /// Adds a claim or changes its kind, and decides anew who owns the frontend: the one that `rank` puts first, of
    /// those that want it as a cluster IP, if there are any. Adds the frontends that may have to change to `changed`.
    pub(super) fn claim<R: Ord>(
        &mut self,
        key: TableKey,
        claim: Claim,
        rank: impl Fn(u32) -> R,
        changed: &mut Vec<TableKey>,
    ) {
        let owner = self.first(&key);
        if !self.losers.contains_key(&key) && owner.is_none_or(|owner| owner.port == claim.port) {
            match owner == Some(claim) {
                true => changed.push(key),
                false => self.set_owner(key, Some(claim), changed),
            }
            return;
        }
        let mut all = self.all(&key);
        all.retain(|other| other.port != claim.port);
        all.push(claim);
        // The stronger kind first; all kinds but cluster IPs are alike.
        all.sort_by_cached_key(|claim| (!claim.is_cluster_ip(), rank(claim.port)));
        self.set(key, all, changed);
    }

    /// Withdraws a claim, if there is one; the frontend goes to the next. Adds the frontends that may have to change to
    /// `changed`.
    pub(super) fn release(&mut self, key: &TableKey, port: u32, changed: &mut Vec<TableKey>) {
        let mut all = self.all(key);
        all.retain(|other| other.port != port);
        self.set(*key, all, changed);
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
            let owner = self.first(key)?;
            Some((*key, owner.port, ports(losers.clone())))
        });
        blocked.chain(contested).collect()
    }

    /// The frontends of an address, each with its first claim, sorted.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = (TableKey, Claim)> {
        let key = move |(port, protocol, scope)| TableKey { address, port, protocol, scope };
        let owners = self.owners.get(&address).into_iter().flat_map(Owners::iter);
        owners.map(move |(place, claim)| (key(place), claim))
    }

    /// Makes room for so many more addresses.
    pub(super) fn reserve(&mut self, more: usize) {
        self.owners.reserve(more);
    }

    /// Every claim on a frontend, in their order.
    fn all(&self, key: &TableKey) -> Vec<Claim> {
        let losers = self.losers.get(key).map(Vec::as_slice).unwrap_or_default();
        self.first(key).into_iter().chain(losers.iter().copied()).collect()
    }

    fn set(&mut self, key: TableKey, mut all: Vec<Claim>, changed: &mut Vec<TableKey>) {
        self.losers.remove(&key);
        let owner = (!all.is_empty()).then(|| all.remove(0));
        if !all.is_empty() {
            self.losers.insert(key, all);
        }
        self.set_owner(key, owner, changed);
    }

    fn set_owner(&mut self, key: TableKey, owner: Option<Claim>, changed: &mut Vec<TableKey>) {
        let was = self.is_cluster_ip(&key.address);
        let place = place(&key);
        match (self.owners.entry(key.address), owner) {
            (Entry::Occupied(mut owners), Some(claim)) => owners.get_mut().insert(place, claim),
            (Entry::Vacant(none), Some(claim)) => {
                let cluster_ips = u32::from(claim.is_cluster_ip());
                none.insert(Owners { first: (place, claim), others: None, cluster_ips });
            }
            (Entry::Occupied(mut owners), None) => {
                if owners.get().get(place).is_some() && !owners.get_mut().remove(place) {
                    owners.remove();
                }
            }
            (Entry::Vacant(_), None) => {}
        }
        let from = changed.len();
        changed.push(key);
        let is = self.is_cluster_ip(&key.address);
        if was != is {
            changed.extend(self.at(key.address).map(|(other, _)| other).filter(|other| *other != key));
        }
        for key in &changed[from..] {
            let external = self.first(key).is_some_and(|claim| !claim.is_cluster_ip());
            if external && key.scope == SCOPE_SERVICE && is {
                self.blocked.insert(*key);
            } else {
                self.blocked.remove(key);
            }
        }
    }
}
