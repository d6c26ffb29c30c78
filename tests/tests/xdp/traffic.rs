//! Clients outside, through every kind of address that they know, to endpoints here and beyond: carried by the XDP program,
//! as its counters tell, or left to the programs behind it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_agent::dataplane::XdpPlace;
use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{AgentHandle, Caller, Family, Node, Shape},
    workload::{Load, checksum_errors},
};
use serde_json::json;

use crate::common::{SECONDS, leave_by_eth0, place, run, set, targets, until};

/// Requests on each flow.
const REQUESTS: u64 = 20;
/// Of the packets of so many requests in one direction, so many at least are of a settled flow.
const CARRIED: u64 = 15;

/// Packets that the XDP program of a node sent on, by where to.
type Carried = BTreeMap<String, u64>;

async fn carried(node: &Node) -> Carried {
    let text = run(node, "curl -s http://127.0.0.1:10249/metrics").await;
    let parse = |line: &str| {
        let (to, count) = line.strip_prefix("lb_xdp_packets_total{to=\"")?.split_once("\"} ")?;
        Some((to.to_owned(), count.parse().unwrap()))
    };
    let found: Carried = text.lines().filter_map(parse).collect();
    assert_eq!(found.len(), 3, "{text}");
    found
}

/// How many more left by a network device than before.
fn left(before: &Carried, now: &Carried) -> u64 {
    ["back", "forwarded"].map(|to| now[to] - before[to]).iter().sum()
}

/// Two nodes and a client outside that sends to the first one. `here` has its endpoint on that node, `beyond` on the other.
struct Site {
    cluster: Cluster,
    client: Caller,
}

const SERVICES: [&str; 3] = ["here", "local", "beyond"];

impl Site {
    async fn new(forwarding: Forwarding, shape: Shape, xdp: &str) -> Self {
        let cluster = Cluster::builder()
            .nodes(2)
            .clients(1)
            .family(Family::Dual)
            .shape(shape)
            .forwarding(forwarding)
            .cards()
            .without_dns()
            .agent_args([format!("--xdp={xdp}")])
            .start()
            .await
            .unwrap();
        for (number, name) in SERVICES.into_iter().enumerate() {
            let policy = if name == "local" { "Local" } else { "Cluster" };
            cluster
                .api()
                .create(&json!({
                    "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
                    "spec": {
                        "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": name},
                        "externalTrafficPolicy": policy,
                        "externalIPs": [external(1, number, false), external(1, number, true)],
                        "ports": [
                            {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30100 + number},
                            {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP",
                             "nodePort": 30200 + number},
                        ],
                    },
                }))
                .unwrap();
            let ingress = [external(2, number, false), external(2, number, true)];
            let ingress = ingress.map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
            let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
            cluster.api().patch_status_value("services", "default", name, &status).unwrap();
            let node = cluster.node(usize::from(name == "beyond"));
            cluster.netexec_pod("default", name, node, &json!({"app": name})).await.unwrap();
        }
        for v6 in [false, true] {
            let via = address_of(cluster.node(0), v6);
            let range = if v6 { "fd00:198:19::/64" } else { "198.19.0.0/16" };
            cluster.lab().client(0).add_route(range.parse().unwrap(), via).unwrap();
        }
        cluster.settle("default").await.unwrap();
        let client = Caller::at("outside", cluster.lab().client(0));
        Self { cluster, client }
    }

    /// Every address that a client outside knows a Service by, with the words for it.
    fn addresses(&self, service: usize, v6: bool) -> [(&'static str, IpAddr, Option<u16>); 3] {
        [
            ("node port", address_of(self.cluster.node(0), v6), Some(service as u16)),
            ("external IP", external(1, service, v6).parse().unwrap(), None),
            ("load balancer IP", external(2, service, v6).parse().unwrap(), None),
        ]
    }

    /// Asks for the name of the endpoint over a flow of each protocol, and again. Returns what the program of the first
    /// node carried of each: TCP, UDP.
    async fn ask(&self, service: usize, address: IpAddr, node_port: Option<u16>) -> [Carried; 2] {
        let (name, node) = (SERVICES[service], self.cluster.node(0));
        let before = carried(node).await;
        let port = node_port.map_or(80, |number| 30_100 + number);
        let http = self.client.http_flow(SocketAddr::new(address, port)).await.unwrap();
        for _ in 0..REQUESTS {
            assert_eq!(http.get("/hostname").await.as_deref(), Ok(name));
        }
        drop(http);
        let between = carried(node).await;
        let port = node_port.map_or(81, |number| 30_200 + number);
        let udp = self.client.udp(SocketAddr::new(address, port)).await.unwrap();
        for _ in 0..REQUESTS {
            assert_eq!(udp.ask("hostname").await.as_deref(), Ok(name));
        }
        let after = carried(node).await;
        let difference = |from: &Carried, to: &Carried| -> Carried {
            from.keys().map(|key| (key.clone(), to[key] - from[key])).collect()
        };
        [difference(&before, &between), difference(&between, &after)]
    }

    /// Behind a bridge, an agent learns of the way to a pod of its node some time after it learned of the pod.
    async fn ways_are_known(&self) {
        for (service, v6) in [(0, false), (0, true), (1, false), (1, true)] {
            let [(_, address, node_port), ..] = self.addresses(service, v6);
            until("the way to a pod", async || {
                self.ask(service, address, node_port).await.iter().all(|carried| carried["pod"] > 0)
            })
            .await;
        }
    }

    async fn switch(&mut self, mode: &str, expected: XdpPlace) {
        for position in 0..2 {
            set(&self.cluster.agents()[position], &format!("xdp={mode}")).await;
        }
        for node in self.cluster.lab().nodes() {
            until("the program", async || place(node).await == Some(expected)).await;
            until("the way out", async || leave_by_eth0(&targets(node).await, expected)).await;
        }
    }

    async fn no_checksum_errors(&self) {
        let pods: Vec<_> = self.cluster.lab().nodes().iter().flat_map(|node| node.pods()).collect();
        let mut ends: Vec<_> = pods.iter().map(|pod| pod.namespace()).collect();
        ends.extend(self.cluster.lab().nodes().iter().map(|node| node.namespace()));
        ends.push(self.cluster.lab().client(0).namespace());
        for end in ends {
            assert_eq!(checksum_errors(end).await.unwrap(), 0, "{}", end.name());
        }
    }
}

/// An address that the client reaches through the first node.
fn external(kind: usize, service: usize, v6: bool) -> String {
    if v6 { format!("fd00:198:19::{kind}:{service}") } else { format!("198.19.{kind}.{}", service + 1) }
}

fn address_of(node: &Node, v6: bool) -> IpAddr {
    *node.addresses().iter().find(|address| address.is_ipv6() == v6).unwrap()
}

async fn every_address(forwarding: Forwarding, shape: Shape) {
    let mut site = Site::new(forwarding, shape, "off").await;
    for (mode, expected) in [("native", XdpPlace::Native), ("generic", XdpPlace::Generic)] {
        site.switch(mode, expected).await;
        if forwarding == Forwarding::Redirect {
            site.ways_are_known().await;
        }
        for (service, name) in SERVICES.into_iter().enumerate() {
            for v6 in [false, true] {
                for (kind, address, node_port) in site.addresses(service, v6) {
                    let flows = site.ask(service, address, node_port).await;
                    for (protocol, carried) in ["TCP", "UDP"].into_iter().zip(flows) {
                        let what = format!("{mode}, {name}, {kind} {address}, {protocol}: {carried:?}");
                        // An end of a virtual pair is handed what goes back, but in the receive path.
                        let (out, none) = match expected {
                            XdpPlace::Native => (carried["forwarded"], carried["back"]),
                            XdpPlace::Generic => (carried["back"], carried["forwarded"]),
                        };
                        let pod = carried["pod"];
                        assert_eq!(none, 0, "{what}");
                        match (name, forwarding) {
                            // To the endpoint and back again.
                            ("beyond", _) => assert!(out >= 2 * CARRIED && pod == 0, "{what}"),
                            // Answers come from the pod's device.
                            (_, Forwarding::Redirect) => assert!(pod >= CARRIED && out == 0, "{what}"),
                            // What is for a pod here is the stack's.
                            (_, Forwarding::Stack) => assert!(pod == 0 && out == 0, "{what}"),
                        }
                    }
                }
            }
        }
        // The other node carries nothing: to it, that is traffic between a node and its pods.
        assert!(carried(site.cluster.node(1)).await.values().all(|count| *count == 0));
    }
    site.no_checksum_errors().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_and_protocol_to_endpoints_here_and_beyond_stack() {
    every_address(Forwarding::Stack, Shape::Routed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_and_protocol_to_endpoints_here_and_beyond_redirect() {
    every_address(Forwarding::Redirect, Shape::Routed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_address_and_protocol_to_endpoints_here_and_beyond_redirect_bridged() {
    every_address(Forwarding::Redirect, Shape::Bridged).await;
}

/// Modes follow one another, agents die and come again, and no request notices.
async fn nothing_is_noticed(forwarding: Forwarding) {
    let mut site = Site::new(forwarding, Shape::Routed, "off").await;
    let mut loads = Vec::new();
    for service in [0, 2] {
        for v6 in [false, true] {
            let [_, (_, address, _), _] = site.addresses(service, v6);
            let url = format!("http://{}/hostname", SocketAddr::new(address, 80));
            let every = Duration::from_millis(4);
            let patience = Duration::from_secs(5);
            loads.extend([
                Load::http(&url).interval(every).timeout(patience),
                Load::keep_alive(&url).interval(every).timeout(patience),
                Load::udp_one_socket(&address.to_string(), 81).interval(every).timeout(patience),
            ]);
        }
    }
    let loads: Vec<_> = loads.iter().map(|load| load.start(site.cluster.lab().client(0))).collect();
    let node = site.cluster.node(0).clone();
    let carries = async |what: &str| {
        let before = carried(&node).await;
        until(what, async || left(&before, &carried(&node).await) > 200).await;
    };
    for (mode, expected) in
        [("native", XdpPlace::Native), ("generic", XdpPlace::Generic), ("auto", XdpPlace::Native)]
    {
        site.switch(mode, expected).await;
        carries(mode).await;
    }
    for agent in site.cluster.agents() {
        set(agent, "xdp=off").await;
    }
    until("no program", async || place(&node).await.is_none()).await;
    let before = carried(&node).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(carried(&node).await, before, "nothing is carried while it is off");
    // The end of an agent is no end of the program.
    site.switch("native", XdpPlace::Native).await;
    carries("native again").await;
    let gone = site.cluster.agent(0);
    gone.sigkill();
    assert_eq!(place(&node).await, Some(XdpPlace::Native));
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    // Its flag says off, as it did when it was started first; the knob's word is forgotten.
    until("no program", async || place(&node).await.is_none()).await;
    let mut requests = 0;
    for load in loads {
        let report = load.stop().await;
        assert!(report.failures.is_empty() && report.requests() > 100, "{report}");
        requests += report.requests();
    }
    println!("{requests} requests, 0 failed");
    site.no_checksum_errors().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_and_agents_change_under_traffic_and_no_request_fails_stack() {
    nothing_is_noticed(Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_and_agents_change_under_traffic_and_no_request_fails_redirect() {
    nothing_is_noticed(Forwarding::Redirect).await;
}

/// An agent that dies while its program carries traffic, and one that takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_carries_on_without_an_agent_and_with_the_next_one() {
    let mut site = Site::new(Forwarding::Redirect, Shape::Routed, "native").await;
    let node = site.cluster.node(0).clone();
    let [(_, address, _), ..] = site.addresses(2, false);
    let url = format!("http://{}/hostname", SocketAddr::new(address, 30_102));
    let keep_alive =
        Load::keep_alive(&url).interval(Duration::from_millis(2)).start(site.cluster.lab().client(0));
    let datagrams = Load::udp_one_socket(&address.to_string(), 30_202).interval(Duration::from_millis(2));
    let datagrams = datagrams.start(site.cluster.lab().client(0));
    keep_alive.wait_for(200, SECONDS).await.unwrap();
    let before = carried(&node).await;
    assert!(before["forwarded"] > 0, "{before:?}");
    site.cluster.agent(0).sigkill();
    let done = keep_alive.report().successes();
    keep_alive.wait_for(done + 300, SECONDS).await.unwrap();
    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    let after = carried(&node).await;
    assert!(left(&before, &after) > 600, "without an agent: {before:?}, {after:?}");
    let carries_again = async || left(&after, &carried(&node).await) > 600;
    until("packets carried by the new program", carries_again).await;
    for load in [keep_alive, datagrams] {
        let report = load.stop().await;
        assert!(report.failures.is_empty(), "{report}");
    }
    let agents: &[AgentHandle] = site.cluster.agents();
    assert!(agents[0].log().contains("tables of an earlier agent adopted"), "{}", agents[0].log());
}
