//! Transport checksums: complete, not completed yet, absent, and the values that look like one another.

use anyhow::{Context as _, Result};
use lb_common::layout::{Client, FrontendKind, Policy};
use lb_tests::datapath::Program;
use lb_tests::datapath::case::{Flow, Step, World, everywhere};
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::{Checksum, Packet};

/// The transport checksum field of a packet, as it lies in memory.
fn field(packet: &Packet) -> u16 {
    let bytes = packet.bytes();
    let header = 14 + if packet.src.is_ipv6() { 40 } else { 20 + packet.options.len() };
    let at = header + if packet.protocol == 6 { 16 } else { 6 };
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// The packet with a first word of payload for which `wanted` holds.
fn search(packet: &Packet, wanted: impl Fn(&Packet) -> bool) -> Packet {
    (0..=u16::MAX)
        .map(|word| packet.with_payload(&[&word.to_be_bytes()[..], b"rest"].concat()))
        .find(wanted)
        .expect("one word in 65536 makes any sum")
}

/// A packet with a complete checksum that looks like the sum over its pseudo header.
fn lookalike(packet: &Packet) -> Packet {
    let partial = |packet: &Packet| packet.with_checksum(Checksum::Partial);
    search(packet, |packet| field(packet) == field(&partial(packet)))
}

fn both(world: &mut World, flow: &Flow, change: impl Fn(&Packet) -> Packet) -> Result<()> {
    let (request, response) = (change(&flow.request(world.middle())), change(&flow.response(world.middle())));
    world.always(&flow.goes("a request", &request))?;
    world.always(&flow.returns("a response", &response))?;
    world.always(&flow.returns_early("a response at the endpoint's device", &response))
}

#[test]
fn an_absent_checksum_stays_absent() {
    everywhere(|world| {
        if world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        both(world, &flow, |packet| packet.with_checksum(Checksum::Absent))
    });
}

#[test]
fn a_checksum_that_becomes_zero_is_not_taken_for_an_absent_one() {
    everywhere(|world| {
        if world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = search(&flow.request(0), |packet| field(&flow.translated(packet)) == 0xffff);
        world.always(&flow.goes("a request", &request))?;
        let turned = |packet: &Packet| packet.between(flow.vip, flow.client);
        let response = search(&flow.response(0), |packet| field(&turned(packet)) == 0xffff);
        world.always(&flow.returns("a response", &response))
    });
}

#[test]
fn a_complete_checksum_that_looks_like_an_uncompleted_one_is_not_taken_for_it() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        both(world, &flow, Packet::clone)?;
        both(world, &flow, lookalike)?;
        both(world, &flow, Packet::clone)?;
        // Also when the flow never carried any other.
        let flow = world.flow()?;
        let (request, response) =
            (lookalike(&flow.request(world.middle())), lookalike(&flow.response(world.middle())));
        world.step(&flow.opens("the first packet", &request))?;
        world.always(&flow.returns("its answer", &response))?;
        world.always(&flow.goes("a request", &request))
    });
}

#[test]
fn an_uncompleted_checksum_stays_uncompleted() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let partial = |packet: Packet| packet.with_checksum(Checksum::Partial);
        let steps = |world: &World| -> Vec<Step> {
            let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
            vec![
                flow.goes("a request", &partial(request)),
                flow.returns("a response", &partial(response.clone())),
                flow.returns_early("a response at the endpoint's device", &partial(response)),
            ]
        };
        // Test runs hand no packet to a program whose checksum is not completed, so the tables find each complete.
        // The flow cache judges by the field alone, once it is told that the flow never carried a complete one.
        let all = steps(world);
        for step in &all {
            world.datapath.run(step.program, &step.packet)?;
        }
        world.datapath.forget_complete_checksums()?;
        for _ in 0..2 {
            world.steps(&all)?;
        }
        // Super-packets as a pod's stack makes them.
        let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
        let large = |packet: &Packet| partial(packet.with_payload(&[7; 1300]));
        for _ in 0..2 {
            world.step(&flow.goes("a super-packet", &large(&request)).in_segments(13))?;
            world.step(&flow.returns("a super-packet back", &large(&response)).in_segments(13))?;
        }
        for payload in [0, 1, 2, 900, 1400] {
            let request = partial(flow.request(world.middle()).with_payload(&vec![0xa5; payload]));
            world.step(&flow.goes("a request", &request))?;
            assert!(world.datapath.run(Program::FromPod, &request.bytes()).is_ok());
        }
        Ok(())
    });
}

#[test]
fn a_super_packet_with_a_complete_checksum_is_left_to_the_kernel_and_counts_as_its_segments() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
        for len in [101, 500, 1400] {
            let large = |packet: &Packet| packet.with_payload(&vec![3; len]);
            let segments = len.div_ceil(100) as u32;
            world.always(&flow.goes("there", &large(&request)).in_segments(segments))?;
            world.always(&flow.returns("back", &large(&response)).in_segments(segments))?;
            let early = flow.returns_early("back at the endpoint's device", &large(&response));
            world.always(&early.in_segments(segments))?;
        }
        Ok(())
    });
}

#[test]
fn the_sum_that_a_network_device_made_stays_right() {
    everywhere(|world| {
        for (kind, flags) in [
            (FrontendKind::ClusterIp, 0),
            (FrontendKind::NodePort, 0),
            (FrontendKind::NodePort, Policy::PRESERVE_SOURCE),
        ] {
            let journey = world.journey(kind, Client::Outside, Site::Beyond, flags)?;
            world.steps(&journey.handshake())?;
            let middle = world.middle();
            for payload in [&b""[..], b"x", b"some payload", &[0x5a; 1400]] {
                let request = journey.flow.request(middle).with_payload(payload);
                let response = journey.response(middle).with_payload(payload);
                // What comes in from the network, both ways; and what the tables and then the flow cache make of it.
                let steps =
                    [journey.comes_in("a request", &request), journey.comes_back("a response", &response)];
                for step in &steps {
                    for turn in ["by the tables", "by the flow cache", "by the flow cache"] {
                        if turn == "by the tables" {
                            world.datapath.advance_epoch()?;
                        }
                        let what = || format!("{} {turn}, {} bytes", step.name, payload.len());
                        assert_eq!(step.program, Program::FromNet);
                        let run = world.datapath.run_summed(step.program, &step.packet).with_context(what)?;
                        let Some(outcome) = run else {
                            // Linux before 6.17 has no such test runs.
                            return Ok(());
                        };
                        assert_eq!(outcome.packet, step.becomes, "{}", what());
                    }
                }
            }
        }
        Ok(())
    });
}
