//! Random wanted states: few names, addresses and ports, so that everything meets everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::layout::{Algorithm, Class};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::model::World;
use crate::apply::{Applier, NodeAddresses, Report, TableKey};
use crate::dataplane::memory::{TableMemory, TableSizes};
use crate::model::{Cidr, Family, ObjectName, Protocol};
use crate::plan::{
    ClassPlan, EndpointPlan, ExternalPlan, Frontend, FrontendKind, PlanBatch, PlanChange, ServicePlan,
    ServicePortKey, ServicePortPlan, Verdict,
};

/// Just enough room for two worlds at once, so that rows, slots and frontend cells are soon used again and
/// frontends have to move.
pub(super) const SMALL: TableSizes =
    TableSizes { frontend_buckets: 32, services: 64, slot_words: 720, backends: 256 };

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

/// An external IP or VIP; the first few are cluster IPs of others, too.
fn external_ip(family: Family, number: u8) -> IpAddr {
    match (family, number) {
        (_, 0..2) => cluster_ip(family, number + 1),
        (Family::V4, _) => Ipv4Addr::new(203, 0, 113, number).into(),
        (Family::V6, _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Source ranges to restrict VIPs to: single addresses and wider ones, of which clients and nodes have some.
fn source_range(family: Family, number: u8) -> Cidr {
    let bits = [24, 25, 32][usize::from(number % 3)];
    let range = match family {
        Family::V4 => Cidr::new(Ipv4Addr::new(192, 0, 2, number << 6).into(), bits),
        Family::V6 => {
            Cidr::new(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(number) << 6).into(), bits + 96)
        }
    };
    range.expect("a prefix of the family")
}

/// Addresses that clients and the node have, some in each of the ranges, some in none.
pub(super) fn sources(family: Family) -> Vec<IpAddr> {
    let inside = (0u8..4).map(|number| source_range(family, number).address());
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);
    let outside = if family == Family::V4 { Ipv4Addr::new(198, 51, 100, 1).into() } else { v6.into() };
    inside.chain([outside]).collect()
}

prop_compose! {
    /// Addresses of the node: some that source ranges have, some that are external IPs.
    pub(super) fn node_addresses()(local in any::<[bool; 10]>(), node_ports in any::<[bool; 10]>()) -> NodeAddresses {
        let families = [Family::V4, Family::V6];
        let some = |all: Vec<IpAddr>, which: [bool; 10]| {
            all.into_iter().zip(which).filter(|(_, which)| *which).map(|(address, _)| address).collect()
        };
        let externals = (0u8..5).flat_map(|number| families.map(|family| external_ip(family, number)));
        NodeAddresses {
            local: some(families.into_iter().flat_map(sources).collect(), local),
            node_ports: some(externals.collect(), node_ports),
        }
    }
}

/// What an endpoint is: chosen by each class, serving, local.
type EndpointSpec = ([bool; 3], bool, bool);

#[derive(Clone, Debug)]
struct PortSpec {
    protocol: Protocol,
    v6: bool,
    cluster_ip: u8,
    number: u16,
    endpoints: BTreeMap<u8, EndpointSpec>,
    drop: bool,
    affinity: Option<u32>,
    algorithm: Algorithm,
    /// External IPs and VIPs, by number of the address.
    external: BTreeMap<u8, bool>,
    node_port: Option<u16>,
    same_lists: bool,
    preserve_source: bool,
    sources: BTreeSet<u8>,
}

prop_compose! {
    fn port_spec()(
        protocol in prop_oneof![4 => Just(Protocol::Tcp), 3 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)],
        v6 in proptest::bool::weighted(0.3),
        cluster_ip in 1u8..5,
        number in 80u16..82,
        endpoints in btree_map(1u8..7, any::<EndpointSpec>(), 0..6),
        (drop, same_lists, preserve_source) in any::<(bool, bool, bool)>(),
        affinity in proptest::option::of(1u32..3),
        algorithm in prop_oneof![2 => Just(Algorithm::Random), 1 => Just(Algorithm::Maglev)],
        external in btree_map(0u8..5, any::<bool>(), 0..3),
        node_port in proptest::option::of(30000u16..30003),
        sources in btree_set(0u8..4, 0..3),
    ) -> PortSpec {
        PortSpec {
            protocol, v6, cluster_ip, number, endpoints, drop, affinity, algorithm, external, node_port, same_lists,
            preserve_source, sources,
        }
    }
}

impl PortSpec {
    fn verdict(&self, class: Class) -> Verdict {
        // Mostly all classes choose from the same list, as without policies.
        let at = if self.same_lists { 0 } else { class as usize };
        let chosen = self.endpoints.values().zip(0..).filter(|((chosen, ..), _)| chosen[at]);
        let chosen: Vec<u32> = chosen.map(|(_, at)| at).collect();
        match (chosen.is_empty(), self.drop) {
            (false, _) => Verdict::Balance(chosen),
            (true, true) => Verdict::Drop,
            (true, false) => Verdict::Reject,
        }
    }

    fn external(&self, family: Family) -> Option<ExternalPlan> {
        let own = cluster_ip(family, self.cluster_ip);
        let frontend = |(number, vip): (&u8, &bool)| Frontend {
            address: external_ip(family, *number),
            port: self.number,
            kind: if *vip { FrontendKind::LoadBalancer } else { FrontendKind::ExternalIp },
        };
        let mut frontends: Vec<Frontend> =
            self.external.iter().map(frontend).filter(|frontend| frontend.address != own).collect();
        frontends.extend(self.node_port.map(|port| Frontend {
            address: TableKey::node_port(family, port, 0).address,
            port,
            kind: FrontendKind::NodePort,
        }));
        frontends.sort_unstable();
        let has_vip = frontends.iter().any(|frontend| frontend.kind == FrontendKind::LoadBalancer);
        let sources = self.sources.iter().filter(|_| has_vip).map(|number| source_range(family, *number));
        (!frontends.is_empty()).then(|| ExternalPlan {
            frontends,
            verdict: self.verdict(Class::External),
            inside: self.verdict(Class::Cluster),
            preserve_source: self.preserve_source,
            source_ranges: sources.collect(),
        })
    }
}

fn service(name: &str, created: Option<i64>, specs: &BTreeMap<u8, PortSpec>) -> ServicePlan {
    let service = ObjectName::new("default", name);
    let mut ports: Vec<ServicePortPlan> = specs
        .iter()
        .map(|(name, spec)| {
            let family = if spec.v6 { Family::V6 } else { Family::V4 };
            let endpoint = |(number, (_, serving, local)): (&u8, &EndpointSpec)| EndpointPlan {
                address: pod_ip(family, *number),
                port: 8080,
                local: *local,
                serving: *serving,
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
                internal: ClassPlan { frontends, verdict: spec.verdict(Class::Internal) },
                external: spec.external(family),
                affinity_timeout: spec.affinity,
                algorithm: spec.algorithm,
            }
        })
        .collect();
    ports.sort_by(|a, b| a.key.cmp(&b.key));
    ServicePlan { service, created, ports, health_check: None }
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
                            port.same_lists = other.same_lists;
                            port.algorithm = other.algorithm;
                            port.preserve_source = other.preserve_source;
                            port.sources.clone_from(&other.sources);
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
