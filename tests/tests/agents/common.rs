//! A cluster with one Service, as small as it can be.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use lb_tests::{
    cluster::{Cluster, ClusterBuilder, Forwarding},
    lab::{Family, KubePod, Node, Shape},
};
use serde_json::{Value, json};

/// Longer than anything here takes, shorter than anybody's patience.
pub(crate) const SECONDS: Duration = Duration::from_secs(15);

/// One node, no name server.
pub(crate) fn builder(family: Family, shape: Shape, forwarding: Forwarding) -> ClusterBuilder {
    Cluster::builder().nodes(1).family(family).shape(shape).forwarding(forwarding).without_dns()
}

/// One node, one agent, and the Service `web` (80 HTTP, 81 UDP) with that many pods; all settled.
pub(crate) async fn simple(family: Family, shape: Shape, forwarding: Forwarding, pods: u32) -> Cluster {
    let cluster = builder(family, shape, forwarding).start().await.unwrap();
    add_web(&cluster, pods).await;
    cluster
}

/// Adds the Service `web` and its pods, in turn on all nodes.
pub(crate) async fn add_web(cluster: &Cluster, pods: u32) {
    cluster.api().create(&service("web", json!({"app": "web"}))).unwrap();
    for number in 0..pods {
        web(cluster, number).await;
    }
    cluster.settle("default").await.unwrap();
}

/// A Service with the ports 80 (HTTP) and 81 (UDP) in front of `netexec` pods.
pub(crate) fn service(name: &str, selector: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector,
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"},
            ],
        },
    })
}

/// One more pod of `web`.
pub(crate) async fn web(cluster: &Cluster, number: u32) -> KubePod {
    let nodes = cluster.lab().nodes();
    let node = &nodes[number as usize % nodes.len()];
    cluster.netexec_pod("default", &format!("web-{number}"), node, &json!({"app": "web"})).await.unwrap()
}

/// Waits until something asynchronous holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < SECONDS, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs `ip` on a node.
pub(crate) async fn ip(node: &Node, arguments: &str) {
    let argv: Vec<&str> = std::iter::once("ip").chain(arguments.split(' ')).collect();
    let output = node.exec(&argv, &[], SECONDS).await.unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Index of a node's device.
pub(crate) async fn index(node: &Node, device: &str) -> u32 {
    let path = format!("/sys/class/net/{device}/ifindex");
    let output = node.exec(&["ip", "-j", "link", "show", "dev", device], &[], SECONDS).await.unwrap();
    let links: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{path}"));
    links[0]["ifindex"].as_u64().unwrap() as u32
}
