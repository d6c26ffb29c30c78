//! The index: what is dirty when, and what is planned then.

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::model::{
    Conditions, Endpoint, EndpointPort, Family, Protocol, Rare, ServicePort, ServiceType, TrafficPolicy,
};

pub(in crate::index) fn service(name: &str) -> Service {
    Service {
        name: ObjectName::new("ns", name),
        created: None,
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::from([10, 96, 0, 1])].into(),
        external_ips: Rare::default(),
        ingress: Rare::default(),
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }].into(),
        affinity_timeout: None,
        algorithm: crate::plan::Algorithm::Random,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Rare::default(),
        health_check_node_port: 0,
    }
}

pub(in crate::index) fn slice(name: &str, service: &str, endpoints: &[u8]) -> EndpointSlice {
    let endpoint = |number: &u8| Endpoint {
        address: IpAddr::from([10, 1, 0, *number]),
        conditions: Conditions { ready: true, serving: true, terminating: false },
        node_name: Some("n1".into()),
        zone_hints: Rare::default(),
        node_hints: Rare::default(),
    };
    EndpointSlice {
        name: ObjectName::new("ns", name),
        service: ObjectName::new("ns", service),
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn stamp() -> Stamp {
    Stamp::default()
}

fn node(name: &str) -> NodeFacts {
    NodeFacts { name: name.into(), zone: None }
}

/// An index with these objects, all of it handed out.
fn index(services: &[&str], slices: Vec<EndpointSlice>) -> Index {
    let mut index = Index::new();
    index.set_node(node("n1"), stamp());
    index.reset_services(services.iter().map(|name| service(name)).collect(), stamp());
    index.reset_slices(slices, stamp());
    assert!(index.take_changes().unwrap().full);
    index
}

/// The names of the Services that are dirty, and nothing is after it.
fn dirty(index: &mut Index) -> Vec<String> {
    let changes = index.take_changes().unwrap_or_default();
    assert!(!changes.full);
    assert!(!index.has_changes());
    changes.services.keys().map(|name| name.name.to_string()).collect()
}

/// The last octets of the endpoints planned for a Service.
fn endpoints(index: &Index, service: &str) -> Option<Vec<String>> {
    let plan = index.plan(&ObjectName::new("ns", service))?;
    Some(plan.ports[0].endpoints.iter().map(|e| e.address.to_string().replace("10.1.0.", "")).collect())
}

#[test]
fn nothing_is_handed_out_before_everything_was_heard_of() {
    let steps: [fn(&mut Index); 3] = [
        |index| index.set_node(node("n1"), stamp()),
        |index| index.reset_services(vec![service("web")], stamp()),
        |index| index.reset_slices(vec![slice("web-1", "web", &[2])], stamp()),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut index = Index::new();
        index.apply_service(service("early"), stamp());
        index.apply_slice(slice("early-1", "early", &[9]), stamp());
        for step in order {
            assert!(!index.synced() && !index.has_changes() && index.take_changes().is_none());
            steps[step](&mut index);
        }
        assert!(index.synced());
        let changes = index.take_changes().unwrap();
        assert!(changes.full);
        let names: Vec<_> = changes.services.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["ns/web"], "what was there before the list and is not in it is gone");
        assert_eq!(endpoints(&index, "web").unwrap(), ["2"]);
        assert!(index.take_changes().is_none());
    }
}

#[test]
fn a_full_hand_out_comes_even_when_there_is_nothing() {
    let mut index = Index::new();
    index.set_node(node("n1"), stamp());
    index.reset_services(Vec::new(), stamp());
    index.reset_slices(Vec::new(), stamp());
    assert_eq!(index.take_changes(), Some(Changes { full: true, services: BTreeMap::new() }));
    assert_eq!(index.take_changes(), None);
}

#[test]
fn the_same_again_changes_nothing() {
    let mut index = index(&["web"], vec![slice("web-1", "web", &[2])]);
    index.apply_service(service("web"), stamp());
    index.apply_slice(slice("web-1", "web", &[2]), stamp());
    index.set_node(node("n1"), stamp());
    index.reset_services(vec![service("web")], stamp());
    index.reset_slices(vec![slice("web-1", "web", &[2])], stamp());
    assert!(!index.has_changes());
}

#[test]
fn a_list_removes_what_vanished() {
    let slices = vec![slice("a-1", "a", &[1]), slice("b-1", "b", &[2]), slice("c-1", "c", &[3])];
    let mut index = index(&["a", "b", "c"], slices);
    index.reset_services(vec![service("a"), service("c")], stamp());
    assert_eq!(dirty(&mut index), ["b"]);
    assert_eq!(endpoints(&index, "b"), None);
    index.reset_slices(vec![slice("a-1", "a", &[1]), slice("b-1", "b", &[2])], stamp());
    assert_eq!(dirty(&mut index), ["c"]);
    assert_eq!(endpoints(&index, "c").unwrap(), [""; 0]);
}

#[test]
fn a_slice_may_come_before_its_service_and_outlive_it() {
    let mut index = index(&[], vec![]);
    index.apply_slice(slice("web-1", "web", &[2]), stamp());
    assert!(!index.has_changes(), "a slice alone is nothing to plan");
    index.apply_service(service("web"), stamp());
    assert_eq!(dirty(&mut index), ["web"]);
    assert_eq!(endpoints(&index, "web").unwrap(), ["2"]);
    index.delete_service(&ObjectName::new("ns", "web"), stamp());
    assert_eq!(dirty(&mut index), ["web"]);
    index.apply_slice(slice("web-1", "web", &[3]), stamp());
    assert!(!index.has_changes());
    index.apply_service(service("web"), stamp());
    assert_eq!(dirty(&mut index), ["web"]);
    assert_eq!(endpoints(&index, "web").unwrap(), ["3"]);
}

#[test]
fn a_slice_that_changes_its_label_moves() {
    let mut index = index(&["a", "b"], vec![slice("s", "a", &[1])]);
    index.apply_slice(slice("s", "b", &[1]), stamp());
    assert_eq!(dirty(&mut index), ["a", "b"]);
    assert_eq!(endpoints(&index, "a").unwrap(), [""; 0]);
    assert_eq!(endpoints(&index, "b").unwrap(), ["1"]);
    index.delete_slice(&ObjectName::new("ns", "s"), stamp());
    assert_eq!(dirty(&mut index), ["b"]);
}

#[test]
fn an_endpoint_that_moves_between_slices_is_always_there() {
    let mut index = index(&["a"], vec![slice("s1", "a", &[1, 2]), slice("s2", "a", &[3])]);
    index.apply_slice(slice("s2", "a", &[2, 3]), stamp());
    assert_eq!(endpoints(&index, "a").unwrap(), ["1", "2", "3"]);
    index.apply_slice(slice("s1", "a", &[1]), stamp());
    assert_eq!(endpoints(&index, "a").unwrap(), ["1", "2", "3"]);
    assert_eq!(dirty(&mut index), ["a"]);
}

#[test]
fn deleting_what_is_not_known_changes_nothing() {
    let mut index = index(&["a"], vec![slice("s", "other", &[1])]);
    index.delete_service(&ObjectName::new("ns", "b"), stamp());
    index.delete_service(&ObjectName::new("ns", "other"), stamp());
    index.delete_slice(&ObjectName::new("ns", "t"), stamp());
    index.delete_slice(&ObjectName::new("ns", "s"), stamp());
    assert!(!index.has_changes());
}

#[test]
fn nothing_is_kept_of_what_is_gone() {
    let mut index = index(&["a"], vec![slice("s", "a", &[1]), slice("t", "b", &[1])]);
    index.delete_slice(&ObjectName::new("ns", "t"), stamp());
    index.delete_service(&ObjectName::new("ns", "a"), stamp());
    index.delete_slice(&ObjectName::new("ns", "s"), stamp());
    assert!(index.entries.iter().flatten().next().is_none());
    assert!(index.services.is_empty() && index.slices.is_empty());
}

#[test]
fn facts_of_the_node_concern_every_service() {
    let mut index = index(&["a", "b"], vec![slice("s", "a", &[1]), slice("t", "gone", &[1])]);
    index.set_node(node("n2"), stamp());
    assert_eq!(dirty(&mut index), ["a", "b"]);
    index.set_node(NodeFacts { zone: Some("z1".into()), ..node("n1") }, stamp());
    assert_eq!(dirty(&mut index), ["a", "b"]);
}

#[test]
fn a_zone_gained_or_lost_concerns_the_services_with_zone_hints() {
    let mut hinted = slice("t", "b", &[1, 2]);
    hinted.endpoints[1].zone_hints = vec!["z1".into()].into();
    let mut gone = slice("u", "gone", &[1]);
    gone.endpoints[0].zone_hints = vec!["z1".into()].into();
    let mut index = index(&["a", "b"], vec![slice("s", "a", &[1]), hinted, gone]);
    for zone in [Some("z1".into()), Some("z2".into()), None] {
        index.set_node(NodeFacts { zone, ..node("n1") }, stamp());
        assert_eq!(dirty(&mut index), ["b"]);
    }
    // Before Services are heard of nothing is there to be marked, and the first hand-out has them all anyway.
    let mut index = Index::new();
    index.set_node(node("n1"), stamp());
    index.set_node(NodeFacts { zone: Some("z1".into()), ..node("n1") }, stamp());
    index.reset_services(vec![service("a")], stamp());
    index.reset_slices(Vec::new(), stamp());
    assert_eq!(index.take_changes().unwrap().services.len(), 1);
}

#[test]
fn the_oldest_change_is_what_latency_counts_from() {
    let mut index = index(&["a"], vec![]);
    let now = Instant::now();
    let at = |seconds| Some(now + Duration::from_secs(seconds));
    let triggered = |second| Some(Timestamp::from_second(second).unwrap());
    index.apply_slice(slice("s1", "a", &[1]), Stamp { received: at(2), triggered: triggered(7) });
    index.apply_slice(slice("s2", "a", &[2]), Stamp { received: at(3), triggered: triggered(5) });
    index.apply_service(
        Service { affinity_timeout: Some(3), ..service("a") },
        Stamp { received: at(4), triggered: None },
    );
    let changes = index.take_changes().unwrap();
    assert_eq!(
        changes.services[&ObjectName::new("ns", "a")],
        Stamp { received: at(2), triggered: triggered(5) }
    );
    index.delete_slice(&ObjectName::new("ns", "s1"), Stamp { received: at(5), triggered: triggered(7) });
    let changes = index.take_changes().unwrap();
    assert_eq!(changes.services[&ObjectName::new("ns", "a")], Stamp { received: at(5), triggered: None });
}

#[test]
fn what_is_restored_is_handed_out_again() {
    let mut index = Index::new();
    index.set_node(node("n1"), stamp());
    index.reset_services(vec![service("a"), service("b")], stamp());
    index.reset_slices(Vec::new(), stamp());
    let first = index.take_changes().unwrap();
    index.delete_service(&ObjectName::new("ns", "a"), stamp());
    index.restore(first);
    let again = index.take_changes().unwrap();
    assert!(again.full);
    assert_eq!(again.services.keys().map(|n| n.name.to_string()).collect::<Vec<_>>(), ["b"]);

    index.apply_service(service("c"), stamp());
    let change = index.take_changes().unwrap();
    index.delete_service(&ObjectName::new("ns", "c"), stamp());
    index.restore(change);
    assert_eq!(dirty(&mut index), ["c"], "a Service that is gone by now has to be taken away all the same");
}
