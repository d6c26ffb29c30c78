//! Traffic through Services while the world around them changes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use lb_tests::{
    cluster::{Cluster, Forwarding, url},
    lab::{Family, KubePod, Shape},
    workload::{
        Bulk, Direction, HttpRequest, Load, NetError, TcpOptions, UdpClient, http_get, tcp_connect,
        tcp_connect_with,
    },
};
use serde_json::json;

use crate::common::{SECONDS, add_web, builder, service, simple, web};

const AT_ONCE: Duration = Duration::from_millis(100);
/// Less than a container takes to start once its pod has a network. Attaching to a device takes two grace periods of RCU,
/// some 10 ms each.
const CONTAINER_START: Duration = Duration::from_millis(100);

async fn client(cluster: &Cluster, node: usize) -> KubePod {
    cluster.netexec_pod("default", &format!("client-{node}"), cluster.node(node), &json!({})).await.unwrap()
}

/// Writes the slice of the Service `churn`: these endpoints, and the next version of nothing else.
fn endpoints(cluster: &Cluster, pods: &[&KubePod]) {
    let endpoints: Vec<_> = pods.iter().map(|pod| json!({"addresses": [pod.addresses()[0]]})).collect();
    cluster
        .api()
        .apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "churn-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "churn"},
            },
            "addressType": if pods[0].addresses()[0].is_ipv4() { "IPv4" } else { "IPv6" },
            "ports": [
                {"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "udp", "port": 8081, "protocol": "UDP"},
            ],
            "endpoints": endpoints,
        }))
        .unwrap();
}

async fn fifty_changes_a_second(forwarding: Forwarding, family: Family) {
    const FOR: Duration = Duration::from_secs(5);
    const BETWEEN: Duration = Duration::from_millis(20);
    let cluster = builder(family, Shape::Routed, forwarding).nodes(2).start().await.unwrap();
    add_web(&cluster, 4).await;
    let pods = cluster.pods("default", "app=web").unwrap();
    let mut churn = service("churn", json!(null));
    churn["spec"].as_object_mut().unwrap().remove("selector");
    cluster.api().create(&churn).unwrap();
    endpoints(&cluster, &[&pods[0]]);
    cluster.settle("default").await.unwrap();
    let ip = cluster.cluster_ip("default", "churn").unwrap();
    let (first, second) = (client(&cluster, 0).await, client(&cluster, 1).await);
    let connections = Load::http(&url(ip, 80, "/hostname")).interval(Duration::from_millis(1));
    let loads = [
        connections.start(&first),
        connections.start(&second),
        Load::udp(&SocketAddr::new(ip, 0).ip().to_string(), 81)
            .interval(Duration::from_millis(2))
            .start(&first),
        Load::keep_alive(&url(ip, 80, "/hostname")).interval(Duration::from_millis(5)).start(&second),
    ];
    let begin = Instant::now();
    let mut changes: u32 = 0;
    while begin.elapsed() < FOR {
        changes += 1;
        // Every subset of the four comes up, never the empty one.
        let subset = 1 + changes % 15;
        let chosen: Vec<&KubePod> = pods
            .iter()
            .enumerate()
            .filter(|(number, _)| subset & 1 << number != 0)
            .map(|(_, pod)| pod)
            .collect();
        endpoints(&cluster, &chosen);
        tokio::time::sleep_until((begin + BETWEEN * changes).into()).await;
    }
    assert!(changes >= 200, "only {changes} changes in {FOR:?}");
    for load in loads {
        let report = load.stop().await;
        assert!(report.failures.is_empty() && report.requests() > 300, "{report}");
    }
    cluster.settle("default").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_endpoint_changes_a_second_under_load_fail_no_request_stack() {
    fifty_changes_a_second(Forwarding::Stack, Family::V4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_endpoint_changes_a_second_under_load_fail_no_request_redirect_v6() {
    fifty_changes_a_second(Forwarding::Redirect, Family::V6).await;
}

/// A pod behind its own Service reaches itself; it sees another address than its own as the client's.
async fn hairpin(shape: Shape, forwarding: Forwarding, bridge_hairpin: bool) {
    let cluster = simple(Family::Dual, shape, forwarding, 1).await;
    let pod = cluster.pod("default", "app=web").unwrap();
    if !bridge_hairpin {
        let device = &pod.pod().unwrap().host_device().name;
        let off = ["bridge", "link", "set", "dev", device, "hairpin", "off"];
        let output = cluster.node(0).exec(&off, &[], SECONDS).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for ip in cluster.cluster_ips("default", "web").unwrap() {
        for _ in 0..3 {
            let seen = http_get(&pod, &url(ip, 80, "/clientip")).await.unwrap().text();
            let seen: SocketAddr = seen.parse().unwrap();
            assert!(!pod.addresses().contains(&seen.ip()), "{ip}: the pod talks to itself as {seen}");
        }
        let udp = UdpClient::connect(&pod, SocketAddr::new(ip, 81), None, 0).await.unwrap();
        assert_eq!(udp.ask("hostname", SECONDS).await.unwrap(), pod.name(), "{ip}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_reaches_itself_through_its_service_routed() {
    hairpin(Shape::Routed, Forwarding::Stack, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_reaches_itself_through_its_service_bridged() {
    hairpin(Shape::Bridged, Forwarding::Redirect, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_reaches_itself_through_its_service_behind_a_bridge_without_hairpin_mode() {
    hairpin(Shape::Bridged, Forwarding::Stack, false).await;
}

async fn first_packet(shape: Shape) {
    let cluster = simple(Family::V4, shape, Forwarding::Stack, 1).await;
    let ip = cluster.cluster_ip("default", "web").unwrap();
    for number in 0..20 {
        let pod = cluster.node(0).pod(&format!("new-{number}")).unwrap();
        tokio::time::sleep(CONTAINER_START).await;
        let begin = Instant::now();
        let options = TcpOptions { timeout: Duration::from_millis(900), ..TcpOptions::default() };
        let connected = tcp_connect_with(&pod, SocketAddr::new(ip, 80), options).await;
        // Less than the time after which a lost SYN is sent again: it was the first one that got through.
        assert!(connected.is_ok(), "pod {number}: {:?} after {:?}", connected.err(), begin.elapsed());
        pod.remove().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pod_is_served_from_its_first_packet_routed() {
    first_packet(Shape::Routed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pod_is_served_from_its_first_packet_bridged() {
    first_packet(Shape::Bridged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_endpoints_refuses_at_once_both_protocols_both_families() {
    for shape in Shape::ALL {
        let cluster = simple(Family::Dual, shape, Forwarding::Stack, 0).await;
        let client = client(&cluster, 0).await;
        for ip in cluster.cluster_ips("default", "web").unwrap() {
            let begin = Instant::now();
            assert_eq!(tcp_connect(&client, SocketAddr::new(ip, 80)).await.err(), Some(NetError::Refused));
            // Linux ignores an ICMPv6 error that arrives inside connect(): the second SYN is the one that is refused.
            let limit = if ip.is_ipv4() { AT_ONCE } else { Duration::from_millis(1500) };
            assert!(begin.elapsed() < limit, "TCP to {ip} refused after {:?}", begin.elapsed());
            let begin = Instant::now();
            let udp = UdpClient::connect(&client, SocketAddr::new(ip, 81), None, 0).await.unwrap();
            assert_eq!(udp.ask("hostname", SECONDS).await, Err(NetError::Refused));
            assert!(begin.elapsed() < AT_ONCE, "UDP to {ip} refused after {:?}", begin.elapsed());
        }
        assert!(cluster.tables(cluster.node(0)).unwrap().dropped("no_endpoint") >= 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_spread_evenly_over_the_endpoints() {
    const FLOWS: u32 = 1200;
    let cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 5).await;
    let client = client(&cluster, 0).await;
    let to = SocketAddr::new(cluster.cluster_ip("default", "web").unwrap(), 81);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..FLOWS {
        let flow = UdpClient::connect(&client, to, None, 0).await.unwrap();
        *counts.entry(flow.ask("hostname", SECONDS).await.unwrap()).or_default() += 1;
    }
    assert_eq!(counts.len(), 5, "{counts:?}");
    let expected = f64::from(FLOWS) / 5.0;
    let chi_square: f64 =
        counts.values().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    // Four degrees of freedom: exceeded by chance once in a million runs.
    assert!(chi_square < 33.4, "{counts:?}: chi square {chi_square:.1}");
}

async fn between_nodes(shape: Shape, forwarding: Forwarding) {
    let cluster = builder(Family::Dual, shape, forwarding).nodes(2).start().await.unwrap();
    add_web(&cluster, 1).await;
    let server = cluster.pod("default", "app=web").unwrap();
    cluster.api().create(&bulk_service()).unwrap();
    cluster.settle("default").await.unwrap();
    let _bulk = Bulk::start(&server, 9000).await.unwrap();
    for position in 0..2 {
        let client = client(&cluster, position).await;
        let ips: Vec<IpAddr> = cluster.cluster_ips("default", "web").unwrap();
        assert_eq!(ips.len(), 2);
        for ip in ips {
            let answer = http_get(&client, &url(ip, 80, "/clientip")).await.unwrap();
            assert_eq!(answer.text(), answer.local.to_string(), "the server sees the client's own address");
            let udp = UdpClient::connect(&client, SocketAddr::new(ip, 81), None, 0).await.unwrap();
            assert_eq!(udp.ask("clientip", SECONDS).await.unwrap(), udp.local().unwrap().to_string());
        }
        for ip in cluster.cluster_ips("default", "bulk").unwrap() {
            for direction in [Direction::Upload, Direction::Download] {
                Bulk::transfer(&client, SocketAddr::new(ip, 90), direction, 20_000_000, 7, SECONDS)
                    .await
                    .unwrap();
            }
        }
    }
}

fn bulk_service() -> serde_json::Value {
    let mut bulk = service("bulk", json!({"app": "web"}));
    bulk["spec"]["ports"] = json!([{"port": 90, "targetPort": 9000}]);
    bulk
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_reach_pods_of_other_nodes_routed_stack() {
    between_nodes(Shape::Routed, Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_reach_pods_of_other_nodes_routed_redirect() {
    between_nodes(Shape::Routed, Forwarding::Redirect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_reach_pods_of_other_nodes_bridged_stack() {
    between_nodes(Shape::Bridged, Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_reach_pods_of_other_nodes_bridged_redirect() {
    between_nodes(Shape::Bridged, Forwarding::Redirect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_outlives_its_endpoints_removal_from_the_service() {
    let cluster = simple(Family::V4, Shape::Routed, Forwarding::Stack, 1).await;
    let client = client(&cluster, 0).await;
    let ip = cluster.cluster_ip("default", "web").unwrap();
    let mut stream = HttpRequest::get(&url(ip, 80, "/hostname")).connect(&client).await.unwrap();
    assert_eq!(stream.get("/hostname").await.unwrap().text(), "web-0");
    cluster.api().patch_value("pods", "default", "web-0", &json!({"metadata": {"labels": null}})).unwrap();
    cluster.settle("default").await.unwrap();
    assert_eq!(tcp_connect(&client, SocketAddr::new(ip, 80)).await.err(), Some(NetError::Refused));
    for _ in 0..5 {
        assert_eq!(stream.get("/hostname").await.unwrap().text(), "web-0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_flow_finds_an_endpoint_once_there_is_one_and_another_when_it_goes() {
    let cluster = simple(Family::Dual, Shape::Routed, Forwarding::Stack, 0).await;
    let client = client(&cluster, 0).await;
    for (port, ip) in (5_000..).zip(cluster.cluster_ips("default", "web").unwrap()) {
        // One source address and port all the time: one flow, as the kernel sees it.
        let flow = UdpClient::connect(&client, SocketAddr::new(ip, 81), None, port).await.unwrap();
        assert_eq!(flow.ask("hostname", SECONDS).await, Err(NetError::Refused));
        for number in 0..2 {
            web(&cluster, number).await;
        }
        cluster.settle("default").await.unwrap();
        let first = flow.ask("hostname", SECONDS).await.unwrap();
        for _ in 0..5 {
            assert_eq!(flow.ask("hostname", SECONDS).await.as_ref(), Ok(&first), "{ip}");
        }
        let gone = json!({"metadata": {"labels": null}});
        cluster.api().patch_value("pods", "default", &first, &gone).unwrap();
        cluster.settle("default").await.unwrap();
        let second = flow.ask("hostname", SECONDS).await.unwrap();
        assert_ne!(first, second, "{ip}: the endpoint is gone");
        for pod in ["web-0", "web-1"] {
            cluster.api().delete::<Pod>("default", pod).unwrap();
        }
        // Their objects go last: until then they are endpoints that still serve.
        let all_gone = || Ok(cluster.api().list::<Pod>(Some("default"), "")?.len() == 1);
        cluster.eventually("the pods of web are gone", all_gone).await.unwrap();
        cluster.settle("default").await.unwrap();
        assert_eq!(flow.ask("hostname", SECONDS).await, Err(NetError::Refused));
    }
}
