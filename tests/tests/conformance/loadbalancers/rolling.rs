//! All pods of a Service are replaced, five times over, under a client that opens a connection every 10 ms.
//!
//! The client is the balancer: it asks each node's health check, as a cloud does, and sends what comes next to a node whose
//! answer was 200. The pods are a DaemonSet's: one a node, and the next one on a node starts when the last is gone.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::{case::netexec, prelude::*};

/// The titles.
pub(super) fn titles() -> Vec<Title> {
    ["Cluster", "Local"]
        .map(|policy| {
            let name = format!(
                "should not have connectivity disruption during rolling update with externalTrafficPolicy={policy}"
            );
            Title::new(name, move |case| rolls(case, policy))
        })
        .into()
}

/// How often all pods are replaced.
const ROLLS: u32 = 5;
/// From one new connection to the next.
const EVERY: Duration = Duration::from_millis(10);
/// From one round of health checks to the next.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// What the client saw.
#[derive(Debug, Default)]
struct Seen {
    answers: BTreeMap<String, u32>,
    failures: Vec<String>,
}

async fn rolls(case: Case, policy: &'static str) -> Result<()> {
    let service = case.service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": policy}))?;
    let vips = [0, 1, 2].map(|node| case.routed_address(node));
    service.ingress(&vips)?;
    let mut pods = Vec::new();
    for node in 0..3 {
        pods.push(daemon(&case, 0, node).await?);
    }
    let outside = case.outside(0);
    let names: Vec<&str> = pods.iter().map(PodClient::name).collect();
    for (vip, pod) in vips.iter().zip(&pods) {
        let reached: &[&str] = if policy == "Local" { &[pod.name()] } else { &names };
        case.comes_to_reach(&outside, SocketAddr::new(*vip, 80), Protocol::Tcp, reached).await?;
    }
    // With policy Cluster every node serves.
    let health = (policy == "Local").then(|| service.health_port()).transpose()?;
    let healthy = RefCell::new(BTreeSet::from([0_usize, 1, 2]));
    let seen = RefCell::new(Seen::default());
    let rolling = async {
        let first: Vec<String> = pods.iter().map(|pod| pod.name().to_owned()).collect();
        case.eventually("all pods serve", async || {
            Ok(first.iter().all(|name| seen.borrow().answers.contains_key(name)))
        })
        .await?;
        for roll in 1..=ROLLS {
            for (node, pod) in pods.iter_mut().enumerate() {
                case.delete_pod(pod.name(), Duration::from_secs(30))?;
                let old = pod.name().to_owned();
                case.eventually("the old pod is gone", async || {
                    Ok(case.cluster().runtime().pod(case.namespace(), &old).is_none())
                })
                .await?;
                *pod = daemon(&case, roll, node).await?;
                // It goes on when the new one is available: its node is healthy, it was met.
                let new = pod.name();
                case.eventually("the new pod serves", async || Ok(seen.borrow().answers.contains_key(new)))
                    .await?;
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        done = rolling => done?,
        () = asks(&outside, &vips, &healthy, &seen) => {}
        failed = checks(&case, health, &healthy) => failed?,
    }
    let Seen { answers, failures } = seen.into_inner();
    let total: u32 = answers.values().sum();
    println!(
        "rolling update, policy {policy}, {}: {total} connections answered by {} pods, {} failed",
        case.variant(),
        answers.len(),
        failures.len()
    );
    ensure!(
        failures.is_empty(),
        "{} of {} failed: {failures:?}",
        failures.len(),
        total as usize + failures.len()
    );
    ensure!(answers.len() == 3 * (ROLLS as usize + 1), "not every pod was met: {answers:?}");
    // One every 10 ms, but for what the machine's load takes.
    ensure!(total > 500, "only {total} connections");
    Ok(())
}

/// The pod of a DaemonSet on a node; it serves a second longer after it was told to terminate.
async fn daemon(case: &Case, roll: u32, node: usize) -> Result<PodClient> {
    let args = ["--http-port=8080", "--udp-port=8081", "--delay-shutdown=1"];
    let spec = json!({"containers": [netexec(&args)]});
    case.pod_with(&format!("web-{roll}-{node}"), node, json!({"app": "web"}), spec).await
}

/// Opens connections through healthy nodes, in turn, until it is dropped.
async fn asks(client: &Caller, vips: &[IpAddr], healthy: &RefCell<BTreeSet<usize>>, seen: &RefCell<Seen>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for turn in 0_usize.. {
        ticks.tick().await;
        let node = {
            let nodes = healthy.borrow();
            nodes.iter().copied().nth(turn % nodes.len().max(1))
        };
        let Some(node) = node else {
            seen.borrow_mut().failures.push(format!("connection {turn}: no node is healthy"));
            continue;
        };
        match client.hostname(SocketAddr::new(vips[node], 80)).await {
            Ok(name) => *seen.borrow_mut().answers.entry(name).or_default() += 1,
            Err(error) => {
                seen.borrow_mut().failures.push(format!("connection {turn} through node {node}: {error}"));
            }
        }
    }
}

/// Keeps the set of healthy nodes up to date until it is dropped.
async fn checks(case: &Case, port: Option<u16>, healthy: &RefCell<BTreeSet<usize>>) -> Result<()> {
    let Some(port) = port else { return std::future::pending().await };
    let client = case.outside(1).within(Duration::from_secs(2));
    let to = (0..3).map(|node| Ok(SocketAddr::new(case.node_ip(node)?, port))).collect::<Result<Vec<_>>>()?;
    let check = async |node: usize| loop {
        let told = client.http(to[node], "/").await;
        if told.is_ok_and(|told| told.status == 200) {
            healthy.borrow_mut().insert(node);
        } else {
            healthy.borrow_mut().remove(&node);
        }
        tokio::time::sleep(CHECK_EVERY).await;
    };
    // A node that is slow to tell does not keep the balancer from asking the others.
    tokio::join!(check(0), check(1), check(2));
    Ok(())
}
