//! Frames a second through the XDP program: small UDP datagrams to a node port whose endpoint is on the node that they come from, so
//! that every frame goes back by the device it came by, with two addresses and two ports changed.
//!
//! Two nodes are joined by a veth pair. The sender's XDP program makes live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18), the
//! other node's sends them back, and the sender's counts and drops them. Beside it stands a pair of nodes without an agent whose program
//! does nothing but exchange the MAC addresses. All of it runs on one CPU.
//!
//! A network card is told to send back what came by it (`XDP_TX`). An end of a virtual pair is not, unless its other end is known to
//! run a program as well, and has the frame handed to it as to another device (`XDP_REDIRECT`). Here the other end runs one, so that
//! both are measured: as a card would have it, which is what counts, and as the agent has it done at a virtual pair.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, DevMapHash, Map, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use lb_common::layout::{WireDevices, WireStat};
use lb_common::proto;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

use crate::bench::balancer::start_agent;
use crate::bench::report::{Row, ratios};
use crate::bench::traffic::{Place, Worker};
use crate::bench::{Options, progress, waited};
use crate::datapath::packet::{Mac, Packet};
use crate::datapath::{object_path, pin_to};
use crate::lab::{ETH0, Lab, Node, Underlay};
use crate::netns::run_in;

/// Its name in filters.
pub(super) const NAME: &str = "XDP, live frames";
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

/// How a frame leaves by the device that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// As from a card: `XDP_TX`.
    Sent,
    /// As from an end of a virtual pair: `XDP_REDIRECT`.
    Handed,
}

impl Back {
    const ALL: [Self; 2] = [Self::Sent, Self::Handed];

    /// What the program is compared with.
    fn least(self) -> &'static str {
        match self {
            Self::Sent => "XDP_TX and nothing else",
            Self::Handed => "XDP_REDIRECT and nothing else",
        }
    }

    /// The reference program of that name.
    fn program(self) -> &'static str {
        match self {
            Self::Sent => "bounce",
            Self::Handed => "hand_back",
        }
    }

    fn case(self) -> &'static str {
        match self {
            Self::Sent => "node port, endpoint on another node",
            Self::Handed => "node port, endpoint on another node, as at a virtual pair",
        }
    }

    /// What the XDP program counts such frames as.
    fn counted(self) -> WireStat {
        match self {
            Self::Sent => WireStat::Back,
            Self::Handed => WireStat::Forwarded,
        }
    }
}

/// Million frames a second that come back to the sender, of all pairs.
pub(super) fn measure(options: &Options, rounds: usize) -> Result<Vec<Row>> {
    let frames = if options.quick { QUICK_FRAMES } else { FRAMES };
    let mut pairs = Vec::new();
    for back in Back::ALL {
        let bare = waited(back.least(), || Pair::bouncing(back)).with_context(|| back.least())?;
        let served = waited(back.case(), || Pair::served(back)).with_context(|| back.case())?;
        pairs.extend([bare, served].map(|pair| (pair, Vec::new())));
        progress(format_args!("{NAME}: {} pairs of nodes stand", pairs.len()));
    }
    for round in 0..rounds {
        let count = pairs.len();
        for step in 0..count {
            let (pair, figures) = &mut pairs[(round + step) % count];
            figures.push(waited(NAME, || pair.send(frames))?);
        }
        progress(format_args!("{NAME}: round {} of {rounds}", round + 1));
    }
    let row =
        |name: &str, figures: &[f64]| Row::new(format!("{NAME}: {name}"), "Mpps", figures).higher_is_better();
    let mut rows = Vec::new();
    for (back, both) in Back::ALL.into_iter().zip(pairs.chunks(2)) {
        let (least, ours) = (&both[0].1, &both[1].1);
        let served = row(back.case(), ours).ratios(back.least(), &ratios(ours, least));
        rows.push(row(back.least(), least));
        rows.push(match back {
            Back::Sent => served.goal("D10"),
            Back::Handed => served.note(
                "Handed to the device as to another one: a veth device does not wake its other end for XDP_TX, unless that runs a program.",
            ),
        });
    }
    Ok(rows)
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
    fn bouncing(back: Back) -> Result<Self> {
        let mut pair = Self::new()?;
        let mut bouncing = load(back.program())?;
        let near = pair.lab.node(0);
        if back == Back::Handed {
            let map = bouncing.map_mut("BACK").context("map BACK")?;
            let mut devices = DevMapHash::try_from(map)?;
            run_in(near.namespace(), || devices.insert(ETH0, ETH0, None, 0))?;
        }
        attach(&mut bouncing, back.program(), near)?;
        pair._bouncing = Some(bouncing);
        pair.aim(NODE_PORT)?;
        Ok(pair)
    }

    /// The first node has an agent with the XDP program, and a Service with a node port; the endpoint is a pod of the second.
    fn served(back: Back) -> Result<Self> {
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
        if back == Back::Sent {
            sends_back(&near)?;
        }
        let flow = converse(&near, &far).context("a datagram through the node port")?;
        pair._flow = Some((flow, server));
        // Translated, the frames go to the endpoint's port.
        pair.aim(SERVER_PORT)?;
        let before = sent_on(&near, back.counted())?;
        let frames = 10_000;
        pair.send(frames)?;
        let carried = sent_on(&near, back.counted())? - before;
        ensure!(
            carried * 100 >= u64::from(frames) * 99,
            "of {frames} frames the XDP program sent {carried} on like this: the others took another way"
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

/// Tells a node's XDP program that its device sends back what it is told to, as the agent does for a card. It has ended.
fn sends_back(node: &Node) -> Result<()> {
    let link = link(node)?;
    let xdp = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(told) => told.iter().find_map(|told| match told {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    });
    let id = xdp.context("eth0 runs no XDP program")?;
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    let program = program.with_context(|| format!("program {id} of eth0 is gone"))?;
    for map in program.map_ids()?.context("the kernel does not tell a program's maps")? {
        let map = MapData::from_id(map)?;
        if map.info()?.name_as_str() == Some("XDP_DEVICES") {
            let mut devices = DevMapHash::try_from(Map::DevMapHash(map))?;
            run_in(node.namespace(), || devices.insert(WireDevices::back(ETH0), ETH0, None, 0))?;
            return Ok(());
        }
    }
    bail!("program {id} of eth0 has no map of devices")
}

/// Frames that a node's XDP program has sent on like this.
fn sent_on(node: &Node, how: WireStat) -> Result<u64> {
    let pin = node.bpffs().join("lb-agent/maps/WIRE_STATS");
    let map = Map::PerCpuArray(MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?);
    let counters = PerCpuArray::<_, u64>::try_from(&map)?;
    Ok(counters.get(&(how as u32), 0)?.iter().sum())
}

/// What the kernel says of a node's device.
fn link(node: &Node) -> Result<LinkMessage> {
    let links = node.namespace().links();
    node.namespace().block_on(async move { links.get(ETH0).await })
}

/// The address of a node's device.
fn mac(node: &Node) -> Result<Mac> {
    let link = link(node)?;
    let address = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address),
        _ => None,
    });
    Ok(address.context("eth0 without an address")?.as_slice().try_into()?)
}
