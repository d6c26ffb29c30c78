//! The objects of one kind over all files: each name once, whichever files it is in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::index::StoreEvent;
use crate::model::ObjectName;

/// Objects by name and file. Of several files with the same object the first one by name counts.
#[derive(Debug)]
pub(super) struct Merged<T> {
    objects: BTreeMap<ObjectName, BTreeMap<PathBuf, T>>,
    files: HashMap<PathBuf, BTreeSet<ObjectName>>,
}

impl<T> Default for Merged<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), files: HashMap::new() }
    }
}

impl<T: Clone + PartialEq> Merged<T> {
    /// All objects that count.
    pub(super) fn all(&self) -> Vec<T> {
        self.objects.values().filter_map(|copies| copies.values().next()).cloned().collect()
    }

    /// Replaces what one file holds, and says what that changes. Of two objects of one name in a file the last counts.
    pub(super) fn replace(
        &mut self,
        file: &Path,
        objects: Vec<T>,
        name: impl Fn(&T) -> ObjectName,
    ) -> Vec<StoreEvent<T>> {
        let mut new: BTreeMap<_, _> = objects.into_iter().map(|object| (name(&object), object)).collect();
        let names: BTreeSet<_> = new.keys().cloned().collect();
        let old = self.files.insert(file.to_owned(), names.clone()).unwrap_or_default();
        let mut events = Vec::new();
        for name in old.union(&names) {
            let copies = self.objects.entry(name.clone()).or_default();
            let before = copies.values().next().cloned();
            match new.remove(name) {
                Some(object) => {
                    if let Some(other) = copies.keys().find(|other| *other != file) {
                        warn!(object = %name, file = %file.display(), other = %other.display(), "object in two files");
                    }
                    copies.insert(file.to_owned(), object);
                }
                None => {
                    copies.remove(file);
                }
            }
            let after = copies.values().next();
            match (before, after) {
                (Some(before), Some(after)) if before == *after => {}
                (_, Some(after)) => events.push(StoreEvent::Apply(after.clone())),
                (Some(_), None) => events.push(StoreEvent::Delete(name.clone())),
                (None, None) => {}
            }
            if copies.is_empty() {
                self.objects.remove(name);
            }
        }
        if names.is_empty() {
            self.files.remove(file);
        }
        events
    }
}
