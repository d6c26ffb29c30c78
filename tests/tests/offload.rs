//! Checksums and segments: large transfers and datagrams through a Service, with every mix of offloads at both ends of the
//! pods' devices, and at network devices for clients outside. Content is checked by the workloads; the kernels' own counters
//! must show no checksum error.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::lab::{AgentHandle, AgentOptions, Client, Family, Lab, Node, Pod, Shape};
use lb_tests::workload::{Bulk, Direction, Netexec, UdpClient, checksum_errors};

const LIMIT: Duration = Duration::from_secs(20);
const BULK: u64 = 4 << 20;
/// Node ports of the Service.
const NODE_PORTS: [u16; 2] = [30_500, 30_600];
/// Offloads of the pod's end and of the node's end of a device.
const OFFLOADS: [(&str, &str); 4] = [("on", "on"), ("off", "on"), ("on", "off"), ("off", "off")];

/// A lab of one or two nodes with a server and a client pod, an agent on each node, and a Service in front of the server.
struct Served {
    agents: Vec<AgentHandle>,
    client: Pod,
    server: Pod,
    vip: IpAddr,
    /// A host outside and the node whose node ports it uses.
    outside: (Client, Node),
    _lab: Lab,
}

impl Served {
    async fn new(nodes: u32, shape: Shape, family: Family, forwarding: &str) -> Result<Self> {
        let lab = Lab::builder().nodes(nodes).shape(shape).family(family).clients(1).build()?;
        let (client, server) = (lab.node(0).pod("client")?, lab.node(nodes as usize - 1).pod("server")?);
        let vip: IpAddr = if family.has_v4() { "10.96.0.50".parse()? } else { "fd00:96::50".parse()? };
        let manifests = lab.state_dir().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        std::fs::write(manifests.join("served.yaml"), manifest(vip, server.address()))?;
        let mut agents = Vec::new();
        for node in lab.nodes() {
            let options = AgentOptions::of_manifests(node, &manifests, forwarding);
            agents.push(node.start_agent(options)?);
        }
        for agent in &agents {
            agent.wait_ready().await?;
        }
        let outside = (lab.client(0).clone(), lab.node(0).clone());
        Ok(Self { agents, client, server, vip, outside, _lab: lab })
    }

    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip, port)
    }

    /// Switches checksum and segmentation offload of both pods' devices.
    async fn offload(&self, inside: &str, outside: &str) -> Result<()> {
        for pod in [&self.client, &self.server] {
            let set = |device: &str, state: &str| {
                let argv = ["ethtool", "-K", device, "tx", state, "tso", state, "gso", state, "gro", state];
                argv.map(str::to_owned)
            };
            let inner = set("eth0", inside);
            let outer = set(&pod.host_device().name, outside);
            let node = pod.node().context("the pod's node")?;
            for output in [
                pod.exec(&inner.each_ref().map(String::as_str), &[], LIMIT).await?,
                node.exec(&outer.each_ref().map(String::as_str), &[], LIMIT).await?,
            ] {
                ensure!(output.status.success(), "ethtool: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }

    /// Switches checksum and segmentation offload of the network devices of the host outside and of its node.
    async fn offload_network(&self, outside: &str, node: &str) -> Result<()> {
        let set = |state: &str| {
            ["ethtool", "-K", "eth0", "tx", state, "tso", state, "gso", state, "gro", state]
                .map(str::to_owned)
        };
        let (theirs, ours) = (set(outside), set(node));
        for output in [
            self.outside.0.exec(&theirs.each_ref().map(String::as_str), &[], LIMIT).await?,
            self.outside.1.exec(&ours.each_ref().map(String::as_str), &[], LIMIT).await?,
        ] {
            ensure!(output.status.success(), "ethtool: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    async fn check_no_checksum_errors(&self) -> Result<()> {
        let ends = [
            (self.client.name(), self.client.namespace()),
            (self.server.name(), self.server.namespace()),
            (self.outside.0.name(), self.outside.0.namespace()),
            (self.outside.1.name(), self.outside.1.namespace()),
        ];
        for (name, namespace) in ends {
            let errors = checksum_errors(namespace).await?;
            ensure!(errors == 0, "{name}: {errors} checksum errors");
        }
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        for agent in &self.agents {
            agent.sigterm().await?;
        }
        Ok(())
    }
}

fn manifest(vip: IpAddr, server: IpAddr) -> String {
    let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
    let ports = [("bulk", "TCP", 5000, NODE_PORTS[0]), ("udp", "UDP", 6000, NODE_PORTS[1])];
    let service: String = ports
        .map(|(name, protocol, port, node_port)| {
            format!("  - {{name: {name}, protocol: {protocol}, port: {port}, nodePort: {node_port}}}\n")
        })
        .concat();
    let slice: String = ports
        .map(|(name, protocol, port, _)| {
            format!("- {{name: {name}, protocol: {protocol}, port: {}}}\n", port + 1)
        })
        .concat();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: served, namespace: default}}\nspec:\n  type: NodePort\n  clusterIP: '{vip}'\n  \
         clusterIPs: ['{vip}']\n  ports:\n{service}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: served-1\n  namespace: default\n  labels: {{kubernetes.io/service-name: served}}\naddressType: {family}\n\
         ports:\n{slice}endpoints:\n- {{addresses: ['{server}'], conditions: {{ready: true}}}}\n"
    )
}

async fn every_mix_of_offloads(nodes: u32, shape: Shape, family: Family, forwarding: &str) -> Result<()> {
    let served = Served::new(nodes, shape, family, forwarding).await?;
    let _bulk = Bulk::start(&served.server, 5001).await?;
    let _udp = Netexec::new("server").udp(6001).start(&served.server).await?;
    for (inside, outside) in OFFLOADS {
        served.offload(inside, outside).await?;
        let what = format!("offloads {inside} in the pod, {outside} on the node");
        for direction in [Direction::Upload, Direction::Download] {
            let report = Bulk::transfer(&served.client, served.to(5000), direction, BULK, 7, LIMIT)
                .await
                .with_context(|| format!("{direction:?}, {what}"))?;
            ensure!(report.bytes == BULK, "{} bytes of {BULK}, {what}", report.bytes);
        }
        let client = UdpClient::connect(&served.client, served.to(6000), None, 0).await?;
        for size in [1, 2, 3, 100, 1000, 1380] {
            let message = "x".repeat(size);
            let answer = client.ask(&format!("echo {message}"), LIMIT).await.with_context(|| what.clone())?;
            ensure!(answer == message, "datagram of {size} bytes came back changed, {what}");
        }
    }
    served.check_no_checksum_errors().await?;
    served.stop().await
}

/// A host outside reaches the server through a node port of the first node, which masquerades it.
async fn from_outside_with_every_mix(
    nodes: u32,
    shape: Shape,
    family: Family,
    forwarding: &str,
) -> Result<()> {
    let served = Served::new(nodes, shape, family, forwarding).await?;
    let _bulk = Bulk::start(&served.server, 5001).await?;
    let _udp = Netexec::new("server").udp(6001).start(&served.server).await?;
    let (client, node) = &served.outside;
    let [bulk, udp] = NODE_PORTS.map(|port| SocketAddr::new(node.address(), port));
    for (outside, inside) in OFFLOADS {
        served.offload_network(outside, inside).await?;
        served.offload(inside, inside).await?;
        let what = format!("offloads {outside} outside, {inside} on the node");
        for direction in [Direction::Upload, Direction::Download] {
            let report = Bulk::transfer(client, bulk, direction, BULK, 7, LIMIT)
                .await
                .with_context(|| format!("{direction:?}, {what}"))?;
            ensure!(report.bytes == BULK, "{} bytes of {BULK}, {what}", report.bytes);
        }
        let socket = UdpClient::connect(client, udp, None, 0).await?;
        for size in [1, 2, 3, 100, 1000, 1380] {
            let message = "x".repeat(size);
            let answer = socket.ask(&format!("echo {message}"), LIMIT).await.with_context(|| what.clone())?;
            ensure!(answer == message, "datagram of {size} bytes came back changed, {what}");
        }
        let seen = socket.ask("clientip", LIMIT).await?;
        let source: SocketAddr = seen.trim().parse().with_context(|| format!("{seen}: no address"))?;
        ensure!(!client.addresses().contains(&source.ip()), "the server sees the client itself");
    }
    served.check_no_checksum_errors().await?;
    served.stop().await
}

macro_rules! cases {
    ($test:ident; $($name:ident: $nodes:expr, $shape:ident, $family:ident, $forwarding:literal;)*) => {
        $(#[tokio::test]
        async fn $name() -> Result<()> {
            $test($nodes, Shape::$shape, Family::$family, $forwarding).await
        })*
    };
}

cases! {
    every_mix_of_offloads;
    routed_stack_v4: 1, Routed, V4, "stack";
    routed_redirect_v4: 1, Routed, V4, "redirect";
    routed_redirect_v6: 1, Routed, V6, "redirect";
    bridged_stack_v6: 1, Bridged, V6, "stack";
    bridged_redirect_v4: 1, Bridged, V4, "redirect";
    two_nodes_routed_redirect_v4: 2, Routed, V4, "redirect";
    two_nodes_bridged_redirect_v6: 2, Bridged, V6, "redirect";
    two_nodes_routed_stack_v6: 2, Routed, V6, "stack";
}

cases! {
    from_outside_with_every_mix;
    outside_routed_stack_v4: 1, Routed, V4, "stack";
    outside_bridged_redirect_v6: 1, Bridged, V6, "redirect";
    outside_two_nodes_routed_redirect_v4: 2, Routed, V4, "redirect";
    outside_two_nodes_routed_stack_v6: 2, Routed, V6, "stack";
    outside_two_nodes_bridged_stack_v4: 2, Bridged, V4, "stack";
}
