//! What create, update, patch and delete mean: the rules between requests and the store.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    defaults,
    patch::{self, PatchKind},
    random::Random,
    resources::{RESOURCES, ResourceType},
    services::Allocator,
    status::ApiError,
    store::{Key, Store, key_of, text},
};

/// Everything behind the server's lock.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) store: Store,
    allocator: Allocator,
    random: Random,
    /// What was applied last, so that the next apply knows what to take away.
    applied: HashMap<Key, Value>,
}

/// Which part of an object a write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status.
    Main,
    /// The status only.
    Status,
    /// The number of replicas only.
    Scale,
    /// The node a pod is bound to; written once.
    Binding,
}

/// What a delete asks for.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`: 0 removes at once; unset takes the object's own.
    pub grace_seconds: Option<i64>,
    /// Only if the object still has this UID.
    pub uid: Option<String>,
}

/// The time as Kubernetes writes it.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

type Object = Arc<Value>;

impl Registry {
    pub(crate) fn new(window: usize, allocator: Allocator) -> Self {
        Self { store: Store::new(window), allocator, random: Random::new(), applied: HashMap::new() }
    }

    /// The first address of the primary service range: that of `default/kubernetes`.
    pub(crate) fn first_service_address(&self) -> Option<String> {
        Some(self.allocator.primary()?.nth(1).to_string())
    }

    pub(crate) fn get(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
    ) -> Result<Object, ApiError> {
        self.store.get(resource, namespace, name).cloned().ok_or_else(|| ApiError::not_found(resource, name))
    }

    pub(crate) fn create(
        &mut self,
        resource: &'static ResourceType,
        namespace: &str,
        mut object: Value,
    ) -> Result<Object, ApiError> {
        check_kind(resource, &mut object)?;
        let metadata = &mut object["metadata"];
        if metadata.get("name").is_none_or(|it| it.as_str().is_none_or(str::is_empty)) {
            let prefix = text(metadata, "/generateName").to_owned();
            if prefix.is_empty() {
                return Err(ApiError::invalid(
                    resource,
                    "",
                    "metadata.name",
                    "Required value: name or generateName is required",
                ));
            }
            metadata["name"] = format!("{prefix}{}", self.random.suffix()).into();
        }
        let name = text(metadata, "/name").to_owned();
        check_name(resource, &name)?;
        set_namespace(resource, namespace, metadata)?;
        let namespace = text(metadata, "/namespace").to_owned();
        if resource.namespaced {
            self.check_namespace(resource, &namespace, &name)?;
        }
        if self.store.get(resource, &namespace, &name).is_some() {
            return Err(ApiError::already_exists(resource, &name));
        }
        for field in [
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            defaults::remove(&mut object["metadata"], field);
        }
        object["metadata"]["uid"] = self.random.uid().into();
        object["metadata"]["creationTimestamp"] = rfc3339(Timestamp::now()).into();
        if resource.generation {
            object["metadata"]["generation"] = 1.into();
        }
        if resource.subresources.contains(&"status") && resource.kind != "Node" {
            defaults::remove(&mut object, "status");
        }
        defaults::set(resource, &mut object);
        if resource.kind == "Service" {
            self.allocator.complete(&mut object, None, &mut self.random)?;
        }
        Ok(self.store.put(resource, object))
    }

    fn check_namespace(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
    ) -> Result<(), ApiError> {
        let namespaces = namespace_type();
        let found = self
            .store
            .get(namespaces, "", namespace)
            .ok_or_else(|| ApiError::not_found(namespaces, namespace))?;
        if found.pointer("/metadata/deletionTimestamp").is_some() {
            let message = format!(
                "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being \
                 terminated",
                resource.plural
            );
            return Err(ApiError::new(403, "Forbidden", message));
        }
        Ok(())
    }

    pub(crate) fn update(
        &mut self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        mut object: Value,
        part: Part,
    ) -> Result<Object, ApiError> {
        let old = self.get(resource, namespace, name)?;
        if part == Part::Scale {
            let replicas = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or_default();
            let version = object.pointer("/metadata/resourceVersion").cloned();
            object = Value::clone(&old);
            object["spec"]["replicas"] = replicas.into();
            if let Some(version) = version {
                object["metadata"]["resourceVersion"] = version;
            }
        }
        check_kind(resource, &mut object)?;
        let wanted_version = text(&object, "/metadata/resourceVersion");
        if !wanted_version.is_empty() && wanted_version != text(&old, "/metadata/resourceVersion") {
            return Err(ApiError::stale(resource, name));
        }
        let wanted_uid = text(&object, "/metadata/uid");
        if !wanted_uid.is_empty() && wanted_uid != text(&old, "/metadata/uid") {
            let why = format!(
                "Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {}",
                text(&old, "/metadata/uid")
            );
            return Err(ApiError::conflict(resource, name, &why));
        }
        if ![name, ""].contains(&text(&object, "/metadata/name")) {
            return Err(ApiError::bad_request(
                "the name of the object does not match the name on the URL".to_owned(),
            ));
        }
        let has_status = resource.subresources.contains(&"status");
        if part == Part::Status {
            let status = object.get("status").cloned();
            object = Value::clone(&old);
            if let Some(status) = status {
                object["status"] = status;
            }
        } else if has_status {
            match old.get("status") {
                Some(status) => object["status"] = status.clone(),
                None => defaults::remove(&mut object, "status"),
            }
        }
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "generateName",
            "resourceVersion",
        ] {
            match old.pointer(&format!("/metadata/{field}")) {
                Some(value) => object["metadata"][field] = value.clone(),
                None => defaults::remove(&mut object["metadata"], field),
            }
        }
        defaults::remove(&mut object["metadata"], "managedFields");
        defaults::set(resource, &mut object);
        if resource.kind == "Service" {
            self.allocator.complete(&mut object, Some(&old), &mut self.random)?;
        }
        if object == *old {
            return Ok(old);
        }
        if resource.generation && content(resource, &object) != content(resource, &old) {
            let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1);
            object["metadata"]["generation"] = (generation + 1).into();
        }
        let kept =
            object.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
        let had =
            old.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
        let stored = self.store.put(resource, object);
        if had && !kept && stored.pointer("/metadata/deletionTimestamp").is_some() {
            self.remove(resource, namespace, name);
        }
        Ok(stored)
    }

    /// Binds a pod to the node that a `Binding` names, as a scheduler does.
    pub(crate) fn bind(&mut self, namespace: &str, name: &str, binding: &Value) -> Result<Object, ApiError> {
        let pods = pod_type();
        let mut pod = Value::clone(&*self.get(pods, namespace, name)?);
        let (node, bound) = (text(binding, "/target/name"), text(&pod, "/spec/nodeName"));
        if node.is_empty() {
            return Err(ApiError::invalid(pods, name, "target.name", "Required value"));
        }
        if !bound.is_empty() {
            let why = format!("pod {name} is already assigned to node \"{bound}\"");
            return Err(ApiError::conflict(pods, name, &why));
        }
        pod["spec"]["nodeName"] = node.into();
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": rfc3339(Timestamp::now()),
        });
        let mut conditions =
            pod.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(scheduled);
        pod["status"]["conditions"] = conditions.into();
        Ok(self.store.put(pods, pod))
    }

    pub(crate) fn patch(
        &mut self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        patch: &Value,
        kind: PatchKind,
        part: Part,
    ) -> Result<Object, ApiError> {
        let key = (resource.plural, namespace.to_owned(), name.to_owned());
        let Some(old) = self.store.get(resource, namespace, name).cloned() else {
            if kind != PatchKind::Apply || part != Part::Main {
                return Err(ApiError::not_found(resource, name));
            }
            let mut object = patch.clone();
            check_kind(resource, &mut object)?;
            object["metadata"]["name"] = name.into();
            let created = self.create(resource, namespace, object)?;
            self.applied.insert(key, patch.clone());
            return Ok(created);
        };
        let mut object = if part == Part::Scale { scale(&old) } else { Value::clone(&old) };
        if kind == PatchKind::Apply && part == Part::Main {
            if let Some(before) = self.applied.get(&key) {
                patch::prune(&mut object, before, patch);
            }
            let mut wanted = patch.clone();
            // Applying states no version and never removes identity.
            if let Some(metadata) = wanted.get_mut("metadata") {
                ["resourceVersion", "uid", "creationTimestamp"]
                    .iter()
                    .for_each(|field| defaults::remove(metadata, field));
            }
            for (field, value) in old["metadata"].as_object().into_iter().flatten() {
                if !["labels", "annotations", "finalizers", "ownerReferences"].contains(&field.as_str()) {
                    object["metadata"][field] = value.clone();
                }
            }
            patch::apply(&mut object, &wanted, kind)?;
        } else {
            patch::apply(&mut object, patch, kind)?;
        }
        let updated = self.update(resource, namespace, name, object, part)?;
        if kind == PatchKind::Apply && part == Part::Main {
            self.applied.insert(key, patch.clone());
        }
        Ok(updated)
    }

    /// Deletes an object, or begins to. The object is what it was last; `true` when it is gone.
    pub(crate) fn delete(
        &mut self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(Object, bool), ApiError> {
        let old = self.get(resource, namespace, name)?;
        if let Some(uid) = &options.uid
            && uid != text(&old, "/metadata/uid")
        {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                text(&old, "/metadata/uid")
            );
            return Err(ApiError::conflict(resource, name, &why));
        }
        let deleting = old.pointer("/metadata/deletionTimestamp").is_some();
        match resource.kind {
            "Pod" => {
                let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
                let over = ["Succeeded", "Failed"].contains(&text(&old, "/status/phase"));
                let placed = !text(&old, "/spec/nodeName").is_empty();
                let grace =
                    if over || !placed { 0 } else { options.grace_seconds.or(own).unwrap_or(30).max(0) };
                if grace > 0 {
                    let present = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
                    if deleting && present.is_some_and(|present| present <= grace) {
                        return Ok((old, false));
                    }
                    return Ok((self.begin_deletion(resource, &old, grace), false));
                }
            }
            "Namespace" if !deleting => {
                let mut terminating = Value::clone(&old);
                terminating["metadata"]["deletionTimestamp"] = rfc3339(Timestamp::now()).into();
                terminating["status"]["phase"] = "Terminating".into();
                let terminating = self.store.put(resource, terminating);
                self.empty_namespace(name);
                return Ok((terminating, self.finish_namespace(name)));
            }
            "Namespace" => return Ok((old, false)),
            _ => {}
        }
        if old.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|it| !it.is_empty()) {
            return Ok((if deleting { old } else { self.begin_deletion(resource, &old, 0) }, false));
        }
        self.remove(resource, namespace, name)
            .map(|last| (last, true))
            .ok_or_else(|| ApiError::not_found(resource, name))
    }

    fn begin_deletion(&mut self, resource: &'static ResourceType, old: &Value, grace: i64) -> Object {
        let mut object = old.clone();
        let when = Timestamp::now() + SignedDuration::from_secs(grace);
        object["metadata"]["deletionTimestamp"] = rfc3339(when).into();
        object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if let Some(generation) = object.pointer("/metadata/generation").and_then(Value::as_i64) {
            object["metadata"]["generation"] = (generation + 1).into();
        }
        self.store.put(resource, object)
    }

    fn remove(&mut self, resource: &'static ResourceType, namespace: &str, name: &str) -> Option<Object> {
        let last = self.store.remove(resource, namespace, name)?;
        self.applied.remove(&key_of(resource, &last));
        if resource.kind == "Service" {
            self.allocator.release(&last);
        }
        self.finish_namespace(namespace);
        Some(last)
    }

    fn contents(&self, namespace: &str) -> Vec<(&'static ResourceType, String)> {
        RESOURCES
            .iter()
            .filter(|resource| resource.namespaced)
            .flat_map(|resource| {
                self.store.list(resource, Some(namespace)).map(move |(key, _)| (resource, key.2.clone()))
            })
            .collect()
    }

    fn empty_namespace(&mut self, namespace: &str) {
        for (resource, name) in self.contents(namespace) {
            // Something that is gone already is what is wanted.
            let _gone = self.delete(resource, namespace, &name, &DeleteOptions::default());
        }
    }

    /// Removes a terminating namespace once nothing is left in it.
    fn finish_namespace(&mut self, namespace: &str) -> bool {
        let namespaces = namespace_type();
        let terminating = self
            .store
            .get(namespaces, "", namespace)
            .is_some_and(|it| it.pointer("/metadata/deletionTimestamp").is_some());
        if namespace.is_empty() || !terminating || !self.contents(namespace).is_empty() {
            return false;
        }
        self.store.remove(namespaces, "", namespace).is_some()
    }
}

/// The Scale object of a Deployment.
pub(crate) fn scale(deployment: &Value) -> Value {
    let metadata = &deployment["metadata"];
    let labels = deployment.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": deployment["spec"]["replicas"]},
        "status": {
            "replicas": deployment.pointer("/status/replicas").and_then(Value::as_i64).unwrap_or_default(),
            "selector": selector.join(","),
        },
    })
}

fn pod_type() -> &'static ResourceType {
    ResourceType::by_plural("pods").unwrap_or_else(|| unreachable!("a built-in type"))
}

pub(crate) fn namespace_type() -> &'static ResourceType {
    ResourceType::by_plural("namespaces").unwrap_or(&RESOURCES[2])
}

/// What `metadata.generation` counts changes of.
fn content(resource: &ResourceType, object: &Value) -> Value {
    if resource.kind == "EndpointSlice" {
        let mut content = object.clone();
        defaults::remove(&mut content, "metadata");
        content["labels"] = object["metadata"]["labels"].clone();
        content
    } else {
        object["spec"].clone()
    }
}

fn check_kind(resource: &ResourceType, object: &mut Value) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request("the object provided is unrecognized: not an object"));
    }
    for (field, expected) in [("kind", resource.kind.to_owned()), ("apiVersion", resource.api_version())] {
        match text(object, &format!("/{field}")) {
            "" => object[field] = expected.into(),
            present if present == expected => {}
            present => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({present}) does not match the expected {field} ({expected})"
                )));
            }
        }
    }
    if !object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"] = json!({});
    }
    Ok(())
}

fn check_name(resource: &ResourceType, name: &str) -> Result<(), ApiError> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let dots = !matches!(resource.kind, "Service" | "Namespace");
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = name.len() <= if dots { 253 } else { 63 }
        && name.chars().all(valid)
        && name.starts_with(edge)
        && name.ends_with(edge)
        && (dots || !name.contains('.'));
    if good {
        return Ok(());
    }
    let why =
        format!("Invalid value: {name:?}: a name consists of lower case alphanumeric characters or '-'");
    Err(ApiError::invalid(resource, name, "metadata.name", &why))
}

fn set_namespace(resource: &ResourceType, namespace: &str, metadata: &mut Value) -> Result<(), ApiError> {
    if !resource.namespaced {
        defaults::remove(metadata, "namespace");
        return Ok(());
    }
    let own = text(metadata, "/namespace").to_owned();
    if !own.is_empty() && !namespace.is_empty() && own != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let chosen = [namespace, &own].into_iter().find(|it| !it.is_empty()).unwrap_or("default").to_owned();
    metadata["namespace"] = chosen.into();
    Ok(())
}
