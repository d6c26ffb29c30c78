//! The kubelets: start pods that were placed on a node, report their state, stop the ones that are deleted.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use super::{Place, env::service_env, is_deleting, place, report};
use crate::{
    apiserver::{ApiError, ApiHandle, ChangeKind, Changes, DeleteOptions, rfc3339, text},
    runtime::PodRuntime,
};

/// A pod's life: what it is told, and when it is over.
struct Life {
    uid: String,
    /// `Some(grace)` tells it to stop.
    stop: watch::Sender<Option<Duration>>,
    done: JoinHandle<()>,
}

impl Life {
    /// Tells it to stop, or to stop sooner than it was told.
    fn hurry(&self, grace: Duration) {
        self.stop.send_if_modified(|stop| {
            let sooner = stop.is_none_or(|told| grace < told);
            if sooner {
                *stop = Some(grace);
            }
            sooner
        });
    }
}

pub(super) async fn run(api: ApiHandle, mut changes: Changes, runtime: Arc<dyn PodRuntime>) {
    let mut lives: HashMap<Place, Life> = HashMap::new();
    while let Some(change) = changes.next().await {
        let (pod, key) = (&change.object, place(&change.object));
        let uid = text(pod, "/metadata/uid");
        if change.kind == ChangeKind::Deleted {
            if let Some(life) = lives.get(&key).filter(|life| life.uid == uid) {
                // Removed without waiting for its end.
                life.hurry(Duration::ZERO);
                if life.done.is_finished() {
                    lives.remove(&key);
                }
            }
            continue;
        }
        if text(pod, "/spec/nodeName").is_empty() {
            continue;
        }
        let known = lives.get(&key).is_some_and(|life| life.uid == uid);
        if is_deleting(pod) && known {
            let seconds = pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64);
            let grace = Duration::from_secs(seconds.unwrap_or_default());
            if let Some(life) = lives.get(&key) {
                life.hurry(grace);
            }
        } else if !known {
            let before = lives.remove(&key).map(|life| life.done);
            let (stop, told) = watch::channel(is_deleting(pod).then_some(Duration::ZERO));
            let life = live(api.clone(), Arc::clone(&runtime), Arc::clone(pod), before, told);
            lives.insert(key, Life { uid: uid.to_owned(), stop, done: tokio::spawn(life) });
        }
    }
}

async fn live(
    api: ApiHandle,
    runtime: Arc<dyn PodRuntime>,
    pod: Arc<Value>,
    before: Option<JoinHandle<()>>,
    mut told: watch::Receiver<Option<Duration>>,
) {
    if let Some(before) = before {
        // The pod that had the name before must be gone first, however it ended.
        let _ended = before.await;
    }
    let (namespace, name) = place(&pod);
    let node = text(&pod, "/spec/nodeName");
    let patch = |status: Value| -> Result<(), ApiError> {
        api.patch_status_value("pods", &namespace, &name, &json!({"status": status})).map(drop)
    };
    let mut stop = told.clone();
    let working = async {
        let typed: Pod = serde_json::from_value(Value::clone(&pod))?;
        let links = pod.pointer("/spec/enableServiceLinks") != Some(&Value::Bool(false));
        let env = service_env(&api, &namespace, links);
        let addresses = runtime.start_pod(typed, node, env).await?;
        let mut status = running(&api, node, &addresses);
        conditions(&mut status, false);
        report("reporting a pod's addresses", patch(status));
        runtime.wait_ready(&namespace, &name).await?;
        let mut status = json!({});
        conditions(&mut status, true);
        report("reporting a pod ready", patch(status));
        anyhow::Ok(())
    };
    let grace = tokio::select! {
        worked = working => {
            if let Err(error) = worked {
                tracing::warn!(%namespace, %name, "pod: {error:#}");
                report("reporting a failed pod", patch(json!({"reason": "StartError", "message": format!("{error:#}")})));
            }
            told_to_stop(&mut told).await
        }
        grace = told_to_stop(&mut stop) => grace,
    };
    let stopped = tokio::select! {
        stopped = runtime.stop_pod(&namespace, &name, grace) => stopped,
        // The grace period was cut short: what its containers still do is broken off.
        () = told_at_once(&mut told), if !grace.is_zero() => {
            runtime.stop_pod(&namespace, &name, Duration::ZERO).await
        }
    };
    if let Err(error) = stopped {
        tracing::warn!(%namespace, %name, "stopping the pod: {error:#}");
    }
    let now = DeleteOptions { grace_seconds: Some(0), uid: Some(text(&pod, "/metadata/uid").to_owned()) };
    report("removing a stopped pod", api.delete_value("pods", &namespace, &name, &now));
}

/// Resolves with the grace period once the pod is to stop.
async fn told_to_stop(told: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let Ok(grace) = told.wait_for(Option::is_some).await.map(|grace| *grace) else {
        // The kubelet itself is gone, and will not tell anyone any more.
        return std::future::pending().await;
    };
    grace.unwrap_or_default()
}

/// Resolves once the pod is to stop without any grace.
async fn told_at_once(told: &mut watch::Receiver<Option<Duration>>) {
    if told.wait_for(|stop| *stop == Some(Duration::ZERO)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn running(api: &ApiHandle, node: &str, addresses: &[IpAddr]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    let mut status = json!({
        "phase": "Running",
        "podIPs": ips,
        "startTime": rfc3339(Timestamp::now()),
    });
    if let Some(first) = addresses.first() {
        status["podIP"] = first.to_string().into();
    }
    let node = api.value("nodes", "", node).ok();
    let host_ips: Vec<Value> = node
        .iter()
        .filter_map(|node| node.pointer("/status/addresses")?.as_array().cloned())
        .flatten()
        .filter(|address| address["type"] == "InternalIP")
        .map(|address| json!({"ip": address["address"]}))
        .collect();
    if let Some(first) = host_ips.first() {
        status["hostIP"] = first["ip"].clone();
        status["hostIPs"] = host_ips.into();
    }
    status
}

fn conditions(status: &mut Value, ready: bool) {
    let now = rfc3339(Timestamp::now());
    let condition = |kind: &str, holds: bool| {
        json!({
            "type": kind, "status": if holds { "True" } else { "False" },
            "lastProbeTime": null, "lastTransitionTime": now,
        })
    };
    status["conditions"] = vec![
        condition("Initialized", true),
        condition("Ready", ready),
        condition("ContainersReady", ready),
        condition("PodScheduled", true),
    ]
    .into();
}
