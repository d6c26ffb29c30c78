//! SCTP (S-73): ports are translated, the CRC stays right, associations begin, end and never move.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_common::conntrack::State;
use lb_common::layout::{BackendFlags, Client, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::SCTP;
use lb_common::reason::Reason;
use lb_common::sctp::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, LIVE, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};
use lb_tests::datapath::case::{Flow, Step, World, everywhere_with};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::{Checksum, Packet, sctp};
use lb_tests::datapath::{BackendSpec, Program, Verdict};

fn everywhere(case: impl Fn(&mut World) -> Result<()>) {
    everywhere_with(&[SCTP], case);
}

/// Data in both directions, at every device it passes.
fn goes_on(world: &mut World, flow: &Flow) -> Result<()> {
    let (request, response) = (flow.request(LIVE), flow.response(LIVE));
    world.always(&flow.goes("data", &request))?;
    world.always(&flow.returns("data back", &response))?;
    world.always(&flow.returns_early("data back at the endpoint's device", &response))
}

/// Another endpoint takes the place of the flow's, which stops serving or not. The flow as a new one would be.
fn replace(world: &mut World, flow: &Flow, serves_on: bool) -> Result<Flow> {
    let spec = world.endpoint(9090);
    let backend = world.datapath.backend(flow.service, &spec)?;
    world.datapath.publish(flow.service, ServiceVerdict::Random, &[backend])?;
    if !serves_on {
        let old = BackendSpec { endpoint: flow.endpoint, ..world.endpoint(0) };
        let flags = old.flags & !BackendFlags::SERVING;
        world.datapath.set_backend(flow.backend, flow.service, &BackendSpec { flags, ..old })?;
    }
    world.datapath.advance_epoch()?;
    Ok(Flow { backend, endpoint: spec.endpoint, ..*flow })
}

/// One packet of the client's (true) or the endpoint's.
fn pass(world: &mut World, flow: &Flow, (client, flags): (bool, u8)) -> Result<()> {
    world.step(&match client {
        true => flow.goes("a packet", &flow.request(flags)),
        false => flow.returns("a packet back", &flow.response(flags)),
    })
}

#[test]
fn packets_of_every_length_reach_the_endpoint_and_their_answers_come_back() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        goes_on(world, &flow)?;
        for len in (1..40).chain([255, 256, 257, 1000, 1400, 2047, 2048, 3000]) {
            let payload: Vec<u8> = (0..len).map(|at| (at * 31 + len) as u8).collect();
            let data = |packet: Packet| packet.with_payload(&payload);
            world.step(&flow.goes("data", &data(flow.request(LIVE))))?;
            world.step(&flow.returns("data back", &data(flow.response(LIVE))))?;
            world.step(&flow.returns_early("and early", &data(flow.response(LIVE))))?;
        }
        for flags in [0, LIVE, COOKIE_ECHO | LIVE] {
            world.step(&flow.goes("control", &flow.request(flags)))?;
            world.step(&flow.returns("control back", &flow.response(flags)))?;
        }
        Ok(())
    });
}

#[test]
fn options_and_bytes_behind_the_packet_are_no_part_of_the_checksum() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        if !world.v6 {
            for words in [1, 10] {
                let options = [vec![1; words * 4 - 1], vec![0]].concat();
                let request = Packet { options, ..flow.request(LIVE) };
                world.step(&flow.goes("with options", &request))?;
            }
        }
        // As Ethernet pads what is shorter than its least frame.
        let padded = |mut bytes: Vec<u8>| {
            bytes.extend([0xee; 9]);
            bytes
        };
        let request = flow.request(COOKIE_ACK);
        let step = flow.goes("a padded frame", &request);
        let (packet, becomes) = (padded(step.packet.clone()), padded(step.becomes.clone()));
        let events = vec![Event::Forward(flow.service, flow.backend, request.ip_len() + 9)];
        world.step(&Step { packet, becomes, events, ..step })
    });
}

#[test]
fn unchanged_ports_leave_the_checksum_alone() {
    everywhere(|world| {
        let backend = world.endpoint(80);
        let flow = world.flow_to(&backend)?;
        world.steps(&flow.handshake())?;
        goes_on(world, &flow)?;
        // Even one that is not computed: nothing asks what it is.
        let request = flow.request(LIVE).with_checksum(Checksum::Partial);
        world.step(&flow.goes("not computed yet", &request))
    });
}

#[test]
fn a_wrong_checksum_stays_as_wrong_as_it_was() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let step = flow.goes("data", &flow.request(LIVE));
        let at = 14 + if world.v6 { 40 } else { 20 } + 8;
        for bit in [0, 7, 8, 31] {
            let flip = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes[at + bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            let (packet, becomes) = (flip(&step.packet), flip(&step.becomes));
            world.step(&Step { packet, becomes, verified: false, ..step.clone() })?;
        }
        Ok(())
    });
}

#[test]
fn a_checksum_of_zero_is_one() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = sctp::with_checksum_of_zero(&flow.request(LIVE));
        assert_eq!(request.transport()[8..12], [0; 4]);
        world.always(&flow.goes("data", &request))?;
        let response = sctp::with_checksum_of_zero(&flow.response(LIVE));
        world.always(&flow.returns("data back", &response))
    });
}

#[test]
fn a_super_packet_has_no_checksum_yet() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        // Test runs hand no other packet to a program whose checksum is not computed.
        let large = |packet: Packet| packet.with_payload(&[7; 1300]).with_checksum(Checksum::Partial);
        world.always(&flow.goes("there", &large(flow.request(LIVE))).in_segments(13))?;
        world.always(&flow.returns("back", &large(flow.response(LIVE))).in_segments(13))
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
            for payload in [&b"x"[..], b"some payload", &[0x5a; 1400]] {
                let request = journey.flow.request(LIVE).with_payload(payload);
                let response = journey.response(LIVE).with_payload(payload);
                for step in [journey.comes_in("data", &request), journey.comes_back("data back", &response)] {
                    // The kernel compares the sum with the packet after the run (Linux 6.17).
                    let run = world.datapath.run_summed(step.program, &step.packet).context(step.name)?;
                    let Some(outcome) = run else { return Ok(()) };
                    assert_eq!(outcome.packet, step.becomes, "{}", step.name);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn associations_go_through_every_kind_of_frontend() {
    everywhere(|world| {
        for kind in [
            FrontendKind::ClusterIp,
            FrontendKind::NodePort,
            FrontendKind::ExternalIp,
            FrontendKind::LoadBalancer,
        ] {
            for client in [Client::Pod, Client::Outside] {
                for site in [Site::Here, Site::Beyond] {
                    for flags in [0, Policy::PRESERVE_SOURCE] {
                        let journey = world.journey(kind, client, site, flags)?;
                        let what = || format!("{kind:?} {client:?} {site:?} {flags}");
                        // What goes straight from pod to pod does not come by the other hooks.
                        let steps = if journey.flow.redirects {
                            journey.flow.handshake()
                        } else {
                            [journey.handshake(), journey.request(LIVE), journey.answer(LIVE)].concat()
                        };
                        world.steps(&steps).with_context(what)?;
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself() {
    everywhere(|world| {
        let flow = world.flow()?;
        let client = SocketAddr::new(flow.endpoint.ip(), flow.client.port());
        let seen = SocketAddr::new(flow.vip.ip(), client.port());
        let there = |flags| {
            let packet = Packet::new(SCTP, client, flow.vip, flags);
            let becomes = packet.between(seen, flow.endpoint).to_mac(packet.eth_src);
            let event = Event::Forward(flow.service, flow.backend, packet.ip_len());
            Step::carried("there", Program::FromPod, &packet, Verdict::Redirect, &becomes, event)
        };
        let back = |flags| {
            let packet = Packet::new(SCTP, flow.endpoint, seen, flags);
            let becomes = packet.between(flow.vip, client).to_mac(packet.eth_src);
            let event = Event::Reply(flow.service, flow.backend, packet.ip_len());
            Step::carried("back", Program::FromPod, &packet, Verdict::Redirect, &becomes, event)
        };
        world.step(&there(INIT).and(Event::Opened(flow.service, flow.backend)))?;
        for step in [back(INIT_ACK), there(COOKIE_ECHO), back(COOKIE_ACK), there(LIVE), back(LIVE)] {
            world.step(&step)?;
        }
        Ok(())
    });
}

#[test]
fn one_client_port_reaches_one_endpoint_through_two_services() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let first = world.flow_to(&backend)?;
        let second = Flow { client: first.client, ..world.flow_to(&backend)? };
        world.steps(&first.handshake())?;
        let request = second.request(INIT);
        let outcome = world.datapath.run(Program::FromPod, &request.bytes())?;
        let nat = world.datapath.entry(&second.key())?.expect("an entry of the second flow").becomes.src;
        assert_ne!(nat.port(), second.client.port());
        assert_eq!(outcome.packet, second.translated(&request).between(nat, second.endpoint).bytes());
        let response = Packet::new(SCTP, second.endpoint, nat, INIT_ACK);
        let becomes = response.between(second.vip, second.client);
        let event = Event::Reply(second.service, second.backend, response.ip_len());
        world.step(&Step::carried("back", Program::ToPod, &response, Verdict::Pass, &becomes, event))?;
        goes_on(world, &first)
    });
}

#[test]
fn the_state_of_an_association_is_in_its_entry() {
    use State::*;
    /// One packet: true for the client's, what it says, state afterwards.
    type Table = &'static [(bool, u8, State)];
    const OPENING: Table = &[
        (true, INIT, CookieWait),
        (false, INIT_ACK, CookieWait),
        (true, COOKIE_ECHO | LIVE, CookieEchoed),
        (false, COOKIE_ACK, Associated),
        (true, LIVE, Associated),
        (false, 0, Associated),
    ];
    const ENDS: &[Table] = &[
        &[
            (true, SHUTDOWN, ShutdownSent),
            (false, SHUTDOWN_ACK, ShutdownAckSent),
            (true, SHUTDOWN_COMPLETE, Dissolved),
        ],
        &[
            (false, SHUTDOWN, ShutdownReceived),
            (true, SHUTDOWN_ACK, ShutdownAckSent),
            (false, SHUTDOWN_COMPLETE, Dissolved),
        ],
        &[(true, ABORT, AbortedByClient), (false, LIVE, AbortedByClient), (true, LIVE, Associated)],
        &[(false, ABORT, AbortedByEndpoint), (true, LIVE, AbortedByEndpoint), (false, 0, Associated)],
        &[(true, SHUTDOWN_COMPLETE, Associated), (false, SHUTDOWN_ACK, Associated)],
        &[(true, INIT, Associated), (false, INIT_ACK, Associated), (true, COOKIE_ECHO, Associated)],
    ];
    everywhere(|world| {
        for end in ENDS {
            let flow = world.flow()?;
            for (number, (client, flags, state)) in OPENING.iter().chain(*end).enumerate() {
                if number == 0 {
                    world.step(&flow.opens("INIT", &flow.request(*flags)))?;
                } else {
                    pass(world, &flow, (*client, *flags))?;
                }
                let entry = world.datapath.entry(&flow.key())?.expect("an entry");
                assert_eq!(entry.state, *state, "after packet {number} of {end:?}");
            }
        }
        // Refused.
        let flow = world.flow()?;
        world.step(&flow.opens("INIT", &flow.request(INIT)))?;
        pass(world, &flow, (false, ABORT))?;
        assert_eq!(world.datapath.entry(&flow.key())?.expect("an entry").state, Dissolved);
        Ok(())
    });
}

#[test]
fn an_abort_behind_other_chunks_is_seen() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let packet = flow.response(LIVE);
        let step = flow.returns("data and ABORT", &packet);
        let with_abort = |packet: &Packet| sctp::followed_by(packet, &sctp::chunk(6, &[]));
        let becomes = packet.between(flow.vip, flow.client);
        let events = vec![Event::Reply(flow.service, flow.backend, packet.ip_len() + 4)];
        let (packet, becomes) = (with_abort(&packet), with_abort(&becomes));
        world.step(&Step { packet, becomes, events, ..step })?;
        assert_eq!(world.datapath.entry(&flow.key())?.expect("an entry").state, State::AbortedByEndpoint);
        Ok(())
    });
}

#[test]
fn an_established_association_never_moves() {
    everywhere(|world| {
        for serves_on in [true, false] {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            replace(world, &flow, serves_on)?;
            goes_on(world, &flow)?;
            // The client began anew, or somebody says so.
            pass(world, &flow, (true, INIT))?;
            goes_on(world, &flow)?;
            world.datapath.publish(flow.service, ServiceVerdict::Reject, &[])?;
            world.datapath.advance_epoch()?;
            goes_on(world, &flow)?;
        }
        Ok(())
    });
}

#[test]
fn forged_packets_do_not_move_an_association() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        replace(world, &flow, true)?;
        for forged in [
            &[ABORT, INIT][..],
            &[ABORT, INIT, INIT, COOKIE_ECHO, INIT],
            &[SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, INIT],
            &[SHUTDOWN, ABORT, SHUTDOWN_COMPLETE, INIT],
        ] {
            for flags in forged {
                pass(world, &flow, (true, *flags))?;
                world.datapath.age(&flow.key(), 4)?;
            }
            goes_on(world, &flow)?;
            assert_eq!(world.datapath.entry(&flow.key())?.expect("an entry").state, State::Associated);
        }
        Ok(())
    });
}

#[test]
fn an_association_that_is_over_chooses_again() {
    const ENDS: &[&[(bool, u8)]] = &[
        &[(true, SHUTDOWN), (false, SHUTDOWN_ACK), (true, SHUTDOWN_COMPLETE)],
        &[(false, SHUTDOWN), (true, SHUTDOWN_ACK), (false, SHUTDOWN_COMPLETE)],
    ];
    everywhere(|world| {
        for end in ENDS {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            for packet in *end {
                pass(world, &flow, *packet)?;
            }
            let flow = replace(world, &flow, true)?;
            world.step(&flow.reopens("a new one from the same port", &flow.request(INIT)))?;
            world.steps(&flow.handshake()[1..])?;
            goes_on(world, &flow)?;
        }
        // Refused, and an aborted one whose endpoint does not serve any more.
        let flow = world.flow()?;
        world.step(&flow.opens("INIT", &flow.request(INIT)))?;
        pass(world, &flow, (false, ABORT))?;
        let flow = replace(world, &flow, true)?;
        world.step(&flow.reopens("after a refusal", &flow.request(INIT)))?;
        world.steps(&flow.handshake()[1..])?;
        pass(world, &flow, (false, ABORT))?;
        pass(world, &flow, (true, INIT))?;
        let flow = replace(world, &flow, false)?;
        world.step(&flow.reopens("after an abort", &flow.request(INIT)))?;
        world.steps(&flow.handshake()[1..])?;
        goes_on(world, &flow)
    });
}

#[test]
fn an_init_that_is_never_answered_chooses_again() {
    everywhere(|world| {
        let flow = world.flow()?;
        let init = flow.request(INIT);
        world.step(&flow.opens("INIT", &init))?;
        let next = replace(world, &flow, true)?;
        world.step(&flow.goes("repeated after a second", &init))?;
        world.datapath.age(&flow.key(), 3)?;
        world.step(&next.reopens("repeated after three seconds", &init))?;
        world.steps(&next.handshake()[1..])?;
        // And at once when its endpoint does not serve any more.
        let flow = world.flow()?;
        world.step(&flow.opens("INIT", &flow.request(INIT)))?;
        let next = replace(world, &flow, false)?;
        world.step(&next.reopens("repeated", &flow.request(INIT)))
    });
}

#[test]
fn an_association_met_in_its_middle_is_carried() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.step(&flow.opens("data", &flow.request(LIVE)))?;
        pass(world, &flow, (false, LIVE))?;
        assert_eq!(world.datapath.entry(&flow.key())?.expect("an entry").state, State::Associated);
        goes_on(world, &flow)
    });
}

#[test]
fn the_end_of_an_unknown_association_begins_none() {
    everywhere(|world| {
        let flow = world.flow()?;
        for flags in [ABORT, SHUTDOWN_COMPLETE] {
            let packet = flow.request(flags).bytes();
            world.always(&Step::dropped("the end", &packet, Reason::ResetWithoutFlow, Some(flow.service)))?;
            assert!(world.datapath.entry(&flow.key())?.is_none());
        }
        Ok(())
    });
}

#[test]
fn refusals_quote_what_a_client_needs_to_believe_them() {
    everywhere(|world| {
        let flow = world.flow()?;
        for flags in [INIT, LIVE, COOKIE_ACK] {
            let other = SocketAddr::new(flow.vip.ip(), 81);
            let packet = flow.request(flags).between(flow.client, other);
            world.always(&Step::refused("another port", &packet, Reason::UnknownPort, None))?;
        }
        world.datapath.publish(flow.service, ServiceVerdict::Reject, &[])?;
        let packet = flow.request(INIT);
        world.always(&Step::refused("no endpoint", &packet, Reason::NoEndpoint, Some(flow.service)))
    });
}

#[test]
fn a_packet_too_short_for_its_header_is_malformed() {
    everywhere(|world| {
        let flow = world.flow()?;
        let header = if world.v6 { 40 } else { 20 };
        for len in [0, 4, 11] {
            let mut bytes = flow.request(INIT).bytes();
            let (at, total) = if world.v6 { (18, len) } else { (16, 20 + len) };
            bytes[at..at + 2].copy_from_slice(&(total as u16).to_be_bytes());
            if len != 0 || !world.v6 {
                world.always(&Step::dropped("a short length", &bytes, Reason::Malformed, None))?;
            }
            let bytes = &flow.request(INIT).bytes()[..14 + header + len];
            world.always(&Step::dropped("a short packet", bytes, Reason::Malformed, None))?;
        }
        Ok(())
    });
}
