//! A cluster with one Service, and looks at what its agents keep in the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    net::SocketAddr,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, tc::TcAttachType};
use lb_tests::{
    cluster::{Cluster, ClusterBuilder, Forwarding, url},
    lab::{Caller, Family, KubePod, Node, Shape},
};
use serde_json::{Value, json};

use crate::traffic::Way;

/// Longer than anything here takes, shorter than anybody's patience.
pub(crate) const SECONDS: Duration = Duration::from_secs(20);
/// Programs at devices.
const PROGRAMS: [&str; 4] = ["from_pod", "to_pod", "from_net", "to_net"];
/// Within this time what somebody took away is put back.
pub(crate) const PUT_BACK: Duration = Duration::from_secs(1);

pub(crate) fn builder(nodes: u32, family: Family, forwarding: Forwarding) -> ClusterBuilder {
    Cluster::builder()
        .nodes(nodes)
        .clients(1)
        .family(family)
        .shape(Shape::Routed)
        .forwarding(forwarding)
        .without_dns()
}

/// A cluster with the Service `web`, which has a node port, and a client pod on its first node.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) client: KubePod,
    node_port: u16,
}

impl Site {
    /// Starts it all and waits until it has settled. The pods are on all nodes in turn.
    pub(crate) async fn start(builder: ClusterBuilder, pods: u32) -> Self {
        let cluster = builder.start().await.unwrap();
        let created = cluster
            .api()
            .create(&json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
                "spec": {
                    "type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"},
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            }))
            .unwrap();
        let node_port = created["spec"]["ports"][0]["nodePort"].as_u64().unwrap() as u16;
        let mut site = Self { client: Self::pod(&cluster, "client", 0, "client").await, cluster, node_port };
        for number in 0..pods {
            site.add(number).await;
        }
        site.cluster.settle("default").await.unwrap();
        site
    }

    async fn pod(cluster: &Cluster, name: &str, node: usize, app: &str) -> KubePod {
        cluster.netexec_pod("default", name, cluster.node(node), &json!({"app": app})).await.unwrap()
    }

    /// One more pod of `web`.
    pub(crate) async fn add(&mut self, number: u32) -> KubePod {
        let node = number as usize % self.cluster.lab().nodes().len();
        Self::pod(&self.cluster, &format!("web-{number}"), node, "web").await
    }

    /// From the client pod to every cluster IP, and from outside to the node port of every address of the first node.
    pub(crate) fn ways(&self) -> Vec<Way> {
        let mut ways = Vec::new();
        for ip in self.cluster.cluster_ips("default", "web").unwrap() {
            ways.push(Way::new(&self.client, url(ip, 80, "/hostname")));
        }
        for address in self.cluster.node(0).addresses() {
            let to = url(*address, self.node_port, "/hostname");
            ways.push(Way::new(self.cluster.lab().client(0), to));
        }
        ways
    }

    /// Index of the client pod's device on the node.
    pub(crate) fn client_device(&self) -> (u32, String) {
        let device = self.client.pod().unwrap().host_device().clone();
        (device.index, device.name)
    }

    /// Waits until every way has its first answer: nothing tells from outside when the newest device has its programs.
    pub(crate) async fn warm_up(&self) {
        for way in self.ways() {
            until("a first answer", async || way.answers().await).await;
        }
    }

    /// Pins of an agent, below its bpf root.
    pub(crate) fn pins(&self, node: &Node) -> BTreeSet<String> {
        let root = self.cluster.bpf_root(node);
        let mut pins = BTreeSet::new();
        for directory in ["maps", "links", "cgroup"] {
            let entries = fs::read_dir(root.join(directory)).into_iter().flatten().flatten();
            pins.extend(entries.map(|it| format!("{directory}/{}", it.file_name().to_string_lossy())));
        }
        pins
    }
}

/// Waits until something asynchronous holds. Returns how long that took.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) -> Duration {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < SECONDS, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begin.elapsed()
}

/// Runs a command on a node and returns what it printed.
pub(crate) async fn run(node: &Node, command: &str) -> String {
    let argv: Vec<&str> = command.split(' ').collect();
    let output = node.exec(&argv, &[], SECONDS).await.unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How often each of our programs runs at each device, by the device's index: as a link, or as a filter.
pub(crate) async fn attached(node: &Node) -> BTreeMap<(u32, String), usize> {
    let links = |names: &[(u32, String)]| {
        let sides = [TcAttachType::Ingress, TcAttachType::Egress];
        let mut found = Vec::new();
        for ((index, name), side) in names.iter().flat_map(|name| sides.iter().map(move |side| (name, *side)))
        {
            // Of a device that has gone by now nothing is attached.
            let (_, programs) = SchedClassifier::query_tcx(name, side).unwrap_or_default();
            found.extend(programs.iter().map(|it| (*index, it.name_as_str().unwrap_or_default().to_owned())));
        }
        found
    };
    let shown: Value = serde_json::from_str(&run(node, "ip -j link show").await).unwrap();
    let name = |link: &Value| {
        (link["ifindex"].as_u64().unwrap() as u32, link["ifname"].as_str().unwrap().to_owned())
    };
    let names: Vec<(u32, String)> = shown.as_array().unwrap().iter().map(name).collect();
    // On a thread of the node's network namespace.
    let mut found = node.namespace().handle().spawn(async move { links(&names) }).await.unwrap();
    let shown: Value = serde_json::from_str(&run(node, "bpftool -j net show").await).unwrap();
    let filter = |one: &Value| {
        let name = one["name"].as_str()?.strip_prefix("lb-agent/")?;
        Some((one["ifindex"].as_u64()? as u32, name.to_owned()))
    };
    found.extend(shown[0]["tc"].as_array().unwrap().iter().filter_map(filter));
    let mut attached = BTreeMap::new();
    for one in found.into_iter().filter(|(_, name)| PROGRAMS.contains(&name.as_str())) {
        *attached.entry(one).or_default() += 1;
    }
    attached
}

/// Sum of the samples of a metric that have all these labels (`at="device"`).
pub(crate) async fn metric(node: &Node, name: &str, label: &str) -> f64 {
    let caller = Caller::on_node(node).unwrap();
    let told = caller.http(SocketAddr::new("127.0.0.1".parse().unwrap(), 10249), "/metrics").await.unwrap();
    let samples = told.body.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
