//! Pods: untouched by default, served when they connect with `--socket-lb=all`.

use std::collections::BTreeSet;

use lb_tests::{
    cluster::Cluster,
    lab::KubePod,
    sockets::{Errno, Sockets},
};
use serde_json::json;

use crate::common::{
    addresses, agent_json, at, builder, http_hostname, notations, serves, service, with_web,
};

/// Connections of a pod that its packets made known.
async fn connections_of(cluster: &Cluster, pod: &KubePod) -> usize {
    let rows = agent_json(cluster, &["connections"]).await;
    let of_pod = |client: &str| {
        pod.addresses()
            .iter()
            .any(|ip| client.starts_with(&at(*ip, 0).to_string()[..at(*ip, 0).to_string().len() - 1]))
    };
    rows.as_array().unwrap().iter().filter(|row| of_pod(row["client"].as_str().unwrap())).count()
}

async fn client(cluster: &Cluster) -> KubePod {
    cluster.netexec_pod("default", "client", cluster.node(0), &json!({})).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_pods_are_served_packet_by_packet() {
    let cluster = with_web(builder(), 2).await;
    let pod = client(&cluster).await;
    let process = Sockets::in_pod(pod.pod().unwrap()).unwrap();
    let all = addresses(&cluster, "web");
    let mut open = Vec::new();
    for address in &all {
        let stream = process.stream(at(*address, 80)).unwrap();
        http_hostname(&stream).unwrap();
        open.push(stream);
        process.connected(at(*address, 81)).unwrap().ask("hostname").unwrap();
    }
    assert_eq!(connections_of(&cluster, &pod).await, 2 * all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_pods_talk_to_endpoints_and_no_packet_of_theirs_is_touched() {
    let cluster = with_web(builder().agent_args(["--socket-lb=all"]), 3).await;
    let pod = client(&cluster).await;
    let process = Sockets::in_pod(pod.pod().unwrap()).unwrap();
    for address in addresses(&cluster, "web") {
        let (http, udp) = (at(address, 80), at(address, 81));
        let mut names = BTreeSet::new();
        for _ in 0..30 {
            let stream = process.stream(http).unwrap();
            assert_eq!(stream.peer(), Ok(http));
            names.insert(http_hostname(&stream).unwrap());
            let (name, from) = process.datagrams(udp).unwrap().ask_at(udp, "hostname").unwrap();
            assert_eq!(from, udp);
            names.insert(name);
            names.insert(process.connected(udp).unwrap().ask("hostname").unwrap());
        }
        assert_eq!(names.len(), 3, "{address}: {names:?}");
        assert_eq!(process.stream(at(address, 82)).err(), Some(Errno::REFUSED), "{address}");
    }
    assert_eq!(connections_of(&cluster, &pod).await, 0);
    // Processes of the node, too.
    let host = Sockets::on_node(cluster.node(0)).unwrap();
    http_hostname(&host.stream(at(addresses(&cluster, "web")[0], 80)).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_a_pod_reaches_itself() {
    let cluster = with_web(builder().agent_args(["--socket-lb=all"]), 1).await;
    let pod = cluster.pod("default", "app=web").unwrap();
    let process = Sockets::in_pod(pod.pod().unwrap()).unwrap();
    for address in addresses(&cluster, "web") {
        let (http, udp) = (at(address, 80), at(address, 81));
        for _ in 0..3 {
            let stream = process.stream(http).unwrap();
            assert_eq!(http_hostname(&stream), Ok("web-0".to_owned()), "{address}");
            assert_eq!(stream.peer(), Ok(http));
            let answer = process.datagrams(udp).unwrap().ask_at(udp, "hostname");
            assert_eq!(answer, Ok(("web-0".to_owned(), udp)));
            assert_eq!(process.connected(udp).unwrap().ask("hostname"), Ok("web-0".to_owned()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_a_pods_loopback_is_its_own() {
    let cluster = with_web(builder().agent_args(["--socket-lb=all"]), 1).await;
    let fields = json!({
        "type": "NodePort",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30_080}],
    });
    cluster.api().create(&service("open", fields)).unwrap();
    cluster.settle("default").await.unwrap();
    let pod = client(&cluster).await;
    let process = Sockets::in_pod(pod.pod().unwrap()).unwrap();
    for ip in cluster.node(0).addresses().iter().copied().flat_map(notations) {
        assert_eq!(http_hostname(&process.stream(at(ip, 30_080)).unwrap()), Ok("web-0".to_owned()), "{ip}");
    }
    for ip in ["127.0.0.1", "::1"] {
        let there = at(ip.parse().unwrap(), 30_080);
        assert_eq!(process.stream(there).err(), Some(Errno::REFUSED), "nobody listens in the pod");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_each_pod_has_an_affinity_of_its_own() {
    let cluster = with_web(builder().agent_args(["--socket-lb=all"]), 4).await;
    let fields = json!({"sessionAffinity": "ClientIP"});
    cluster.api().create(&service("sticky", fields)).unwrap();
    cluster.settle("default").await.unwrap();
    let mut endpoints = BTreeSet::new();
    let all = addresses(&cluster, "sticky");
    let mut clients = Vec::new();
    for number in 0..8 {
        let name = format!("client-{number}");
        clients.push(cluster.netexec_pod("default", &name, cluster.node(0), &json!({})).await.unwrap());
    }
    for pod in &clients {
        let process = Sockets::in_pod(pod.pod().unwrap()).unwrap();
        // One client in both notations of its IPv4 address.
        for group in [&all[..2], &all[2..]] {
            let names: BTreeSet<String> = group
                .iter()
                .cycle()
                .take(12)
                .map(|address| http_hostname(&process.stream(at(*address, 80)).unwrap()).unwrap())
                .collect();
            assert_eq!(names.len(), 1, "{}: {names:?}", pod.name());
            endpoints.extend(names);
        }
    }
    assert!(endpoints.len() > 1, "all pods share an affinity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_source_ranges_hold_for_pods_by_the_address_of_their_packets() {
    let cluster = with_web(builder().agent_args(["--socket-lb=all"]), 1).await;
    let (one, other) = (
        client(&cluster).await,
        cluster.netexec_pod("default", "other", cluster.node(0), &json!({})).await.unwrap(),
    );
    let vip = "198.51.100.71".parse().unwrap();
    let allowed = one.addresses().iter().find(|ip| ip.is_ipv4()).unwrap();
    let fields = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [format!("{allowed}/32")]});
    cluster.api().create(&service("closed", fields)).unwrap();
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": vip}]}}});
    cluster.api().patch_status_value("services", "default", "closed", &status).unwrap();
    cluster.settle("default").await.unwrap();
    let (one, other) =
        (Sockets::in_pod(one.pod().unwrap()).unwrap(), Sockets::in_pod(other.pod().unwrap()).unwrap());
    crate::common::until("the VIP in the tables", || async { one.stream(at(vip, 80)).is_ok() }).await;
    assert_eq!(http_hostname(&one.stream(at(vip, 80)).unwrap()), Ok("web-0".to_owned()));
    assert_eq!(other.stream(at(vip, 80)).err(), Some(Errno::NO_ANSWER));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_stale_datagram_sockets_of_pods_are_closed_too() {
    let cluster = with_web(builder().agent_args(["--socket-lb=all"]), 2).await;
    let pod = client(&cluster).await;
    let process = Sockets::in_pod(pod.pod().unwrap()).unwrap();
    for address in addresses(&cluster, "web") {
        let udp = at(address, 81);
        let socket = process.connected(udp).unwrap();
        let first = socket.ask("hostname").unwrap();
        serves(&cluster, &first, false).await;
        crate::common::until("the socket to be closed", || async { socket.peer().is_err() }).await;
        assert_eq!(socket.receive(), Err(Errno::ABORTED));
        socket.connect(udp).unwrap();
        assert_ne!(socket.ask("hostname"), Ok(first.clone()));
        serves(&cluster, &first, true).await;
    }
}
