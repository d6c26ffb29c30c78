//! A whole cluster: the lab's nodes and clients, API server, controllers, name server, and the real `lb-agent` on every
//! node.
//!
//! ```no_run
//! use lb_tests::cluster::Cluster;
//! use lb_tests::workload::http_get;
//!
//! # async fn example() -> anyhow::Result<()> {
//! let cluster = Cluster::builder().nodes(2).start().await?;
//! cluster.apply(include_str!("../../examples/snackbar.yaml"))?;
//! cluster.settle("snackbar").await?;
//! let order = cluster.pod("snackbar", "component=order")?;
//! println!("{}", http_get(&order, "http://payment/hostname").await?.text());
//! # Ok(())
//! # }
//! ```
//!
//! The agents learn everything over the wire: each has a kubeconfig that leads to the API server on the underlay's router,
//! over TLS with a bearer token. Dropping the cluster removes everything.

mod dns;
mod settle;
mod tables;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use aya::util::KernelVersion;
use k8s_openapi::api::core::v1::{Pod as ApiPod, Service};
use lb_agent::dataplane::{Hook, Pins};
use serde_json::Value;

use crate::{
    apiserver::{self, ApiHandle, ControlPlane},
    controllers::{self, Controllers},
    lab::{AgentHandle, AgentOptions, Family, KubePod, Lab, LabRuntime, Node, Shape},
};

pub use dns::{Transport, dns_query};
pub use tables::Tables;

/// Port of the API server on the underlay's router.
const API_PORT: u16 = 6443;
/// How long anything that is waited for may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Time between two looks at something that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// How agents hand on translated packets (`lb-agent run --forwarding`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forwarding {
    /// Rewrite, then the host's stack.
    #[default]
    Stack,
    /// Straight to the other device.
    Redirect,
}

impl Forwarding {
    /// The flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Redirect => "redirect",
        }
    }
}

/// Description of a cluster; see [`Cluster::builder`].
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    nodes: u32,
    zones: Vec<String>,
    clients: u32,
    shape: Shape,
    family: Family,
    forwarding: Forwarding,
    cards: bool,
    agent_args: Vec<String>,
    more_service_cidrs: Vec<String>,
    tells_service_cidrs: bool,
    agents: bool,
    dns: bool,
    controllers: controllers::Options,
    api: apiserver::Options,
}

impl ClusterBuilder {
    /// How many nodes; two, unless told otherwise.
    #[must_use]
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// The zones of the nodes, in order (`topology.kubernetes.io/zone`); none, unless told otherwise.
    #[must_use]
    pub fn zones<'a>(mut self, zones: impl IntoIterator<Item = &'a str>) -> Self {
        self.zones = zones.into_iter().map(str::to_owned).collect();
        self
    }

    /// How many hosts outside the cluster; none, unless told otherwise. They have routes to the pods.
    #[must_use]
    pub fn clients(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    /// How pods are connected.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// Which address families exist.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Devices of the underlay are like cards, see [`crate::lab::LabBuilder::cards`].
    #[must_use]
    pub fn cards(mut self) -> Self {
        self.cards = true;
        self
    }

    /// How the agents forward.
    #[must_use]
    pub fn forwarding(mut self, forwarding: Forwarding) -> Self {
        self.forwarding = forwarding;
        self
    }

    /// More arguments of `lb-agent run`.
    #[must_use]
    pub fn agent_args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.agent_args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Another range cluster IPs may be taken from, as with a second ServiceCIDR object. The agents are not told.
    #[must_use]
    pub fn another_service_cidr(mut self, range: &str) -> Self {
        self.more_service_cidrs.push(range.to_owned());
        self
    }

    /// Tells the agents no ranges of cluster IPs: they learn them from ServiceCIDR objects, if there are any.
    #[must_use]
    pub fn agents_learn_service_cidrs(mut self) -> Self {
        self.tells_service_cidrs = false;
        self
    }

    /// Starts no agents: [`Cluster::start_agents`] does.
    #[must_use]
    pub fn without_agents(mut self) -> Self {
        self.agents = false;
        self
    }

    /// Leaves the name server out, for tests that use addresses.
    #[must_use]
    pub fn without_dns(mut self) -> Self {
        self.dns = false;
        self
    }

    /// How the controllers behave.
    #[must_use]
    pub fn controllers(mut self, options: controllers::Options) -> Self {
        self.controllers = options;
        self
    }

    /// Builds it and starts everything. Returns when the agents are ready and, with a name server, when it is in all
    /// their tables. Controllers and servers run as tasks of the present runtime, which needs more than one thread.
    ///
    /// # Errors
    /// Not root, no agent binary, or something does not come up in time; the error says what, and how the agents' logs
    /// end.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        let lab = Lab::builder()
            .nodes(self.nodes)
            .zones(self.zones.iter().map(String::as_str))
            .clients(self.clients)
            .shape(self.shape)
            .family(self.family)
            .cards(self.cards)
            .build()
            .context("building the lab")?;
        for client in lab.clients() {
            for node in lab.nodes() {
                for (cidr, via) in node.pod_cidrs().iter().zip(node.addresses()) {
                    client.add_route(*cidr, *via)?;
                }
            }
        }
        let api = start_api_server(&lab, self.api.clone(), &self.more_service_cidrs)?;
        let runtime = LabRuntime::new(&lab);
        dns::register(&runtime, api.api());
        let controllers =
            Controllers::start(api.api(), Arc::<LabRuntime>::clone(&runtime), &self.controllers)?;
        let mut cluster = Cluster {
            agents: Vec::new(),
            controllers: Some(controllers),
            runtime,
            api,
            lab,
            description: self,
        };
        if cluster.description.dns {
            cluster.apply(&dns::manifest(cluster.lab.family()))?;
        }
        if cluster.description.agents {
            cluster.start_agents()?;
            cluster.agents_ready().await?;
            if cluster.description.dns {
                cluster.settle("kube-system").await?;
            }
        }
        Ok(cluster)
    }
}

fn start_api_server(lab: &Lab, options: apiserver::Options, more: &[String]) -> anyhow::Result<ControlPlane> {
    let address = *lab.router_addresses().first().context("the underlay has no router")?;
    let address = SocketAddr::new(address, API_PORT);
    let ranges = lab.service_cidrs().iter().map(ToString::to_string).chain(more.iter().cloned()).collect();
    let options = apiserver::Options { service_cidrs: ranges, advertise: Some(address), ..options };
    ControlPlane::on_router(lab, address, options)
}

/// A running cluster. Dropping it ends agents, servers and pods, and removes the lab.
pub struct Cluster {
    // In this order they end.
    agents: Vec<AgentHandle>,
    controllers: Option<Controllers>,
    runtime: Arc<LabRuntime>,
    api: ControlPlane,
    lab: Lab,
    description: ClusterBuilder,
}

impl Cluster {
    /// Two nodes, routed, IPv4, forwarding through the stack; change what shall be different.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            nodes: 2,
            zones: Vec::new(),
            clients: 0,
            shape: Shape::default(),
            family: Family::default(),
            forwarding: Forwarding::default(),
            cards: false,
            agent_args: Vec::new(),
            more_service_cidrs: Vec::new(),
            tells_service_cidrs: true,
            agents: true,
            dns: true,
            controllers: controllers::Options::default(),
            api: apiserver::Options::default(),
        }
    }

    /// The network.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A node, by position from 0.
    pub fn node(&self, position: usize) -> &Node {
        self.lab.node(position)
    }

    /// The objects.
    pub fn api(&self) -> &ApiHandle {
        self.api.api()
    }

    /// The server, which misbehaves on demand.
    pub fn api_server(&self) -> &ControlPlane {
        &self.api
    }

    /// The kubelets.
    pub fn runtime(&self) -> &Arc<LabRuntime> {
        &self.runtime
    }

    /// The agents, in the order of the nodes.
    pub fn agents(&self) -> &[AgentHandle] {
        &self.agents
    }

    /// The agent of a node, by position from 0.
    ///
    /// # Panics
    /// There is none.
    pub fn agent(&mut self, position: usize) -> &mut AgentHandle {
        &mut self.agents[position]
    }

    /// How the agents forward.
    pub fn forwarding(&self) -> Forwarding {
        self.description.forwarding
    }

    /// Where the agent of a node pins its tables.
    pub fn bpf_root(&self, node: &Node) -> PathBuf {
        node.bpffs().join("lb-agent")
    }

    /// The file an agent writes its latencies to.
    pub fn latency_log(&self, node: &Node) -> PathBuf {
        self.lab.state_dir().join(format!("{}-latency.jsonl", node.name()))
    }

    /// The arguments of a node's agent. Writes its kubeconfig.
    ///
    /// # Errors
    /// The kubeconfig could not be written.
    pub fn agent_options(&self, node: &Node) -> anyhow::Result<AgentOptions> {
        let kubeconfig = self.lab.state_dir().join(format!("{}.kubeconfig", node.name()));
        std::fs::write(&kubeconfig, self.api.kubeconfig(&self.api.url()))
            .with_context(|| format!("writing {}", kubeconfig.display()))?;
        let ranges: Vec<String> = self.lab.service_cidrs().iter().map(ToString::to_string).collect();
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut options = AgentOptions::new([
            "run".to_owned(),
            format!("--kubeconfig={}", path(kubeconfig)),
            format!("--node-name={}", node.name()),
            format!("--bpf-root={}", path(self.bpf_root(node))),
            format!("--forwarding={}", self.description.forwarding.name()),
            format!("--latency-log={}", path(self.latency_log(node))),
        ]);
        // A small cluster: tables that are read in a moment.
        for (flag, size) in [
            ("--max-services", 1_024),
            ("--max-endpoints", 4_096),
            ("--max-connections", 65_536),
            ("--flow-cache-sets", 1_024),
        ] {
            if !self.description.agent_args.iter().any(|arg| arg.starts_with(flag)) {
                options.args.push(format!("{flag}={size}"));
            }
        }
        if self.description.tells_service_cidrs {
            options.args.push(format!("--service-cidr={}", ranges.join(",")));
        }
        options.args.extend(self.description.agent_args.iter().cloned());
        Ok(options)
    }

    /// Starts an agent on every node that has none yet. Does not wait for them.
    ///
    /// # Errors
    /// There is no agent binary, or it cannot be started.
    pub fn start_agents(&mut self) -> anyhow::Result<()> {
        for position in self.agents.len()..self.lab.nodes().len() {
            let node = self.lab.node(position);
            let agent = node.start_agent(self.agent_options(node)?)?;
            self.agents.push(agent);
        }
        Ok(())
    }

    /// Waits until every agent serves.
    ///
    /// # Errors
    /// One ended or takes too long; the error carries its log.
    pub async fn agents_ready(&self) -> anyhow::Result<()> {
        for agent in &self.agents {
            agent.wait_ready().await?;
        }
        Ok(())
    }

    /// The last lines of every agent's log.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for agent in &self.agents {
            let log = agent.log();
            let all: Vec<&str> = log.lines().collect();
            let tail = all[all.len().saturating_sub(lines)..].join("\n");
            text.push_str(&format!(
                "agent on {} ({}):\n{tail}\n",
                agent.node().name(),
                agent.log_path().display()
            ));
        }
        text
    }

    /// Applies YAML, as `kubectl apply -f` does.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<Vec<Value>> {
        Ok(self.api().apply_yaml(yaml)?)
    }

    /// The running pods with these labels (`app=web,tier=front`), sorted by name; pods being stopped are left out.
    ///
    /// # Errors
    /// The selector is none.
    pub fn pods(&self, namespace: &str, labels: &str) -> anyhow::Result<Vec<KubePod>> {
        let pods: Vec<ApiPod> = self.api().list(Some(namespace), labels)?;
        let running = |pod: &ApiPod| {
            if pod.metadata.deletion_timestamp.is_some() {
                return None;
            }
            self.runtime.pod(namespace, pod.metadata.name.as_deref()?)
        };
        let mut running: Vec<KubePod> = pods.iter().filter_map(running).collect();
        running.sort_by_key(|pod| pod.name().to_owned());
        Ok(running)
    }

    /// The first of the running pods with these labels.
    ///
    /// # Errors
    /// There is none.
    pub fn pod(&self, namespace: &str, labels: &str) -> anyhow::Result<KubePod> {
        let first = self.pods(namespace, labels)?.into_iter().next();
        first.with_context(|| format!("no pod of {namespace} with {labels} is running"))
    }

    /// Creates a pod of `agnhost netexec` (HTTP 8080, UDP 8081) with these labels on a node, and waits until it runs and
    /// its node's agent has taken notice of it.
    ///
    /// # Errors
    /// It cannot be created or does not start in time.
    pub async fn netexec_pod(
        &self,
        namespace: &str,
        name: &str,
        node: &Node,
        labels: &Value,
    ) -> anyhow::Result<KubePod> {
        self.api().create(&serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"nodeName": node.name(), "containers": [{
                "name": "netexec", "image": "registry.k8s.io/e2e-test-images/agnhost:2.53",
                "args": ["netexec", "--http-port=8080", "--udp-port=8081"],
            }]},
        }))?;
        self.eventually(&format!("pod {namespace}/{name} is attached"), || {
            Ok(self.runtime.pod(namespace, name).is_some_and(|pod| self.is_attached(&pod)))
        })
        .await?;
        self.runtime.pod(namespace, name).context("the pod went away at once")
    }

    /// Whether the agent of the pod's node has attached its programs to the pod's device. Containers of the lab start within
    /// a millisecond, those of a real node take longer than an agent.
    pub fn is_attached(&self, pod: &KubePod) -> bool {
        let has_agent = self.agents.iter().any(|agent| agent.node().name() == pod.node().name());
        // Before TCX there are filters instead of links, and nothing that shows in a directory.
        let has_links = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
            && !self.description.agent_args.iter().any(|argument| argument == "--attach=tc");
        let Some(pod_network) = pod.pod().filter(|_| has_agent && has_links) else { return true };
        // The order of attaching: this one is the last.
        let last = format!("{}-{}", pod_network.host_device().index, Hook::FromPod.program());
        Pins::new(&self.bpf_root(pod.node())).links().join(last).exists()
    }

    /// The ClusterIPs of a Service.
    ///
    /// # Errors
    /// There is no such Service, or it has none.
    pub fn cluster_ips(&self, namespace: &str, service: &str) -> anyhow::Result<Vec<IpAddr>> {
        let object: Service = self.api().get(namespace, service)?;
        let ips = object.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
        let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        ensure!(!ips.is_empty(), "{namespace}/{service} has no cluster IP");
        Ok(ips)
    }

    /// The first ClusterIP of a Service.
    ///
    /// # Errors
    /// As [`Cluster::cluster_ips`].
    pub fn cluster_ip(&self, namespace: &str, service: &str) -> anyhow::Result<IpAddr> {
        Ok(self.cluster_ips(namespace, service)?[0])
    }

    /// What a node's tables say now, whether its agent lives or not.
    ///
    /// # Errors
    /// There are none, or they cannot be read.
    pub fn tables(&self, node: &Node) -> anyhow::Result<Tables> {
        Tables::read(&self.bpf_root(node)).with_context(|| format!("tables of {}", node.name()))
    }

    /// Waits until `holds`.
    ///
    /// # Errors
    /// It does not within 30 seconds, or fails.
    pub async fn eventually(
        &self,
        what: &str,
        mut holds: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        while !holds()? {
            ensure!(begin.elapsed() < LIMIT, "waited {LIMIT:?} in vain: {what}\n{}", self.log_tails(20));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(begin.elapsed())
    }

    /// Waits until Deployments, Services and EndpointSlices of a namespace agree with its pods, programs are attached to the
    /// pods' devices, and every agent's tables agree with the slices. Returns how long that took.
    ///
    /// # Errors
    /// They do not within 30 seconds; the error says what is missing.
    pub async fn settle(&self, namespace: &str) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        loop {
            let Some(missing) = settle::missing(self, namespace)? else { return Ok(begin.elapsed()) };
            ensure!(
                begin.elapsed() < LIMIT,
                "{namespace} has not settled after {LIMIT:?}: {missing}\n{}",
                self.log_tails(20)
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Stops the controllers: what pods do has no effect on the objects any more.
    pub fn stop_controllers(&mut self) {
        self.controllers = None;
    }
}

/// `http://address:port/path`, with the brackets IPv6 needs.
pub fn url(address: IpAddr, port: u16, path: &str) -> String {
    format!("http://{}{path}", SocketAddr::new(address, port))
}
