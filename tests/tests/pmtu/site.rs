//! Two nodes, and hosts outside on either side of a narrow link.
//!
//! ```text
//!   n1, c1 ---- c2 ~~~~ c3 ---- n2, c4        ~~~~ has a smaller MTU
//! ```
//!
//! `c2` and `c3` are routers. All are plugged into one switch, but what belongs to different sides has routes through them.

use std::net::{IpAddr, SocketAddr};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::lab::{AgentHandle, AgentOptions, Cidr, Client, Family, Lab, Pod, Shape};
use lb_tests::sockets::Sockets;
use lb_tests::workload::checksum_errors;

/// Longer than anything here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// MTU of everything else.
pub(crate) const WIDE: u32 = 1500;
/// Ports of the endpoints: the Service's are one lower. A server of large transfers, datagrams, and one that is closed.
pub(crate) const BULK: u16 = 5001;
pub(crate) const DATAGRAMS: u16 = 6001;
pub(crate) const CLOSED: u16 = 7001;
/// Addresses of the routers on the narrow link.
const NARROW: [[&str; 2]; 2] = [["10.77.0.1", "10.77.0.2"], ["fd00:77::1", "fd00:77::2"]];

/// What a site is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How pods are connected.
    pub(crate) shape: Shape,
    /// One of the two families.
    pub(crate) family: Family,
    /// Forwarding mode.
    pub(crate) forwarding: &'static str,
    /// MTU of the narrow link.
    pub(crate) mtu: u32,
    /// Whose sockets are served: `host` or `all`.
    pub(crate) socket_lb: &'static str,
    /// MTU of the first node's network device. What is larger cannot come in there, either.
    pub(crate) card: u32,
}

impl Plan {
    const fn new(shape: Shape, family: Family, forwarding: &'static str, mtu: u32) -> Self {
        Self { shape, family, forwarding, mtu, socket_lb: "host", card: WIDE }
    }

    /// Every shape, family and forwarding mode; pods' packets are served one by one.
    pub(crate) const EVERY: [Self; 8] = [
        Self::new(Shape::Routed, Family::V4, "stack", 1400),
        Self::new(Shape::Routed, Family::V6, "redirect", 1280),
        Self::new(Shape::Bridged, Family::V4, "redirect", 1280),
        Self::new(Shape::Bridged, Family::V6, "stack", 1400),
        Self::new(Shape::Routed, Family::V4, "redirect", 1400),
        Self::new(Shape::Routed, Family::V6, "stack", 1280),
        Self::new(Shape::Bridged, Family::V4, "stack", 1280),
        Self::new(Shape::Bridged, Family::V6, "redirect", 1400),
    ];

    /// Those of them in which each of the three is tried with each of the others.
    pub(crate) fn pairwise() -> [Self; 4] {
        [0, 1, 2, 3].map(|plan| Self::EVERY[plan])
    }
}

/// A Service in front of one pod.
#[derive(Debug)]
pub(crate) struct Service {
    /// The pod.
    pub(crate) pod: Pod,
    vip: IpAddr,
    number: u16,
}

impl Service {
    /// The cluster IP and the port in front of an endpoint's.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip, port - 1)
    }

    /// The node port in front of an endpoint's.
    pub(crate) fn node_port(&self, port: u16) -> u16 {
        30_000 + self.number * 100 + port / 1000
    }

    /// The endpoint.
    pub(crate) fn endpoint(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pod.address(), port)
    }

    fn manifest(&self) -> String {
        let family = if self.vip.is_ipv4() { "IPv4" } else { "IPv6" };
        let name = self.pod.name();
        let ports = [("bulk", "TCP", BULK), ("datagrams", "UDP", DATAGRAMS), ("closed", "UDP", CLOSED)];
        let of_service: String = ports
            .map(|(name, protocol, port)| {
                let (at, node_port) = (port - 1, self.node_port(port));
                format!("  - {{name: {name}, protocol: {protocol}, port: {at}, nodePort: {node_port}}}\n")
            })
            .concat();
        let of_slice: String = ports
            .map(|(name, protocol, port)| format!("- {{name: {name}, protocol: {protocol}, port: {port}}}\n"))
            .concat();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: NodePort\n  \
             clusterIP: '{vip}'\n  clusterIPs: ['{vip}']\n  ports:\n{of_service}---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n{of_slice}endpoints:\n\
             - {{addresses: ['{pod}'], conditions: {{ready: true}}}}\n",
            vip = self.vip,
            pod = self.pod.address(),
        )
    }
}

/// Nodes, pods, Services and hosts outside.
pub(crate) struct Site {
    /// What it was to be like.
    pub(crate) plan: Plan,
    /// In front of the client itself, a pod of its node, and a pod beyond the narrow link.
    pub(crate) own: Service,
    /// See [`Site::own`].
    pub(crate) near: Service,
    /// See [`Site::own`].
    pub(crate) far: Service,
    agents: Vec<AgentHandle>,
    lab: Lab,
}

impl Site {
    pub(crate) async fn new(plan: Plan) -> Result<Self> {
        let lab = Lab::builder().nodes(2).clients(4).shape(plan.shape).family(plan.family).build()?;
        let four = plan.family == Family::V4;
        connect(&lab, plan.mtu, NARROW[usize::from(!four)]).await?;
        let argv = ["ip", "link", "set", "eth0", "mtu", &plan.card.to_string()];
        succeeded(&lab.node(0).exec(&argv, &[], LIMIT).await?)?;
        let pods = [lab.node(0).pod("own")?, lab.node(0).pod("near")?, lab.node(1).pod("far")?];
        let mut number = 0;
        let [own, near, far] = pods.map(|pod| {
            number += 1;
            let vip = if four { format!("10.96.0.{number}") } else { format!("fd00:96::{number}") };
            Service { pod, vip: vip.parse().expect("an address"), number }
        });
        let manifests = lab.state_dir().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        for service in [&own, &near, &far] {
            let file = format!("{}.yaml", service.pod.name());
            std::fs::write(manifests.join(file), service.manifest())?;
            // Errors in any number: the kernel allows a sender few in a second.
            service.pod.namespace().sysctl("net/ipv4/icmp_ratelimit", "0")?;
            service.pod.namespace().sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        let mut agents = Vec::new();
        for node in lab.nodes() {
            node.namespace().sysctl("net/ipv4/icmp_ratelimit", "0")?;
            node.namespace().sysctl("net/ipv6/icmp/ratelimit", "0")?;
            let mut options = AgentOptions::of_manifests(node, &manifests, plan.forwarding);
            options.args.push(format!("--socket-lb={}", plan.socket_lb));
            agents.push(node.start_agent(options)?);
        }
        for agent in &agents {
            agent.wait_ready().await?;
        }
        Ok(Self { plan, own, near, far, agents, lab })
    }

    /// The host outside on the first node's side of the narrow link.
    pub(crate) fn outside_near(&self) -> &Client {
        self.lab.client(0)
    }

    /// The host outside on the other side.
    pub(crate) fn outside_far(&self) -> &Client {
        self.lab.client(3)
    }

    /// The router on the first node's side, and the one on the other.
    pub(crate) fn routers(&self) -> [IpAddr; 2] {
        [self.lab.client(1).address(), self.lab.client(2).address()]
    }

    /// What the second router is called towards what lies beyond the first.
    pub(crate) fn router_seen_through_the_link(&self) -> IpAddr {
        NARROW[usize::from(self.plan.family != Family::V4)][1].parse().expect("an address")
    }

    /// Addresses of the nodes.
    pub(crate) fn nodes(&self) -> [IpAddr; 2] {
        [self.lab.node(0).address(), self.lab.node(1).address()]
    }

    /// A node port of the first node in front of an endpoint's port.
    pub(crate) fn node_port(&self, service: &Service, port: u16) -> SocketAddr {
        SocketAddr::new(self.nodes()[0], service.node_port(port))
    }

    /// Sockets of the first node itself.
    pub(crate) fn on_node(&self) -> Result<Sockets> {
        Sockets::on_node(self.lab.node(0))
    }

    /// Makes pods and hosts outside forget what they learned of the ways.
    pub(crate) async fn forget_path_mtus(&self) -> Result<()> {
        let argv =
            ["ip", if self.plan.family == Family::V4 { "-4" } else { "-6" }, "route", "flush", "cache"];
        for service in [&self.own, &self.near, &self.far] {
            succeeded(&service.pod.exec(&argv, &[], LIMIT).await?)?;
        }
        for client in self.lab.clients() {
            succeeded(&client.exec(&argv, &[], LIMIT).await?)?;
        }
        Ok(())
    }

    /// Checks that nobody received a wrong checksum, and ends the agents.
    pub(crate) async fn stop(self) -> Result<()> {
        let pods = [&self.own, &self.near, &self.far].map(|service| service.pod.namespace());
        let nodes = self.lab.nodes().iter().map(|node| node.namespace());
        let clients = self.lab.clients().iter().map(|client| client.namespace());
        for namespace in pods.into_iter().chain(nodes).chain(clients) {
            let errors = checksum_errors(namespace).await?;
            ensure!(errors == 0, "{}: {errors} checksum errors", namespace.name());
        }
        for agent in &self.agents {
            agent.sigterm().await?;
        }
        Ok(())
    }
}

/// Makes the narrow link and the routes that lead over it.
async fn connect(lab: &Lab, mtu: u32, link: [&str; 2]) -> Result<()> {
    let (near, far) = (lab.client(1), lab.client(2));
    for router in [near, far] {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ] {
            router.namespace().sysctl(key, value)?;
        }
    }
    let (mtu, four) = (mtu.to_string(), near.address().is_ipv4());
    let (netns, length) = (format!("/run/netns/{}", far.namespace().name()), if four { 30 } else { 126 });
    let link_add =
        ["link", "add", "narrow", "mtu", &mtu, "type", "veth", "peer", "name", "narrow", "mtu", &mtu];
    ip(near, &[&link_add[..], &["netns", &netns]].concat()).await?;
    for (router, own) in [(near, link[0]), (far, link[1])] {
        let address = format!("{own}/{length}");
        ip(router, &["link", "set", "narrow", "up"]).await?;
        let mut add = vec!["address", "add", &address, "dev", "narrow"];
        if !four {
            add.push("nodad");
        }
        ip(router, &add).await?;
        router.namespace().wait_local(own.parse()?, "narrow").await?;
    }
    let host = |address: IpAddr| Cidr::new(address, if four { 32 } else { 128 });
    let (one, two, beyond) = (lab.node(0), lab.node(1), lab.client(3));
    let near_side = [one.pod_cidrs()[0], host(one.address())?];
    let far_side = [two.pod_cidrs()[0], host(two.address())?, host(beyond.address())?];
    for to in far_side {
        let text = format!("{}/{}", to.address(), to.length());
        ip(near, &["route", "replace", &text, "via", link[1]]).await?;
        one.add_route(to, near.address())?;
    }
    for to in near_side {
        let text = format!("{}/{}", to.address(), to.length());
        ip(far, &["route", "replace", &text, "via", link[0]]).await?;
        two.add_route(to, far.address())?;
    }
    // What the routers deliver on their own side.
    near.add_route(near_side[0], one.address())?;
    far.add_route(far_side[0], two.address())?;
    beyond.add_route(near_side[1], far.address())
}

async fn ip(at: &Client, args: &[&str]) -> Result<()> {
    let output = at.exec(&[&["ip"][..], args].concat(), &[], LIMIT).await?;
    succeeded(&output).with_context(|| format!("ip {args:?} on {}", at.name()))
}

fn succeeded(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a test of blocking calls at sites that are made and ended for it.
pub(crate) async fn at_sites(
    plans: impl IntoIterator<Item = Plan>,
    test: impl Fn(&Site) -> Result<()>,
) -> Result<()> {
    for plan in plans {
        let site = Site::new(plan).await?;
        tokio::task::block_in_place(|| test(&site)).with_context(|| format!("{plan:?}"))?;
        site.stop().await.with_context(|| format!("{plan:?}"))?;
    }
    Ok(())
}
