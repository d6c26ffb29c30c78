//! The model and the agent's planner, which know nothing of each other, say the same of random Services.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_agent::{
    model::{self, Family, NodeFacts, ObjectName, Protocol, ServiceType, TrafficPolicy},
    plan::{self, ServicePortPlan, plan_service},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;

const NAMES: [&str; 2] = ["http", "metrics"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ZONES: [&str; 2] = ["z1", "z2"];
const TYPES: [&str; 4] = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
const NODE_PORT: u16 = 30_000;

/// A Service and its slices, to be written as objects for the model and as the agent's values for the planner.
#[derive(Debug, Clone)]
struct Case {
    kind: &'static str,
    families: Vec<bool>,
    ports: Vec<(&'static str, &'static str, bool)>,
    external: bool,
    /// With the mode `Proxy` or not.
    ingress: Option<bool>,
    local: (bool, bool),
    slices: Vec<SliceCase>,
    zone: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct SliceCase {
    ipv4: bool,
    ours: bool,
    ports: Vec<(&'static str, &'static str, u16)>,
    endpoints: Vec<EndpointCase>,
}

#[derive(Debug, Clone)]
struct EndpointCase {
    host: u8,
    node: Option<&'static str>,
}

/// What an endpoint is like: the same in every slice that lists it, because which of two different descriptions holds is
/// not said anywhere.
#[derive(Debug, Clone)]
struct Nature {
    conditions: [Option<bool>; 3],
    zones: Vec<&'static str>,
    nodes: Vec<&'static str>,
}

fn some_of<const N: usize>(names: [&'static str; N]) -> impl Strategy<Value = Vec<&'static str>> {
    // Mostly there, or topology would hardly ever apply.
    prop_oneof![3 => vec(select(names.to_vec()), 1..=2), 1 => Just(Vec::new())]
}

prop_compose! {
    fn nature()(
        // Ready ones are what hints are about.
        conditions in prop_oneof![
            2 => Just([None; 3]),
            3 => vec(option::of(any::<bool>()), 3).prop_map(|it| [it[0], it[1], it[2]]),
            2 => Just([Some(false), Some(true), Some(true)]),
        ],
        zones in some_of(ZONES),
        nodes in some_of(NODES),
    ) -> Nature {
        Nature { conditions, zones, nodes }
    }
}

fn transports() -> impl Strategy<Value = &'static str> {
    select(vec!["TCP", "UDP"])
}

prop_compose! {
    fn slice_case()(
        ipv4 in any::<bool>(),
        ours in prop::bool::weighted(0.9),
        ports in vec((select(NAMES.to_vec()), transports(), 1u16..4), 0..3),
        endpoints in vec((0u8..8, option::of(select(NODES.to_vec()))), 0..6),
    ) -> SliceCase {
        let endpoints = endpoints.into_iter().map(|(host, node)| EndpointCase { host, node }).collect();
        SliceCase { ipv4, ours, ports, endpoints }
    }
}

prop_compose! {
    fn case()(
        kind in select(TYPES.to_vec()),
        families in select(vec![vec![true], vec![false], vec![true, false], vec![]]),
        ports in vec((select(NAMES.to_vec()), transports(), any::<bool>()), 1..4),
        external in any::<bool>(),
        ingress in option::of(any::<bool>()),
        local in any::<(bool, bool)>(),
        slices in vec(slice_case(), 0..4),
        zone in option::of(select(ZONES.to_vec())),
    ) -> Case {
        let mut ports: Vec<(&'static str, &'static str, bool)> = ports;
        // The API forbids two ports of one name.
        ports.sort_unstable();
        ports.dedup_by_key(|port| port.0);
        Case { kind, families, ports, external, ingress, local, slices, zone }
    }
}

fn address(range: u8, ipv4: bool, host: u8) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(10, range, 0, host).into()
    } else {
        Ipv6Addr::new(0xfd00, range.into(), 0, 0, 0, 0, 0, host.into()).into()
    }
}

const CLUSTER_IPS: u8 = 96;
const EXTERNAL_IPS: u8 = 98;
const VIPS: u8 = 99;

impl Case {
    fn addresses(&self, range: u8) -> Vec<IpAddr> {
        [true, false].map(|ipv4| address(range, ipv4, 7)).to_vec()
    }

    fn cluster_ips(&self) -> Vec<IpAddr> {
        self.families.iter().map(|ipv4| address(CLUSTER_IPS, *ipv4, 7)).collect()
    }

    fn has_node_ports(&self) -> bool {
        matches!(self.kind, "NodePort" | "LoadBalancer")
    }

    fn object(&self) -> Value {
        let policy = |local| if local { "Local" } else { "Cluster" };
        let ports: Vec<Value> = (1u16..)
            .zip(&self.ports)
            .map(|(number, (name, protocol, node_port))| {
                let node_port = if self.has_node_ports() && *node_port { NODE_PORT + number } else { 0 };
                json!({"name": name, "protocol": protocol, "port": number, "nodePort": node_port})
            })
            .collect();
        let texts = |addresses: Vec<IpAddr>| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let ingress: Vec<Value> = self
            .ingress
            .iter()
            .flat_map(|proxy| {
                let mode = if *proxy { "Proxy" } else { "VIP" };
                self.addresses(VIPS).into_iter().map(move |ip| json!({"ip": ip.to_string(), "ipMode": mode}))
            })
            .collect();
        let cluster_ips = texts(self.cluster_ips());
        json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {
                "type": self.kind,
                "clusterIP": cluster_ips.first().map_or("None", String::as_str),
                "clusterIPs": cluster_ips,
                "externalIPs": if self.external { texts(self.addresses(EXTERNAL_IPS)) } else { Vec::new() },
                "ports": ports,
                "internalTrafficPolicy": policy(self.local.0), "externalTrafficPolicy": policy(self.local.1),
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }

    fn slice_objects(&self, natures: &[Nature]) -> Vec<Value> {
        let slice = |case: &SliceCase| {
            let endpoints: Vec<Value> = case
                .endpoints
                .iter()
                .map(|endpoint| {
                    let Nature { conditions, zones, nodes } = &natures[usize::from(endpoint.host)];
                    let hints =
                        |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
                    let mut object = json!({
                        "addresses": [address(1, case.ipv4, endpoint.host).to_string()],
                        "hints": {"forZones": hints(zones), "forNodes": hints(nodes)},
                        "conditions": {},
                    });
                    for (name, value) in ["ready", "serving", "terminating"].iter().zip(conditions) {
                        if let Some(value) = value {
                            object["conditions"][name] = (*value).into();
                        }
                    }
                    if let Some(node) = endpoint.node {
                        object["nodeName"] = node.into();
                    }
                    object
                })
                .collect();
            let ports: Vec<Value> = case
                .ports
                .iter()
                .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}))
                .collect();
            let of = if case.ours { "web" } else { "other" };
            json!({
                "metadata": {"namespace": "ns", "labels": {"kubernetes.io/service-name": of}},
                "addressType": if case.ipv4 { "IPv4" } else { "IPv6" },
                "ports": ports, "endpoints": endpoints,
            })
        };
        self.slices.iter().map(slice).collect()
    }

    fn service(&self) -> model::Service {
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        model::Service {
            name: ObjectName::new("ns", "web"),
            created: None,
            service_type: match self.kind {
                "NodePort" => ServiceType::NodePort,
                "LoadBalancer" => ServiceType::LoadBalancer,
                "ExternalName" => ServiceType::ExternalName,
                _ => ServiceType::ClusterIp,
            },
            cluster_ips: self.cluster_ips().into(),
            external_ips: if self.external { self.addresses(EXTERNAL_IPS) } else { Vec::new() }.into(),
            ingress: self
                .ingress
                .iter()
                .flat_map(|proxy_mode| {
                    let ingress = |address| model::IngressAddress { address, proxy_mode: *proxy_mode };
                    self.addresses(VIPS).into_iter().map(ingress)
                })
                .collect(),
            ports: (1u16..)
                .zip(&self.ports)
                .map(|(number, (name, protocol, node_port))| model::ServicePort {
                    name: (*name).into(),
                    protocol: transport(protocol),
                    port: number,
                    node_port: if self.has_node_ports() && *node_port { NODE_PORT + number } else { 0 },
                })
                .collect(),
            affinity_timeout: None,
            algorithm: plan::Algorithm::Random,
            internal_policy: policy(self.local.0),
            external_policy: policy(self.local.1),
            source_ranges: Vec::new().into(),
            health_check_node_port: 0,
        }
    }

    fn slice_values(&self, natures: &[Nature]) -> Vec<model::EndpointSlice> {
        let slice = |(number, case): (usize, &SliceCase)| model::EndpointSlice {
            name: ObjectName::new("ns", &format!("slice-{number}")),
            service: ObjectName::new("ns", if case.ours { "web" } else { "other" }),
            family: if case.ipv4 { Family::V4 } else { Family::V6 },
            ports: case
                .ports
                .iter()
                .map(|(name, protocol, port)| model::EndpointPort {
                    name: (*name).into(),
                    protocol: transport(protocol),
                    port: *port,
                })
                .collect(),
            endpoints: case
                .endpoints
                .iter()
                .map(|endpoint| {
                    let Nature { conditions: [ready, serving, terminating], zones, nodes } =
                        &natures[usize::from(endpoint.host)];
                    model::Endpoint {
                        address: address(1, case.ipv4, endpoint.host),
                        conditions: model::Conditions {
                            ready: ready.unwrap_or(true),
                            serving: serving.unwrap_or(true),
                            terminating: terminating.unwrap_or(false),
                        },
                        node_name: endpoint.node.map(Into::into),
                        zone_hints: zones.iter().map(|zone| (*zone).into()).collect(),
                        node_hints: nodes.iter().map(|node| (*node).into()).collect(),
                    }
                })
                .collect(),
        };
        self.slices.iter().enumerate().map(slice).collect()
    }
}

fn transport(name: &str) -> Protocol {
    if name == "UDP" { Protocol::Udp } else { Protocol::Tcp }
}

/// What the planner says of a class, in the model's words: `None` for a refusal, empty for a drop.
fn planned(port: &ServicePortPlan, verdict: &plan::Verdict) -> Option<BTreeSet<SocketAddr>> {
    match verdict {
        plan::Verdict::Reject => None,
        plan::Verdict::Drop => Some(BTreeSet::new()),
        plan::Verdict::Balance(indices) => Some(
            indices
                .iter()
                .map(|index| {
                    let endpoint = &port.endpoints[*index as usize];
                    SocketAddr::new(endpoint.address, endpoint.port)
                })
                .collect(),
        ),
    }
}

/// What the model says, in the same words.
fn modelled(verdict: Verdict) -> Result<Option<BTreeSet<SocketAddr>>, TestCaseError> {
    match verdict {
        Verdict::Refused => Ok(None),
        Verdict::Dropped => Ok(Some(BTreeSet::new())),
        Verdict::Reaches { endpoints, .. } => Ok(Some(endpoints.into_keys().collect())),
        Verdict::Untouched => {
            Err(TestCaseError::fail("the planner has a frontend that the model does not know"))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_planner_agrees_with_the_model(case in case(), natures in vec(nature(), 8)) {
        let facts = NodeFacts { name: "n1".into(), zone: case.zone.map(Into::into) };
        let (service, slices) = (case.service(), case.slice_values(&natures));
        let plan = plan_service(&service, &slices.iter().collect::<Vec<_>>(), &facts);
        let machines = [Machine {
            name: "n1".into(),
            zone: case.zone.map(str::to_owned),
            addresses: vec![address(50, true, 1), address(50, false, 1)],
        }];
        let (object, slices) = (case.object(), case.slice_objects(&natures));
        let world = World { service: &object, slices: &slices, machines: &machines };

        for ipv4 in [true, false] {
            for (number, (name, protocol, node_port)) in (1u16..).zip(&case.ports) {
                let found = plan.ports.iter().find(|port| {
                    *port.key.port_name == **name && (port.key.family == Family::V4) == ipv4
                });
                let node_port = if case.has_node_ports() && *node_port { NODE_PORT + number } else { 1 };
                let ways = [
                    (CLUSTER_IPS, 7, number), (EXTERNAL_IPS, 7, number), (VIPS, 7, number), (50, 1, node_port),
                ];
                for (range, host, port_number) in ways {
                    let to = SocketAddr::new(address(range, ipv4, host), port_number);
                    let ask = |from: Client| {
                        let transport = if *protocol == "UDP" { Transport::Udp } else { Transport::Tcp };
                        answer(&world, &Attempt { from, to, transport })
                    };
                    let outside = ask(Client::Outside { through: "n1".into(), address: address(77, ipv4, 1) });
                    let pod = ask(Client::Pod { node: "n1".into(), address: address(78, ipv4, 1) });
                    let class = found.and_then(|port| class_of(port, to, range == 50));
                    match class {
                        None => {
                            prop_assert_eq!(outside, Verdict::Untouched, "{}", to);
                            prop_assert_eq!(pod, Verdict::Untouched, "{}", to);
                        }
                        Some((from_outside, from_inside)) => {
                            let port = found.unwrap();
                            prop_assert_eq!(modelled(outside)?, planned(port, from_outside), "{}", to);
                            if let Some(from_inside) = from_inside {
                                prop_assert_eq!(modelled(pod)?, planned(port, from_inside), "{}", to);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The verdicts for clients outside and inside at a frontend of the plan, when it has it.
fn class_of(
    port: &ServicePortPlan,
    to: SocketAddr,
    is_node_port: bool,
) -> Option<(&plan::Verdict, Option<&plan::Verdict>)> {
    let has = |frontends: &[plan::Frontend]| {
        frontends.iter().any(|frontend| {
            let at =
                if is_node_port { frontend.address.is_unspecified() } else { frontend.address == to.ip() };
            at && frontend.port == to.port()
        })
    };
    if has(&port.internal.frontends) {
        return Some((&port.internal.verdict, Some(&port.internal.verdict)));
    }
    let external = port.external.as_ref().filter(|external| has(&external.frontends))?;
    Some((&external.verdict, Some(&external.inside)))
}
