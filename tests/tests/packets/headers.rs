//! Whatever may stand between the Ethernet header and the ports: IPv4 options, IPv6 extension headers, tags of virtual LANs.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use etherparse::Ipv4Header;
use lb_common::layout::{Client, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::tcp::SYN;
use lb_common::reason::Reason;
use lb_tests::datapath::Program;
use lb_tests::datapath::case::{Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::{Checksum, ETH_LEN, Packet};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ENCRYPTED: u8 = 50;
const AUTHENTICATION: u8 = 51;
const NOTHING_MORE: u8 = 59;
const DESTINATION: u8 = 60;
const UDP_LITE: u8 = 136;

/// Headers to put in front of the transport: IPv4 options, or numbers and bytes of extension headers, whose first byte is
/// filled in.
#[derive(Clone, Debug)]
enum Headers {
    Options(Vec<u8>),
    Extensions(Vec<(u8, Vec<u8>)>),
}

/// An extension header of options: padding only.
fn options(number: u8, units: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; 8 + usize::from(units) * 8];
    bytes[1] = units;
    // PadN (RFC 8200 4.2) takes at most 257 bytes; the rest is Pad1.
    let padded = (bytes.len() - 4).min(255);
    (bytes[2], bytes[3]) = (1, padded as u8);
    (number, bytes)
}

fn routing(left: u8) -> (u8, Vec<u8>) {
    (ROUTING, vec![0, 0, 4, left, 0, 0, 0, 0])
}

fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let place = (offset * 8 + u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, 0, place[0], place[1], 0, 0, 0x12, 0x34])
}

/// Headers that are looked through.
fn carried(v6: bool) -> Vec<Headers> {
    if !v6 {
        // No operations; a record of routes; a router alert (RFC 2113).
        let record = [vec![7, 39, 4], vec![0; 36], vec![0]].concat();
        let alert = vec![0x94, 4, 0, 0];
        return [vec![1; 4], vec![1; 20], vec![1; 40], record, alert].map(Headers::Options).into();
    }
    [
        vec![options(HOP_BY_HOP, 0)],
        vec![options(DESTINATION, 0)],
        vec![routing(0)],
        // An atomic fragment is a whole packet (RFC 6946).
        vec![fragment(0, false)],
        vec![options(HOP_BY_HOP, 2), routing(0), fragment(0, false), options(DESTINATION, 1)],
        vec![options(DESTINATION, 31)],
        vec![options(DESTINATION, 3); 8],
    ]
    .map(Headers::Extensions)
    .into()
}

impl Headers {
    /// The packet with these headers.
    fn within(&self, packet: &[u8]) -> Vec<u8> {
        match self {
            Self::Options(options) => {
                let (header, _) = Ipv4Header::from_slice(&packet[ETH_LEN..]).expect("an IPv4 header");
                let mut header =
                    Ipv4Header { options: options.as_slice().try_into().expect("options"), ..header };
                header.total_len += options.len() as u16;
                header.header_checksum = header.calc_header_checksum();
                [&packet[..ETH_LEN], &header.to_bytes(), &packet[ETH_LEN + 20..]].concat()
            }
            Self::Extensions(extensions) => {
                let mut bytes = packet.to_vec();
                for (number, header) in extensions.iter().rev() {
                    let mut header = header.clone();
                    header[0] = std::mem::replace(&mut bytes[20], *number);
                    bytes.splice(ETH_LEN + 40..ETH_LEN + 40, header);
                }
                let payload = (bytes.len() - ETH_LEN - 40) as u16;
                bytes[18..20].copy_from_slice(&payload.to_be_bytes());
                bytes
            }
        }
    }

    /// The step with these headers in its packet.
    fn around(&self, step: &Step) -> Step {
        let (packet, becomes) = (self.within(&step.packet), self.within(&step.becomes));
        let more = (packet.len() - step.packet.len()) as u64;
        let longer = |event: &Event| match *event {
            Event::Forward(service, backend, len) => Event::Forward(service, backend, len + more),
            Event::Reply(service, backend, len) => Event::Reply(service, backend, len + more),
            event => event,
        };
        Step { packet, becomes, events: step.events.iter().map(longer).collect(), ..step.clone() }
    }
}

/// With each of the headers that are looked through.
fn with_each(world: &mut World, case: impl Fn(&mut World, &Headers) -> Result<()>) -> Result<()> {
    carried(world.v6)
        .iter()
        .try_for_each(|headers| case(world, headers).with_context(|| format!("{headers:02x?}")))
}

#[test]
fn flows_begin_and_go_on_with_any_headers() {
    everywhere(|world| {
        with_each(world, |world, headers| {
            let flow = world.flow()?;
            for step in flow.handshake() {
                world.step(&headers.around(&step))?;
            }
            let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
            for step in [
                flow.goes("a request", &request),
                flow.returns("an answer", &response),
                flow.returns_early("an answer at the endpoint's device", &response),
            ] {
                world.always(&headers.around(&step))?;
                // The flow's other packets are none the worse for it.
                world.always(&step).context("without")?;
                world.always(&headers.around(&step)).context("once more")?;
            }
            Ok(())
        })
    });
}

#[test]
fn flows_pass_every_hook_with_any_headers() {
    everywhere(|world| {
        with_each(world, |world, headers| {
            for client in [Client::Pod, Client::Outside] {
                for flags in [0, Policy::PRESERVE_SOURCE] {
                    let journey = world.journey(FrontendKind::NodePort, client, Site::Beyond, flags)?;
                    let middle = world.middle();
                    let steps =
                        [journey.handshake(), journey.request(middle), journey.answer(middle)].concat();
                    let steps: Vec<Step> = steps.iter().map(|step| headers.around(step)).collect();
                    world.steps(&steps).with_context(|| format!("{client:?}, policy {flags}"))?;
                }
            }
            Ok(())
        })
    });
}

#[test]
fn checksums_are_right_or_absent_behind_any_headers() {
    everywhere(|world| {
        // Test runs hand no packet to a program whose checksum is not completed: those are for the lab.
        let kinds: &[Checksum] =
            if world.is_tcp() { &[Checksum::Complete] } else { &[Checksum::Complete, Checksum::Absent] };
        with_each(world, |world, headers| {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            for checksum in kinds {
                let change = |packet: &Packet| packet.with_payload(b"odd payload").with_checksum(*checksum);
                let (request, response) =
                    (change(&flow.request(world.middle())), change(&flow.response(world.middle())));
                for step in [flow.goes("a request", &request), flow.returns("an answer", &response)] {
                    world.always(&headers.around(&step)).with_context(|| format!("{checksum:?}"))?;
                }
            }
            Ok(())
        })
    });
}

#[test]
fn refusals_quote_all_headers() {
    everywhere(|world| {
        with_each(world, |world, headers| {
            let vip = SocketAddr::new(world.address(), 80);
            let client = SocketAddr::new(world.address(), 40_000);
            let service = world.datapath.service(vip, world.protocol, ServiceVerdict::Reject, &[])?;
            for len in [0, 1, 100, 800] {
                let first =
                    Packet::new(world.protocol, client, vip, world.first()).with_payload(&vec![9; len]);
                for (packet, verified) in [(&first, true), (&first.with_checksum(Checksum::Partial), false)] {
                    let bytes = headers.within(&packet.bytes());
                    let becomes = packet.refusal_of(&bytes);
                    let plain = Step::refused("refused", packet, Reason::NoEndpoint, Some(service));
                    let step = Step { packet: bytes, becomes, verified, ..plain };
                    world.always(&step)?;
                    world.always(&step.at(Program::FromNet))?;
                }
            }
            Ok(())
        })
    });
}

#[test]
fn super_packets_are_carried_with_any_headers() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let mut all = carried(world.v6);
        if world.v6 {
            // What Linux gives super-packets over 64 KiB (RFC 2675), from 5.19 until it gave them nothing.
            all.push(Headers::Extensions(vec![(HOP_BY_HOP, vec![0, 0, 0xc2, 4, 0, 2, 0x11, 0x70])]));
            all.push(Headers::Extensions(Vec::new()));
        } else {
            all.push(Headers::Options(Vec::new()));
        }
        for headers in &all {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            let change = |packet: &Packet| packet.with_payload(&[5; 1300]);
            let (request, response) =
                (change(&flow.request(world.middle())), change(&flow.response(world.middle())));
            for step in [flow.goes("a request", &request), flow.returns("an answer", &response)] {
                let step = headers.around(&step).in_segments(13);
                world.always(&step).with_context(|| format!("{headers:02x?}"))?;
                let (packet, becomes) = (unsaid(&step.packet), unsaid(&step.becomes));
                let silent = Step { packet, becomes, verified: false, ..step };
                world.always(&silent).with_context(|| format!("over 64 KiB, {headers:02x?}"))?;
            }
        }
        Ok(())
    });
}

/// The packet with a length of 0 in its IP header, as super-packets over 64 KiB have.
fn unsaid(packet: &[u8]) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    if bytes[ETH_LEN] >> 4 == 6 {
        bytes[18..20].copy_from_slice(&[0, 0]);
        return bytes;
    }
    let (mut header, rest) = Ipv4Header::from_slice(&packet[ETH_LEN..]).expect("an IPv4 header");
    header.total_len = 0;
    header.header_checksum = header.calc_header_checksum();
    bytes.truncate(ETH_LEN);
    bytes.extend(header.to_bytes());
    bytes.extend(rest);
    bytes
}

/// A packet to a cluster IP is dropped for a reason where packets come in; elsewhere, and to anybody else, it passes.
fn stopped(
    world: &mut World,
    packet: &Packet,
    change: impl Fn(&Packet) -> Vec<u8>,
    reason: Reason,
) -> Result<()> {
    let pod = SocketAddr::new(world.address(), 80);
    let (to_service, to_pod) = (change(packet), change(&packet.between(packet.src, pod)));
    for program in [Program::FromPod, Program::FromNet] {
        world.always(&Step::dropped("to a cluster IP", &to_service, reason, None).at(program))?;
    }
    for program in [Program::ToPod, Program::ToNet] {
        world.always(&Step::untouched("too late", program, &to_service))?;
    }
    for program in Program::ALL {
        world.always(&Step::untouched("to a pod", program, &to_pod))?;
    }
    Ok(())
}

#[test]
fn headers_that_are_not_looked_through_pass_and_are_dropped_at_cluster_ips() {
    everywhere(|world| {
        if !world.v6 {
            return Ok(());
        }
        let flow = world.flow()?;
        let packet = flow.request(world.first());
        for extensions in [
            vec![options(DESTINATION, 32)],
            vec![options(DESTINATION, 15), options(DESTINATION, 15), options(DESTINATION, 0)],
            vec![options(DESTINATION, 0); 9],
            vec![options(DESTINATION, 0), options(HOP_BY_HOP, 0)],
            vec![options(AUTHENTICATION, 1)],
            vec![routing(1)],
            vec![fragment(0, false), fragment(0, false)],
            // Later fragments name the options, not the transport: none of it can be served.
            vec![fragment(0, true), options(DESTINATION, 0)],
        ] {
            let headers = Headers::Extensions(extensions);
            stopped(world, &packet, |packet| headers.within(&packet.bytes()), Reason::NotProxied)
                .with_context(|| format!("{headers:02x?}"))?;
        }
        assert!(world.datapath.entry(&flow.key())?.is_none());
        Ok(())
    });
}

#[test]
fn headers_that_end_too_early_are_malformed() {
    everywhere(|world| {
        if !world.v6 {
            return Ok(());
        }
        let flow = world.flow()?;
        let packet = flow.request(world.first());
        let least = if world.is_tcp() { 20 } else { 8 };
        for headers in carried(true) {
            let whole = headers.within(&packet.bytes());
            let behind = whole.len() - packet.bytes().len() + ETH_LEN + 40;
            for end in [41, 47, behind - 1, behind, behind + 3, behind + least - 1] {
                let end = end.max(ETH_LEN + 41);
                let cut = |packet: &Packet| {
                    let mut bytes = headers.within(&packet.bytes());
                    bytes.truncate(end);
                    bytes
                };
                // The IP header says that there is more, then that there is not.
                stopped(world, &packet, cut, Reason::Malformed)
                    .with_context(|| format!("{headers:02x?} to {end}"))?;
                let said = |packet: &Packet| {
                    let mut bytes = headers.within(&packet.bytes());
                    bytes[18..20].copy_from_slice(&((end - ETH_LEN - 40) as u16).to_be_bytes());
                    bytes
                };
                stopped(world, &packet, said, Reason::Malformed)
                    .with_context(|| format!("{headers:02x?}, said to end at {end}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn other_transports_pass_and_are_dropped_at_cluster_ips() {
    everywhere(|world| {
        let flow = world.flow()?;
        let packet = flow.request(world.first());
        let mut all = carried(world.v6);
        all.push(if world.v6 { Headers::Extensions(Vec::new()) } else { Headers::Options(Vec::new()) });
        for headers in all {
            for protocol in [UDP_LITE, ENCRYPTED, NOTHING_MORE, 47, 253] {
                let other = |packet: &Packet| {
                    let mut bytes = packet.bytes();
                    bytes[if packet.src.is_ipv6() { 20 } else { 23 }] = protocol;
                    headers.within(&bytes)
                };
                stopped(world, &packet, other, Reason::NotProxied)
                    .with_context(|| format!("protocol {protocol} behind {headers:02x?}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_in_a_virtual_lan_passes_until_it_is_out_of_it() {
    everywhere(|world| {
        let flow = world.flow()?;
        let refused = SocketAddr::new(flow.vip.ip(), 9);
        for packet in [flow.request(world.first()), Packet::new(6, flow.client, refused, SYN)] {
            // IEEE 802.1Q, 802.1ad around it, and what switches used for the same before that was a standard.
            for tags in [
                vec![0x8100_002a_u32],
                vec![0x8100_0000],
                vec![0x88a8_0007, 0x8100_002a],
                vec![0x8100_0007, 0x8100_002a],
                vec![0x9100_0007, 0x8100_002a],
            ] {
                let mut bytes = packet.bytes();
                bytes.splice(12..12, tags.iter().flat_map(|tag| tag.to_be_bytes()));
                for program in Program::ALL {
                    world.always(&Step::untouched("in a virtual LAN", program, &bytes))?;
                }
            }
        }
        assert!(world.datapath.entry(&flow.key())?.is_none());
        world.steps(&flow.handshake())
    });
}
