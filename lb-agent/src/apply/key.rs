//! What frontend tables are looked up by, in either family, and what a Service port claims.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{
    FrontendKey, SCOPE_ADDRESS, SCOPE_NODE_ADDRESS, SCOPE_NODE_PORT, SCOPE_SERVICE, Table,
};
use serde::Serialize;

use crate::model::Family;

/// A frontend key of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct TableKey {
    /// The address clients connect to; unspecified for node ports.
    pub address: IpAddr,
    /// The port, host order; 0 in entries for an address.
    pub port: u16,
    /// IP protocol number; 0 in entries for an address.
    pub protocol: u8,
    /// One of the `SCOPE_` numbers of `lb_common::layout`.
    pub scope: u8,
}

impl TableKey {
    /// The key of an address and port of a Service.
    pub const fn service(address: IpAddr, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, scope: SCOPE_SERVICE }
    }

    /// The key that says: this address is a Service's cluster IP (S-23).
    pub const fn address(address: IpAddr) -> Self {
        Self { address, port: 0, protocol: 0, scope: SCOPE_ADDRESS }
    }

    /// The key of a node port, at whichever node port address.
    pub const fn node_port(family: Family, port: u16, protocol: u8) -> Self {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { address, port, protocol, scope: SCOPE_NODE_PORT }
    }

    /// The key that says: node ports are served at this address (S-35).
    pub const fn node_address(address: IpAddr) -> Self {
        Self { address, port: 0, protocol: 0, scope: SCOPE_NODE_ADDRESS }
    }

    /// The table it lies in.
    pub const fn table(&self) -> Table {
        match self.address {
            IpAddr::V4(_) => Table::Frontends4,
            IpAddr::V6(_) => Table::Frontends6,
        }
    }

    /// The family of its address.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// The two buckets it may lie in.
    pub fn buckets(&self, mask: u32) -> (u32, u32) {
        match self.address {
            IpAddr::V4(address) => self.v4(address).buckets(mask),
            IpAddr::V6(address) => self.v6(address).buckets(mask),
        }
    }

    pub(super) fn v4(&self, address: Ipv4Addr) -> FrontendKey<Ip4> {
        let port = Be16::new(self.port);
        FrontendKey { address: address.into(), port, protocol: self.protocol, scope: self.scope }
    }

    pub(super) fn v6(&self, address: Ipv6Addr) -> FrontendKey<Ip6> {
        let port = Be16::new(self.port);
        FrontendKey { address: address.into(), port, protocol: self.protocol, scope: self.scope }
    }

    /// From an address and the port word beside it.
    pub(super) fn from_parts(address: impl Address, port_word: u32) -> Self {
        Self {
            address: address.to_ip(),
            port: Be16::from_raw(port_word as u16).host(),
            protocol: (port_word >> 16) as u8,
            scope: (port_word >> 24) as u8,
        }
    }
}
