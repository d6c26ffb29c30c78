//! Frames of flows that stand, but are not simply their next packets: the stack's.

use anyhow::{Result, ensure};
use lb_common::layout::{FrontendKind, Policy};
use lb_common::proto;
use lb_tests::datapath::case::World;
use lb_tests::datapath::packet::{Checksum, Packet};
use lb_tests::datapath::wire::Device;

use lb_tests::datapath::trip::{CHANGES, Trip, Way, on_wires, passes};

/// A flow that stands, masqueraded or not, and one packet of each direction that the program carries.
fn each_standing(case: impl Fn(&mut World, &Trip, &Packet) -> Result<()>) {
    on_wires(|world, wires| {
        for flags in [0, Policy::PRESERVE_SOURCE] {
            let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, flags)?;
            trip.stands(world)?;
            for packet in [trip.request(world), trip.response(world)] {
                case(world, &trip, &packet)?;
            }
            // The flow stood all the time.
            world.always(&trip.goes("a request", &trip.request(world)))?;
            world.always(&trip.returns("a response", &trip.response(world)))?;
        }
        Ok(())
    });
}

/// Bytes of a packet with some of them changed, the IPv4 header checksum made good again.
fn changed(packet: &Packet, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = packet.bytes();
    change(&mut bytes);
    if bytes[12..14] == [8, 0] && bytes.len() >= 34 {
        bytes[24..26].fill(0);
        let words = bytes[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        bytes[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }
    bytes
}

#[test]
fn what_begins_or_ends_a_flow_passes() {
    on_wires(|world, wires| {
        if !world.is_tcp() {
            return Ok(());
        }
        let trip = Trip::new(world, wires, FrontendKind::NodePort, Way::Back, 0)?;
        trip.stands(world)?;
        world.always(&trip.goes("a request", &trip.request(world)))?;
        for flags in CHANGES {
            for packet in [trip.request(world), trip.response(world)] {
                passes(world, "flags", &Packet { flags, ..packet }.bytes())?;
            }
        }
        world.step(&trip.goes("a request", &trip.request(world)))
    });
}

#[test]
fn what_is_not_addressed_to_the_device_passes() {
    each_standing(|world, _, packet| {
        for mac in [Device::Two.mac(), [0xff; 6], [1, 0, 0x5e, 0, 0, 1], Device::One.far_mac(), [0; 6]] {
            passes(world, "another's frame", &packet.to_mac(mac).bytes())?;
        }
        Ok(())
    });
}

#[test]
fn what_has_no_hop_left_passes() {
    each_standing(|world, _, packet| {
        for ttl in [0, 1] {
            passes(world, "the last hop", &Packet { ttl, ..packet.clone() }.bytes())?;
        }
        Ok(())
    });
}

#[test]
fn what_the_stack_would_look_at_twice_passes() {
    each_standing(|world, _, packet| {
        if !world.v6 {
            let options = Packet { options: vec![1, 1, 1, 0], ..packet.clone() };
            passes(world, "options", &options.bytes())?;
            for (name, fragment) in
                [("first fragment", 0x2000_u16), ("later fragment", 3), ("middle", 0x2003)]
            {
                let bytes = changed(packet, |bytes| bytes[20..22].copy_from_slice(&fragment.to_be_bytes()));
                passes(world, name, &bytes)?;
            }
            let total = u16::from_be_bytes([packet.bytes()[16], packet.bytes()[17]]);
            for length in [total + 1, u16::MAX, 0, 20, 27] {
                let bytes = changed(packet, |bytes| bytes[16..18].copy_from_slice(&length.to_be_bytes()));
                passes(world, "another length", &bytes)?;
            }
        } else {
            let payload = u16::from_be_bytes([packet.bytes()[18], packet.bytes()[19]]);
            for length in [payload + 1, u16::MAX, 0, 7] {
                let bytes = changed(packet, |bytes| bytes[18..20].copy_from_slice(&length.to_be_bytes()));
                passes(world, "another length", &bytes)?;
            }
            // A destination options header of eight bytes before the transport header.
            let bytes = changed(packet, |bytes| {
                let next = std::mem::replace(&mut bytes[20], 60);
                bytes.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
                bytes[18..20].copy_from_slice(&(payload + 8).to_be_bytes());
            });
            passes(world, "destination options", &bytes)?;
        }
        // Version 7; a tag of a virtual LAN, with a number and without.
        passes(world, "another version", &changed(packet, |bytes| bytes[14] |= 0x30))?;
        for number in [100_u8, 0] {
            let bytes = changed(packet, |bytes| {
                bytes.splice(12..12, [0x81, 0, 0, number]);
            });
            passes(world, "a tag", &bytes)?;
        }
        Ok(())
    });
}

#[test]
fn what_is_cut_off_passes() {
    each_standing(|world, _, packet| {
        let bytes = packet.bytes();
        for length in 14..bytes.len() {
            passes(world, "cut off", &bytes[..length])?;
        }
        Ok(())
    });
}

#[test]
fn what_is_padded_is_carried_with_its_padding() {
    each_standing(|world, trip, packet| {
        let packet = packet.with_payload(b"");
        let step = if packet.dst == trip.journey.flow.vip {
            trip.goes("padded", &packet)
        } else {
            trip.returns("padded", &packet)
        };
        let padding = [0; 18];
        let mut step = step;
        step.packet.extend(padding);
        step.becomes.extend(padding);
        // As at the stack's programs, the padding counts.
        for event in &mut step.events {
            use lb_tests::datapath::counters::Event;
            if let Event::Forward(_, _, bytes) | Event::Reply(_, _, bytes) = event {
                *bytes += padding.len() as u64;
            }
        }
        step.verified = false;
        world.always(&step)
    });
}

#[test]
fn what_may_lack_its_checksum_passes() {
    each_standing(|world, _, packet| {
        for len in [0, 7, 1000] {
            let partial = packet.with_payload(&vec![5; len]).with_checksum(Checksum::Partial);
            passes(world, "to be completed", &partial.bytes())?;
        }
        Ok(())
    });
}

#[test]
fn what_is_of_another_protocol_passes() {
    each_standing(|world, _, packet| {
        for protocol in [1_u8, 41, 47, 50, 58, proto::SCTP] {
            let at = if world.v6 { 20 } else { 23 };
            passes(world, "another protocol", &changed(packet, |bytes| bytes[at] = protocol))?;
        }
        for kind in [[8, 6], [0x88, 0xcc], [0, 60]] {
            passes(world, "no IP", &changed(packet, |bytes| bytes[12..14].copy_from_slice(&kind)))?;
        }
        Ok(())
    });
}

#[test]
fn what_is_too_long_for_its_way_passes() {
    on_wires(|world, wires| {
        for way in Way::ALL {
            let trip = Trip::new(world, wires, FrontendKind::NodePort, way, 0)?;
            trip.stands(world)?;
            if !trip.is_served(world) {
                continue;
            }
            let empty = trip.request(world).with_payload(b"").ip_len() as usize;
            let fits = way.device().mtu() as usize - empty;
            let request = |len: usize| trip.request(world).with_payload(&vec![9; len]);
            let (longest, longer) = (request(fits), request(fits + 1));
            ensure!(longest.ip_len() == u64::from(way.device().mtu()));
            // Whatever was met first.
            world.datapath.advance_epoch()?;
            passes(world, "too long", &longer.bytes())?;
            world.always(&trip.goes("fits", &longest))?;
            passes(world, "too long after one that fits", &longer.bytes())?;
            world.always(&trip.goes("fits", &longest))?;
        }
        Ok(())
    });
}
