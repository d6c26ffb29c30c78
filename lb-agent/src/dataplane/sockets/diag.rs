//! `sock_diag(7)`: which UDP sockets are connected in a network namespace, and their closing.
//!
//! Messages mirror `include/uapi/linux/inet_diag.h`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use lb_common::byteorder::Be16;

const DUMP: u16 = 20;
const DESTROY: u16 = 21;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 8 + SOCKET_ID;
/// `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;
/// `TCP_ESTABLISHED`, the state of a connected UDP socket.
const CONNECTED: u32 = 1 << 1;
const BUFFER: usize = 32 * 1024;
/// How long the kernel may take to answer, which it does at once.
static PATIENCE: libc::timeval = libc::timeval { tv_sec: 2, tv_usec: 0 };

/// A connected socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    family: u8,
    id: [u8; SOCKET_ID],
}

impl Found {
    /// The number that programs know the socket by.
    pub(super) fn cookie(&self) -> u64 {
        let word =
            |at: usize| u32::from_ne_bytes([self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]]);
        u64::from(word(40)) | u64::from(word(44)) << 32
    }
}

/// A connection to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Diag(OwnedFd);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: plain calls; a descriptor that is returned belongs to nobody else, and the option is a live timeval.
        let socket = unsafe {
            let fd =
                libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let socket = OwnedFd::from_raw_fd(fd);
            let size = size_of::<libc::timeval>() as libc::socklen_t;
            let option = (&raw const PATIENCE).cast();
            if libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, option, size) != 0 {
                return Err(io::Error::last_os_error());
            }
            socket
        };
        Ok(Self(socket))
    }

    /// The UDP sockets that are connected to this port of any address, of both families.
    pub(super) fn connected(&self, port: Be16) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut id = [0; SOCKET_ID];
            id[2..4].copy_from_slice(&port.raw().to_ne_bytes());
            self.send(DUMP, libc::NLM_F_DUMP, family, CONNECTED, &id)?;
            self.answers(|message| {
                // `struct inet_diag_msg` begins with family, state, timer and retransmissions.
                if let (Some(family), Some(id)) = (message.first(), message.get(4..4 + SOCKET_ID)) {
                    found.push(Found { family: *family, id: id.try_into().unwrap_or([0; SOCKET_ID]) });
                }
            })?;
        }
        Ok(found)
    }

    /// Closes a socket: what its application does next with it fails with `ECONNABORTED` (`udp_abort`,
    /// net/ipv4/udp.c). False when it is closed or connected elsewhere already.
    pub(super) fn destroy(&self, socket: &Found) -> io::Result<bool> {
        self.send(DESTROY, libc::NLM_F_ACK, socket.family, u32::MAX, &socket.id)?;
        match self.answers(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&self, kind: u16, flags: i32, family: u8, states: u32, id: &[u8; SOCKET_ID]) -> io::Result<()> {
        let mut message = [0; HEADER + REQUEST];
        message[..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        message[HEADER] = family;
        message[HEADER + 1] = libc::IPPROTO_UDP as u8;
        message[HEADER + 4..HEADER + 8].copy_from_slice(&states.to_ne_bytes());
        message[HEADER + 8..].copy_from_slice(id);
        // SAFETY: the buffer is live and as long as said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Reads until the answer is complete.
    fn answers(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            // SAFETY: the buffer is live and as long as said.
            let got = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if got < 0 {
                return Err(io::Error::last_os_error());
            }
            let mut rest = &buffer[..got as usize];
            while let Some((kind, payload, next)) = split(rest) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return outcome(payload),
                    _ => take(payload),
                }
                rest = next;
            }
        }
    }
}

/// Kind and payload of the first message, and what comes behind it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    // Messages begin at multiples of four bytes.
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error number of an acknowledgement; 0 is success.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// Needs no privileges: every process may see the sockets of its namespace.
    #[test]
    fn a_connected_socket_is_found_by_the_port_of_its_peer() {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let diag = Diag::open().unwrap();
        let port = Be16::new(other.local_addr().unwrap().port());
        assert_eq!(diag.connected(port).unwrap(), [], "not connected yet");
        one.connect(other.local_addr().unwrap()).unwrap();
        let found = diag.connected(port).unwrap();
        assert_eq!(found.len(), 1);
        assert_ne!(found[0].cookie(), 0);
        assert_eq!(found[0].id[..2], one.local_addr().unwrap().port().to_be_bytes());
    }

    #[test]
    fn messages_that_are_cut_off_end_the_reading() {
        let mut bytes = vec![0; 40];
        bytes[..4].copy_from_slice(&18u32.to_ne_bytes());
        let (_, payload, rest) = split(&bytes).unwrap();
        assert_eq!((payload.len(), rest.len()), (2, 20));
        assert!(split(&bytes[..17]).is_none() && split(&bytes[..3]).is_none());
    }
}
