//! From the text of a file to objects, whatever they are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A file that cannot be used, and where in it the trouble is.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", file.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub(super) struct FileError {
    file: PathBuf,
    line: Option<u64>,
    reason: String,
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
    let objects = objects(documents);
    // Text can be YAML by chance; then something else was meant, and nothing of it is to be taken at its word.
    let is_object =
        |object: &Value| !field(object, "kind").is_empty() && !field(object, "apiVersion").is_empty();
    match objects.iter().position(|object| !is_object(object)) {
        Some(index) => Err(failed(None, format!("object {} lacks kind or apiVersion", index + 1))),
        None => Ok(objects),
    }
}

/// The objects of a YAML text, lists taken apart.
pub(super) fn yaml(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    yaml_documents(text).map(objects)
}

fn objects(documents: Vec<Value>) -> Vec<Value> {
    let mut objects = Vec::with_capacity(documents.len());
    for document in documents {
        take_apart(document, &mut objects);
    }
    objects
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
    let kind = field(&document, "kind");
    let Some(item_kind) = kind.strip_suffix("List").map(str::to_owned) else {
        if !document.is_null() {
            into.push(document);
        }
        return;
    };
    let version = field(&document, "apiVersion").to_owned();
    let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) else { return };
    for mut item in items {
        if let Some(item) = item.as_object_mut().filter(|_| !item_kind.is_empty()) {
            item.entry("kind").or_insert_with(|| json!(item_kind));
            item.entry("apiVersion").or_insert_with(|| json!(version));
        }
        take_apart(item, into);
    }
}

/// A field of an object as text, empty when it is missing.
pub(super) fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
