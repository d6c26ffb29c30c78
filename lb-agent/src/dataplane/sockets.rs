//! Connected UDP sockets whose endpoint stopped serving: found in the table of sockets, closed through `sock_diag(7)`.

mod diag;
mod namespaces;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use lb_common::address::{Address, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{ConnectedSocket, Family, SocketChoice, SocketEnd, V4, V6};
use lb_common::lookup::Tables;
use lb_common::proto;

use super::error::{Error, Result};
use super::maps::Maps;
use super::memory::{HostTables, TableMemory};
use super::shape::Map;
use super::sys;
use diag::Diag;
use namespaces::Namespaces;

/// Entries read by one call.
const BATCH: usize = 1024;
const KEY: usize = size_of::<u64>();
const VALUE: usize = size_of::<ConnectedSocket>();

/// Which sockets are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspects {
    /// All.
    All,
    /// Those that are connected to one of these endpoints.
    Of(BTreeSet<SocketAddr>),
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Sockets that were closed.
    pub closed: usize,
    /// Sockets that should have been, in namespaces that this process cannot enter.
    pub unreachable: usize,
}

/// Closes sockets.
#[derive(Debug)]
pub struct SocketCloser {
    /// Cookie of this process's network namespace.
    own: u64,
    namespaces: Namespaces,
}

impl SocketCloser {
    /// For an agent whose network namespace has that cookie.
    pub fn new(own: u64) -> Self {
        Self { own, namespaces: Namespaces::default() }
    }

    /// Closes the connected UDP sockets among `suspects` whose endpoint does not serve any more: `tables` and the table
    /// of sockets in `maps` tell. Sockets of other network namespaces are closed where those can be found and entered:
    /// with the host's processes or `/run/netns` in sight, and `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// [`Error::Bpf`] when the kernel refuses; `EOPNOTSUPP` within when it was built without `INET_DIAG_DESTROY`.
    pub fn close(&mut self, maps: &Maps, tables: &impl TableMemory, suspects: &Suspects) -> Result<Closed> {
        let mut stale: BTreeMap<u64, Stale> = BTreeMap::new();
        let host = HostTables(tables);
        let examine = |cookie, socket: &ConnectedSocket| {
            if is_suspect(suspects, socket) && !serves(&host, &socket.choice) {
                let stale = stale.entry(socket.namespace).or_default();
                stale.cookies.insert(cookie);
                stale.ports.insert(socket.choice.endpoint.port);
            }
        };
        scan(maps.fd(Map::Sockets), examine)
            .map_err(|source| Error::bpf("reading the table of sockets", source))?;
        let mut outcome = Closed::default();
        for (namespace, stale) in &stale {
            let closing = || stale.close();
            let closed = if *namespace == self.own {
                closing().map(Some)
            } else {
                self.namespaces.within(*namespace, closing)
            };
            match closed.map_err(|source| Error::bpf("closing sockets", source))? {
                Some(closed) => outcome.closed += closed,
                None => outcome.unreachable += stale.cookies.len(),
            }
        }
        Ok(outcome)
    }
}

/// Sockets of one namespace that are to be closed.
#[derive(Debug, Default)]
struct Stale {
    cookies: BTreeSet<u64>,
    ports: BTreeSet<Be16>,
}

impl Stale {
    /// Closes them, in the namespace of the calling thread.
    fn close(&self) -> io::Result<usize> {
        let diag = Diag::open()?;
        let mut closed = 0;
        for port in &self.ports {
            for socket in diag.connected(*port)? {
                if self.cookies.contains(&socket.cookie()) && diag.destroy(&socket)? {
                    closed += 1;
                }
            }
        }
        Ok(closed)
    }
}

fn is_suspect(suspects: &Suspects, socket: &ConnectedSocket) -> bool {
    socket.protocol == proto::UDP
        && match suspects {
            Suspects::All => true,
            Suspects::Of(endpoints) => endpoints.contains(&address_of(&socket.choice.endpoint)),
        }
}

fn address_of(end: &SocketEnd) -> SocketAddr {
    SocketAddr::new(end.address.to_ip().to_canonical(), end.port.host())
}

fn serves(tables: &impl Tables, choice: &SocketChoice) -> bool {
    if address_of(&choice.endpoint).is_ipv4() {
        row_serves::<V4, _>(tables, choice)
    } else {
        row_serves::<V6, _>(tables, choice)
    }
}

fn row_serves<F: Family, T: Tables>(tables: &T, choice: &SocketChoice) -> bool {
    F::backend(tables, choice.backend).is_some_and(|row| choice.serves(&row, F::mapped(row.address)))
}

/// Reads the table of sockets.
fn scan(map: BorrowedFd<'_>, mut examine: impl FnMut(u64, &ConnectedSocket)) -> io::Result<()> {
    let mut capacity = BATCH;
    let mut cursor = sys::Cursor::default();
    loop {
        let (mut keys, mut values) = (vec![0; capacity * KEY], vec![0; capacity * VALUE]);
        let read = match sys::lookup_batch(map, &mut cursor, &mut keys, &mut values, capacity) {
            // A bucket with more elements than that.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                capacity *= 2;
                continue;
            }
            other => other?,
        };
        for (key, value) in keys.chunks_exact(KEY).zip(values.chunks_exact(VALUE)).take(read.count) {
            examine(u64::from_ne_bytes(array(key, 0)), &decode(value));
        }
        if read.end {
            return Ok(());
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// An entry from its bytes.
fn decode(bytes: &[u8]) -> ConnectedSocket {
    let long = |at| u64::from_ne_bytes(array(bytes, at));
    let word = |at| u32::from_ne_bytes(array(bytes, at));
    let end = |at| {
        let port = Be16::from_raw(u16::from_ne_bytes(array(bytes, at + 16)));
        SocketEnd::new(Ip6::from_raw(long(at), long(at + 8)), port)
    };
    ConnectedSocket {
        frontend: end(0),
        choice: SocketChoice { endpoint: end(24), service: word(48), backend: word(52) },
        namespace: long(56),
        created: word(64),
        protocol: bytes[68],
        zero: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_programs_write_them() {
        let socket = ConnectedSocket {
            frontend: SocketEnd::new(Ip6::from_raw(1, 2), Be16::new(80)),
            choice: SocketChoice {
                endpoint: SocketEnd::new(Ip6::from_raw(3, 4), Be16::new(8080)),
                service: 5,
                backend: 6,
            },
            namespace: 7,
            created: 8,
            protocol: proto::UDP,
            zero: [0; 3],
        };
        // SAFETY: the structure consists of integers without padding, as the tests of its crate show.
        let bytes: [u8; VALUE] = unsafe { std::mem::transmute(socket) };
        assert_eq!(decode(&bytes), socket);
    }

    #[test]
    fn suspects_are_datagram_sockets_of_the_endpoint_that_changed() {
        let endpoint: SocketAddr = "10.0.0.1:53".parse().unwrap();
        let mapped = Ip6::from("::ffff:10.0.0.1".parse::<std::net::Ipv6Addr>().unwrap());
        let end = SocketEnd::new(mapped, Be16::new(53));
        let socket = ConnectedSocket {
            frontend: end,
            choice: SocketChoice { endpoint: end, service: 1, backend: 1 },
            namespace: 1,
            created: 0,
            protocol: proto::UDP,
            zero: [0; 3],
        };
        assert!(is_suspect(&Suspects::Of(BTreeSet::from([endpoint])), &socket));
        assert!(is_suspect(&Suspects::All, &socket));
        assert!(!is_suspect(&Suspects::Of(BTreeSet::new()), &socket));
        let stream = ConnectedSocket { protocol: proto::TCP, ..socket };
        assert!(!is_suspect(&Suspects::All, &stream), "TCP connections are never moved (S-50)");
    }
}
