//! Which endpoint a connection gets, and when it gets another one (S-41, S-50 to S-52).

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::layout::{BackendFlags, ServiceVerdict};
use lb_common::proto::tcp::{ACK, FIN, SYN};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Flow, Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::{BackendSpec, Program};

/// Another endpoint takes the place of the flow's, which stops serving or not. The flow as it is from then on.
fn replace(world: &mut World, flow: &Flow, serves_on: bool) -> Result<Flow> {
    let spec = world.endpoint(9090);
    let backend = world.datapath.backend(flow.service, &spec)?;
    world.datapath.publish(flow.service, ServiceVerdict::Random, &[backend])?;
    if !serves_on {
        stop_serving(world, flow)?;
    }
    world.datapath.advance_epoch()?;
    Ok(Flow { backend, endpoint: spec.endpoint, ..*flow })
}

fn stop_serving(world: &mut World, flow: &Flow) -> Result<()> {
    let spec = BackendSpec { endpoint: flow.endpoint, ..world.endpoint(0) };
    let flags = spec.flags & !BackendFlags::SERVING;
    world.datapath.set_backend(flow.backend, flow.service, &BackendSpec { flags, ..spec })
}

#[test]
fn every_endpoint_is_chosen_alike() {
    everywhere(|world| {
        for endpoints in [2_u16, 3, 7, 16] {
            let backends: Vec<_> = (0..endpoints).map(|_| world.endpoint(8080)).collect();
            let vip = SocketAddr::new(world.address(), 80);
            let client = world.address();
            world.datapath.service(vip, world.protocol, ServiceVerdict::Random, &backends)?;
            let flows = 200 * endpoints;
            let mut chosen = vec![0_u32; endpoints.into()];
            for port in 0..flows {
                let client = SocketAddr::new(client, 10_000 + port);
                let packet = Packet::new(world.protocol, client, vip, world.first());
                let outcome = world.datapath.run(Program::FromPod, &packet.bytes())?;
                let got = backends.iter().position(|backend| {
                    let at = if world.v6 { 38..54 } else { 30..34 };
                    let becomes = packet.between(client, backend.endpoint).bytes();
                    outcome.packet[at.clone()] == becomes[at]
                });
                chosen[got.expect("one of the backends")] += 1;
            }
            let mean = f64::from(flows) / f64::from(endpoints);
            let chi: f64 = chosen.iter().map(|count| (f64::from(*count) - mean).powi(2) / mean).sum();
            // Some five standard deviations and more above the mean of the distribution: exceeded by chance once in
            // more than a hundred million runs.
            let freedom = f64::from(endpoints - 1);
            let bound = freedom + 5.0 * (2.0 * freedom).sqrt() + 25.0;
            assert!(
                chi < bound,
                "chi-square {chi:.1} of {endpoints} endpoints, bound {bound:.1}: {chosen:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_established_connection_never_moves() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        for serves_on in [true, false] {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            let elsewhere = replace(world, &flow, serves_on)?;
            world.always(&flow.goes("a request", &flow.request(ACK)))?;
            world.always(&flow.returns("a response", &flow.response(ACK)))?;
            world.always(&flow.goes("a stray SYN", &flow.request(SYN)))?;
            // The Service loses all endpoints, then its row: what is established stays.
            world.datapath.publish(flow.service, ServiceVerdict::Reject, &[])?;
            world.datapath.advance_epoch()?;
            world.always(&flow.goes("a request", &flow.request(ACK)))?;
            // The backend's row is another Service's now: the stack finds the way.
            let other = world.flow()?;
            let spec = world.endpoint(8081);
            world.datapath.set_backend(flow.backend, other.service, &spec)?;
            world.datapath.advance_epoch()?;
            let flow = Flow { direct: false, ..flow };
            world.always(&flow.goes("a request", &flow.request(ACK)))?;
            world.always(&flow.returns("a response", &flow.response(ACK)))?;
            // And a new connection to the Service is refused meanwhile.
            let client = SocketAddr::new(elsewhere.client.ip(), 50_000);
            let packet = flow.request(SYN).between(client, flow.vip);
            world.step(&Step::refused("a new one", &packet, Reason::NoEndpoint, Some(flow.service)))?;
        }
        Ok(())
    });
}

#[test]
fn a_connection_that_is_over_chooses_again() {
    /// What ends the connection: true for the client's packet, and its flags.
    const ENDS: &[&[(bool, u8)]] = &[
        &[(true, FIN | ACK), (false, FIN | ACK)],
        &[(true, FIN | ACK), (false, FIN | ACK), (true, ACK)],
        &[(false, FIN | ACK), (true, ACK), (true, FIN | ACK), (false, ACK)],
    ];
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        for end in ENDS {
            let flow = world.flow()?;
            world.steps(&flow.handshake())?;
            for (client, flags) in *end {
                world.step(&match client {
                    true => flow.goes("the end", &flow.request(*flags)),
                    false => flow.returns("the end", &flow.response(*flags)),
                })?;
            }
            let flow = replace(world, &flow, true)?;
            world.step(&flow.reopens("a new connection from the same port", &flow.request(SYN)))?;
            world.steps(&flow.handshake()[1..])?;
            world.always(&flow.goes("a request", &flow.request(ACK)))?;
            world.always(&flow.returns("a response", &flow.response(ACK)))?;
        }
        Ok(())
    });
}

#[test]
fn a_syn_that_is_never_answered_chooses_again() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        let syn = flow.request(SYN);
        world.step(&flow.opens("SYN", &syn))?;
        let next = replace(world, &flow, true)?;
        world.step(&flow.goes("repeated after a second", &syn))?;
        world.datapath.age(&flow.key(), 2)?;
        world.step(&flow.goes("and once more", &syn))?;
        world.datapath.age(&flow.key(), 1)?;
        world.step(&next.reopens("repeated after three seconds", &syn))?;
        world.steps(&next.handshake()[1..])?;
        assert!(world.datapath.entry(&flow.reply_key())?.is_none(), "the old endpoint's entry is left");
        Ok(())
    });
}

#[test]
fn a_syn_to_an_endpoint_that_vanished_chooses_again_at_once() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        let syn = flow.request(SYN);
        world.step(&flow.opens("SYN", &syn))?;
        let next = replace(world, &flow, false)?;
        world.step(&next.reopens("repeated", &syn))?;
        world.steps(&next.handshake()[1..])?;
        // Answered, and the endpoint stops serving: the connection stays where it is.
        let flow = world.flow()?;
        world.step(&flow.opens("SYN", &flow.request(SYN)))?;
        world.step(&flow.returns("its answer", &flow.response(SYN | ACK)))?;
        replace(world, &flow, false)?;
        world.step(&flow.goes("SYN repeated", &flow.request(SYN)))?;
        world.step(&flow.goes("ACK", &flow.request(ACK)))
    });
}

#[test]
fn udp_leaves_an_endpoint_that_stops_serving() {
    everywhere(|world| {
        if world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        let packet = flow.request(0);
        world.steps(&flow.handshake())?;
        let still = replace(world, &flow, true)?;
        world.always(&flow.goes("while it serves", &packet))?;
        stop_serving(world, &flow)?;
        world.datapath.advance_epoch()?;
        world.step(&still.reopens("when it does not", &packet))?;
        world.always(&still.goes("from then on", &packet))?;
        // The row becomes another Service's, or another endpoint's.
        let other = world.flow()?;
        let spec = BackendSpec { endpoint: still.endpoint, ..world.endpoint(0) };
        let next = replace(world, &still, true)?;
        world.datapath.set_backend(still.backend, other.service, &spec)?;
        world.step(&next.reopens("when its row is another Service's", &packet))?;
        let last = replace(world, &next, true)?;
        let spec = world.endpoint(8080);
        world.datapath.set_backend(next.backend, next.service, &spec)?;
        world.step(&last.reopens("when its row is another endpoint's", &packet))?;
        world.always(&last.goes("from then on", &packet))?;
        world.always(&last.returns("a response", &last.response(0)))
    });
}

#[test]
fn udp_finds_an_endpoint_when_one_comes_and_is_refused_when_none_is_left() {
    everywhere(|world| {
        if world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        let packet = flow.request(0);
        world.datapath.publish(flow.service, ServiceVerdict::Reject, &[])?;
        let refused = Step::refused("no endpoint", &packet, Reason::NoEndpoint, Some(flow.service));
        world.always(&refused)?;
        world.datapath.publish(flow.service, ServiceVerdict::Random, &[flow.backend])?;
        world.step(&flow.opens("an endpoint came", &packet))?;
        world.always(&flow.goes("and stays", &packet))?;
        world.datapath.publish(flow.service, ServiceVerdict::Reject, &[])?;
        stop_serving(world, &flow)?;
        world.datapath.advance_epoch()?;
        world.step(&refused.clone().and(Event::Reselected(flow.service)))?;
        world.always(&refused)
    });
}

#[test]
fn a_flow_met_in_its_middle_is_carried() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.step(&flow.opens("a request", &flow.request(world.middle())))?;
        world.step(&flow.returns("a response", &flow.response(world.middle())))?;
        world.always(&flow.goes("a request", &flow.request(world.middle())))?;
        world.always(&flow.returns("a response", &flow.response(world.middle())))
    });
}

#[test]
fn an_endpoint_that_stops_serving_while_it_is_chosen_gets_the_packet() {
    everywhere(|world| {
        // The agent is between two stores: the endpoint does not serve any more, and the slots still name it.
        let flow = world.flow()?;
        stop_serving(world, &flow)?;
        world.step(&flow.opens("the first packet", &flow.request(world.first())))?;
        let next = replace(world, &flow, false)?;
        world.step(&next.reopens("the next one", &next.request(world.first())))?;
        world.steps(&next.handshake()[1..])
    });
}
