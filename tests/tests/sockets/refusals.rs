//! What is refused, and what would be dropped: the error an application gets at once, and who counts it.

use std::collections::BTreeMap;

use lb_tests::{
    cluster::Cluster,
    sockets::{Errno, Sockets},
};
use serde_json::{Value, json};

use crate::common::{addresses, agent_json, at, builder, notations, serves, service, until, web, with_web};

/// The counters of reasons on the first node, those that are not 0.
async fn reasons(cluster: &Cluster) -> BTreeMap<String, u64> {
    let rows = agent_json(cluster, &["drops"]).await;
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| (row["reason"].as_str().unwrap().to_owned(), row["packets"].as_u64().unwrap()))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Refused and dropped, as counted for the ports of a Service.
async fn of_service(cluster: &Cluster, name: &str) -> (u64, u64) {
    let rows = agent_json(cluster, &["services", "--service", name]).await;
    let sum = |field: &str| rows.as_array().unwrap().iter().map(|row| row[field].as_u64().unwrap()).sum();
    (sum("refused"), sum("dropped"))
}

/// Three ways to begin: TCP, connected UDP, unconnected UDP; with the error each gets.
fn attempts(process: &Sockets, http: std::net::SocketAddr, udp: std::net::SocketAddr) -> [Option<Errno>; 3] {
    [
        process.stream(http).err(),
        process.connected(udp).err(),
        process.datagrams(udp).unwrap().send_to(udp, "hostname").err(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_endpoints_refuses_at_once_and_serves_the_same_socket_later() {
    let cluster = with_web(builder(), 1).await;
    serves(&cluster, "web-0", false).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let before = of_service(&cluster, "web").await;
    let all = addresses(&cluster, "web");
    let mut waiting = Vec::new();
    for address in &all {
        let (http, udp) = (at(*address, 80), at(*address, 81));
        assert_eq!(attempts(&process, http, udp), [Some(Errno::REFUSED); 3], "{address}");
        let socket = process.datagrams(udp).unwrap();
        assert_eq!(socket.send_to(udp, "hostname"), Err(Errno::REFUSED));
        waiting.push((socket, udp));
    }
    let calls = 4 * all.len() as u64;
    assert_eq!(of_service(&cluster, "web").await, (before.0 + calls, before.1));
    assert_eq!(reasons(&cluster).await, BTreeMap::from([("no_endpoint".to_owned(), calls)]));

    serves(&cluster, "web-0", true).await;
    for (socket, udp) in &waiting {
        assert_eq!(socket.ask_at(*udp, "hostname"), Ok(("web-0".to_owned(), *udp)), "nothing was remembered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_no_service_has_are_refused_and_addresses_that_none_has_time_out_at_once() {
    let cluster = with_web(builder(), 1).await;
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    let mut calls = 0;
    for address in addresses(&cluster, "web") {
        // 80 is TCP's, 81 is UDP's.
        let errors = attempts(&process, at(address, 81), at(address, 80));
        assert_eq!(errors, [Some(Errno::REFUSED); 3], "{address}");
        calls += 3;
    }
    let mut nowhere = 0;
    for range in cluster.lab().service_cidrs() {
        for address in notations(range.nth(0x77)) {
            let errors = attempts(&process, at(address, 80), at(address, 81));
            assert_eq!(errors, [Some(Errno::TIMED_OUT); 3], "{address}");
            nowhere += 3;
        }
    }
    let expected = [("unknown_port", calls), ("unallocated_address", nowhere)];
    let expected = expected.map(|(name, count)| (name.to_owned(), count)).into();
    assert_eq!(reasons(&cluster).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_local_without_a_local_endpoint_times_out_at_once() {
    let cluster = with_web(builder().nodes(2), 0).await;
    cluster.api().create(&service("near", json!({"internalTrafficPolicy": "Local"}))).unwrap();
    let far = cluster.node(1).clone();
    cluster.netexec_pod("default", "far", &far, &json!({"app": "web"})).await.unwrap();
    let here = Sockets::on_node(cluster.node(0)).unwrap();
    let there = Sockets::on_node(&far).unwrap();
    for address in addresses(&cluster, "near") {
        until("the endpoint to serve its node", || async { there.stream(at(address, 80)).is_ok() }).await;
        until("the other node to know", || async {
            here.stream(at(address, 80)).err() == Some(Errno::TIMED_OUT)
        })
        .await;
    }
    let before = (of_service(&cluster, "near").await.1, reasons(&cluster).await["no_local_endpoint"]);
    for address in addresses(&cluster, "near") {
        let (http, udp) = (at(address, 80), at(address, 81));
        assert_eq!(attempts(&here, http, udp), [Some(Errno::TIMED_OUT); 3], "{address}");
        assert_eq!(attempts(&there, http, udp), [None; 3], "{address}");
    }
    assert_eq!(of_service(&cluster, "near").await.1, before.0 + 9);
    assert_eq!(reasons(&cluster).await["no_local_endpoint"], before.1 + 9);
    web(&cluster, 0).await;
    for address in addresses(&cluster, "near") {
        until("the new endpoint", || async { here.stream(at(address, 80)).is_ok() }).await;
        assert_eq!(attempts(&here, at(address, 80), at(address, 81)), [None; 3], "{address}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn source_ranges_hold_for_processes_of_the_node_at_load_balancer_addresses_only() {
    let cluster = with_web(builder(), 1).await;
    let vips = ["198.51.100.70", "2001:db8:70::1"].map(|ip| ip.parse().unwrap());
    let node = cluster.node(0).addresses().to_vec();
    let fields = |ranges: Value| json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges});
    cluster.api().create(&service("closed", fields(json!(["203.0.113.0/24", "2001:db8:99::/64"])))).unwrap();
    let status =
        json!({"status": {"loadBalancer": {"ingress": vips.map(|ip: std::net::IpAddr| json!({"ip": ip}))}}});
    cluster.api().patch_status_value("services", "default", "closed", &status).unwrap();
    cluster.settle("default").await.unwrap();
    let process = Sockets::on_node(cluster.node(0)).unwrap();
    for address in vips.iter().copied().flat_map(notations) {
        let errors = attempts(&process, at(address, 80), at(address, 81));
        assert_eq!(errors, [Some(Errno::TIMED_OUT); 3], "{address}");
    }
    assert_eq!(reasons(&cluster).await, BTreeMap::from([("source_not_allowed".to_owned(), 9)]));
    for address in addresses(&cluster, "closed") {
        assert_eq!(attempts(&process, at(address, 80), at(address, 81)), [None; 3], "{address}");
    }
    // A range with an address of the node opens the VIP to its processes.
    let ranges: Vec<String> =
        node.iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })).collect();
    let open = json!({"spec": {"loadBalancerSourceRanges": ranges}});
    cluster.api().patch_value("services", "default", "closed", &open).unwrap();
    cluster.settle("default").await.unwrap();
    for address in vips.iter().copied().flat_map(notations) {
        let (http, udp) = (at(address, 80), at(address, 81));
        until("the ranges in the tables", || async { attempts(&process, http, udp) == [None; 3] }).await;
    }
}
