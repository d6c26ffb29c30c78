//! ICMP echo, as the `ping` program does it without privileges.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use tokio::net::UdpSocket;

use super::{NetError, in_time};
use crate::netns::Namespace;

/// Sends one echo request from `at` and waits for the reply; returns the round-trip time.
///
/// # Errors
/// [`NetError::Timeout`] without a reply; [`NetError::Refused`] or [`NetError::Unreachable`] after an ICMP error.
pub async fn ping(at: &impl AsRef<Namespace>, to: IpAddr, limit: Duration) -> Result<Duration, NetError> {
    at.as_ref().run(echo(to, limit)).await
}

async fn echo(to: IpAddr, limit: Duration) -> Result<Duration, NetError> {
    let (request, reply) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
    let socket = UdpSocket::from_std(icmp_socket(to)?)?;
    socket.connect(SocketAddr::new(to, 0)).await?;
    // Type, code, checksum and identifier (the kernel's business), sequence number, payload.
    let message = [request, 0, 0, 0, 0, 0, 0, 1, b'l', b'b', b't', b'-', b'p', b'i', b'n', b'g'];
    let begin = Instant::now();
    socket.send(&message).await?;
    let answered = async {
        let mut buffer = [0; 256];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if length == message.len() && buffer[0] == reply && buffer[6..length] == message[6..] {
                return Ok(begin.elapsed());
            }
        }
    };
    in_time(limit, answered).await
}

/// An ICMP datagram socket; the kernel gives it to groups in `ping_group_range`.
fn icmp_socket(to: IpAddr) -> io::Result<std::net::UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned.into())
}
