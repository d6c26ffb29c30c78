//! What is kept of a Service and of its ports. The rest is read from the tables.

use std::net::IpAddr;

use crate::plan::ServicePortKey;

use super::backend::BackendRow;
use super::key::TableKey;
use crate::dataplane::memory::TableMemory;

/// A Service in the tables.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    /// Creation time; `None` also while only the tables are known.
    pub(super) created: Option<i64>,
    /// Service indices of its ports.
    pub(super) ports: Vec<u32>,
}

/// A Service port in the tables.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) key: ServicePortKey,
    /// Rows of its backends, in the order of their addresses and ports.
    pub(super) backends: Vec<u32>,
    /// Frontends it claims.
    pub(super) frontends: Vec<TableKey>,
}

impl Port {
    pub(super) fn new(key: ServicePortKey) -> Self {
        Self { key, backends: Vec::new(), frontends: Vec::new() }
    }

    /// Address and port of the backend in a row.
    pub(super) fn target(&self, memory: &impl TableMemory, row: u32) -> (IpAddr, u16) {
        BackendRow::load(memory, self.key.family, row).target()
    }

    /// Adds rows, keeping the order.
    pub(super) fn add_backends(&mut self, memory: &impl TableMemory, rows: &[u32]) {
        if rows.is_empty() {
            return;
        }
        let ordered = self.backends.is_empty();
        self.backends.reserve_exact(rows.len());
        self.backends.extend_from_slice(rows);
        if !ordered {
            let family = self.key.family;
            self.backends.sort_by_key(|row| BackendRow::load(memory, family, *row).target());
        }
    }
}
