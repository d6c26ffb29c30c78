//! The kinds of objects the API server knows.

use serde_json::{Value, json};

/// One resource type: how it is named in URLs and objects, and what it can do.
#[derive(Debug, PartialEq, Eq)]
pub struct ResourceType {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// Name in URLs, such as `services`.
    pub plural: &'static str,
    /// Singular name, such as `service`.
    pub singular: &'static str,
    /// `kind` of the objects.
    pub kind: &'static str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Short names as `kubectl` takes them.
    pub short_names: &'static [&'static str],
    /// Subresources served under an object.
    pub subresources: &'static [&'static str],
    /// Whether `metadata.generation` counts changes.
    pub generation: bool,
}

const fn core(
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    short_names: &'static [&'static str],
    subresources: &'static [&'static str],
) -> ResourceType {
    ResourceType {
        group: "",
        version: "v1",
        plural,
        singular,
        kind,
        namespaced,
        short_names,
        subresources,
        generation: false,
    }
}

/// Everything the server knows, in the order discovery lists it.
pub static RESOURCES: &[ResourceType] = &[
    core("endpoints", "endpoints", "Endpoints", true, &["ep"], &[]),
    core("events", "event", "Event", true, &["ev"], &[]),
    core("namespaces", "namespace", "Namespace", false, &["ns"], &["status"]),
    core("nodes", "node", "Node", false, &["no"], &["status"]),
    ResourceType { generation: true, ..core("pods", "pod", "Pod", true, &["po"], &["status"]) },
    core("services", "service", "Service", true, &["svc"], &["status"]),
    ResourceType {
        group: "apps",
        generation: true,
        ..core("deployments", "deployment", "Deployment", true, &["deploy"], &["status", "scale"])
    },
    ResourceType {
        group: "discovery.k8s.io",
        generation: true,
        ..core("endpointslices", "endpointslice", "EndpointSlice", true, &[], &[])
    },
    ResourceType { group: "events.k8s.io", ..core("events", "event", "Event", true, &["ev"], &[]) },
    ResourceType {
        group: "networking.k8s.io",
        ..core("servicecidrs", "servicecidr", "ServiceCIDR", false, &[], &["status"])
    },
];

/// The verbs every resource has, in the order discovery lists them.
pub(crate) const VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl ResourceType {
    /// Finds a type by group, version and plural name.
    pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|it| it.group == group && it.version == version && it.plural == plural)
    }

    /// Finds a type by the `apiVersion` and `kind` of an object.
    pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|it| it.kind == kind && it.api_version() == api_version)
    }

    /// Finds a type by its plural name.
    pub fn by_plural(plural: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|it| it.plural == plural)
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The object of a `BOOKMARK` event: besides the version only what Go writes for an empty object of the type.
    pub(crate) fn bookmark(&self, resource_version: u64) -> Value {
        let mut object = json!({
            "kind": self.kind,
            "apiVersion": self.api_version(),
            "metadata": {"resourceVersion": resource_version.to_string()},
        });
        let empty = match self.kind {
            "Service" => json!({"spec": {}, "status": {"loadBalancer": {}}}),
            "EndpointSlice" => json!({"addressType": "", "endpoints": null, "ports": null}),
            "Pod" => json!({"spec": {"containers": null}, "status": {}}),
            "Node" | "Namespace" => json!({"spec": {}, "status": {}}),
            "Deployment" => json!({
                "spec": {"selector": null, "template": {"metadata": {}, "spec": {"containers": null}}, "strategy": {}},
                "status": {},
            }),
            "Event" if !self.group.is_empty() => json!({
                "eventTime": null, "regarding": {}, "deprecatedSource": {},
                "deprecatedFirstTimestamp": null, "deprecatedLastTimestamp": null,
            }),
            "ServiceCIDR" => json!({"spec": {}, "status": {}}),
            "Event" => json!({
                "involvedObject": {}, "source": {}, "firstTimestamp": null, "lastTimestamp": null,
                "eventTime": null, "reportingComponent": "", "reportingInstance": "",
            }),
            _ => json!({}),
        };
        if let (Some(object), Value::Object(empty)) = (object.as_object_mut(), empty) {
            object.extend(empty);
        }
        object
    }
}
