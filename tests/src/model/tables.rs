//! What the tables say, as lists.

use std::net::{IpAddr, SocketAddr};

use crate::datapath::packet::Mac;

/// Where a frontend comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A cluster IP.
    ClusterIp,
    /// An external IP.
    ExternalIp,
    /// A load balancer's VIP.
    LoadBalancer,
    /// A node port: the address counts for nothing.
    NodePort,
}

/// The lists that new connections choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Any client at a cluster IP.
    Internal,
    /// Clients outside at anything else.
    External,
    /// Pods at anything else.
    Cluster,
}

/// What a list says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// One of these backend rows.
    OneOf(Vec<u32>),
    /// Refuse.
    Reject,
    /// Drop.
    Drop,
}

/// Where a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Address and port.
    pub vip: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Where it comes from.
    pub kind: Kind,
    /// Index of the Service.
    pub service: u32,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its index.
    pub index: u32,
    /// The lists, by class: internal, external, cluster.
    pub lists: [Published; 3],
    /// Seconds of affinity, 0 for none.
    pub affinity: u32,
    /// Clients outside keep their addresses.
    pub preserve_source: bool,
    /// Networks and prefix lengths that may use its VIPs, when not everybody may.
    pub sources: Option<Vec<(IpAddr, u32)>>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its row.
    pub index: u32,
    /// Service it is of.
    pub service: u32,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// It serves.
    pub serving: bool,
    /// It is in the lists, by class.
    pub listed: [bool; 3],
    /// Device, 0 when not known.
    pub interface: u32,
    /// The device is a network card.
    pub neighbour: bool,
    /// MAC address.
    pub mac: Mac,
}

/// Whose an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Service's cluster IP.
    ClusterIp,
    /// In a Service range, and nobody's.
    Unallocated,
    /// None of our business.
    Foreign,
}

/// Everything the agent writes.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Frontends.
    pub frontends: Vec<Frontend>,
    /// Services.
    pub services: Vec<Service>,
    /// Backends.
    pub backends: Vec<Backend>,
    /// Node port addresses.
    pub node_addresses: Vec<IpAddr>,
    /// Service ranges: network and prefix length.
    pub ranges: Vec<(IpAddr, u32)>,
    /// Address that masqueraded flows get.
    pub masquerade: Option<IpAddr>,
}

/// True when an address lies in a network.
pub(super) fn contains(network: IpAddr, prefix: u32, address: IpAddr) -> bool {
    let bits = |address: IpAddr| -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        octets.iter().flat_map(|octet| (0..8).map(move |bit| octet & (0x80 >> bit) != 0)).collect()
    };
    let (network, address) = (bits(network), bits(address));
    network.len() == address.len() && network[..prefix as usize] == address[..prefix as usize]
}

impl Tables {
    /// The frontend at an address and port.
    pub fn frontend(&self, dst: SocketAddr, protocol: u8) -> Option<Frontend> {
        // What is on a loopback address is for sockets.
        if dst.ip().is_loopback() {
            return None;
        }
        let of_protocol = || self.frontends.iter().copied().filter(|found| found.protocol == protocol);
        let exact = of_protocol().find(|found| found.kind != Kind::NodePort && found.vip == dst);
        let node_port = || {
            let at_node = self.node_addresses.contains(&dst.ip());
            of_protocol()
                .find(|found| at_node && found.kind == Kind::NodePort && found.vip.port() == dst.port())
        };
        exact.or_else(node_port)
    }

    /// Whose an address is.
    pub fn whose(&self, address: IpAddr) -> Address {
        let is_cluster_ip =
            |frontend: &Frontend| frontend.kind == Kind::ClusterIp && frontend.vip.ip() == address;
        if self.frontends.iter().any(is_cluster_ip) {
            Address::ClusterIp
        } else if self.ranges.iter().any(|(network, prefix)| contains(*network, *prefix, address)) {
            Address::Unallocated
        } else {
            Address::Foreign
        }
    }

    /// A Service by its index.
    pub fn service(&self, index: u32) -> &Service {
        self.services.iter().find(|service| service.index == index).expect("a Service that there is")
    }

    /// A backend by its row.
    pub fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.index == index)
    }
}
