//! Properties every plan has, whatever the input.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lb_common::layout::Class;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::model::{
    Cidr, Conditions, Endpoint, EndpointPort, IngressAddress, NodeFacts, ObjectName, Protocol, Service,
    ServicePort,
};

// Few different values of everything, so that names, addresses and hints meet.
const PORT_NAMES: [&str; 3] = ["", "http", "metrics"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ZONES: [&str; 3] = ["z1", "z2", "z3"];

fn address(family: Family) -> impl Strategy<Value = IpAddr> {
    (0u8..12).prop_map(move |n| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 1, 0, n)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into())),
    })
}

fn family() -> impl Strategy<Value = Family> {
    select(vec![Family::V4, Family::V6])
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    family().prop_flat_map(address)
}

fn text(names: &'static [&'static str]) -> impl Strategy<Value = Arc<str>> {
    select(names).prop_map(Into::into)
}

fn some_of(names: &'static [&'static str]) -> impl Strategy<Value = Vec<Arc<str>>> {
    subsequence(names, 0..=names.len())
        .prop_shuffle()
        .prop_map(|names| names.into_iter().map(Into::into).collect())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

prop_compose! {
    fn endpoint(family: Family)(
        address in address(family),
        (ready, serving, terminating) in any::<(bool, bool, bool)>(),
        node_name in proptest::option::of(text(&NODES)),
        // Mostly there, or topology would hardly ever apply.
        zone_hints in prop_oneof![3 => some_of(&ZONES), 1 => Just(Vec::new())],
        node_hints in prop_oneof![3 => some_of(&NODES), 1 => Just(Vec::new())],
    ) -> Endpoint {
        Endpoint { address, conditions: Conditions { ready, serving, terminating }, node_name, zone_hints: zone_hints.into(), node_hints: node_hints.into() }
    }
}

prop_compose! {
    fn endpoint_port()(name in text(&PORT_NAMES), protocol in protocol(), port in 1u16..5) -> EndpointPort {
        EndpointPort { name, protocol, port }
    }
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    family().prop_flat_map(|family| {
        let ports = proptest::collection::vec(endpoint_port(), 0..4);
        let endpoints = proptest::collection::vec(endpoint(family), 0..8);
        (any::<u16>(), prop::bool::weighted(0.9), ports, endpoints).prop_map(
            move |(name, ours, ports, endpoints)| EndpointSlice {
                name: ObjectName::new("ns", &format!("slice-{name}")),
                service: ObjectName::new("ns", if ours { "web" } else { "other" }),
                family,
                ports: ports.into(),
                endpoints,
            },
        )
    })
}

prop_compose! {
    fn service_port()(
        name in text(&PORT_NAMES),
        protocol in protocol(),
        port in 80u16..83,
        node_port in prop_oneof![Just(0), 30000u16..30003],
    ) -> ServicePort {
        ServicePort { name, protocol, port, node_port }
    }
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

/// Ranges that meet each other and the addresses, seldom everything.
fn source_range() -> impl Strategy<Value = Cidr> {
    let length = prop_oneof![1 => Just(32u8), 8 => 0u8..5];
    (any_address(), length).prop_map(|(address, host)| {
        let longest = if address.is_ipv4() { 32u8 } else { 128 };
        Cidr::new(address, longest.saturating_sub(host)).unwrap()
    })
}

prop_compose! {
    fn service()(
        service_type in select(vec![
            ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer, ServiceType::ExternalName,
        ]),
        cluster_ips in proptest::collection::vec(any_address(), 0..3),
        external_ips in proptest::collection::vec(any_address(), 0..3),
        ingress in proptest::collection::vec((any_address(), any::<bool>()), 0..3),
        ports in proptest::collection::vec(service_port(), 0..4),
        (internal_policy, external_policy) in (policy(), policy()),
        source_ranges in proptest::collection::vec(source_range(), 0..6),
        health_check_node_port in prop_oneof![1 => Just(0), 3 => Just(32000)],
    ) -> Service {
        let ingress = ingress.into_iter().map(|(address, proxy_mode)| IngressAddress { address, proxy_mode }).collect();
        Service {
            name: ObjectName::new("ns", "web"),
            created: None,
            service_type,
            cluster_ips: cluster_ips.into(),
            external_ips: external_ips.into(),
            ingress,
            ports: ports.into(),
            affinity_timeout: None,
            algorithm: Algorithm::Random,
            internal_policy,
            external_policy,
            source_ranges: source_ranges.into(),
            health_check_node_port,
        }
    }
}

fn node() -> impl Strategy<Value = NodeFacts> {
    let name = prop_oneof![4 => text(&NODES), 1 => Just(Arc::from(""))];
    (name, proptest::option::of(text(&ZONES))).prop_map(|(name, zone)| NodeFacts { name, zone })
}

fn input() -> impl Strategy<Value = (Service, Vec<EndpointSlice>, NodeFacts)> {
    (service(), proptest::collection::vec(slice(), 0..5), node())
}

fn plan(service: &Service, slices: &[EndpointSlice], node: &NodeFacts) -> ServicePlan {
    plan_service(service, &slices.iter().collect::<Vec<_>>(), node)
}

/// The same slices, endpoints and hints in another order.
fn shuffled(slices: Vec<EndpointSlice>) -> impl Strategy<Value = Vec<EndpointSlice>> {
    Just(slices).prop_shuffle().prop_flat_map(|slices| {
        let slices: Vec<_> = slices
            .into_iter()
            .map(|slice| {
                Just(slice.endpoints.clone()).prop_shuffle().prop_map(move |mut endpoints| {
                    for endpoint in &mut endpoints {
                        endpoint.zone_hints.reverse();
                        endpoint.node_hints.reverse();
                    }
                    EndpointSlice { endpoints, ..slice.clone() }
                })
            })
            .collect();
        slices
    })
}

/// The verdict of every class that there is.
fn verdicts(port: &ServicePortPlan) -> impl Iterator<Item = &Verdict> {
    Class::ALL.into_iter().filter_map(|class| port.verdict(class))
}

proptest! {
    #[test]
    fn order_does_not_show(
        ((service, slices, node), other) in input().prop_flat_map(|(service, slices, node)| {
            (Just((service, slices.clone(), node)), shuffled(slices))
        })
    ) {
        prop_assert_eq!(plan(&service, &slices, &node), plan(&service, &other, &node));
    }

    #[test]
    fn plans_are_well_formed((service, slices, node) in input()) {
        let plan = plan(&service, &slices, &node);
        prop_assert!(plan.ports.is_sorted_by(|a, b| a.key < b.key), "ports sorted, each once");
        for port in &plan.ports {
            prop_assert_eq!(&port.key.service, &service.name);
            let unique = |a: &EndpointPlan, b: &EndpointPlan| (a.address, a.port) < (b.address, b.port);
            prop_assert!(port.endpoints.is_sorted_by(unique), "endpoints sorted, each once");
            let external = port.external.as_ref().map(|external| &external.frontends);
            for frontends in std::iter::once(&port.internal.frontends).chain(external) {
                prop_assert!(!frontends.is_empty());
                prop_assert!(
                    frontends.is_sorted_by(|a, b| (a.address, a.port) < (b.address, b.port)),
                    "frontends sorted, each once"
                );
                prop_assert!(frontends.iter().all(|f| Family::of(f.address) == port.key.family));
            }
            for verdict in verdicts(port) {
                if let Verdict::Balance(indices) = verdict {
                    prop_assert!(!indices.is_empty());
                    prop_assert!(indices.is_sorted_by(|a, b| a < b), "indices ascending, each once");
                    prop_assert!(indices.iter().all(|index| (*index as usize) < port.endpoints.len()));
                }
            }
        }
    }

    #[test]
    fn endpoints_come_from_the_slices((service, slices, node) in input()) {
        for port in &plan(&service, &slices, &node).ports {
            let key = &port.key;
            for endpoint in &port.endpoints {
                let found = slices.iter().filter(|s| s.service == service.name && s.family == key.family).any(|slice| {
                    slice.endpoints.iter().any(|e| e.address == endpoint.address)
                        && slice.ports.iter().any(|p| {
                            p.name == key.port_name && p.protocol == key.protocol && p.port == endpoint.port
                        })
                });
                prop_assert!(found, "{endpoint} is in no slice");
            }
        }
    }

    #[test]
    fn every_endpoint_has_a_reason((service, slices, node) in input()) {
        for port in &plan(&service, &slices, &node).ports {
            let chosen: BTreeSet<u32> = verdicts(port)
                .filter_map(|verdict| match verdict {
                    Verdict::Balance(indices) => Some(indices),
                    _ => None,
                })
                .flatten()
                .copied()
                .collect();
            for (index, endpoint) in (0u32..).zip(&port.endpoints) {
                prop_assert!(endpoint.serving || chosen.contains(&index));
            }
        }
    }

    #[test]
    fn local_policies_stay_on_the_node((service, slices, node) in input()) {
        for port in &plan(&service, &slices, &node).ports {
            if service.internal_policy == TrafficPolicy::Local
                && let Verdict::Balance(indices) = &port.internal.verdict
            {
                prop_assert!(indices.iter().all(|index| port.endpoints[*index as usize].local));
            }
            prop_assert!(!node.name.is_empty() || port.endpoints.iter().all(|endpoint| !endpoint.local));
        }
    }

    #[test]
    fn drop_is_for_local_policies_only((service, slices, node) in input()) {
        for port in &plan(&service, &slices, &node).ports {
            if service.internal_policy == TrafficPolicy::Cluster {
                prop_assert_ne!(&port.internal.verdict, &Verdict::Drop);
            }
            if let Some(external) = &port.external && service.external_policy == TrafficPolicy::Cluster {
                prop_assert_ne!(&external.verdict, &Verdict::Drop);
            }
        }
    }

    /// No policy concerns clients of the node at external frontends (S-33 a, b).
    #[test]
    fn clients_inside_have_the_endpoints_of_the_cluster((service, slices, node) in input()) {
        let cluster = Service {
            internal_policy: TrafficPolicy::Cluster, external_policy: TrafficPolicy::Cluster, ..service.clone()
        };
        let targets = |port: &ServicePortPlan, verdict: &Verdict| match verdict {
            Verdict::Balance(indices) => indices
                .iter()
                .map(|index| (port.endpoints[*index as usize].address, port.endpoints[*index as usize].port))
                .collect(),
            _ => Vec::new(),
        };
        let plans = [plan(&service, &slices, &node), plan(&cluster, &slices, &node)];
        for (port, cluster) in plans[0].ports.iter().zip(&plans[1].ports) {
            let Some(external) = &port.external else { continue };
            prop_assert_ne!(&external.inside, &Verdict::Drop);
            prop_assert_eq!(targets(port, &external.inside), targets(cluster, &cluster.internal.verdict));
            prop_assert!(external.preserve_source || external.verdict == external.inside);
        }
    }

    /// What the API server's list lets in, the plan's lets in (S-34); and no shorter list would say so.
    #[test]
    fn source_ranges_say_what_the_service_says((service, slices, node) in input(), source in any_address()) {
        for port in &plan(&service, &slices, &node).ports {
            let Some(external) = &port.external else { continue };
            let ranges = &external.source_ranges;
            prop_assert!(ranges.iter().all(|range| range.family() == port.key.family && range.prefix() > 0));
            for (at, range) in ranges.iter().enumerate() {
                let others = || ranges.iter().skip(at + 1);
                prop_assert!(others().all(|other| range.join(*other).is_none()));
                prop_assert!(others().all(|other| !range.covers(*other) && !other.covers(*range)));
            }
            let has_vip = external.frontends.iter().any(|frontend| frontend.kind == FrontendKind::LoadBalancer);
            let of_family = || service.source_ranges.iter().filter(|range| range.family() == port.key.family);
            if Family::of(source) == port.key.family {
                let open = !has_vip || of_family().count() == 0 || of_family().any(|range| range.prefix() == 0);
                let admits = ranges.is_empty() || ranges.iter().any(|range| range.contains(source));
                prop_assert_eq!(admits, open || of_family().any(|range| range.contains(source)));
            }
        }
    }

    /// S-61: distinct addresses, ready and here, whatever the ports.
    #[test]
    fn health_checks_count_ready_local_addresses((service, slices, node) in input()) {
        let plan = plan(&service, &slices, &node);
        let wanted = service.service_type == ServiceType::LoadBalancer
            && service.external_policy == TrafficPolicy::Local
            && service.health_check_node_port != 0
            && !plan.ports.is_empty();
        prop_assert_eq!(plan.health_check.is_some(), wanted);
        let Some(check) = plan.health_check else { return Ok(()) };
        for family in [Family::V4, Family::V6] {
            let mut addresses = BTreeSet::new();
            for slice in slices.iter().filter(|s| s.service == service.name && s.family == family && !s.ports.is_empty()) {
                for endpoint in &slice.endpoints {
                    let here = !node.name.is_empty() && endpoint.node_name.as_deref() == Some(&*node.name);
                    if endpoint.conditions.ready && here {
                        addresses.insert(endpoint.address);
                    }
                }
            }
            let served = service.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
            prop_assert_eq!(check.local_endpoints(family) as usize, if served { addresses.len() } else { 0 });
        }
    }

    /// Topology may narrow the choice but never empties it (2.3 note e): ready anywhere means served everywhere.
    #[test]
    fn topology_never_refuses((service, slices, node) in input()) {
        let without = NodeFacts { zone: None, ..node.clone() };
        for (with, without) in plan(&service, &slices, &node).ports.iter().zip(&plan(&service, &slices, &without).ports) {
            let balances = |port: &ServicePortPlan| matches!(port.internal.verdict, Verdict::Balance(_));
            prop_assert_eq!(balances(with), balances(without));
        }
    }
}
