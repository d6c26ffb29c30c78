//! Objects and fields that make no sense: logged once per version of the object, counted, skipped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::warn;

use crate::model::ObjectName;

/// What a source counts. Monotonic since the start of the agent.
#[derive(Debug, Default)]
pub struct SourceStats {
    /// Objects that were skipped because they do not parse.
    pub objects_skipped: AtomicU64,
    /// Fields of otherwise usable objects that were skipped.
    pub fields_skipped: AtomicU64,
    /// Complete lists received (one per kind at the start, then after every lost watch).
    pub lists: AtomicU64,
    /// Failed requests and broken watches, or files that could not be read.
    pub failures: AtomicU64,
    /// Our Node is about to go.
    pub(super) node_leaves: AtomicBool,
}

impl SourceStats {
    /// False while our Node is being deleted, or the cluster autoscaler is about to delete it: load balancers are to send
    /// no new connections here (S-60). A node that nobody knows is eligible.
    pub fn node_is_eligible(&self) -> bool {
        !self.node_leaves.load(Ordering::Relaxed)
    }

    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

/// How many objects are remembered as complained about. Beyond it the log may repeat itself.
const REMEMBERED: usize = 10_000;

/// Reports problems of the objects of one kind.
#[derive(Debug)]
pub(super) struct Problems {
    kind: &'static str,
    seen: HashMap<ObjectName, String>,
}

impl Problems {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, seen: HashMap::new() }
    }

    /// An object that cannot be used.
    pub(super) fn object(&mut self, stats: &SourceStats, name: &ObjectName, version: &str, reason: &str) {
        SourceStats::add(&stats.objects_skipped, 1);
        if self.is_new(name, version) {
            warn!(kind = self.kind, object = %name, reason, "object skipped");
        }
    }

    /// Fields of an object that are ignored; the rest of it is used.
    pub(super) fn fields(
        &mut self,
        stats: &SourceStats,
        name: &ObjectName,
        version: &str,
        fields: &[String],
    ) {
        if fields.is_empty() {
            return;
        }
        SourceStats::add(&stats.fields_skipped, fields.len());
        if self.is_new(name, version) {
            warn!(kind = self.kind, object = %name, "fields skipped: {}", fields.join("; "));
        }
    }

    fn is_new(&mut self, name: &ObjectName, version: &str) -> bool {
        if !version.is_empty() && self.seen.get(name).is_some_and(|seen| seen == version) {
            return false;
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(name.clone(), version.to_owned());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_complained_about_once() {
        let mut problems = Problems::new("Service");
        let name = ObjectName::new("a", "b");
        assert!(problems.is_new(&name, "1"));
        assert!(!problems.is_new(&name, "1"));
        assert!(problems.is_new(&name, "2"));
        assert!(problems.is_new(&ObjectName::new("a", "c"), "2"));
        assert!(problems.is_new(&name, "") && problems.is_new(&name, ""));
    }
}
