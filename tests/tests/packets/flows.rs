//! Flows from their first packet to their last, in both directions.

use std::net::SocketAddr;

use lb_common::conntrack::State;
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_tests::datapath::case::{BACKEND_MAC, Flow, Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::entries::Ends;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{BackendSpec, Program, Verdict};

#[test]
fn a_flow_is_translated_there_and_back() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
        world.always(&flow.goes("a request", &request))?;
        world.always(&flow.returns("a response", &response))?;
        world.always(&flow.returns_early("a response at the endpoint's device", &response))
    });
}

#[test]
fn packets_of_every_size_and_with_options_are_translated() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        for len in [0, 1, 2, 3, 17, 63, 64, 65, 536, 1399, 1400] {
            let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
            let request = flow.request(world.middle()).with_payload(&payload);
            let response = flow.response(world.middle()).with_payload(&payload);
            world.always(&flow.goes("a request", &request))?;
            world.always(&flow.returns("a response", &response))?;
            if !world.v6 {
                for words in [1, 3, 10] {
                    let options = [vec![1; words * 4 - 1], vec![0]].concat();
                    let request = Packet { options: options.clone(), ..request.clone() };
                    world.always(&flow.goes("a request with options", &request))?;
                    let response = Packet { options, ..response.clone() };
                    world.always(&flow.returns("a response with options", &response))?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn an_endpoint_whose_way_is_not_known_is_left_to_the_stack() {
    everywhere(|world| {
        let backend = BackendSpec { interface: 0, ..world.endpoint(8080) };
        let flow = world.flow_to(&backend)?;
        assert!(!flow.direct);
        world.steps(&flow.handshake())?;
        world.always(&flow.goes("a request", &flow.request(world.middle())))?;
        // Its way becomes known: the next packet that asks the tables takes it.
        world.datapath.set_backend(flow.backend, flow.service, &BackendSpec { interface: 1, ..backend })?;
        world.datapath.advance_epoch()?;
        let flow = Flow { direct: flow.redirects, ..flow };
        world.always(&flow.goes("a request", &flow.request(world.middle())))
    });
}

#[test]
fn a_reply_to_a_client_whose_device_is_not_known_is_turned_back_and_left_to_the_stack() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        world.datapath.forget_device(&flow.reply_key())?;
        let response = flow.response(world.middle());
        if !flow.redirects {
            return world.always(&flow.returns_early("a response", &response));
        }
        let becomes = response.between(flow.vip, flow.client);
        let event = Event::Reply(flow.service, flow.backend, response.ip_len());
        let step = Step::carried("a response", Program::FromPod, &response, Verdict::Pass, &becomes, event);
        world.always(&step)?;
        let at_client = Step::untouched("and at the client's device", Program::ToPod, &becomes.bytes());
        world.always(&at_client)
    });
}

#[test]
fn answers_follow_a_client_to_another_device() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
        world.always(&flow.returns_early("a response", &response))?;
        // As if the flow had begun at another device: the next packet of the client tells where it is now.
        world.datapath.forget_device(&flow.reply_key())?;
        world.step(&flow.goes("a request", &request))?;
        let entry = world.datapath.entry(&flow.reply_key())?.expect("an entry");
        assert_eq!((entry.interface, entry.mac), (1, request.eth_src));
        world.step(&flow.returns_early("a response", &response))
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let flow = world.flow_to(&backend)?;
        let client = SocketAddr::new(flow.endpoint.ip(), flow.client.port());
        // The endpoint sees the Service's address, never its own (S-31).
        let seen = SocketAddr::new(flow.vip.ip(), client.port());
        let request = |flags| Packet::new(flow.protocol, client, flow.vip, flags);
        let there = |name, flags| {
            let packet: Packet = request(flags);
            let becomes = packet.between(seen, flow.endpoint).to_mac(packet.eth_src);
            let event = Event::Forward(flow.service, flow.backend, packet.ip_len());
            Step::carried(name, Program::FromPod, &packet, Verdict::Redirect, &becomes, event)
        };
        let back = |name, flags| {
            let packet = Packet::new(flow.protocol, flow.endpoint, seen, flags);
            let becomes = packet.between(flow.vip, client).to_mac(packet.eth_src);
            let event = Event::Reply(flow.service, flow.backend, packet.ip_len());
            Step::carried(name, Program::FromPod, &packet, Verdict::Redirect, &becomes, event)
        };
        let opened = Event::Opened(flow.service, flow.backend);
        world.step(&there("the first packet", world.first()).and(opened))?;
        world.step(&back("its answer", world.first() | world.middle()))?;
        world.always(&there("a request", world.middle()))?;
        world.always(&back("a response", world.middle()))?;
        for (src, dst) in [(seen, flow.endpoint), (flow.vip, client)] {
            let delivered = Packet::new(flow.protocol, src, dst, world.middle()).bytes();
            world.always(&Step::untouched("on its way into the pod", Program::ToPod, &delivered))?;
        }
        Ok(())
    });
}

#[test]
fn answers_are_turned_back_although_the_same_ends_talked_without_a_service_before() {
    everywhere(|world| {
        let flow = world.flow()?;
        let (middle, response) = (world.middle(), flow.response(world.middle()));
        for program in [Program::FromPod, Program::ToPod] {
            let step = Step::untouched("a direct conversation", program, &response.bytes());
            world.step(&step)?;
            world.step(&step)?;
        }
        world.steps(&flow.handshake())?;
        world.step(&flow.returns("a response", &response))?;
        world.step(&flow.returns_early("a response at the endpoint's device", &response))?;
        world.step(&flow.goes("a request", &flow.request(middle)))
    });
}

#[test]
fn one_client_port_reaches_one_endpoint_through_two_services() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let first = world.flow_to(&backend)?;
        let other = world.flow_to(&backend)?;
        world.steps(&first.handshake())?;
        let second = Flow { client: first.client, ..other };
        // The second flow needs another source port, or the answers could not be told apart.
        let request = second.request(world.first());
        let outcome = world.datapath.run(Program::FromPod, &request.bytes())?;
        let entry = world.datapath.entry(&second.key())?.expect("an entry of the second flow");
        let nat = entry.becomes.src;
        assert_eq!(nat.ip(), second.client.ip());
        assert_ne!(nat.port(), second.client.port());
        assert!(nat.port() >= 1024, "{nat}");
        let there = |packet: &Packet| second.translated(packet).between(nat, second.endpoint);
        assert_eq!(outcome.packet, there(&request).bytes());
        let verdict = if second.direct { Verdict::Redirect } else { Verdict::Pass };
        let back = |name, flags| {
            let packet = Packet::new(second.protocol, second.endpoint, nat, flags);
            let becomes = packet.between(second.vip, second.client);
            let event = Event::Reply(second.service, second.backend, packet.ip_len());
            Step::carried(name, Program::ToPod, &packet, Verdict::Pass, &becomes, event)
        };
        world.step(&back("its answer", world.first() | world.middle()))?;
        for _ in 0..2 {
            let packet = second.request(world.middle());
            let event = Event::Forward(second.service, second.backend, packet.ip_len());
            let step = Step::carried("a request", Program::FromPod, &packet, verdict, &there(&packet), event);
            world.always(&step)?;
            world.always(&back("a response", world.middle()))?;
            world.always(&first.goes("a request of the first flow", &first.request(world.middle())))?;
            world.always(&first.returns("a response of the first flow", &first.response(world.middle())))?;
        }
        Ok(())
    });
}

#[test]
fn the_source_port_of_a_flow_that_is_over_is_taken_over() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let first = world.flow_to(&backend)?;
        let other = world.flow_to(&backend)?;
        let second = Flow { client: first.client, ..other };
        world.steps(&first.handshake())?;
        if world.is_tcp() {
            world.step(&first.returns("a reset", &first.response(RST | ACK)))?;
            // Nobody goes on.
            world.datapath.age(&first.key(), 3)?;
        } else {
            // Twice as long silent as an answered flow lives.
            world.datapath.age(&first.key(), 241)?;
        }
        world.steps(&second.handshake())?;
        world.always(&second.goes("a request", &second.request(world.middle())))?;
        world.always(&second.returns("a response", &second.response(world.middle())))?;
        assert!(world.datapath.entry(&first.key())?.is_none(), "the flow that is over is still known");
        Ok(())
    });
}

#[test]
fn the_state_of_a_connection_is_in_its_entry() {
    use State::*;
    /// One packet: true for the client's, TCP flags, state afterwards.
    type Table = &'static [(bool, u8, State)];
    const HANDSHAKE: Table = &[
        (true, SYN, SynSent),
        (false, SYN | ACK, SynReceived),
        (true, ACK, Established),
        (false, ACK, Established),
    ];
    const TCP: &[Table] = &[
        &[
            (true, FIN | ACK, FinWaitClient),
            (false, ACK, CloseWaitClient),
            (false, ACK, CloseWaitClient),
            (false, FIN | ACK, LastAck),
            (true, ACK, TimeWait),
        ],
        &[
            (false, FIN | ACK, FinWaitEndpoint),
            (false, FIN | ACK, FinWaitEndpoint),
            (true, ACK, CloseWaitEndpoint),
            (true, FIN | ACK, LastAck),
            (false, ACK, TimeWait),
        ],
        &[(true, FIN | ACK, FinWaitClient), (false, FIN | ACK, LastAck), (true, ACK, TimeWait)],
        &[(true, RST | ACK, ResetByClient), (false, ACK, ResetByClient), (true, ACK, Established)],
        &[(false, RST | ACK, ResetByEndpoint), (true, ACK, ResetByEndpoint), (false, ACK, Established)],
        &[
            (false, RST | ACK, ResetByEndpoint),
            (true, SYN, ResetSyn),
            (false, SYN | ACK, SynReceived),
            (true, ACK, Established),
        ],
        &[(true, RST, ResetByClient), (true, SYN, ResetSyn), (false, ACK, Established)],
        &[(true, FIN | ACK, FinWaitClient), (false, FIN | ACK, LastAck), (false, RST, Closed)],
        &[(true, SYN, Established)],
    ];
    const UDP: &[Table] =
        &[&[(true, 0, Unreplied), (true, 0, Unreplied), (false, 0, Replied), (true, 0, Replied)]];
    everywhere(|world| {
        for table in if world.is_tcp() { TCP } else { UDP } {
            let flow = world.flow()?;
            let handshake = if world.is_tcp() { HANDSHAKE } else { &[] };
            for (number, (client, flags, state)) in handshake.iter().chain(*table).enumerate() {
                world.step(&match client {
                    true if number == 0 => flow.opens("first packet", &flow.request(*flags)),
                    true => flow.goes("request", &flow.request(*flags)),
                    false => flow.returns("response", &flow.response(*flags)),
                })?;
                let entry = world.datapath.entry(&flow.key())?.expect("an entry");
                assert_eq!(entry.state, *state, "after packet {number} of {table:?}");
            }
            let entry = world.datapath.entry(&flow.key())?.expect("an entry");
            let answers = world.datapath.entry(&flow.reply_key())?.expect("an entry for the answers");
            assert_eq!((entry.service, entry.backend), (flow.service, flow.backend));
            assert_eq!((entry.reply, answers.reply), (false, true));
            assert_eq!((entry.other(), answers.other()), (answers.key, entry.key));
            assert_eq!((answers.interface, answers.mac), (1, flow.request(0).eth_src));
            assert_eq!(entry.becomes, Ends { src: flow.client, dst: flow.endpoint, protocol: flow.protocol });
        }
        Ok(())
    });
}

#[test]
fn an_entry_that_the_kernel_evicted_is_restored_by_the_other_direction() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let (request, response) = (flow.request(world.middle()), flow.response(world.middle()));
        let whole = |world: &mut World| {
            let there =
                world.datapath.entry(&flow.key())?.map(|entry| (entry.becomes, entry.other(), entry.backend));
            let back = world.datapath.entry(&flow.reply_key())?;
            let back =
                back.map(|entry| (entry.becomes, entry.other(), entry.backend, entry.mac, entry.interface));
            anyhow::Ok((there, back))
        };
        let before = whole(world)?;
        world.datapath.evict(&flow.reply_key())?;
        world.datapath.advance_epoch()?;
        world.step(&flow.goes("a request", &request))?;
        assert_eq!(whole(world)?, before);
        world.always(&flow.returns("a response", &response))?;
        world.datapath.evict(&flow.key())?;
        world.datapath.advance_epoch()?;
        world.step(&flow.returns("a response", &response))?;
        assert_eq!(whole(world)?, before);
        world.always(&flow.goes("a request", &request))
    });
}

#[test]
fn an_answer_that_met_no_entry_is_turned_back_once_the_entry_is_restored() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        world.step(&flow.goes("the last request", &flow.request(FIN | ACK)))?;
        world.datapath.evict(&flow.reply_key())?;
        let response = flow.response(ACK);
        world.step(&Step::untouched("an answer without an entry", Program::ToPod, &response.bytes()))?;
        world.step(&flow.goes("the last request, repeated", &flow.request(FIN | ACK)))?;
        world.step(&flow.returns("an answer", &response))
    });
}

#[test]
fn frames_for_a_known_endpoint_carry_its_address() {
    everywhere(|world| {
        let flow = world.flow()?;
        let outcome = world.datapath.run(Program::FromPod, &flow.request(world.first()).bytes())?;
        let expected = if flow.direct { BACKEND_MAC } else { flow.request(0).eth_dst };
        assert_eq!(outcome.packet[..6], expected);
        Ok(())
    });
}
