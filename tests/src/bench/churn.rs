//! `churn`: endpoints replaced one after another under load, and agents killed: what fails, what moves, how long nothing comes.
//!
//! The servers of endpoints that leave go on: a connection that a Service had sent there must stay there (S-50), and nothing may fail.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

use super::balancer::{agent_ready, running_agent};
use super::report::{Report, Row};
use super::{Options, progress, waited};
use crate::lab::{AgentHandle, Lab, Pod};
use crate::workload::{Load, LoadReport, Netexec, RunningLoad, Server};

/// Servers, and how many of them are endpoints at a time.
const SERVERS: usize = 8;
const ENDPOINTS: usize = 4;
const PORT: u16 = 8080;
const VIP: &str = "10.96.0.100";
/// Clients that keep a connection, and those that make a new one (or a new UDP socket) for every request.
const KEEPING: usize = 16;
const RENEWING: usize = 4;
/// Time for a change to have an effect, if it has one.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a round of kills lasts after the agent is back.
const AFTER_KILL: Duration = Duration::from_millis(500);

/// What is measured: how the agent serves.
const WAYS: [(&str, &[&str]); 3] = [
    ("stack", &["--forwarding=stack"]),
    ("redirect", &["--forwarding=redirect"]),
    ("at connect", &["--socket-lb=all"]),
];

/// Measures.
///
/// # Errors
/// Not root, or something is missing. What fails under load is a figure.
pub fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds(3, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // Agents and servers end in it.
    let _within = runtime.enter();
    let mut rows = Vec::new();
    for (way, arguments) in WAYS.into_iter().filter(|(way, _)| options.wants(way)) {
        let (mut changed, mut killed) = (Figures::default(), Figures::default());
        let mut site = waited(format!("{way}: servers start"), || runtime.block_on(Site::build(arguments)))?;
        progress(format_args!("{way}: {SERVERS} servers stand"));
        for round in 0..rounds {
            let name = format!("{way}: round {} of {rounds}", round + 1);
            waited(&name, || {
                runtime.block_on(async {
                    changed.add(&site.replace_all().await?);
                    killed.add(&site.kill().await?);
                    anyhow::Ok(())
                })
            })?;
            progress(name);
        }
        rows.extend(changed.rows(&format!("{way}, every endpoint replaced"), false));
        rows.extend(killed.rows(&format!("{way}, agent killed and started"), true));
    }
    ensure!(!rows.is_empty(), "no case has {:?} in its name", options.filter);
    Ok(Report::new("churn", rounds, rows))
}

/// What rounds said.
#[derive(Default)]
struct Figures {
    requests: Vec<f64>,
    failed: Vec<f64>,
    moved: Vec<f64>,
    gap: Vec<f64>,
}

impl Figures {
    fn add(&mut self, reports: &[LoadReport]) {
        let sum = |figure: fn(&LoadReport) -> u64| reports.iter().map(figure).sum::<u64>() as f64;
        self.requests.push(sum(LoadReport::requests));
        self.failed.push(sum(|report| report.failures.len() as u64));
        // One that keeps its connection has one connection, to one server.
        let keeping = reports[..KEEPING].iter();
        let moved =
            |report: &LoadReport| report.by_backend.len().max(report.connections as usize).saturating_sub(1);
        self.moved.push(keeping.map(moved).sum::<usize>() as f64);
        let longest = reports.iter().map(|report| report.longest_gap).max().unwrap_or_default();
        self.gap.push(longest.as_secs_f64() * 1e3);
    }

    fn rows(&self, name: &str, is_restart: bool) -> Vec<Row> {
        let mut rows = vec![
            Row::new(format!("{name}: requests"), "requests", &self.requests).higher_is_better(),
            Row::new(format!("{name}: failed"), "requests", &self.failed),
            Row::new(format!("{name}: moved"), "connections", &self.moved),
            Row::new(format!("{name}: longest time without an answer"), "ms", &self.gap),
        ];
        if is_restart {
            rows[1].goals.push("C10/failed".to_owned());
            rows[2].goals.push("C10/moved".to_owned());
        }
        rows
    }
}

/// A node with servers, a client and an agent.
struct Site {
    manifests: PathBuf,
    node: String,
    servers: Vec<Pod>,
    _serving: Vec<Server>,
    client: Pod,
    /// The first server that is an endpoint; the others come after it.
    first: usize,
    agent: AgentHandle,
    _lab: Lab,
}

impl Site {
    async fn build(arguments: &[&str]) -> Result<Self> {
        let lab = Lab::builder().build()?;
        let node = lab.node(0).clone();
        let (mut servers, mut serving) = (Vec::new(), Vec::new());
        for number in 0..SERVERS {
            let name = format!("server-{number}");
            let pod = node.pod(&name)?;
            serving.push(Netexec::new(name).http(PORT).udp(PORT).start(&pod).await?);
            servers.push(pod);
        }
        let client = node.pod("client")?;
        let manifests = lab.state_dir().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        write(
            &manifests,
            &text(&servers, node.name(), |number| (number < ENDPOINTS).then_some(State::Ready)),
        )?;
        let agent = running_agent(&node, &manifests, arguments)?;
        let node = node.name().to_owned();
        Ok(Self { manifests, node, servers, _serving: serving, client, first: 0, agent, _lab: lab })
    }

    fn load(&self) -> Vec<RunningLoad> {
        let url = format!("http://{VIP}:80/hostname");
        let each = Duration::from_millis(5);
        let mut loads: Vec<Load> = (0..KEEPING).map(|_| Load::keep_alive(&url).interval(each)).collect();
        loads.extend((0..RENEWING).map(|_| Load::http(&url).interval(each)));
        loads.extend((0..RENEWING).map(|_| Load::udp(VIP, 80).interval(each)));
        loads.iter().map(|load| load.start(&self.client)).collect()
    }

    /// Every endpoint makes room for another one: the new one appears, becomes ready, the old one terminates, and goes.
    async fn replace_all(&mut self) -> Result<Vec<LoadReport>> {
        let loads = self.load();
        sleep(PAUSE).await;
        for _ in 0..ENDPOINTS {
            let (old, new) = (self.first, (self.first + ENDPOINTS) % SERVERS);
            self.first = (self.first + 1) % SERVERS;
            for (before, after) in [
                (Some(State::Ready), Some(State::Unready)),
                (Some(State::Ready), Some(State::Ready)),
                (Some(State::Terminating), Some(State::Ready)),
                (None, Some(State::Ready)),
            ] {
                let state = |number: usize| {
                    let rank = (number + SERVERS - old) % SERVERS;
                    match rank {
                        0 => before,
                        _ if number == new => after,
                        _ => (rank < ENDPOINTS).then_some(State::Ready),
                    }
                };
                write(&self.manifests, &text(&self.servers, &self.node, state))?;
                sleep(PAUSE).await;
            }
        }
        let reports = stop(loads).await;
        let reached: BTreeSet<&String> =
            reports[KEEPING..].iter().flat_map(|report| report.by_backend.keys()).collect();
        ensure!(
            reached.len() > ENDPOINTS,
            "the changes had no effect: new connections came to {reached:?} only"
        );
        Ok(reports)
    }

    /// The agent is killed and started again.
    async fn kill(&mut self) -> Result<Vec<LoadReport>> {
        let loads = self.load();
        sleep(PAUSE).await;
        self.agent.restart()?;
        agent_ready(&self.agent).await?;
        sleep(AFTER_KILL).await;
        Ok(stop(loads).await)
    }
}

async fn stop(loads: Vec<RunningLoad>) -> Vec<LoadReport> {
    let mut reports = Vec::new();
    for load in loads {
        reports.push(load.stop().await);
    }
    reports
}

/// What an endpoint is like.
#[derive(Clone, Copy)]
enum State {
    Unready,
    Ready,
    Terminating,
}

/// Puts a file in its place in one step.
fn write(manifests: &Path, text: &str) -> Result<()> {
    let new = manifests.with_extension("new");
    std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    let path = manifests.join("services.yaml");
    std::fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))
}

/// The Service and its slice; servers without a state are no endpoints.
fn text(servers: &[Pod], node: &str, state: impl Fn(usize) -> Option<State>) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: default}}\nspec:\n  clusterIP: {VIP}\n  \
         clusterIPs: [{VIP}]\n  ports:\n  - {{name: tcp, protocol: TCP, port: 80}}\n  - {{name: udp, protocol: UDP, port: \
         80}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: server-1\n  namespace: \
         default\n  labels: {{kubernetes.io/service-name: server}}\naddressType: IPv4\nports:\n- {{name: tcp, protocol: TCP, \
         port: {PORT}}}\n- {{name: udp, protocol: UDP, port: {PORT}}}\nendpoints:\n"
    );
    for (number, server) in servers.iter().enumerate() {
        let conditions = match state(number) {
            None => continue,
            Some(State::Unready) => "ready: false, serving: false, terminating: false",
            Some(State::Ready) => "ready: true, serving: true, terminating: false",
            Some(State::Terminating) => "ready: false, serving: true, terminating: true",
        };
        // Writing to a string does not fail.
        let _written = writeln!(
            text,
            "- {{addresses: [{}], nodeName: {node}, conditions: {{{conditions}}}}}",
            server.address()
        );
    }
    text
}
