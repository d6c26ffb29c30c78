//! Where listeners are opened.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::NodeAddressing;

/// The addresses to listen at: a family that is served at all addresses has one listener for all, also for those to come.
pub(super) fn targets(addresses: &NodeAddressing) -> BTreeSet<IpAddr> {
    let all = |v6: bool| if v6 { addresses.node_ports_at_all.v6 } else { addresses.node_ports_at_all.v4 };
    let single = addresses.node_ports.iter().copied().filter(|address| !all(address.is_ipv6()));
    // Nobody balances load over a link-local address, which would need a device beside it.
    let single = single.filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()));
    let any: [(bool, IpAddr); 2] =
        [(all(false), Ipv4Addr::UNSPECIFIED.into()), (all(true), Ipv6Addr::UNSPECIFIED.into())];
    single.chain(any.into_iter().filter(|(all, _)| *all).map(|(_, address)| address)).collect()
}
