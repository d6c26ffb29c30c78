//! The program at network devices: where the flag and the knob want it, over the ends of agents, and nowhere else.

use std::time::Duration;

use lb_agent::dataplane::XdpPlace::{Generic, Native};
use lb_tests::{
    cluster::{Cluster, Forwarding},
    lab::{Family, Node},
};
use serde_json::json;

use crate::common::{ETH0, SECONDS, builder, kernel, leave_by_eth0, pinned, place, run, set, targets, until};

async fn metrics(node: &Node) -> String {
    run(node, "curl -s http://127.0.0.1:10249/metrics").await
}

async fn is_told(node: &Node, line: &str) -> bool {
    metrics(node).await.lines().any(|it| it == line)
}

/// A node with a pod; its agent runs with `--xdp=<mode>`.
async fn with_a_pod(mode: &str, forwarding: Forwarding) -> (Cluster, Node, u32) {
    let cluster = builder(Family::Dual, forwarding, mode).start().await.unwrap();
    let node = cluster.node(0).clone();
    let pod = cluster.netexec_pod("default", "pod", &node, &json!({})).await.unwrap();
    let device = pod.pod().unwrap().host_device().index;
    (cluster, node, device)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_runs_where_the_flag_says_and_then_where_the_knob_says() {
    let (mut cluster, node, pod) = with_a_pod("native", Forwarding::Stack).await;
    let root = cluster.bpf_root(&node);
    until("the program in the driver", async || place(&node).await == Some(Native)).await;
    let pins = pinned(&root);
    assert_eq!(pins.len(), 1, "eth0 alone: {pins:?}");
    let (_, program) = kernel(&node, "eth0").await.unwrap();
    assert_eq!((pins[0].interface, pins[0].place, pins[0].program), (ETH0, Native, Some(program as u32)));
    let device = cluster.lab().node(0).pods()[0].host_device().name.clone();
    assert_eq!(kernel(&node, &device).await, None, "never at pods' devices");
    until("the metric", async || is_told(&node, "lb_xdp_devices{mode=\"native\"} 1").await).await;

    set(cluster.agent(0), "xdp=generic").await;
    until("the receive path", async || place(&node).await == Some(Generic)).await;
    assert_eq!(pinned(&root).len(), 1);
    until("every device takes frames", async || {
        let targets = targets(&node).await;
        targets.contains(&pod) && leave_by_eth0(&targets, Generic)
    })
    .await;
    until("the metric", async || is_told(&node, "lb_xdp_devices{mode=\"generic\"} 1").await).await;

    set(cluster.agent(0), "xdp=off").await;
    until("no program", async || place(&node).await.is_none()).await;
    assert!(pinned(&root).is_empty());
    until("the metric", async || is_told(&node, "lb_xdp_devices{mode=\"generic\"} 0").await).await;

    set(cluster.agent(0), "xdp=auto").await;
    until("the driver again", async || place(&node).await == Some(Native)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_go_only_to_devices_that_take_them() {
    let (cluster, node, pod) = with_a_pod("native", Forwarding::Redirect).await;
    let inside = cluster.lab().node(0).pods()[0].clone();
    until("the program in the driver", async || place(&node).await == Some(Native)).await;
    until("the pod's device and eth0", async || {
        let targets = targets(&node).await;
        targets.contains(&pod) && leave_by_eth0(&targets, Native)
    })
    .await;
    // An end of a pair takes frames while the other one polls.
    let output = inside.exec(&["ethtool", "-K", "eth0", "gro", "off"], &[], SECONDS).await.unwrap();
    assert!(output.status.success());
    until("not the pod's device any more", async || !targets(&node).await.contains(&pod)).await;
    let output = inside.exec(&["ethtool", "-K", "eth0", "gro", "on"], &[], SECONDS).await.unwrap();
    assert!(output.status.success());
    until("the pod's device again", async || targets(&node).await.contains(&pod)).await;
    // A device that is down takes nothing.
    let name = inside.host_device().name.clone();
    run(&node, &format!("ip link set {name} down")).await;
    until("not the device that is down", async || !targets(&node).await.contains(&pod)).await;
    run(&node, &format!("ip link set {name} up")).await;
    until("the device that is up", async || targets(&node).await.contains(&pod)).await;
    // One that is gone neither, and its successor does.
    inside.remove().unwrap();
    until("no device that is gone", async || !targets(&node).await.contains(&pod)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_is_replaced_without_a_gap_when_agents_are() {
    let (mut cluster, node, _) = with_a_pod("native", Forwarding::Stack).await;
    let root = cluster.bpf_root(&node);
    until("the program in the driver", async || place(&node).await == Some(Native)).await;
    for kill in [true, false] {
        let (_, before) = kernel(&node, "eth0").await.unwrap();
        if kill {
            cluster.agent(0).sigkill();
        } else {
            assert!(cluster.agent(0).sigterm().await.unwrap().success());
        }
        assert_eq!(kernel(&node, "eth0").await, Some((Native, before)), "it stays without an agent");
        cluster.agent(0).restart().unwrap();
        // The device always has one of the two.
        loop {
            match kernel(&node, "eth0").await {
                Some((Native, now)) if now == before => {}
                Some((Native, _)) => break,
                other => panic!("a gap: {other:?}"),
            }
        }
        cluster.agent(0).wait_ready().await.unwrap();
        until("the way out", async || leave_by_eth0(&targets(&node).await, Native)).await;
    }
    // An agent that is to do without takes it away, and so does a cleanup.
    for cleanup in [false, true] {
        cluster.agent(0).sigkill();
        if cleanup {
            let root = format!("--bpf-root={}", root.display());
            let output = node.agent_command(&["cleanup", &root], SECONDS).await.unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && text.contains("1 device (XDP)"), "{text}");
        } else {
            let mut options = cluster.agent_options(&node).unwrap();
            options.args.retain(|argument| !argument.starts_with("--xdp"));
            let without = node.start_agent(options).unwrap();
            without.wait_ready().await.unwrap();
            until("no program", async || place(&node).await.is_none()).await;
            without.sigkill();
            cluster.agent(0).restart().unwrap();
            cluster.agent(0).wait_ready().await.unwrap();
            until("the program again", async || place(&node).await == Some(Native)).await;
        }
    }
    assert_eq!(place(&node).await, None);
    assert!(!root.exists(), "nothing is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_take_away_is_put_back_and_counted() {
    let (cluster, node, _) = with_a_pod("native", Forwarding::Stack).await;
    let pin = cluster.bpf_root(&node).join("xdp").join(format!("{ETH0}-native"));
    until("the program in the driver", async || place(&node).await == Some(Native)).await;
    let detach = format!("bpftool link detach pinned {}", pin.display());
    run(&node, &detach).await;
    until("the program again", async || place(&node).await == Some(Native)).await;
    until("the count", async || is_told(&node, "lb_program_repairs_total{at=\"xdp\"} 1").await).await;
    std::fs::remove_file(&pin).unwrap();
    until("the pin again", async || pin.exists()).await;
    until("the count", async || is_told(&node, "lb_program_repairs_total{at=\"xdp\"} 2").await).await;
    assert_eq!(place(&node).await, Some(Native));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_leads_out_no_more_loses_it() {
    let cluster = builder(Family::V4, Forwarding::Stack, "auto").start().await.unwrap();
    let node = cluster.node(0).clone();
    for command in [
        "ip link add wan0 type veth peer name wan0peer",
        "ip link set wan0 up",
        "ip link set wan0peer up",
        "ip addr add 203.0.113.7/24 dev wan0",
    ] {
        run(&node, command).await;
    }
    until("the program", async || kernel(&node, "wan0").await.is_some()).await;
    run(&node, "ip addr del 203.0.113.7/24 dev wan0").await;
    // Devices keep their programs for some seconds, as addresses come and go.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(kernel(&node, "wan0").await.is_some());
    until("no program", async || kernel(&node, "wan0").await.is_none()).await;
    run(&node, "ip addr add 203.0.113.7/24 dev wan0").await;
    until("the program again", async || kernel(&node, "wan0").await.is_some()).await;
    run(&node, "ip link del wan0").await;
    until("no pin of a device that is gone", async || pinned(&cluster.bpf_root(&node)).len() == 1).await;
    assert_eq!(place(&node).await, Some(Native));
}
