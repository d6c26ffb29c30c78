//! One received object that may be nonsense: its name survives, and so does the list around it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::model::ObjectName;

/// An object as it came, or why it could not be read.
#[derive(Clone, Debug)]
pub(super) struct Guarded<K> {
    pub(super) name: ObjectName,
    /// `metadata.resourceVersion`, empty when there is none.
    pub(super) version: String,
    pub(super) body: Result<K, String>,
}

impl<K: DeserializeOwned> Guarded<K> {
    pub(super) fn from_value(mut value: Value) -> Self {
        // By far the largest part of many objects, and never used.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let text = |field: &str| {
            let value = value.get("metadata").and_then(|metadata| metadata.get(field));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let name = ObjectName::new(&text("namespace"), &text("name"));
        let version = text("resourceVersion");
        let body = if name.name.is_empty() {
            Err("it has no name".to_owned())
        } else {
            serde_json::from_value(value).map_err(|error| error.to_string())
        };
        Self { name, version, body }
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from_value)
    }
}

/// The name of an object; cluster-scoped ones have an empty namespace.
pub(super) fn object_name(metadata: &ObjectMeta) -> ObjectName {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    ObjectName::new(&text(&metadata.namespace), &text(&metadata.name))
}
