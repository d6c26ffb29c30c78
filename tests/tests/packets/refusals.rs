//! Refusals and drops at a Service's address (S-21 to S-23), and that each is counted once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use lb_common::layout::ServiceVerdict;
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::packet::{Checksum, Packet};
use lb_tests::datapath::{Program, Verdict};

/// A Service without backends: its index, and a packet to it.
fn empty(world: &mut World, verdict: ServiceVerdict) -> Result<(u32, Packet)> {
    let vip = SocketAddr::new(world.address(), 80);
    let client = SocketAddr::new(world.address(), 40_000);
    let service = world.datapath.service(vip, world.protocol, verdict, &[])?;
    Ok((service, Packet::new(world.protocol, client, vip, world.first())))
}

#[test]
fn a_service_without_endpoints_refuses() {
    everywhere(|world| {
        let (service, packet) = empty(world, ServiceVerdict::Reject)?;
        let refused = |name, packet: &Packet| Step::refused(name, packet, Reason::NoEndpoint, Some(service));
        world.always(&refused("the first packet", &packet))?;
        for len in [0, 1, 7, 8, 9, 12, 13, 20, 28, 100, 575, 1400] {
            let payload: Vec<u8> = (0..len).map(|at| (at * 31) as u8).collect();
            let packet = packet.with_payload(&payload);
            world.always(&refused("a payload", &packet))?;
            if !world.v6 {
                for words in [1, 2, 5, 10] {
                    let options = vec![1; words * 4];
                    world.always(&refused("options", &Packet { options, ..packet.clone() }))?;
                }
            }
        }
        let large = refused("a super-packet", &packet.with_payload(&[7; 1300]));
        world.always(&large.in_segments(13))?;
        for ttl in [1, 2, 255] {
            world.always(&refused("whatever its hops", &Packet { ttl, ..packet.clone() }))?;
        }
        if world.is_tcp() {
            for flags in [SYN, ACK, FIN | ACK, SYN | ACK] {
                world.always(&refused("flags", &Packet { flags, ..packet.clone() }))?;
            }
        } else {
            world.always(&refused("no checksum", &packet.with_checksum(Checksum::Absent)))?;
        }
        // The device completes the quoted checksum on the way, and the refusal's is right for that.
        let partial = packet.with_payload(b"to be completed").with_checksum(Checksum::Partial);
        world.always(&Step { verified: false, ..refused("an uncompleted checksum", &partial) })?;
        let entries = world.datapath.entries()?;
        assert!(entries.iter().all(|entry| entry.key.dst != packet.dst), "a refused packet left an entry");
        Ok(())
    });
}

#[test]
fn a_refusal_is_what_the_standards_say() {
    everywhere(|world| {
        let (_, packet) = empty(world, ServiceVerdict::Reject)?;
        let packet = packet.with_payload(&[7; 600]);
        let outcome = world.datapath.run(Program::FromPod, &packet.bytes())?;
        assert_eq!(outcome.verdict, Verdict::Redirect);
        assert_eq!(outcome.packet[..6], packet.eth_src);
        assert_eq!(outcome.packet[6..12], packet.eth_dst);
        let sliced = SlicedPacket::from_ethernet(&outcome.packet)?;
        let (src, dst): (IpAddr, IpAddr) = match sliced.net.expect("an IP header") {
            NetSlice::Ipv4(ip) => {
                assert_eq!(ip.header().ttl(), 64);
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            NetSlice::Ipv6(ip) => {
                assert_eq!(ip.header().hop_limit(), 64);
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((src, dst), (packet.dst.ip(), packet.src.ip()));
        let (kind, quote) = match sliced.transport.expect("a transport header") {
            TransportSlice::Icmpv4(icmp) => ((icmp.type_u8(), icmp.code_u8()), icmp.payload().to_vec()),
            TransportSlice::Icmpv6(icmp) => ((icmp.type_u8(), icmp.code_u8()), icmp.payload().to_vec()),
            other => panic!("{other:?}"),
        };
        // RFC 792: type 3, code 3. RFC 4443 3.1: type 1, code 4.
        assert_eq!(kind, if world.v6 { (1, 4) } else { (3, 3) });
        // The header that was refused, with the TCP sequence number that the client's kernel looks at.
        let header = if world.v6 { 40 } else { 20 };
        let transport = if world.is_tcp() { 20 } else { 8 };
        assert_eq!(quote, packet.bytes()[14..14 + header + transport]);
        if world.is_tcp() {
            assert_eq!(quote[header + 4..header + 8], packet.sequence.to_be_bytes());
        }
        Ok(())
    });
}

#[test]
fn some_senders_are_never_answered() {
    everywhere(|world| {
        let (service, packet) = empty(world, ServiceVerdict::Reject)?;
        let from = |sender: IpAddr| packet.between(SocketAddr::new(sender, 40_000), packet.dst).bytes();
        let impossible: &[IpAddr] = if world.v6 {
            &[IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1))]
        } else {
            &[
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V4(Ipv4Addr::new(0, 1, 2, 3)),
                IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
                IpAddr::V4(Ipv4Addr::BROADCAST),
            ]
        };
        for sender in impossible {
            world.always(&Step::dropped("nobody", &from(*sender), Reason::SpoofedSource, Some(service)))?;
        }
        if !world.v6 {
            // Reserved (RFC 1112 4): hosts that have such an address by their own decision do without refusals.
            let packet = from(Ipv4Addr::new(240, 0, 0, 1).into());
            let step = Step::dropped("reserved", &packet, Reason::RefusalForbidden, None);
            world.always(&step.and(Event::Refused(service)))?;
        }
        Ok(())
    });
}

#[test]
fn a_service_with_only_distant_endpoints_drops() {
    everywhere(|world| {
        let (service, packet) = empty(world, ServiceVerdict::Drop)?;
        world.always(&Step::dropped("a packet", &packet.bytes(), Reason::NoLocalEndpoint, Some(service)))
    });
}

#[test]
fn a_port_that_no_service_has_is_refused() {
    everywhere(|world| {
        let flow = world.flow()?;
        let vip = SocketAddr::new(flow.vip.ip(), 81);
        let packet = flow.request(world.first()).between(flow.client, vip);
        world.always(&Step::refused("another port", &packet, Reason::UnknownPort, None))?;
        let protocol = if world.is_tcp() { 17 } else { 6 };
        let packet = Packet::new(protocol, flow.client, flow.vip, SYN & (protocol << 1));
        world.always(&Step::refused("another protocol", &packet, Reason::UnknownPort, None))
    });
}

#[test]
fn an_address_that_no_service_has_is_dropped() {
    everywhere(|world| {
        let (network, prefix) = (world.host(128), if world.v6 { 121 } else { 25 });
        world.datapath.range(network, prefix)?;
        let client = SocketAddr::new(world.address(), 40_000);
        for host in [128, 129, 200, 255] {
            let vip = SocketAddr::new(world.host(host), 80);
            let packet = Packet::new(world.protocol, client, vip, world.first());
            world.always(&Step::dropped("inside", &packet.bytes(), Reason::UnallocatedAddress, None))?;
            let echo = echo(&packet);
            world.always(&Step::dropped("a ping inside", &echo, Reason::UnallocatedAddress, None))?;
        }
        let outside = SocketAddr::new(world.host(127), 80);
        let packet = Packet::new(world.protocol, client, outside, world.first());
        world.always(&Step::untouched("outside", Program::FromPod, &packet.bytes()))?;
        // An address inside that a Service has is its own.
        let vip = SocketAddr::new(world.host(130), 80);
        let service = world.datapath.service(vip, world.protocol, ServiceVerdict::Reject, &[])?;
        let packet = Packet::new(world.protocol, client, vip, world.first());
        world.always(&Step::refused("allocated", &packet, Reason::NoEndpoint, Some(service)))
    });
}

/// An echo request between the same addresses.
fn echo(packet: &Packet) -> Vec<u8> {
    let udp = Packet { protocol: 17, options: Vec::new(), ..packet.clone() };
    let builder = etherparse::PacketBuilder::ethernet2(packet.eth_src, packet.eth_dst);
    let mut bytes = Vec::new();
    match (udp.src.ip(), udp.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let builder = builder.ipv4(src.octets(), dst.octets(), 64).icmpv4_echo_request(1, 2);
            builder.write(&mut bytes, b"ping").expect("an echo request");
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let builder = builder.ipv6(src.octets(), dst.octets(), 64).icmpv6_echo_request(1, 2);
            builder.write(&mut bytes, b"ping").expect("an echo request");
        }
        mixed => panic!("{mixed:?}"),
    }
    bytes
}

#[test]
fn a_ping_of_a_service_is_dropped_and_one_of_anything_else_is_not_touched() {
    everywhere(|world| {
        let flow = world.flow()?;
        let ping = echo(&flow.request(0));
        world.always(&Step::dropped("of a Service", &ping, Reason::NotProxied, None))?;
        let ping = echo(&flow.request(0).between(flow.client, flow.endpoint));
        world.always(&Step::untouched("of a pod", Program::FromPod, &ping))?;
        world.always(&Step::untouched("of this pod", Program::ToPod, &ping))
    });
}

#[test]
fn a_reset_of_an_unknown_flow_is_dropped() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        let reset = |flags| flow.request(flags).bytes();
        let step =
            |flags| Step::dropped("reset", &reset(flags), Reason::ResetWithoutFlow, Some(flow.service));
        world.always(&step(RST))?;
        world.always(&step(RST | ACK))?;
        assert!(world.datapath.entry(&flow.key())?.is_none());
        Ok(())
    });
}

#[test]
fn headers_that_are_cut_short_or_contradict_themselves_are_dropped() {
    everywhere(|world| {
        let flow = world.flow()?;
        let whole = flow.request(world.middle()).bytes();
        let ip = if world.v6 { 40 } else { 20 };
        let transport = if world.is_tcp() { 20 } else { 8 };
        let malformed = |bytes: &[u8]| Step::dropped("malformed", bytes, Reason::Malformed, None);
        for len in 14 + ip..14 + ip + transport {
            world.step(&malformed(&whole[..len]))?;
        }
        // The kernel runs no program on a frame with less than an IP header in it, but on one that says it is IP.
        for len in [ip - 1, 1] {
            assert!(world.datapath.run(Program::FromPod, &whole[..14 + len]).is_err());
        }
        // The IP header promises fewer bytes than a transport header has.
        for len in 1..transport {
            let mut bytes = whole.clone();
            let (at, len) = if world.v6 { (18, len) } else { (16, ip + len) };
            bytes[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
            world.step(&malformed(&bytes))?;
        }
        for first in
            if world.v6 { vec![0x00, 0x40, 0x50, 0xf0] } else { vec![0x00, 0x40, 0x44, 0x55, 0x60, 0xf5] }
        {
            let mut bytes = whole.clone();
            bytes[14] = first;
            world.step(&malformed(&bytes))?;
        }
        world.step(&flow.opens("the whole packet", &flow.request(world.middle())))
    });
}

#[test]
fn tables_that_contradict_themselves_drop() {
    everywhere(|world| {
        let flow = world.flow()?;
        let packet = flow.request(world.first());
        let step =
            Step::dropped("no backend", &packet.bytes(), Reason::TableInconsistent, Some(flow.service));
        for backend in [0, u32::MAX] {
            world.datapath.publish(flow.service, ServiceVerdict::Random, &[backend])?;
            world.always(&step)?;
        }
        world.datapath.publish(flow.service, ServiceVerdict::Unused, &[flow.backend])?;
        world.always(&step)?;
        world.datapath.publish(flow.service, ServiceVerdict::Random, &[flow.backend])?;
        world.steps(&flow.handshake())
    });
}
