//! The objects as the server itself holds them: no HTTP, same rules.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::{
    handle::Changes,
    patch::PatchKind,
    registry::{DeleteOptions, Part, Registry},
    resources::ResourceType,
    selector::Selector,
    status::ApiError,
    store::{Change, ChangeKind},
};

/// The server's objects behind their lock; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Local(Arc<Mutex<Registry>>);

impl Local {
    pub(crate) fn new(registry: Registry) -> Self {
        Self(Arc::new(Mutex::new(registry)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn version(&self) -> u64 {
        self.lock().store.version()
    }

    pub(super) fn create(
        &self,
        resource: &'static ResourceType,
        object: Value,
    ) -> Result<Arc<Value>, ApiError> {
        self.lock().create(resource, "", object)
    }

    pub(super) fn bind(&self, namespace: &str, name: &str, binding: &Value) -> Result<(), ApiError> {
        self.lock().bind(namespace, name, binding).map(drop)
    }

    pub(super) fn update(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        object: Value,
        part: Part,
    ) -> Result<Arc<Value>, ApiError> {
        self.lock().update(resource, namespace, name, object, part)
    }

    pub(super) fn patch(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        patch: &Value,
        kind: PatchKind,
        part: Part,
    ) -> Result<Arc<Value>, ApiError> {
        self.lock().patch(resource, namespace, name, patch, kind, part)
    }

    pub(super) fn delete(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        self.lock().delete(resource, namespace, name, options).map(drop)
    }

    pub(super) fn get(
        &self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, ApiError> {
        self.lock().get(resource, namespace, name)
    }

    pub(super) fn list(
        &self,
        resource: &'static ResourceType,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Vec<Arc<Value>>, ApiError> {
        let selector = Selector::labels(labels)?;
        let registry = self.lock();
        let list = registry.store.list(resource, namespace).map(|(_, object)| object);
        Ok(list.filter(|object| selector.matches(object)).cloned().collect())
    }

    pub(super) fn follow(&self, resources: Vec<&'static ResourceType>) -> Changes {
        let mut registry = self.lock();
        let version = registry.store.version();
        let mut first = Vec::new();
        for resource in resources.iter().copied() {
            first.extend(registry.store.list(resource, None).map(|(_, object)| {
                let object = Arc::clone(object);
                Arc::new(Change { version, resource, kind: ChangeKind::Added, object, previous: None })
            }));
        }
        Changes::new(first, registry.store.follow(), resources)
    }
}
