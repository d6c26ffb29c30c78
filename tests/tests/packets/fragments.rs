//! Datagrams in fragments (S-72): every piece goes where its first one went, and becomes the same piece of what the whole
//! datagram would have become.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_common::layout::{Client, FrontendKind, ServiceVerdict};
use lb_common::proto;
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::{Checksum, Packet};
use lb_tests::datapath::pieces::{piece_of, pieces, refusal};
use lb_tests::datapath::{BackendSpec, Program, Verdict};

/// A payload in which no two places look alike.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// The identification of a datagram.
const ID: u32 = 0x1234_5678;

/// Where clients and endpoints are, with what is between them.
const WAYS: [(FrontendKind, Client, Site); 6] = [
    (FrontendKind::ClusterIp, Client::Pod, Site::Here),
    (FrontendKind::ClusterIp, Client::Pod, Site::Beyond),
    (FrontendKind::NodePort, Client::Pod, Site::Here),
    (FrontendKind::NodePort, Client::Outside, Site::Here),
    (FrontendKind::NodePort, Client::Outside, Site::Beyond),
    (FrontendKind::LoadBalancer, Client::Outside, Site::Beyond),
];

#[test]
fn datagrams_in_pieces_go_through_every_hook_there_and_back() {
    everywhere(|world| {
        for (kind, client, site) in WAYS {
            let journey = world.journey(kind, client, site, 0)?;
            let masqueraded = journey.is_masqueraded();
            let mut id = ID;
            let mut run = |world: &mut World, steps: &[Step], size: usize| -> Result<()> {
                for step in steps {
                    id += 1;
                    let pieces = step.in_pieces(id, size);
                    world
                        .steps(&pieces)
                        .with_context(|| format!("{kind:?}, {client:?}, {site:?}, {size}"))?;
                }
                Ok(())
            };
            let flow = journey.flow;
            let opened = Event::Opened(flow.service, flow.backend);
            // A flow that begins with a datagram in pieces.
            let request = flow.request(world.first()).with_payload(&payload(2000));
            let comes_in = journey.comes_in("the first packet", &request).and(opened);
            run(world, &[comes_in], 1480)?;
            if masqueraded {
                run(world, &[journey.leaves("it leaves", &request)], 1480)?;
            }
            let response = journey.response(world.first() | world.middle()).with_payload(&payload(3000));
            if masqueraded {
                run(world, &[journey.comes_back("its answer", &response)], 1480)?;
            }
            run(world, &[journey.returns("its answer leaves", &response)], 1480)?;
            // And goes on in all sizes, between whole packets.
            for (len, size) in [(1473, 1480), (100, 24), (2000, 1480), (9000, 1480), (30_000, 3000)] {
                let request = flow.request(world.middle()).with_payload(&payload(len));
                let response = journey.response(world.middle()).with_payload(&payload(len));
                let mut steps = vec![journey.comes_in("in", &request)];
                if masqueraded {
                    steps.push(journey.leaves("leaves", &request));
                    steps.push(journey.comes_back("back", &response));
                }
                steps.push(journey.returns("returns", &response));
                run(world, &steps, size)?;
                let whole = flow.request(world.middle());
                world.always(&journey.comes_in("a whole one", &whole))?;
                run(world, &steps, size)?;
            }
        }
        Ok(())
    });
}

#[test]
fn datagrams_without_a_checksum_and_with_ip_options_go_in_pieces() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let (request, response) = (
            flow.request(world.middle()).with_payload(&payload(4000)),
            flow.response(world.middle()).with_payload(&payload(4000)),
        );
        let mut variants = Vec::new();
        if !world.is_tcp() {
            let without = |packet: &Packet| packet.with_checksum(Checksum::Absent);
            variants.push((without(&request), without(&response)));
        }
        if !world.v6 {
            let options = [vec![1; 23], vec![0]].concat();
            let with = |packet: &Packet| Packet { options: options.clone(), ..packet.clone() };
            variants.push((with(&request), with(&response)));
        }
        for (id, (request, response)) in variants.into_iter().enumerate() {
            world.steps(&flow.goes("there", &request).in_pieces(id as u32, 1480))?;
            world.steps(&flow.returns("back", &response).in_pieces(id as u32, 1480))?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_in_pieces() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let flow = world.flow_to(&backend)?;
        let client = SocketAddr::new(flow.endpoint.ip(), flow.client.port());
        let seen = SocketAddr::new(flow.vip.ip(), client.port());
        let there = |flags, len| {
            let packet = Packet::new(flow.protocol, client, flow.vip, flags).with_payload(&payload(len));
            let becomes = packet.between(seen, flow.endpoint).to_mac(packet.eth_src);
            let event = Event::Forward(flow.service, flow.backend, packet.ip_len());
            Step::carried("there", Program::FromPod, &packet, Verdict::Redirect, &becomes, event)
        };
        let back = |flags, len| {
            let packet = Packet::new(flow.protocol, flow.endpoint, seen, flags).with_payload(&payload(len));
            let becomes = packet.between(flow.vip, client).to_mac(packet.eth_src);
            let event = Event::Reply(flow.service, flow.backend, packet.ip_len());
            Step::carried("back", Program::FromPod, &packet, Verdict::Redirect, &becomes, event)
        };
        let opened = Event::Opened(flow.service, flow.backend);
        world.steps(&there(world.first(), 2000).and(opened).in_pieces(1, 1480))?;
        world.steps(&back(world.first() | world.middle(), 2000).in_pieces(2, 1480))?;
        for id in 3..6 {
            world.steps(&there(world.middle(), 5000).in_pieces(id, 1480))?;
            world.steps(&back(world.middle(), 5000).in_pieces(id, 1480))?;
        }
        Ok(())
    });
}

#[test]
fn datagrams_of_many_flows_come_interleaved() {
    everywhere(|world| {
        let flows = [world.flow()?, world.flow()?, world.flow()?];
        let mut rows = Vec::new();
        for (at, flow) in flows.iter().enumerate() {
            world.steps(&flow.handshake())?;
            let request = flow.request(world.middle()).with_payload(&payload(5000 + at * 100));
            // The same identification, between other addresses.
            rows.push(flow.goes("a piece", &request).in_pieces(ID, 1480));
            // The same addresses and another identification, at the same time.
            rows.push(flow.goes("another", &request).in_pieces(ID + 1, 1480));
        }
        for at in 0..4 {
            for row in &rows {
                world.step(&row[at])?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_new_datagram_may_have_the_identification_of_an_old_one() {
    everywhere(|world| {
        let first = world.flow()?;
        world.steps(&first.handshake())?;
        // Another flow between the same addresses.
        let client = SocketAddr::new(first.client.ip(), first.client.port() + 1);
        let second = lb_tests::datapath::case::Flow { client, ..first };
        world.steps(&second.handshake())?;
        for flow in [first, second, first] {
            let request = flow.request(world.middle()).with_payload(&payload(4000));
            world.steps(&flow.goes("a piece", &request).in_pieces(ID, 1480))?;
        }
        Ok(())
    });
}

#[test]
fn a_datagram_of_another_protocol_may_have_the_same_identification() {
    everywhere(|world| {
        if world.v6 {
            // There the identification alone tells datagrams apart (RFC 8200 4.5).
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = flow.request(world.middle()).with_payload(&payload(4000));
        let steps = flow.goes("a piece", &request).in_pieces(ID, 1480);
        let protocol = if world.is_tcp() { proto::UDP } else { proto::TCP };
        let other = Packet { protocol, ..request }.bytes();
        let refused = pieces(&other, ID, 1480);
        world.step(&steps[0])?;
        world.datapath.run(Program::FromPod, &refused[0])?;
        world.step(&steps[1])?;
        // The address has no port of the other protocol.
        let step = Step::dropped("the other's", &refused[1], Reason::UnknownPort, None);
        world.step(&step)?;
        world.step(&steps[2])
    });
}

#[test]
fn the_first_piece_is_refused_and_the_others_are_dropped() {
    everywhere(|world| {
        let vip = SocketAddr::new(world.address(), 80);
        let client = SocketAddr::new(world.address(), 40_000);
        let service = world.datapath.service(vip, world.protocol, ServiceVerdict::Reject, &[])?;
        let unknown = SocketAddr::new(vip.ip(), 81);
        for (dst, reason, service) in
            [(vip, Reason::NoEndpoint, Some(service)), (unknown, Reason::UnknownPort, None)]
        {
            let packet = Packet::new(world.protocol, client, dst, world.first()).with_payload(&payload(4000));
            let pieces = pieces(&packet.bytes(), ID, 1480);
            let mut step = Step::refused("the first", &packet, reason, service);
            step.becomes = refusal(&step.becomes, &pieces[0]);
            step.packet = pieces[0].clone();
            world.step(&step)?;
            for piece in &pieces[1..] {
                let step =
                    Step { becomes: piece.clone(), packet: piece.clone(), verified: false, ..step.clone() };
                world.step(&Step { name: "another", verdict: Verdict::Drop, ..step })?;
            }
        }
        Ok(())
    });
}

#[test]
fn pieces_of_others_leave_as_they_came() {
    everywhere(|world| {
        let flow = world.flow()?;
        let before = world.datapath.entries()?.len();
        let pod = SocketAddr::new(world.address(), 80);
        let packet = flow.request(world.middle()).with_payload(&payload(4000)).between(flow.client, pod);
        for (id, program) in Program::ALL.into_iter().enumerate() {
            for piece in pieces(&packet.bytes(), id as u32, 1480) {
                world.always(&Step::untouched("to a pod", program, &piece))?;
            }
        }
        // To a Service's address they are nobody's on the way into a pod.
        let packet = flow.request(world.middle()).with_payload(&payload(4000));
        for piece in pieces(&packet.bytes(), ID, 1480) {
            world.always(&Step::untouched("into a pod", Program::ToPod, &piece))?;
        }
        assert_eq!(
            world.datapath.entries()?.len(),
            before,
            "an entry for a flow that is none of our business"
        );
        Ok(())
    });
}

#[test]
fn pieces_may_overlap_and_come_again() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = flow.request(world.middle()).with_payload(&payload(4000));
        let step = flow.goes("a piece", &request);
        let spans =
            [(0, 1480), (1472, 2000), (0, 1480), (24, 64), (1472, 2000), (0, 64), (1480, 4008), (4000, 4008)];
        for (from, to) in spans {
            let (packet, becomes) =
                (piece_of(&step.packet, ID, from, to), piece_of(&step.becomes, ID, from, to));
            let len = (packet.len() - 14) as u64;
            let events = vec![Event::Forward(flow.service, flow.backend, len)];
            world.step(&Step { packet, becomes, events, verified: false, ..step.clone() })?;
        }
        Ok(())
    });
}

#[test]
fn a_first_piece_without_the_ports_is_malformed() {
    everywhere(|world| {
        let flow = world.flow()?;
        let request = flow.request(world.middle()).with_payload(&payload(100)).bytes();
        // Eight bytes of TCP are not all of its header (RFC 1858); UDP's header is no longer than that.
        if world.is_tcp() {
            let tiny = piece_of(&request, ID, 0, 8);
            world.always(&Step::dropped("tiny", &tiny, Reason::Malformed, None))?;
            return Ok(());
        }
        world.steps(&flow.handshake())?;
        let packet = flow.request(0).with_payload(&payload(100));
        world.steps(&flow.goes("as small as can be", &packet).in_pieces(ID, 8))
    });
}

#[test]
fn a_datagram_stays_where_its_first_piece_went() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let flow = world.flow_to(&backend)?;
        world.steps(&flow.handshake())?;
        let request = flow.request(world.middle()).with_payload(&payload(4000));
        let steps = flow.goes("a piece", &request).in_pieces(ID, 1480);
        world.step(&steps[0])?;
        // The endpoint stops serving between two pieces.
        let gone = BackendSpec { flags: 0, interface: 0, ..backend };
        world.datapath.set_backend(flow.backend, flow.service, &gone)?;
        world.datapath.advance_epoch()?;
        if world.is_tcp() || !flow.direct {
            let stack = lb_tests::datapath::case::Flow { direct: false, ..flow };
            let steps = stack.goes("a piece", &request).in_pieces(ID, 1480);
            world.steps(&steps[1..])?;
        }
        Ok(())
    });
}

#[test]
fn a_sum_that_the_device_made_stays_right() {
    everywhere(|world| {
        for (kind, client, site) in WAYS {
            let journey = world.journey(kind, client, site, 0)?;
            if client == Client::Pod {
                continue;
            }
            world.steps(&journey.handshake())?;
            let request = journey.flow.request(world.middle()).with_payload(&payload(3000));
            let response = journey.response(world.middle()).with_payload(&payload(3000));
            let steps = [journey.comes_in("in", &request), journey.comes_back("back", &response)];
            for step in steps.iter().flat_map(|step| step.in_pieces(ID, 1480)) {
                if step.program != Program::FromNet {
                    continue;
                }
                let Some(outcome) =
                    world.datapath.run_summed(step.program, &step.packet).context(step.name)?
                else {
                    return Ok(());
                };
                assert_eq!(outcome.packet, step.becomes);
            }
        }
        Ok(())
    });
}
