//! Tables of other sizes than tests need.

use lb_common::share;

use super::{BACKENDS, BUCKETS, CONNECTIONS, FLOW_SETS, SERVICES, SLOTS};

/// Sizes of the tables that grow with Services and flows.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Buckets of each frontend table, a power of two.
    pub buckets: u32,
    /// Services.
    pub services: u32,
    /// Backends of each family.
    pub backends: u32,
    /// Slots.
    pub slots: u32,
    /// Sets of the flow cache of a CPU, a power of two.
    pub flow_sets: u32,
    /// Entries of each connection table.
    pub connections: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            buckets: BUCKETS,
            services: SERVICES,
            backends: BACKENDS,
            slots: SLOTS,
            flow_sets: FLOW_SETS,
            connections: CONNECTIONS,
        }
    }
}

impl Sizes {
    /// Entries of maps.
    pub(super) fn maps(&self, cpus: u32) -> Vec<(&'static str, u32)> {
        let flows = self.flow_sets * cpus;
        let recent = share::ring_length(self.connections) * share::RINGS;
        vec![
            ("FRONTENDS4", self.buckets),
            ("FRONTENDS6", self.buckets),
            ("SERVICES", self.services),
            ("NAMES", self.services),
            ("SERVICE_STATS", self.services),
            ("SHARES", self.services),
            ("SLOTS", self.slots / 2),
            ("BACKENDS4", self.backends),
            ("BACKENDS6", self.backends),
            ("BACKEND_STATS4", self.backends),
            ("BACKEND_STATS6", self.backends),
            ("CONNS4", self.connections),
            ("CONNS6", self.connections),
            ("RECENT4", recent),
            ("RECENT6", recent),
            ("FLOWS4", flows),
            ("FLOWS6", flows),
            ("WIRE_FLOWS4", flows),
            ("WIRE_FLOWS6", flows),
        ]
    }

    /// Constants that follow from them.
    pub(super) fn constants(&self) -> Vec<(&'static str, Vec<u8>)> {
        let words = [
            ("FRONTEND_MASK4", self.buckets - 1),
            ("FRONTEND_MASK6", self.buckets - 1),
            ("FLOW_MASK", self.flow_sets - 1),
            ("CONNECTIONS", self.connections),
            ("RECENT_LENGTH", share::ring_length(self.connections)),
        ];
        words.into_iter().map(|(name, value)| (name, value.to_ne_bytes().to_vec())).collect()
    }
}
