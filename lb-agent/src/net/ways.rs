//! From what the kernel told to the way to an endpoint, for forwarding mode `redirect`. What is not known for sure
//! has no way, and the host's stack finds it.

use std::net::IpAddr;

use super::mirror::{Link, LinkKind, Mac, Mirror, Target};
use crate::apply::{Way, WayKind};

/// What is known of the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// This way.
    Way(Way),
    /// A pod of this node whose MAC address, or bridge port, is not known (any more): worth asking the neighbour
    /// behind that device.
    Unresolved(u32),
    /// Up to the host's stack.
    Stack,
}

/// Finds the way to an address.
pub fn way_to(mirror: &Mirror, address: IpAddr) -> Finding {
    let Some((key, target)) = mirror.route(address) else { return Finding::Stack };
    match target {
        Target::Device(interface) => match mirror.link(interface) {
            Some(link) if link.kind == LinkKind::Bridge => behind_bridge(mirror, link, address),
            Some(link) if is_host_route(&key.network, key.prefix) => behind_pair(mirror, link, address),
            // A host on the card's own network: pods usually reach it masqueraded, which only the stack can do.
            _ => Finding::Stack,
        },
        // The default route leads out of the cluster, where masquerading is the rule.
        Target::Gateway(interface) if key.prefix > 0 => over_card(mirror, interface),
        Target::Gateway(_) | Target::Host | Target::StackOnly => Finding::Stack,
    }
}

const fn is_host_route(network: &IpAddr, prefix: u8) -> bool {
    prefix == if network.is_ipv4() { 32 } else { 128 }
}

/// A pair whose other end is up in a pod: what a redirect into the peer needs.
fn leads_into_a_pod(link: &Link) -> bool {
    link.kind == LinkKind::Veth && link.up && link.peer_elsewhere
}

const fn local(interface: u32, mac: Mac) -> Finding {
    Finding::Way(Way { interface, mac, kind: WayKind::Local })
}

/// Routed network plugins: a host route to each pod's device.
fn behind_pair(mirror: &Mirror, link: &Link, address: IpAddr) -> Finding {
    if !leads_into_a_pod(link) {
        return Finding::Stack;
    }
    match mirror.neighbour(link.index, address).and_then(|neighbour| neighbour.mac) {
        Some(mac) => local(link.index, mac),
        None => Finding::Unresolved(link.index),
    }
}

/// Bridged network plugins: the bridge knows the pod's MAC address and its port.
fn behind_bridge(mirror: &Mirror, bridge: &Link, address: IpAddr) -> Finding {
    if !bridge.up {
        // No port has a carrier: nobody is there to be asked.
        return Finding::Stack;
    }
    let Some(mac) = mirror.neighbour(bridge.index, address).and_then(|neighbour| neighbour.mac) else {
        return Finding::Unresolved(bridge.index);
    };
    let Some(port) = mirror.station(bridge.index, mac) else { return Finding::Unresolved(bridge.index) };
    match mirror.link(port) {
        Some(link) if leads_into_a_pod(link) => local(link.index, mac),
        _ => Finding::Stack,
    }
}

/// Another node, routed to directly.
fn over_card(mirror: &Mirror, interface: u32) -> Finding {
    let card = mirror.link(interface).filter(|link| {
        link.up && matches!(link.kind, LinkKind::Ethernet | LinkKind::Veth | LinkKind::Bridge)
    });
    match card {
        Some(card) if mirror.routes_by_destination() && takes_what_pods_send(mirror, card) => {
            Finding::Way(Way { interface: card.index, mac: [0; 6], kind: WayKind::Neighbour })
        }
        _ => Finding::Stack,
    }
}

/// True when no pod's device takes larger packets than the card. Only the stack tells a sender that its packets are too large
/// for the card (`ip_forward`, net/ipv4/ip_forward.c); a redirect just loses them.
fn takes_what_pods_send(mirror: &Mirror, card: &Link) -> bool {
    let of_pod = |link: &&Link| leads_into_a_pod(link) || (link.kind == LinkKind::PodDevice && link.up);
    let mut pods = mirror.links().filter(|link| link.index != card.index).filter(of_pod);
    pods.all(|link| link.mtu <= card.mtu)
}

#[cfg(test)]
mod tests {
    use super::super::mirror::{Affected, RouteKey};
    use super::*;

    const POD_MAC: Mac = [2, 0, 0, 0, 0, 7];
    const CARD: u32 = 2;
    const CALI: u32 = 7;
    const BRIDGE: u32 = 8;
    const PORT: u32 = 9;
    const VXLAN: u32 = 10;

    fn link(index: u32, kind: LinkKind) -> Link {
        Link {
            index,
            name: format!("dev{index}"),
            kind,
            up: true,
            peer_elsewhere: kind == LinkKind::Veth,
            mtu: 1500,
            ..Link::default()
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(mirror: &mut Mirror, network: &str, target: Target) -> RouteKey {
        let (network, prefix) = network.split_once('/').unwrap();
        let interface = match target {
            Target::Device(index) | Target::Gateway(index) => index,
            _ => 0,
        };
        let key = RouteKey {
            network: ip(network),
            prefix: prefix.parse().unwrap(),
            priority: 0,
            local_table: target == Target::Host,
            interface,
        };
        mirror.set_route(key, target);
        key
    }

    fn node() -> Mirror {
        let mut mirror = Mirror::default();
        mirror.set_link(link(CARD, LinkKind::Ethernet));
        mirror.set_link(link(CALI, LinkKind::Veth));
        mirror.set_link(link(BRIDGE, LinkKind::Bridge));
        mirror.set_link(Link { master: Some(BRIDGE), ..link(PORT, LinkKind::Veth) });
        mirror.set_link(link(VXLAN, LinkKind::Tunnel));
        route(&mut mirror, "0.0.0.0/0", Target::Gateway(CARD));
        route(&mut mirror, "192.168.0.0/24", Target::Device(CARD));
        route(&mut mirror, "192.168.0.5/32", Target::Host);
        mirror
    }

    fn local_way(interface: u32) -> Finding {
        Finding::Way(Way { interface, mac: POD_MAC, kind: WayKind::Local })
    }

    #[test]
    fn a_routed_pod_is_reached_once_its_mac_address_is_known() {
        let mut mirror = node();
        for pod in ["10.1.0.7", "fd00::7"] {
            let full = if pod.contains(':') { 128 } else { 32 };
            route(&mut mirror, &format!("{pod}/{full}"), Target::Device(CALI));
            assert_eq!(way_to(&mirror, ip(pod)), Finding::Unresolved(CALI));
            mirror.set_neighbour(CALI, ip(pod), Some(POD_MAC));
            assert_eq!(way_to(&mirror, ip(pod)), local_way(CALI));
            mirror.set_neighbour(CALI, ip(pod), None);
            assert_eq!(way_to(&mirror, ip(pod)), Finding::Unresolved(CALI));
        }
    }

    #[test]
    fn a_pair_that_is_down_or_ends_on_this_host_is_left_to_the_stack() {
        let mut mirror = node();
        route(&mut mirror, "10.1.0.7/32", Target::Device(CALI));
        mirror.set_neighbour(CALI, ip("10.1.0.7"), Some(POD_MAC));
        mirror.set_link(Link { up: false, ..link(CALI, LinkKind::Veth) });
        assert_eq!(way_to(&mirror, ip("10.1.0.7")), Finding::Stack);
        mirror.set_link(Link { peer_elsewhere: false, ..link(CALI, LinkKind::Veth) });
        assert_eq!(way_to(&mirror, ip("10.1.0.7")), Finding::Stack);
    }

    #[test]
    fn a_bridged_pod_needs_neighbour_and_port() {
        let mut mirror = node();
        let pod = ip("10.2.0.7");
        route(&mut mirror, "10.2.0.0/24", Target::Device(BRIDGE));
        assert_eq!(way_to(&mirror, pod), Finding::Unresolved(BRIDGE));
        mirror.set_neighbour(BRIDGE, pod, Some(POD_MAC));
        assert_eq!(way_to(&mirror, pod), Finding::Unresolved(BRIDGE));
        assert_eq!(mirror.set_station(BRIDGE, POD_MAC, PORT), [Affected::Address(pod)]);
        assert_eq!(way_to(&mirror, pod), local_way(PORT));
        // The pod was moved; then an old report about the first port arrives.
        mirror.set_link(link(11, LinkKind::Veth));
        mirror.set_station(BRIDGE, POD_MAC, 11);
        assert_eq!(mirror.remove_station(BRIDGE, POD_MAC, PORT), []);
        assert_eq!(way_to(&mirror, pod), local_way(11));
        assert_eq!(mirror.remove_link(11), Some(Affected::All));
        assert_eq!(way_to(&mirror, pod), Finding::Unresolved(BRIDGE));
    }

    #[test]
    fn another_node_is_reached_over_a_card_but_never_over_a_tunnel() {
        let mut mirror = node();
        let direct = route(&mut mirror, "10.9.0.0/24", Target::Gateway(CARD));
        let pod = ip("10.9.0.4");
        let over_card = Finding::Way(Way { interface: CARD, mac: [0; 6], kind: WayKind::Neighbour });
        assert_eq!(way_to(&mirror, pod), over_card);
        mirror.add_rule("from 10.1.0.0/16 lookup 100".to_owned());
        assert_eq!(way_to(&mirror, pod), Finding::Stack, "the source may decide, too");
        mirror.remove_rule("from 10.1.0.0/16 lookup 100");
        mirror.remove_route(&direct);
        route(&mut mirror, "10.9.0.0/24", Target::Gateway(VXLAN));
        assert_eq!(way_to(&mirror, pod), Finding::Stack);
    }

    #[test]
    fn a_card_that_takes_less_than_pods_send_is_left_to_the_stack_which_tells_them() {
        let mut mirror = node();
        route(&mut mirror, "10.9.0.0/24", Target::Gateway(CARD));
        let pod = ip("10.9.0.4");
        let over_card = Finding::Way(Way { interface: CARD, mac: [0; 6], kind: WayKind::Neighbour });
        let with = |index, kind, mtu| Link { mtu, ..link(index, kind) };
        assert_eq!(mirror.set_link(with(CARD, LinkKind::Ethernet, 1400)), Some(Affected::All));
        assert_eq!(way_to(&mirror, pod), Finding::Stack);
        mirror.set_link(with(CALI, LinkKind::Veth, 1400));
        assert_eq!(way_to(&mirror, pod), Finding::Stack, "one of the pods' devices is wider still");
        mirror.set_link(with(PORT, LinkKind::Veth, 1280));
        assert_eq!(way_to(&mirror, pod), over_card);
        mirror.set_link(with(11, LinkKind::PodDevice, 1401));
        assert_eq!(way_to(&mirror, pod), Finding::Stack);
        mirror.remove_link(11);
        // The card's own other end is not in a pod; tunnels and the loopback device send nothing over it as it is.
        mirror.set_link(with(CARD, LinkKind::Veth, 1400));
        mirror.set_link(with(VXLAN, LinkKind::Tunnel, 9000));
        assert_eq!(way_to(&mirror, pod), over_card);
    }

    #[test]
    fn what_may_need_masquerading_or_is_the_host_itself_is_left_to_the_stack() {
        let mirror = node();
        for address in ["8.8.8.8", "192.168.0.77", "192.168.0.5", "fd00::1"] {
            assert_eq!(way_to(&mirror, ip(address)), Finding::Stack, "{address}");
        }
    }

    #[test]
    fn the_lowest_priority_wins_and_its_end_brings_back_the_next() {
        let mut mirror = node();
        let key = |priority, interface| RouteKey {
            network: ip("10.9.0.0"),
            prefix: 24,
            priority,
            local_table: false,
            interface,
        };
        mirror.set_route(key(200, CARD), Target::Gateway(CARD));
        mirror.set_route(key(100, VXLAN), Target::Gateway(VXLAN));
        assert_eq!(way_to(&mirror, ip("10.9.0.4")), Finding::Stack);
        assert_eq!(mirror.remove_route(&key(100, VXLAN)), Some(Affected::All));
        assert!(matches!(way_to(&mirror, ip("10.9.0.4")), Finding::Way(_)));
        mirror.remove_route(&key(200, CARD));
        assert_eq!(way_to(&mirror, ip("10.9.0.4")), Finding::Stack);
    }
}
