//! `test/e2e/network/service.go`: "Services".

#[path = "services/affinity.rs"]
pub(crate) mod affinity;
#[path = "services/basic.rs"]
mod basic;
#[path = "services/disruptive.rs"]
mod disruptive;
#[path = "services/labels.rs"]
mod labels;
#[path = "services/node_ports.rs"]
mod node_ports;
#[path = "services/policies.rs"]
mod policies;
#[path = "services/protocols.rs"]
mod protocols;
#[path = "services/terminating.rs"]
mod terminating;
#[path = "services/types.rs"]
mod types;
#[path = "services/unready.rs"]
mod unready;

use crate::prelude::*;

/// The titles.
pub(crate) fn groups() -> Vec<Group> {
    let titles = [
        basic::titles(),
        disruptive::titles(),
        node_ports::titles(),
        types::titles(),
        unready::titles(),
        affinity::titles(),
        labels::titles(),
        policies::titles(),
        terminating::titles(),
        protocols::titles(),
    ];
    vec![Group::new("service.go", "Services", titles.into_iter().flatten().collect())]
}
