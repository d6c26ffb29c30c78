//! What the kernel has told of devices, addresses, routes, neighbours and bridge forwarding tables: plain data, fed by
//! netlink, asked by [`super::ways`] and [`super::addresses`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A MAC address.
pub type Mac = [u8; 6];

/// What a device is, as far as it matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkKind {
    /// A virtual Ethernet pair.
    Veth,
    /// Another kind of device that may lead to a single pod: netkit, tap, macvlan.
    PodDevice,
    /// A bridge.
    Bridge,
    /// A network card, or a bond, team or VLAN over one.
    Ethernet,
    /// A tunnel: vxlan, geneve, wireguard, ipip and others, whose packets are wrapped by the stack.
    Tunnel,
    /// A routing domain: the devices in it are met one by one, it only stands for their table.
    Vrf,
    /// Loopback and everything else that leads nowhere outside.
    #[default]
    Other,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: LinkKind,
    /// Its packets have an Ethernet header (`ARPHRD_ETHER`).
    pub ethernet: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// Bridge or bond it is a port of, or routing domain it is in.
    pub master: Option<u32>,
    /// Its peer is in another network namespace.
    pub peer_elsewhere: bool,
    /// Largest IP packet that it takes, in bytes.
    pub mtu: u32,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The address.
    pub address: IpAddr,
    /// Usable everywhere: the address of a device as others see it, neither of a link or host only nor secondary,
    /// temporary or deprecated.
    pub primary: bool,
    /// When it was made, in hundredths of a second on the kernel's clock.
    pub created: u32,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this host itself.
    Host,
    /// Straight out of a device.
    Device(u32),
    /// To a router behind a device.
    Gateway(u32),
    /// Several ways, or one that only the stack understands (encapsulation, next hop objects, unreachable).
    StackOnly,
}

/// Identity of a route: the kernel keeps several to the same network, told apart by priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Network address.
    pub network: IpAddr,
    /// Prefix length.
    pub prefix: u8,
    /// Priority; the lowest number wins.
    pub priority: u32,
    /// True for the table of the host's own addresses, which is asked first.
    pub local_table: bool,
    /// Device, because IPv6 keeps the routes of one network apart by it.
    pub interface: u32,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// MAC address, when the entry can be used.
    pub mac: Option<Mac>,
}

/// Everything the kernel told.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    links: BTreeMap<u32, Link>,
    /// Addresses by device, the oldest first.
    addresses: BTreeMap<u32, Vec<LocalAddress>>,
    /// Devices that default routes lead over, in the order of the route's ways.
    default_devices: BTreeMap<RouteKey, Vec<u32>>,
    routes: HashMap<(IpAddr, u8), BTreeMap<RouteKey, Target>>,
    /// Prefix lengths in use, with the number of networks: IPv4, IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
    neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Bridge and MAC address -> port.
    stations: BTreeMap<(u32, Mac), u32>,
    /// Policy routing rules other than the three every host has.
    rules: BTreeSet<String>,
}

/// Addresses whose way may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Affected {
    /// This one.
    Address(IpAddr),
    /// Any.
    All,
}

impl Mirror {
    /// Devices, by interface index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// A device.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// A device is new or changed. `None` when nothing that matters changed.
    pub fn set_link(&mut self, link: Link) -> Option<Affected> {
        let before = self.links.insert(link.index, link.clone());
        (before != Some(link)).then_some(Affected::All)
    }

    /// A device is gone, with everything that hung on it.
    pub fn remove_link(&mut self, index: u32) -> Option<Affected> {
        self.neighbours.retain(|(interface, _), _| *interface != index);
        self.stations.retain(|(bridge, _), port| *bridge != index && *port != index);
        self.addresses.remove(&index);
        self.links.remove(&index).map(|_| Affected::All)
    }

    /// An address is new or changed. True when something that matters changed.
    pub fn set_address(&mut self, interface: u32, address: LocalAddress) -> bool {
        let of_device = self.addresses.entry(interface).or_default();
        let same = |known: &&mut LocalAddress| known.address == address.address;
        match of_device.iter_mut().find(same) {
            Some(known) if *known == address => return false,
            Some(known) => *known = address,
            None => of_device.push(address),
        }
        // Stable: what was made at the same time stays in the order in which the kernel tells it.
        of_device.sort_by_key(|known| known.created);
        true
    }

    /// An address is gone. True when it was known.
    pub fn remove_address(&mut self, interface: u32, address: IpAddr) -> bool {
        let Some(of_device) = self.addresses.get_mut(&interface) else { return false };
        let before = of_device.len();
        of_device.retain(|known| known.address != address);
        let removed = of_device.len() < before;
        if of_device.is_empty() {
            self.addresses.remove(&interface);
        }
        removed
    }

    /// Addresses of a device, the oldest first.
    pub fn addresses_of(&self, interface: u32) -> &[LocalAddress] {
        self.addresses.get(&interface).map_or(&[], Vec::as_slice)
    }

    /// Every address, with the device that has it.
    pub fn addresses(&self) -> impl Iterator<Item = (u32, LocalAddress)> {
        self.addresses.iter().flat_map(|(interface, all)| all.iter().map(|address| (*interface, *address)))
    }

    /// Says over which devices a default route leads; it is forgotten with the route.
    pub fn set_default_devices(&mut self, key: RouteKey, devices: Vec<u32>) {
        self.default_devices.insert(key, devices);
    }

    /// Devices of the default routes of a family (IPv6: `v6`), best first.
    pub fn default_devices(&self, v6: bool) -> impl Iterator<Item = u32> {
        let mut routes: Vec<(&RouteKey, &Vec<u32>)> =
            self.default_devices.iter().filter(|(key, _)| key.network.is_ipv6() == v6).collect();
        routes.sort_by_key(|(key, _)| key.priority);
        routes.into_iter().flat_map(|(_, devices)| devices.iter().copied())
    }

    /// A route is new or changed.
    pub fn set_route(&mut self, key: RouteKey, target: Target) -> Option<Affected> {
        let network = (key.network, key.prefix);
        if !self.routes.contains_key(&network) {
            *self.lengths[family(key.network)].entry(key.prefix).or_default() += 1;
        }
        let before = self.routes.entry(network).or_default().insert(key, target);
        (before != Some(target)).then(|| affected_by(&key))
    }

    /// A route is gone.
    pub fn remove_route(&mut self, key: &RouteKey) -> Option<Affected> {
        let network = (key.network, key.prefix);
        self.default_devices.remove(key);
        let routes = self.routes.get_mut(&network)?;
        routes.remove(key)?;
        if routes.is_empty() {
            self.routes.remove(&network);
            let lengths = &mut self.lengths[family(key.network)];
            if let Some(count) = lengths.get_mut(&key.prefix) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&key.prefix);
                }
            }
        }
        Some(affected_by(key))
    }

    /// Routes that a new one replaces: those to the same network with the same priority.
    pub fn remove_replaced(&mut self, key: &RouteKey) -> Option<Affected> {
        let same = |other: &&RouteKey| {
            other.priority == key.priority && other.local_table == key.local_table && *other != key
        };
        let routes = self.routes.get(&(key.network, key.prefix))?;
        let replaced: Vec<RouteKey> = routes.keys().filter(same).copied().collect();
        replaced.iter().fold(None, |affected, key| self.remove_route(key).or(affected))
    }

    /// A neighbour is new or changed; `None` for the MAC address of one that does not answer.
    pub fn set_neighbour(&mut self, interface: u32, address: IpAddr, mac: Option<Mac>) -> Option<Affected> {
        let entry = Neighbour { mac };
        let before = self.neighbours.insert((interface, address), entry);
        (before != Some(entry)).then_some(Affected::Address(address))
    }

    /// A neighbour is forgotten.
    pub fn remove_neighbour(&mut self, interface: u32, address: IpAddr) -> Option<Affected> {
        self.neighbours.remove(&(interface, address)).map(|_| Affected::Address(address))
    }

    /// A bridge learned behind which port a station is.
    pub fn set_station(&mut self, bridge: u32, mac: Mac, port: u32) -> Vec<Affected> {
        if self.stations.insert((bridge, mac), port) == Some(port) {
            Vec::new()
        } else {
            self.owners(bridge, mac)
        }
    }

    /// A bridge forgot a station. `port`: a report about another port than the known one is old news.
    pub fn remove_station(&mut self, bridge: u32, mac: Mac, port: u32) -> Vec<Affected> {
        if self.stations.get(&(bridge, mac)) != Some(&port) {
            return Vec::new();
        }
        self.stations.remove(&(bridge, mac));
        self.owners(bridge, mac)
    }

    /// Addresses that a bridge's station has.
    fn owners(&self, bridge: u32, mac: Mac) -> Vec<Affected> {
        let lowest = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.neighbours
            .range((bridge, lowest)..)
            .take_while(|((interface, _), _)| *interface == bridge)
            .filter(|(_, neighbour)| neighbour.mac == Some(mac))
            .map(|((_, address), _)| Affected::Address(*address))
            .collect()
    }

    /// A rule of policy routing came, other than those every host has.
    pub fn add_rule(&mut self, rule: String) -> Option<Affected> {
        self.rules.insert(rule).then_some(Affected::All)
    }

    /// A rule of policy routing went.
    pub fn remove_rule(&mut self, rule: &str) -> Option<Affected> {
        self.rules.remove(rule).then_some(Affected::All)
    }

    /// True when only the destination decides about a packet's route.
    pub fn routes_by_destination(&self) -> bool {
        self.rules.is_empty()
    }

    /// Where the host routes an address: own addresses first, longest prefix, then the lowest priority. Several
    /// routes of the same priority share the traffic, which is up to the stack.
    pub fn route(&self, address: IpAddr) -> Option<(RouteKey, Target)> {
        let best = |local_table: bool| {
            self.lengths[family(address)].keys().rev().find_map(|length| {
                let routes = self.routes.get(&(network_of(address, *length), *length))?;
                let of_table = || routes.iter().filter(|(key, _)| key.local_table == local_table);
                let (key, target) = of_table().min_by_key(|(key, _)| key.priority)?;
                let alone = of_table().filter(|(other, _)| other.priority == key.priority).count() == 1;
                Some((*key, if alone || *target == Target::Host { *target } else { Target::StackOnly }))
            })
        };
        best(true).or_else(|| best(false))
    }

    /// The entry of a neighbour.
    pub fn neighbour(&self, interface: u32, address: IpAddr) -> Option<Neighbour> {
        self.neighbours.get(&(interface, address)).copied()
    }

    /// The port of a bridge behind which a station is.
    pub fn station(&self, bridge: u32, mac: Mac) -> Option<u32> {
        self.stations.get(&(bridge, mac)).copied()
    }
}

const fn family(address: IpAddr) -> usize {
    if address.is_ipv4() { 0 } else { 1 }
}

fn affected_by(key: &RouteKey) -> Affected {
    let full = if key.network.is_ipv4() { 32 } else { 128 };
    if key.prefix == full { Affected::Address(key.network) } else { Affected::All }
}

/// The network of that prefix length that an address lies in.
pub(super) fn network_of(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
        }
    }
}
