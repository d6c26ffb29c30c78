//! From manifests to changes, document by document.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tracing::debug;

use super::text;
use crate::index::{Change, Event};
use crate::k8s::guarded::Guarded;
use crate::k8s::kinds::{Kind, Reducer};
use crate::k8s::{Selection, SourceStats};
use crate::model;

/// Turns manifests into changes of the index, as a directory source does, without a directory.
pub struct ManifestDecoder {
    services: Reducer<model::Service>,
    slices: Reducer<model::EndpointSlice>,
    stats: Arc<SourceStats>,
}

impl ManifestDecoder {
    /// A decoder for the objects of `selection`; what cannot be used is counted in `stats`.
    pub fn new(selection: Selection, stats: Arc<SourceStats>) -> Self {
        Self { services: Reducer::new(selection.clone()), slices: Reducer::new(selection), stats }
    }

    /// The changes that applying these YAML documents means. An object that is not ours comes out as deleted, one
    /// that cannot be used does not come out at all. The error says which line is no YAML.
    pub fn yaml(&mut self, text: &str) -> Result<Vec<Change>, String> {
        let objects = text::yaml(text).map_err(|error| error.to_string())?;
        Ok(objects.into_iter().filter_map(|object| self.object(object)).map(|event| event.change).collect())
    }

    /// The change that applying one object means.
    pub(super) fn object(&mut self, mut value: Value) -> Option<Event> {
        let kind = text::field(&value, "kind");
        match (text::field(&value, "apiVersion"), kind) {
            ("v1", "Service") => {
                default_namespace(&mut value);
                self.services.applied(Guarded::<Service>::from_value(value), &self.stats)
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                default_namespace(&mut value);
                default_port_names(&mut value);
                self.slices.applied(Guarded::<EndpointSlice>::from_value(value), &self.stats)
            }
            (version, kind) => {
                debug!(version, kind, "object of no concern");
                None
            }
        }
    }
}

fn default_namespace(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let namespace = metadata.entry("namespace").or_insert(Value::Null);
        if namespace.is_null() || namespace == "" {
            *namespace = json!("default");
        }
    }
}

/// An unnamed port has the name `""` (S-10); the server writes it into the object.
fn default_port_names(slice: &mut Value) {
    let ports = slice.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        let name = port.entry("name").or_insert(Value::Null);
        if name.is_null() {
            *name = json!("");
        }
    }
}
