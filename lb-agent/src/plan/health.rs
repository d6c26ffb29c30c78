//! What a Service's health check node port answers (S-61).

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::types::{HealthCheckPlan, ServicePortPlan};
use crate::model::{EndpointSlice, Family, NodeFacts, Service, ServiceType, TrafficPolicy};

/// The health check of a Service with these planned ports; `None` when it has none: only load balancers whose external
/// traffic policy is Local choose nodes by it (S-14).
pub(super) fn check(
    service: &Service,
    ports: &[ServicePortPlan],
    slices: &[impl Borrow<EndpointSlice>],
    node: &NodeFacts,
) -> Option<HealthCheckPlan> {
    let wanted = service.service_type == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local
        && service.health_check_node_port != 0;
    if !wanted || ports.is_empty() {
        return None;
    }
    let count = |family| {
        let served = ports.iter().any(|port| port.key.family == family);
        if served { local_ready(service, slices, node, family) } else { 0 }
    };
    Some(HealthCheckPlan {
        node_port: service.health_check_node_port,
        local_v4: count(Family::V4),
        local_v6: count(Family::V6),
    })
}

/// Distinct addresses of ready endpoints on this node. Slices without a port have no endpoints to connect to.
fn local_ready(
    service: &Service,
    slices: &[impl Borrow<EndpointSlice>],
    node: &NodeFacts,
    family: Family,
) -> u32 {
    let slices = slices.iter().map(Borrow::borrow).filter(|slice: &&EndpointSlice| {
        slice.family == family && slice.service == service.name && !slice.ports.is_empty()
    });
    let addresses: BTreeSet<IpAddr> = slices
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.conditions.ready && node.has(endpoint))
        .map(|endpoint| endpoint.address)
        .filter(|address| Family::of(*address) == family)
        .collect();
    addresses.len() as u32
}
