//! From Kubernetes objects to the values of [`crate::model`].

mod service;
mod slice;

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::model::{NodeFacts, ObjectName, Protocol};

pub(super) use service::service;
pub(super) use slice::{endpoint_slice, last_change};

/// What becomes of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reduced<T> {
    /// It is ours.
    Keep(T),
    /// It is sound, but not for us: as if it did not exist.
    Ignore,
    /// It cannot be used, for this reason.
    Bad(String),
}

/// State of a conversion: the fields that made no sense, and the strings seen so far.
///
/// Node names, zones, port names and namespaces repeat by the thousand; equal ones share their memory.
#[derive(Debug, Default)]
pub(super) struct Converter {
    strings: HashSet<Arc<str>>,
    skipped: Vec<String>,
}

/// Strings kept before those nobody uses any more are dropped.
const STRINGS: usize = 4096;

impl Converter {
    /// The fields skipped since the last call.
    pub(super) fn take_skipped(&mut self) -> Vec<String> {
        std::mem::take(&mut self.skipped)
    }

    fn skip(&mut self, what: impl std::fmt::Display) {
        self.skipped.push(what.to_string());
    }

    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return known.clone();
        }
        if self.strings.len() >= STRINGS && self.strings.len() == self.strings.capacity() {
            self.strings.retain(|text| Arc::strong_count(text) > 1);
        }
        let text: Arc<str> = text.into();
        self.strings.insert(text.clone());
        text
    }

    fn name(&mut self, namespace: &str, name: &str) -> ObjectName {
        ObjectName { namespace: self.share(namespace), name: name.into() }
    }

    /// A port number; 0 is not one.
    fn port(&mut self, field: &str, number: i32) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.skip(format_args!("{field}: {number} is no port number"));
                None
            }
        }
    }

    /// A protocol; absent means TCP (S-10).
    fn protocol(&mut self, field: &str, text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(other) => {
                self.skip(format_args!("{field}: unknown protocol {other:?}"));
                None
            }
        }
    }
}

/// What the planner wants to know of our node (S-05).
pub(super) fn node_facts(node: &Node) -> NodeFacts {
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone"));
    NodeFacts {
        name: node.metadata.name.as_deref().unwrap_or_default().into(),
        zone: zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()),
    }
}

/// The taint of a node that the cluster autoscaler is about to delete (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// True when the node is being deleted, or is about to be (S-60).
pub(super) fn node_leaves(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    node.metadata.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == TO_BE_DELETED)
}

#[cfg(test)]
#[path = "convert/convert_tests.rs"]
mod tests;
