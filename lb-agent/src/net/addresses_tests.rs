//! Nodes of two cards and a bridge: where node ports are served, and what masqueraded flows get.

use super::super::mirror::{LinkKind, LocalAddress, RouteKey, Target};
use super::*;

const LO: u32 = 1;
const ETH0: u32 = 2;
const ETH1: u32 = 3;
const CNI0: u32 = 4;
const VETH: u32 = 5;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn pair(v4: &str, v6: &str) -> Pair {
    Pair { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

fn address(mirror: &mut Mirror, interface: u32, text: &str, created: u32) {
    let address = ip(text);
    let primary = !address.is_loopback() && !text.starts_with("fe80");
    mirror.set_address(interface, LocalAddress { address, primary, created });
}

fn default_route(mirror: &mut Mirror, network: &str, priority: u32, device: u32) -> RouteKey {
    let interface = if network.contains(':') { device } else { 0 };
    let key = RouteKey { network: ip(network), prefix: 0, priority, local_table: false, interface };
    mirror.set_route(key, Target::Gateway(device));
    mirror.set_default_devices(key, vec![device]);
    key
}

/// Two cards, of which the second one has the default route of IPv4, and pods behind a bridge.
fn node() -> Mirror {
    let mut mirror = Mirror::default();
    let links = [
        (LO, "lo", LinkKind::Other),
        (ETH0, "eth0", LinkKind::Ethernet),
        (ETH1, "eth1", LinkKind::Ethernet),
        (CNI0, "cni0", LinkKind::Bridge),
        (VETH, "veth1", LinkKind::Veth),
    ];
    for (index, name, kind) in links {
        let loopback = index == LO;
        let name = name.to_owned();
        mirror.set_link(Link { index, name, kind, ethernet: !loopback, loopback, ..Link::default() });
    }
    for (interface, text) in [
        (LO, "127.0.0.1"),
        (LO, "::1"),
        (ETH0, "192.0.2.1"),
        (ETH0, "2001:db8::1"),
        (ETH0, "fe80::1"),
        (ETH1, "198.51.100.1"),
        (CNI0, "10.244.1.1"),
        (VETH, "fe80::5"),
    ] {
        address(&mut mirror, interface, text, 100);
    }
    default_route(&mut mirror, "0.0.0.0", 100, ETH1);
    mirror
}

fn addressing(mirror: &Mirror, node_ips: &[&str], node_ports: &str) -> NodeAddressing {
    let options = AddressOptions {
        node_ips: node_ips.iter().map(|text| ip(text)).collect(),
        node_ports: node_ports
            .split(',')
            .filter(|text| !text.is_empty())
            .map(|r| r.parse().unwrap())
            .collect(),
    };
    NodeAddressing::new(mirror, &DeviceSelection::default(), &options)
}

fn node_ports(node_ports: &str) -> BTreeSet<IpAddr> {
    addressing(&node(), &[], node_ports).node_ports
}

#[test]
fn s_35_node_ports_are_served_at_every_local_address_by_default_and_for_a_family_nobody_speaks_of() {
    let v6 = ["::1", "2001:db8::1", "fe80::1"];
    let mut all = set(&["127.0.0.1", "192.0.2.1", "198.51.100.1", "10.244.1.1"]);
    all.extend(set(&v6));
    assert_eq!(node_ports("all"), all);
    assert_eq!(node_ports(""), all);
    all.insert(ip("fe80::5"));
    assert_eq!(addressing(&node(), &[], "all").local, all, "that of a pod's device, too");
    let mut expected = set(&v6);
    expected.insert(ip("192.0.2.1"));
    assert_eq!(node_ports("192.0.2.0/24"), expected);
    assert_eq!(node_ports("192.0.2.0/24,2001:db8::/64"), set(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(node_ports("203.0.113.0/24,2001:db8:1::/64"), set(&[]));
    let at_all = |text: &str| {
        let Families { v4, v6 } = addressing(&node(), &[], text).node_ports_at_all;
        (v4, v6)
    };
    assert_eq!(at_all("all"), (true, true));
    assert_eq!(at_all("192.0.2.0/24"), (false, true));
    assert_eq!(at_all("192.0.2.0/24,::/0"), (false, true));
    assert_eq!(at_all("primary"), (false, false));
}

#[test]
fn s_35_s_36_keywords_speak_of_both_families() {
    assert_eq!(node_ports("primary"), set(&["198.51.100.1", "2001:db8::1"]));
    assert_eq!(node_ports("localhost"), set(&["127.0.0.1", "::1"]));
    assert_eq!(node_ports("primary,localhost"), set(&["198.51.100.1", "2001:db8::1", "127.0.0.1", "::1"]));
    let configured = addressing(&node(), &["192.0.2.1"], "primary");
    assert_eq!(configured.node_ports, set(&["192.0.2.1", "2001:db8::1"]));
    for wrong in ["", "eth0", "10.0.0.0", "10.0.0.0/33", "::/129"] {
        assert!(wrong.parse::<NodePortRange>().is_err(), "{wrong}");
    }
    for text in ["all", "primary", "localhost", "10.0.0.0/8"] {
        assert_eq!(text.parse::<NodePortRange>().unwrap().to_string(), text);
    }
}

#[test]
fn a_masqueraded_flow_gets_the_address_of_its_device_or_else_the_nodes() {
    let found = addressing(&node(), &[], "all");
    assert_eq!(found.node, pair("198.51.100.1", "2001:db8::1"));
    let expected = [
        (0, pair("198.51.100.1", "2001:db8::1")),
        (ETH0, pair("192.0.2.1", "2001:db8::1")),
        (ETH1, pair("198.51.100.1", "2001:db8::1")),
        (CNI0, pair("10.244.1.1", "2001:db8::1")),
    ];
    assert_eq!(found.masquerade, BTreeMap::from(expected));
}

#[test]
fn the_oldest_address_stays_and_the_configured_one_wins() {
    let mut mirror = node();
    address(&mut mirror, ETH1, "198.51.100.7", 200);
    address(&mut mirror, ETH1, "198.51.100.8", 200);
    assert_eq!(addressing(&mirror, &[], "all").node.v4, "198.51.100.1".parse().ok());
    let configured = addressing(&mirror, &["198.51.100.8"], "all");
    assert_eq!(configured.node.v4, "198.51.100.8".parse().ok());
    assert_eq!(configured.masquerade[&ETH1].v4, "198.51.100.8".parse().ok());
    assert_eq!(addressing(&mirror, &["203.0.113.9"], "all").node.v4, "198.51.100.1".parse().ok(), "nobody's");
    mirror.remove_address(ETH1, ip("198.51.100.1"));
    assert_eq!(addressing(&mirror, &[], "all").node.v4, "198.51.100.7".parse().ok());
}

#[test]
fn the_nodes_address_follows_the_default_route_and_does_without_one() {
    let mut mirror = node();
    let better = default_route(&mut mirror, "0.0.0.0", 50, ETH0);
    assert_eq!(addressing(&mirror, &[], "all").node.v4, "192.0.2.1".parse().ok());
    mirror.remove_route(&better);
    assert_eq!(addressing(&mirror, &[], "all").node.v4, "198.51.100.1".parse().ok());
    // Hosts that announce their own address keep it on the loopback device.
    mirror.remove_address(ETH0, ip("192.0.2.1"));
    mirror.remove_address(ETH1, ip("198.51.100.1"));
    mirror.set_address(LO, LocalAddress { address: ip("203.0.113.1"), primary: true, created: 300 });
    assert_eq!(addressing(&mirror, &[], "all").node.v4, "203.0.113.1".parse().ok());
    mirror.remove_address(LO, ip("203.0.113.1"));
    assert_eq!(addressing(&mirror, &[], "all").node.v4, "10.244.1.1".parse().ok(), "better than none");
}

#[test]
fn a_device_that_goes_takes_its_addresses_along() {
    let mut mirror = node();
    mirror.remove_link(ETH1);
    let found = addressing(&mirror, &[], "all");
    assert!(!found.local.contains(&ip("198.51.100.1")));
    assert!(!found.masquerade.contains_key(&ETH1));
}
