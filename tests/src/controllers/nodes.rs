//! Node objects for the runtime's nodes.

use jiff::Timestamp;
use serde_json::json;

use crate::{
    apiserver::{ApiError, ApiHandle, rfc3339},
    runtime::NodeInfo,
};

/// Creates or updates the Node of each node of the runtime.
pub(super) fn register(api: &ApiHandle, nodes: &[NodeInfo]) -> Result<(), ApiError> {
    for node in nodes {
        let mut labels = json!({"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"});
        if let Some(zone) = &node.zone {
            labels["topology.kubernetes.io/zone"] = zone.as_str().into();
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels},
            "spec": {},
        });
        if let Some(first) = node.pod_cidrs.first() {
            object["spec"] = json!({"podCIDR": first, "podCIDRs": node.pod_cidrs});
        }
        api.apply(&object)?;
        let mut addresses: Vec<_> = node
            .addresses
            .iter()
            .map(|it| json!({"type": "InternalIP", "address": it.to_string()}))
            .collect();
        addresses.push(json!({"type": "Hostname", "address": node.name}));
        let now = rfc3339(Timestamp::now());
        let status = json!({"status": {
            "addresses": addresses,
            "capacity": {"pods": "500"},
            "allocatable": {"pods": "500"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ok",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
        }});
        api.patch_status_value("nodes", "", &node.name, &status)?;
    }
    Ok(())
}
