//! Sockets whose connections are translated when they are made, not packet by packet (`--socket-lb`).
//!
//! Keys begin with the socket's cookie, a number that the kernel gives a socket once and never again. Addresses of both
//! families lie in IPv6 notation, IPv4 ones mapped (RFC 4291 2.5.5.2): one table serves IPv4 sockets, IPv6 sockets and
//! IPv6 sockets that speak IPv4.

use super::{Backend, BackendFlags};
use crate::address::{Address, Ip6};
use crate::byteorder::Be16;

/// In place of a network namespace's cookie: the initial namespace, for kernels that tell programs the cookie of a
/// socket's namespace (5.7) and nobody else (`SO_NETNS_COOKIE`, 5.14).
pub const INITIAL_NAMESPACE: u64 = u64::MAX;

/// An address and port of either family.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketEnd {
    /// The address, an IPv4 one mapped.
    pub address: Ip6,
    /// The port.
    pub port: Be16,
    /// Always 0.
    pub zero: [u16; 3],
}

impl SocketEnd {
    /// An end.
    #[inline(always)]
    pub const fn new(address: Ip6, port: Be16) -> Self {
        Self { address, port, zero: [0; 3] }
    }
}

/// Which backend row a socket's endpoint was taken from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketChoice {
    /// Address and port of the endpoint.
    pub endpoint: SocketEnd,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend row, of the endpoint's family.
    pub backend: u32,
}

impl SocketChoice {
    /// True when `row`, which is what stands at [`Self::backend`] now, still is this endpoint of this Service port, and
    /// serves. `address` is that of the row in IPv6 notation.
    #[inline(always)]
    pub fn serves<A: Address>(&self, row: &Backend<A>, address: Ip6) -> bool {
        row.flags & BackendFlags::SERVING != 0
            && row.service == self.service
            && row.port == self.endpoint.port
            && address == self.endpoint.address
    }
}

/// Value of the table `SOCKETS`, whose key is a socket cookie: a socket that connected to a Service. The entry goes when
/// the socket is closed or connects elsewhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// Where the application connected to: what it is shown as its peer.
    pub frontend: SocketEnd,
    /// Where it is connected to.
    pub choice: SocketChoice,
    /// Cookie of the socket's network namespace.
    pub namespace: u64,
    /// Monotonic second of the connecting.
    pub created: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

/// Key of the tables `SOCKET_FLOWS` (the end is a frontend) and `SOCKET_PEERS` (the end is an endpoint).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketKey {
    /// The socket.
    pub cookie: u64,
    /// The other end.
    pub end: SocketEnd,
}

/// Value of the table `SOCKET_FLOWS`: the endpoint that an unconnected UDP socket's datagrams to a frontend go to, for as
/// long as it serves and the flow is not idle for too long.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketFlow {
    /// The endpoint.
    pub choice: SocketChoice,
    /// Monotonic second of the last datagram, to it or from it.
    pub last_seen: u32,
    /// Always 0.
    pub zero: u32,
}

/// Value of the table `SOCKET_PEERS`: under which frontend an unconnected UDP socket knows an endpoint: the one it last
/// sent a datagram to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketPeer {
    /// The frontend.
    pub frontend: SocketEnd,
    /// Monotonic second of the last datagram, to it or from it.
    pub last_seen: u32,
    /// Always 0.
    pub zero: u32,
}

impl SocketPeer {
    /// True while datagrams from the endpoint count as answers (`now` and `timeout` in seconds).
    #[inline(always)]
    pub const fn is_fresh(&self, now: u32, timeout: u32) -> bool {
        now.wrapping_sub(self.last_seen) < timeout
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::address::Ip4;
    use crate::layout::{Family as _, V4};

    #[test]
    fn keys_and_entries_have_no_padding() {
        assert_eq!(size_of::<SocketEnd>(), 16 + 2 + 6);
        assert_eq!(size_of::<SocketKey>(), 8 + 24);
        assert_eq!(size_of::<SocketChoice>(), 24 + 8);
        assert_eq!(size_of::<ConnectedSocket>(), 24 + 32 + 8 + 4 + 4);
        assert_eq!(size_of::<SocketFlow>(), 32 + 8);
        assert_eq!(size_of::<SocketPeer>(), 24 + 8);
    }

    #[test]
    fn an_endpoint_serves_as_long_as_its_row_says_so() {
        let (address, port) = (Ip4::from(Ipv4Addr::new(10, 1, 0, 1)), Be16::new(53));
        let mapped = V4::mapped(address);
        let choice = SocketChoice { endpoint: SocketEnd::new(mapped, port), service: 4, backend: 9 };
        let flags = BackendFlags::IN_USE | BackendFlags::SERVING;
        let row = Backend { address, port, flags, service: 4, interface: 0, mac: [0; 6] };
        assert!(choice.serves(&row, mapped));
        assert!(!choice.serves(&Backend { flags: BackendFlags::IN_USE, ..row }, mapped), "stopped serving");
        assert!(!choice.serves(&Backend { service: 5, ..row }, mapped), "row of another Service");
        assert!(!choice.serves(&Backend { port: Be16::new(54), ..row }, mapped), "row of another endpoint");
        let other = V4::mapped(Ip4::from(Ipv4Addr::new(10, 1, 0, 2)));
        assert!(!choice.serves(&row, other), "row of another endpoint");
    }
}
