//! Verdicts by traffic policy and endpoints (2.4), and the corners of S-14 that scenarios do not reach.

use std::net::IpAddr;

use super::*;
use crate::model::{Conditions, Endpoint, EndpointPort, IngressAddress, ObjectName, Protocol, Rare};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    Service {
        name: ObjectName::new("a", "web"),
        created: Some(1),
        service_type: ServiceType::NodePort,
        cluster_ips: vec![ip("10.96.0.1")].into(),
        external_ips: Rare::default(),
        ingress: Rare::default(),
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 30080 }]
            .into(),
        affinity_timeout: None,
        algorithm: Algorithm::Random,
        internal_policy: internal,
        external_policy: external,
        source_ranges: Rare::default(),
        health_check_node_port: 0,
    }
}

fn slice(endpoints: &[(&str, &str, bool)]) -> EndpointSlice {
    let endpoint = |(address, node, ready): &(&str, &str, bool)| Endpoint {
        address: ip(address),
        conditions: Conditions { ready: *ready, serving: *ready, terminating: false },
        node_name: Some((*node).into()),
        zone_hints: Rare::default(),
        node_hints: Rare::default(),
    };
    EndpointSlice {
        name: ObjectName::new("a", "web-1"),
        service: ObjectName::new("a", "web"),
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn node() -> NodeFacts {
    NodeFacts { name: "n1".into(), zone: None }
}

#[test]
fn verdicts_by_policy_and_endpoints() {
    use TrafficPolicy::{Cluster, Local};
    let here_and_there = [("10.1.0.1", "n1", true), ("10.1.0.2", "n2", true)];
    let there = [("10.1.0.2", "n2", true)];
    let not_ready = [("10.1.0.1", "n1", false), ("10.1.0.2", "n2", false)];
    let both = || Verdict::Balance(vec![0, 1]);
    let first = || Verdict::Balance(vec![0]);
    let reject = || Verdict::Reject;
    // At cluster IPs; at external frontends for clients outside, and for those of the node.
    for (internal, external, endpoints, expected_internal, expected_external, expected_inside) in [
        (Cluster, Cluster, &here_and_there[..], both(), both(), both()),
        (Cluster, Local, &here_and_there, both(), first(), both()),
        (Local, Cluster, &here_and_there, first(), both(), both()),
        (Local, Local, &here_and_there, first(), first(), both()),
        (Cluster, Cluster, &there, first(), first(), first()),
        (Cluster, Local, &there, first(), Verdict::Drop, first()),
        (Local, Cluster, &there, Verdict::Drop, first(), first()),
        (Local, Local, &there, Verdict::Drop, Verdict::Drop, first()),
        (Cluster, Cluster, &not_ready, reject(), reject(), reject()),
        (Cluster, Local, &not_ready, reject(), reject(), reject()),
        (Local, Cluster, &not_ready, reject(), reject(), reject()),
        (Local, Local, &not_ready, reject(), reject(), reject()),
        (Cluster, Cluster, &[], reject(), reject(), reject()),
        (Local, Local, &[], reject(), reject(), reject()),
    ] {
        let plan = plan_service(&service(internal, external), &[&slice(endpoints)], &node());
        let port = &plan.ports[0];
        let case = format!("internal {internal:?}, external {external:?}, {endpoints:?}");
        assert_eq!(port.internal.verdict, expected_internal, "{case}: internal");
        let found = port.external.as_ref().unwrap();
        assert_eq!(found.verdict, expected_external, "{case}: external");
        assert_eq!(found.inside, expected_inside, "{case}: inside");
        assert_eq!(found.preserve_source, external == Local, "{case}: source");
    }
}

#[test]
fn the_external_policy_counts_only_for_kinds_it_speaks_of() {
    let mut service = service(TrafficPolicy::Cluster, TrafficPolicy::Local);
    let there = slice(&[("10.1.0.2", "n2", true)]);
    let found = |service: &Service| {
        let plan = plan_service(service, &[&there], &node());
        let external = plan.ports[0].external.as_ref()?;
        Some((external.verdict.clone(), external.preserve_source))
    };
    assert_eq!(found(&service), Some((Verdict::Drop, true)));
    service.service_type = ServiceType::ClusterIp;
    assert_eq!(
        found(&service),
        Some((Verdict::Balance(vec![0]), false)),
        "a ClusterIP without external IPs has no such policy"
    );
    service.external_ips = vec![ip("203.0.113.1")].into();
    assert_eq!(found(&service), Some((Verdict::Drop, true)));
    service.service_type = ServiceType::LoadBalancer;
    assert_eq!(found(&service), Some((Verdict::Drop, true)));
}

#[test]
fn an_address_has_one_frontend() {
    let mut service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    service.external_ips =
        vec![ip("203.0.113.1"), ip("203.0.113.2"), ip("203.0.113.2"), ip("10.96.0.1"), ip("2001:db8::1")]
            .into();
    let ingress = |address: &str, proxy_mode| IngressAddress { address: ip(address), proxy_mode };
    service.ingress =
        vec![ingress("203.0.113.1", false), ingress("203.0.113.3", true), ingress("2001:db8::2", false)]
            .into();
    let plan = plan_service::<EndpointSlice>(&service, &[], &node());
    let frontends: Vec<_> =
        plan.ports[0].external.as_ref().unwrap().frontends.iter().map(ToString::to_string).collect();
    assert_eq!(frontends, ["nodePort *:30080", "loadBalancer 203.0.113.1:80", "externalIP 203.0.113.2:80"]);
}

#[test]
fn a_family_without_cluster_ip_is_not_served() {
    let mut service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    service.external_ips = vec![ip("2001:db8::1")].into();
    let families = |service: &Service| {
        plan_service::<EndpointSlice>(service, &[], &node())
            .ports
            .iter()
            .map(|port| port.key.family)
            .collect::<Vec<_>>()
    };
    assert_eq!(families(&service), [Family::V4]);
    service.cluster_ips.push(ip("fd00::1"));
    assert_eq!(families(&service), [Family::V4, Family::V6]);
    service.cluster_ips.clear();
    assert_eq!(families(&service), []);
}

#[test]
fn slices_of_other_services_and_the_other_family_are_ignored() {
    let service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    let mut other = slice(&[("10.1.0.1", "n1", true)]);
    other.service = ObjectName::new("b", "web");
    let mut mislabelled = slice(&[("10.1.0.1", "n1", true)]);
    mislabelled.family = Family::V6;
    let plan = plan_service(&service, &[&other, &mislabelled], &node());
    assert_eq!(plan.ports[0].internal.verdict, Verdict::Reject);
}

#[test]
fn of_two_ports_with_one_identity_the_first_stays() {
    let mut service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    let again = ServicePort { port: 81, ..service.ports[0].clone() };
    service.ports.push(again);
    let plan = plan_service::<EndpointSlice>(&service, &[], &node());
    assert_eq!(plan.ports.len(), 1);
    assert_eq!(plan.ports[0].internal.frontends[0].port, 80);
}
