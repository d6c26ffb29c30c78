//! Pods of a title: made, changed, deleted, and the clients in them.

use std::{
    net::IpAddr,
    ops::Deref,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_tests::{
    apiserver::DeleteOptions,
    lab::{Caller, KubePod},
};
use serde_json::{Value, json};

use super::{Case, PATIENCE};
use crate::fixture::IpFamily;

/// Ports of host-network servers are taken from here on: below node ports and the ephemeral ones.
const FIRST_HOST_PORT: u16 = 20_000;

impl Case {
    /// A netexec pod (8080 TCP, 8081 UDP) that no Service selects.
    pub(crate) async fn pod(&self, name: &str, node: usize) -> Result<PodClient> {
        self.pod_with(name, node, json!({"pod": name}), json!({})).await
    }

    /// A netexec pod behind the Service `app` (label `app`), with a name of its own.
    pub(crate) async fn backend(&self, app: &str, node: usize) -> Result<PodClient> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        self.pod_with(&format!("{app}-{number}"), node, json!({"app": app}), json!({})).await
    }

    /// As [`Case::backend`]; it goes on serving for minutes when it is told to terminate ([`Case::terminate`]).
    pub(crate) async fn lingering_backend(&self, app: &str, node: usize) -> Result<PodClient> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let args = ["--http-port=8080", "--udp-port=8081", "--delay-shutdown=600"];
        let spec = json!({"containers": [netexec(&args)]});
        self.pod_with(&format!("{app}-{number}"), node, json!({"app": app}), spec).await
    }

    /// Lets a pod terminate: it is deleted, but has ten minutes to finish.
    pub(crate) fn terminate(&self, pod: &PodClient) -> Result<()> {
        self.delete_pod(pod.name(), Duration::from_secs(600))
    }

    /// A netexec pod, with more in its spec (JSON merge patch; a list `containers` replaces netexec). Returns when it is
    /// ready, and its node's agent has attached to its device.
    pub(crate) async fn pod_with(
        &self,
        name: &str,
        node: usize,
        labels: Value,
        spec: Value,
    ) -> Result<PodClient> {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
            "spec": {
                "nodeName": self.node(node).name(),
                "containers": [netexec(&["--http-port=8080", "--udp-port=8081"])],
            },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        self.api().create(&pod).with_context(|| format!("creating pod {name}"))?;
        let cluster = self.cluster();
        let mut seen = String::new();
        let what = format!("pod {name} is ready and attached");
        let attached = cluster.eventually(&what, || {
            let running = cluster.runtime().pod(&self.namespace, name);
            let object = self.api().value("pods", &self.namespace, name)?;
            let ready = condition(&object, "Ready").is_some_and(|it| it["status"] == "True");
            let attached = running.as_ref().map(|pod| cluster.is_attached(pod));
            seen = format!("its programs attached: {attached:?}; the kubelet says: {}", object["status"]);
            ensure!(object["status"]["reason"] != "StartError", "pod {name} did not start");
            Ok(ready && attached == Some(true))
        });
        attached.await.map_err(|error| error.context(seen))?;
        let pod = cluster.runtime().pod(&self.namespace, name).context("the pod went away at once")?;
        PodClient::new(pod, self.family)
    }

    /// A netexec server in a node's own network (a hostNetwork pod), on ports of its own; see [`HostPod`].
    pub(crate) async fn host_pod(&self, name: &str, node: usize, labels: Value) -> Result<HostPod> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let http = FIRST_HOST_PORT + 2 * (NEXT.fetch_add(1, Ordering::Relaxed) % 4_000);
        // A UDP server on all of a node's addresses would answer from whichever is nearest to the client: such pods are told
        // the node's own, as upstream's are.
        let own: Vec<String> = self.node(node).addresses().iter().map(ToString::to_string).collect();
        let ports = [
            format!("--http-port={http}"),
            format!("--udp-port={}", http + 1),
            format!("--udp-listen-addresses={}", own.join(",")),
        ];
        let spec = json!({
            "hostNetwork": true, "containers": [netexec(&ports.each_ref().map(String::as_str))],
        });
        let pod = self.pod_with(name, node, labels, spec).await?;
        Ok(HostPod { pod: pod.pod, http, udp: http + 1 })
    }

    /// Deletes a pod, which gets this long to finish (see `--delay-shutdown` of netexec).
    pub(crate) fn delete_pod(&self, name: &str, grace: Duration) -> Result<()> {
        let options =
            DeleteOptions { grace_seconds: i64::try_from(grace.as_secs()).ok(), ..DeleteOptions::default() };
        Ok(self.api().delete_value("pods", &self.namespace, name, &options)?)
    }

    /// Says whether a pod is ready, as its kubelet would after a probe.
    pub(crate) fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        let object = self.api().value("pods", &self.namespace, pod)?;
        let mut conditions = object["status"]["conditions"].clone();
        for condition in conditions.as_array_mut().into_iter().flatten() {
            if condition["type"] == "Ready" || condition["type"] == "ContainersReady" {
                condition["status"] = if ready { "True" } else { "False" }.into();
            }
        }
        let status = json!({"status": {"conditions": conditions}});
        self.api().patch_status_value("pods", &self.namespace, pod, &status)?;
        Ok(())
    }
}

/// A container of netexec with these arguments.
pub(crate) fn netexec(ports: &[&str]) -> Value {
    let args: Vec<&str> = ["netexec"].iter().chain(ports).copied().collect();
    json!({"name": "netexec", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53", "args": args})
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod.pointer("/status/conditions")?.as_array()?.iter().find(|it| it["type"] == kind)
}

/// A pod and a client in it.
#[derive(Clone)]
pub(crate) struct PodClient {
    pub(crate) pod: KubePod,
    caller: Caller,
    ip: IpAddr,
}

impl PodClient {
    fn new(pod: KubePod, family: IpFamily) -> Result<Self> {
        let caller = Caller::at(format!("pod {}", pod.name()), &pod).within(PATIENCE);
        let ip = family.pick(pod.addresses())?;
        Ok(Self { pod, caller, ip })
    }

    /// The pod's name, which its netexec server tells.
    pub(crate) fn name(&self) -> &str {
        self.pod.name()
    }

    /// The client in it.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Its address of the family.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }
}

impl Deref for PodClient {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// A server in a node's own network.
pub(crate) struct HostPod {
    pub(crate) pod: KubePod,
    /// Its TCP port.
    pub(crate) http: u16,
    /// Its UDP port.
    pub(crate) udp: u16,
}

impl HostPod {
    /// The pod's name, which its netexec server tells.
    pub(crate) fn name(&self) -> &str {
        self.pod.name()
    }
}
