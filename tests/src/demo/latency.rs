//! From a write to the API server to the store in the kernel's tables.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::Stage;
use crate::cluster::Cluster;

/// How many changes are made.
const CHANGES: u32 = 60;
const LIMIT: Duration = Duration::from_secs(10);
const SERVICE: &str = "latency/probe";

/// A line of `lb-agent run --latency-log`.
#[derive(Debug, Deserialize)]
struct Line {
    service: String,
    applied: Timestamp,
    latency_us: u64,
}

pub(super) async fn tell(stage: &mut Stage) -> anyhow::Result<()> {
    let Stage { cluster, teller } = stage;
    teller.note(&format!(
        "{CHANGES} endpoint changes, one after the other, written to the API server. The clock starts before the write \
         and stops when the agent has stored the new set: TLS, JSON, planning and all (agent: {} build).",
        if cfg!(debug_assertions) { "debug" } else { "release" }
    ));
    let (mut whole, mut inside) = (Vec::new(), Vec::new());
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: latency}}")?;
    cluster.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: probe, namespace: latency}, spec: {ports: [{port: 80}]}}",
    )?;
    change(cluster, 0)?;
    cluster.settle("latency").await?;
    let logs: Vec<_> = cluster.agents().iter().map(|agent| cluster.latency_log(agent.node())).collect();
    for number in 1..=CHANGES {
        let known: Vec<usize> =
            logs.iter().map(|log| Ok(lines(log)?.len())).collect::<anyhow::Result<_>>()?;
        let begin = Timestamp::now();
        change(cluster, number)?;
        let waiting = Instant::now();
        for (log, known) in logs.iter().zip(known) {
            let line = loop {
                if let Some(line) = lines(log)?.into_iter().nth(known) {
                    break line;
                }
                ensure!(waiting.elapsed() < LIMIT, "change {number} is not in {}", log.display());
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            let micros = line.applied.duration_since(begin).as_micros();
            whole.push(Duration::from_micros(u64::try_from(micros).unwrap_or_default()));
            inside.push(Duration::from_micros(line.latency_us));
        }
    }
    for (what, samples) in [
        ("from the API server to the kernel", &mut whole),
        ("of which in the agent, from the event to the kernel", &mut inside),
    ] {
        samples.sort_unstable();
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
        teller.check(
            samples.len() >= 50,
            format!(
                "{what}: median {:.2?}, p99 {:.2?}, longest {:.2?} ({} measured)",
                at(0.5),
                at(0.99),
                at(1.0),
                samples.len()
            ),
        );
    }
    Ok(())
}

/// Makes the endpoint of the Service another one.
fn change(cluster: &Cluster, number: u32) -> anyhow::Result<()> {
    let ip = cluster.cluster_ip("latency", "probe")?;
    let (family, address) = if ip.is_ipv4() {
        ("IPv4", format!("192.0.2.{}", 1 + number))
    } else {
        ("IPv6", format!("2001:db8::{:x}", 1 + number))
    };
    cluster.api().apply(&json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "probe-1", "namespace": "latency", "labels": {"kubernetes.io/service-name": "probe"},
        },
        "addressType": family,
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address]}],
    }))?;
    Ok(())
}

/// The complete lines about the Service.
fn lines(log: &Path) -> anyhow::Result<Vec<Line>> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    let parsed: Result<Vec<Line>, _> = complete.lines().map(serde_json::from_str).collect();
    let mut lines = parsed.with_context(|| format!("{} is no log of latencies", log.display()))?;
    lines.retain(|line| line.service == SERVICE);
    Ok(lines)
}
