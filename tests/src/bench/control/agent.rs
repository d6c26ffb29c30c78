//! A whole agent on a node of the lab, with an API server: memory, CPU, and how long a change takes through a watch.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::world::World;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::cluster::{Cluster, Forwarding};
use crate::lab::{Family, Shape};

/// Longest time for everything to be in the tables.
const LIMIT: Duration = Duration::from_secs(120);
/// Endpoint changes a second.
const RATE: u32 = 20;

/// A line of `lb-agent run --latency-log`.
#[derive(Debug, Deserialize)]
struct Line {
    service: String,
    applied: Timestamp,
}

/// Memory, CPU and latency.
///
/// # Errors
/// The lab does not come up, or the agent does not keep up.
pub(super) fn rows(quick: bool) -> Result<Vec<Row>> {
    let seconds = if quick { 10 } else { 30 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(World::MANY, Duration::from_secs(seconds)))
}

async fn measure(world: World, during: Duration) -> Result<Vec<Row>> {
    let sizes = [
        format!("--max-services={}", world.services + 100),
        format!("--max-endpoints={}", world.services * world.endpoints + 1_000),
        "--max-connections=1024".to_owned(),
        "--flow-cache-sets=1".to_owned(),
    ];
    let cluster = Cluster::builder()
        .nodes(1)
        .family(Family::V4)
        .shape(Shape::Routed)
        .forwarding(Forwarding::Stack)
        .without_dns()
        .agent_args(sizes)
        .start()
        .await?;
    let agent = Agent(cluster.agents()[0].pid());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let empty = agent.memory()?;
    let (idle, ()) = agent.busy(tokio::time::sleep(during)).await?;

    progress(format_args!("{} Services go to the API server", world.services));
    let begin = Instant::now();
    for number in 0..world.services {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name(number), "namespace": "default"},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        });
        cluster.api().create(&service)?;
        cluster.api().create(&slice(world, number, 0))?;
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let written = begin.elapsed();
    let wanted = (world.services * world.endpoints) as usize;
    loop {
        let backends = cluster.tables(cluster.node(0))?.view().backends.len();
        if backends >= wanted {
            break;
        }
        ensure!(begin.elapsed() < written + LIMIT, "{backends} of {wanted} endpoints are in the tables");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let full = agent.memory()?;
    let (still, ()) = agent.busy(tokio::time::sleep(during)).await?;

    let changes = RATE * during.as_secs() as u32;
    let log = cluster.latency_log(cluster.node(0));
    let known = fs::metadata(&log)?.len();
    let mut begun = BTreeMap::new();
    let (busy, done) = agent
        .busy(async {
            let begin = Instant::now();
            for change in 0..changes {
                tokio::time::sleep_until((begin + Duration::from_secs(1) * change / RATE).into()).await;
                let number = change.wrapping_mul(7_919) % world.services;
                begun.insert(format!("default/{}", name(number)), Timestamp::now());
                cluster.api().apply(&slice(world, number, 1))?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            anyhow::Ok(())
        })
        .await?;
    done?;
    let mut latencies = latencies(&log, known, &begun)?;
    ensure!(latencies.len() == changes as usize, "{} of {changes} changes are logged", latencies.len());
    latencies.sort_by(f64::total_cmp);
    let mebi = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let own =
        |memory: Memory| format!("{:.1} MiB of it its own, the rest program and tables", mebi(memory.own));
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    Ok(vec![
        Row::new("agent's memory, nothing known", "MiB", &[mebi(empty.all)]).goal("C7/idle").note(own(empty)),
        Row::new("agent's memory, 10,000 Services / 250,000 endpoints", "MiB", &[mebi(full.all)])
            .goal("C7/full")
            .note(own(full)),
        Row::new("agent's CPU, nothing to do, no Services", "mCPU", &[idle]).goal("C11/idle"),
        Row::new("agent's CPU, nothing to do, 10,000 Services", "mCPU", &[still]).goal("C11/idle"),
        Row::new("agent's CPU, 20 changes a second, 10,000 Services", "mCPU", &[busy]).goal("C11/busy"),
        Row::new("change through the API server, median", "ms", &[at(50)]),
        Row::new("change through the API server, p99", "ms", &[at(99)]).goal("C1/watch"),
    ])
}

fn name(number: u32) -> String {
    format!("many-{number}")
}

fn slice(world: World, number: u32, generation: u32) -> serde_json::Value {
    let endpoint = |at: u32| {
        let changed = if at == 0 { generation } else { 0 };
        json!({"addresses": [world.endpoint(number, at, changed).to_string()]})
    };
    let endpoints: Vec<_> = (0..world.endpoints).map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name(number), "namespace": "default",
            "labels": {"kubernetes.io/service-name": name(number)},
        },
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// Milliseconds from the write of each change to the kernel's tables, by the log's lines after `known` bytes.
fn latencies(log: &Path, known: u64, begun: &BTreeMap<String, Timestamp>) -> Result<Vec<f64>> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text[known as usize..]).into_owned();
    let mut latencies = Vec::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).context("a line of the latency log")?;
        if let Some(begin) = begun.get(&line.service) {
            latencies.push(line.applied.duration_since(*begin).as_secs_f64() * 1e3);
        }
    }
    Ok(latencies)
}

/// A running agent's process.
struct Agent(u32);

/// Bytes of resident memory.
#[derive(Clone, Copy)]
struct Memory {
    all: u64,
    /// Anonymous: what nobody else has, and no file.
    own: u64,
}

impl Agent {
    fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.context("a field of status")?.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
        };
        Ok(Memory { all: field("VmRSS:")?, own: field("RssAnon:")? })
    }

    /// Nanoseconds on a CPU, of all its threads.
    fn on_cpu(&self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(sum)
    }

    /// Thousandths of a CPU that it takes while something else is done.
    async fn busy<T>(&self, work: impl Future<Output = T>) -> Result<(f64, T)> {
        let (begin, before) = (Instant::now(), self.on_cpu()?);
        let done = work.await;
        Ok(((self.on_cpu()? - before) as f64 / begin.elapsed().as_secs_f64() / 1e6, done))
    }
}
