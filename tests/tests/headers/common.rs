//! A cluster with Services in front of one pod, and a client pod.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_tests::cluster::{Cluster, ClusterBuilder, Forwarding};
use lb_tests::lab::{Family, KubePod, Shape};
use serde_json::{Value, json};

/// Longer than anything here takes, shorter than anybody's patience.
pub(crate) const SECONDS: Duration = Duration::from_secs(15);

/// Ports of the Service `more`: one that sends back what it gets, one for large transfers.
pub(crate) const ECHO: u16 = 90;
/// See [`ECHO`].
pub(crate) const BULK: u16 = 91;

/// Both families, a host outside, no name server.
pub(crate) fn builder(shape: Shape, forwarding: Forwarding, nodes: u32) -> ClusterBuilder {
    let builder = Cluster::builder().nodes(nodes).clients(1).family(Family::Dual);
    builder.shape(shape).forwarding(forwarding).without_dns()
}

/// A Service with the ports 80 (HTTP) and 81 (UDP) in front of pods `app=web`.
pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": "web"},
            "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"},
            ],
        },
    })
}

/// The Services `web` and `more` with one pod on the first node, and a client on the last: cluster, client, server.
pub(crate) async fn cluster(shape: Shape, forwarding: Forwarding, nodes: u32) -> (Cluster, KubePod, KubePod) {
    let cluster = builder(shape, forwarding, nodes).start().await.unwrap();
    let mut more = service("more");
    more["spec"]["ports"] = json!([
        {"name": "echo", "port": ECHO, "targetPort": 9090}, {"name": "bulk", "port": BULK, "targetPort": 9091},
    ]);
    cluster.api().create(&service("web")).unwrap();
    cluster.api().create(&more).unwrap();
    let server =
        cluster.netexec_pod("default", "web-0", cluster.node(0), &json!({"app": "web"})).await.unwrap();
    let place = cluster.node(nodes as usize - 1).clone();
    let client = cluster.netexec_pod("default", "client", &place, &json!({})).await.unwrap();
    cluster.settle("default").await.unwrap();
    (cluster, client, server)
}

/// What the first node dropped, for messages.
pub(crate) fn drops(cluster: &Cluster) -> BTreeMap<&'static str, u64> {
    let mut drops = cluster.tables(cluster.node(0)).unwrap().drops().clone();
    drops.retain(|_, count| *count > 0);
    drops
}

/// Sets a property of a pod's device at both of its ends.
pub(crate) async fn set_link(pod: &KubePod, words: &[&str]) {
    let pod = pod.pod().unwrap();
    let node = pod.node().unwrap();
    let device = pod.host_device().name.clone();
    let outer = [&["ip", "link", "set", "dev", &device], words].concat();
    let inner = [&["ip", "link", "set", "dev", "eth0"], words].concat();
    let outputs =
        [node.exec(&outer, &[], SECONDS).await.unwrap(), pod.exec(&inner, &[], SECONDS).await.unwrap()];
    for output in outputs {
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The kernels of these pods met no wrong checksum.
pub(crate) async fn no_checksum_errors(pods: [&KubePod; 2]) {
    for pod in pods {
        let output = pod.pod().unwrap().exec(&["nstat", "-asz"], &[], SECONDS).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("TcpInCsumErrors"), "{text}");
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            assert!(!name.ends_with("CsumErrors") || words.next() == Some("0"), "{}: {line}", pod.name());
        }
    }
}
