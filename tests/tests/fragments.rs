//! Datagrams larger than the networks they cross (S-72): between sockets, and in fragments sent by hand in any order. The
//! kernels' own counters must show no checksum error.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::lab::{AgentHandle, AgentOptions, Client, Family, Lab, Node, Pod, Shape};
use lb_tests::netns::Namespace;
use lb_tests::workload::{Netexec, RawSender, ReverseEcho, UdpClient, checksum_errors, udp_fragments};

const LIMIT: Duration = Duration::from_secs(10);
/// The Service's port with its node port, and the endpoints' port: a server, and one that answers in reverse order.
const SERVER: (u16, u16, u16) = (6000, 30_600, 6001);
const REVERSE: (u16, u16, u16) = (7000, 30_700, 7001);
/// Datagrams that are never completed.
const UNFINISHED: u32 = 10_000;

/// A client and a server pod, on one node or two, an agent on each node, two Services, and a host outside.
struct World {
    agents: Vec<AgentHandle>,
    client: Pod,
    server: Pod,
    vip: IpAddr,
    /// A Service in front of another pod.
    other: IpAddr,
    outside: Client,
    node: Node,
    _servers: (lb_tests::workload::Server, ReverseEcho),
    _lab: Lab,
}

/// Which nodes have an agent.
#[derive(Clone, Copy, PartialEq)]
enum Agents {
    Everywhere,
    /// The server's node is not ours: what comes from there is in the order in which it was sent.
    AtTheClient,
}

impl World {
    async fn new(nodes: u32, family: Family, forwarding: &str, agents_at: Agents) -> Result<Self> {
        let lab = Lab::builder().nodes(nodes).shape(Shape::Routed).family(family).clients(1).build()?;
        let (client, server) = (lab.node(0).pod("client")?, lab.node(nodes as usize - 1).pod("server")?);
        let busy = lab.node(nodes as usize - 1).pod("busy")?;
        let [vip, other]: [IpAddr; 2] = if family.has_v4() {
            ["10.96.0.50".parse()?, "10.96.0.51".parse()?]
        } else {
            ["fd00:96::50".parse()?, "fd00:96::51".parse()?]
        };
        let manifests = lab.state_dir().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        std::fs::write(
            manifests.join("served.yaml"),
            manifest("served", vip, server.address(), &[SERVER, REVERSE]),
        )?;
        let busy_ports = [(SERVER.0, 30_601, SERVER.2)];
        std::fs::write(manifests.join("other.yaml"), manifest("other", other, busy.address(), &busy_ports))?;
        let mut agents = Vec::new();
        for node in lab.nodes().iter().take(if agents_at == Agents::Everywhere { usize::MAX } else { 1 }) {
            let options = AgentOptions::of_manifests(node, &manifests, forwarding);
            agents.push(node.start_agent(options)?);
        }
        for agent in &agents {
            agent.wait_ready().await?;
        }
        let servers = (
            Netexec::new("server").udp(SERVER.2).start(&server).await?,
            ReverseEcho::start(&server, SocketAddr::new(server.address(), REVERSE.2)).await?,
        );
        let (outside, node) = (lab.client(0).clone(), lab.node(0).clone());
        Ok(Self { agents, client, server, vip, other, outside, node, _servers: servers, _lab: lab })
    }

    /// A datagram of every size, and an answer as large.
    async fn sockets(&self, at: &impl AsRef<Namespace>, to: SocketAddr) -> Result<()> {
        let socket = UdpClient::connect(at, to, None, 0).await?;
        for size in [100, 1472, 1473, 2000, 2960, 2961, 9000, 30_000, 60_000, 2000] {
            let message = text(size);
            let answer = socket
                .ask(&format!("echo {message}"), LIMIT)
                .await
                .with_context(|| format!("{size} bytes to {to}"))?;
            ensure!(answer == message, "datagram of {size} bytes came back changed");
        }
        Ok(())
    }

    /// Datagrams in fragments in any order.
    async fn by_hand(&self, at: &impl AsRef<Namespace>, to: SocketAddr, prefix: &str) -> Result<()> {
        let socket = UdpClient::connect(at, to, None, 0).await?;
        let raw = RawSender::open(at, to.is_ipv6()).await?;
        let mut id = 0x4000;
        // A new flow begins with a datagram that comes the wrong way round.
        for size in [3000, 2000, 9000, 30_000, 60_000, 3000] {
            let message = text(size);
            let fragments = udp_fragments(socket.local()?, to, id, format!("{prefix}{message}").as_bytes());
            let count = fragments.len();
            let mut orders: Vec<Vec<usize>> = vec![(0..count).rev().collect(), (0..count).collect()];
            // The first one in the middle.
            orders.push((0..count).map(|at| (at + count / 2) % count).collect());
            // Later ones before it, and after it, in no order.
            orders.push((0..count).rev().step_by(2).chain((0..count).rev().skip(1).step_by(2)).collect());
            for order in orders {
                id += 1;
                let fragments =
                    udp_fragments(socket.local()?, to, id, format!("{prefix}{message}").as_bytes());
                raw.send(to.ip(), order.iter().map(|at| &fragments[*at])).await?;
                let answer = socket
                    .receive(LIMIT)
                    .await
                    .with_context(|| format!("{size} bytes to {to}, order {order:?}"))?;
                ensure!(answer == message, "datagram of {size} bytes came back changed");
            }
        }
        Ok(())
    }

    async fn no_checksum_errors(&self) -> Result<()> {
        let places: [(&str, &Namespace); 4] = [
            ("client", self.client.namespace()),
            ("server", self.server.namespace()),
            ("outside", self.outside.namespace()),
            ("node", self.node.namespace()),
        ];
        for (name, place) in places {
            let errors = checksum_errors(place).await?;
            ensure!(errors == 0, "{name}: {errors} checksum errors");
        }
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        self.no_checksum_errors().await?;
        for agent in &self.agents {
            agent.sigterm().await?;
        }
        Ok(())
    }
}

/// A text in which no two places look alike.
fn text(size: usize) -> String {
    (0..).flat_map(|number: u32| format!("{number:06}.").into_bytes()).take(size).map(char::from).collect()
}

fn manifest(name: &str, vip: IpAddr, server: IpAddr, ports: &[(u16, u16, u16)]) -> String {
    let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
    let service: String = ports
        .iter()
        .map(|(port, node_port, _)| {
            format!("  - {{name: p{port}, protocol: UDP, port: {port}, nodePort: {node_port}}}\n")
        })
        .collect();
    let slice: String = ports
        .iter()
        .map(|(port, _, target)| format!("- {{name: p{port}, protocol: UDP, port: {target}}}\n"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: NodePort\n  clusterIP: '{vip}'\n  \
         clusterIPs: ['{vip}']\n  ports:\n{service}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: {name}-1\n  namespace: default\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\n\
         ports:\n{slice}endpoints:\n- {{addresses: ['{server}'], conditions: {{ready: true}}}}\n"
    )
}

/// Everything that a client of a Service may do with large datagrams.
async fn large_datagrams(nodes: u32, family: Family, forwarding: &str, agents: Agents) -> Result<()> {
    let world = World::new(nodes, family, forwarding, agents).await?;
    let inside = |port: u16| SocketAddr::new(world.vip, port);
    let outside = |port: u16| SocketAddr::new(world.node.address(), port);
    world.sockets(&world.client, inside(SERVER.0)).await.context("sockets of a pod")?;
    world.by_hand(&world.client, inside(SERVER.0), "echo ").await.context("a pod by hand")?;
    world.by_hand(&world.client, inside(REVERSE.0), "").await.context("a pod by hand, in reverse")?;
    if agents == Agents::Everywhere {
        world.sockets(&world.outside, outside(SERVER.1)).await.context("sockets outside")?;
        world.by_hand(&world.outside, outside(SERVER.1), "echo ").await.context("outside by hand")?;
        world.by_hand(&world.outside, outside(REVERSE.1), "").await.context("outside by hand, in reverse")?;
    }
    world.stop().await
}

macro_rules! cases {
    ($($name:ident: $nodes:expr, $family:ident, $forwarding:literal, $agents:ident;)*) => {
        $(#[tokio::test]
        async fn $name() -> Result<()> {
            large_datagrams($nodes, Family::$family, $forwarding, Agents::$agents).await
        })*
    };
}

cases! {
    one_node_stack_v4: 1, V4, "stack", Everywhere;
    one_node_redirect_v4: 1, V4, "redirect", Everywhere;
    one_node_stack_v6: 1, V6, "stack", Everywhere;
    one_node_redirect_v6: 1, V6, "redirect", Everywhere;
    two_nodes_stack_v4: 2, V4, "stack", Everywhere;
    two_nodes_redirect_v4: 2, V4, "redirect", Everywhere;
    two_nodes_stack_v6: 2, V6, "stack", Everywhere;
    two_nodes_redirect_v6: 2, V6, "redirect", Everywhere;
    a_strange_node_stack_v4: 2, V4, "stack", AtTheClient;
    a_strange_node_redirect_v6: 2, V6, "redirect", AtTheClient;
}

/// Ten thousand datagrams of which only the first fragment ever comes, and as many without it; then others go as before.
async fn datagrams_that_are_never_completed(family: Family) -> Result<()> {
    let world = World::new(1, family, "redirect", Agents::Everywhere).await?;
    let (to, other) = (SocketAddr::new(world.vip, SERVER.0), SocketAddr::new(world.other, SERVER.0));
    world.sockets(&world.client, to).await?;
    let raw = RawSender::open(&world.client, other.is_ipv6()).await?;
    let from = SocketAddr::new(world.client.address(), 41_000);
    for id in 1..=UNFINISHED {
        let fragments = udp_fragments(from, other, id, &[7; 3000]);
        raw.send(other.ip(), &fragments[..1]).await?;
    }
    world.sockets(&world.client, to).await.context("after ten thousand first fragments")?;
    for id in UNFINISHED + 1..=2 * UNFINISHED {
        let fragments = udp_fragments(from, other, id, &[7; 3000]);
        raw.send(other.ip(), &fragments[2..]).await?;
    }
    world.sockets(&world.client, to).await.context("after ten thousand later fragments")?;
    // Held ones make room after two seconds.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    world.by_hand(&world.client, to, "echo ").await.context("in any order, afterwards")?;
    world.stop().await
}

#[tokio::test]
async fn ten_thousand_unfinished_datagrams_v4() -> Result<()> {
    datagrams_that_are_never_completed(Family::V4).await
}

#[tokio::test]
async fn ten_thousand_unfinished_datagrams_v6() -> Result<()> {
    datagrams_that_are_never_completed(Family::V6).await
}
