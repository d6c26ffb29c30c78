//! The kernel lets one change a network device at a time (its `rtnl` lock), in any namespace of the node. Who removes many
//! devices may hold the others up for seconds. An agent that has to wait for it goes on with all that has nothing to do
//! with devices.

use std::time::{Duration, Instant};

use lb_tests::{
    cluster::{Forwarding, url},
    lab::{Client, Family},
    workload::http_get,
};
use serde_json::json;
use tokio::time::timeout;

use crate::common::{SECONDS, Site, builder, until};

/// So many bridges go at once; each takes some ten milliseconds.
const BRIDGES: u32 = 200;
/// As long as that at least, or nothing was shown.
const HELD: Duration = Duration::from_secs(1);
/// What has nothing to do with devices takes no longer meanwhile.
const AT_ONCE: Duration = Duration::from_millis(500);

/// How long one look at the new Service may take.
const LOOK: Duration = Duration::from_millis(50);

async fn sh(at: &Client, script: &str) {
    let output = at.exec(&["sh", "-c", script], &[], 3 * SECONDS).await.unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Looks after health, metrics and a new Service while a host outside, on the same kernel, removes its devices.
async fn goes_on(forwarding: Forwarding, xdp: bool) {
    let builder = builder(1, Family::V4, forwarding);
    let builder = if xdp { builder.cards().agent_args(["--xdp=native"]) } else { builder };
    let site = Site::start(builder, 2).await;
    site.warm_up().await;
    let (cluster, node) = (&site.cluster, site.cluster.node(0));
    let stranger = cluster.lab().client(0).clone();
    let make =
        format!("for i in $(seq {BRIDGES}); do echo link add many$i group 5 type bridge; done | ip -batch -");
    sh(&stranger, &make).await;

    let begin = Instant::now();
    let held = tokio::spawn(async move { sh(&stranger, "ip link del group 5").await });
    let asks = async |port: u16, path: &str| -> (u32, Duration) {
        let (mut asked, mut worst) = (0, Duration::ZERO);
        while !held.is_finished() {
            let begin = Instant::now();
            let answer = http_get(node, &format!("http://127.0.0.1:{port}{path}")).await.unwrap();
            assert_eq!(answer.status, 200, "{path}");
            (asked, worst) = (asked + 1, worst.max(begin.elapsed()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (asked, worst)
    };
    let learns = async || {
        tokio::time::sleep(HELD / 2).await;
        let begin = Instant::now();
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "late", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        cluster.api().create(&service).unwrap();
        let to = url(cluster.cluster_ip("default", "late").unwrap(), 80, "/hostname");
        // A look that comes too early is lost, and would be repeated a second later.
        let look =
            async || timeout(LOOK, http_get(&site.client, &to)).await.is_ok_and(|answer| answer.is_ok());
        until("the new Service", look).await;
        begin.elapsed()
    };
    let ((health, health_worst), (metrics, metrics_worst), learned) =
        tokio::join!(asks(10256, "/healthz"), asks(10249, "/metrics"), learns());
    let took = begin.elapsed();
    println!(
        "devices could not be changed for {took:.1?}: {health} asked for health, {health_worst:.0?} at the longest; {metrics} \
         for metrics, {metrics_worst:.0?}; a new Service was served after {learned:.0?}"
    );
    assert!(took > HELD, "the lock was held for {took:?} only");
    for (what, time) in [("health", health_worst), ("metrics", metrics_worst), ("a new Service", learned)] {
        assert!(time < AT_ONCE, "{what} took {time:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_waits_for_the_kernels_network_lock_goes_on_with_the_rest() {
    goes_on(Forwarding::Stack, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_waits_for_the_lock_for_its_xdp_program_goes_on_with_the_rest() {
    goes_on(Forwarding::Redirect, true).await;
}
