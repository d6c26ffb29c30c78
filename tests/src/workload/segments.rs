//! TCP segments as they are, seen and sent beside the kernel's own connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{FromRawFd, OwnedFd},
    time::Duration,
};

use etherparse::{TcpHeader, TcpSlice};
use tokio::net::UdpSocket;

use super::NetError;
use crate::netns::Namespace;

/// A TCP segment that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Source address and port.
    pub from: SocketAddr,
    /// Destination port.
    pub to_port: u16,
    /// Its header.
    pub header: TcpHeader,
    /// Bytes of payload.
    pub payload: usize,
}

/// A raw socket of one place: it sees a copy of every TCP segment that arrives there, and sends any.
#[derive(Debug)]
pub struct Segments {
    socket: UdpSocket,
    own: IpAddr,
    place: Namespace,
}

impl Segments {
    /// Sees what arrives at `own`, an address of this place, from now on.
    ///
    /// # Errors
    /// Not root, or the place has no such address.
    pub async fn open(at: &impl AsRef<Namespace>, own: IpAddr) -> Result<Self, NetError> {
        let place = at.as_ref().clone();
        let socket = place
            .run(async move { UdpSocket::from_std(raw_socket(own.is_ipv6(), libc::IPPROTO_TCP)?) })
            .await?;
        Ok(Self { socket, own, place })
    }

    /// The segments that have arrived and arrive until none has for `quiet`.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn seen(&self, quiet: Duration) -> Result<Vec<Segment>, NetError> {
        let mut segments = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Ok(received) = tokio::time::timeout(quiet, self.socket.recv_from(&mut buffer)).await {
            let (length, from) = received?;
            segments.extend(self.parse(&buffer[..length], from.ip()));
        }
        Ok(segments)
    }

    fn parse(&self, bytes: &[u8], from: IpAddr) -> Option<Segment> {
        // Raw IPv4 sockets are given the IP header, those of IPv6 are not.
        let skipped = if self.own.is_ipv4() { usize::from(bytes.first()? & 0x0f) * 4 } else { 0 };
        let slice = TcpSlice::from_slice(bytes.get(skipped..)?).ok()?;
        let header = slice.to_header();
        Some(Segment {
            from: SocketAddr::new(from, header.source_port),
            to_port: header.destination_port,
            payload: slice.payload().len(),
            header,
        })
    }

    /// Sends a segment from this place's address; its checksum is computed here.
    ///
    /// # Errors
    /// The kernel does not send it.
    pub async fn send(&self, mut header: TcpHeader, to: IpAddr, payload: &[u8]) -> Result<(), NetError> {
        let checksum = match (self.own, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload).ok()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload).ok()
            }
            _ => None,
        };
        header.checksum =
            checksum.ok_or_else(|| NetError::Other(format!("no segment from {} to {to}", self.own)))?;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        // The port of a raw socket's address means nothing.
        self.socket.send_to(&bytes, SocketAddr::new(to, 0)).await?;
        Ok(())
    }

    /// The place.
    pub fn namespace(&self) -> &Namespace {
        &self.place
    }
}

/// A raw socket of an IP protocol.
pub(super) fn raw_socket(v6: bool, protocol: libc::c_int) -> io::Result<std::net::UdpSocket> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned.into())
}
