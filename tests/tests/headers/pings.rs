//! Pings of cluster IPs (S-70).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::cluster::{Cluster, Forwarding, url};
use lb_tests::lab::{KubePod, Shape};
use lb_tests::workload::{NetError, UdpClient, http_get, ping};
use serde_json::json;

use crate::common::{SECONDS, builder, service};

/// How long to wait for an answer that must not come.
const IN_VAIN: Duration = Duration::from_millis(400);

/// A cluster with the Service `web`, no pods behind it, and a client pod.
async fn cluster(shape: Shape, forwarding: Forwarding, arguments: &[&str]) -> (Cluster, Vec<IpAddr>) {
    let builder = builder(shape, forwarding, 1);
    let cluster = builder.agent_args(arguments.iter().copied()).start().await.unwrap();
    cluster.api().create(&service("web")).unwrap();
    cluster.netexec_pod("default", "client", cluster.node(0), &json!({"app": "client"})).await.unwrap();
    cluster.settle("default").await.unwrap();
    // The host outside sends everything for cluster IPs to the node.
    let (outside, node) = (cluster.lab().client(0), cluster.node(0));
    for range in cluster.lab().service_cidrs() {
        let family = |address: &&IpAddr| address.is_ipv4() == range.address().is_ipv4();
        let via = node.addresses().iter().find(family).unwrap();
        outside.add_route(range, *via).unwrap();
    }
    let ips = cluster.cluster_ips("default", "web").unwrap();
    assert_eq!(ips.len(), 2);
    (cluster, ips)
}

/// The one pod of `web`.
async fn web(cluster: &Cluster) -> KubePod {
    cluster.netexec_pod("default", "web-0", cluster.node(0), &json!({"app": "web"})).await.unwrap()
}

async fn answered(shape: Shape, forwarding: Forwarding) {
    let (cluster, ips) = cluster(shape, forwarding, &["--echo-reply"]).await;
    let client = cluster.pod("default", "app=client").unwrap();
    let (outside, node) = (cluster.lab().client(0), cluster.node(0));
    for ip in &ips {
        let before = cluster.tables(node).unwrap().dropped("not_proxied");
        assert_eq!(ping(&client, *ip, IN_VAIN).await, Err(NetError::Timeout), "{ip} without endpoints");
        assert_eq!(cluster.tables(node).unwrap().dropped("not_proxied"), before + 1);
        assert_eq!(ping(outside, *ip, IN_VAIN).await, Err(NetError::Timeout), "{ip} without endpoints");
    }
    let pod = web(&cluster).await;
    cluster.settle("default").await.unwrap();
    let before = cluster.tables(node).unwrap();
    for ip in &ips {
        for number in 0..3 {
            ping(&client, *ip, SECONDS).await.unwrap_or_else(|error| panic!("pod, {ip}, {number}: {error}"));
            ping(&pod, *ip, SECONDS).await.unwrap_or_else(|error| panic!("the endpoint, {ip}: {error}"));
            ping(outside, *ip, SECONDS).await.unwrap_or_else(|error| panic!("outside, {ip}: {error}"));
            ping(node, *ip, SECONDS).await.unwrap_or_else(|error| panic!("the node itself, {ip}: {error}"));
        }
        // Nothing else of the address has changed.
        assert_eq!(http_get(&client, &url(*ip, 80, "/hostname")).await.unwrap().text(), pod.name());
        let udp = UdpClient::connect(&client, SocketAddr::new(*ip, 9), None, 0).await.unwrap();
        assert_eq!(udp.ask("hostname", SECONDS).await, Err(NetError::Refused));
        // Pods answer for themselves.
        let own = pod.addresses().iter().find(|address| address.is_ipv4() == ip.is_ipv4()).unwrap();
        ping(&client, *own, SECONDS).await.unwrap();
    }
    let after = cluster.tables(node).unwrap();
    for reason in ["not_proxied", "spoofed_source", "malformed"] {
        assert_eq!(after.dropped(reason), before.dropped(reason), "{reason}");
    }
    // The endpoint leaves: nobody is there.
    let gone = json!({"metadata": {"labels": null}});
    cluster.api().patch_value("pods", "default", pod.name(), &gone).unwrap();
    cluster.settle("default").await.unwrap();
    for ip in &ips {
        assert_eq!(ping(&client, *ip, IN_VAIN).await, Err(NetError::Timeout), "{ip} without endpoints again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_70_pings_of_a_cluster_ip_with_endpoints_are_answered_routed_stack() {
    answered(Shape::Routed, Forwarding::Stack).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_70_pings_of_a_cluster_ip_with_endpoints_are_answered_bridged_redirect() {
    answered(Shape::Bridged, Forwarding::Redirect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_70_nobody_answers_unless_told_to() {
    let (cluster, ips) = cluster(Shape::Routed, Forwarding::Stack, &[]).await;
    web(&cluster).await;
    cluster.settle("default").await.unwrap();
    let client = cluster.pod("default", "app=client").unwrap();
    for ip in ips {
        let before = cluster.tables(cluster.node(0)).unwrap().dropped("not_proxied");
        assert_eq!(ping(&client, ip, IN_VAIN).await, Err(NetError::Timeout), "{ip}");
        assert_eq!(ping(cluster.lab().client(0), ip, IN_VAIN).await, Err(NetError::Timeout), "{ip}");
        assert_eq!(cluster.tables(cluster.node(0)).unwrap().dropped("not_proxied"), before + 2);
    }
}
