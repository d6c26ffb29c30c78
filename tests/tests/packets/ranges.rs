//! Load balancer VIPs for some sources only (S-34).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::layout::{Class, Client, FrontendKind, Policy, ServiceVerdict, SourceRanges};
use lb_common::reason::Reason;
use lb_tests::datapath::case::{Flow, Step, World, everywhere};
use lb_tests::datapath::journey::{Journey, Site};

const RESTRICTED: u32 = Policy::SOURCE_RANGES;

/// The journey of another client, who keeps the address (policy Local), or is masqueraded.
fn of(journey: &Journey, address: IpAddr) -> Journey {
    let client = SocketAddr::new(address, journey.flow.client.port());
    let source = if journey.is_masqueraded() { journey.source } else { client };
    Journey { flow: Flow { client, ..journey.flow }, source, ..*journey }
}

fn not_allowed(journey: &Journey, flags: u8) -> Step {
    let packet = journey.flow.request(flags).bytes();
    let service = Some(journey.flow.service);
    Step::dropped("not allowed", &packet, Reason::SourceNotAllowed, service).at(journey.entrance())
}

/// A range, and addresses just inside and just outside of it.
type Example = ((IpAddr, u32), Vec<IpAddr>, Vec<IpAddr>);

/// Ranges of the family.
fn examples(v6: bool) -> Vec<Example> {
    let four = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    let six = |text: &str| IpAddr::V6(text.parse::<Ipv6Addr>().expect("an address"));
    if v6 {
        vec![
            (
                (six("2001:db8:1::"), 48),
                vec![six("2001:db8:1::"), six("2001:db8:1:ffff:ffff:ffff:ffff:ffff")],
                vec![six("2001:db8:0:ffff::1"), six("2001:db8:2::")],
            ),
            (
                (six("2001:db8::42"), 128),
                vec![six("2001:db8::42")],
                vec![six("2001:db8::41"), six("2001:db8::43"), six("2001:db8:0:0:1::42")],
            ),
            ((six("2001:db8:8000::"), 33), vec![six("2001:db8:ffff::1")], vec![six("2001:db8:7fff::1")]),
            ((six("::"), 0), vec![six("2001:db8::1"), six("fd00::1")], vec![]),
        ]
    } else {
        vec![
            (
                (four(203, 0, 113, 0), 24),
                vec![four(203, 0, 113, 0), four(203, 0, 113, 255)],
                vec![four(203, 0, 112, 255), four(203, 0, 114, 0)],
            ),
            (
                (four(198, 51, 100, 42), 32),
                vec![four(198, 51, 100, 42)],
                vec![four(198, 51, 100, 41), four(198, 51, 100, 43)],
            ),
            (
                (four(100, 64, 0, 0), 10),
                vec![four(100, 127, 255, 255)],
                vec![four(100, 128, 0, 0), four(100, 63, 255, 255)],
            ),
            ((four(0, 0, 0, 0), 0), vec![four(1, 2, 3, 4), four(223, 255, 255, 254)], vec![]),
        ]
    }
}

#[test]
fn a_source_in_a_range_may_use_the_vip_and_no_other() {
    everywhere(|world| {
        for client in [Client::Outside, Client::Pod] {
            for flags in [RESTRICTED, RESTRICTED | Policy::PRESERVE_SOURCE] {
                for (range, inside, outside) in examples(world.v6) {
                    let kind = FrontendKind::LoadBalancer;
                    let journey = world.journey(kind, client, Site::Beyond, flags)?;
                    world.datapath.source_ranges(journey.flow.service, &[range])?;
                    for (number, address) in inside.iter().enumerate() {
                        let journey = of(&journey, *address);
                        let opening = journey.opens(&journey.flow.request(world.first()));
                        // The port of a second client differs when the first one has it.
                        let steps = if number == 0 || !journey.is_masqueraded() { 2 } else { 1 };
                        world.steps(&opening[..steps]).with_context(|| format!("{address} in {range:?}"))?;
                    }
                    for address in &outside {
                        let journey = of(&journey, *address);
                        world.always(&not_allowed(&journey, world.first()))?;
                        world.always(&not_allowed(&journey, world.middle()))?;
                        assert!(world.datapath.entry(&journey.flow.key())?.is_none());
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn any_of_many_ranges_will_do_and_those_of_others_will_not() {
    everywhere(|world| {
        let v6 = world.v6;
        let range = |number: u32| -> (IpAddr, u32) {
            if v6 {
                let network = Ipv6Addr::from_bits((0x2001_0db8 << 96) | u128::from(number) << 64);
                (network.into(), 64)
            } else {
                (Ipv4Addr::from_bits((100 << 24) | number << 8).into(), 24)
            }
        };
        let ranges: Vec<_> = (0..SourceRanges::MAX).map(range).collect();
        let two = world.journey(FrontendKind::LoadBalancer, Client::Outside, Site::Beyond, RESTRICTED)?;
        let next = range(SourceRanges::MAX);
        let journey = world.journey(FrontendKind::LoadBalancer, Client::Outside, Site::Beyond, RESTRICTED)?;
        world.datapath.source_ranges(journey.flow.service, &ranges)?;
        world.datapath.source_ranges(two.flow.service, &[next, ranges[3]])?;
        for allowed in [ranges[0], ranges[77], ranges[127]] {
            let journey = of(&journey, allowed.0);
            let opening = journey.opens(&journey.flow.request(world.first()));
            world.step(&opening[0])?;
        }
        world.always(&not_allowed(&of(&journey, next.0), world.first()))?;
        for allowed in [next, ranges[3]] {
            let two = of(&two, allowed.0);
            world.step(&two.opens(&two.flow.request(world.first()))[0])?;
        }
        world.always(&not_allowed(&of(&two, ranges[4].0), world.first()))
    });
}

#[test]
fn ranges_are_for_vips_alone_and_come_before_everything_else() {
    everywhere(|world| {
        let nobody = examples(world.v6)[1].0;
        for client in [Client::Outside, Client::Pod] {
            for kind in [FrontendKind::ClusterIp, FrontendKind::ExternalIp, FrontendKind::NodePort] {
                let journey = world.journey(kind, client, Site::Beyond, RESTRICTED)?;
                world.datapath.source_ranges(journey.flow.service, &[nobody])?;
                world.steps(&journey.handshake()).with_context(|| format!("{kind:?} {client:?}"))?;
            }
            // No range at all, although there are to be some; and no endpoint either: dropped, not refused.
            let journey = world.journey(FrontendKind::LoadBalancer, client, Site::Beyond, RESTRICTED)?;
            world.always(&not_allowed(&journey, world.first()))?;
            for class in Class::ALL {
                world.datapath.publish_class(journey.flow.service, class, ServiceVerdict::Reject, &[])?;
            }
            world.always(&not_allowed(&journey, world.first()))?;
        }
        Ok(())
    });
}

#[test]
fn what_is_established_outlives_its_range() {
    everywhere(|world| {
        let (range, inside, _) = examples(world.v6).swap_remove(0);
        let kind = FrontendKind::LoadBalancer;
        let journey = of(&world.journey(kind, Client::Outside, Site::Here, RESTRICTED)?, inside[0]);
        world.datapath.source_ranges(journey.flow.service, &[range])?;
        world.steps(&journey.handshake())?;
        world.datapath.source_ranges(journey.flow.service, &[])?;
        world.datapath.advance_epoch()?;
        walk(world, &journey)?;
        let client = SocketAddr::new(inside[0], 50_000);
        let later = Journey { flow: Flow { client, ..journey.flow }, ..journey };
        world.always(&not_allowed(&later, world.first()))
    });
}

fn walk(world: &mut World, journey: &Journey) -> Result<()> {
    for step in [journey.request(world.middle()), journey.answer(world.middle())].concat() {
        world.always(&step)?;
    }
    Ok(())
}
