//! As much of kustomize as our kustomizations use, strictly: what it does not know is an error, not ignored.
//!
//! Its results are held against files that the real kustomize rendered, and against the real one where it is installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

/// Fields whose lists are merged by a field of their elements (`x-kubernetes-patch-merge-key` in the API's schema).
const MERGE_KEYS: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
];

/// Kinds without a namespace.
const CLUSTER_SCOPED: &[&str] = &["ClusterRole", "ClusterRoleBinding"];

/// The documents of a YAML text.
pub(crate) fn documents(yaml: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Renders the kustomization in a directory.
pub(crate) fn build(directory: &Path) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    apply(directory, &mut objects)?;
    Ok(objects)
}

/// Adds the resources of a kustomization to `objects`, then changes all of them as it says.
fn apply(directory: &Path, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    let read = |name: &str| {
        let path = directory.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        documents(&text).with_context(|| path.display().to_string())
    };
    let kustomization = read("kustomization.yaml")?.pop().context("an empty kustomization")?;
    let kustomization = kustomization.as_object().context("a kustomization is an object")?;
    for (field, value) in kustomization {
        let list = || value.as_array().with_context(|| format!("{field}: a list"));
        match field.as_str() {
            "apiVersion" | "kind" | "namespace" | "patches" | "images" | "components" => {}
            "resources" => {
                for resource in list()? {
                    let name = text(resource)?;
                    if directory.join(name).is_dir() {
                        apply(&inside(directory, name)?, objects)?;
                    } else {
                        objects.extend(read(name)?);
                    }
                }
            }
            _ => bail!("{}: `{field}` is not known here", directory.display()),
        }
    }
    let items = |field: &str| kustomization.get(field).and_then(Value::as_array).into_iter().flatten();
    // The order in which kustomize itself does it.
    for component in items("components") {
        apply(&inside(directory, text(component)?)?, objects)?;
    }
    for patch in items("patches") {
        let name = only(patch, &["path"])?["path"].as_str().context("patches: a path")?;
        for patch in read(name)? {
            let key = identity(&patch)?;
            let target = objects.iter_mut().find(|object| identity(object).is_ok_and(|it| it == key));
            merge(target.with_context(|| format!("{name}: nothing to patch: {key:?}"))?, &patch);
        }
    }
    if let Some(namespace) = kustomization.get("namespace") {
        for object in objects.iter_mut().filter(|object| !CLUSTER_SCOPED.contains(&kind(object))) {
            object["metadata"]["namespace"] = namespace.clone();
        }
    }
    for image in items("images") {
        let image = only(image, &["name", "newTag"])?;
        let (name, tag) = (text(&image["name"])?, text(&image["newTag"])?);
        for object in objects.iter_mut() {
            retag(object, name, tag);
        }
    }
    Ok(())
}

/// A directory that a kustomization names; it has to be one of `deploy/`.
fn inside(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path =
        directory.join(name).canonicalize().with_context(|| format!("{name} of {}", directory.display()))?;
    ensure!(path.is_dir(), "{} is no directory", path.display());
    Ok(path)
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value.as_str().with_context(|| format!("not a text: {value}"))
}

fn only<'a>(value: &'a Value, fields: &[&str]) -> anyhow::Result<&'a Map<String, Value>> {
    let object = value.as_object().with_context(|| format!("not an object: {value}"))?;
    let unknown: Vec<_> = object.keys().filter(|key| !fields.contains(&key.as_str())).collect();
    ensure!(unknown.is_empty() && object.len() == fields.len(), "not just {fields:?}: {value}");
    Ok(object)
}

/// The kind of an object.
pub(crate) fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// What tells an object from others.
fn identity(object: &Value) -> anyhow::Result<[String; 4]> {
    let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let key = [&object["apiVersion"], &object["kind"], &metadata["namespace"], &metadata["name"]].map(part);
    ensure!(!key[3].is_empty(), "an object without a name: {object}");
    Ok(key)
}

/// A strategic merge patch: objects are merged, null removes, lists with a key are merged by it, others replaced.
fn merge(target: &mut Value, patch: &Value) {
    let (Some(target), Some(patch)) = (target.as_object_mut(), patch.as_object()) else {
        *target = patch.clone();
        return;
    };
    for (field, value) in patch {
        let key = MERGE_KEYS.iter().find(|(name, _)| name == field).map(|(_, key)| *key);
        match (value, target.get_mut(field), key) {
            (Value::Null, _, _) => drop(target.remove(field)),
            (Value::Array(items), Some(Value::Array(present)), Some(key)) => {
                for item in items {
                    match present.iter_mut().find(|it| it[key] == item[key]) {
                        Some(found) => merge(found, item),
                        None => present.push(item.clone()),
                    }
                }
            }
            (Value::Object(_), Some(present), _) => merge(present, value),
            _ => drop(target.insert(field.clone(), value.clone())),
        }
    }
}

fn retag(value: &mut Value, name: &str, tag: &str) {
    match value {
        Value::Object(object) => {
            for (field, value) in object {
                let is_image =
                    field == "image" && value.as_str().is_some_and(|it| it.split(':').next() == Some(name));
                if is_image { *value = format!("{name}:{tag}").into() } else { retag(value, name, tag) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| retag(item, name, tag)),
        _ => {}
    }
}
