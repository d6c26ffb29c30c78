//! Netlink messages into the mirror.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::mirror::{Affected, Link, LinkKind, LocalAddress, Mac, Mirror, RouteKey, Target};

/// Tables of routes (`include/uapi/linux/rtnetlink.h`).
const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;
/// The rules that every host has: priority and table.
const USUAL_RULES: [(u32, u32); 3] = [(0, LOCAL_TABLE), (32_766, MAIN_TABLE), (32_767, 253)];

/// What a message changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// A device that is new or changed.
    pub link: Option<u32>,
    /// A device that is gone.
    pub gone: Option<u32>,
    /// Addresses of the host, or its default routes, changed.
    pub addresses: bool,
    /// Addresses whose way may be another one now.
    pub affected: Vec<Affected>,
}

impl Changed {
    fn affected(affected: impl IntoIterator<Item = Affected>) -> Self {
        Self { affected: affected.into_iter().collect(), ..Self::default() }
    }
}

/// Takes in one message. `replaces`: a route that replaces another one (`NLM_F_REPLACE`).
pub(super) fn take_in(mirror: &mut Mirror, message: &RouteNetlinkMessage, replaces: bool) -> Changed {
    match message {
        // The bridge reports its ports as links of a family of its own, also when a port leaves.
        RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)
            if message.header.interface_family == AddressFamily::Bridge =>
        {
            Changed::default()
        }
        RouteNetlinkMessage::NewLink(message) => {
            let Some(link) = link(message) else { return Changed::default() };
            let index = link.index;
            let affected = mirror.set_link(link);
            Changed {
                link: affected.map(|_| index),
                addresses: affected.is_some(),
                ..Changed::affected(affected)
            }
        }
        RouteNetlinkMessage::DelLink(message) => {
            let index = message.header.index;
            let affected = mirror.remove_link(index);
            Changed { gone: Some(index), addresses: true, ..Changed::affected(affected) }
        }
        RouteNetlinkMessage::NewRoute(message) => {
            let affected = new_route(mirror, message, replaces);
            Changed { addresses: is_default(message), ..Changed::affected(affected) }
        }
        RouteNetlinkMessage::DelRoute(message) => {
            let affected = route(message).and_then(|(key, _)| mirror.remove_route(&key));
            Changed { addresses: is_default(message), ..Changed::affected(affected) }
        }
        RouteNetlinkMessage::NewAddress(message) => {
            Changed { addresses: new_address(mirror, message), ..Changed::default() }
        }
        RouteNetlinkMessage::DelAddress(message) => {
            let address = address_of(message);
            let gone = address.is_some_and(|address| mirror.remove_address(message.header.index, address));
            Changed { addresses: gone, ..Changed::default() }
        }
        RouteNetlinkMessage::NewNeighbour(message) => Changed::affected(new_neighbour(mirror, message)),
        RouteNetlinkMessage::DelNeighbour(message) => Changed::affected(old_neighbour(mirror, message)),
        RouteNetlinkMessage::NewRule(message) => {
            Changed::affected(unusual_rule(message).and_then(|rule| mirror.add_rule(rule)))
        }
        RouteNetlinkMessage::DelRule(message) => {
            Changed::affected(unusual_rule(message).and_then(|rule| mirror.remove_rule(&rule)))
        }
        _ => Changed::default(),
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let kind_name = kind_of(message);
    let kind = match kind_name {
        Some(InfoKind::Veth) => LinkKind::Veth,
        Some(InfoKind::Bridge) => LinkKind::Bridge,
        Some(InfoKind::Vrf) => LinkKind::Vrf,
        Some(InfoKind::Netkit | InfoKind::MacVtap) => LinkKind::PodDevice,
        Some(InfoKind::Tun) if ethernet => LinkKind::PodDevice,
        Some(InfoKind::Bond | InfoKind::Team | InfoKind::Vlan) => LinkKind::Ethernet,
        None if ethernet => LinkKind::Ethernet,
        Some(
            InfoKind::Tun
            | InfoKind::Vxlan
            | InfoKind::Geneve
            | InfoKind::Wireguard
            | InfoKind::IpIp
            | InfoKind::Ip6Tnl
            | InfoKind::SitTun
            | InfoKind::GreTap
            | InfoKind::GreTap6
            | InfoKind::GreTun
            | InfoKind::GreTun6
            | InfoKind::Vti
            | InfoKind::Vti6
            | InfoKind::Xfrm,
        ) => LinkKind::Tunnel,
        _ => LinkKind::Other,
    };
    let mut link = Link {
        index: message.header.index,
        kind,
        ethernet,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        ..Link::default()
    };
    let mut named = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => {
                link.name.clone_from(name);
                named = true;
            }
            LinkAttribute::Controller(master) if *master != 0 => link.master = Some(*master),
            LinkAttribute::LinkNetNsId(id) if *id >= 0 => link.peer_elsewhere = true,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    named.then_some(link)
}

fn kind_of(message: &LinkMessage) -> Option<&InfoKind> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    })
}

/// The host's own address in a message: of a point-to-point device, `IFA_ADDRESS` is the other end's.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

/// Takes in an address. One that another host may have (duplicate address detection, RFC 4862 5.4) is none yet.
fn new_address(mirror: &mut Mirror, message: &AddressMessage) -> bool {
    let Some(address) = address_of(message) else { return false };
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let mut created = 0;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::CacheInfo(times) => created = times.cstamp,
            _ => {}
        }
    }
    let interface = message.header.index;
    let in_doubt = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    if in_doubt || flags.contains(AddressFlags::Dadfailed) {
        return mirror.remove_address(interface, address);
    }
    let limited = match address {
        // The kernel goes by the scope it was told, which for these usually is the widest.
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    };
    let primary = matches!(message.header.scope, AddressScope::Universe | AddressScope::Site)
        && !limited
        // `IFA_F_SECONDARY` of an IPv6 address says that it is temporary (RFC 8981).
        && !flags.intersects(AddressFlags::Secondary | AddressFlags::Deprecated);
    mirror.set_address(interface, LocalAddress { address, primary, created })
}

/// True for a default route of the main table.
fn is_default(message: &RouteMessage) -> bool {
    route(message).is_some_and(|(key, _)| key.prefix == 0 && !key.local_table)
}

/// Devices a route leads over.
fn devices_of(message: &RouteMessage) -> Vec<u32> {
    let devices = message.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(ways) => ways.iter().map(|way| way.interface_index).collect(),
        _ => Vec::new(),
    });
    devices.collect()
}

fn new_route(mirror: &mut Mirror, message: &RouteMessage, replaces: bool) -> Option<Affected> {
    let (key, target) = route(message)?;
    let replaced = if replaces { mirror.remove_replaced(&key) } else { None };
    if key.prefix == 0 && !key.local_table && message.header.kind == RouteType::Unicast {
        mirror.set_default_devices(key, devices_of(message));
    }
    mirror.set_route(key, target).or(replaced)
}

fn route(message: &RouteMessage) -> Option<(RouteKey, Target)> {
    let header = &message.header;
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut key = RouteKey {
        network: any,
        prefix: header.destination_prefix_length,
        priority: 0,
        local_table: false,
        interface: 0,
    };
    let (mut device, mut gateway) = (None, false);
    // What decides by more than the destination, wraps packets, or takes shorter ones than its device, is up to the stack.
    let mut odd = header.tos != 0 || header.source_prefix_length != 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => key.network = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => key.network = (*address).into(),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => key.priority = *priority,
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            RouteAttribute::MultiPath(_) | RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                odd = true;
            }
            RouteAttribute::Metrics(metrics) => {
                odd |= metrics.iter().any(|metric| matches!(metric, RouteMetric::Mtu(_)));
            }
            _ => {}
        }
    }
    if !matches!(table, MAIN_TABLE | LOCAL_TABLE) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    key.local_table = table == LOCAL_TABLE;
    // IPv4 knows a route by network and priority; IPv6 keeps several and tells them apart by device.
    key.interface = if key.network.is_ipv6() { device.unwrap_or(0) } else { 0 };
    // `RTNH_F_LINKDOWN` counts for nothing: when the carrier comes, the kernel takes it back without a word
    // (`fib_sync_up`, net/ipv4/fib_semantics.c). Whether a device has one its own messages tell.
    let usable = !odd && !header.flags.contains(RouteFlags::Dead);
    let target = match (header.kind, device) {
        (RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast, _) => {
            Target::Host
        }
        (RouteType::Unicast, Some(device)) if usable && gateway => Target::Gateway(device),
        (RouteType::Unicast, Some(device)) if usable => Target::Device(device),
        _ => Target::StackOnly,
    };
    Some((key, target))
}

/// Where a neighbour message is about: an address behind a device, or a station behind a bridge's port.
enum Subject {
    Address(u32, IpAddr),
    Station { bridge: u32, port: u32 },
}

fn subject(message: &NeighbourMessage) -> Option<Subject> {
    let header = &message.header;
    if header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let bridge = header.family == AddressFamily::Bridge;
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Controller(master) if bridge => {
            Some(Subject::Station { bridge: *master, port: header.ifindex })
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) if !bridge => {
            Some(Subject::Address(header.ifindex, (*address).into()))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) if !bridge => {
            Some(Subject::Address(header.ifindex, (*address).into()))
        }
        _ => None,
    })
}

fn mac_of(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

fn new_neighbour(mirror: &mut Mirror, message: &NeighbourMessage) -> Vec<Affected> {
    let state = message.header.state;
    match (subject(message), mac_of(message)) {
        (Some(Subject::Address(interface, address)), mac) => {
            let answers =
                !matches!(state, NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None);
            mirror.set_neighbour(interface, address, mac.filter(|_| answers)).into_iter().collect()
        }
        // Permanent entries are the bridge's and its ports' own addresses.
        (Some(Subject::Station { bridge, port }), Some(mac)) if state != NeighbourState::Permanent => {
            mirror.set_station(bridge, mac, port)
        }
        _ => Vec::new(),
    }
}

fn old_neighbour(mirror: &mut Mirror, message: &NeighbourMessage) -> Vec<Affected> {
    match (subject(message), mac_of(message)) {
        (Some(Subject::Address(interface, address)), _) => {
            mirror.remove_neighbour(interface, address).into_iter().collect()
        }
        (Some(Subject::Station { bridge, port }), Some(mac)) => mirror.remove_station(bridge, mac, port),
        _ => Vec::new(),
    }
}

/// The rule as text, when it is none of those that every host has.
fn unusual_rule(message: &RuleMessage) -> Option<String> {
    let (mut priority, mut table) = (0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    (!USUAL_RULES.contains(&(priority, table))).then(|| format!("{message:?}"))
}

#[cfg(test)]
mod tests {
    use super::super::ways::{Finding, way_to};
    use super::*;

    fn link_message(index: u32, name: &str, kind: Option<InfoKind>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        if let Some(kind) = kind {
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        }
        message
    }

    fn route_message(network: IpAddr, prefix: u8, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        let v4 = network.is_ipv4();
        message.header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = prefix;
        message.header.table = MAIN_TABLE as u8;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Destination(network.into()));
        message.attributes.extend(attributes);
        message
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_route_or_card_that_takes_less_than_pods_send_is_one_for_the_stack() {
        let mut mirror = Mirror::default();
        let mut card = link_message(2, "eth0", None);
        card.attributes.push(LinkAttribute::Mtu(1500));
        let mut pod = link_message(7, "veth7", Some(InfoKind::Veth));
        pod.attributes.extend([LinkAttribute::Mtu(1500), LinkAttribute::LinkNetNsId(0)]);
        for message in [&card, &pod] {
            take_in(&mut mirror, &RouteNetlinkMessage::NewLink(message.clone()), false);
        }
        let mut over_card = vec![RouteAttribute::Oif(2), RouteAttribute::Gateway(ip("192.168.0.9").into())];
        let route = |attributes: &[RouteAttribute]| {
            RouteNetlinkMessage::NewRoute(route_message(ip("10.9.0.0"), 24, attributes.to_vec()))
        };
        take_in(&mut mirror, &route(&over_card), false);
        assert!(matches!(way_to(&mirror, ip("10.9.0.4")), Finding::Way(way) if way.interface == 2));
        pod.attributes.push(LinkAttribute::Mtu(1501));
        take_in(&mut mirror, &RouteNetlinkMessage::NewLink(pod.clone()), false);
        assert_eq!(way_to(&mirror, ip("10.9.0.4")), Finding::Stack);
        pod.attributes.push(LinkAttribute::Mtu(1500));
        take_in(&mut mirror, &RouteNetlinkMessage::NewLink(pod), false);
        over_card.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]));
        take_in(&mut mirror, &route(&over_card), true);
        assert_eq!(way_to(&mirror, ip("10.9.0.4")), Finding::Stack);
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_still_a_device() {
        let mut mirror = Mirror::default();
        let message = link_message(7, "veth7", Some(InfoKind::Veth));
        let changed = take_in(&mut mirror, &RouteNetlinkMessage::NewLink(message.clone()), false);
        assert_eq!(changed.link, Some(7));
        let mut port = message;
        port.header.interface_family = AddressFamily::Bridge;
        take_in(&mut mirror, &RouteNetlinkMessage::DelLink(port), false);
        assert_eq!(mirror.link(7).map(|link| link.kind), Some(LinkKind::Veth));
    }

    #[test]
    fn kinds_of_devices_are_told_apart() {
        let kind = |kind| link(&link_message(2, "x", kind)).unwrap().kind;
        assert_eq!(kind(None), LinkKind::Ethernet);
        assert_eq!(kind(Some(InfoKind::Vxlan)), LinkKind::Tunnel);
        assert_eq!(kind(Some(InfoKind::Bridge)), LinkKind::Bridge);
        assert_eq!(kind(Some(InfoKind::Dummy)), LinkKind::Other);
        assert_eq!(kind(Some(InfoKind::Tun)), LinkKind::PodDevice, "a tap with an Ethernet header");
        let mut tun = link_message(2, "x", Some(InfoKind::Tun));
        tun.header.link_layer_type = LinkLayerType::None;
        assert_eq!(link(&tun).unwrap().kind, LinkKind::Tunnel);
    }

    #[test]
    fn a_replaced_route_is_gone_in_both_families() {
        for network in ["10.9.0.0", "fd00:9::"] {
            let mut mirror = Mirror::default();
            take_in(&mut mirror, &RouteNetlinkMessage::NewLink(link_message(2, "eth0", None)), false);
            let vxlan = link_message(3, "flannel.1", Some(InfoKind::Vxlan));
            take_in(&mut mirror, &RouteNetlinkMessage::NewLink(vxlan), false);
            let gateway = RouteAttribute::Gateway(
                if ip(network).is_ipv4() { ip("192.168.0.1") } else { ip("fe80::1") }.into(),
            );
            let prefix = if ip(network).is_ipv4() { 24 } else { 64 };
            let over = |device| {
                route_message(ip(network), prefix, vec![RouteAttribute::Oif(device), gateway.clone()])
            };
            take_in(&mut mirror, &RouteNetlinkMessage::NewRoute(over(2)), false);
            assert!(matches!(way_to(&mirror, ip(network)), Finding::Way(_)));
            take_in(&mut mirror, &RouteNetlinkMessage::NewRoute(over(3)), true);
            assert_eq!(mirror.route(ip(network)).unwrap().1, Target::Gateway(3));
            let changed = take_in(&mut mirror, &RouteNetlinkMessage::DelRoute(over(3)), false);
            assert_eq!(changed.affected, [Affected::All]);
            assert_eq!(mirror.route(ip(network)), None);
        }
    }

    #[test]
    fn only_the_stack_takes_routes_it_alone_understands() {
        let target = |attributes| route(&route_message(ip("10.9.0.0"), 24, attributes)).unwrap().1;
        assert_eq!(target(vec![RouteAttribute::Oif(2)]), Target::Device(2));
        assert_eq!(target(vec![RouteAttribute::MultiPath(Vec::new())]), Target::StackOnly);
        let mut other_table = route_message(ip("10.9.0.0"), 24, vec![RouteAttribute::Oif(2)]);
        other_table.attributes.push(RouteAttribute::Table(1000));
        assert_eq!(route(&other_table), None);
        let mut unreachable = route_message(ip("10.9.0.0"), 24, Vec::new());
        unreachable.header.kind = RouteType::Unreachable;
        assert_eq!(route(&unreachable).unwrap().1, Target::StackOnly);
    }

    /// When an agent starts before the first pod of its node, the bridge for pods is there and has no carrier; of the route
    /// nothing is told when the first pod brings it.
    #[test]
    fn a_route_over_a_device_without_carrier_leads_to_pods_once_there_is_one() {
        for network in ["10.2.0.0", "fd00:2::"] {
            let mut mirror = Mirror::default();
            let mut bridge = link_message(8, "cni0", Some(InfoKind::Bridge));
            bridge.header.flags = LinkFlags::Up;
            take_in(&mut mirror, &RouteNetlinkMessage::NewLink(bridge.clone()), false);
            let prefix = if ip(network).is_ipv4() { 24 } else { 64 };
            let mut route = route_message(ip(network), prefix, vec![RouteAttribute::Oif(8)]);
            route.header.flags = RouteFlags::Linkdown;
            take_in(&mut mirror, &RouteNetlinkMessage::NewRoute(route), false);
            assert_eq!(way_to(&mirror, ip(network)), Finding::Stack, "nobody is there to be asked");
            bridge.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
            let changed = take_in(&mut mirror, &RouteNetlinkMessage::NewLink(bridge), false);
            assert_eq!(changed.affected, [Affected::All]);
            assert_eq!(way_to(&mirror, ip(network)), Finding::Unresolved(8));
        }
    }

    #[test]
    fn a_neighbour_that_does_not_answer_has_no_address() {
        let mut mirror = Mirror::default();
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 7;
        message.header.state = NeighbourState::Reachable;
        let address = Ipv4Addr::new(10, 0, 0, 7);
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7]));
        let seen = |mirror: &Mirror| mirror.neighbour(7, address.into()).and_then(|neighbour| neighbour.mac);
        take_in(&mut mirror, &RouteNetlinkMessage::NewNeighbour(message.clone()), false);
        assert_eq!(seen(&mirror), Some([2, 0, 0, 0, 0, 7]));
        message.header.state = NeighbourState::Failed;
        take_in(&mut mirror, &RouteNetlinkMessage::NewNeighbour(message), false);
        assert_eq!(seen(&mirror), None);
    }

    #[test]
    fn rules_beyond_the_usual_three_are_noticed_until_they_go() {
        let mut mirror = Mirror::default();
        let rule = |priority, table: u8| {
            let mut message = RuleMessage::default();
            message.header.table = table;
            message.attributes.push(RuleAttribute::Priority(priority));
            message
        };
        take_in(&mut mirror, &RouteNetlinkMessage::NewRule(rule(32_766, 254)), false);
        assert!(mirror.routes_by_destination());
        take_in(&mut mirror, &RouteNetlinkMessage::NewRule(rule(512, 100)), false);
        assert!(!mirror.routes_by_destination());
        take_in(&mut mirror, &RouteNetlinkMessage::DelRule(rule(512, 100)), false);
        assert!(mirror.routes_by_destination());
    }
}
