//! Every kind of frontend, client and traffic policy: which endpoints, which source, and what is none of our business
//! (S-23, S-30, S-33, S-35, S-37).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use lb_common::layout::{Class, Client, FrontendKind, Policy, ServiceVerdict};
use lb_common::proto::tcp::RST;
use lb_common::reason::Reason;
use lb_tests::datapath::Program;
use lb_tests::datapath::case::{Step, World, everywhere};
use lb_tests::datapath::journey::Site;
use lb_tests::datapath::packet::Packet;

use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};

/// External traffic policy Cluster.
const CLUSTER: u32 = 0;
/// External traffic policy Local.
const LOCAL: u32 = Policy::PRESERVE_SOURCE;

/// Kind of frontend, client, policy; class of endpoints.
const TABLE: &[(FrontendKind, Client, u32, Class)] = &[
    (ClusterIp, Client::Pod, CLUSTER, Class::Internal),
    (ClusterIp, Client::Pod, LOCAL, Class::Internal),
    (ClusterIp, Client::Outside, CLUSTER, Class::Internal),
    (ClusterIp, Client::Outside, LOCAL, Class::Internal),
    (ExternalIp, Client::Pod, CLUSTER, Class::Cluster),
    (ExternalIp, Client::Pod, LOCAL, Class::Cluster),
    (ExternalIp, Client::Outside, CLUSTER, Class::External),
    (ExternalIp, Client::Outside, LOCAL, Class::External),
    (LoadBalancer, Client::Pod, CLUSTER, Class::Cluster),
    (LoadBalancer, Client::Pod, LOCAL, Class::Cluster),
    (LoadBalancer, Client::Outside, CLUSTER, Class::External),
    (LoadBalancer, Client::Outside, LOCAL, Class::External),
    (NodePort, Client::Pod, CLUSTER, Class::Cluster),
    (NodePort, Client::Pod, LOCAL, Class::Cluster),
    (NodePort, Client::Outside, CLUSTER, Class::External),
    (NodePort, Client::Outside, LOCAL, Class::External),
];

/// Where packets come in from a client.
const fn entrance(client: Client) -> Program {
    if matches!(client, Client::Pod) { Program::FromPod } else { Program::FromNet }
}

#[test]
fn every_client_of_every_frontend_gets_the_endpoints_of_its_class_and_the_right_source() {
    everywhere(|world| {
        for &(kind, client, flags, class) in TABLE {
            for site in [Site::Here, Site::Beyond] {
                // An endpoint in the list of that class alone, others in the others'.
                let service = world.datapath.empty_service();
                let mut reached = None;
                for each in Class::ALL {
                    let spec = world.endpoint_at(site);
                    let backend = world.datapath.backend(service, &spec)?;
                    world.datapath.publish_class(service, each, ServiceVerdict::Random, &[backend])?;
                    if each == class {
                        reached = Some((backend, spec));
                    }
                }
                let (backend, spec) = reached.expect("one of the classes");
                world.datapath.policy(service, Policy { affinity_timeout: 0, flags })?;
                world.give_masquerade_address()?;
                let vip = world.frontend(service, kind)?;
                let address = SocketAddr::new(world.address(), 40_000);
                let journey =
                    world.journey_to(service, backend, &spec, vip, kind, client, site, flags, address);
                walk(world, &journey)
                    .with_context(|| format!("{kind:?} {client:?}, policy {flags}, {site:?}"))?;
            }
        }
        Ok(())
    });
}

fn walk(world: &mut World, journey: &lb_tests::datapath::journey::Journey) -> Result<()> {
    let middle = world.middle();
    let mut steps = journey.handshake();
    if journey.flow.direct {
        // The packet went straight to the endpoint's device and never met what is in between.
        steps.retain(|step| step.program != Program::ToPod || step.packet != step.becomes);
    }
    if journey.flow.redirects && journey.site == Site::Here {
        steps.retain(|step| step.program == Program::FromPod);
        steps.retain(|step| step.packet != step.becomes);
        return world.steps(&steps);
    }
    world.steps(&steps)?;
    for step in [journey.request(middle), journey.answer(middle)].concat() {
        world.always(&step)?;
    }
    Ok(())
}

#[test]
fn a_class_without_endpoints_refuses_or_drops_on_its_own() {
    everywhere(|world| {
        for &(kind, client, flags, class) in TABLE {
            for verdict in [ServiceVerdict::Reject, ServiceVerdict::Drop] {
                let journey = world.journey(kind, client, Site::Here, flags)?;
                let service = journey.flow.service;
                world.datapath.publish_class(service, class, verdict, &[])?;
                let packet = journey.flow.request(world.first());
                let step = if verdict == ServiceVerdict::Reject {
                    Step::refused("refused", &packet, Reason::NoEndpoint, Some(service))
                } else {
                    Step::dropped("dropped", &packet.bytes(), Reason::NoLocalEndpoint, Some(service))
                };
                world.always(&step.at(entrance(client))).with_context(|| format!("{kind:?} {client:?}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_reset_of_an_unknown_flow_is_dropped_at_every_frontend() {
    everywhere(|world| {
        if !world.is_tcp() {
            return Ok(());
        }
        for &(kind, client, flags, _) in TABLE {
            let journey = world.journey(kind, client, Site::Here, flags)?;
            let reset = journey.flow.request(RST).bytes();
            let step = Step::dropped("reset", &reset, Reason::ResetWithoutFlow, Some(journey.flow.service));
            world.always(&step.at(entrance(client)))?;
        }
        Ok(())
    });
}

#[test]
fn cluster_ips_are_guarded_against_the_outside_too() {
    everywhere(|world| {
        let flow = world.flow()?;
        let (network, prefix) = (world.host(128), if world.v6 { 121 } else { 25 });
        world.datapath.range(network, prefix)?;
        let packet = flow.request(world.first());
        let to = |address, port| packet.between(flow.client, SocketAddr::new(address, port));
        let unknown = Step::refused("another port", &to(flow.vip.ip(), 81), Reason::UnknownPort, None);
        world.always(&unknown.at(Program::FromNet))?;
        let nobody = to(world.host(200), 80).bytes();
        let unallocated = Step::dropped("nobody's", &nobody, Reason::UnallocatedAddress, None);
        world.always(&unallocated.at(Program::FromNet))?;
        for protocol in [1, 58, 136] {
            let packet = with_protocol(&packet, protocol);
            let odd = Step::dropped("another protocol", &packet, Reason::NotProxied, None);
            world.always(&odd.at(Program::FromNet))?;
        }
        // On its way out it is too late to say anything.
        for packet in [to(flow.vip.ip(), 81).bytes(), nobody, with_protocol(&packet, 1)] {
            world.always(&Step::untouched("leaves", Program::ToNet, &packet))?;
        }
        Ok(())
    });
}

#[test]
fn everything_else_at_external_addresses_passes() {
    everywhere(|world| {
        for kind in [ExternalIp, LoadBalancer, NodePort] {
            let journey = world.journey(kind, Client::Outside, Site::Here, CLUSTER)?;
            let flow = journey.flow;
            let packet = flow.request(world.first());
            let other_port = SocketAddr::new(flow.vip.ip(), flow.vip.port() + 1);
            let other_protocol = if world.is_tcp() { 17 } else { 6 };
            let mut malformed = packet.bytes();
            let at = if world.v6 { 18 } else { 16 };
            malformed[at..at + 2].copy_from_slice(&[0, 7]);
            let mut packets = vec![
                ("another port", packet.between(flow.client, other_port).bytes()),
                (
                    "a reset of another port",
                    Packet { flags: RST, ..packet.clone() }.between(flow.client, other_port).bytes(),
                ),
                ("another transport", Packet { protocol: other_protocol, ..packet.clone() }.bytes()),
                ("SCTP", with_protocol(&packet, 132)),
                ("a ping", with_protocol(&packet, if world.v6 { 58 } else { 1 })),
                ("malformed", malformed),
            ];
            if kind == NodePort {
                // The port at an address that node ports are not served at.
                let elsewhere = SocketAddr::new(world.address(), flow.vip.port());
                packets.push(("the port elsewhere", packet.between(flow.client, elsewhere).bytes()));
            }
            for (name, bytes) in &packets {
                for program in Program::ALL {
                    world
                        .always(&Step::untouched(name, program, bytes))
                        .with_context(|| format!("{kind:?} {program:?}"))?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_node_port_is_served_at_every_node_port_address_and_until_it_is_one_no_more() {
    everywhere(|world| {
        let journey = world.journey(NodePort, Client::Outside, Site::Here, LOCAL)?;
        for _ in 0..3 {
            let vip = SocketAddr::new(world.address(), journey.flow.vip.port());
            let packet = journey.flow.request(world.first()).between(journey.flow.client, vip);
            world.always(&Step::untouched("before", Program::FromNet, &packet.bytes()))?;
            world.datapath.node_address(vip.ip())?;
            world.datapath.advance_epoch()?;
            // A port of its own, or the answers could not be told apart.
            let client = SocketAddr::new(world.address(), 40_000);
            let flow = lb_tests::datapath::case::Flow { vip, client, ..journey.flow };
            let served = lb_tests::datapath::journey::Journey { flow, source: client, ..journey };
            world.steps(&served.handshake())?;
        }
        Ok(())
    });
}

#[test]
fn s_36_loopback_node_ports_are_not_for_packets_of_others() {
    everywhere(|world| {
        let journey = world.journey(NodePort, Client::Outside, Site::Here, LOCAL)?;
        let loopback: IpAddr = match journey.flow.vip.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        world.datapath.node_address(loopback)?;
        world.datapath.advance_epoch()?;
        let vip = SocketAddr::new(loopback, journey.flow.vip.port());
        let packet = journey.flow.request(world.first()).between(journey.flow.client, vip).bytes();
        // The stack drops it: nothing on a wire comes from or goes to a loopback address.
        for program in [Program::FromNet, Program::FromPod] {
            world.always(&Step::untouched("to a loopback address", program, &packet))?;
        }
        Ok(())
    });
}

/// The packet with another protocol in its IP header.
fn with_protocol(packet: &Packet, protocol: u8) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[if packet.src.is_ipv6() { 20 } else { 23 }] = protocol;
    bytes
}
