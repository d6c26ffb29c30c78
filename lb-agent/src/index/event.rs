//! What a source tells the index.

use std::time::Instant;

use jiff::Timestamp;

use crate::model::{EndpointSlice, NodeFacts, ObjectName, Service};

/// One message of a source.
#[derive(Clone, Debug)]
pub struct Event {
    /// When the source received it; the time to the kernel counts from here.
    pub received: Instant,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time` of an applied slice: when the change that led
    /// to it happened in the cluster (S-62).
    pub triggered: Option<Timestamp>,
    /// What changed.
    pub change: Change,
}

impl Event {
    /// An event received now.
    pub fn now(change: Change) -> Self {
        Self { received: Instant::now(), triggered: None, change }
    }
}

/// The change an [`Event`] carries.
#[derive(Clone, Debug)]
pub enum Change {
    /// A change among Services.
    Services(StoreEvent<Service>),
    /// A change among EndpointSlices.
    Slices(StoreEvent<EndpointSlice>),
    /// What is known of our own node now.
    Node(NodeFacts),
}

/// A change among the objects of one kind.
#[derive(Clone, Debug)]
pub enum StoreEvent<T> {
    /// The object is new or changed.
    Apply(T),
    /// The object is gone, or is no longer meant for us.
    Delete(ObjectName),
    /// These are all objects of the kind; whatever else is known is gone. The first one makes the kind synced (S-84).
    Reset(Vec<T>),
}
