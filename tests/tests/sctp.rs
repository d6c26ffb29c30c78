//! SCTP through Services with real associations (S-73), ports translated: whoever receives a packet checks its CRC32c, with
//! other code than that which kept it right.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::lab::{AgentHandle, AgentOptions, Family, Lab, Pod, Shape};
use lb_tests::netns::Namespace;
use lb_tests::workload::{NetError, SctpClient, SctpServer, sctp_ask};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(10);
/// Port of the Services, and that of the endpoints.
const PORT: u16 = 5000;
const TARGET: u16 = 9899;

/// A Service in front of one pod.
struct Service {
    pod: Pod,
    server: SctpServer,
    vip: IpAddr,
    node_port: u16,
}

impl Service {
    fn cluster(&self) -> SocketAddr {
        SocketAddr::new(self.vip, PORT)
    }

    fn manifest(&self, ready: bool) -> String {
        let family = if self.vip.is_ipv4() { "IPv4" } else { "IPv6" };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: NodePort\n  \
             clusterIP: '{vip}'\n  clusterIPs: ['{vip}']\n  ports:\n  - {{name: s, protocol: SCTP, port: {PORT}, \
             nodePort: {node_port}}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\n\
             ports:\n- {{name: s, protocol: SCTP, port: {TARGET}}}\nendpoints:\n\
             - {{addresses: ['{pod}'], conditions: {{ready: {ready}}}}}\n",
            name = self.pod.name(),
            vip = self.vip,
            node_port = self.node_port,
            pod = self.pod.address(),
        )
    }
}

/// Two nodes, a host outside, and Services in front of the client itself, a pod of its node and one of the other.
struct Site {
    own: Service,
    near: Service,
    far: Service,
    manifests: PathBuf,
    agents: Vec<AgentHandle>,
    lab: Lab,
    next_port: u16,
}

impl Site {
    async fn new(shape: Shape, family: Family, forwarding: &str) -> Result<Self> {
        let lab = Lab::builder().nodes(2).clients(1).shape(shape).family(family).build()?;
        let mut services = Vec::new();
        for (number, (node, name)) in [(0, "own"), (0, "near"), (1, "far")].into_iter().enumerate() {
            let pod = lab.node(node).pod(name)?;
            let server = SctpServer::start(&pod, TARGET, name).await?;
            let number = number as u16 + 1;
            let vip =
                if family == Family::V4 { format!("10.96.0.{number}") } else { format!("fd00:96::{number}") };
            services.push(Service { pod, server, vip: vip.parse()?, node_port: 31_000 + number });
        }
        let manifests = lab.state_dir().join("manifests");
        std::fs::create_dir_all(&manifests)?;
        for service in &services {
            let file = format!("{}.yaml", service.pod.name());
            std::fs::write(manifests.join(file), service.manifest(true))?;
        }
        let mut agents = Vec::new();
        for node in lab.nodes() {
            let options = AgentOptions::of_manifests(node, &manifests, forwarding);
            agents.push(node.start_agent(options)?);
        }
        for agent in &agents {
            agent.wait_ready().await?;
        }
        let [own, near, far] = services.try_into().ok().context("three Services")?;
        Ok(Self { own, near, far, manifests, agents, lab, next_port: 40_000 })
    }

    fn node_port(&self, node: usize, service: &Service) -> SocketAddr {
        SocketAddr::new(self.lab.node(node).address(), service.node_port)
    }

    /// An association from a port of its own: who answers, whom the server sees, and a message of many packets there and
    /// back.
    async fn talks(
        &mut self,
        from: &impl AsRef<Namespace>,
        to: SocketAddr,
        name: &str,
        seen: &[IpAddr],
    ) -> Result<()> {
        self.next_port += 1;
        let port = self.next_port;
        let mut client = SctpClient::connect(from, to, port, LIMIT).await.context("opening")?;
        ensure!(client.ask(b"hostname", LIMIT).await? == name.as_bytes());
        let peer: SocketAddr = String::from_utf8(client.ask(b"clientip", LIMIT).await?)?.parse()?;
        ensure!(seen.contains(&peer.ip()), "the server sees {peer}, not one of {seen:?}");
        for length in [1, 2, 3, 1_000, 1_200, 30_000] {
            let message: Vec<u8> = (0..length).map(|at: u32| (at * 7 + length) as u8).collect();
            ensure!(client.ask(&message, LIMIT).await.context("asking")? == message, "{length} bytes");
        }
        ensure!(client.corrupt() == 0, "{} answers with a wrong checksum", client.corrupt());
        client.shut_down(LIMIT).await.context("shutting down")
    }

    async fn stop(self) -> Result<()> {
        for service in [&self.own, &self.near, &self.far] {
            let corrupt = service.server.corrupt();
            ensure!(corrupt == 0, "{}: {corrupt} packets with a wrong checksum", service.pod.name());
        }
        for agent in &self.agents {
            agent.sigterm().await?;
        }
        Ok(())
    }
}

/// Everybody talks to everybody.
async fn associations(shape: Shape, family: Family, forwarding: &str) -> Result<()> {
    let mut site = Site::new(shape, family, forwarding).await?;
    let client = site.own.pod.clone();
    let own = [client.address()];
    let nodes: Vec<IpAddr> = site.lab.nodes().iter().flat_map(|node| node.addresses().to_vec()).collect();
    for (name, to) in [("near", site.near.cluster()), ("far", site.far.cluster())] {
        site.talks(&client, to, name, &own).await.with_context(|| format!("a pod to {name}"))?;
    }
    // The client itself sees the Service's address.
    let (to, vip) = (site.own.cluster(), [site.own.vip]);
    site.talks(&client, to, "own", &vip).await.context("a pod to itself")?;
    let through = [(site.node_port(0, &site.near), "near"), (site.node_port(0, &site.far), "far")];
    for (to, name) in through {
        // Masqueraded: by an address of the node, or its side of the pod network.
        let node = site.lab.node(0);
        let mut seen = nodes.clone();
        seen.extend(node.pod_cidrs().iter().map(|cidr| cidr.nth(1)));
        site.talks(&client, to, name, &seen).await.with_context(|| format!("{name} by a node port"))?;
        let outside = site.lab.client(0).namespace().clone();
        let what = || format!("{name} by a node port, from outside");
        site.talks(&Outside(outside), to, name, &seen).await.with_context(what)?;
    }
    // Nobody has that port.
    let closed = SocketAddr::new(site.far.vip, PORT + 1);
    let answer = sctp_ask(&client, closed, 39_999, "hostname", LIMIT).await;
    ensure!(answer == Err(NetError::Refused), "a port of no Service: {answer:?}");
    site.stop().await
}

struct Outside(Namespace);

impl AsRef<Namespace> for Outside {
    fn as_ref(&self) -> &Namespace {
        &self.0
    }
}

/// What is established stays when its endpoint is no longer ready; new associations are refused.
async fn endpoint_goes(shape: Shape, family: Family, forwarding: &str) -> Result<()> {
    let site = Site::new(shape, family, forwarding).await?;
    let from = &site.own.pod;
    let to = site.far.cluster();
    let mut live = SctpClient::connect(from, to, 41_000, LIMIT).await?;
    ensure!(live.ask(b"hostname", LIMIT).await? == b"far");
    std::fs::write(site.manifests.join("far.yaml"), site.far.manifest(false))?;
    let begin = std::time::Instant::now();
    let mut port = 42_000;
    loop {
        port += 1;
        let answer = sctp_ask(from, to, port, "hostname", LIMIT).await;
        if answer == Err(NetError::Refused) {
            break;
        }
        ensure!(begin.elapsed() < LIMIT, "new associations: {answer:?}");
    }
    for number in 0..20 {
        let message = format!("message {number}");
        ensure!(live.ask(message.as_bytes(), LIMIT).await? == message.as_bytes(), "{message}");
    }
    live.shut_down(LIMIT).await?;
    site.stop().await
}

macro_rules! sites {
    ($($name:ident: $test:ident, $shape:ident, $family:ident, $forwarding:literal;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                if let Err(error) = $test(Shape::$shape, Family::$family, $forwarding).await {
                    panic!("{error:?}");
                }
            }
        )*
    };
}

sites! {
    associations_routed_stack_v4: associations, Routed, V4, "stack";
    associations_routed_stack_v6: associations, Routed, V6, "stack";
    associations_routed_redirect_v4: associations, Routed, V4, "redirect";
    associations_routed_redirect_v6: associations, Routed, V6, "redirect";
    associations_bridged_stack_v4: associations, Bridged, V4, "stack";
    associations_bridged_stack_v6: associations, Bridged, V6, "stack";
    associations_bridged_redirect_v4: associations, Bridged, V4, "redirect";
    associations_bridged_redirect_v6: associations, Bridged, V6, "redirect";
    endpoint_goes_routed_stack_v4: endpoint_goes, Routed, V4, "stack";
    endpoint_goes_bridged_redirect_v6: endpoint_goes, Bridged, V6, "redirect";
}
