//! What flows the program carries, what it says to the connection tables, and what it forgets.

use anyhow::ensure;
use lb_common::layout::{BackendFlags, Client, FrontendKind, Policy};
use lb_common::proto::tcp::{ACK, FIN, RST, SYN};
use lb_tests::datapath::Program;
use lb_tests::datapath::case::Step;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::Packet;
use lb_tests::datapath::wire::Device;

use lb_tests::datapath::trip::{OLD, Trip, Way, on_wires, passes};

#[test]
fn flows_that_their_ends_have_not_agreed_on_are_for_the_stack() {
    on_wires(|world, wires| {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        let (request, response) = (trip.request(world), trip.response(world));
        passes(world, "before the first packet", &request.bytes())?;
        passes(world, "an answer to nothing", &response.bytes())?;
        let handshake = trip.journey.handshake();
        let agreed = if world.is_tcp() { handshake.len() } else { 4 };
        for (number, step) in handshake.iter().enumerate() {
            world.step(step)?;
            if number + 1 < agreed {
                for key in trip.journey.first_pair().iter().chain(&trip.second_pair()) {
                    // Those that there are yet.
                    let _absent = world.datapath.age(key, OLD);
                }
                passes(world, "while it begins", &request.bytes())?;
                passes(world, "an answer while it begins", &response.bytes())?;
            }
        }
        trip.grow_old(world, OLD)?;
        world.always(&trip.goes("agreed on", &request))?;
        world.always(&trip.returns("agreed on", &response))
    });
}

#[test]
fn the_stack_sees_a_flow_now_and_then() {
    on_wires(|world, wires| {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        trip.stands(world)?;
        let request = trip.request(world);
        // Seconds of its age: in the first few of 32, what the flow cache has no answer for passes, and is known from then on.
        for (older, shown) in [(0, false), (15, false), (8, true), (32, true), (6, false)] {
            trip.grow_old(world, older)?;
            world.datapath.advance_epoch()?;
            if shown {
                let seen = trip.seen(world)?;
                world.step(&Step::untouched("shown", Program::FromWire, &request.bytes()))?;
                ensure!(trip.seen(world)? == seen, "the stack's programs are to say that it lives");
            }
            world.step(&trip.goes("carried", &request))?;
            world.step(&trip.goes("carried", &request))?;
        }
        Ok(())
    });
}

#[test]
fn every_entry_learns_that_the_flow_lives() {
    on_wires(|world, wires| {
        for flags in [0, Policy::PRESERVE_SOURCE] {
            let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, flags)?;
            for answers in [false, true] {
                if !answers {
                    trip.stands(world)?;
                }
                let step = if answers {
                    trip.returns("a response", &trip.response(world))
                } else {
                    trip.goes("a request", &trip.request(world))
                };
                world.datapath.advance_epoch()?;
                let before = trip.seen(world)?;
                trip.grow_old(world, 32)?;
                let aged = trip.seen(world)?;
                ensure!(aged.iter().zip(&before).all(|(aged, before)| *aged + 32 == *before));
                world.step(&step)?;
                let seen = trip.seen(world)?;
                let newest = *seen.iter().max().unwrap_or(&0);
                ensure!(
                    seen.iter().all(|it| *it == newest && *it >= aged[0] + 32),
                    "{aged:?}, then {seen:?}"
                );
                // By the flow cache nothing is said.
                trip.grow_old(world, 32)?;
                let aged = trip.seen(world)?;
                world.step(&step)?;
                ensure!(trip.seen(world)? == aged, "the flow cache was not asked");
            }
        }
        Ok(())
    });
}

#[test]
fn flows_with_an_evicted_entry_are_for_the_stack_which_restores_it() {
    on_wires(|world, wires| {
        for flags in [0, Policy::PRESERVE_SOURCE] {
            let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, flags)?;
            trip.stands(world)?;
            let (request, response) = (trip.request(world), trip.response(world));
            let keys: Vec<_> = trip.journey.first_pair().into_iter().chain(trip.second_pair()).collect();
            for key in keys {
                world.datapath.evict(&key)?;
                world.datapath.advance_epoch()?;
                passes(world, "a request", &request.bytes())?;
                passes(world, "a response", &response.bytes())?;
                // It passes because the entry is missing.
                for step in
                    [trip.journey.request(world.middle()), trip.journey.answer(world.middle())].concat()
                {
                    world.datapath.run(step.program, &step.packet)?;
                }
                world.steps(&trip.journey.request(world.middle()))?;
                world.steps(&trip.journey.answer(world.middle()))?;
                trip.settle(world, OLD)?;
                world.datapath.advance_epoch()?;
                world.step(&trip.goes("a request", &request))?;
                world.step(&trip.returns("a response", &response))?;
            }
        }
        Ok(())
    });
}

#[test]
fn what_the_stack_is_told_of_the_end_the_program_knows_at_once() {
    on_wires(|world, wires| {
        if !world.is_tcp() {
            return Ok(());
        }
        for flags in [0, Policy::PRESERVE_SOURCE] {
            for (of_client, last) in [(true, FIN | ACK), (false, FIN | ACK), (true, RST), (false, RST)] {
                let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, flags)?;
                trip.stands(world)?;
                let (request, response) = (trip.request(world), trip.response(world));
                world.always(&trip.goes("a request", &request))?;
                world.always(&trip.returns("a response", &response))?;
                let steps = if of_client { trip.journey.request(last) } else { trip.journey.answer(last) };
                world.steps(&steps)?;
                passes(world, "a request after it", &request.bytes())?;
                passes(world, "a response after it", &response.bytes())?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_connection_that_begins_anew_is_not_carried_as_the_old_one() {
    on_wires(|world, wires| {
        if !world.is_tcp() {
            return Ok(());
        }
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        trip.stands(world)?;
        world.always(&trip.goes("a request", &trip.request(world)))?;
        world.steps(&trip.journey.request(FIN | ACK))?;
        world.steps(&trip.journey.answer(FIN | ACK))?;
        world.steps(&trip.journey.request(ACK))?;
        // The SYN begins a new connection on the old entries.
        let syn = trip.journey.flow.request(SYN);
        world.datapath.run(Program::FromNet, &syn.bytes())?;
        passes(world, "a request of the new one", &trip.request(world).bytes())?;
        passes(world, "a response of the new one", &trip.response(world).bytes())
    });
}

#[test]
fn udp_flows_leave_endpoints_that_serve_no_more_and_tcp_flows_stay() {
    on_wires(|world, wires| {
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        trip.stands(world)?;
        let request = trip.request(world);
        world.always(&trip.goes("serving", &request))?;
        trip.place(world, 0, 0)?;
        if world.is_tcp() {
            world.always(&trip.goes("not serving, but standing", &request))?;
        } else {
            passes(world, "to choose again", &request.bytes())?;
        }
        // Its row is another endpoint's: where this one is, only routes know.
        trip.place(world, BackendFlags::SERVING, 0)?;
        world.always(&trip.goes("serving again", &request))?;
        let mut spec = world.endpoint(9090);
        spec.interface = 0;
        world.datapath.set_backend(trip.journey.flow.backend, trip.journey.flow.service, &spec)?;
        world.datapath.advance_epoch()?;
        passes(world, "of an endpoint that is gone", &request.bytes())
    });
}

#[test]
fn answers_to_pods_and_turned_packets_pass() {
    on_wires(|world, _| {
        // A pod's flow to an endpoint beyond: masqueraded (node port) or not (cluster IP).
        for kind in [FrontendKind::NodePort, FrontendKind::ClusterIp] {
            let journey = world.journey(kind, Client::Pod, Site::Beyond, 0)?;
            world.steps(&journey.handshake())?;
            for key in journey.first_pair() {
                world.datapath.age(&key, OLD)?;
            }
            let response = journey.response(world.middle()).to_mac(Device::One.mac());
            passes(world, "an answer to a pod", &response.bytes())?;
            let request = journey.flow.request(world.middle()).to_mac(Device::One.mac());
            passes(world, "a pod's packet from outside", &request.bytes())?;
        }
        // The endpoint is the client itself, and keeps its address: its packets are turned round.
        let journey = world.journey(
            FrontendKind::ExternalIp,
            Client::Outside,
            Site::Beyond,
            Policy::PRESERVE_SOURCE,
        )?;
        let flow = lb_tests::datapath::case::Flow {
            client: std::net::SocketAddr::new(journey.flow.endpoint.ip(), 41_000),
            ..journey.flow
        };
        let packet = |flags| flow.request(flags).to_mac(Device::One.mac());
        world.datapath.run(Program::FromNet, &packet(world.first()).bytes())?;
        passes(world, "turned round", &packet(world.middle()).bytes())
    });
}

#[test]
fn what_is_nobodys_passes_until_somebody_has_it() {
    on_wires(|world, wires| {
        // Met before there is a Service, as packets of others.
        let (vip, client) = (world.address(), std::net::SocketAddr::new(world.address(), 40_000));
        let vip = std::net::SocketAddr::new(vip, 80);
        let stranger = Packet::new(world.protocol, client, vip, world.middle()).to_mac(Device::One.mac());
        passes(world, "nobody's", &stranger.bytes())?;
        passes(world, "nobody's", &stranger.bytes())?;
        // Answers that were met before their flow.
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        let response = trip.response(world);
        passes(world, "an answer to nothing", &response.bytes())?;
        trip.stands(world)?;
        world.step(&trip.returns("an answer to something", &response))?;
        // Every packet of theirs is still for the stack when nothing changed for them.
        passes(world, "nobody's", &stranger.bytes())
    });
}
