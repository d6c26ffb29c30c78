//! The node's own addresses: at which ones node ports are served (S-35, S-36), and which ones masqueraded flows get.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use lb_common::layout::MasqueradeAddresses;

use super::mirror::{Link, Mirror, network_of};
use super::select::{DeviceSelection, NetChoice};

/// Part of `--node-port-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortRange {
    /// Every address of the node, those of the loopback device for the node's own processes.
    All,
    /// The node's address of each family.
    Primary,
    /// The loopback addresses, which only the node's own processes reach.
    Localhost,
    /// Addresses of this network.
    Network(IpAddr, u8),
}

impl FromStr for NodePortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "all" => return Ok(Self::All),
            "primary" => return Ok(Self::Primary),
            "localhost" => return Ok(Self::Localhost),
            _ => {}
        }
        let network = text.trim().split_once('/').and_then(|(address, prefix)| {
            let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
            (prefix <= full(address)).then_some(Self::Network(address, prefix))
        });
        network.ok_or_else(|| {
            format!("`{text}` is neither all, primary or localhost nor an address range such as 192.0.2.0/24")
        })
    }
}

impl fmt::Display for NodePortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Primary => f.write_str("primary"),
            Self::Localhost => f.write_str("localhost"),
            Self::Network(address, prefix) => write!(f, "{address}/{prefix}"),
        }
    }
}

const fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl NodePortRange {
    /// True when the range says something about the family.
    fn covers(self, v6: bool) -> bool {
        !matches!(self, Self::Network(address, _) if address.is_ipv6() != v6)
    }

    /// True when it has every address of the families it covers.
    const fn is_all(self) -> bool {
        matches!(self, Self::All | Self::Network(_, 0))
    }

    fn contains(self, address: IpAddr, node: Pair) -> bool {
        match self {
            Self::All => true,
            Self::Primary => node.of(address.is_ipv6()) == Some(address),
            Self::Localhost => address.is_loopback(),
            Self::Network(network, prefix) => {
                network.is_ipv6() == address.is_ipv6()
                    && network_of(network, prefix) == network_of(address, prefix)
            }
        }
    }
}

/// What the operator says about the node's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressOptions {
    /// The node's addresses, at most one of a family; the others are found out.
    pub node_ips: Vec<IpAddr>,
    /// Where node ports are served. A family that no entry covers is served at all its addresses (S-35).
    pub node_ports: Vec<NodePortRange>,
}

/// An address of each family, where there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Pair {
    fn of(self, v6: bool) -> Option<IpAddr> {
        if v6 { self.v6.map(IpAddr::V6) } else { self.v4.map(IpAddr::V4) }
    }

    fn or(self, other: Self) -> Self {
        Self { v4: self.v4.or(other.v4), v6: self.v6.or(other.v6) }
    }

    fn first(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        addresses.into_iter().fold(Self::default(), |pair, address| match address {
            IpAddr::V4(v4) => pair.or(Self { v4: Some(v4), v6: None }),
            IpAddr::V6(v6) => pair.or(Self { v4: None, v6: Some(v6) }),
        })
    }

    const fn is_empty(self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

impl From<Pair> for MasqueradeAddresses {
    fn from(pair: Pair) -> Self {
        Self {
            v6: pair.v6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
            v4: pair.v4.unwrap_or(Ipv4Addr::UNSPECIFIED).into(),
            zero: 0,
        }
    }
}

/// What holds for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// The node's addresses and what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddressing {
    /// Every address of the node, as `fib daddr type local` has it.
    pub local: BTreeSet<IpAddr>,
    /// Those that node ports are served at, less the link-local ones of pods' devices; loopback addresses are for the node's own processes only (S-36).
    pub node_ports: BTreeSet<IpAddr>,
    /// Families of which that is every address, also those to come.
    pub node_ports_at_all: Families,
    /// The node's address of each family.
    pub node: Pair,
    /// Addresses of masqueraded flows by the device they leave by; 0 stands for every other device. A device that lacks
    /// a family has the node's address of it.
    pub masquerade: BTreeMap<u32, Pair>,
}

impl NodeAddressing {
    /// Works it out from what the kernel told. `node_ips` that no device has (yet) do not count.
    pub fn new(mirror: &Mirror, selection: &DeviceSelection, options: &AddressOptions) -> Self {
        let local: BTreeSet<IpAddr> = mirror.addresses().map(|(_, address)| address.address).collect();
        let node = node_addresses(mirror, selection, options, &local);
        let at_all = |v6| {
            let mut ranges = options.node_ports.iter().filter(|range| range.covers(v6)).peekable();
            ranges.peek().is_none() || ranges.any(|range| range.is_all())
        };
        let node_ports_at_all = Families { v4: at_all(false), v6: at_all(true) };
        let served = |address: &IpAddr| {
            at_all(address.is_ipv6()) || options.node_ports.iter().any(|range| range.contains(*address, node))
        };
        let node_ports = mirror
            .addresses()
            .filter(|(interface, address)| !is_of_pod_only(mirror, selection, *interface, address.address))
            .map(|(_, address)| address.address)
            .filter(served)
            .collect();
        let mut masquerade = BTreeMap::new();
        if !node.is_empty() {
            masquerade.insert(0, node);
        }
        for link in mirror.links().filter(|link| masquerades(mirror, selection, link)) {
            let wanted = |address: &IpAddr| options.node_ips.contains(address);
            let own = || primaries(mirror, link.index);
            let pair = Pair::first(own().filter(wanted)).or(Pair::first(own()));
            if !pair.is_empty() {
                masquerade.insert(link.index, pair.or(node));
            }
        }
        Self { local, node_ports, node_ports_at_all, node, masquerade }
    }
}

/// True for the link-local addresses that the kernel gives the host sides of pods' devices. Only the one pod could reach
/// node ports there, and they come and go with every pod.
fn is_of_pod_only(mirror: &Mirror, selection: &DeviceSelection, interface: u32, address: IpAddr) -> bool {
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    link_local && mirror.link(interface).is_some_and(|link| selection.is_pods(mirror, link))
}

/// True when masqueraded flows that leave by the device get its own address.
fn masquerades(mirror: &Mirror, selection: &DeviceSelection, link: &Link) -> bool {
    selection.is_pods(mirror, link)
        || selection.is_pod_bridge(link)
        || selection.chooses_net(mirror, link) == NetChoice::Yes
}

fn primaries(mirror: &Mirror, interface: u32) -> impl Iterator<Item = IpAddr> {
    mirror.addresses_of(interface).iter().filter(|address| address.primary).map(|address| address.address)
}

/// The node's address of each family: as configured; else the oldest one of the device that the default route leads
/// over; else of another network device, of the loopback device (where hosts that announce their address keep it), of
/// any device.
fn node_addresses(
    mirror: &Mirror,
    selection: &DeviceSelection,
    options: &AddressOptions,
    local: &BTreeSet<IpAddr>,
) -> Pair {
    let configured = options.node_ips.iter().copied().filter(|address| local.contains(address));
    let default = |v6: bool| {
        let devices = mirror.default_devices(v6);
        devices.flat_map(|device| primaries(mirror, device)).filter(move |it| it.is_ipv6() == v6)
    };
    let rank = |link: &&Link| match selection.chooses_net(mirror, link) {
        NetChoice::Yes | NetChoice::WithoutEthernet => 0,
        NetChoice::No if link.loopback => 1,
        NetChoice::No => 2,
    };
    let mut links: Vec<&Link> = mirror.links().collect();
    links.sort_by_key(rank);
    let any = links.into_iter().flat_map(|link| primaries(mirror, link.index));
    Pair::first(configured).or(Pair::first(default(false).chain(default(true)))).or(Pair::first(any))
}

#[cfg(test)]
#[path = "addresses_tests.rs"]
mod tests;
