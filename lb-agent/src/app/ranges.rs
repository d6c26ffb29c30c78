//! The ranges that cluster IPs are taken from (S-23), in force once every Service is known: before, each address in them
//! would be one that belongs to nobody.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tracing::{debug, error};

use super::tables::SharedTables;
use crate::model::Cidr;

/// What is known of them.
#[derive(Clone)]
pub(super) struct Ranges(Arc<Mutex<State>>);

struct State {
    tables: SharedTables,
    /// `None` until somebody told.
    known: Option<Vec<(IpAddr, u8)>>,
    synced: bool,
}

impl Ranges {
    /// `known`: as configured, `None` when somebody is going to tell.
    pub(super) fn new(tables: SharedTables, known: Option<Vec<(IpAddr, u8)>>) -> Self {
        Self(Arc::new(Mutex::new(State { tables, known, synced: false })))
    }

    /// Every Service is known now.
    pub(super) fn synced(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.synced = true;
        state.store();
    }

    /// Takes over what a source tells.
    pub(super) async fn follow(self, mut told: mpsc::Receiver<BTreeSet<Cidr>>) {
        while let Some(ranges) = told.recv().await {
            debug!(?ranges, "ranges of cluster IPs");
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.known = Some(ranges.iter().map(|range| (range.address(), range.prefix())).collect());
            state.store();
        }
    }
}

impl State {
    fn store(&self) {
        let Some(known) = self.known.as_ref().filter(|_| self.synced) else { return };
        if let Err(error) = self.tables.lock().applier().set_service_ranges(known) {
            error!(%error, "the ranges of cluster IPs are not in force");
        }
    }
}
