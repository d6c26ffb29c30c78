//! Echo requests to cluster IPs (S-70): who gets an answer, and that nobody else does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder};
use lb_common::checksum::Sum;
use lb_common::layout::{Forwarding, FrontendKind, ServiceVerdict};
use lb_common::proto;
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Step, everywhere};
use lb_tests::datapath::counters::{self, Event};
use lb_tests::datapath::{Datapath, Program, Verdict, packet, pin};

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// An echo message, built from its fields.
#[derive(Clone, Debug)]
struct Ping {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    answer: bool,
    payload: Vec<u8>,
    options: Vec<u8>,
}

impl Ping {
    fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self { src, dst, ttl: 63, answer: false, payload: b"are you there".to_vec(), options: Vec::new() }
    }

    fn bytes(&self) -> Vec<u8> {
        let (from, to) = if self.answer { (NODE_MAC, CLIENT_MAC) } else { (CLIENT_MAC, NODE_MAC) };
        let echo = IcmpEchoHeader { id: 0x1234, seq: 7 };
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2(from, to);
        match (self.src, self.dst) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4Header {
                    time_to_live: self.ttl,
                    identification: 0x0815,
                    source: source.octets(),
                    destination: destination.octets(),
                    options: self.options.as_slice().try_into().expect("options of up to 40 bytes"),
                    ..Ipv4Header::default()
                };
                let of =
                    if self.answer { Icmpv4Type::EchoReply(echo) } else { Icmpv4Type::EchoRequest(echo) };
                let builder = builder.ip(IpHeaders::Ipv4(header, Default::default())).icmpv4(of);
                builder.write(&mut bytes, &self.payload).expect("an echo message");
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                let of =
                    if self.answer { Icmpv6Type::EchoReply(echo) } else { Icmpv6Type::EchoRequest(echo) };
                let builder = builder.ip(IpHeaders::Ipv6(header, Default::default())).icmpv6(of);
                builder.write(&mut bytes, &self.payload).expect("an echo message");
            }
            mixed => panic!("{mixed:?}"),
        }
        bytes
    }

    /// What it is answered with.
    fn reply(&self) -> Self {
        Self { src: self.dst, dst: self.src, ttl: 64, answer: true, ..self.clone() }
    }
}

/// Programs that answer, and a cluster IP with an endpoint.
struct Answering {
    datapath: Datapath,
    v6: bool,
    client: IpAddr,
    vip: IpAddr,
}

impl Answering {
    fn host(&self, number: u8) -> IpAddr {
        host(self.v6, number)
    }

    /// Runs a program and compares verdict, packet and everything that is counted.
    fn expect(
        &mut self,
        name: &str,
        program: Program,
        packet: &[u8],
        verdict: Verdict,
        becomes: &[u8],
        events: &[Event],
    ) {
        let before = self.datapath.counters(1, 1).unwrap();
        let outcome = self.datapath.run(program, packet).unwrap();
        let counted = self.datapath.counters(1, 1).unwrap().since(&before);
        let context = format!("{name} at {program:?}, {}", packet::describe(packet));
        assert!(outcome.packet == becomes, "{context}: {:?}", packet::difference(becomes, &outcome.packet));
        assert_eq!(outcome.verdict, verdict, "{context}");
        assert_eq!(counted, counters::sum(self.v6, events), "{context}");
    }

    fn answers(&mut self, name: &str, ping: &Ping) {
        let reply = ping.reply().bytes();
        for program in [Program::FromPod, Program::FromNet, Program::ToNet] {
            self.expect(name, program, &ping.bytes(), Verdict::Redirect, &reply, &[]);
        }
        packet::verify(&reply).unwrap();
        self.passes(name, Program::ToPod, &ping.bytes());
    }

    fn passes(&mut self, name: &str, program: Program, packet: &[u8]) {
        self.expect(name, program, packet, Verdict::Pass, packet, &[]);
    }

    /// Where packets come in it is dropped, elsewhere it is too late to say anything.
    fn drops(&mut self, name: &str, packet: &[u8], reason: Reason) {
        for program in [Program::FromPod, Program::FromNet] {
            self.expect(name, program, packet, Verdict::Drop, packet, &[Event::Reason(reason)]);
        }
        for program in [Program::ToPod, Program::ToNet] {
            self.passes(name, program, packet);
        }
    }
}

fn host(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0x77, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 77, 0, number).into()
    }
}

/// In both forwarding modes and families.
fn answering(case: impl Fn(&mut Answering) -> Result<()>) {
    pin();
    for forwarding in [Forwarding::Stack, Forwarding::Redirect] {
        for v6 in [false, true] {
            let mut datapath = Datapath::load_with_echo(forwarding).unwrap();
            let (client, vip) = (host(v6, 1), host(v6, 2));
            let at = SocketAddr::new(vip, 80);
            datapath.service(at, proto::TCP, ServiceVerdict::Reject, &[]).unwrap();
            datapath.has_endpoints(vip, true).unwrap();
            case(&mut Answering { datapath, v6, client, vip }).unwrap();
        }
    }
}

#[test]
fn s_70_a_cluster_ip_with_an_endpoint_answers() {
    answering(|world| {
        let ping = Ping::new(world.client, world.vip);
        for len in [0, 1, 2, 56, 57, 1400] {
            let payload: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            world.answers("so much of it", &Ping { payload, ..ping.clone() });
        }
        for ttl in [1, 2, 64, 255] {
            world.answers("whatever its hops", &Ping { ttl, ..ping.clone() });
        }
        // Checksums about to run over, in the request or in the answer.
        let at = if world.v6 { 56 } else { 36 };
        let bare = Ping { payload: vec![0, 0], ..ping.clone() }.bytes();
        let sum = |field: u16| Sum::new().add_u16(!field.to_be());
        let now = sum(u16::from_be_bytes([bare[at], bare[at + 1]]));
        for wanted in [0, 1, 0xff, 0x100, 0x101, 0x7ff, 0x800, 0x801, 0xf7ff, 0xf800, 0xfeff, 0xff00, 0xfffe]
        {
            let payload = sum(wanted).difference(now).to_ne_bytes().to_vec();
            let ping = Ping { payload, ..ping.clone() };
            assert_eq!(ping.bytes()[at..at + 2], wanted.to_be_bytes());
            let outcome = world.datapath.run(Program::FromPod, &ping.bytes())?;
            assert_eq!(outcome.verdict, Verdict::Redirect);
            packet::verify(&outcome.packet)?;
        }
        Ok(())
    });
}

#[test]
fn an_answer_is_never_answered() {
    answering(|world| {
        let ping = Ping::new(world.client, world.vip);
        let reply = ping.reply().bytes();
        for program in Program::ALL {
            world.passes("an answer on its way", program, &reply);
        }
        let to_us = Ping { answer: true, ..ping.clone() };
        world.drops("an answer to a cluster IP", &to_us.bytes(), Reason::NotProxied);
        Ok(())
    });
}

#[test]
fn a_cluster_ip_without_an_endpoint_does_not_answer() {
    answering(|world| {
        let ping = Ping::new(world.client, world.vip);
        world.datapath.has_endpoints(world.vip, false)?;
        world.drops("no endpoint", &ping.bytes(), Reason::NotProxied);
        world.datapath.has_endpoints(world.vip, true)?;
        world.answers("an endpoint again", &ping);
        Ok(())
    });
}

#[test]
fn only_what_one_machine_asked_is_answered() {
    answering(|world| {
        let other = world.host(3);
        world.datapath.service(SocketAddr::new(other, 80), proto::UDP, ServiceVerdict::Reject, &[])?;
        world.datapath.range(world.host(128), if world.v6 { 121 } else { 25 })?;
        // A cluster IP sends nothing: two that ask each other would never come to an end.
        for spoofed in [world.vip, other, world.host(200)] {
            world.drops("a cluster IP asks", &Ping::new(spoofed, world.vip).bytes(), Reason::SpoofedSource);
        }
        let sources: &[&str] = if world.v6 {
            &["::", "::1", "ff02::1", "ff0e::7"]
        } else {
            &["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
        };
        for source in sources {
            let ping = Ping::new(source.parse()?, world.vip);
            world.drops(source, &ping.bytes(), Reason::NotProxied);
        }
        Ok(())
    });
}

#[test]
fn what_is_in_parts_or_has_more_headers_is_not_answered() {
    answering(|world| {
        let ping = Ping::new(world.client, world.vip).bytes();
        if world.v6 {
            for (name, place) in
                [("a first fragment", [0, 1]), ("a later one", [0, 8]), ("an atomic one", [0, 0])]
            {
                let bytes = extended(&ping, 44, &[0, 0, place[0], place[1], 1, 2, 3, 4]);
                world.drops(name, &bytes, Reason::NotProxied);
            }
            let options = extended(&ping, 60, &[0, 0, 1, 4, 0, 0, 0, 0]);
            world.drops("destination options", &options, Reason::NotProxied);
        } else {
            for (name, place) in [("a first fragment", [0x20, 0]), ("a later one", [0, 1])] {
                let mut bytes = ping.clone();
                bytes[20..22].copy_from_slice(&place);
                world.drops(name, &bytes, Reason::NotProxied);
            }
            let ping = Ping { options: vec![1; 4], ..Ping::new(world.client, world.vip) };
            world.drops("options", &ping.bytes(), Reason::NotProxied);
        }
        let header = if world.v6 { 54 } else { 34 };
        for length in 1..8_u8 {
            let mut bytes = ping[..header + usize::from(length)].to_vec();
            if world.v6 {
                bytes[19] = length;
            } else {
                bytes[17] = 20 + length;
            }
            world.drops("cut short", &bytes, Reason::Malformed);
        }
        Ok(())
    });
}

/// An IPv6 packet with one extension header, whose first byte is filled in.
fn extended(bytes: &[u8], number: u8, header: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut header = header.to_vec();
    header[0] = std::mem::replace(&mut bytes[20], number);
    let payload = u16::from_be_bytes([bytes[18], bytes[19]]) + header.len() as u16;
    bytes[18..20].copy_from_slice(&payload.to_be_bytes());
    bytes.splice(54..54, header);
    bytes
}

#[test]
fn other_addresses_answer_for_themselves() {
    answering(|world| {
        let (external, node) = (SocketAddr::new(world.host(9), 80), SocketAddr::new(world.host(10), 80));
        let service = world.datapath.empty_service();
        world.datapath.frontend(external, proto::TCP, service, FrontendKind::ExternalIp)?;
        world.datapath.node_address(node.ip())?;
        for address in [external.ip(), node.ip(), world.host(11)] {
            for program in Program::ALL {
                world.passes("not a cluster IP", program, &Ping::new(world.client, address).bytes());
            }
        }
        Ok(())
    });
}

#[test]
fn nothing_answers_unless_it_is_told_to() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.datapath.has_endpoints(flow.vip.ip(), true)?;
        let ping = Ping::new(flow.client.ip(), flow.vip.ip()).bytes();
        for program in [Program::FromPod, Program::FromNet] {
            world.always(&Step::dropped("a ping", &ping, Reason::NotProxied, None).at(program))?;
        }
        world.always(&Step::untouched("a ping leaves", Program::ToNet, &ping))
    });
}
