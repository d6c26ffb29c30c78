//! A cluster with Services, and the addresses that a process may use for them.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    cluster::{Cluster, ClusterBuilder},
    lab::{Family, KubePod},
    sockets::{Errno, Socket},
};
use serde_json::{Value, json};

/// Longer than anything here takes, shorter than anybody's patience.
pub(crate) const SECONDS: Duration = Duration::from_secs(15);

/// One node, both families, no name server.
pub(crate) fn builder() -> ClusterBuilder {
    Cluster::builder().nodes(1).family(Family::Dual).without_dns()
}

/// The nodes and the Service `web` (80 HTTP, 81 UDP) with that many pods; all settled.
pub(crate) async fn with_web(builder: ClusterBuilder, pods: u32) -> Cluster {
    with_web_as(builder, json!({}), pods).await
}

/// The same, and the Service has these fields besides.
pub(crate) async fn with_web_as(builder: ClusterBuilder, fields: Value, pods: u32) -> Cluster {
    let cluster = builder.start().await.unwrap();
    cluster.api().create(&service("web", fields)).unwrap();
    for number in 0..pods {
        web(&cluster, number).await;
    }
    cluster.settle("default").await.unwrap();
    cluster
}

/// A Service with the ports 80 (HTTP) and 81 (UDP) in front of the pods with label `app=web`, with these fields besides.
pub(crate) fn service(name: &str, fields: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"},
            ],
        },
    });
    let spec = service["spec"].as_object_mut().unwrap();
    spec.extend(fields.as_object().unwrap().clone());
    service
}

/// One more pod of `web`, on the nodes in turn.
pub(crate) async fn web(cluster: &Cluster, number: u32) -> KubePod {
    let nodes = cluster.lab().nodes();
    let node = &nodes[number as usize % nodes.len()];
    cluster.netexec_pod("default", &format!("web-{number}"), node, &json!({"app": "web"})).await.unwrap()
}

/// Takes a pod out of `web`, or puts it back.
pub(crate) async fn serves(cluster: &Cluster, pod: &str, serves: bool) {
    let labels = json!({"metadata": {"labels": {"app": serves.then_some("web")}}});
    cluster.api().patch_value("pods", "default", pod, &labels).unwrap();
    cluster.settle("default").await.unwrap();
}

/// How a socket addresses a frontend: as it is; an IPv4 one in IPv6 notation, too.
pub(crate) fn notations(address: IpAddr) -> Vec<IpAddr> {
    match address {
        IpAddr::V4(four) => vec![address, four.to_ipv6_mapped().into()],
        IpAddr::V6(_) => vec![address],
    }
}

/// Every notation of every cluster IP of a Service.
pub(crate) fn addresses(cluster: &Cluster, service: &str) -> Vec<IpAddr> {
    let ips = cluster.cluster_ips("default", service).unwrap();
    assert_eq!(ips.len(), 2, "both families");
    ips.into_iter().flat_map(notations).collect()
}

pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// The name of the pod that answers HTTP on a connection, which stays open.
pub(crate) fn http_hostname(stream: &Socket<'_>) -> Result<String, Errno> {
    let answer = stream.ask("GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")?;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
}

/// Waits until something asynchronous holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < SECONDS, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a command of `lb-agent` prints as JSON about the first node.
pub(crate) async fn agent_json(cluster: &Cluster, command: &[&str]) -> Value {
    let root = format!("--bpf-root={}", cluster.bpf_root(cluster.node(0)).display());
    let mut args = command.to_vec();
    args.extend(["-o", "json", &root]);
    let output = cluster.node(0).agent_command(&args, SECONDS).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
