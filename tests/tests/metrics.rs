//! What agents tell of themselves over HTTP: metrics, health, configuration and mode, at kube-proxy's paths and ports.

#[path = "metrics/configuration.rs"]
mod configuration;
#[path = "metrics/exposition.rs"]
mod exposition;
#[path = "metrics/health.rs"]
mod health;
#[path = "metrics/numbers.rs"]
mod numbers;
#[path = "metrics/pages.rs"]
mod pages;

use std::{future::Future, net::SocketAddr, time::Duration};

use lb_tests::{
    cluster::{Cluster, ClusterBuilder, Forwarding},
    lab::{Caller, Family, Node, Shape},
    workload::Told,
};
use serde_json::{Value, json};

use exposition::Page;

/// Longer than anything here takes, shorter than anybody's patience.
const SECONDS: Duration = Duration::from_secs(15);

/// One node, no name server.
fn builder(family: Family) -> ClusterBuilder {
    Cluster::builder()
        .nodes(1)
        .family(family)
        .shape(Shape::Routed)
        .forwarding(Forwarding::Stack)
        .without_dns()
}

/// A Service with one port, in front of `netexec` pods with the label `app`.
fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack", "selector": {"app": app},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    })
}

/// What a node's own process reads at a port of the loopback device.
async fn told(node: &Node, port: u16, path: &str) -> Told {
    let caller = Caller::on_node(node).unwrap();
    let at = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
    caller.http(at, path).await.unwrap_or_else(|error| panic!("{at}{path}: {error:?}"))
}

/// The metrics of a node.
async fn page(node: &Node) -> Page {
    let Told { status, body, .. } = told(node, 10249, "/metrics").await;
    assert_eq!(status, 200, "{body}");
    Page::read(&body)
}

/// Waits until something asynchronous holds.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begin = std::time::Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < SECONDS, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
