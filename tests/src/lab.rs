//! Nodes, pods and clients as network namespaces on one kernel.
//!
//! ```no_run
//! use lb_tests::lab::{Family, Lab, Shape};
//! use lb_tests::workload::{http_get, Netexec};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let lab = Lab::builder().nodes(2).shape(Shape::Bridged).family(Family::Dual).clients(1).build()?;
//! let (client, server) = (lab.node(0).pod("client")?, lab.node(1).pod("server")?);
//! let serving = Netexec::new("server").http(8080).start(&server).await?;
//! let answer = http_get(&client, &format!("http://{}:8080/hostname", server.address())).await?;
//! assert_eq!(answer.text(), "server");
//! # drop(serving);
//! # Ok(())
//! # }
//! ```
//!
//! Everything made carries the name of the run (`lbt-<pid>_<start>_<n>`) and goes when the [`Lab`] is dropped, also in a
//! panic; what a killed process left is removed by the next one. `ip netns list` shows the namespaces, `ip netns exec`
//! works in them. Making them needs root.
//!
//! Functions that build or change the lab are synchronous: they take some milliseconds and have threads of their own.
//! Functions that talk over the lab's network are asynchronous.

mod agent;
mod caller;
mod cidr;
mod client;
mod config;
mod images;
mod node;
mod pod;
mod process;
mod run;
mod runtime;
mod wiring;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::{Context, ensure};

pub(crate) use agent::program_beside;
pub use agent::{AgentHandle, AgentOptions, agent_binary};
pub use caller::{Caller, HttpFlow, UdpFlow};
pub use cidr::Cidr;
pub use client::Client;
pub use config::{Family, ResolvConf, Shape, Underlay};
pub use images::{Container, ContainerHandle, StartContainer};
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use process::Process;
pub use run::{remove_kept, remove_leftovers, remove_own};
pub use runtime::{KubePod, LabRuntime};
pub use wiring::HostDevice;
pub(crate) use wiring::any_like;

use crate::netns::{Namespace, links::VethEnd};
use client::ClientInner;
use config::Config;
use node::NodeInner;
use run::Run;
pub(crate) use wiring::ETH0;
use wiring::{SWITCH, mac};

/// Description of a lab to be built; see [`Lab::builder`].
#[derive(Debug, Clone)]
pub struct LabBuilder {
    config: Config,
    nodes: u32,
    zones: Vec<Option<String>>,
    clients: u32,
}

impl LabBuilder {
    /// How many nodes (`n1`, `n2`, ...). One, unless told otherwise.
    #[must_use]
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// The zones of the nodes, in order (`topology.kubernetes.io/zone`).
    #[must_use]
    pub fn zones<'a>(mut self, zones: impl IntoIterator<Item = &'a str>) -> Self {
        self.zones = zones.into_iter().map(|zone| Some(zone.to_owned())).collect();
        self
    }

    /// How many hosts outside the cluster (`c1`, ...). None, unless told otherwise.
    #[must_use]
    pub fn clients(mut self, clients: u32) -> Self {
        self.clients = clients;
        self
    }

    /// How pods are connected.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.config.shape = shape;
        self
    }

    /// Which address families exist.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.config.family = family;
        self
    }

    /// How nodes reach each other.
    #[must_use]
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.config.underlay = underlay;
        self
    }

    /// MTU of all devices; 1500, unless told otherwise.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.config.mtu = mtu;
        self
    }

    /// Devices of the underlay are like network cards and the cables between them: what leaves has complete checksums and is no
    /// longer than the MTU, and frames that an XDP program sends back or on are taken at the other end, at pods' devices as
    /// well. A virtual pair does neither by itself: checksums are left to be completed by a card that never comes, and frames
    /// are taken only by an end that polls (GRO on, drivers/net/veth.c).
    #[must_use]
    pub fn cards(mut self, cards: bool) -> Self {
        self.config.cards = cards;
        self
    }

    /// Name servers of pods; the `kube-dns` ClusterIPs ([`Lab::KUBE_DNS`]) of the lab's families, unless told otherwise.
    #[must_use]
    pub fn dns(mut self, servers: impl IntoIterator<Item = IpAddr>) -> Self {
        self.config.dns = servers.into_iter().collect();
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// Not root, or the kernel lacks something. What was made until then is removed again.
    pub fn build(self) -> anyhow::Result<Lab> {
        let Self { mut config, nodes, zones, clients } = self;
        ensure!((1..=200).contains(&nodes), "a lab has 1 to 200 nodes, not {nodes}");
        ensure!(
            config.underlay == Underlay::Switch || (nodes == 2 && clients == 0),
            "a direct underlay joins two nodes and nothing else"
        );
        if config.dns.is_empty() {
            for address in Lab::KUBE_DNS {
                let address: IpAddr = address.parse()?;
                let wanted = if address.is_ipv4() { config.family.has_v4() } else { config.family.has_v6() };
                config.dns.extend(wanted.then_some(address));
            }
        }
        let run = Arc::new(Run::start()?);
        let mut lab =
            Lab { run, config: Arc::new(config), switch: None, nodes: Vec::new(), clients: Vec::new() };
        if lab.config.underlay == Underlay::Switch {
            lab.switch = Some(lab.make_switch().context("making the underlay")?);
        }
        for number in 1..=nodes {
            let zone = zones.get(number as usize - 1).cloned().flatten();
            lab.make_node(number, zone).with_context(|| format!("making node n{number}"))?;
        }
        for number in 1..=clients {
            lab.make_client(number).with_context(|| format!("making client c{number}"))?;
        }
        Ok(lab)
    }
}

/// A small cluster's network: nodes, pods, clients. Dropping it removes everything.
pub struct Lab {
    run: Arc<Run>,
    config: Arc<Config>,
    switch: Option<Namespace>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
}

impl Lab {
    /// The ClusterIPs of `kube-dns`, where pods look for their name server.
    pub const KUBE_DNS: [&'static str; 2] = ["10.96.0.10", "fd00:96::a"];
    /// The ranges ClusterIPs are taken from. Nothing routes them: a pod's default route leads them to its node.
    pub const SERVICE_CIDRS: [&'static str; 2] = ["10.96.0.0/12", "fd00:96::/112"];
    /// The domain of cluster names.
    pub const CLUSTER_DOMAIN: &'static str = "cluster.local";

    /// A lab of one node, routed, IPv4, without clients; change what shall be different.
    pub fn builder() -> LabBuilder {
        let range = |text: &str| text.parse::<Cidr>().unwrap_or_else(|error| panic!("{text}: {error}"));
        LabBuilder {
            config: Config {
                shape: Shape::default(),
                family: Family::default(),
                underlay: Underlay::default(),
                mtu: 1500,
                cards: false,
                pod_v4: range("10.244.0.0/16"),
                pod_v6: range("fd00:10:244::/48"),
                node_v4: range("172.18.0.0/16"),
                node_v6: range("fd00:172:18::/64"),
                service_cidrs: Self::SERVICE_CIDRS.map(range).to_vec(),
                dns: Vec::new(),
                cluster_domain: Self::CLUSTER_DOMAIN.to_owned(),
            },
            nodes: 1,
            zones: Vec::new(),
            clients: 0,
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node at this position, from 0 (its name is one higher).
    ///
    /// # Panics
    /// There is no such node.
    pub fn node(&self, position: usize) -> &Node {
        &self.nodes[position]
    }

    /// The client at this position, from 0.
    ///
    /// # Panics
    /// There is no such client.
    pub fn client(&self, position: usize) -> &Client {
        &self.clients[position]
    }

    /// All clients.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// How pods are connected.
    pub fn shape(&self) -> Shape {
        self.config.shape
    }

    /// Which address families exist.
    pub fn family(&self) -> Family {
        self.config.family
    }

    /// The ranges ClusterIPs are taken from, of the lab's families, IPv4 first.
    pub fn service_cidrs(&self) -> Vec<Cidr> {
        let family = self.config.family;
        let wanted = |range: &&Cidr| if range.is_ipv4() { family.has_v4() } else { family.has_v6() };
        self.config.service_cidrs.iter().filter(wanted).copied().collect()
    }

    /// What the names of everything in this lab begin with.
    pub fn prefix(&self) -> &str {
        self.run.prefix()
    }

    /// Where logs of this lab's processes go.
    pub fn log_dir(&self) -> PathBuf {
        self.run.state().join("logs")
    }

    /// A directory of this lab for files of tests (removed with it).
    pub fn state_dir(&self) -> &Path {
        self.run.state()
    }

    /// The switch that nodes and clients are plugged into, for tests that want a server outside the cluster to sit on the
    /// router; `None` with [`Underlay::Direct`].
    pub fn switch(&self) -> Option<&Namespace> {
        self.switch.as_ref()
    }

    /// Starts a program on the router and leaves it running; its output is appended to the log file `name`.
    ///
    /// # Errors
    /// There is no router, or the program cannot be started.
    pub(crate) fn spawn_on_router(&self, argv: &[String], name: &str) -> anyhow::Result<Process> {
        let router = self.switch().context("the underlay has no router")?;
        let command = process::command(router, &process::Surroundings::default(), argv, &[])?;
        Process::start(command, &self.run, self.log_dir().join(name))
    }

    /// The addresses of the router (the switch) on the underlay, IPv4 first; nobody has them with [`Underlay::Direct`].
    pub fn router_addresses(&self) -> Vec<IpAddr> {
        self.config.underlay_ranges().iter().map(|range| range.nth(1)).collect()
    }

    /// Leaves everything standing after this process has ended, agents and other child processes included.
    /// [`remove_kept`] removes it then. Servers that run as tasks of this process end with it.
    ///
    /// # Errors
    /// The note that protects the run from the next run's clean-up could not be written.
    pub fn keep(&self) -> anyhow::Result<()> {
        self.run.keep()?;
        self.nodes.iter().for_each(Node::keep);
        self.clients.iter().for_each(|client| client.namespace().keep());
        if let Some(switch) = &self.switch {
            switch.keep();
        }
        Ok(())
    }

    /// What exists under this lab's name: namespaces, state, bpffs directories, cgroups.
    pub fn footprint(prefix: &str) -> Vec<PathBuf> {
        run::remains(prefix)
    }

    fn make_switch(&self) -> anyhow::Result<Namespace> {
        let switch = Namespace::create(&format!("{}-net", self.run.prefix()), &wiring::router_sysctls())?;
        let (links, ranges, mtu) = (switch.links(), self.config.underlay_ranges(), self.config.mtu);
        switch.block_on(async move {
            links.add_bridge("br0", SWITCH, mac(1, 0), mtu).await?;
            for range in ranges {
                links.add_address(SWITCH, range.nth(1), range.length()).await?;
            }
            anyhow::Ok(())
        })?;
        Ok(switch)
    }

    /// Plugs `namespace` into the underlay as `eth0`, with the address number `host` of each range.
    fn plug(
        &self,
        namespace: &Namespace,
        port: &str,
        host: u32,
        first: Option<&Node>,
    ) -> anyhow::Result<Vec<IpAddr>> {
        let ranges = self.config.underlay_ranges();
        let addresses: Vec<IpAddr> = ranges.iter().map(|range| range.nth(host)).collect();
        let (eth0, own, mtu) = (namespace.links(), namespace.clone(), self.config.mtu);
        let (cable, port, given) = (port.to_owned(), port.to_owned(), addresses.clone());
        let far_mac = mac(2, host);
        let other = first.map(|node| (node.namespace().clone(), node.0.number));
        let switch = self.switch.clone();
        namespace.block_on(async move {
            let far = VethEnd { name: "eth0", index: ETH0, mac: far_mac, bridge: None };
            if let Some(switch) = switch {
                let near =
                    VethEnd { name: &port, index: host + SWITCH, mac: mac(6, host), bridge: Some(SWITCH) };
                switch.links().add_veth(near, far, &own, mtu).await?;
            } else if let Some((other, number)) = other {
                let near =
                    VethEnd { name: "eth0", index: ETH0, mac: mac(2, NODE_HOSTS + number), bridge: None };
                other.links().add_veth(near, far, &own, mtu).await?;
                let theirs: Vec<IpAddr> = ranges.iter().map(|range| range.nth(NODE_HOSTS + number)).collect();
                wiring::address_eth0(&other, &theirs, &ranges).await?;
                other.links().wait_up(ETH0).await?;
            } else {
                // The first node of a direct underlay gets its device with the second node.
                return Ok(());
            }
            wiring::address_eth0(&own, &given, &ranges).await?;
            eth0.wait_up(ETH0).await
        })?;
        if self.config.cards {
            wiring::offloads(namespace, "eth0", &["tx", "off"])?;
            if let Some(switch) = &self.switch {
                wiring::offloads(switch, &cable, &["tx", "off", "gro", "on"])?;
            }
        }
        Ok(addresses)
    }

    fn make_node(&mut self, number: u32, zone: Option<String>) -> anyhow::Result<()> {
        let name = format!("n{number}");
        let namespace =
            Namespace::create(&format!("{}-{name}", self.run.prefix()), &wiring::router_sysctls())?;
        let pod_cidrs = self.config.pod_ranges(number)?;
        let addresses = self.plug(&namespace, &name, NODE_HOSTS + number, self.nodes.first())?;
        let (config, own, ranges) = (Arc::clone(&self.config), namespace.clone(), pod_cidrs.clone());
        namespace.block_on(async move { wiring::prepare_node(&config, &own, number, &ranges).await })?;
        let node = Node(Arc::new(NodeInner {
            cgroup: self.run.make_cgroup(&name)?,
            bpffs: self.run.make_bpffs(&name)?,
            name,
            number,
            zone,
            namespace,
            addresses,
            pod_cidrs,
            config: Arc::clone(&self.config),
            run: Arc::clone(&self.run),
            state: Default::default(),
        }));
        for other in &self.nodes {
            for (from, to) in [(&node, other), (other, &node)] {
                for (cidr, via) in to.pod_cidrs().iter().zip(to.addresses()) {
                    from.add_route(*cidr, *via)?;
                }
            }
        }
        self.nodes.push(node);
        Ok(())
    }

    fn make_client(&mut self, number: u32) -> anyhow::Result<()> {
        let name = format!("c{number}");
        let namespace =
            Namespace::create(&format!("{}-{name}", self.run.prefix()), &wiring::outside_sysctls())?;
        let addresses = self.plug(&namespace, &name, CLIENT_HOSTS + number, None)?;
        self.clients.push(Client(Arc::new(ClientInner { name, namespace, addresses })));
        Ok(())
    }
}

/// Host numbers of nodes on the underlay begin after this one.
const NODE_HOSTS: u32 = 10;
/// Host numbers of clients on the underlay begin after this one.
const CLIENT_HOSTS: u32 = 1000;

impl Drop for Lab {
    fn drop(&mut self) {
        if self.run.is_kept() {
            return;
        }
        if thread::panicking() {
            eprintln!("removing lab {} after a panic", self.prefix());
        }
        self.nodes.iter().for_each(Node::shut_down);
        self.clients.iter().for_each(|client| client.namespace().remove());
        if let Some(switch) = &self.switch {
            switch.remove();
        }
        self.run.remove();
    }
}
