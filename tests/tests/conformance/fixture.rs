//! The clusters titles run on: one for each variant, made when the first title needs it, removed after the last.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use lb_tests::{
    cluster::{Cluster, ClusterBuilder, Forwarding},
    lab::{Caller, Cidr, Family, Shape},
};
use tokio::runtime::Runtime;

/// How long the last pods of a cluster may take to go.
const PODS_GO: Duration = Duration::from_secs(5);

/// How pods are connected, and how agents forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Variant {
    /// How pods are connected.
    pub(crate) shape: Shape,
    /// How agents forward.
    pub(crate) forwarding: Forwarding,
    /// Packets of clients outside are carried by the XDP program, in the drivers of network devices that are like cards.
    pub(crate) xdp: bool,
}

impl Variant {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self { shape: Shape::Routed, forwarding: Forwarding::Stack, xdp: false },
        Self { shape: Shape::Routed, forwarding: Forwarding::Redirect, xdp: false },
        Self { shape: Shape::Bridged, forwarding: Forwarding::Stack, xdp: false },
        Self { shape: Shape::Bridged, forwarding: Forwarding::Redirect, xdp: false },
        Self { shape: Shape::Routed, forwarding: Forwarding::Redirect, xdp: true },
    ];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = match self.shape {
            Shape::Routed => "routed",
            Shape::Bridged => "bridged",
        };
        write!(f, "{shape}, {}{}", self.forwarding.name(), if self.xdp { ", XDP" } else { "" })
    }
}

/// The family a title runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Whether an address is of it.
    pub(crate) fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }

    /// The first of these addresses that is of it.
    pub(crate) fn pick(self, addresses: &[IpAddr]) -> Result<IpAddr> {
        let found = addresses.iter().copied().find(|address| self.has(*address));
        found.with_context(|| format!("no {self} address among {addresses:?}"))
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As Kubernetes writes it.
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// A cluster with clients of every kind.
pub(crate) struct Fixture {
    // Processes first: their namespaces go with the cluster.
    hosts: Vec<Caller>,
    outside: Vec<Caller>,
    pub(crate) cluster: Cluster,
    pub(crate) variant: Variant,
    cases: AtomicU32,
    addresses: AtomicU32,
}

impl Fixture {
    /// Starts a cluster: three nodes, two hosts outside, no name server, and what `change` wants besides.
    pub(crate) async fn start(
        variant: Variant,
        change: &(dyn Fn(ClusterBuilder) -> ClusterBuilder + Send + Sync),
    ) -> Result<Self> {
        let builder = Cluster::builder()
            .nodes(3)
            .zones(["a", "a", "b"])
            .clients(2)
            .family(Family::Dual)
            .shape(variant.shape)
            .forwarding(variant.forwarding)
            .without_dns();
        let builder = if variant.xdp { builder.cards().agent_args(["--xdp=native"]) } else { builder };
        let cluster = change(builder).start().await.with_context(|| format!("starting {{{variant}}}"))?;
        let lab = cluster.lab();
        let hosts = lab.nodes().iter().map(Caller::on_node).collect::<Result<Vec<_>>>()?;
        let mut outside = Vec::new();
        for client in lab.clients() {
            // What a router outside would know: cluster IPs lead anywhere into the cluster, others to one node each.
            for range in lab.service_cidrs() {
                let via = lab.node(0).addresses().iter().find(|via| via.is_ipv4() == range.is_ipv4());
                client.add_route(range, *via.context("a node without address")?)?;
            }
            for (number, node) in lab.nodes().iter().enumerate() {
                for family in IpFamily::BOTH {
                    let range = external_range(number, family)?;
                    client.add_route(range, family.pick(node.addresses())?)?;
                }
            }
            outside.push(Caller::at(format!("outside host {}", client.name()), client));
        }
        Ok(Self { hosts, outside, cluster, variant, cases: AtomicU32::new(0), addresses: AtomicU32::new(0) })
    }

    /// A process of a node.
    pub(crate) fn host(&self, node: usize) -> &Caller {
        &self.hosts[node]
    }

    /// A host outside.
    pub(crate) fn outside(&self, number: usize) -> &Caller {
        &self.outside[number]
    }

    /// A number that no other case of this cluster has.
    pub(crate) fn next_case(&self) -> u32 {
        self.cases.fetch_add(1, Ordering::Relaxed)
    }

    /// An address that nobody else uses, which hosts outside route to this node.
    pub(crate) fn routed_address(&self, node: usize, family: IpFamily) -> IpAddr {
        // There are more of them than titles could ever take.
        let number = self.addresses.fetch_add(1, Ordering::Relaxed);
        let range = external_range(node, family).unwrap_or_else(|error| panic!("node {node}: {error}"));
        range.nth(1 + number)
    }
}

impl Drop for Fixture {
    /// Waits for the kubelets: pods that are being removed need their nodes.
    fn drop(&mut self) {
        let begin = Instant::now();
        while !self.cluster.runtime().pods().is_empty() && begin.elapsed() < PODS_GO {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// External addresses: a range a node, of those that RFC 2544 and RFC 4193 set aside.
fn external_range(node: usize, family: IpFamily) -> Result<Cidr> {
    let node = u8::try_from(node)?;
    ensure!(node < 8, "external addresses are for eight nodes");
    match family {
        IpFamily::V4 => Cidr::new(Ipv4Addr::new(198, 18 + node / 4, node % 4 * 64, 0).into(), 18),
        IpFamily::V6 => Cidr::new(Ipv6Addr::new(0xfd00, 0x198, 0x18, node.into(), 0, 0, 0, 0).into(), 64),
    }
}

/// Where the cluster of a variant stands, as long as a trial may need it.
pub(crate) struct Slot {
    variant: Variant,
    runtime: Arc<Runtime>,
    /// What came of starting it.
    started: Mutex<Option<Result<Arc<Fixture>, String>>>,
}

impl Slot {
    /// Nothing stands yet.
    pub(crate) fn new(variant: Variant, runtime: Arc<Runtime>) -> Self {
        Self { variant, runtime, started: Mutex::new(None) }
    }

    /// Which variant it is.
    pub(crate) fn variant(&self) -> Variant {
        self.variant
    }

    /// The cluster; the first who asks waits until it stands.
    pub(crate) fn fixture(&self) -> Result<Arc<Fixture>> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = started.get_or_insert_with(|| {
            let fixture = self.runtime.block_on(Fixture::start(self.variant, &|builder| builder));
            fixture.map(Arc::new).map_err(|error| format!("{error:#}"))
        });
        outcome.clone().map_err(|error| anyhow!(error))
    }
}
