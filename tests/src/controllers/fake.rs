//! A runtime that starts nothing: pods only get addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::runtime::{NodeInfo, PodRuntime, RuntimeFuture};

/// A pod as it was started.
#[derive(Debug, Clone, PartialEq)]
pub struct FakePod {
    /// The node it was started on.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The Service environment variables it was given.
    pub env: Vec<(String, String)>,
}

/// A [`PodRuntime`] for tests of what does not need running pods: hands out addresses, and is ready when told.
#[derive(Debug)]
pub struct FakeRuntime {
    nodes: Vec<NodeInfo>,
    dual_stack: bool,
    pods: Mutex<BTreeMap<(String, String), FakePod>>,
    next: Mutex<u16>,
    ready: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
}

impl FakeRuntime {
    /// A runtime with this many nodes `n1`, `n2`, ..., in zones `zone-a` and `zone-b` in turn; pods become ready and stop
    /// at once.
    pub fn new(nodes: u8, dual_stack: bool) -> Self {
        let nodes = (1..=nodes)
            .map(|number| NodeInfo {
                name: format!("n{number}"),
                addresses: vec![Ipv4Addr::new(172, 18, 0, 10 + number).into()],
                pod_cidrs: vec![format!("10.244.{number}.0/24")],
                zone: Some(if number % 2 == 1 { "zone-a" } else { "zone-b" }.to_owned()),
            })
            .collect();
        Self {
            nodes,
            dual_stack,
            pods: Mutex::default(),
            next: Mutex::new(2),
            ready: watch::Sender::new(true),
            stopping: watch::Sender::new(true),
        }
    }

    /// Whether pods become ready.
    pub fn set_ready(&self, ready: bool) {
        self.ready.send_replace(ready);
    }

    /// Whether pods that are to stop do.
    pub fn set_stopping(&self, stopping: bool) {
        self.stopping.send_replace(stopping);
    }

    /// The running pods, by namespace and name.
    pub fn pods(&self) -> BTreeMap<(String, String), FakePod> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), FakePod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *next;
        *next += 1;
        let [high, low] = number.to_be_bytes();
        let mut addresses = vec![Ipv4Addr::new(10, 244, high, low).into()];
        if self.dual_stack {
            addresses.push(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number).into());
        }
        addresses
    }
}

/// Resolves when the switch is on.
async fn switched(switch: &watch::Sender<bool>) -> anyhow::Result<()> {
    switch.subscribe().wait_for(|on| *on).await?;
    Ok(())
}

impl PodRuntime for FakeRuntime {
    fn start_pod<'a>(
        &'a self,
        pod: Pod,
        node: &'a str,
        service_env: Vec<(String, String)>,
    ) -> RuntimeFuture<'a, Vec<IpAddr>> {
        Box::pin(async move {
            let addresses = self.addresses();
            let key = (pod.metadata.namespace.unwrap_or_default(), pod.metadata.name.unwrap_or_default());
            let started = FakePod { node: node.to_owned(), addresses: addresses.clone(), env: service_env };
            anyhow::ensure!(self.lock().insert(key.clone(), started).is_none(), "{key:?} runs already");
            Ok(addresses)
        })
    }

    fn wait_ready<'a>(&'a self, _namespace: &'a str, _name: &'a str) -> RuntimeFuture<'a, ()> {
        Box::pin(switched(&self.ready))
    }

    fn stop_pod<'a>(&'a self, namespace: &'a str, name: &'a str, _grace: Duration) -> RuntimeFuture<'a, ()> {
        Box::pin(async move {
            switched(&self.stopping).await?;
            self.lock().remove(&(namespace.to_owned(), name.to_owned()));
            Ok(())
        })
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        self.nodes.clone()
    }
}
