//! Frames a second through the XDP program: small UDP datagrams to a node port whose endpoint is on the node that they come from, so
//! that every frame goes back by the device it came by, with two addresses and two ports changed; the agent has it handed to this end of a
//! virtual pair (`XDP_REDIRECT`) where a card would get `XDP_TX`.
//!
//! Two nodes are joined by a veth pair. The sender's XDP program makes live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18), the
//! other node's sends them back, and the sender's counts and drops them. Beside it stands a pair of nodes without an agent whose program
//! does nothing but exchange the MAC addresses. All of it runs on one CPU.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::layout::WireStat;
use lb_common::proto;
use netlink_packet_route::link::LinkAttribute;

use crate::bench::balancer::start_agent;
use crate::bench::report::{Row, ratios};
use crate::bench::traffic::{Place, Worker};
use crate::bench::{Options, progress};
use crate::datapath::packet::{Mac, Packet};
use crate::datapath::{object_path, pin_to};
use crate::lab::{ETH0, Lab, Node, Underlay};
use crate::netns::run_in;

/// Its name in filters.
pub(super) const NAME: &str = "XDP, live frames";
/// What the program is compared with.
const LEAST: &str = "XDP_TX and nothing else";
/// Frames a round.
const FRAMES: u32 = 1_000_000;
const QUICK_FRAMES: u32 = 200_000;
/// Frames that are made before the other device works on them: a veth device holds 256 (`VETH_RING_SIZE`, drivers/net/veth.c).
const BATCH: u32 = 64;
/// Bytes of a frame: Ethernet, IPv4 and UDP headers and six more; in words as the programs have them (`LIVE_FRAME` in
/// lb-ebpf/src/reference.rs).
const LENGTH: usize = 48;
const NODE_PORT: u16 = 30_080;
const SERVER_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40_000;

/// Million frames a second that come back to the sender, of both pairs.
pub(super) fn measure(options: &Options, rounds: usize) -> Result<Vec<Row>> {
    let frames = if options.quick { QUICK_FRAMES } else { FRAMES };
    let bare = Pair::bouncing().with_context(|| LEAST)?;
    let served = Pair::served().context("node port through the XDP program")?;
    progress(format_args!("{NAME}: two pairs of nodes stand"));
    let (mut least, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut both = [(&bare, &mut least), (&served, &mut ours)];
        both.rotate_left(round % 2);
        for (pair, figures) in both {
            figures.push(pair.send(frames)?);
        }
        progress(format_args!("{NAME}: round {} of {rounds}", round + 1));
    }
    let row =
        |name: &str, figures: &[f64]| Row::new(format!("{NAME}: {name}"), "Mpps", figures).higher_is_better();
    Ok(vec![
        row(LEAST, &least),
        row("node port, endpoint on another node", &ours).ratios(LEAST, &ratios(&ours, &least)).goal("D10").note(
            "Handed to the device as to another one (XDP_REDIRECT), because a veth device does not wake its other end for XDP_TX; a card gets XDP_TX.",
        ),
    ])
}

/// Two nodes with a veth pair between them; the second one sends, the first one sends back.
struct Pair {
    sending: Ebpf,
    /// What sends back, where that is not an agent's.
    _bouncing: Option<Ebpf>,
    /// Both ends of the flow that the frames belong to.
    _flow: Option<(UdpSocket, Worker)>,
    lab: Lab,
}

impl Pair {
    /// The first node does the least that can be done.
    fn bouncing() -> Result<Self> {
        let mut pair = Self::new()?;
        let mut bouncing = load("bounce")?;
        attach(&mut bouncing, "bounce", pair.lab.node(0))?;
        pair._bouncing = Some(bouncing);
        pair.aim(NODE_PORT)?;
        Ok(pair)
    }

    /// The first node has an agent with the XDP program, and a Service with a node port; the endpoint is a pod of the second.
    fn served() -> Result<Self> {
        let mut pair = Self::new()?;
        let (near, far) = (pair.lab.node(0).clone(), pair.lab.node(1).clone());
        let pod = far.pod("server")?;
        let server = Worker::server(Place::Pod(&pod), 0, &[SERVER_PORT])?;
        let manifests = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: default}}\nspec:\n  type: NodePort\n  \
             clusterIP: 10.96.0.100\n  clusterIPs: [10.96.0.100]\n  ports:\n  - {{name: udp, protocol: UDP, port: 80, \
             nodePort: {NODE_PORT}}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: server-1\n  \
             namespace: default\n  labels: {{kubernetes.io/service-name: server}}\naddressType: IPv4\nports:\n- {{name: udp, \
             protocol: UDP, port: {SERVER_PORT}}}\nendpoints:\n- {{addresses: [{}], nodeName: {}, conditions: {{ready: \
             true}}}}\n",
            pod.address(),
            far.name(),
        );
        start_agent(&pair.lab, &near, &manifests, &["--xdp=native"])?;
        let flow = converse(&near, &far).context("a datagram through the node port")?;
        pair._flow = Some((flow, server));
        // Translated, the frames go to the endpoint's port.
        pair.aim(SERVER_PORT)?;
        let before = sent_on(&near)?;
        let frames = 10_000;
        pair.send(frames)?;
        let carried = sent_on(&near)? - before;
        ensure!(
            carried * 100 >= u64::from(frames) * 99,
            "of {frames} frames the XDP program sent {carried} on: the others took the way through the stack"
        );
        Ok(pair)
    }

    /// The nodes, and the sender's programs.
    fn new() -> Result<Self> {
        let lab = Lab::builder().nodes(2).underlay(Underlay::Direct).build()?;
        let mut sending = load("arrive")?;
        attach(&mut sending, "arrive", lab.node(1))?;
        program(&mut sending, "send")?.load()?;
        Ok(Self { sending, _bouncing: None, _flow: None, lab })
    }

    /// Writes the frame that is sent, and says to which port it has come back.
    fn aim(&mut self, back_at: u16) -> Result<()> {
        let (near, far) = (self.lab.node(0), self.lab.node(1));
        let from = SocketAddr::new(far.address(), CLIENT_PORT);
        let mut packet = Packet::new(proto::UDP, from, SocketAddr::new(near.address(), NODE_PORT), 0);
        (packet.eth_src, packet.eth_dst) = (mac(far)?, mac(near)?);
        let bytes = packet.with_payload(b"frames").bytes();
        ensure!(bytes.len() == LENGTH, "a frame of {} bytes", bytes.len());
        let mut words = [0; LENGTH / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        let map = self.sending.map_mut("LIVE_FRAME").context("map LIVE_FRAME")?;
        Array::<_, [u64; LENGTH / 8]>::try_from(map)?.set(0, words, 0)?;
        let map = self.sending.map_mut("ARRIVED").context("map ARRIVED")?;
        Array::<_, u64>::try_from(map)?.set(0, u64::from(back_at.to_be()), 0)?;
        Ok(())
    }

    /// Frames that have come back so far.
    fn arrived(&self) -> Result<u64> {
        let map = self.sending.map("ARRIVED").context("map ARRIVED")?;
        Ok(Array::<_, u64>::try_from(map)?.get(&1, 0)?)
    }

    /// Sends frames; million a second that came back.
    fn send(&self, frames: u32) -> Result<f64> {
        let program: &Xdp = self.sending.program("send").context("program send")?.try_into()?;
        // `struct xdp_md` (include/uapi/linux/bpf.h): where the data ends, and the device that frames come by.
        let context: Vec<u8> =
            [0, LENGTH as u32, 0, ETH0, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let before = self.arrived()?;
        let elapsed = run_in(self.lab.node(1).namespace(), || -> Result<Duration> {
            pin_to(0);
            let begin = Instant::now();
            program.test_run(TestRunOptions {
                data_in: Some(&[0; LENGTH]),
                ctx_in: Some(&context),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })?;
            Ok(begin.elapsed())
        })?;
        let back = self.arrived()? - before;
        ensure!(back * 10 >= u64::from(frames) * 9, "of {frames} frames {back} came back");
        Ok(back as f64 / 1e6 / elapsed.as_secs_f64())
    }
}

/// Some datagrams and answers between the second node and the endpoint, by the first one's node port: then the connection tables
/// know the flow as one that goes both ways.
fn converse(near: &Node, far: &Node) -> Result<UdpSocket> {
    let (from, to) =
        (SocketAddr::new(far.address(), CLIENT_PORT), SocketAddr::new(near.address(), NODE_PORT));
    let socket = far.namespace().udp_socket(from)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut byte = [0];
    for _ in 0..10 {
        // 4: the server answers (`bench/traffic/server.rs`).
        socket.send_to(&[4], to)?;
        socket.recv(&mut byte)?;
    }
    Ok(socket)
}

fn load(what: &str) -> Result<Ebpf> {
    let path = object_path().with_file_name("reference.o");
    let object = std::fs::read(&path)
        .with_context(|| format!("{}: run `cargo xtask build-ebpf` first", path.display()))?;
    let mut ebpf = EbpfLoader::new().load(&object)?;
    program(&mut ebpf, what)?.load()?;
    Ok(ebpf)
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("program {name}"))?.try_into()?)
}

/// Attaches a program to a node's device in the driver.
fn attach(ebpf: &mut Ebpf, name: &str, node: &Node) -> Result<()> {
    let program = program(ebpf, name)?;
    run_in(node.namespace(), || program.attach_to_if_index(ETH0, XdpMode::Driver))
        .with_context(|| format!("attach {name} on {}", node.name()))?;
    Ok(())
}

/// Frames that a node's XDP program has sent on. Back to an end of a virtual pair they are handed like to any other device.
fn sent_on(node: &Node) -> Result<u64> {
    let pin = node.bpffs().join("lb-agent/maps/WIRE_STATS");
    let map = Map::PerCpuArray(MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?);
    let counters = PerCpuArray::<_, u64>::try_from(&map)?;
    let mut sum = 0;
    for stat in WireStat::ALL {
        sum += counters.get(&(stat as u32), 0)?.iter().sum::<u64>();
    }
    Ok(sum)
}

/// The address of a node's device.
fn mac(node: &Node) -> Result<Mac> {
    let links = node.namespace().links();
    let link = node.namespace().block_on(async move { links.get(ETH0).await })?;
    let address = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address),
        _ => None,
    });
    Ok(address.context("eth0 without an address")?.as_slice().try_into()?)
}
