//! Who owns a frontend: every Service port that wants it claims it, one owns it (S-83).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::key::TableKey;

/// Claims on frontends by Service ports, which are named by their index.
#[derive(Debug, Default)]
pub(super) struct Claims {
    owners: HashMap<TableKey, u32>,
    /// The others that want it; few frontends have any.
    losers: BTreeMap<TableKey, Vec<u32>>,
    /// Claims on ports of an address, all protocols.
    addresses: HashMap<IpAddr, u32>,
}

impl Claims {
    /// The owner of a frontend.
    pub(super) fn owner(&self, key: &TableKey) -> Option<u32> {
        self.owners.get(key).copied()
    }

    /// True when some Service has the address.
    pub(super) fn has_address(&self, address: &IpAddr) -> bool {
        self.addresses.contains_key(address)
    }

    /// Adds a claim, if it is new, and decides anew who owns the frontend: the one that `rank` puts first.
    pub(super) fn claim<R: Ord>(&mut self, key: TableKey, port: u32, rank: impl Fn(u32) -> R) {
        let Some(owner) = self.owners.get_mut(&key) else {
            self.owners.insert(key, port);
            *self.addresses.entry(key.address).or_default() += 1;
            return;
        };
        if *owner == port && !self.losers.contains_key(&key) {
            return;
        }
        let losers = self.losers.entry(key).or_default();
        if *owner != port && !losers.contains(&port) {
            losers.push(port);
            *self.addresses.entry(key.address).or_default() += 1;
        }
        losers.push(*owner);
        losers.sort_by_key(|port| rank(*port));
        *owner = losers.remove(0);
    }

    /// Withdraws a claim, if there is one; a frontend without owner goes to the first of the others.
    pub(super) fn release(&mut self, key: &TableKey, port: u32) {
        let Some(owner) = self.owners.get_mut(key) else { return };
        let losers = self.losers.get_mut(key);
        let found = match losers {
            Some(losers) => {
                let found = if *owner == port {
                    *owner = losers.remove(0);
                    true
                } else {
                    let before = losers.len();
                    losers.retain(|other| *other != port);
                    losers.len() < before
                };
                if losers.is_empty() {
                    self.losers.remove(key);
                }
                found
            }
            None if *owner == port => {
                self.owners.remove(key);
                true
            }
            None => false,
        };
        if found && let Some(count) = self.addresses.get_mut(&key.address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&key.address);
            }
        }
    }

    /// Contested frontends with owner and losers.
    pub(super) fn contested(&self) -> impl Iterator<Item = (TableKey, u32, &[u32])> {
        self.losers.iter().filter_map(|(key, losers)| Some((*key, self.owner(key)?, losers.as_slice())))
    }
}
