//! The addresses of the node: where node ports are served (S-35), and what counts as the node in source ranges (S-34).

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::key::TableKey;
use super::{Applier, ApplyError};
use crate::dataplane::memory::TableMemory;

/// Addresses of the node, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// All addresses of the node. Loopback addresses mean nothing here: no range of sources is meant for them.
    pub local: Vec<IpAddr>,
    /// Those that node ports are served at, with loopback addresses where that is wanted (S-36).
    pub node_ports: Vec<IpAddr>,
}

/// What the applier knows of them.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// `None` until it was told.
    wanted: Option<NodeAddresses>,
    /// In the tables.
    stored: BTreeSet<IpAddr>,
    /// The tables do not say yet what is wanted.
    pub(super) due: bool,
}

impl<M: TableMemory> Applier<M> {
    /// Makes node ports answer at these addresses and no others, and lets processes of the node use load balancer VIPs
    /// whose source ranges have one of its addresses. Until the first call what the agent before left holds.
    ///
    /// # Errors
    /// When a table is full or a store failed; the next call of any kind tries again.
    pub fn set_node_addresses(&mut self, addresses: &NodeAddresses) -> Result<(), ApplyError> {
        if self.nodes.wanted.as_ref() != Some(addresses) {
            self.nodes.wanted = Some(addresses.clone());
            self.nodes.due = true;
        }
        self.sync_nodes()?;
        Ok(self.advance_epoch()?)
    }

    /// The addresses that node ports are served at, as the tables say.
    pub(super) fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.stored.iter().copied()
    }

    /// The addresses of the node without those of loopback, once they are known.
    pub(super) fn local_addresses(&self) -> Option<Vec<IpAddr>> {
        let local = &self.nodes.wanted.as_ref()?.local;
        Some(local.iter().filter(|address| !address.is_loopback()).copied().collect())
    }

    /// Notes an address that the agent before served node ports at; false when it is known already.
    pub(super) fn adopt_node_address(&mut self, address: IpAddr) -> bool {
        self.nodes.stored.insert(address)
    }

    /// True when the tables say that node ports are served at the address.
    pub(super) fn is_node_address(&self, address: &IpAddr) -> bool {
        self.nodes.stored.contains(address)
    }

    /// Adds, decides about processes of the node anew, then removes.
    pub(super) fn sync_nodes(&mut self) -> Result<(), ApplyError> {
        let Some(wanted) = self.nodes.wanted.as_ref().filter(|_| self.nodes.due) else { return Ok(()) };
        let wanted: BTreeSet<IpAddr> = wanted.node_ports.iter().copied().collect();
        for address in wanted.difference(&self.nodes.stored.clone()) {
            self.epoch_due = true;
            self.writer.set_frontend(&TableKey::node_address(*address), Some(0))?;
            self.nodes.stored.insert(*address);
        }
        self.sync_hosts()?;
        for address in self.nodes.stored.clone().difference(&wanted) {
            self.epoch_due = true;
            self.writer.set_frontend(&TableKey::node_address(*address), None)?;
            self.nodes.stored.remove(address);
        }
        self.nodes.due = false;
        Ok(())
    }
}
