//! ICMP errors about translated packets (S-71): byte for byte, at every hook, and that they prove nothing.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::layout::{Client, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::tcp::{ACK, FIN, RST};
use lb_common::proto::{SCTP, TCP, UDP};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{BACKEND_MAC, Flow, Step, World, everywhere_with};
use lb_tests::datapath::icmp::{Error, KINDS};
use lb_tests::datapath::journey::{Journey, Site, node};
use lb_tests::datapath::packet::{Checksum, Packet};
use lb_tests::datapath::{BackendSpec, Program, Verdict};

fn everywhere(case: impl Fn(&mut World) -> Result<()>) {
    everywhere_with(&[TCP, UDP, SCTP], case);
}

/// An error that becomes another one, uncounted.
fn becomes(name: &'static str, program: Program, error: &Error, verdict: Verdict, other: &Error) -> Step {
    let untouched = Step::untouched(name, program, &error.bytes());
    Step { verdict, becomes: other.bytes(), verified: true, ..untouched }
}

/// An error that is none of our business, here.
fn untouched(name: &'static str, program: Program, error: &Error) -> Step {
    Step { verified: true, ..Step::untouched(name, program, &error.bytes()) }
}

/// What the client sent, as it is behind the translation.
fn sent(flow: &Flow, world: &World) -> Packet {
    flow.request(world.middle()).with_payload(&[0x5a; 600])
}

/// What the endpoint sent, as it is before its translation.
fn answered(flow: &Flow, world: &World) -> Packet {
    flow.response(world.middle()).with_payload(&[0xa5; 600])
}

#[test]
fn every_kind_of_error_about_a_request_names_the_service_to_the_client() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = sent(&flow, world);
        let translated = request.between(flow.client, flow.endpoint);
        for kind in 0..KINDS.len() {
            let error = Error::new(router, kind, &translated);
            let turned = error.becomes(router, flow.client.ip(), &request);
            world.step(&untouched("comes in", Program::FromNet, &error))?;
            world.always(&becomes("at the client", Program::ToPod, &error, Verdict::Pass, &turned))?;
            // From the endpoint itself, whose address is the Service's to the client.
            let error = Error::new(flow.endpoint.ip(), kind, &translated);
            let turned = error.becomes(flow.vip.ip(), flow.client.ip(), &request);
            world.always(&becomes("at the client", Program::ToPod, &error, Verdict::Pass, &turned))?;
            let early = if flow.redirects {
                let turned = turned.to_mac(request.eth_src);
                becomes("at the endpoint", Program::FromPod, &error, Verdict::Redirect, &turned)
            } else {
                untouched("at the endpoint", Program::FromPod, &error)
            };
            world.always(&early)?;
            // Once turned it is nobody's to be turned again.
            world.always(&untouched("again", Program::ToPod, &turned))?;
        }
        Ok(())
    });
}

#[test]
fn every_kind_of_error_about_an_answer_reaches_the_endpoint_that_sent_it() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let answer = answered(&flow, world);
        let turned = answer.between(flow.vip, flow.client);
        let (verdict, mac) =
            if flow.direct { (Verdict::Redirect, BACKEND_MAC) } else { (Verdict::Pass, [2, 0, 0, 0, 0, 6]) };
        for kind in 0..KINDS.len() {
            for from in [flow.client.ip(), router] {
                let error = Error::new(from, kind, &turned);
                let there = error.becomes(from, flow.endpoint.ip(), &answer).to_mac(mac);
                world.always(&becomes("at the client", Program::FromPod, &error, verdict, &there))?;
                world.always(&untouched("at the endpoint", Program::ToPod, &there))?;
                world.always(&untouched("leaves", Program::ToNet, &there))?;
            }
        }
        Ok(())
    });
}

/// Every way that leads through an address of the node, and those that do not from outside.
fn journeys(world: &mut World) -> Result<Vec<Journey>> {
    let mut journeys = Vec::new();
    for site in [Site::Here, Site::Beyond] {
        for client in [Client::Outside, Client::Pod] {
            journeys.push(world.journey(FrontendKind::NodePort, client, site, 0)?);
        }
        let keeps = Policy::PRESERVE_SOURCE;
        journeys.push(world.journey(FrontendKind::LoadBalancer, Client::Outside, site, keeps)?);
        journeys.push(world.journey(FrontendKind::ClusterIp, Client::Outside, site, 0)?);
    }
    Ok(journeys)
}

/// An error about a request, from where it is in the middle to the client: packets it quotes there, behind the entrance and
/// in front of it.
fn requests(world: &World, journey: &Journey) -> [Packet; 3] {
    let request = sent(&journey.flow, world);
    let inside = request.between(journey.flow.client, journey.flow.endpoint);
    [inside.between(journey.source, journey.flow.endpoint), inside, request]
}

#[test]
fn errors_about_masqueraded_requests_are_turned_back_in_two_steps() {
    everywhere(|world| {
        let router = world.address();
        for journey in journeys(world)? {
            world.steps(&journey.handshake())?;
            let (_, arrives) = journey.far_side();
            let flow = &journey.flow;
            let [seen, inside, request] = requests(world, &journey);
            for kind in 0..KINDS.len() {
                for (from, shown) in [(router, router), (flow.endpoint.ip(), flow.vip.ip())] {
                    let error = Error::new(from, kind, &seen);
                    let first = error.becomes(from, flow.client.ip(), &inside);
                    world.always(&becomes("comes back", arrives, &error, Verdict::Pass, &first))?;
                    let second = error.becomes(shown, flow.client.ip(), &request);
                    world.always(&becomes("leaves", journey.exit(), &first, Verdict::Pass, &second))?;
                }
                // The node itself is a router, between both steps.
                let node = node(world);
                let error = Error::new(node, kind, &inside);
                let turned = error.becomes(node, flow.client.ip(), &request);
                world.always(&becomes("of the node", journey.exit(), &error, Verdict::Pass, &turned))?;
            }
        }
        Ok(())
    });
}

#[test]
fn errors_about_masqueraded_answers_reach_the_endpoint_in_two_steps() {
    everywhere(|world| {
        let router = world.address();
        for journey in journeys(world)? {
            world.steps(&journey.handshake())?;
            let (leaves, _) = journey.far_side();
            let flow = &journey.flow;
            let seen = journey.response(world.middle()).with_payload(&[0xa5; 600]);
            let inside = seen.between(flow.endpoint, flow.client);
            let returned = seen.between(flow.vip, flow.client);
            for kind in 0..KINDS.len() {
                for (from, shown) in [(router, router), (flow.client.ip(), journey.source.ip())] {
                    let error = Error::new(from, kind, &returned);
                    let first = error.becomes(from, flow.endpoint.ip(), &inside);
                    world.always(&becomes("comes in", journey.entrance(), &error, Verdict::Pass, &first))?;
                    let second = error.becomes(shown, flow.endpoint.ip(), &seen);
                    world.always(&becomes("leaves", leaves, &first, Verdict::Pass, &second))?;
                }
                let node = node(world);
                let error = Error::new(node, kind, &inside);
                let turned = error.becomes(node, flow.endpoint.ip(), &seen);
                world.always(&becomes("of the node", leaves, &error, Verdict::Pass, &turned))?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_reaches_itself_hears_of_its_own_errors_from_the_service() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let flow = world.flow_to(&backend)?;
        let client = SocketAddr::new(flow.endpoint.ip(), flow.client.port());
        let seen = SocketAddr::new(flow.vip.ip(), client.port());
        let request = Packet::new(flow.protocol, client, flow.vip, world.first());
        world.datapath.run(Program::FromPod, &request.bytes())?;
        let request = Packet { flags: world.middle(), ..request };
        let received = request.between(seen, flow.endpoint);
        let answer = Packet::new(flow.protocol, flow.endpoint, seen, world.middle());
        let returned = answer.between(flow.vip, client);
        for kind in 0..KINDS.len() {
            // About what it received as an endpoint, and about what it received as a client: to the Service, both times.
            for (about, by) in [(&received, &request), (&returned, &answer)] {
                let error = Error {
                    ethernet: (request.eth_src, request.eth_dst),
                    ..Error::new(client.ip(), kind, about)
                };
                assert_eq!(error.to, flow.vip.ip());
                let back = error.becomes(flow.vip.ip(), client.ip(), by).to_mac(request.eth_src);
                world.always(&becomes("at the pod", Program::FromPod, &error, Verdict::Redirect, &back))?;
                world.always(&untouched("into the pod", Program::ToPod, &back))?;
            }
        }
        Ok(())
    });
}

#[test]
fn quotes_of_every_length_with_options_and_extension_headers_are_translated() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = flow.request(world.middle()).with_payload(&[0x33; 1300]);
        let mut packets = vec![request.clone()];
        for len in [0, 1, 2, 3, 7] {
            packets.push(request.with_payload(&vec![0xff; len]));
        }
        if world.protocol == UDP {
            packets.push(request.with_checksum(Checksum::Absent));
        }
        if world.protocol == SCTP {
            // Not computed yet.
            packets.push(request.with_checksum(Checksum::Partial));
        }
        if !world.v6 {
            for words in [1, 4, 10] {
                packets.push(Packet { options: vec![1; words * 4], ..request.clone() });
            }
        }
        let mut errors = Vec::new();
        for packet in &packets {
            let error = Error::new(router, 1, &packet.between(flow.client, flow.endpoint));
            for quoted in [8, 9, 10, 15, 16, 17, 18, 19, 20, 21, 28, 100, 548, 1232] {
                // A part of a checksum cannot be updated.
                if matches!((world.protocol, quoted), (TCP, 17) | (SCTP, 9 | 10)) {
                    continue;
                }
                errors.push((Error { quoted, ..error.clone() }, packet));
            }
            // The quote is filled up to 128 bytes, and an extension follows (RFC 4884).
            errors.push((Error { quoted: 20, rest: vec![0x20; 108], ..error.clone() }, packet));
            if !world.v6 {
                for words in [1, 6, 10] {
                    errors.push((Error { options: vec![1; words * 4], ..error.clone() }, packet));
                }
            } else {
                let transport = packet.protocol;
                // Hop-by-hop options, and destination options behind them; a routing header that is done with; fragments.
                let hop_by_hop = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[transport, 1, 1, 12], &[0; 12]].concat();
                let routing =
                    vec![transport, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8];
                let whole = vec![transport, 0, 0, 0, 9, 9, 9, 9];
                let first = vec![transport, 0, 0, 1, 9, 9, 9, 9];
                let mut chains = vec![(0, hop_by_hop), (43, routing), (44, whole)];
                if transport != SCTP {
                    chains.push((44, first));
                }
                for extensions in chains {
                    errors.push((Error { extensions: Some(extensions), ..error.clone() }, packet));
                }
            }
        }
        for (error, packet) in errors {
            let turned = error.becomes(router, flow.client.ip(), packet);
            world.step(&becomes("at the client", Program::ToPod, &error, Verdict::Pass, &turned))?;
        }
        Ok(())
    });
}

#[test]
fn an_error_about_a_first_fragment_is_translated_and_one_about_a_later_one_is_not() {
    everywhere(|world| {
        // Of what an SCTP fragment's checksum is, only the last one knows: it stays as it was.
        if world.v6 || world.protocol == SCTP {
            return Ok(());
        }
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = sent(&flow, world);
        let with = |error: &Error, field: u16| {
            let mut bytes = error.bytes();
            change(&mut bytes, 14 + 20 + 8 + 6, field);
            bytes
        };
        let error = Error::new(router, 1, &request.between(flow.client, flow.endpoint));
        let turned = error.becomes(router, flow.client.ip(), &request);
        let untouched = Step::untouched("first", Program::ToPod, &with(&error, 0x2000));
        world.step(&Step { becomes: with(&turned, 0x2000), verified: true, ..untouched })?;
        for field in [1, 0x2001, 0x1fff] {
            world.step(&Step::untouched("later", Program::ToPod, &with(&error, field)))?;
        }
        Ok(())
    });
}

/// Stores a word into the IPv4 header that an error quotes, whose header checksum stays right: both offset by offset. So the
/// ICMP checksum stays right, too.
fn change(bytes: &mut [u8], at: usize, value: u16) {
    let header = 14 + 20 + 8;
    let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let check = u16::from_be_bytes([bytes[header + 10], bytes[header + 11]]);
    let sum = u32::from(!check) + u32::from(!old) + u32::from(value);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    bytes[header + 10..header + 12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Offset of the ICMP header of an error without options.
fn icmp(world: &World) -> usize {
    if world.v6 { 54 } else { 34 }
}

#[test]
fn what_was_wrong_stays_wrong() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = sent(&flow, world);
        let error = Error::new(router, 0, &request.between(flow.client, flow.endpoint));
        let turned = error.becomes(router, flow.client.ip(), &request);
        let kind = icmp(world);
        // A byte of the ICMP header and one of the quoted payload: no checksum knows of them.
        for at in [kind + 7, error.bytes().len() - 1] {
            let broken = |error: &Error| {
                let mut bytes = error.bytes();
                bytes[at] ^= 0x55;
                bytes
            };
            let step = Step::untouched("broken", Program::ToPod, &broken(&error));
            world.step(&Step { becomes: broken(&turned), ..step })?;
        }
        Ok(())
    });
}

#[test]
fn a_devices_sum_over_an_error_stays_right() {
    everywhere(|world| {
        let router = world.address();
        for journey in journeys(world)? {
            world.steps(&journey.handshake())?;
            let [seen, inside, _] = requests(world, &journey);
            let error = Error::new(router, 1, &seen);
            let first = error.becomes(router, journey.flow.client.ip(), &inside);
            let outcome = world.datapath.run_summed(Program::FromNet, &error.bytes())?;
            let Some(outcome) = outcome else { return Ok(()) };
            if journey.site == Site::Beyond && journey.is_masqueraded() {
                assert_eq!(outcome.packet, first.bytes());
            }
        }
        Ok(())
    });
}

#[test]
fn an_error_changes_nothing_of_the_flow_it_is_about() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        let request = flow.request(world.first());
        let about = request.between(flow.client, flow.endpoint);
        let error = Error::new(router, 0, &about);
        let turned = error.becomes(router, flow.client.ip(), &request);
        let mut stages = vec![vec![flow.opens("the first packet", &request)]];
        stages.push(flow.handshake()[1..].to_vec());
        if world.is_tcp() {
            stages.push(vec![flow.goes("FIN", &flow.request(FIN | ACK))]);
            stages.push(vec![flow.goes("RST", &flow.request(RST))]);
        }
        for stage in stages {
            world.steps(&stage)?;
            for key in [flow.key(), flow.reply_key()] {
                world.datapath.age(&key, 7)?;
            }
            let before = world.datapath.values()?;
            for _ in 0..3 {
                world.step(&becomes("an error", Program::ToPod, &error, Verdict::Pass, &turned))?;
            }
            assert_eq!(world.datapath.values()?, before);
        }
        Ok(())
    });
}

#[test]
fn errors_about_flows_that_nobody_knows_are_dropped_at_a_service_and_pass_elsewhere() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let stranger = SocketAddr::new(world.address(), 40_000);
        let router = world.address();
        let dropped = |name, error: &Error, reason| Step::dropped(name, &error.bytes(), reason, None);
        // About an answer of the Service that it never gave.
        for dst in [stranger, SocketAddr::new(flow.client.ip(), flow.client.port() + 1)] {
            let never = Packet::new(world.protocol, flow.vip, dst, world.middle());
            for kind in 0..KINDS.len() {
                let error = Error::new(dst.ip(), kind, &never);
                world.step(&dropped("of a pod", &error, Reason::UnrelatedError))?;
                let from_net = dropped("from outside", &error, Reason::UnrelatedError);
                world.step(&from_net.at(Program::FromNet))?;
                world.step(&untouched("leaves", Program::ToNet, &error))?;
            }
        }
        // To a Service, about somebody else's packet: even one of a flow that there is.
        for about in [
            flow.request(0).between(flow.client, flow.endpoint),
            flow.request(0).between(stranger, flow.endpoint),
        ] {
            let error = Error { to: flow.vip.ip(), ..Error::new(router, 0, &about) };
            world.step(&dropped("not to its sender", &error, Reason::UnrelatedError))?;
            let error = Error { to: stranger.ip(), ..error };
            if about.src != stranger {
                world.step(&untouched("not to its sender", Program::ToPod, &error))?;
            }
        }
        // Between others.
        let error = Error::new(router, 0, &flow.request(0).between(stranger, flow.endpoint));
        for program in Program::ALL {
            world.step(&untouched("of others", program, &error))?;
        }
        // To an address of the Service range that no Service has.
        world.datapath.range(world.host(128), if world.v6 { 121 } else { 25 })?;
        let nobody = SocketAddr::new(world.host(200), 80);
        let error = Error::new(router, 0, &Packet::new(world.protocol, nobody, stranger, 0));
        world.step(&dropped("to nobody", &error, Reason::UnallocatedAddress))
    });
}

#[test]
fn quotes_that_tell_of_no_flow_are_not_translated() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let about = sent(&flow, world).between(flow.client, flow.endpoint);
        let answer = answered(&flow, world).between(flow.vip, flow.client);
        let (v6, icmp) = (world.v6, icmp(world));
        let ip = if v6 { 40 } else { 20 };
        let check = |world: &mut World, change: &dyn Fn(&mut Vec<u8>)| -> Result<()> {
            let mut bytes = Error::new(router, 0, &about).bytes();
            change(&mut bytes);
            world.step(&Step::untouched("about a request", Program::ToPod, &bytes))?;
            let mut bytes = Error::new(router, 0, &answer).bytes();
            change(&mut bytes);
            world.step(&Step::dropped("about an answer", &bytes, Reason::UnrelatedError, None))
        };
        // Shorter than eight bytes of the transport header: cut off, or said to be by the IP header.
        for len in [0, 1, 7, 8, 9, 8 + ip - 1, 8 + ip, 8 + ip + 4, 8 + ip + 7] {
            check(world, &|bytes| bytes.truncate(icmp + len.max(1)))?;
            if world.v6 && len == 0 {
                // A payload of 0 bytes is one that is not said.
                continue;
            }
            check(world, &|bytes| {
                let (at, said) = if v6 { (18, len) } else { (16, ip + len) };
                bytes[at..at + 2].copy_from_slice(&(said as u16).to_be_bytes());
            })?;
        }
        // Other versions, header lengths and protocols than are in the error.
        let quote = icmp + 8;
        let field = if world.v6 { 6 } else { 9 };
        for protocol in [0, 1, 2, 47, 50, 58, 136, 255] {
            check(world, &|bytes| bytes[quote + field] = protocol)?;
        }
        for first in if world.v6 { vec![0x00, 0x45, 0xff] } else { vec![0x00, 0x44, 0x60, 0xff] } {
            check(world, &|bytes| bytes[quote] = first)?;
        }
        Ok(())
    });
}

#[test]
fn messages_that_are_no_errors_are_left_alone_whatever_they_quote() {
    everywhere(|world| {
        let router = world.address();
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let about = sent(&flow, world).between(flow.client, flow.endpoint);
        let icmp = icmp(world);
        // Echo replies, redirects, timestamps; multicast listeners, router and neighbour discovery, redirects.
        let kinds: &[u8] = if world.v6 {
            &[129, 130, 131, 133, 134, 135, 136, 137, 143, 255]
        } else {
            &[0, 5, 9, 10, 13, 14, 40, 255]
        };
        for kind in kinds {
            let mut bytes = Error::new(router, 0, &about).bytes();
            bytes[icmp] = *kind;
            for program in Program::ALL {
                world.step(&Step::untouched("no error", program, &bytes))?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_endpoint_whose_way_is_not_known_hears_of_its_answers_through_the_stack() {
    everywhere(|world| {
        let backend = BackendSpec { interface: 0, ..world.endpoint(8080) };
        let flow = world.flow_to(&backend)?;
        world.steps(&flow.handshake())?;
        let answer = answered(&flow, world);
        let error = Error::new(flow.client.ip(), 1, &answer.between(flow.vip, flow.client));
        let there = error.becomes(flow.client.ip(), flow.endpoint.ip(), &answer);
        world.always(&becomes("at the client", Program::FromPod, &error, Verdict::Pass, &there))
    });
}

#[test]
fn a_refusal_of_a_service_is_not_taken_for_an_error_of_its_endpoint() {
    everywhere(|world| {
        let vip = SocketAddr::new(world.address(), 80);
        let client = SocketAddr::new(world.address(), 40_000);
        let service = world.datapath.service(vip, world.protocol, ServiceVerdict::Reject, &[])?;
        let packet = Packet::new(world.protocol, client, vip, world.first());
        world.step(&Step::refused("refused", &packet, Reason::NoEndpoint, Some(service)))?;
        world.step(&Step::untouched("the refusal", Program::ToPod, &packet.refusal()))
    });
}
