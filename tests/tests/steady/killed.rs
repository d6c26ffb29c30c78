//! Agents that are killed: in the middle of their work, and over and over while they start.

use std::time::Duration;

use lb_tests::{cluster::Forwarding, lab::Family};

use crate::common::{SECONDS, Site, attached, builder, until};
use crate::traffic::Traffic;

/// Less than two thirds of the rate that is asked for would be another test.
const LEAST: f64 = 200.0 * 2.0 / 3.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_live_connections_and_two_hundred_new_ones_a_second_do_not_notice_sigkill() {
    let mut site = Site::start(builder(2, Family::Dual, Forwarding::Stack), 4).await;
    site.warm_up().await;
    let traffic = Traffic::start(&site.ways(), 1000, 200).await;
    for _ in 0..2 {
        for node in 0..2 {
            site.cluster.agent(node).sigkill();
        }
        traffic.pulse().await;
        for node in 0..2 {
            site.cluster.agent(node).restart().unwrap();
        }
        site.cluster.agents_ready().await.unwrap();
        traffic.pulse().await;
    }
    // The successors are in charge.
    site.add(4).await;
    site.cluster.settle("default").await.unwrap();
    let counts = traffic.stop().await;
    counts.nobody_noticed("SIGKILL and restart of both nodes' agents, twice");
    assert!(counts.rate() > LEAST, "{counts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_crashes_again_and_again_leaves_traffic_alone() {
    let mut site = Site::start(builder(1, Family::V4, Forwarding::Redirect), 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let (pins, programs) = (site.pins(&node), attached(&node).await);
    let traffic = Traffic::start(&site.ways(), 60, 60).await;
    for delay in [0, 10, 25, 50, 90, 150, 250, 400, 600, 900, 1300, 1800] {
        site.cluster.agent(0).restart().unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        site.cluster.agent(0).sigkill();
        assert_eq!(site.pins(&node), pins, "killed after {delay} ms");
        assert_eq!(attached(&node).await, programs, "killed after {delay} ms");
    }
    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    let log = site.cluster.agent(0).log();
    let last = log.rfind("lb-agent starts").unwrap();
    assert!(log[last..].contains("every flow stays where it is"), "{}", &log[last..]);
    site.add(2).await;
    site.cluster.settle("default").await.unwrap();
    traffic.pulse().await;
    traffic.stop().await.nobody_noticed("twelve crashes while starting");
    assert_eq!(site.pins(&node).difference(&pins).filter(|it| it.starts_with("maps/")).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_told_to_stop_leaves_everything_at_work_and_cleanup_takes_it_away() {
    let mut site = Site::start(builder(1, Family::Dual, Forwarding::Stack), 2).await;
    site.warm_up().await;
    let node = site.cluster.node(0).clone();
    let pins = site.pins(&node);
    let traffic = Traffic::start(&site.ways(), 60, 60).await;
    assert!(site.cluster.agent(0).sigterm().await.unwrap().success());
    assert_eq!(site.pins(&node), pins);
    traffic.pulse().await;
    traffic.stop().await.nobody_noticed("no agent after SIGTERM");
    let root = format!("--bpf-root={}", site.cluster.bpf_root(&node).display());
    let cleaned = node.agent_command(&["cleanup", &root], SECONDS).await.unwrap();
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert!(site.pins(&node).is_empty());
    until("no program is attached", async || attached(&node).await.is_empty()).await;
    // What served nobody for a while serves again.
    site.cluster.agent(0).restart().unwrap();
    site.cluster.agent(0).wait_ready().await.unwrap();
    site.warm_up().await;
}
