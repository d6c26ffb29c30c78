//! Packets that are none of our business, and leave as they came.

use std::net::SocketAddr;

use lb_common::layout::ServiceVerdict;
use lb_common::proto::tcp::RST;
use lb_common::reason::Reason;
use lb_tests::datapath::Program;
use lb_tests::datapath::case::{Step, everywhere};
use lb_tests::datapath::packet::Packet;

/// The packet with another EtherType.
fn with_ether_type(packet: &Packet, ether_type: u16) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[12..14].copy_from_slice(&ether_type.to_be_bytes());
    bytes
}

/// The packet behind a VLAN tag.
fn in_vlan(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes.splice(12..12, [0x81, 0x00, 0x00, 0x2a]);
    bytes
}

/// The packet with another protocol in its IP header.
fn with_protocol(packet: &Packet, protocol: u8) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[if packet.src.is_ipv6() { 20 } else { 23 }] = protocol;
    bytes
}

fn arp() -> Vec<u8> {
    use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &[2, 0, 0, 0, 0, 1],
        &[10, 0, 0, 1],
        &[0; 6],
        &[10, 0, 0, 2],
    )
    .expect("lengths that agree");
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .arp(arp)
        .write(&mut bytes)
        .expect("an ARP request");
    bytes
}

#[test]
fn packets_of_others_leave_as_they_came() {
    everywhere(|world| {
        let flow = world.flow()?;
        let before = world.datapath.entries()?.len();
        let (vip, client) = (flow.vip, flow.client);
        let pod = SocketAddr::new(world.address(), 80);
        let middle = world.middle();
        let request = |dst| flow.request(middle).between(client, dst);
        let mut packets = vec![
            ("ARP", arp()),
            ("VLAN", in_vlan(&request(vip))),
            ("LLDP", with_ether_type(&request(vip), 0x88cc)),
            ("MPLS", with_ether_type(&request(vip), 0x8847)),
            ("to a pod", request(pod).bytes()),
            ("to an endpoint", request(flow.endpoint).bytes()),
            ("from a Service's address", flow.request(world.first()).between(vip, pod).bytes()),
            ("a reset to a pod", Packet { flags: RST, ..request(pod) }.bytes()),
        ];
        for protocol in [0, 1, 2, 4, 41, 43, 44, 47, 50, 51, 58, 59, 60, 112, 132, 136, 255] {
            packets.push(("another protocol to a pod", with_protocol(&request(pod), protocol)));
        }
        for (name, packet) in &packets {
            for program in [Program::FromPod, Program::ToPod] {
                world.always(&Step::untouched(name, program, packet))?;
            }
        }
        // To a Service's address they are nobody's on the way into a pod.
        for protocol in [1, 47, 58, 132] {
            let packet = with_protocol(&request(vip), protocol);
            world.always(&Step::untouched("another protocol into a pod", Program::ToPod, &packet))?;
        }
        world.always(&Step::untouched("a request into a pod", Program::ToPod, &request(vip).bytes()))?;
        assert_eq!(
            world.datapath.entries()?.len(),
            before,
            "an entry for a flow that is none of our business"
        );
        Ok(())
    });
}

#[test]
fn an_address_that_becomes_a_service_is_served_at_once() {
    everywhere(|world| {
        let pod = SocketAddr::new(world.address(), 80);
        let client = SocketAddr::new(world.address(), 40_000);
        let packet = Packet::new(world.protocol, client, pod, world.middle());
        world.always(&Step::untouched("before", Program::FromPod, &packet.bytes()))?;
        let service = world.datapath.service(pod, world.protocol, ServiceVerdict::Reject, &[])?;
        world.datapath.advance_epoch()?;
        world.always(&Step::refused("after", &packet, Reason::NoEndpoint, Some(service)))
    });
}

#[test]
fn the_same_flow_of_another_family_or_protocol_is_another_flow() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let other = Packet::new(if world.is_tcp() { 17 } else { 6 }, flow.endpoint, flow.client, 0);
        world.always(&Step::untouched("an answer of another protocol", Program::ToPod, &other.bytes()))
    });
}
