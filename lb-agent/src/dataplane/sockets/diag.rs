//! `sock_diag(7)`: which UDP sockets are connected in a network namespace, and their closing.
//!
//! Messages mirror `include/uapi/linux/inet_diag.h`.

use std::io;

use lb_common::byteorder::Be16;

use super::super::netlink::Netlink;

const DUMP: u16 = 20;
const DESTROY: u16 = 21;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 8 + SOCKET_ID;
/// `struct inet_diag_sockid`.
const SOCKET_ID: usize = 48;
/// `TCP_ESTABLISHED`, the state of a connected UDP socket.
const CONNECTED: u32 = 1 << 1;

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
pub(super) struct Diag(Netlink);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(libc::NETLINK_SOCK_DIAG).map(Self)
    }

    /// The UDP sockets that are connected to this port of any address, of both families.
    pub(super) fn connected(&self, port: Be16) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            let mut id = [0; SOCKET_ID];
            id[2..4].copy_from_slice(&port.raw().to_ne_bytes());
            self.send(DUMP, libc::NLM_F_DUMP, family, CONNECTED, &id)?;
            self.0.answers(|message| {
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
        match self.0.answers(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&self, kind: u16, flags: i32, family: u8, states: u32, id: &[u8; SOCKET_ID]) -> io::Result<()> {
        let mut request = [0; REQUEST];
        request[0] = family;
        request[1] = libc::IPPROTO_UDP as u8;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        request[8..].copy_from_slice(id);
        self.0.send(kind, flags, &request)
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
}
