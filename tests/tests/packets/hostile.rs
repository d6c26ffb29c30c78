//! Packets that somebody sends to do harm: forged resets, impossible sources (RFC 5961, RFC 1122 3.2.1.3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use lb_common::layout::{Class, Client, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Flow, Step, World, everywhere};
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{BackendSpec, Program};

/// Another endpoint is the only one that is chosen from now on. The flow as it would be there.
fn elsewhere(world: &mut World, flow: &Flow) -> Result<Flow> {
    let spec = world.endpoint(9090);
    let backend = world.datapath.backend(flow.service, &spec)?;
    world.datapath.publish(flow.service, ServiceVerdict::Random, &[backend])?;
    world.datapath.advance_epoch()?;
    Ok(Flow { backend, endpoint: spec.endpoint, ..*flow })
}

fn only_tcp(case: impl Fn(&mut World) -> Result<()>) {
    everywhere(|world| if world.is_tcp() { case(world) } else { Ok(()) });
}

fn both_go_on(world: &mut World, flow: &Flow) -> Result<()> {
    world.step(&flow.goes("a request", &flow.request(ACK)))?;
    world.step(&flow.returns("a response", &flow.response(ACK)))?;
    world.always(&flow.goes("a request", &flow.request(ACK)))?;
    world.always(&flow.returns("a response", &flow.response(ACK)))
}

#[test]
fn a_flow_survives_resets_and_syns_that_its_ends_did_not_send() {
    /// What somebody forges between two packets of the flow: true in the client's name.
    const FORGED: &[&[(bool, u8)]] = &[
        &[(true, RST)],
        &[(false, RST)],
        &[(true, RST | ACK), (true, SYN)],
        &[(true, RST), (true, SYN), (true, SYN)],
        &[(false, RST), (true, SYN), (true, SYN)],
        &[(true, RST), (false, RST), (true, SYN), (true, RST), (true, SYN)],
        &[(true, FIN), (true, RST), (true, SYN), (true, FIN | ACK), (true, SYN)],
    ];
    only_tcp(|world| {
        for forged in FORGED {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            elsewhere(world, &flow)?;
            for _ in 0..3 {
                for (client, flags) in *forged {
                    world.step(&match client {
                        true => flow.goes("forged in the client's name", &flow.request(*flags)),
                        false => flow.returns("forged in the endpoint's name", &flow.response(*flags)),
                    })?;
                }
                both_go_on(world, &flow)?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_idle_flow_survives_a_reset_and_a_syn_that_its_endpoint_answers() {
    only_tcp(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        elsewhere(world, &flow)?;
        for silence in [0, 1, 5, 60] {
            world.step(&flow.goes("a forged reset", &flow.request(RST)))?;
            for key in [flow.key(), flow.reply_key()] {
                world.datapath.age(&key, silence)?;
            }
            world.step(&flow.goes("a forged SYN", &flow.request(SYN)))?;
            world.datapath.age(&flow.key(), 1)?;
            world.step(&flow.goes("another one", &flow.request(SYN)))?;
            world.step(&flow.returns("the challenge ACK", &flow.response(ACK)))?;
            world.datapath.age(&flow.key(), 3)?;
            world.step(&flow.goes("and one more", &flow.request(SYN)))?;
        }
        both_go_on(world, &flow)
    });
}

#[test]
fn after_a_reset_a_new_connection_of_the_same_port_stays_with_the_endpoint_while_that_answers() {
    only_tcp(|world| {
        for client in [true, false] {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            world.step(&match client {
                true => flow.goes("a reset", &flow.request(RST | ACK)),
                false => flow.returns("a reset", &flow.response(RST | ACK)),
            })?;
            elsewhere(world, &flow)?;
            world.step(&flow.goes("SYN", &flow.request(SYN)))?;
            world.steps(&flow.handshake()[1..])?;
            both_go_on(world, &flow)?;
        }
        Ok(())
    });
}

#[test]
fn after_a_reset_a_new_connection_leaves_an_endpoint_that_is_gone_or_silent() {
    only_tcp(|world| {
        for client in [true, false] {
            let reset = |flow: &Flow| match client {
                true => flow.goes("a reset", &flow.request(RST | ACK)),
                false => flow.returns("a reset", &flow.response(RST | ACK)),
            };
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            world.step(&reset(&flow))?;
            let next = elsewhere(world, &flow)?;
            let spec = BackendSpec { endpoint: flow.endpoint, flags: 0, ..world.endpoint(0) };
            world.datapath.set_backend(flow.backend, flow.service, &spec)?;
            world.step(&next.reopens("SYN when the endpoint is gone", &next.request(SYN)))?;
            world.steps(&next.handshake()[1..])?;
            both_go_on(world, &next)?;

            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            world.step(&reset(&flow))?;
            let next = elsewhere(world, &flow)?;
            world.step(&flow.goes("SYN", &flow.request(SYN)))?;
            world.datapath.age(&flow.key(), 1)?;
            world.step(&flow.goes("repeated after one second", &flow.request(SYN)))?;
            world.datapath.age(&flow.key(), 2)?;
            world.step(&next.reopens("repeated after three seconds", &next.request(SYN)))?;
            world.steps(&next.handshake()[1..])?;
            both_go_on(world, &next)?;
        }
        Ok(())
    });
}

#[test]
fn a_live_flow_keeps_its_source_port_whoever_forges_a_reset() {
    only_tcp(|world| {
        let backend = world.endpoint(8080);
        let first = world.flow_to(&backend)?;
        let other = world.flow_to(&backend)?;
        world.steps(&first.handshake())?;
        world.step(&first.returns("a forged reset", &first.response(RST)))?;
        // Somebody opens a flow to the same endpoint through another Service, in the name of the same client.
        let second = Flow { client: first.client, ..other };
        world.datapath.run(Program::FromPod, &second.request(SYN).bytes())?;
        let entry = world.datapath.entry(&second.key())?.expect("an entry of the second flow");
        assert_ne!(entry.becomes.src.port(), first.client.port());
        both_go_on(world, &first)
    });
}

/// Sources that no packet has.
fn nobody(v6: bool) -> Vec<IpAddr> {
    if v6 {
        let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        vec![Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into(), multicast.into()]
    } else {
        let all =
            [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [127, 3, 2, 1], [224, 0, 0, 1], [239, 1, 1, 1]];
        all.into_iter()
            .map(|octets| Ipv4Addr::from(octets).into())
            .chain([Ipv4Addr::BROADCAST.into()])
            .collect()
    }
}

#[test]
fn packets_from_sources_that_cannot_be_are_dropped_at_every_frontend() {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    everywhere(|world| {
        let other = world.flow()?;
        let (network, prefix) = (world.host(128), if world.v6 { 121 } else { 25 });
        world.datapath.range(network, prefix)?;
        for kind in [ClusterIp, ExternalIp, LoadBalancer, NodePort] {
            for client in [Client::Pod, Client::Outside] {
                let journey = world.journey(kind, client, Site::Here, Policy::PRESERVE_SOURCE)?;
                let vip = journey.flow.vip;
                let mut sources = nobody(world.v6);
                // Another Service's cluster IP, an address that only Services may have, and the destination itself (LAND).
                sources.extend([other.vip.ip(), world.host(200), vip.ip()]);
                for source in sources {
                    for port in [40_000, vip.port()] {
                        let packet = journey.flow.request(world.first());
                        let packet = packet.between(SocketAddr::new(source, port), vip).bytes();
                        let service = Some(journey.flow.service);
                        let step = Step::dropped("impossible", &packet, Reason::SpoofedSource, service);
                        world.always(&step.at(journey.entrance()))?;
                    }
                }
                let refused = SocketAddr::new(vip.ip(), vip.port() + 1);
                if kind == ClusterIp {
                    let packet = journey.flow.request(world.first()).between(other.vip, refused).bytes();
                    let step = Step::dropped("to no port", &packet, Reason::SpoofedSource, None);
                    world.always(&step.at(journey.entrance()))?;
                }
                let request = journey.flow.request(world.first());
                world.step(&journey.opens(&request)[0])?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_nodes_own_address_does_not_come_in_from_outside() {
    everywhere(|world| {
        let journey =
            world.journey(FrontendKind::NodePort, Client::Outside, Site::Here, Policy::PRESERVE_SOURCE)?;
        let node = world.address();
        world.datapath.node_address(node)?;
        world.datapath.advance_epoch()?;
        let packet = journey.flow.request(world.first());
        let forged = packet.between(SocketAddr::new(node, 40_000), packet.dst).bytes();
        let service = Some(journey.flow.service);
        let step = Step::dropped("the node's", &forged, Reason::SpoofedSource, service);
        world.always(&step.at(Program::FromNet))?;
        // Where it goes to nothing of ours it is the stack's to judge.
        let elsewhere = SocketAddr::new(world.address(), 80);
        let packet = packet.between(SocketAddr::new(node, 40_000), elsewhere).bytes();
        world.always(&Step::untouched("elsewhere", Program::FromNet, &packet))
    });
}

#[test]
fn a_pod_that_reaches_itself_is_answered_from_its_services_address() {
    everywhere(|world| {
        let backend = world.endpoint(8080);
        let flow = world.flow_to(&backend)?;
        for class in Class::ALL {
            world.datapath.publish_class(flow.service, class, ServiceVerdict::Random, &[flow.backend])?;
        }
        let client = SocketAddr::new(flow.endpoint.ip(), flow.client.port());
        let request = flow.request(world.first()).between(client, flow.vip);
        let outcome = world.datapath.run(Program::FromPod, &request.bytes())?;
        assert_eq!(outcome.verdict, lb_tests::datapath::Verdict::Redirect);
        // The endpoint's answer goes to the Service's address, which a packet of a flow may do.
        let answer =
            Packet::new(flow.protocol, flow.endpoint, SocketAddr::new(flow.vip.ip(), client.port()), 0);
        let outcome = world.datapath.run(Program::FromPod, &answer.bytes())?;
        assert_eq!(outcome.verdict, lb_tests::datapath::Verdict::Redirect);
        Ok(())
    });
}

/// Answers go where the pod is that began the flow. A packet from outside that claims to be one of the flow's says nothing
/// about that, whatever addresses it has.
#[test]
fn a_packet_from_outside_does_not_draw_a_pod_s_answers_to_its_device() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        world.datapath.forget_device(&flow.reply_key())?;
        let forged = flow.request(world.middle()).bytes();
        world.datapath.run(Program::FromNet, &forged)?;
        let entry = world.datapath.entry(&flow.reply_key())?.expect("an entry");
        assert_eq!(entry.interface, 0, "the device of the outside packet");
        world.step(&flow.goes("a request of the pod", &flow.request(world.middle())))?;
        assert_eq!(world.datapath.entry(&flow.reply_key())?.expect("an entry").interface, 1);
        Ok(())
    });
}
