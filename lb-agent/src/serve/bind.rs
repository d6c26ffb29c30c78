//! Listening sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait to be accepted, at most: a burst of them is not refused.
const BACKLOG: i32 = 1024;

/// Whom a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// The address's own family, whatever `net.ipv6.bindv6only` says.
    One,
    /// The same, but `[::]` is both; on a host without IPv6 it is `0.0.0.0`.
    OfAddress,
}

/// A listening socket. It needs a tokio runtime.
pub(crate) fn listen(address: SocketAddr, families: Families) -> io::Result<TcpListener> {
    let both = families == Families::OfAddress && address.ip().is_unspecified() && address.is_ipv6();
    match open(address, both) {
        Err(error) if both && is_no_such_family(&error) => {
            open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()), false)
        }
        result => result,
    }
}

fn open(address: SocketAddr, both: bool) -> io::Result<TcpListener> {
    let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!both)?;
    }
    // Connections of the agent before may linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// True when the kernel was built or started without IPv6.
pub(crate) fn is_no_such_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
