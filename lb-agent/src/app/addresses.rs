//! The node's addresses in force: where they are stored, and who hears of a change.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_common::layout::MasqueradeAddresses;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::tables::SharedTables;
use crate::dataplane::{Datapath, Masquerade};
use crate::net::{AddressOptions, DeviceSelection, NodeAddressing};

/// Keeps maps and listeners up to date with the node's addresses.
pub(super) struct Addresses {
    options: AddressOptions,
    datapath: Arc<Datapath>,
    tables: SharedTables,
    current: watch::Sender<Arc<NodeAddressing>>,
    /// Nothing failed when the current addresses were stored.
    stored: bool,
}

impl Addresses {
    pub(super) fn new(options: AddressOptions, datapath: Arc<Datapath>, tables: SharedTables) -> Self {
        Self { options, datapath, tables, current: watch::Sender::default(), stored: false }
    }

    /// What is in force, and every change of it.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<NodeAddressing>> {
        self.current.subscribe()
    }

    /// Works the addresses out anew from the mirror, and stores what changed.
    pub(super) fn refresh(&mut self, selection: &DeviceSelection) {
        let now = NodeAddressing::new(&self.tables.lock().mirror, selection, &self.options);
        if self.stored && **self.current.borrow() == now {
            return;
        }
        let before = self.current.send_replace(Arc::new(now.clone()));
        if before.node != now.node || before.node_ports != now.node_ports {
            self.tell(&now);
        }
        self.stored = self.store(&now);
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self) {
        if !self.stored {
            let now = self.current.borrow().clone();
            self.stored = self.store(&now);
        }
    }

    fn tell(&self, now: &NodeAddressing) {
        let missing: Vec<_> =
            self.options.node_ips.iter().filter(|address| !now.local.contains(address)).collect();
        if !missing.is_empty() {
            warn!(node_ip = ?missing, "no device has the address of --node-ip; another one is used meanwhile");
        }
        info!(
            node_ipv4 = now.node.v4.map(tracing::field::display),
            node_ipv6 = now.node.v6.map(tracing::field::display),
            node_ports = list(now.node_ports.iter()),
            "node addresses"
        );
    }

    fn store(&self, now: &NodeAddressing) -> bool {
        let rows: BTreeMap<u32, MasqueradeAddresses> =
            now.masquerade.iter().map(|(interface, pair)| (*interface, (*pair).into())).collect();
        let masquerade = match Masquerade::new(self.datapath.maps()).replace(&rows) {
            Ok(0) => true,
            Ok(left_out) => {
                debug!(left_out, "more devices than rows: some masquerade with the node's address");
                true
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "addresses for masquerading not stored yet");
                false
            }
        };
        let tables = match self.tables.lock().set_node_addresses(now) {
            Ok(()) => true,
            Err(error) => {
                warn!(%error, "node port addresses not stored yet");
                false
            }
        };
        masquerade && tables
    }
}

/// How many addresses a line of the log names.
const NAMED: usize = 16;

fn list<T: ToString>(addresses: impl ExactSizeIterator<Item = T>) -> String {
    let count = addresses.len();
    let mut text = addresses.take(NAMED).map(|address| address.to_string()).collect::<Vec<_>>().join(",");
    if count > NAMED {
        text.push_str(&format!(" and {} more", count - NAMED));
    }
    text
}
