//! A client that talks to an endpoint by itself, from a port that it has used through a Service: the answers are its own,
//! and not the Service's any more.

use anyhow::Result;
use lb_common::layout::{Client, FrontendKind, Policy};
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_tests::datapath::Program;
use lb_tests::datapath::case::{Flow, Step, World, everywhere};
use lb_tests::datapath::entries::Ends;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::Packet;

/// A packet of the flow's client to the endpoint itself.
fn direct(flow: &Flow, flags: u8) -> Packet {
    Packet::new(flow.protocol, flow.client, flow.endpoint, flags)
}

/// A conversation without a Service, from its first packet on: nobody changes anything, wherever it passes.
fn talk_directly(world: &mut World, flow: &Flow) -> Result<()> {
    let (first, answer) = (world.first(), world.first() | world.middle());
    for (flags, answer) in [(first, answer), (world.middle(), world.middle())] {
        for program in [Program::FromPod, Program::ToPod] {
            world.always(&Step::untouched("the client", program, &direct(flow, flags).bytes()))?;
        }
        for program in [Program::FromPod, Program::ToPod] {
            world.always(&Step::untouched("its answer", program, &flow.response(answer).bytes()))?;
        }
    }
    Ok(())
}

/// Nothing is left of a flow.
fn is_gone(world: &mut World, keys: &[Ends]) -> Result<()> {
    for key in keys {
        assert!(world.datapath.entry(key)?.is_none(), "{key:?} is still known");
    }
    Ok(())
}

#[test]
fn a_client_that_goes_to_the_endpoint_itself_gets_the_answers_of_that() {
    everywhere(|world| {
        if world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        // What the programs remember of the answers is to be forgotten as well.
        world.always(&flow.goes("a request", &flow.request(0)))?;
        world.always(&flow.returns("a response", &flow.response(0)))?;
        world.always(&flow.returns_early("a response at the endpoint's device", &flow.response(0)))?;
        talk_directly(world, &flow)?;
        is_gone(world, &[flow.key(), flow.reply_key()])?;
        // And through the Service once more, as often as it likes.
        for _ in 0..2 {
            world.steps(&flow.handshake())?;
            world.always(&flow.returns("a response", &flow.response(0)))?;
            talk_directly(world, &flow)?;
        }
        Ok(())
    });
}

#[test]
fn answers_whose_flow_the_kernel_evicted_are_nobodys_once_the_client_goes_to_the_endpoint_itself() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        world.datapath.evict(&flow.key())?;
        talk_directly(world, &flow)?;
        is_gone(world, &[flow.key(), flow.reply_key()])
    });
}

#[test]
fn a_connection_that_is_over_leaves_its_port_to_one_to_the_endpoint_itself() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        world.step(&flow.goes("the client's end", &flow.request(FIN | ACK)))?;
        world.step(&flow.returns("the endpoint's end", &flow.response(FIN | ACK)))?;
        world.step(&flow.goes("the last ACK", &flow.request(ACK)))?;
        talk_directly(world, &flow)?;
        is_gone(world, &[flow.key(), flow.reply_key()])?;
        // After a reset nobody went on for three seconds.
        world.steps(&flow.handshake())?;
        world.step(&flow.returns("a reset", &flow.response(RST | ACK)))?;
        world.datapath.age(&flow.key(), 3)?;
        talk_directly(world, &flow)?;
        is_gone(world, &[flow.key(), flow.reply_key()])
    });
}

#[test]
fn a_connection_that_lives_keeps_its_answers() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        // Segments of its middle end nothing either, whatever became of the connection.
        for flags in [SYN, ACK, RST, FIN | ACK] {
            let step = Step::untouched("past the Service", Program::FromPod, &direct(&flow, flags).bytes());
            world.always(&step)?;
            world.always(&flow.goes("a request", &flow.request(ACK)))?;
            world.always(&flow.returns("a response", &flow.response(ACK)))?;
        }
        world.step(&flow.returns("a reset", &flow.response(RST | ACK)))?;
        world.datapath.age(&flow.key(), 3)?;
        world.always(&Step::untouched("an ACK", Program::FromPod, &direct(&flow, ACK).bytes()))?;
        assert!(world.datapath.entry(&flow.key())?.is_some(), "an ACK ended the flow");
        Ok(())
    });
}

#[test]
fn what_a_clients_packet_becomes_on_its_way_ends_nothing() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        // Where it enters the endpoint's device, or leaves the node, it looks like one that was sent so.
        for program in [Program::ToPod, Program::ToNet, Program::FromNet] {
            let packet = direct(&flow, world.first()).bytes();
            world.always(&Step::untouched("the request on its way", program, &packet))?;
        }
        world.always(&flow.goes("a request", &flow.request(world.middle())))?;
        world.always(&flow.returns("a response", &flow.response(world.middle())))?;
        // One of a client outside may pass two network devices.
        let flags = Policy::PRESERVE_SOURCE;
        let journey = world.journey(FrontendKind::NodePort, Client::Outside, Site::Here, flags)?;
        world.steps(&journey.handshake())?;
        for program in [Program::FromNet, Program::FromPod] {
            let packet = direct(&journey.flow, world.first()).bytes();
            world.always(&Step::untouched("the request at a second device", program, &packet))?;
        }
        world.steps(&journey.answer(world.middle()))
    });
}

#[test]
fn a_masqueraded_client_that_goes_to_the_endpoint_itself_is_not_masqueraded_any_more() {
    everywhere(|world| {
        for site in [Site::Here, Site::Beyond] {
            let journey = world.journey(FrontendKind::NodePort, Client::Pod, site, 0)?;
            assert!(journey.is_masqueraded());
            let flow = journey.flow;
            world.steps(&journey.handshake())?;
            world.steps(&journey.request(world.middle()))?;
            let keys = [journey.first_pair(), journey.second_pair()].concat();
            let (arrives, sends) = journey.far_side();
            if world.is_tcp() {
                // A live one keeps all of it.
                let step = Step::untouched("a SYN", Program::FromPod, &direct(&flow, SYN).bytes());
                world.always(&step)?;
                world.steps(&journey.answer(ACK))?;
                world.steps(&journey.answer(RST | ACK))?;
                for key in &keys {
                    world.datapath.age(key, 3)?;
                }
            }
            for (program, packet) in [
                (Program::FromPod, direct(&flow, world.first())),
                (arrives, direct(&flow, world.first())),
                (sends, flow.response(world.first() | world.middle())),
                (Program::ToPod, flow.response(world.first() | world.middle())),
            ] {
                world.always(&Step::untouched("past the Service", program, &packet.bytes()))?;
            }
            is_gone(world, &keys)?;
            world.steps(&journey.handshake())?;
            world.steps(&journey.request(world.middle()))?;
            world.steps(&journey.answer(world.middle()))?;
        }
        Ok(())
    });
}

#[test]
fn a_connection_of_a_client_outside_that_is_over_leaves_its_port_to_one_to_the_endpoint_itself() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        for (site, flags) in [(Site::Here, Policy::PRESERVE_SOURCE), (Site::Here, 0), (Site::Beyond, 0)] {
            let journey = world.journey(FrontendKind::NodePort, Client::Outside, site, flags)?;
            let flow = journey.flow;
            world.steps(&journey.handshake())?;
            // One that lives keeps its answers.
            let step = Step::untouched("a SYN", Program::FromNet, &direct(&flow, SYN).bytes());
            world.always(&step)?;
            world.steps(&journey.answer(ACK))?;
            world.steps(&journey.request(FIN | ACK))?;
            world.steps(&journey.answer(FIN | ACK))?;
            world.steps(&journey.request(ACK))?;
            // What was nobody's a moment ago is remembered as such for a second.
            world.datapath.advance_epoch()?;
            let (arrives, sends) = journey.far_side();
            for (program, packet) in [
                (Program::FromNet, direct(&flow, SYN)),
                (arrives, direct(&flow, SYN)),
                (sends, flow.response(SYN | ACK)),
                (Program::ToNet, flow.response(SYN | ACK)),
            ] {
                world.always(&Step::untouched("past the Service", program, &packet.bytes()))?;
            }
            let mut keys = journey.first_pair().to_vec();
            if journey.is_masqueraded() {
                keys.extend(journey.second_pair());
            }
            is_gone(world, &keys)?;
            world.steps(&journey.handshake())?;
            world.steps(&journey.answer(ACK))?;
        }
        Ok(())
    });
}
