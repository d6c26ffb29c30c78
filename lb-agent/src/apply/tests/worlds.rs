//! Random wanted states: few names, addresses and ports, so that everything meets everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::model::World;
use crate::apply::{Applier, Report};
use crate::dataplane::memory::{TableMemory, TableSizes};
use crate::model::{Family, ObjectName, Protocol};
use crate::plan::{
    ClassPlan, EndpointPlan, Frontend, FrontendKind, PlanBatch, PlanChange, ServicePlan, ServicePortKey,
    ServicePortPlan, Verdict,
};

/// Just enough room for two worlds at once, so that rows, slots and frontend cells are soon used again and
/// frontends have to move.
pub(super) const SMALL: TableSizes =
    TableSizes { frontend_buckets: 8, services: 64, slot_words: 160, backends: 256 };

/// A cluster IP.
pub(super) fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// The address of an endpoint.
pub(super) fn pod_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

#[derive(Clone, Debug)]
struct PortSpec {
    protocol: Protocol,
    v6: bool,
    cluster_ip: u8,
    number: u16,
    /// Endpoint -> (chosen, serving, local).
    endpoints: BTreeMap<u8, (bool, bool, bool)>,
    drop: bool,
}

fn port_spec() -> impl Strategy<Value = PortSpec> {
    let protocol = prop_oneof![4 => Just(Protocol::Tcp), 3 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)];
    let endpoints = btree_map(1u8..7, any::<(bool, bool, bool)>(), 0..6);
    (protocol, proptest::bool::weighted(0.3), 1u8..5, 80u16..82, endpoints, any::<bool>()).prop_map(
        |(protocol, v6, cluster_ip, number, endpoints, drop)| PortSpec {
            protocol,
            v6,
            cluster_ip,
            number,
            endpoints,
            drop,
        },
    )
}

fn service(name: &str, created: Option<i64>, specs: &BTreeMap<u8, PortSpec>) -> ServicePlan {
    let service = ObjectName::new("default", name);
    let mut ports: Vec<ServicePortPlan> = specs
        .iter()
        .map(|(name, spec)| {
            let family = if spec.v6 { Family::V6 } else { Family::V4 };
            let endpoint = |(number, (_, serving, local)): (&u8, &(bool, bool, bool))| EndpointPlan {
                address: pod_ip(family, *number),
                port: 8080,
                local: *local,
                serving: *serving,
            };
            let chosen = spec.endpoints.values().zip(0..).filter(|((chosen, ..), _)| *chosen);
            let chosen: Vec<u32> = chosen.map(|(_, at)| at).collect();
            let verdict = match (chosen.is_empty(), spec.drop) {
                (false, _) => Verdict::Balance(chosen),
                (true, true) => Verdict::Drop,
                (true, false) => Verdict::Reject,
            };
            let frontends = vec![Frontend {
                address: cluster_ip(family, spec.cluster_ip),
                port: spec.number,
                kind: FrontendKind::ClusterIp,
            }];
            ServicePortPlan {
                key: ServicePortKey {
                    service: service.clone(),
                    port_name: format!("p{name}").into(),
                    protocol: spec.protocol,
                    family,
                },
                endpoints: spec.endpoints.iter().map(endpoint).collect(),
                internal: ClassPlan { frontends, verdict },
                external: None,
                affinity_timeout: None,
            }
        })
        .collect();
    ports.sort_by(|a, b| a.key.cmp(&b.key));
    ServicePlan { service, created, ports }
}

/// Creation time and ports of every Service.
type Specs = BTreeMap<String, (Option<i64>, BTreeMap<u8, PortSpec>)>;

fn specs() -> impl Strategy<Value = Specs> {
    let spec = (proptest::option::of(0i64..3), btree_map(0u8..3, port_spec(), 0..3));
    btree_map("[a-e]", spec, 0..6)
}

fn planned(specs: &Specs) -> World {
    let plan = |(name, (created, ports)): (&String, &(Option<i64>, BTreeMap<u8, PortSpec>))| {
        let plan = service(name, *created, ports);
        (plan.service.clone(), plan)
    };
    specs.iter().map(plan).filter(|(_, plan)| !plan.ports.is_empty()).collect()
}

/// A wanted state of up to five Services with up to three ports each.
pub(super) fn world() -> impl Strategy<Value = World> {
    specs().prop_map(|specs| planned(&specs))
}

/// A history: each state grows out of the one before. A Service stays as it is, gets other endpoints behind the
/// same frontends, or becomes another.
pub(super) fn history(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<World>> {
    vec((specs(), any::<[u8; 5]>()), length).prop_map(|steps| {
        let mut now = Specs::new();
        let mut history = Vec::new();
        for (changes, fates) in steps {
            let fate = |name: &str| fates[usize::from(name.as_bytes()[0] - b'a')] % 4;
            let mut next: Specs = changes.clone();
            next.retain(|name, _| fate(name) == 0);
            for (name, (created, ports)) in &now {
                let mut ports = ports.clone();
                match fate(name) {
                    0 => continue,
                    1 => {}
                    _ => {
                        let others = changes.values().flat_map(|(_, ports)| ports.values());
                        for (port, other) in ports.values_mut().zip(others) {
                            port.endpoints.clone_from(&other.endpoints);
                            port.drop = other.drop;
                        }
                    }
                }
                next.insert(name.clone(), (*created, ports));
            }
            // A Service that was not there comes whatever its fate, or few would ever be.
            for (name, spec) in changes {
                next.entry(name).or_insert(spec);
            }
            history.push(planned(&next));
            now = next;
        }
        history
    })
}

/// The batch that leads from one state to the next.
pub(super) fn difference(before: &World, after: &World) -> PlanBatch {
    let gone = before.keys().filter(|name| !after.contains_key(*name)).map(|name| (name, None));
    let new = after.iter().filter(|(name, plan)| before.get(*name) != Some(plan));
    let mut changes: Vec<PlanChange> =
        gone.chain(new.map(|(name, plan)| (name, Some(plan)))).map(change).collect();
    changes.sort_by(|a, b| a.service.cmp(&b.service));
    PlanBatch { full: false, changes }
}

/// The batch that says all.
pub(super) fn full(world: &World) -> PlanBatch {
    let changes = world.iter().map(|(name, plan)| change((name, Some(plan)))).collect();
    PlanBatch { full: true, changes }
}

fn change((service, plan): (&ObjectName, Option<&ServicePlan>)) -> PlanChange {
    PlanChange { service: service.clone(), plan: plan.cloned(), received: None }
}

/// Applies a batch that has to succeed.
pub(super) fn apply<M: TableMemory>(applier: &mut Applier<M>, batch: PlanBatch) -> Report {
    let report = applier.apply(batch);
    assert_eq!(report.failures, []);
    report
}
