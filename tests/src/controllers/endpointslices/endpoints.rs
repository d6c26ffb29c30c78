//! From pods to endpoints: addresses, conditions, ports, topology hints.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use serde_json::{Value, json};

use super::super::{is_deleting, is_ready};
use crate::apiserver::text;

/// Endpoints with the same ports: they share slices.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Group {
    /// The slice's `ports`; null when there are none.
    pub(super) ports: Value,
    pub(super) endpoints: Vec<Value>,
}

/// The endpoints of a Service in one address family, by their ports.
pub(super) fn groups(
    service: &Value,
    pods: &[Arc<Value>],
    family: &str,
    zones: &HashMap<String, String>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for pod in pods {
        let Some(address) = address(pod, family) else { continue };
        let endpoint = endpoint(service, pod, address, zones);
        let ports = ports(service, pod);
        match groups.iter_mut().find(|group| group.ports == ports) {
            Some(group) => group.endpoints.push(endpoint),
            None => groups.push(Group { ports, endpoints: vec![endpoint] }),
        }
    }
    groups
}

/// The pod's address in a family, unless the pod is over.
fn address<'a>(pod: &'a Value, family: &str) -> Option<&'a str> {
    if ["Succeeded", "Failed"].contains(&text(pod, "/status/phase")) {
        return None;
    }
    let addresses = pod.pointer("/status/podIPs")?.as_array()?;
    addresses.iter().filter_map(|it| it["ip"].as_str()).find(|address| {
        address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6() == (family == "IPv6"))
    })
}

fn endpoint(service: &Value, pod: &Value, address: &str, zones: &HashMap<String, String>) -> Value {
    let (serving, terminating) = (is_ready(pod), is_deleting(pod));
    let publish = service["spec"]["publishNotReadyAddresses"] == true;
    let ready = publish || (serving && !terminating);
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    });
    let hostname = text(pod, "/spec/hostname");
    if !hostname.is_empty() && text(pod, "/spec/subdomain") == text(service, "/metadata/name") {
        endpoint["hostname"] = hostname.into();
    }
    let node = text(pod, "/spec/nodeName");
    if node.is_empty() {
        return endpoint;
    }
    endpoint["nodeName"] = node.into();
    let zone = zones.get(node);
    if let Some(zone) = zone {
        endpoint["zone"] = zone.as_str().into();
    }
    let distribution = text(service, "/spec/trafficDistribution");
    if ready && ["PreferClose", "PreferSameZone", "PreferSameNode"].contains(&distribution) {
        if let Some(zone) = zone {
            endpoint["hints"]["forZones"] = json!([{"name": zone}]);
        }
        if distribution == "PreferSameNode" {
            endpoint["hints"]["forNodes"] = json!([{"name": node}]);
        }
    }
    endpoint
}

/// The slice's ports for this pod: a named target port may have another number in every pod.
fn ports(service: &Value, pod: &Value) -> Value {
    let mut ports = Vec::new();
    for port in service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
        let protocol = text(port, "/protocol");
        let number = match &port["targetPort"] {
            Value::String(name) => container_port(pod, name, protocol),
            number => number.as_u64(),
        };
        // A pod without the named port has the endpoint without this port.
        let Some(number) = number else { continue };
        let mut entry = json!({"name": text(port, "/name"), "protocol": protocol, "port": number});
        if let Some(application) = port.get("appProtocol") {
            entry["appProtocol"] = application.clone();
        }
        ports.push(entry);
    }
    if ports.is_empty() { Value::Null } else { Value::Array(ports) }
}

fn container_port(pod: &Value, name: &str, protocol: &str) -> Option<u64> {
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let mut ports = containers.iter().filter_map(|it| it["ports"].as_array()).flatten();
    let wanted = |it: &&Value| it["name"] == name && text(it, "/protocol") == protocol;
    ports.find(wanted)?["containerPort"].as_u64()
}
