//! TCP connections from a place in the lab.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::net::{TcpSocket, TcpStream};

use super::{DEFAULT_TIMEOUT, NetError, in_time};
use crate::netns::Namespace;

/// How a client opens its connection.
#[derive(Debug, Clone, Copy)]
pub struct TcpOptions {
    /// How long to wait for the handshake.
    pub timeout: Duration,
    /// The source address; the kernel's choice, unless given.
    pub source: Option<IpAddr>,
    /// The source port; the kernel's choice if 0.
    pub source_port: u16,
    /// Close with a reset instead of a FIN, so that no TIME_WAIT keeps the source port.
    pub reset_on_close: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, source: None, source_port: 0, reset_on_close: false }
    }
}

/// Opens a TCP connection from `at`. The stream belongs to the runtime of that place; use
/// [`TcpStream::into_std`] to move it elsewhere.
///
/// # Errors
/// [`NetError::Refused`], [`NetError::Timeout`], [`NetError::Unreachable`], ...
pub async fn tcp_connect(at: &impl AsRef<Namespace>, to: SocketAddr) -> Result<TcpStream, NetError> {
    tcp_connect_with(at, to, TcpOptions::default()).await
}

/// As [`tcp_connect`], with a choice of source and timeout.
///
/// # Errors
/// As [`tcp_connect`].
pub async fn tcp_connect_with(
    at: &impl AsRef<Namespace>,
    to: SocketAddr,
    options: TcpOptions,
) -> Result<TcpStream, NetError> {
    at.as_ref().run(connect(to, options)).await
}

/// Connects from the namespace of the current thread.
pub(crate) async fn connect(to: SocketAddr, options: TcpOptions) -> Result<TcpStream, NetError> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if options.source.is_some() || options.source_port != 0 {
        socket.set_reuseaddr(true)?;
        let any = crate::lab::any_like(to.ip());
        socket.bind(SocketAddr::new(options.source.unwrap_or(any), options.source_port))?;
    }
    if options.reset_on_close {
        socket.set_zero_linger()?;
    }
    in_time(options.timeout, async { Ok(socket.connect(to).await?) }).await
}
