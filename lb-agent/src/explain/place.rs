//! Where packets of an address come in and leave: which device, and which program is there.

use std::net::IpAddr;

use lb_common::layout::Client;

use crate::apply::TablesView;
use crate::dataplane::{Attachments, Hook, Role, Via};
use crate::net::{DeviceSelection, LinkKind, Mac, Mirror, Target};

/// A device that an address is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Interface index.
    pub(super) interface: u32,
    /// Name.
    pub(super) name: String,
    /// What it is to the datapath.
    pub(super) role: Role,
    /// The programs of its role are attached, and how; `None` when there are none.
    pub(super) via: Option<Via>,
    /// MAC address of who has the address, where the kernel knows it.
    pub(super) mac: Option<Mac>,
}

impl Place {
    /// The hook that packets from there are met at.
    pub(super) const fn inward(&self) -> Hook {
        match self.role {
            Role::Pod => Hook::FromPod,
            Role::Net => Hook::FromNet,
        }
    }

    /// The hook that packets to there are met at.
    pub(super) const fn outward(&self) -> Hook {
        match self.role {
            Role::Pod => Hook::ToPod,
            Role::Net => Hook::ToNet,
        }
    }
}

/// Where an address is, seen from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// This node itself.
    Here,
    /// Behind a device.
    Behind(Place),
    /// Only the host's routing knows: rules, several ways, or no route at all.
    Unknown,
}

impl Located {
    /// What kind of client somebody there is.
    pub(super) fn client(&self) -> Client {
        match self {
            Self::Here => Client::Host,
            Self::Behind(place) if place.role == Role::Pod => Client::Pod,
            Self::Behind(_) | Self::Unknown => Client::Outside,
        }
    }

    /// The device, where there is one.
    pub(super) fn place(&self) -> Option<&Place> {
        match self {
            Self::Behind(place) => Some(place),
            Self::Here | Self::Unknown => None,
        }
    }
}

/// What is known of the node, for looking addresses up.
#[derive(Debug)]
pub(super) struct Node<'n> {
    pub(super) mirror: &'n Mirror,
    pub(super) attached: &'n Attachments,
    pub(super) view: &'n TablesView,
}

impl Node<'_> {
    /// Where an address is.
    pub(super) fn locate(&self, address: IpAddr) -> Located {
        if address.is_loopback() || address.is_unspecified() {
            return Located::Here;
        }
        let interface = match self.mirror.route(address) {
            Some((_, Target::Host)) => return Located::Here,
            Some((_, Target::Device(interface) | Target::Gateway(interface))) => interface,
            // The tables may know the device of an endpoint whose route is out of the ordinary.
            Some((_, Target::StackOnly)) | None => match self.endpoint_device(address) {
                Some(interface) => interface,
                None => return Located::Unknown,
            },
        };
        let mac = self.mirror.neighbour(interface, address).and_then(|neighbour| neighbour.mac);
        let is_bridge = self.mirror.link(interface).is_some_and(|link| link.kind == LinkKind::Bridge);
        let port = if is_bridge { mac.and_then(|mac| self.mirror.station(interface, mac)) } else { None };
        let known = port.or_else(|| is_bridge.then(|| self.endpoint_device(address)).flatten());
        Located::Behind(self.place(known.unwrap_or(interface), mac))
    }

    /// The device of a local endpoint with that address.
    fn endpoint_device(&self, address: IpAddr) -> Option<u32> {
        let of_pod = |backend: &&crate::apply::BackendView| {
            backend.address == address && backend.interface != 0 && !backend.neighbour
        };
        self.view.backends.iter().find(of_pod).map(|backend| backend.interface)
    }

    /// A device with what is attached to it.
    pub(super) fn place(&self, interface: u32, mac: Option<Mac>) -> Place {
        let via = |hook| self.attached.devices.get(&(interface, hook)).map(|(via, _)| *via);
        let link = self.mirror.link(interface);
        let role = match (via(Hook::FromPod).or(via(Hook::ToPod)), via(Hook::FromNet).or(via(Hook::ToNet))) {
            (Some(_), _) => Role::Pod,
            (None, Some(_)) => Role::Net,
            // As an agent with the default flags would take it.
            (None, None) => match link {
                Some(link) if DeviceSelection::default().is_pods(self.mirror, link) => Role::Pod,
                _ => Role::Net,
            },
        };
        let [one, other] = role.hooks();
        Place {
            interface,
            name: link.map_or_else(|| format!("interface {interface}"), |link| link.name.clone()),
            role,
            via: via(one).and(via(other)),
            mac,
        }
    }

    /// The network device that a default route leads over, or else any that has programs.
    pub(super) fn way_out(&self, v6: bool) -> Option<Place> {
        let by_default = self.mirror.default_devices(v6).next();
        let with_programs = || self.attached.devices.keys().find(|(_, hook)| *hook == Hook::FromNet);
        by_default.or_else(|| with_programs().map(|(interface, _)| *interface)).map(|it| self.place(it, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Link, RouteKey};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn mirror() -> Mirror {
        let mut mirror = Mirror::default();
        let link = |index, name: &str, kind| Link {
            index,
            name: name.to_owned(),
            kind,
            up: true,
            ethernet: true,
            ..Link::default()
        };
        mirror.set_link(link(2, "eth0", LinkKind::Ethernet));
        mirror.set_link(link(7, "veth7", LinkKind::Veth));
        mirror.set_link(link(8, "cni0", LinkKind::Bridge));
        mirror.set_link(Link { master: Some(8), ..link(9, "port9", LinkKind::Veth) });
        for (network, prefix, target) in [
            ("0.0.0.0", 0, Target::Gateway(2)),
            ("10.1.0.7", 32, Target::Device(7)),
            ("10.2.0.0", 24, Target::Device(8)),
            ("192.168.0.5", 32, Target::Host),
        ] {
            let local_table = target == Target::Host;
            let interface = match target {
                Target::Device(index) | Target::Gateway(index) => index,
                _ => 0,
            };
            let key = RouteKey { network: ip(network), prefix, priority: 0, local_table, interface };
            mirror.set_route(key, target);
        }
        mirror
    }

    #[test]
    fn addresses_are_found_where_routes_neighbours_and_bridges_say() {
        let (mut mirror, attached, view) = (mirror(), Attachments::default(), TablesView::default());
        mirror.set_neighbour(8, ip("10.2.0.4"), Some([2, 0, 0, 0, 0, 9]));
        mirror.set_station(8, [2, 0, 0, 0, 0, 9], 9);
        let node = Node { mirror: &mirror, attached: &attached, view: &view };
        let told = |address: &str| match node.locate(ip(address)) {
            Located::Behind(place) => format!("{} {:?}", place.name, place.role),
            other => format!("{other:?}"),
        };
        assert_eq!(told("192.168.0.5"), "Here");
        assert_eq!(told("127.0.0.1"), "Here");
        assert_eq!(told("10.1.0.7"), "veth7 Pod");
        assert_eq!(told("10.2.0.4"), "port9 Pod");
        assert_eq!(told("10.2.0.5"), "cni0 Net", "a pod that the bridge has not heard of");
        assert_eq!(told("203.0.113.9"), "eth0 Net");
        assert_eq!(told("2001:db8::1"), "Unknown");
    }
}
