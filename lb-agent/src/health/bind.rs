//! Where listeners are opened.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::NodeAddressing;

/// Connections that wait to be accepted, at most: a burst of them is not refused.
const BACKLOG: i32 = 1024;

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

/// A listening socket for one family only, whatever `net.ipv6.bindv6only` says.
pub(super) fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of the agent before may linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    tokio::net::TcpListener::from_std(socket.into())
}
