//! From the text of a file to Kubernetes objects.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::k8s::guarded::Guarded;

/// A file that cannot be used, and where in it the trouble is.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", file.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub(super) struct FileError {
    file: PathBuf,
    line: Option<u64>,
    reason: String,
}

/// One object of a file.
pub(super) enum Document {
    Service(Box<Guarded<Service>>),
    Slice(Box<Guarded<EndpointSlice>>),
    /// Of another kind, named here.
    Other(String),
}

/// The documents of a file, lists taken apart.
pub(super) fn file(file: &Path) -> Result<Vec<Value>, FileError> {
    let failed = |line, reason| FileError { file: file.to_owned(), line, reason };
    let text = std::fs::read_to_string(file).map_err(|error| failed(None, error.to_string()))?;
    let documents = if file.extension().is_some_and(|ext| ext == "json") {
        json_documents(&text).map_err(|error| failed(Some(error.line() as u64), error.to_string()))?
    } else {
        yaml_documents(&text).map_err(|error| {
            let line = error.location().map(|location| location.line());
            failed(line, error.to_string())
        })?
    };
    let mut objects = Vec::with_capacity(documents.len());
    for document in documents {
        take_apart(document, &mut objects);
    }
    Ok(objects)
}

/// The objects of a YAML text, lists taken apart.
#[cfg(test)]
pub(super) fn yaml(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    let mut objects = Vec::new();
    for document in yaml_documents(text)? {
        take_apart(document, &mut objects);
    }
    Ok(objects)
}

fn json_documents(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    serde_json::Deserializer::from_str(text).into_iter().collect()
}

fn yaml_documents(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    // A directory may well hold a whole cluster; aliases that multiply stay limited.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 10_000_000,
            max_nodes: 1_000_000_000,
            max_events: 2_000_000_000,
            max_total_scalar_bytes: 4_000_000_000,
        },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
}

/// `List` and `ServiceList` and their like hold objects, whose kind may then be left out.
fn take_apart(mut document: Value, into: &mut Vec<Value>) {
    let kind = text(&document, "kind");
    let Some(item_kind) = kind.strip_suffix("List").map(str::to_owned) else {
        if !document.is_null() {
            into.push(document);
        }
        return;
    };
    let version = text(&document, "apiVersion");
    let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) else { return };
    for mut item in items {
        if let Some(item) = item.as_object_mut().filter(|_| !item_kind.is_empty()) {
            item.entry("kind").or_insert_with(|| json!(item_kind));
            item.entry("apiVersion").or_insert_with(|| json!(version));
        }
        take_apart(item, into);
    }
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Tells what an object is, and fills in what an API server would.
pub(super) fn classify(mut value: Value) -> Document {
    let kind = text(&value, "kind");
    match (text(&value, "apiVersion").as_str(), kind.as_str()) {
        ("v1", "Service") => {
            default_namespace(&mut value);
            Document::Service(Box::new(Guarded::from_value(value)))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            default_namespace(&mut value);
            default_port_names(&mut value);
            Document::Slice(Box::new(Guarded::from_value(value)))
        }
        (version, _) => Document::Other(format!("{version} {kind}")),
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
