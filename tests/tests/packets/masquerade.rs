//! Flows that get an address of the node as their source (S-30, S-33): there and back through four hooks, byte for byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::conntrack::State;
use lb_common::layout::{Client, FrontendKind};
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Flow, Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::entries::{Ends, Entry};
use lb_tests::datapath::journey::{Journey, Site, node};
use lb_tests::datapath::packet::{Checksum, Packet};
use lb_tests::datapath::{MASQUERADE_PORTS, Program};

/// Both clients that are masqueraded, with their endpoints here and beyond.
const WAYS: [(Client, Site); 4] = [
    (Client::Outside, Site::Here),
    (Client::Outside, Site::Beyond),
    (Client::Pod, Site::Here),
    (Client::Pod, Site::Beyond),
];

/// A journey through a node port with policy Cluster.
fn through(world: &mut World, (client, site): (Client, Site)) -> Result<Journey> {
    let journey = world.journey(FrontendKind::NodePort, client, site, 0)?;
    assert!(journey.is_masqueraded());
    Ok(journey)
}

/// Every packet of an established flow, by the tables and by the flow cache.
fn goes_on(world: &mut World, journey: &Journey) -> Result<()> {
    for step in [journey.request(world.middle()), journey.answer(world.middle())].concat() {
        world.always(&step)?;
    }
    Ok(())
}

#[test]
fn packets_of_every_size_checksum_and_option_are_masqueraded_there_and_back() {
    everywhere(|world| {
        for way in WAYS {
            let journey = through(world, way)?;
            world.steps(&journey.handshake())?;
            goes_on(world, &journey)?;
            let (request, response) =
                (journey.flow.request(world.middle()), journey.response(world.middle()));
            let mut variants: Vec<(Packet, Packet)> = Vec::new();
            for len in [0, 1, 2, 3, 64, 65, 1400] {
                let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
                variants.push((request.with_payload(&payload), response.with_payload(&payload)));
            }
            if !world.v6 {
                for words in [1, 3, 10] {
                    let options = [vec![1; words * 4 - 1], vec![0]].concat();
                    let with = |packet: &Packet| Packet { options: options.clone(), ..packet.clone() };
                    variants.push((with(&request), with(&response)));
                }
            }
            if !world.is_tcp() {
                let without = |packet: &Packet| packet.with_checksum(Checksum::Absent);
                variants.push((without(&request), without(&response)));
            }
            for (request, response) in &variants {
                world.always(&journey.comes_in("in", request))?;
                world.always(&journey.leaves("leaves", request))?;
                world.always(&journey.comes_back("back", response))?;
                world.always(&journey.returns("returns", response))?;
            }
        }
        Ok(())
    });
}

#[test]
fn uncompleted_checksums_and_super_packets_are_masqueraded() {
    everywhere(|world| {
        for way in WAYS {
            let journey = through(world, way)?;
            world.steps(&journey.handshake())?;
            let partial = |packet: Packet| packet.with_checksum(Checksum::Partial);
            let steps = |payload: &[u8]| {
                let request = partial(journey.flow.request(world.middle()).with_payload(payload));
                let response = partial(journey.response(world.middle()).with_payload(payload));
                [
                    journey.comes_in("in", &request),
                    journey.leaves("leaves", &request),
                    journey.comes_back("back", &response),
                    journey.returns("returns", &response),
                ]
            };
            let (small, large) = (steps(b"to be completed"), steps(&[7; 1300]));
            // Test runs hand no packet to a program whose checksum is not completed, see the table of checksums.
            for step in &small {
                world.datapath.run(step.program, &step.packet)?;
            }
            world.datapath.forget_complete_checksums()?;
            for _ in 0..2 {
                world.steps(&small)?;
                for step in &large {
                    world.step(&step.clone().in_segments(13))?;
                }
            }
            // What a network device hands up: complete ones, and super-packets that are not, in one flow.
            let complete = [journey.request(world.middle()), journey.answer(world.middle())].concat();
            for _ in 0..2 {
                world.steps(&complete)?;
                for step in &large {
                    world.step(&step.clone().in_segments(13))?;
                }
            }
        }
        Ok(())
    });
}

/// The entries of a flow, in the order E1 to E4: destination, its answers, source, its answers.
fn entries(world: &mut World, journey: &Journey) -> Result<[Option<Entry>; 4]> {
    let mut found = [const { None }; 4];
    for (at, key) in journey.first_pair().iter().chain(&journey.second_pair()).enumerate() {
        found[at] = world.datapath.entry(key)?;
    }
    Ok(found)
}

#[test]
fn a_masqueraded_flow_has_two_pairs_of_entries_that_point_at_each_other() {
    everywhere(|world| {
        for way in WAYS {
            let journey = through(world, way)?;
            world.steps(&journey.handshake())?;
            let found = entries(world, &journey)?.map(|entry| entry.expect("an entry"));
            let [forward, answers, source, back] = &found;
            let flow = &journey.flow;
            let ends = |src, dst| Ends { src, dst, protocol: flow.protocol };
            assert_eq!(forward.becomes, ends(flow.client, flow.endpoint));
            assert_eq!(answers.becomes, ends(flow.vip, flow.client));
            assert_eq!(source.becomes, ends(journey.source, flow.endpoint));
            assert_eq!(back.becomes, ends(flow.endpoint, flow.client));
            for (one, other) in [(forward, answers), (source, back)] {
                assert_eq!((one.other(), other.other()), (other.key, one.key));
                assert_eq!((one.reply, other.reply), (false, true));
            }
            let net = journey.client == Client::Outside;
            let state = if world.is_tcp() { State::Established } else { State::Replied };
            for entry in &found {
                assert_eq!((entry.service, entry.backend), (flow.service, flow.backend));
                assert!(!entry.hairpin);
            }
            assert_eq!(
                [forward, answers].map(|entry| (entry.masquerade, entry.source, entry.net)),
                [(true, false, net); 2]
            );
            assert_eq!([source, back].map(|entry| (entry.masquerade, entry.source)), [(false, true); 2]);
            assert_eq!([forward.state, source.state], [state; 2]);
            assert_eq!(answers.masquerade_port, journey.source.port());
            let (first, count) = MASQUERADE_PORTS;
            assert!((first..first + count).contains(&journey.source.port().into()));
        }
        Ok(())
    });
}

#[test]
fn both_pairs_follow_the_connection_to_its_end() {
    use State::{CloseWaitClient, FinWaitClient, LastAck, ResetByClient, ResetByEndpoint, TimeWait};
    const ENDS: &[&[(bool, u8, State)]] = &[
        &[
            (true, FIN | ACK, FinWaitClient),
            (false, ACK, CloseWaitClient),
            (false, FIN | ACK, LastAck),
            (true, ACK, TimeWait),
        ],
        &[(true, RST | ACK, ResetByClient)],
        &[(false, RST | ACK, ResetByEndpoint)],
    ];
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        for way in WAYS {
            for end in ENDS {
                let journey = through(world, way)?;
                world.steps(&journey.handshake())?;
                goes_on(world, &journey)?;
                for (client, flags, state) in *end {
                    let steps = if *client { journey.request(*flags) } else { journey.answer(*flags) };
                    world.steps(&steps)?;
                    let [forward, _, source, _] =
                        entries(world, &journey)?.map(|entry| entry.expect("an entry"));
                    assert_eq!([forward.state, source.state], [*state; 2], "{flags:#x} in {end:?}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn any_entry_that_the_kernel_evicted_is_restored_and_the_flow_keeps_its_port() {
    everywhere(|world| {
        for way in WAYS {
            let journey = through(world, way)?;
            world.steps(&journey.handshake())?;
            let middle = world.middle();
            let whole = |world: &mut World| -> Result<_> {
                Ok(entries(world, &journey)?.map(|entry| {
                    entry.map(|entry| {
                        (entry.becomes, entry.other(), entry.backend, entry.masquerade, entry.source)
                    })
                }))
            };
            let before = whole(world)?;
            assert!(before.iter().all(Option::is_some));
            let [forward, answers] = journey.first_pair();
            let [source, back] = journey.second_pair();
            // Restored by a packet of the other direction; the entries of the client's packets also by one of their own.
            let rounds = [
                (forward, journey.answer(middle)),
                (answers, journey.request(middle)),
                (source, journey.request(middle)),
                (source, journey.answer(middle)),
                (back, journey.request(middle)),
            ];
            for (evicted, steps) in rounds {
                world.datapath.evict(&evicted)?;
                world.datapath.advance_epoch()?;
                world.steps(&steps).with_context(|| format!("without {evicted:?}"))?;
                assert_eq!(whole(world)?, before, "without {evicted:?}");
                goes_on(world, &journey)?;
            }
            // Both halves of the pair for the source.
            world.datapath.evict(&source)?;
            world.datapath.evict(&back)?;
            world.datapath.advance_epoch()?;
            world.steps(&journey.request(middle))?;
            goes_on(world, &journey)?;
            assert_eq!(whole(world)?, before);
        }
        Ok(())
    });
}

/// The same client's address and port, at another Service in front of the same endpoint.
fn another_service(world: &mut World, first: &Journey, client: SocketAddr) -> Result<Journey> {
    let other = through(world, (first.client, first.site))?;
    let flow = Flow { client, ..other.flow };
    Ok(Journey { flow, ..other })
}

#[test]
fn clients_with_the_same_port_get_different_ones() {
    everywhere(|world| {
        for way in WAYS {
            let first = through(world, way)?;
            world.steps(&first.handshake())?;
            let mut taken = vec![first.source.port()];
            for _ in 0..5 {
                let client = SocketAddr::new(world.address(), first.flow.client.port());
                let mut journey = Journey { flow: Flow { client, ..first.flow }, ..first };
                let request = journey.flow.request(world.first());
                let opened = Event::Opened(first.flow.service, first.flow.backend);
                world.step(&journey.comes_in("the first packet", &request).and(opened))?;
                let packet = request.between(client, journey.flow.endpoint);
                let outcome = world.datapath.run(journey.far_side().0, &packet.bytes())?;
                journey.source = source_of(world, &journey)?;
                assert_eq!(outcome.packet, packet.between(journey.source, journey.flow.endpoint).bytes());
                let port = journey.source.port();
                assert_eq!(journey.source.ip(), node(world));
                assert!(!taken.contains(&port), "{port} of {taken:?}");
                let (from, count) = MASQUERADE_PORTS;
                assert!((from..from + count).contains(&port.into()), "{port}");
                taken.push(port);
                world.steps(&journey.answer(world.first() | world.middle()))?;
                world.steps(&journey.request(world.middle()))?;
                goes_on(world, &journey)?;
                goes_on(world, &first)?;
                // The pair is lost, and found again with a port that is not the client's own.
                world.datapath.evict(&journey.second_pair()[0])?;
                world.datapath.evict(&journey.second_pair()[1])?;
                world.datapath.advance_epoch()?;
                world.steps(&journey.request(world.middle()))?;
                goes_on(world, &journey)?;
            }
        }
        Ok(())
    });
}

/// What the endpoint sees, as the table has it.
fn source_of(world: &mut World, journey: &Journey) -> Result<SocketAddr> {
    let key = journey.second_pair()[0];
    Ok(world.datapath.entry(&key)?.context("no entry of the second pair")?.becomes.src)
}

#[test]
fn one_client_port_reaches_one_endpoint_through_two_node_ports() {
    everywhere(|world| {
        for way in WAYS {
            let first = through(world, way)?;
            world.steps(&first.handshake())?;
            // Another Service with the same endpoint, and the same client port.
            let other = another_service(world, &first, first.flow.client)?;
            let spec = lb_tests::datapath::BackendSpec {
                endpoint: first.flow.endpoint,
                ..world.endpoint_at(first.site)
            };
            world.datapath.set_backend(other.flow.backend, other.flow.service, &spec)?;
            let flow = Flow { endpoint: first.flow.endpoint, ..other.flow };
            // The first pair gives the client another port already, and the second one is made for that.
            let request = flow.request(world.first());
            world.datapath.run(first.entrance(), &request.bytes())?;
            let seen = world.datapath.entry(&flow.key())?.expect("an entry").becomes.src;
            assert_eq!(seen.ip(), flow.client.ip());
            assert_ne!(seen.port(), flow.client.port());
            let packet = request.between(seen, flow.endpoint);
            let outcome = world.datapath.run(first.far_side().0, &packet.bytes())?;
            let key = Ends { src: seen, dst: flow.endpoint, protocol: flow.protocol };
            let source = world.datapath.entry(&key)?.expect("an entry").becomes.src;
            assert_eq!(outcome.packet, packet.between(source, flow.endpoint).bytes());
            assert_ne!(source, first.source);
            let response = flow.response(world.first() | world.middle()).between(flow.endpoint, source);
            let back = world.datapath.run(first.far_side().1, &response.bytes())?;
            assert_eq!(back.packet, response.between(flow.endpoint, seen).bytes());
            let answer = response.between(flow.endpoint, seen);
            let event = Event::Reply(flow.service, flow.backend, answer.ip_len());
            let becomes = answer.between(flow.vip, flow.client);
            let verdict = lb_tests::datapath::Verdict::Pass;
            world.step(&Step::carried("returns", first.exit(), &answer, verdict, &becomes, event))?;
            goes_on(world, &first)?;
        }
        Ok(())
    });
}

#[test]
fn the_port_of_a_flow_that_is_over_is_taken_over() {
    everywhere(|world| {
        for way in WAYS {
            let first = through(world, way)?;
            world.steps(&first.handshake())?;
            if world.is_tcp() {
                world.steps(&first.answer(RST | ACK))?;
                // Nobody goes on.
                world.datapath.age(&first.second_pair()[0], 3)?;
            } else {
                // Twice as long silent as an answered flow lives.
                world.datapath.age(&first.second_pair()[0], 241)?;
            }
            let client = SocketAddr::new(world.address(), first.flow.client.port());
            let second = Journey { flow: Flow { client, ..first.flow }, ..first };
            world.steps(&second.handshake())?;
            goes_on(world, &second)?;
            assert!(
                world.datapath.entry(&first.second_pair()[0])?.is_none(),
                "the flow that is over is known"
            );
        }
        Ok(())
    });
}

#[test]
fn a_device_s_own_address_goes_before_the_node_s_and_none_at_all_drops() {
    everywhere(|world| {
        let journey = through(world, (Client::Outside, Site::Beyond))?;
        let request = journey.flow.request(world.first());
        let opened = Event::Opened(journey.flow.service, journey.flow.backend);
        // Test packets are at device 1.
        let (v4, v6) = match world.host(251) {
            IpAddr::V4(address) => (Some(address), None),
            IpAddr::V6(address) => (None, Some(address)),
        };
        let (other4, other6): (Option<Ipv4Addr>, Option<Ipv6Addr>) =
            (v4.is_none().then_some(Ipv4Addr::LOCALHOST), v6.is_none().then_some(Ipv6Addr::LOCALHOST));
        world.datapath.masquerade(0, other4, other6)?;
        world.step(&journey.comes_in("the first packet", &request).and(opened))?;
        let left = request.between(journey.flow.client, journey.flow.endpoint);
        let dropped = |name| {
            let service = Some(journey.flow.service);
            Step::dropped(name, &left.bytes(), Reason::NoMasqueradeAddress, service).at(Program::ToNet)
        };
        world.always(&dropped("no address of the family"))?;
        world.datapath.no_masquerade(0)?;
        world.always(&dropped("no address"))?;
        // The node's, although the device has a row: of the other family.
        world.give_masquerade_address()?;
        world.datapath.masquerade(1, other4, other6)?;
        world.steps(&[journey.leaves("the node's", &request)])?;
        world.steps(&journey.answer(world.first() | world.middle()))?;
        world.steps(&journey.request(world.middle()))?;
        goes_on(world, &journey)?;
        // The device's.
        let other = through(world, (Client::Outside, Site::Beyond))?;
        world.datapath.masquerade(1, v4, v6)?;
        let source = SocketAddr::new(world.host(251), other.source.port());
        let other = Journey { source, ..other };
        world.steps(&other.handshake())?;
        goes_on(world, &other)?;
        // What stands, stands.
        goes_on(world, &journey)?;
        world.datapath.no_masquerade(1)
    });
}

#[test]
fn an_endpoint_in_the_node_s_own_network_sees_the_client() {
    everywhere(|world| {
        // Delivered by the stack: the packet leaves by no hook, and the answer by the client's alone.
        for client in [Client::Outside, Client::Pod] {
            let journey = through(world, (client, Site::Beyond))?;
            let journey = Journey { source: journey.flow.client, ..journey };
            let request = journey.flow.request(world.first());
            let opened = Event::Opened(journey.flow.service, journey.flow.backend);
            world.step(&journey.comes_in("the first packet", &request).and(opened))?;
            world.step(&journey.returns("its answer", &journey.response(world.first() | world.middle())))?;
            world.step(&journey.comes_in("a request", &journey.flow.request(world.middle())))?;
            world.always(&journey.comes_in("a request", &journey.flow.request(world.middle())))?;
            world.always(&journey.returns("a response", &journey.response(world.middle())))?;
            let [_, _, source, _] = entries(world, &journey)?;
            assert!(source.is_none());
        }
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_through_a_node_port_without_masquerade() {
    everywhere(|world| {
        for kind in [FrontendKind::NodePort, FrontendKind::ExternalIp, FrontendKind::LoadBalancer] {
            let journey = world.journey(kind, Client::Pod, Site::Here, 0)?;
            let flow = journey.flow;
            let client = SocketAddr::new(flow.endpoint.ip(), flow.client.port());
            let seen = SocketAddr::new(flow.vip.ip(), client.port());
            let redirect = lb_tests::datapath::Verdict::Redirect;
            let there = |flags| {
                let packet = Packet::new(flow.protocol, client, flow.vip, flags);
                let becomes = packet.between(seen, flow.endpoint).to_mac(packet.eth_src);
                let event = Event::Forward(flow.service, flow.backend, packet.ip_len());
                Step::carried("there", Program::FromPod, &packet, redirect, &becomes, event)
            };
            let back = |flags| {
                let packet = Packet::new(flow.protocol, flow.endpoint, seen, flags);
                let becomes = packet.between(flow.vip, client).to_mac(packet.eth_src);
                let event = Event::Reply(flow.service, flow.backend, packet.ip_len());
                Step::carried("back", Program::FromPod, &packet, redirect, &becomes, event)
            };
            world.step(&there(world.first()).and(Event::Opened(flow.service, flow.backend)))?;
            world.step(&back(world.first() | world.middle()))?;
            world.always(&there(world.middle()))?;
            world.always(&back(world.middle()))?;
        }
        Ok(())
    });
}

#[test]
fn a_pod_of_another_node_reaches_itself_with_this_node_s_address() {
    everywhere(|world| {
        let journey = through(world, (Client::Outside, Site::Beyond))?;
        let client = SocketAddr::new(journey.flow.endpoint.ip(), journey.flow.client.port());
        let journey = Journey { flow: Flow { client, ..journey.flow }, ..journey };
        world.steps(&journey.handshake())?;
        goes_on(world, &journey)
    });
}

#[test]
fn a_flow_that_chooses_again_leaves_no_entry_behind() {
    everywhere(|world| {
        for way in WAYS {
            let old = through(world, way)?;
            world.steps(&old.handshake())?;
            goes_on(world, &old)?;
            if world.is_tcp() {
                world.steps(&old.answer(RST | ACK))?;
            }
            // Another endpoint takes over, and the old one stops serving.
            let spec = world.endpoint_at(old.site);
            let backend = world.datapath.backend(old.flow.service, &spec)?;
            for class in lb_common::layout::Class::ALL {
                let verdict = lb_common::layout::ServiceVerdict::Random;
                world.datapath.publish_class(old.flow.service, class, verdict, &[backend])?;
            }
            let gone = lb_tests::datapath::BackendSpec {
                endpoint: old.flow.endpoint,
                flags: 0,
                ..world.endpoint_at(old.site)
            };
            world.datapath.set_backend(old.flow.backend, old.flow.service, &gone)?;
            world.datapath.advance_epoch()?;
            let new = Journey { flow: Flow { backend, endpoint: spec.endpoint, ..old.flow }, ..old };
            let mut steps = new.handshake();
            steps[0] = steps[0].clone().and(Event::Reselected(old.flow.service));
            world.steps(&steps)?;
            goes_on(world, &new)?;
            let left = entries(world, &old)?;
            assert!(left[1..].iter().all(Option::is_none), "{left:?}");
            // A late packet of the old endpoint is nobody's.
            let late = old.response(world.middle()).bytes();
            world.always(&Step::untouched("late", old.far_side().1, &late))?;
        }
        Ok(())
    });
}

#[test]
fn a_repeated_syn_chooses_again_and_is_masqueraded_again() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        for way in WAYS {
            let journey = through(world, way)?;
            let syn = journey.flow.request(SYN);
            world.steps(&journey.opens(&syn))?;
            world.steps(&journey.request(SYN))?;
            for key in journey.first_pair().iter().chain(&journey.second_pair()) {
                world.datapath.age(key, 3)?;
            }
            let mut again = journey.handshake();
            again[0] = again[0].clone().and(Event::Reselected(journey.flow.service));
            world.steps(&again)?;
            goes_on(world, &journey)?;
        }
        Ok(())
    });
}

#[test]
fn the_pair_of_an_earlier_flow_between_the_same_ends_is_not_taken_for_a_later_one_s() {
    everywhere(|world| {
        // First through a node port, masqueraded; then through the cluster IP, which keeps a pod's address.
        for site in [Site::Here, Site::Beyond] {
            let first = through(world, (Client::Pod, site))?;
            world.steps(&first.handshake())?;
            goes_on(world, &first)?;
            if world.is_tcp() {
                world.steps(&first.answer(RST | ACK))?;
                world.datapath.age(&first.first_pair()[0], 3)?;
            } else {
                world.datapath.age(&first.first_pair()[0], 241)?;
            }
            let second = world.journey(FrontendKind::ClusterIp, Client::Pod, site, 0)?;
            let spec = lb_tests::datapath::BackendSpec {
                endpoint: first.flow.endpoint,
                interface: 0,
                ..world.endpoint_at(site)
            };
            world.datapath.set_backend(second.flow.backend, second.flow.service, &spec)?;
            let (client, endpoint) = (first.flow.client, first.flow.endpoint);
            let flow = Flow { client, endpoint, direct: false, ..second.flow };
            let second = Journey { flow, source: client, ..second };
            world.steps(&second.opens(&flow.request(world.first())))?;
            world.step(&flow.returns("its answer", &flow.response(world.first() | world.middle())))?;
            for step in second.request(world.middle()) {
                world.always(&step)?;
            }
            world.always(&flow.returns("a response", &flow.response(world.middle())))?;
            let left = world.datapath.entry(&first.second_pair()[0])?;
            assert!(left.is_none(), "{left:?}");
        }
        Ok(())
    });
}

#[test]
fn what_left_as_nobody_s_business_is_masqueraded_once_it_is_a_service_s() {
    everywhere(|world| {
        for way in WAYS {
            let journey = through(world, way)?;
            let (arrives, sends) = journey.far_side();
            let flow = &journey.flow;
            let direct = flow.request(world.middle()).between(flow.client, flow.endpoint).bytes();
            let answer = journey.response(world.middle()).bytes();
            for _ in 0..2 {
                world.step(&Step::untouched("a direct conversation", arrives, &direct))?;
                world.step(&Step::untouched("to the node itself", sends, &answer))?;
            }
            world.steps(&journey.handshake())?;
            goes_on(world, &journey)?;
        }
        Ok(())
    });
}
