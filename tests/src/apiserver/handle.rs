//! The way to the objects for tests, controllers and everything else that is no agent.

use std::sync::Arc;

use k8s_openapi::Resource;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    local::Local,
    patch::PatchKind,
    registry::{DeleteOptions, Part},
    remote::Remote,
    resources::ResourceType,
    status::ApiError,
    store::{Change, text},
};

/// A handle on an API server's objects; cheap to clone, usable from any thread.
///
/// Methods are synchronous: when one returns, the server has made the change. Objects are the types of `k8s_openapi` or
/// plain [`Value`]s with `apiVersion` and `kind`. A handle of a [`super::ControlPlane`] speaks HTTP, to the lab's own server
/// as to any other; [`super::ApiServer::api`] gives one into the server itself, for tests of the server.
#[derive(Debug, Clone)]
pub struct ApiHandle(Way);

#[derive(Debug, Clone)]
enum Way {
    Local(Local),
    Remote(Remote),
}

/// The same call on whichever way there is.
macro_rules! each {
    ($handle:expr, $way:ident => $call:expr) => {
        match &$handle.0 {
            Way::Local($way) => $call,
            Way::Remote($way) => $call,
        }
    };
}

/// Changes as they happen, after the objects there were at first; see [`ApiHandle::follow`].
#[derive(Debug)]
pub struct Changes {
    first: std::vec::IntoIter<Arc<Change>>,
    rest: mpsc::UnboundedReceiver<Arc<Change>>,
    resources: Vec<&'static ResourceType>,
}

impl Changes {
    pub(super) fn new(
        first: Vec<Arc<Change>>,
        rest: mpsc::UnboundedReceiver<Arc<Change>>,
        resources: Vec<&'static ResourceType>,
    ) -> Self {
        Self { first: first.into_iter(), rest, resources }
    }

    /// The next change; `None` when the API server is gone.
    pub async fn next(&mut self) -> Option<Arc<Change>> {
        if let Some(change) = self.first.next() {
            return Some(change);
        }
        loop {
            let change = self.rest.recv().await?;
            if self.resources.contains(&change.resource) {
                return Some(change);
            }
        }
    }

    /// The next change, if there is one already.
    pub fn try_next(&mut self) -> Option<Arc<Change>> {
        if let Some(change) = self.first.next() {
            return Some(change);
        }
        loop {
            let change = self.rest.try_recv().ok()?;
            if self.resources.contains(&change.resource) {
                return Some(change);
            }
        }
    }
}

fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, ApiError> {
    serde_json::from_value(object.clone()).map_err(|error| {
        ApiError::new(500, "InternalError", format!("the stored object does not fit: {error}"))
    })
}

fn untyped(object: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(object)
        .map_err(|error| ApiError::bad_request(format!("cannot be written as JSON: {error}")))
}

/// The type of an object that names it.
fn type_of(object: &Value) -> Result<&'static ResourceType, ApiError> {
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    ResourceType::by_kind(version, kind).ok_or_else(|| {
        ApiError::bad_request(format!("no matches for kind \"{kind}\" in version \"{version}\""))
    })
}

fn by_plural(plural: &str) -> Result<&'static ResourceType, ApiError> {
    ResourceType::by_plural(plural)
        .ok_or_else(|| ApiError::bad_request(format!("the server has no resource type {plural:?}")))
}

fn type_for<K: Resource>() -> Result<&'static ResourceType, ApiError> {
    ResourceType::by_kind(K::API_VERSION, K::KIND)
        .ok_or_else(|| ApiError::bad_request(format!("no matches for kind \"{}\"", K::KIND)))
}

impl ApiHandle {
    pub(crate) fn local(local: Local) -> Self {
        Self(Way::Local(local))
    }

    pub(crate) fn remote(remote: Remote) -> Self {
        Self(Way::Remote(remote))
    }

    /// Creates an object (of its own namespace, or `default`).
    ///
    /// # Errors
    /// As over HTTP: 404 for an unknown namespace, 409 when it exists, 422 when it is invalid.
    pub fn create<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        let object = untyped(object)?;
        let resource = type_of(&object)?;
        typed(&*each!(self, way => way.create(resource, object))?)
    }

    /// Replaces an object. A `resourceVersion` that is not the current one is a conflict; none at all overwrites.
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn update<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        self.replace(object, Part::Main)
    }

    /// Replaces the status of an object.
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn update_status<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        self.replace(object, Part::Status)
    }

    fn replace<T: Serialize + DeserializeOwned>(&self, object: &T, part: Part) -> Result<T, ApiError> {
        let object = untyped(object)?;
        let resource = type_of(&object)?;
        let (namespace, name) = place(resource, &object);
        typed(&*each!(self, way => way.update(resource, &namespace, &name, object, part))?)
    }

    /// Creates the object or brings it to the state described, as `kubectl apply` does: what an earlier apply named and
    /// this one does not is removed, what others added stays.
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn apply<T: Serialize + DeserializeOwned>(&self, object: &T) -> Result<T, ApiError> {
        let object = untyped(object)?;
        let resource = type_of(&object)?;
        let (namespace, name) = place(resource, &object);
        typed(&*self.patched(resource, &namespace, &name, &object, PatchKind::Apply, Part::Main)?)
    }

    /// Applies every object of a YAML text of one or more documents, in order.
    ///
    /// # Errors
    /// Not YAML, an unknown kind, or what [`ApiHandle::apply`] refuses; objects before the failing one are applied.
    pub fn apply_yaml(&self, yaml: &str) -> Result<Vec<Value>, ApiError> {
        documents(yaml)?.iter().map(|document| self.apply(document)).collect()
    }

    /// Deletes every object of a YAML text; objects that do not exist are skipped.
    ///
    /// # Errors
    /// Not YAML or an unknown kind.
    pub fn delete_yaml(&self, yaml: &str) -> Result<(), ApiError> {
        for document in documents(yaml)?.iter().rev() {
            let resource = type_of(document)?;
            let (namespace, name) = place(resource, document);
            let options = DeleteOptions::default();
            match each!(self, way => way.delete(resource, &namespace, &name, &options)) {
                Err(error) if error.code != 404 => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Patches an object with a JSON merge patch.
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn patch<K: Resource + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<K, ApiError> {
        typed(&*self.patched(type_for::<K>()?, namespace, name, patch, PatchKind::Merge, Part::Main)?)
    }

    /// Patches the status of an object with a JSON merge patch (`{"status": {...}}`).
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn patch_status<K: Resource + DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<K, ApiError> {
        typed(&*self.patched(type_for::<K>()?, namespace, name, patch, PatchKind::Merge, Part::Status)?)
    }

    /// Sets the number of replicas of a Deployment.
    ///
    /// # Errors
    /// 404 when there is no such Deployment.
    pub fn scale(&self, namespace: &str, deployment: &str, replicas: u32) -> Result<(), ApiError> {
        let patch = serde_json::json!({"spec": {"replicas": replicas}});
        self.patch::<k8s_openapi::api::apps::v1::Deployment>(namespace, deployment, &patch).map(drop)
    }

    /// Deletes an object. A pod on a node gets its grace period: it stays, terminating, until its kubelet is done.
    ///
    /// # Errors
    /// 404 when it does not exist.
    pub fn delete<K: Resource>(&self, namespace: &str, name: &str) -> Result<(), ApiError> {
        self.delete_with::<K>(namespace, name, &DeleteOptions::default())
    }

    /// As [`ApiHandle::delete`], with options.
    ///
    /// # Errors
    /// 404 when it does not exist, 409 when a precondition does not hold.
    pub fn delete_with<K: Resource>(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        each!(self, way => way.delete(type_for::<K>()?, namespace, name, options))
    }

    /// An object.
    ///
    /// # Errors
    /// 404 when it does not exist.
    pub fn get<K: Resource + DeserializeOwned>(&self, namespace: &str, name: &str) -> Result<K, ApiError> {
        typed(&*each!(self, way => way.get(type_for::<K>()?, namespace, name))?)
    }

    /// Objects of one namespace, or of all with `None`, that a label selector selects (empty: all).
    ///
    /// # Errors
    /// The selector is none (400).
    pub fn list<K: Resource + DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Vec<K>, ApiError> {
        let resource = type_for::<K>()?;
        let objects = each!(self, way => way.list(resource, namespace, labels))?;
        objects.iter().map(|object| typed(object)).collect()
    }

    /// Follows objects of these types (plural names): first what there is, as [`ChangeKind::Added`], then every change.
    /// Nothing is lost or reordered however slowly it is read.
    ///
    /// # Errors
    /// An unknown type (400).
    pub fn follow(&self, plurals: &[&str]) -> Result<Changes, ApiError> {
        let resources = plurals
            .iter()
            .map(|it| {
                ResourceType::by_plural(it).ok_or_else(|| ApiError::bad_request(format!("unknown: {it}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(each!(self, way => way.follow(resources)))
    }

    /// Objects of a type (plural name) as plain values, shared with the store where it is the server's own.
    ///
    /// # Errors
    /// An unknown type (400).
    pub fn values(&self, plural: &str, namespace: Option<&str>) -> Result<Vec<Arc<Value>>, ApiError> {
        let resource = by_plural(plural)?;
        each!(self, way => way.list(resource, namespace, ""))
    }

    /// One object as a plain value, shared with the store where it is the server's own.
    ///
    /// # Errors
    /// 404 when it does not exist.
    pub fn value(&self, plural: &str, namespace: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        each!(self, way => way.get(by_plural(plural)?, namespace, name))
    }

    /// As [`ApiHandle::patch_status`], with the type by its plural name.
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn patch_status_value(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, ApiError> {
        self.patched(by_plural(plural)?, namespace, name, patch, PatchKind::Merge, Part::Status)
    }

    /// As [`ApiHandle::patch`], with the type by its plural name.
    ///
    /// # Errors
    /// 404, 409 or 422.
    pub fn patch_value(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Arc<Value>, ApiError> {
        self.patched(by_plural(plural)?, namespace, name, patch, PatchKind::Merge, Part::Main)
    }

    /// As [`ApiHandle::delete_with`], with the type by its plural name.
    ///
    /// # Errors
    /// 404, 409.
    pub fn delete_value(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        each!(self, way => way.delete(by_plural(plural)?, namespace, name, options))
    }

    /// Binds a pod to a node, as a scheduler does.
    ///
    /// # Errors
    /// 404, or 409 when it is bound already.
    pub fn bind(&self, namespace: &str, pod: &str, node: &str) -> Result<(), ApiError> {
        let binding = serde_json::json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "namespace": namespace},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        each!(self, way => way.bind(namespace, pod, &binding))
    }

    /// The current resource version.
    ///
    /// # Panics
    /// The server cannot be reached.
    pub fn resource_version(&self) -> u64 {
        each!(self, way => way.version())
    }

    fn patched(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        patch: &Value,
        kind: PatchKind,
        part: Part,
    ) -> Result<Arc<Value>, ApiError> {
        each!(self, way => way.patch(resource, namespace, name, patch, kind, part))
    }
}

/// Namespace (empty for cluster scope) and name of an object.
fn place(resource: &ResourceType, object: &Value) -> (String, String) {
    let namespace = match text(object, "/metadata/namespace") {
        _ if !resource.namespaced => "",
        "" => "default",
        namespace => namespace,
    };
    (namespace.to_owned(), text(object, "/metadata/name").to_owned())
}

fn documents(yaml: &str) -> Result<Vec<Value>, ApiError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml)
        .map_err(|error| ApiError::bad_request(format!("error parsing YAML: {error}")))?;
    let mut objects = Vec::new();
    for document in documents {
        match document.get("items").and_then(Value::as_array) {
            Some(items) if text(&document, "/kind") == "List" => objects.extend(items.iter().cloned()),
            _ if document.is_null() => {}
            _ => objects.push(document),
        }
    }
    Ok(objects)
}
