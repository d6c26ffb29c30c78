//! What a kubelet does for the lab's controllers: starting and stopping pods, behind a trait.
//!
//! The controllers (Deployment, EndpointSlice, ...) only talk to [`PodRuntime`], so that they can be tested against a
//! runtime that starts nothing, while the demo and the lab tests use network namespaces.

use std::{future::Future, net::IpAddr, pin::Pin, time::Duration};

use k8s_openapi::api::core::v1::Pod;

/// The boxed future of every [`PodRuntime`] method: keeps the trait usable as `dyn PodRuntime`.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send + 'a>>;

/// A node that pods can be placed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Name, as in `Node.metadata.name` and `Pod.spec.nodeName`.
    pub name: String,
    /// The node's own addresses (`InternalIP`), primary family first.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs in `address/length` notation, primary family first.
    pub pod_cidrs: Vec<String>,
    /// `topology.kubernetes.io/zone`, when the node has one.
    pub zone: Option<String>,
}

/// Starts and stops pods on nodes.
pub trait PodRuntime: Send + Sync {
    /// Starts `pod` on `node` and returns its addresses (`status.podIPs`), primary family first.
    ///
    /// Returns as soon as the pod has its addresses and its containers were started; whether they serve yet is what
    /// [`PodRuntime::wait_ready`] tells. `service_env` holds the Service environment variables
    /// (`X_SERVICE_HOST`, `X_SERVICE_PORT`, ...) as they are at this moment; variables of the container's own `env`
    /// win over them.
    ///
    /// # Errors
    /// Unknown node, unknown image, a pod of that name already runs, no address left, or the kernel refused.
    fn start_pod<'a>(
        &'a self,
        pod: Pod,
        node: &'a str,
        service_env: Vec<(String, String)>,
    ) -> RuntimeFuture<'a, Vec<IpAddr>>;

    /// Resolves once every container of the pod serves (its servers listen, its readiness holds).
    ///
    /// # Errors
    /// The pod does not exist (any more), or a container gave up.
    fn wait_ready<'a>(&'a self, namespace: &'a str, name: &'a str) -> RuntimeFuture<'a, ()>;

    /// Stops a pod: its containers are told to terminate, get `grace` to finish what they are serving, and are then
    /// killed; resolves when the pod and its addresses are gone. Stopping a pod that does not exist is no error.
    ///
    /// # Errors
    /// The kernel refused to remove something.
    fn stop_pod<'a>(&'a self, namespace: &'a str, name: &'a str, grace: Duration) -> RuntimeFuture<'a, ()>;

    /// All nodes, in a stable order.
    fn nodes(&self) -> Vec<NodeInfo>;
}
