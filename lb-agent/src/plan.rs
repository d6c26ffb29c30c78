//! The planner: a pure function from a Service, its slices and the node's facts to wanted table content.
//!
//! Same input, same plan, byte for byte: endpoints and frontends come out sorted, and the order in which slices,
//! endpoints and hints are given does not show.

mod categorize;
mod display;
mod frontends;
mod health;
mod join;
mod sources;
mod types;

#[cfg(test)]
mod properties;

use std::borrow::Borrow;

use categorize::{Candidate, Categories, categorize};

use crate::model::{EndpointSlice, Family, NodeFacts, Service, ServicePort, ServiceType, TrafficPolicy};

pub use types::{
    Algorithm, ClassPlan, EndpointPlan, ExternalPlan, Frontend, FrontendKind, HealthCheckPlan, PlanBatch,
    PlanChange, ServicePlan, ServicePortKey, ServicePortPlan, Verdict, kind_name,
};

/// Plans one Service for one node.
///
/// `slices` may be in any order; those of other Services are ignored. A Service that is not to be proxied (S-03:
/// headless, no cluster IP yet, ExternalName) yields a plan without ports. A family is planned when the Service has
/// a cluster IP of it (S-04).
pub fn plan_service<S: Borrow<EndpointSlice>>(
    service: &Service,
    slices: &[S],
    node: &NodeFacts,
) -> ServicePlan {
    let mut ports = Vec::new();
    if service.service_type != ServiceType::ExternalName {
        ports.reserve(service.ports.len());
        for family in [Family::V4, Family::V6] {
            ports.extend(
                service.ports.iter().filter_map(|port| plan_port(service, port, family, slices, node)),
            );
        }
        ports.sort_by(|a: &ServicePortPlan, b| a.key.cmp(&b.key));
        // The API forbids two ports of one name and protocol; should they come, the first one listed stays (S-10).
        ports.dedup_by(|later, first| later.key == first.key);
    }
    let health_check = health::check(service, &ports, slices, node);
    ServicePlan { service: service.name.clone(), created: service.created, ports, health_check }
}

fn plan_port(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &[impl Borrow<EndpointSlice>],
    node: &NodeFacts,
) -> Option<ServicePortPlan> {
    let internal = frontends::internal(service, port, family);
    if internal.is_empty() {
        return None;
    }
    let external = frontends::external(service, port, family);
    let internal_local = service.internal_policy == TrafficPolicy::Local;
    let external_local = frontends::external_policy_local(service);

    let candidates = join::candidates(service, port, family, slices, node);
    let uses_cluster = !internal_local || !external.is_empty();
    let uses_local = internal_local || (external_local && !external.is_empty());
    let categories = categorize(&candidates, uses_cluster, uses_local);
    let (endpoints, index_of) = endpoints(&candidates, &categories);
    let verdict = |local| verdict(&categories, local, index_of.as_deref());
    let external = (!external.is_empty()).then(|| ExternalPlan {
        verdict: verdict(external_local),
        inside: verdict(false),
        preserve_source: external_local,
        source_ranges: sources::ranges(service, &external, family),
        frontends: external,
    });
    Some(ServicePortPlan {
        key: ServicePortKey {
            service: service.name.clone(),
            port_name: port.name.clone(),
            protocol: port.protocol,
            family,
        },
        internal: ClassPlan { frontends: internal, verdict: verdict(internal_local) },
        external,
        endpoints,
        affinity_timeout: service.affinity_timeout,
        algorithm: service.algorithm,
    })
}

/// The endpoints worth a backend entry, and where each candidate went unless all of them stay in their places.
fn endpoints(
    candidates: &[Candidate],
    categories: &Categories,
) -> (Vec<EndpointPlan>, Option<Vec<Option<u32>>>) {
    let plan =
        |c: &Candidate| EndpointPlan { address: c.address, port: c.port, local: c.local, serving: c.serving };
    if candidates.iter().all(|c| c.serving) {
        return (candidates.iter().map(plan).collect(), None);
    }
    let mut keep: Vec<bool> = candidates.iter().map(|c| c.serving).collect();
    for index in categories.cluster.iter().chain(&categories.local) {
        keep[*index as usize] = true;
    }
    let mut endpoints = Vec::with_capacity(candidates.len());
    let mut index_of = Vec::with_capacity(candidates.len());
    for (c, keep) in candidates.iter().zip(keep) {
        index_of.push(keep.then_some(endpoints.len() as u32));
        if keep {
            endpoints.push(plan(c));
        }
    }
    (endpoints, Some(index_of))
}

/// The verdict of one class (2.4): `local` when its policy is Local. Clients inside have none at external frontends.
fn verdict(categories: &Categories, local: bool, index_of: Option<&[Option<u32>]>) -> Verdict {
    let chosen = if local { &categories.local } else { &categories.cluster };
    if !chosen.is_empty() {
        Verdict::Balance(match index_of {
            None => chosen.clone(),
            Some(index_of) => chosen.iter().filter_map(|index| index_of[*index as usize]).collect(),
        })
    } else if local && categories.has_any {
        Verdict::Drop
    } else {
        Verdict::Reject
    }
}

#[cfg(test)]
#[path = "plan/plan_tests.rs"]
mod tests;
