//! The controllers of a small cluster: Deployments become pods, pods run, Services get their EndpointSlices.
//!
//! All of them act on changes as they happen ([`ApiHandle::follow`]); nothing polls, nothing waits. What starts and stops
//! pods is a [`PodRuntime`]: network namespaces in the lab, or [`FakeRuntime`], which only hands out addresses.

mod deployments;
mod endpointslices;
mod env;
mod fake;
mod kubelet;
mod nodes;
mod scheduler;

use std::sync::Arc;

use anyhow::Context;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    apiserver::{ApiError, ApiHandle, text},
    runtime::PodRuntime,
};

pub use env::service_env;
pub use fake::FakeRuntime;

/// How the controllers are to behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// Most endpoints in an EndpointSlice; 100 in a real cluster, less to see slices split.
    pub slice_size: usize,
    /// Whether the EndpointSlice controller runs; without it slices are made by hand.
    pub endpoint_slices: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { slice_size: 100, endpoint_slices: true }
    }
}

/// The running controllers; dropping it stops them, pods stay as they are.
#[derive(Debug)]
pub struct Controllers(Vec<JoinHandle<()>>);

impl Controllers {
    /// Registers the runtime's nodes and starts the controllers, as tasks of the present tokio runtime.
    ///
    /// # Errors
    /// The nodes could not be registered.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(api: &ApiHandle, runtime: Arc<dyn PodRuntime>, options: &Options) -> anyhow::Result<Self> {
        nodes::register(api, &runtime.nodes()).context("registering nodes")?;
        let follow = |types: &[&str]| api.follow(types);
        let mut tasks = vec![
            tokio::spawn(deployments::run(api.clone(), follow(&["deployments", "pods"])?)),
            tokio::spawn(scheduler::run(api.clone(), follow(&["nodes", "pods"])?)),
            tokio::spawn(kubelet::run(api.clone(), follow(&["pods"])?, runtime)),
        ];
        if options.endpoint_slices {
            let changes = follow(&["nodes", "services", "pods", "endpointslices"])?;
            tasks.push(tokio::spawn(endpointslices::run(api.clone(), changes, options.slice_size.max(1))));
        }
        Ok(Self(tasks))
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Namespace and name.
type Place = (String, String);

fn place(object: &Value) -> Place {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

fn is_ready(pod: &Value) -> bool {
    ready_condition(pod).is_some_and(|condition| condition["status"] == "True")
}

fn ready_condition(pod: &Value) -> Option<&Value> {
    pod.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == "Ready")
}

/// Whether the object is owned by the one with this UID.
fn is_owned_by(object: &Value, uid: &str) -> bool {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    owners.into_iter().flatten().any(|owner| owner["uid"] == uid)
}

/// Whether every label of a `selector` map is on the object.
fn selects(selector: &Value, object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    selector.as_object().is_some_and(|selector| {
        !selector.is_empty()
            && selector.iter().all(|(key, value)| labels.and_then(|it| it.get(key)) == Some(value))
    })
}

/// Says what failed, unless it was only that the object is gone or has just been changed by another.
fn report(what: &str, result: Result<(), ApiError>) {
    if let Err(error) = result
        && !matches!(error.code, 404 | 409)
    {
        tracing::warn!(%error, "{what}");
    }
}
