//! What the planner knows of the node it runs on (S-05).

use std::sync::Arc;

use super::Endpoint;

/// Facts of our own node. The planner's second input; a change of any of them replans every Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`; empty when unknown, and then no endpoint is local (S-12).
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`; `None` disables zone hints (2.3 note d).
    pub zone: Option<Arc<str>>,
}

impl NodeFacts {
    /// True when the endpoint runs on this node (S-12).
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        !self.name.is_empty() && endpoint.node_name.as_ref() == Some(&self.name)
    }
}
