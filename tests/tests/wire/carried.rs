//! Packets that are carried.

use anyhow::ensure;
use lb_common::layout::{FrontendKind, Policy};
use lb_tests::datapath::packet::Checksum;
use lb_tests::datapath::wire::Device;

use lb_tests::datapath::trip::{KINDS, Trip, Way, on_wires, passes};

#[test]
fn packets_of_flows_that_stand_leave_as_both_programs_would_make_them() {
    on_wires(|world, wires| {
        for (kind, way) in KINDS.into_iter().flat_map(|kind| Way::ALL.map(|way| (kind, way))) {
            for flags in [0, Policy::PRESERVE_SOURCE] {
                let trip = Trip::new(world, wires, kind, way, flags)?;
                ensure!(trip.journey.is_masqueraded() == (flags == 0));
                trip.stands(world)?;
                let request = trip.request(world);
                if !trip.is_served(world) {
                    passes(world, "a request to a pod that the stack leads to", &request.bytes())?;
                    continue;
                }
                let before = world.datapath.sent_on()?;
                world.always(&trip.goes("a request", &request))?;
                let sent: u64 = world.datapath.sent_on()?.iter().sum::<u64>() - before.iter().sum::<u64>();
                ensure!(sent == 3, "{sent} packets counted as sent on");
                if way != Way::Pod {
                    world.datapath.comes_by(way.device());
                    world.always(&trip.returns("a response", &trip.response(world)))?;
                    world.datapath.comes_by(Device::One);
                }
                // And the stack's programs still know what to do with the next one.
                world.steps(&trip.journey.request(world.middle()))?;
                world.steps(&trip.journey.answer(world.middle()))?;
            }
        }
        Ok(())
    });
}

#[test]
fn packets_of_every_size_and_checksum_are_carried() {
    on_wires(|world, wires| {
        for flags in [0, Policy::PRESERVE_SOURCE] {
            let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, flags)?;
            trip.stands(world)?;
            let (request, response) = (trip.request(world), trip.response(world));
            let mut variants = Vec::new();
            for len in [0, 1, 2, 3, 64, 65, 1400] {
                let payload: Vec<u8> = (0..len).map(|at| (at * 7 + len) as u8).collect();
                variants.push((request.with_payload(&payload), response.with_payload(&payload)));
            }
            for sequence in 0..64 {
                let of = |packet: &lb_tests::datapath::packet::Packet| lb_tests::datapath::packet::Packet {
                    sequence: sequence * 0x0101_0107,
                    ttl: 2 + sequence as u8 * 3,
                    ..packet.with_payload(&sequence.to_be_bytes())
                };
                variants.push((of(&request), of(&response)));
            }
            if !world.is_tcp() {
                let without =
                    |packet: &lb_tests::datapath::packet::Packet| packet.with_checksum(Checksum::Absent);
                variants.push((without(&request), without(&response)));
            }
            for (request, response) in &variants {
                world.step(&trip.goes("a request", request))?;
                world.step(&trip.returns("a response", response))?;
            }
        }
        Ok(())
    });
}
