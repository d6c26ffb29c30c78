//! Entries of connection tables, copied from the tables that serve to a shadow's and read there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::conntrack::State;
use lb_common::layout::{AffinityEntry, AffinityKey, ConnEntry, ConnFlags};
use lb_common::tuple::Tuple;

use super::super::connections::{Plain, bytes_of, value_at};
use super::super::error::{Error, Result};
use super::super::maps::Maps;
use super::super::shape::Map;
use super::super::sys;

/// One direction of a flow, as its packets show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Where it comes from.
    pub from: SocketAddr,
    /// Where it goes; of the same family.
    pub to: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

/// A key of the connection table of its family.
pub(super) enum Tuples {
    V4(Tuple<Ip4>),
    V6(Tuple<Ip6>),
}

impl Ends {
    pub(super) fn tuples(&self) -> Tuples {
        let (from, to) = (Be16::new(self.from.port()), Be16::new(self.to.port()));
        match (self.from, self.to) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                let (src, dst) = (Ip4::from(*src.ip()), Ip4::from(*dst.ip()));
                Tuples::V4(Tuple::new(src, dst, from, to, self.protocol))
            }
            (src, dst) => {
                let six = |end: SocketAddr| match end {
                    SocketAddr::V4(end) => Ip6::from(end.ip().to_ipv6_mapped()),
                    SocketAddr::V6(end) => Ip6::from(*end.ip()),
                };
                Tuples::V6(Tuple::new(six(src), six(dst), from, to, self.protocol))
            }
        }
    }
}

/// What a connection table says about a direction of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowFlow {
    /// What its packets become.
    pub becomes: Ends,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend when it began.
    pub backend: u32,
    /// Its state; the forward entry's counts.
    pub state: State,
    /// Seconds since its first packet.
    pub age: u32,
    /// Seconds since the last packet that reached the table.
    pub idle: u32,
    /// The entry of the endpoint's answers.
    pub reply: bool,
    /// Client and endpoint are the same pod (S-31).
    pub hairpin: bool,
    /// One of the pair that gives the flow an address of the node as its source (S-30, S-33).
    pub source: bool,
}

/// The entry of a key.
pub(super) fn get<A: Plain>(map: BorrowedFd<'_>, key: &Tuple<A>) -> io::Result<Option<ShadowFlow>> {
    let now = sys::monotonic_seconds()?;
    Ok(raw(map, key)?.map(|(_, entry)| told(key, &entry, now)))
}

/// Copies the entries of a flow, those that translate its source among them.
pub(super) fn copy<A: Plain>(
    maps: &Maps,
    to: BorrowedFd<'_>,
    key: &Tuple<A>,
) -> io::Result<Option<ShadowFlow>> {
    let from = maps.fd(if A::V6 { Map::Connections6 } else { Map::Connections4 });
    let Some(entry) = copy_entry(from, to, key)? else { return Ok(None) };
    let mut keys = vec![*key, entry.rewrite.reply(key.protocol)];
    // The second pair of a masqueraded flow has the key of what the first pair makes of its packets, and so the other way.
    let mut at = 0;
    while at < keys.len().min(8) {
        let known = raw(from, &keys[at])?;
        if let Some((_, entry)) = known {
            let made = entry.rewrite.reply(key.protocol);
            let onward = Tuple::new(made.dst, made.src, made.dst_port, made.src_port, key.protocol);
            for next in [made, onward] {
                if !keys.contains(&next) {
                    copy_entry(from, to, &next)?;
                    keys.push(next);
                }
            }
        }
        at += 1;
    }
    Ok(Some(told(key, &entry, sys::monotonic_seconds()?)))
}

fn copy_entry<A: Plain>(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    key: &Tuple<A>,
) -> io::Result<Option<ConnEntry<A>>> {
    let Some((bytes, entry)) = raw(from, key)? else { return Ok(None) };
    sys::update(to, bytes_of(key), &bytes)?;
    Ok(Some(entry))
}

fn raw<A: Plain>(map: BorrowedFd<'_>, key: &Tuple<A>) -> io::Result<Option<(Vec<u8>, ConnEntry<A>)>> {
    let mut bytes = vec![0; size_of::<ConnEntry<A>>()];
    if !sys::lookup(map, bytes_of(key), &mut bytes)? {
        return Ok(None);
    }
    let entry = value_at(&bytes, 0);
    Ok(Some((bytes, entry)))
}

fn told<A: Address>(key: &Tuple<A>, entry: &ConnEntry<A>, now: u32) -> ShadowFlow {
    let end = |address: A, port: Be16| SocketAddr::new(address.to_ip(), port.host());
    let rewrite = &entry.rewrite;
    let state = State::from_number(entry.state);
    ShadowFlow {
        becomes: Ends {
            from: end(rewrite.src, rewrite.src_port),
            to: end(rewrite.dst, rewrite.dst_port),
            protocol: key.protocol,
        },
        service: entry.service,
        backend: entry.backend,
        state: state.unwrap_or(State::initial(key.protocol)),
        age: now.saturating_sub(entry.created),
        idle: now.saturating_sub(entry.last_seen),
        reply: entry.flags & ConnFlags::REPLY != 0,
        hairpin: entry.flags & ConnFlags::HAIRPIN != 0,
        source: entry.flags & ConnFlags::SOURCE != 0,
    }
}

/// Copies what one map has under an affinity's key into another; false when there is nothing.
pub(super) fn copy_affinity<A: Plain>(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    key: &AffinityKey<A>,
) -> io::Result<bool> {
    let mut bytes = vec![0; size_of::<AffinityEntry<A>>()];
    if !sys::lookup(from, key_bytes(key), &mut bytes)? {
        return Ok(false);
    }
    sys::update(to, key_bytes(key), &bytes)?;
    Ok(true)
}

/// The endpoint that a client's last new connection to a Service port with session affinity went to (S-40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Index of its backend row then.
    pub backend: u32,
    /// Seconds since that connection.
    pub age: u32,
}

/// The affinity of a client to a Service port, by the index and generation of its row; the unspecified address stands for
/// processes of the node. `None` when there is none.
///
/// # Errors
/// [`Error::Bpf`] when the table cannot be read.
pub fn affinity(maps: &Maps, client: IpAddr, service: u32, generation: u32) -> Result<Option<Affinity>> {
    let read = match client {
        IpAddr::V4(client) => {
            let key = AffinityKey { client: Ip4::from(client), service, generation };
            affinity_of(maps.fd(Map::Affinity4), &key)
        }
        IpAddr::V6(client) => {
            let key = AffinityKey { client: Ip6::from(client), service, generation };
            affinity_of(maps.fd(Map::Affinity6), &key)
        }
    };
    read.map_err(|source| Error::bpf("reading an affinity", source))
}

fn affinity_of<A: Plain>(map: BorrowedFd<'_>, key: &AffinityKey<A>) -> io::Result<Option<Affinity>> {
    let mut bytes = vec![0; size_of::<AffinityEntry<A>>()];
    if !sys::lookup(map, key_bytes(key), &mut bytes)? {
        return Ok(None);
    }
    // SAFETY: the buffer has the size of an entry, which consists of integers without padding (the layout crate's tests fix
    // the size): every pattern of bits is one.
    let entry: AffinityEntry<A> = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    Ok(Some(Affinity {
        endpoint: SocketAddr::new(entry.address.to_ip(), entry.port.host()),
        backend: entry.backend,
        age: sys::monotonic_seconds()?.saturating_sub(entry.last_new),
    }))
}

/// The bytes of a key, as the kernel takes it.
fn key_bytes<A: Plain>(key: &AffinityKey<A>) -> &[u8] {
    // SAFETY: integers without padding (the layout crate's tests fix the size): all bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(key).cast::<u8>(), size_of::<AffinityKey<A>>()) }
}
