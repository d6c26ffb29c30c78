//! The versioned store: objects, the history of their changes, and whoever follows it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde_json::Value;
use tokio::sync::mpsc;

use super::{resources::ResourceType, status::ApiError};

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was created.
    Added,
    /// It was changed.
    Modified,
    /// It is gone; the object of the change is its last state.
    Deleted,
}

/// One change in the store.
#[derive(Debug, Clone)]
pub struct Change {
    /// The resource version this change made.
    pub version: u64,
    /// The object's type.
    pub resource: &'static ResourceType,
    /// What happened.
    pub kind: ChangeKind,
    /// The object after the change; its last state when it was deleted.
    pub object: Arc<Value>,
    /// The object before the change, unless it was created.
    pub previous: Option<Arc<Value>>,
}

/// Where an object is kept: plural, namespace (empty for cluster scope), name.
pub(crate) type Key = (&'static str, String, String);

#[derive(Debug, Default)]
pub(crate) struct Store {
    version: u64,
    /// Changes up to this version are forgotten.
    compacted: u64,
    window: usize,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Arc<Change>>,
    followers: Vec<mpsc::UnboundedSender<Arc<Change>>>,
}

impl Store {
    pub(crate) fn new(window: usize) -> Self {
        Self { version: 1, compacted: 0, window, ..Self::default() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(crate) fn get(&self, resource: &ResourceType, namespace: &str, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(&(resource.plural, namespace.to_owned(), name.to_owned()))
    }

    /// Objects of a type, in the order of namespace and name.
    pub(crate) fn list<'a>(
        &'a self,
        resource: &'a ResourceType,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> + 'a {
        let start = (resource.plural, namespace.unwrap_or_default().to_owned(), String::new());
        self.objects
            .range(start..)
            .take_while(move |(key, _)| key.0 == resource.plural && namespace.is_none_or(|it| it == key.1))
    }

    /// Objects of a type as they were at an earlier version; `None` when that is forgotten.
    pub(crate) fn list_at(
        &self,
        resource: &'static ResourceType,
        namespace: Option<&str>,
        version: u64,
    ) -> Option<BTreeMap<Key, Arc<Value>>> {
        if version < self.compacted {
            return None;
        }
        let mut objects: BTreeMap<Key, Arc<Value>> =
            self.list(resource, namespace).map(|(key, object)| (key.clone(), Arc::clone(object))).collect();
        for change in self.history.iter().rev().take_while(|change| change.version > version) {
            if change.resource != resource {
                continue;
            }
            let key = key_of(resource, &change.object);
            if namespace.is_some_and(|it| it != key.1) {
                continue;
            }
            match &change.previous {
                Some(previous) => objects.insert(key, Arc::clone(previous)),
                None => objects.remove(&key),
            };
        }
        Some(objects)
    }

    /// Creates or replaces an object; gives it the next resource version.
    pub(crate) fn put(&mut self, resource: &'static ResourceType, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let (key, object) = (key_of(resource, &object), Arc::new(object));
        let previous = self.objects.insert(key, Arc::clone(&object));
        let kind = if previous.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
        self.record(Change { version: self.version, resource, kind, object: Arc::clone(&object), previous });
        object
    }

    /// Removes an object; returns its last state.
    pub(crate) fn remove(
        &mut self,
        resource: &'static ResourceType,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Value>> {
        let key = (resource.plural, namespace.to_owned(), name.to_owned());
        let previous = self.objects.remove(&key)?;
        self.version += 1;
        let mut last = Value::clone(&previous);
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        let object = Arc::new(last);
        self.record(Change {
            version: self.version,
            resource,
            kind: ChangeKind::Deleted,
            object: Arc::clone(&object),
            previous: Some(previous),
        });
        Some(object)
    }

    fn record(&mut self, change: Change) {
        let change = Arc::new(change);
        self.followers.retain(|follower| follower.send(Arc::clone(&change)).is_ok());
        self.history.push_back(change);
        while self.history.len() > self.window {
            if let Some(forgotten) = self.history.pop_front() {
                self.compacted = forgotten.version;
            }
        }
    }

    /// Forgets all history.
    pub(crate) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    /// All changes from now on.
    pub(crate) fn follow(&mut self) -> mpsc::UnboundedReceiver<Arc<Change>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.followers.push(sender);
        receiver
    }

    /// The changes after a version.
    pub(crate) fn since(&self, version: u64) -> Result<Vec<Arc<Change>>, ApiError> {
        if version < self.compacted {
            return Err(ApiError::too_old(version, self.compacted));
        }
        let start = self.history.partition_point(|change| change.version <= version);
        Ok(self.history.range(start..).cloned().collect())
    }
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn key_of(resource: &ResourceType, object: &Value) -> Key {
    // The plural of the static table, so that the key borrows nothing.
    let plural = ResourceType::by_plural(resource.plural).map_or("", |it| it.plural);
    (plural, text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::resources::ResourceType, ChangeKind, Store};

    fn node(name: &str, mark: u32) -> serde_json::Value {
        json!({"metadata": {"name": name, "labels": {"mark": mark.to_string()}}})
    }

    #[test]
    fn history_rebuilds_earlier_lists() {
        let nodes = ResourceType::by_plural("nodes").unwrap();
        let mut store = Store::new(100);
        store.put(nodes, node("a", 1));
        store.put(nodes, node("b", 1));
        let then = store.version();
        store.put(nodes, node("a", 2));
        store.put(nodes, node("c", 1));
        store.remove(nodes, "", "b").unwrap();
        let names = |version| -> Vec<String> {
            let list = store.list_at(nodes, None, version).unwrap();
            list.values()
                .map(|it| {
                    format!(
                        "{}{}",
                        super::text(it, "/metadata/name"),
                        super::text(it, "/metadata/labels/mark")
                    )
                })
                .collect()
        };
        assert_eq!(names(then), ["a1", "b1"]);
        assert_eq!(names(store.version()), ["a2", "c1"]);
        let kinds: Vec<_> = store.since(then).unwrap().iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [ChangeKind::Modified, ChangeKind::Added, ChangeKind::Deleted]);
        let deleted = store.since(then).unwrap()[2].object["metadata"]["resourceVersion"].clone();
        assert_eq!(deleted, store.version().to_string());
    }

    #[test]
    fn forgotten_history_is_an_error() {
        let nodes = ResourceType::by_plural("nodes").unwrap();
        let mut store = Store::new(2);
        for mark in 0..5 {
            store.put(nodes, node("a", mark));
        }
        assert_eq!(store.since(2).unwrap_err().code, 410);
        assert_eq!(store.since(store.version() - 2).unwrap().len(), 2);
        store.compact();
        assert_eq!(store.since(store.version() - 1).unwrap_err().reason, "Expired");
        assert!(store.since(store.version()).unwrap().is_empty());
        assert!(store.list_at(nodes, None, 3).is_none());
    }
}
