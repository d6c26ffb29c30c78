//! Defaults: what the real server adds to objects that leave fields out.

use serde_json::{Value, json};

use super::resources::ResourceType;

/// Sets a field unless it is there.
pub(crate) fn default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// Removes a field.
pub(crate) fn remove(object: &mut Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(key);
    }
}

fn each(object: &mut Value, key: &str, change: impl Fn(&mut Value)) {
    if let Some(list) = object.get_mut(key).and_then(Value::as_array_mut) {
        list.iter_mut().for_each(change);
    }
}

/// Adds the defaults of the type. Services get theirs together with their addresses.
pub(crate) fn set(resource: &ResourceType, object: &mut Value) {
    match resource.kind {
        "Pod" => {
            default(object, "spec", json!({}));
            pod_spec(&mut object["spec"]);
            let spec = &mut object["spec"];
            default(spec, "serviceAccountName", "default");
            default(spec, "serviceAccount", "default");
            default(spec, "priority", 0);
            default(spec, "preemptionPolicy", "PreemptLowerPriority");
            default(spec, "enableServiceLinks", true);
            let away = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            default(
                spec,
                "tolerations",
                vec![away("node.kubernetes.io/not-ready"), away("node.kubernetes.io/unreachable")],
            );
            default(object, "status", json!({}));
            default(&mut object["status"], "phase", "Pending");
            default(&mut object["status"], "qosClass", "BestEffort");
        }
        "Deployment" => {
            default(object, "spec", json!({}));
            let spec = &mut object["spec"];
            default(spec, "replicas", 1);
            default(spec, "revisionHistoryLimit", 10);
            default(spec, "progressDeadlineSeconds", 600);
            default(spec, "strategy", json!({"type": "RollingUpdate"}));
            default(&mut spec["strategy"], "type", "RollingUpdate");
            if spec["strategy"]["type"] == "RollingUpdate" {
                default(&mut spec["strategy"], "rollingUpdate", json!({}));
                default(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", "25%");
                default(&mut spec["strategy"]["rollingUpdate"], "maxSurge", "25%");
            }
            default(spec, "template", json!({}));
            default(&mut spec["template"], "metadata", json!({}));
            default(&mut spec["template"], "spec", json!({}));
            pod_spec(&mut spec["template"]["spec"]);
            default(object, "status", json!({}));
        }
        "EndpointSlice" => {
            each(object, "endpoints", |endpoint| default(endpoint, "conditions", json!({})));
            each(object, "ports", |port| {
                default(port, "name", "");
                default(port, "protocol", "TCP");
            });
            for list in ["endpoints", "ports"] {
                // An empty list comes back as null, as from the real server.
                if object.get(list).and_then(Value::as_array).is_none_or(Vec::is_empty) {
                    object[list] = Value::Null;
                }
            }
        }
        "Endpoints" => each(object, "subsets", |subset| {
            each(subset, "ports", |port| default(port, "protocol", "TCP"));
        }),
        "Namespace" => {
            default(object, "spec", json!({}));
            default(&mut object["spec"], "finalizers", vec!["kubernetes"]);
            default(object, "status", json!({}));
            default(&mut object["status"], "phase", "Active");
            let name = object["metadata"]["name"].clone();
            default(&mut object["metadata"], "labels", json!({}));
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "Node" => {
            default(object, "spec", json!({}));
            default(object, "status", json!({}));
        }
        _ => {}
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler");
    for containers in ["containers", "initContainers"] {
        each(spec, containers, |container| {
            default(container, "resources", json!({}));
            default(container, "terminationMessagePath", "/dev/termination-log");
            default(container, "terminationMessagePolicy", "File");
            let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
            let latest = !image.contains(':') || image.ends_with(":latest");
            default(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
            each(container, "ports", |port| default(port, "protocol", "TCP"));
            for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
                if let Some(probe) = container.get_mut(probe) {
                    default(probe, "timeoutSeconds", 1);
                    default(probe, "periodSeconds", 10);
                    default(probe, "successThreshold", 1);
                    default(probe, "failureThreshold", 3);
                }
            }
        });
    }
}
