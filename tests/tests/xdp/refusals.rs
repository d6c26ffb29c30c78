//! Devices that do without: their driver cannot, or somebody else's program is there. They are served all the same.

use std::net::SocketAddr;

use aya::{
    EbpfLoader,
    programs::{Xdp, XdpMode},
};
use lb_agent::dataplane::XdpPlace::{Generic, Native};
use lb_tests::{
    cluster::{Cluster, Forwarding},
    datapath::object_path,
    lab::{Caller, Family},
};
use serde_json::json;

use crate::common::{builder, kernel, pinned, place, run, set, until};

/// Adds a Service with a node port in front of one pod. Returns where.
async fn node_port(cluster: &Cluster) -> SocketAddr {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let created = cluster.api().create(&object).unwrap();
    cluster.netexec_pod("default", "web", cluster.node(0), &json!({"app": "web"})).await.unwrap();
    cluster.settle("default").await.unwrap();
    let port = created["spec"]["ports"][0]["nodePort"].as_u64().unwrap() as u16;
    SocketAddr::new(cluster.node(0).addresses()[0], port)
}

async fn serves(cluster: &Cluster, to: SocketAddr) {
    let outside = Caller::at("outside", cluster.lab().client(0));
    for _ in 0..3 {
        assert_eq!(outside.hostname(to).await.as_deref(), Ok("web"));
    }
}

/// Frames longer than a page are more than a program in the driver is given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_driver_cannot_auto_runs_it_outside_and_native_does_without() {
    let mut cluster = builder(Family::V4, Forwarding::Stack, "auto").start().await.unwrap();
    let node = cluster.node(0).clone();
    run(&node, "ip link add jumbo0 mtu 9000 type veth peer name jumbo1 mtu 9000").await;
    run(&node, "ip link set jumbo0 up").await;
    run(&node, "ip link set jumbo1 up").await;
    run(&node, "ip addr add 203.0.113.7/24 dev jumbo0").await;
    let at_jumbo = async || kernel(&node, "jumbo0").await.map(|(place, _)| place);
    until("the receive path", async || at_jumbo().await == Some(Generic)).await;
    until("the driver of the other one", async || place(&node).await == Some(Native)).await;
    let log = cluster.agents()[0].log();
    assert!(log.contains("a smaller MTU") && log.contains("jumbo0"), "{log}");

    set(cluster.agent(0), "xdp=native").await;
    until("nothing", async || at_jumbo().await.is_none()).await;
    assert_eq!(place(&node).await, Some(Native), "the other one keeps it");
    let refused = |cluster: &Cluster| {
        let log = cluster.agents()[0].log();
        log.lines().filter(|line| line.contains("served without XDP") && line.contains("jumbo0")).count()
    };
    until("the warning", async || refused(&cluster) == 1).await;
    // Another MTU is another device to the driver.
    run(&node, "ip link set jumbo0 mtu 1500").await;
    run(&node, "ip link set jumbo1 mtu 1500").await;
    until("the driver", async || at_jumbo().await == Some(Native)).await;
}

/// Somebody else's program stays where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_ones_program_is_left_alone_and_clients_are_served_behind_it() {
    let cluster = builder(Family::V4, Forwarding::Stack, "auto").without_agents().start().await;
    let mut cluster = cluster.unwrap();
    let node = cluster.node(0).clone();
    // Ours as it passes packets when it knows no device.
    let theirs = node
        .namespace()
        .run(async {
            let object = std::fs::read(object_path()).unwrap();
            let mut ebpf = EbpfLoader::new().load(&object).unwrap();
            let program: &mut Xdp = ebpf.program_mut("from_wire").unwrap().try_into().unwrap();
            program.load().unwrap();
            program.attach("eth0", XdpMode::Driver).unwrap();
            ebpf
        })
        .await;
    let (_, id) = kernel(&node, "eth0").await.unwrap();
    cluster.start_agents().unwrap();
    cluster.agents_ready().await.unwrap();
    let to = node_port(&cluster).await;
    let refused = |cluster: &Cluster| {
        let log = cluster.agents()[0].log();
        log.lines().any(|line| line.contains("another XDP program is there") && line.contains("eth0"))
    };
    until("the warning", async || refused(&cluster)).await;
    serves(&cluster, to).await;
    assert_eq!(kernel(&node, "eth0").await, Some((Native, id)));
    assert!(pinned(&cluster.bpf_root(&node)).is_empty());
    // Once they have gone, it is tried again.
    drop(theirs);
    until("ours", async || kernel(&node, "eth0").await.is_some_and(|(_, now)| now != id)).await;
    serves(&cluster, to).await;
}
