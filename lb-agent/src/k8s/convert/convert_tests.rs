//! The conversions' corners that the scenarios in `tests/scenarios` do not show in a plan.

use lb_common::layout::Algorithm;
use serde_json::{Value, json};

use super::*;
use crate::k8s::Selection;
use crate::model::{self, ServiceType};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn convert(value: Value) -> (Reduced<model::Service>, Vec<String>) {
    let mut converter = Converter::default();
    let reduced = service(&object(value), &Selection::default(), &mut converter);
    (reduced, converter.take_skipped())
}

fn kept(value: Value) -> model::Service {
    match convert(value) {
        (Reduced::Keep(service), skipped) if skipped.is_empty() => service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_with_everything() {
    let service = kept(json!({
        "metadata": {"namespace": "a", "name": "b", "creationTimestamp": "2026-01-01T00:00:10Z"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["203.0.113.1"], "healthCheckNodePort": 30001,
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "", "2001:db8::/32"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}},
            "ports": [{"name": "p", "port": 443, "protocol": "UDP", "nodePort": 30000}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "x"}, {"ip": ""}]}},
    }));
    assert_eq!(service.name.to_string(), "a/b");
    assert_eq!(service.created, Some(1_767_225_610));
    assert_eq!(service.service_type, ServiceType::LoadBalancer);
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(texts(&service.source_ranges), ["10.0.0.0/8", "2001:db8::/32"]);
    assert_eq!(service.affinity_timeout, Some(86_400));
    assert_eq!(service.health_check_node_port, 30_001);
    assert_eq!(service.ports[0].node_port, 30_000);
    assert_eq!(service.ingress.len(), 1);
}

fn texts(ranges: &[model::Cidr]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

#[test]
fn a_source_range_that_cannot_be_read_admits_nobody() {
    let (reduced, skipped) = convert(json!({
        "metadata": {"name": "b"},
        "spec": {
            "clusterIP": "10.96.0.1",
            "loadBalancerSourceRanges": ["10.0.0.1/8", "10.0.0.0", "fd00::/200", "anywhere"],
        },
    }));
    let Reduced::Keep(service) = reduced else { panic!("{reduced:?}") };
    assert_eq!(texts(&service.source_ranges), ["10.0.0.0/8", "0.0.0.0/32", "::/128", "0.0.0.0/32"]);
    assert_eq!(skipped.len(), 3);
}

#[test]
fn a_service_with_only_a_cluster_ip() {
    let service = kept(json!({"metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.1"}}));
    assert_eq!(service.cluster_ips.len(), 1);
    assert_eq!(service.affinity_timeout, None);
    assert!(service.ports.is_empty());
}

#[test]
fn an_annotation_says_how_connections_choose_and_otherwise_the_default_does() {
    for default in [Algorithm::Random, Algorithm::Maglev] {
        let selection = Selection { algorithm: default, ..Selection::default() };
        for (value, wanted, skipped) in [
            (json!(null), default, 0),
            (json!({"lb-agent/load-balancing": ""}), default, 0),
            (json!({"lb-agent/load-balancing": "random"}), Algorithm::Random, 0),
            (json!({"lb-agent/load-balancing": "maglev"}), Algorithm::Maglev, 0),
            (json!({"lb-agent/load-balancing": "Maglev"}), default, 1),
        ] {
            let mut converter = Converter::default();
            let value = json!({
                "metadata": {"name": "b", "annotations": value}, "spec": {"clusterIP": "10.96.0.1"},
            });
            let Reduced::Keep(service) = service(&object(value), &selection, &mut converter) else {
                panic!("a Service like any other")
            };
            assert_eq!((service.algorithm, converter.take_skipped().len()), (wanted, skipped));
        }
    }
}

#[test]
fn an_affinity_out_of_range_becomes_the_default() {
    for seconds in [0, -1, 86_401] {
        let (reduced, skipped) = convert(json!({
            "metadata": {"name": "b"},
            "spec": {
                "clusterIP": "10.96.0.1", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
            },
        }));
        let Reduced::Keep(service) = reduced else { panic!("{reduced:?}") };
        assert_eq!(service.affinity_timeout, Some(10_800));
        assert_eq!(skipped.len(), 1);
    }
}

#[test]
fn the_last_change_of_a_slice_is_read_where_it_is_told() {
    let slice = |annotations| {
        object(
            json!({"metadata": {"name": "s", "annotations": annotations}, "addressType": "IPv4", "endpoints": []}),
        )
    };
    let key = "endpoints.kubernetes.io/last-change-trigger-time";
    let time = last_change(&slice(json!({key: "2026-11-21T04:00:00.5Z"}))).unwrap();
    assert_eq!(time.as_millisecond(), 1_795_233_600_500);
    assert_eq!(last_change(&slice(json!({key: "yesterday"}))), None);
    assert_eq!(last_change(&slice(Value::Null)), None);
}

#[test]
fn node_facts_are_name_and_zone() {
    let facts = |labels| node_facts(&object(json!({"metadata": {"name": "n1", "labels": labels}})));
    let zone = "topology.kubernetes.io/zone";
    assert_eq!(facts(json!({zone: "z1"})), NodeFacts { name: "n1".into(), zone: Some("z1".into()) });
    for labels in [json!({zone: ""}), json!({}), Value::Null] {
        assert_eq!(facts(labels), NodeFacts { name: "n1".into(), zone: None });
    }
}

#[test]
fn s_60_a_node_leaves_when_it_is_deleted_or_the_autoscaler_says_so() {
    let leaves = |node: Value| node_leaves(&object(node));
    let tainted = |key: &str| json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    assert!(!leaves(json!({"metadata": {"name": "n1"}})));
    assert!(!leaves(tainted("node.kubernetes.io/not-ready")));
    assert!(leaves(tainted("ToBeDeletedByClusterAutoscaler")));
    assert!(leaves(json!({"metadata": {"name": "n1", "deletionTimestamp": "2026-11-21T04:00:00Z"}})));
}

#[test]
fn equal_strings_share_their_memory_and_unused_ones_go() {
    let mut converter = Converter::default();
    let first = converter.share("zone-a");
    assert!(Arc::ptr_eq(&first, &converter.share("zone-a")));
    for number in 0..100_000 {
        converter.share(&format!("name-{number}"));
    }
    assert!(converter.strings.len() < 20_000, "{} strings kept", converter.strings.len());
    assert!(Arc::ptr_eq(&first, &converter.share("zone-a")));
}
