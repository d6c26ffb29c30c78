//! The packets that are measured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::{BackendFlags, Class, Forwarding, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::{self, tcp};

use crate::bench::report::PathLength;
use crate::datapath::packet::Packet;
use crate::datapath::path::Paths;
use crate::datapath::{BackendSpec, Datapath, Program};

/// First packets of flows in a round. A table of 65536 entries holds those of eleven rounds.
const NEW_FLOWS: usize = 1000;
/// Places of a Maglev table.
const PLACES: usize = 1021;
/// Flows that are met in turn.
const MANY_FLOWS: u16 = 8192;

/// A packet, or packets, at a program.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) program: Program,
    pub(super) packets: Packets,
    /// Length of the path, where it is that of an established flow.
    pub(super) path: Option<PathLength>,
}

/// What a program gets.
pub(super) enum Packets {
    /// The same packet again and again; it has to stay as it is.
    Same(Vec<u8>),
    /// Each packet once in a round.
    New(Rounds),
}

/// Packets for each round.
pub(super) struct Rounds {
    packets: Vec<Vec<u8>>,
    length: usize,
    next: usize,
}

impl Rounds {
    pub(super) fn next_round(&mut self) -> &[Vec<u8>] {
        let start = self.next % self.packets.len();
        self.next += self.length;
        &self.packets[start..start + self.length]
    }
}

impl Case {
    /// Makes sure that the packet is one that can be repeated, and counts its path.
    pub(super) fn check(&mut self, datapath: &mut Datapath, paths: &Paths) -> Result<()> {
        let Packets::Same(packet) = &self.packets else { return Ok(()) };
        for _ in 0..2 {
            let outcome = datapath.run(self.program, packet)?;
            ensure!(outcome.packet == *packet, "the packet does not stay as it is: {:?}", outcome.verdict);
        }
        let (outcome, length) = paths.measure(datapath, self.program, packet)?;
        ensure!(outcome.packet == *packet, "counting its instructions, the packet became another");
        self.path = Some(length.into());
        Ok(())
    }
}

fn address(v6: bool, network: u8, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, network.into(), 0, 0, 0, number).into()
    } else {
        Ipv4Addr::new(10, network, high, low).into()
    }
}

/// A Service whose endpoint has the frontend's own address and port: packets are translated to what they are. Gives the Service
/// and the backend.
fn service(
    datapath: &mut Datapath,
    frontend: SocketAddr,
    protocol: u8,
    kind: FrontendKind,
    affinity: u32,
) -> Result<(u32, u32)> {
    let flags = BackendFlags::SERVING | BackendFlags::LOCAL;
    let spec = BackendSpec { endpoint: frontend, flags, interface: 1, mac: [2, 0, 0, 0, 0, 2] };
    let service = datapath.empty_service();
    let backend = datapath.backend(service, &spec)?;
    for class in Class::ALL {
        datapath.publish_class(service, class, ServiceVerdict::Random, &[backend])?;
    }
    // Outside clients keep their addresses: what changes a source is another program's work.
    datapath.policy(service, Policy { affinity_timeout: affinity, flags: Policy::PRESERVE_SOURCE })?;
    datapath.frontend(frontend, protocol, service, kind)?;
    if kind == FrontendKind::NodePort {
        datapath.node_address(frontend.ip())?;
    }
    Ok((service, backend))
}

/// Every case of a mode.
pub(super) fn all(datapath: &mut Datapath, forwarding: Forwarding) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for protocol in [proto::TCP, proto::UDP] {
            established(datapath, forwarding, v6, protocol, &mut cases)
                .with_context(|| format!("established flows, IPv6 {v6}, protocol {protocol}"))?;
        }
        new(datapath, forwarding, v6, &mut cases)?;
    }
    Ok(cases)
}

fn label(forwarding: Forwarding, v6: bool, protocol: u8, what: &str) -> String {
    let transport = if protocol == proto::TCP { "tcp" } else { "udp" };
    let family = if v6 { "ipv6" } else { "ipv4" };
    format!("{forwarding:?} {family} {transport} {what}").to_lowercase()
}

fn established(
    datapath: &mut Datapath,
    forwarding: Forwarding,
    v6: bool,
    protocol: u8,
    cases: &mut Vec<Case>,
) -> Result<()> {
    let (first, answer, middle) = match protocol {
        proto::TCP => (tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK),
        _ => (0, 0, 0),
    };
    let client = SocketAddr::new(address(v6, 1, 1), 40_000);
    let same = |packet: &Packet| Packets::Same(packet.bytes());
    for (kind, number) in [(FrontendKind::ClusterIp, 1), (FrontendKind::NodePort, 2)] {
        let number = number + if protocol == proto::TCP { 0 } else { 10 };
        let frontend = SocketAddr::new(address(v6, 96, number), if number % 10 == 1 { 80 } else { 30_080 });
        service(datapath, frontend, protocol, kind, 0)?;
        let request = |flags| Packet::new(protocol, client, frontend, flags);
        // A redirected answer gets the client's MAC address: it has it already.
        let response = |flags| Packet::new(protocol, frontend, client, flags).to_mac(request(flags).eth_src);
        let (enter, exit) = match kind {
            FrontendKind::ClusterIp => (Program::FromPod, Program::ToPod),
            _ => (Program::FromNet, Program::ToNet),
        };
        let exit = if exit == Program::ToPod && forwarding == Forwarding::Redirect { enter } else { exit };
        for (program, packet) in [
            (enter, request(first)),
            (exit, response(answer)),
            (enter, request(middle)),
            (exit, response(middle)),
        ] {
            datapath.run(program, &packet.bytes())?;
        }
        for (program, packet, what) in
            [(enter, request(middle), "request"), (exit, response(middle), "response")]
        {
            let name = label(forwarding, v6, protocol, &format!("{} {what}", program.name()));
            cases.push(Case { name, program, packets: same(&packet), path: None });
        }
    }
    let stranger = Packet::new(protocol, client, SocketAddr::new(address(v6, 2, 1), 80), middle);
    for program in Program::ALL {
        let name = label(forwarding, v6, protocol, &format!("{} foreign", program.name()));
        cases.push(Case { name, program, packets: same(&stranger), path: None });
    }
    Ok(())
}

/// First packets of flows, and many flows in turn.
fn new(datapath: &mut Datapath, forwarding: Forwarding, v6: bool, cases: &mut Vec<Case>) -> Result<()> {
    for (what, number, affinity, maglev) in [
        ("new flow", 21, 0, false),
        ("new flow, affinity", 22, 3600, false),
        ("new flow, Maglev", 24, 0, true),
    ] {
        let frontend = SocketAddr::new(address(v6, 96, number), 80);
        let (service, backend) = service(datapath, frontend, proto::TCP, FrontendKind::ClusterIp, affinity)?;
        if maglev {
            datapath.publish(service, ServiceVerdict::Maglev, &[backend; PLACES])?;
        }
        let packet = |port: u16| {
            let client = SocketAddr::new(address(v6, number as u8, 1 + port / 10_000), 20_000 + port);
            Packet::new(proto::TCP, client, frontend, tcp::SYN).bytes()
        };
        let packets =
            Rounds { packets: (0..16 * NEW_FLOWS as u16).map(packet).collect(), length: NEW_FLOWS, next: 0 };
        let name = label(forwarding, v6, proto::TCP, &format!("from_pod {what}"));
        cases.push(Case { name, program: Program::FromPod, packets: Packets::New(packets), path: None });
    }
    let frontend = SocketAddr::new(address(v6, 96, 23), 80);
    service(datapath, frontend, proto::UDP, FrontendKind::ClusterIp, 0)?;
    let packet = |port: u16| {
        Packet::new(proto::UDP, SocketAddr::new(address(v6, 23, 1), 20_000 + port), frontend, 0).bytes()
    };
    let packets: Vec<_> = (0..MANY_FLOWS).map(packet).collect();
    for packet in &packets {
        datapath.run(Program::FromPod, packet)?;
    }
    let rounds = Rounds { length: packets.len(), packets, next: 0 };
    let name = label(forwarding, v6, proto::UDP, &format!("from_pod {MANY_FLOWS} flows in turn"));
    cases.push(Case { name, program: Program::FromPod, packets: Packets::New(rounds), path: None });
    Ok(())
}
