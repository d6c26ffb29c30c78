//! Fragments that come before their first one (S-72): they wait for it, within bounds.
//!
//! What lets go of held ones is a first one that is sent back to where it was met, and they after it. Test runs have no
//! device: here the first one and the held ones leave the program as they came, and are put in by hand again.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::layout::{Client, FragmentEntry, FrontendKind, HeldFragment};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Step, World, everywhere};
use lb_tests::datapath::counters::Event;
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::pieces::{piece_of, pieces};
use lb_tests::datapath::{Program, Verdict};

/// A payload in which no two places look alike.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// The piece waits: it goes nowhere, and nothing is counted.
fn waits(name: &'static str, program: Program, piece: &[u8]) -> Step {
    Step { verdict: Verdict::Drop, ..Step::untouched(name, program, piece) }
}

/// Runs pieces that wait, and looks at how many do then.
fn hold(world: &mut World, program: Program, pieces: &[Vec<u8>]) -> Result<()> {
    let before = world.datapath.held()?;
    for piece in pieces {
        world.step(&waits("waits", program, piece))?;
    }
    assert_eq!(world.datapath.held()?, before + pieces.len());
    Ok(())
}

/// The first piece lets go of the others, and is gone, as they are.
fn let_go(world: &mut World, program: Program, first: &[u8], last: &[u8]) -> Result<()> {
    // What is written over the first piece is the last one that waited.
    world.step(&Step { becomes: last.to_vec(), ..waits("the first", program, first) })?;
    assert_eq!(world.datapath.held()?, 0, "still waiting");
    Ok(())
}

#[test]
fn pieces_wait_for_their_first_one_and_follow_it() {
    everywhere(|world| {
        world.datapath.forget_held()?;
        let flow = world.flow()?;
        let first_packet = flow.request(world.first()).with_payload(&payload(6000));
        let request = flow.request(world.middle()).with_payload(&payload(6000));
        let steps = [flow.opens("opens", &first_packet), flow.goes("goes", &request)];
        for (id, step) in steps.iter().enumerate() {
            let pieces = pieces(&step.packet, id as u32, 1480);
            let mut later = pieces[1..].to_vec();
            if id == 1 {
                later.reverse();
            }
            hold(world, Program::FromPod, &later)?;
            let_go(world, Program::FromPod, &pieces[0], &later[later.len() - 1])?;
            world.steps(&step.in_pieces(id as u32, 1480))?;
        }
        world.step(&flow.returns("an answer", &flow.response(world.first() | world.middle())))?;
        let response = flow.response(world.middle()).with_payload(&payload(6000));
        let step = flow.returns("an answer in pieces", &response);
        let pieces = pieces(&step.packet, 7, 1480);
        hold(world, Program::ToPod, &pieces[1..])?;
        let_go(world, Program::ToPod, &pieces[0], &pieces[pieces.len() - 1])?;
        world.steps(&step.in_pieces(7, 1480))
    });
}

#[test]
fn small_and_large_pieces_wait_as_they_are() {
    everywhere(|world| {
        let flow = world.flow()?;
        let request = flow.request(world.middle()).with_payload(&payload(3600)).bytes();
        let first = piece_of(&request, 5, 0, 64);
        for (from, to) in [(64, 72), (64, 65), (3600, 3601), (64, 3600), (1000, 2001)] {
            world.datapath.forget_held()?;
            world.datapath.age_fragments(61)?;
            let later = piece_of(&request, 5, from, to);
            hold(world, Program::FromPod, std::slice::from_ref(&later))?;
            let_go(world, Program::FromPod, &first, &later)?;
        }
        Ok(())
    });
}

#[test]
fn what_goes_through_the_node_for_others_does_not_wait() {
    everywhere(|world| {
        world.datapath.forget_held()?;
        let journey = world.journey(FrontendKind::NodePort, Client::Outside, Site::Here, 0)?;
        let pod = world.flow()?;
        let other = SocketAddr::new(world.address(), 80);
        let request = journey.flow.request(world.middle()).with_payload(&payload(3000));
        let packet = |to| pieces(&request.between(journey.flow.client, to).bytes(), 1, 1480);
        for piece in &packet(other)[1..] {
            world.always(&Step::untouched("in", Program::FromNet, piece))?;
        }
        for to in [other, journey.flow.vip, pod.vip] {
            for piece in &packet(to)[1..] {
                world.always(&Step::untouched("out", Program::ToNet, piece))?;
            }
        }
        assert_eq!(world.datapath.held()?, 0);
        // Addressed to the node, to a Service, to a pod, or by a pod to anybody.
        for (program, to) in [
            (Program::FromNet, journey.flow.vip),
            (Program::FromNet, pod.vip),
            (Program::ToPod, other),
            (Program::FromPod, other),
        ] {
            hold(world, program, &packet(to)[1..])?;
        }
        Ok(())
    });
}

#[test]
fn nothing_waits_at_an_address_that_no_service_has() {
    everywhere(|world| {
        world.datapath.forget_held()?;
        let flow = world.flow()?;
        let nobody = world.address();
        world.datapath.range(nobody, if world.v6 { 128 } else { 32 })?;
        let packet = flow.request(world.middle()).with_payload(&payload(3000));
        let pieces = pieces(&packet.between(flow.client, SocketAddr::new(nobody, 80)).bytes(), 1, 1480);
        for program in [Program::FromPod, Program::FromNet] {
            let step = Step::dropped("nobody's", &pieces[1], Reason::UnallocatedAddress, None);
            world.always(&step.at(program))?;
        }
        assert_eq!(world.datapath.held()?, 0);
        Ok(())
    });
}

#[test]
fn at_each_hook_pieces_wait_for_the_first_one_there() {
    everywhere(|world| {
        world.datapath.forget_held()?;
        let flow = world.flow()?;
        let other = SocketAddr::new(world.address(), 80);
        let packet = flow.request(world.middle()).with_payload(&payload(3000)).between(flow.client, other);
        let pieces = pieces(&packet.bytes(), 1, 1480);
        hold(world, Program::ToPod, &pieces[1..])?;
        world.step(&Step::untouched("the first, elsewhere", Program::FromPod, &pieces[0]))?;
        assert_eq!(world.datapath.held()?, pieces.len() - 1);
        let_go(world, Program::ToPod, &pieces[0], &pieces[pieces.len() - 1])
    });
}

#[test]
fn where_there_is_no_room_a_service_s_pieces_are_dropped_and_others_pass() {
    everywhere(|world| {
        let flow = world.flow()?;
        let other = SocketAddr::new(world.address(), 80);
        let packet = flow.request(world.middle()).with_payload(&payload(2000));
        let to_other = packet.between(flow.client, other);
        for (packet, served) in [(packet, true), (to_other, false)] {
            world.datapath.forget_held()?;
            let pieces = pieces(&packet.bytes(), 1, 24);
            let room = HeldFragment::WINDOW as usize;
            hold(world, Program::FromPod, &pieces[1..=room])?;
            let surplus = &pieces[room + 1];
            let step = if served {
                Step::dropped("no room", surplus, Reason::FragmentsFull, None)
            } else {
                Step::untouched("no room", Program::FromPod, surplus)
            };
            world.always(&step)?;
            assert_eq!(world.datapath.held()?, room);
            // The first one lets go of all of them.
            let_go(world, Program::FromPod, &pieces[0], &pieces[room])?;
        }
        Ok(())
    });
}

#[test]
fn who_waited_too_long_makes_room_and_is_counted() {
    everywhere(|world| {
        world.datapath.forget_held()?;
        let flow = world.flow()?;
        let packet = flow.request(world.middle()).with_payload(&payload(2000));
        let pieces = pieces(&packet.bytes(), 1, 24);
        let room = HeldFragment::WINDOW as usize;
        hold(world, Program::FromPod, &pieces[1..=room])?;
        world.datapath.age_held(2)?;
        // The same datagram, or any other whose pieces may lie there.
        for piece in &pieces[1..=3] {
            let step = waits("in its place", Program::FromPod, piece);
            world.step(&step.and(Event::Reason(Reason::Fragment)))?;
        }
        assert_eq!(world.datapath.held()?, room);
        // Those three alone follow.
        world
            .step(&Step { becomes: pieces[3].clone(), ..waits("the first", Program::FromPod, &pieces[0]) })?;
        assert_eq!(world.datapath.held()?, room - 3);
        Ok(())
    });
}

#[test]
fn a_first_one_of_long_ago_says_nothing() {
    everywhere(|world| {
        let flow = world.flow()?;
        world.steps(&flow.handshake())?;
        let request = flow.request(world.middle()).with_payload(&payload(3000));
        let steps = flow.goes("goes", &request).in_pieces(9, 1480);
        let lifetime = FragmentEntry::lifetime(world.v6);
        world.datapath.forget_held()?;
        world.steps(&steps)?;
        world.datapath.age_fragments(lifetime - 2)?;
        world.step(&steps[1])?;
        world.datapath.age_fragments(2)?;
        hold(world, Program::FromPod, &[steps[1].packet.clone()])
    });
}
