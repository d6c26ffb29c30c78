//! The structural comparison with recorded answers, and the reading of them.

use std::{fs, path::Path};

use serde_json::Value;

/// Where answers may differ, and why. A pattern is the end of a path; `*` stands for any list index.
const ALLOWED: &[(&str, &str)] = &[
    ("metadata/managedFields", "field ownership is not kept: nothing in the lab needs it"),
    ("resources/*/storageVersionHash", "there is no storage with versions"),
    ("labels/topology.kubernetes.io/region", "the lab's nodes have no region"),
    ("labels/topology.kubernetes.io/zone", "no admission plugin copies the zone to pods"),
    ("labels/kubernetes.io/os", "the lab's nodes say what they run"),
    ("spec/podCIDR", "the captured nodes were made by hand, without pod CIDRs"),
    ("spec/podCIDRs", "the captured nodes were made by hand, without pod CIDRs"),
    ("status/daemonEndpoints", "the lab's nodes have no kubelet to talk to"),
    ("status/nodeInfo", "the lab's nodes are namespaces of one machine"),
    ("capacity/cpu", "the lab's nodes do not manage resources"),
    ("capacity/memory", "the lab's nodes do not manage resources"),
    ("allocatable/cpu", "the lab's nodes do not manage resources"),
    ("allocatable/memory", "the lab's nodes do not manage resources"),
    ("status/hostIPs", "the captured pods had no kubelet; a real one reports them"),
    (
        "items/*/metadata/annotations",
        "times have a precision of a second: a change within the second of the last is no news",
    ),
    ("spec/automountServiceAccountToken", "only the captured pods state it"),
];

/// Keys whose values are made up by each server: only their type is compared.
const MADE_UP: &[&str] = &[
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "continue",
    "remainingItemCount",
    "clusterIP",
    "clusterIPs",
    "nodePort",
    "healthCheckNodePort",
    "startTime",
    "lastTransitionTime",
    "lastHeartbeatTime",
    "endpoints.kubernetes.io/last-change-trigger-time",
    // Where the API server itself listens.
    "targetPort",
];

fn allowed(path: &str) -> bool {
    let segments: Vec<&str> = path
        .split('/')
        .map(|it| if it.bytes().all(|byte| byte.is_ascii_digit()) && !it.is_empty() { "*" } else { it })
        .collect();
    let path = segments.join("/");
    ALLOWED.iter().any(|(pattern, _)| path.ends_with(pattern))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

/// Numbers inside of messages are versions and ports.
fn without_digits(text: &str) -> String {
    text.chars().filter(|it| !it.is_ascii_digit()).collect()
}

fn compare(path: &str, real: &Value, ours: &Value, differences: &mut Vec<String>) {
    if allowed(path) {
        return;
    }
    let key = path.rsplit('/').find(|it| !it.bytes().all(|byte| byte.is_ascii_digit())).unwrap_or_default();
    match (real, ours) {
        (Value::Object(real), Value::Object(ours)) => {
            for (key, value) in real {
                let path = format!("{path}/{key}");
                match ours.get(key) {
                    Some(own) => compare(&path, value, own, differences),
                    None if allowed(&path) => {}
                    None => differences.push(format!("{path}: missing, really {value}")),
                }
            }
            for (key, value) in ours.iter().filter(|(key, _)| !real.contains_key(*key)) {
                let path = format!("{path}/{key}");
                if !allowed(&path) {
                    differences.push(format!("{path}: {value}, really absent"));
                }
            }
        }
        (Value::Array(real), Value::Array(ours)) => {
            if real.len() != ours.len() {
                differences.push(format!("{path}: {} items, really {}", ours.len(), real.len()));
            }
            for (position, (real, ours)) in real.iter().zip(ours).enumerate() {
                compare(&format!("{path}/{position}"), real, ours, differences);
            }
        }
        _ if kind_of(real) != kind_of(ours) => {
            differences.push(format!("{path}: {ours}, really {real}"));
        }
        _ if MADE_UP.contains(&key) => {}
        (Value::String(real), Value::String(ours))
            if key == "message" && without_digits(real) == without_digits(ours) => {}
        _ if real != ours => differences.push(format!("{path}: {ours}, really {real}")),
        _ => {}
    }
}

#[track_caller]
pub(crate) fn same(what: &str, real: &Value, ours: &Value) {
    let mut differences = Vec::new();
    compare("", real, ours, &mut differences);
    assert!(differences.is_empty(), "{what}:\n{}\nours: {ours}", differences.join("\n"));
}

pub(crate) fn capture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/kube-captures").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn captured(name: &str) -> Value {
    serde_json::from_str(&capture(name)).unwrap()
}

pub(crate) fn events(text: &str) -> Vec<Value> {
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}
