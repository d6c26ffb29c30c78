//! Packets, read and changed byte by byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::proto;

use super::sctp;
use crate::datapath::entries::Ends;

/// A packet with ports, as a person would note it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Offset of the transport header.
    pub transport: usize,
    /// TCP flags, 0 of UDP; of SCTP what its chunks say, see [`super::sctp`].
    pub flags: u8,
    /// Bytes from the transport header on that the IP header promises.
    pub promised: usize,
    /// Which part of a datagram it is.
    pub part: Part,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment of the datagram with that identification.
    First(u32),
    /// A later fragment, which has no ports.
    Later,
}

/// What all fragments of a datagram have in common: both addresses, the identification, and in IPv4 the protocol.
pub type Datagram = (IpAddr, IpAddr, u32, u8);

/// The headers of an ICMP error or an echo request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Offset of the ICMP header.
    pub icmp: usize,
    /// Where the message ends by what the IP header promises.
    pub end: usize,
    /// It is the first fragment of a larger one.
    pub is_fragment: bool,
}

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// No IP packet.
    NotIp,
    /// To this address, with headers that contradict themselves or end too early.
    Malformed(IpAddr),
    /// To this address, of a protocol that Services do not carry.
    Other(IpAddr),
    /// A later fragment: its datagram, the protocol it names, and where its payload begins.
    Later(Datagram, u8, usize),
    /// An ICMP error.
    IcmpError(Message),
    /// An echo request.
    Echo(Message),
    /// A packet with ports.
    Flow(Seen),
}

impl Read {
    /// Where the packet goes.
    pub fn dst(&self) -> Option<IpAddr> {
        match self {
            Self::NotIp => None,
            Self::Malformed(dst) | Self::Other(dst) => Some(*dst),
            Self::Later((_, dst, ..), ..) => Some(*dst),
            Self::IcmpError(message) | Self::Echo(message) => Some(message.dst),
            Self::Flow(seen) => Some(seen.dst.ip()),
        }
    }
}

impl Seen {
    /// Its flow.
    pub fn ends(&self) -> Ends {
        Ends { src: self.src, dst: self.dst, protocol: self.protocol }
    }
}

/// Two bytes as a number, most significant first.
pub(super) fn number(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) * 256 + usize::from(bytes[at + 1])
}

/// The address at an offset.
fn address(bytes: &[u8], at: usize, v6: bool) -> IpAddr {
    if v6 {
        let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("16 octets");
        Ipv6Addr::from(octets).into()
    } else {
        let octets: [u8; 4] = bytes[at..at + 4].try_into().expect("4 octets");
        Ipv4Addr::from(octets).into()
    }
}

/// Reads a packet from its Ethernet header on.
pub fn read(bytes: &[u8]) -> Read {
    let v6 = match number(bytes, 12) {
        0x0800 => false,
        0x86dd => true,
        _ => return Read::NotIp,
    };
    let behind = match behind(bytes, 14, v6) {
        Ok(behind) => behind,
        Err(instead) => return instead,
    };
    let (src, dst) = addresses(bytes, 14, v6);
    if behind.part == Part::Later {
        let datagram = (src, dst, behind.id, if v6 { 0 } else { behind.protocol });
        return Read::Later(datagram, behind.protocol, behind.transport);
    }
    transport(bytes, (src, dst), &behind)
}

/// What stands between an IP header and what it carries.
pub(super) struct Behind {
    /// The protocol of what it carries.
    pub(super) protocol: u8,
    /// Where that begins.
    pub(super) transport: usize,
    /// How many bytes of it the IP header promises.
    pub(super) promised: usize,
    /// Which part of a datagram it is.
    pub(super) part: Part,
    /// The datagram's identification.
    id: u32,
}

/// Source and destination of an IP header.
pub(super) fn addresses(bytes: &[u8], ip: usize, v6: bool) -> (IpAddr, IpAddr) {
    let (src, dst) = if v6 { (8, 24) } else { (12, 16) };
    (address(bytes, ip + src, v6), address(bytes, ip + dst, v6))
}

/// Reads an IP header with its options or extension headers.
///
/// # Errors
/// What the packet is instead.
pub(super) fn behind(bytes: &[u8], ip: usize, v6: bool) -> Result<Behind, Read> {
    if bytes.len() < ip + if v6 { 40 } else { 20 } {
        return Err(Read::NotIp);
    }
    if v6 { behind6(bytes, ip) } else { behind4(bytes, ip) }
}

fn behind4(bytes: &[u8], ip: usize) -> Result<Behind, Read> {
    let (_, dst) = addresses(bytes, ip, false);
    let version = bytes[ip] / 16;
    let header = usize::from(bytes[ip] % 16) * 4;
    let total = number(bytes, ip + 2);
    // 0 is how a super-packet says that it does not fit into 16 bits.
    if version != 4 || header < 20 || (total != 0 && total < header) {
        return Err(Read::Malformed(dst));
    }
    let more_fragments = bytes[ip + 6] & 0x20 != 0;
    let offset = number(bytes, ip + 6) % 0x2000;
    let id = number(bytes, ip + 4) as u32;
    let part = match (offset, more_fragments) {
        (0, false) => Part::Whole,
        (0, true) => Part::First(id),
        _ => Part::Later,
    };
    let promised = if total == 0 { 0xffff } else { total - header };
    Ok(Behind { protocol: bytes[ip + 9], transport: ip + header, promised, part, id })
}

/// Extension headers of IPv6.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

fn behind6(bytes: &[u8], ip: usize) -> Result<Behind, Read> {
    let (_, dst) = addresses(bytes, ip, true);
    if bytes[ip] / 16 != 6 {
        return Err(Read::Malformed(dst));
    }
    let said = number(bytes, ip + 4);
    let first = ip + 40;
    // What is left of the promise; a super-packet does not make any.
    let left = |at: usize| if said == 0 { 0xffff } else { said - (at - first) };
    // The headers passed so far; what comes next, and where.
    let mut passed: Vec<u8> = Vec::new();
    let (mut next, mut at, mut part, mut id) = (bytes[ip + 6], first, Part::Whole, 0);
    loop {
        let extension = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS].contains(&next);
        if !extension {
            return Ok(Behind { protocol: next, transport: at, promised: left(at), part, id });
        }
        let out_of_place = (next == HOP_BY_HOP && !passed.is_empty())
            || (next == FRAGMENT && passed.contains(&FRAGMENT))
            || next == AUTHENTICATION
            || part != Part::Whole;
        if out_of_place || passed.len() == 8 {
            return Err(Read::Other(dst));
        }
        let Some(header) = bytes.get(at..at + 8) else { return Err(Read::Malformed(dst)) };
        let len = if next == FRAGMENT { 8 } else { 8 + 8 * usize::from(header[1]) };
        if at + len - first > if said == 0 { 0xffff } else { said } {
            return Err(Read::Malformed(dst));
        }
        if at + len - first > 256 || (next == ROUTING && header[3] != 0) {
            return Err(Read::Other(dst));
        }
        passed.push(next);
        at += len;
        if next == FRAGMENT {
            id = (number(header, 4) * 0x10000 + number(header, 6)) as u32;
            if number(header, 2) / 8 != 0 {
                part = Part::Later;
                return Ok(Behind { protocol: header[0], transport: at, promised: left(at), part, id });
            }
            if header[3] & 1 != 0 {
                part = Part::First(id);
            }
        }
        next = header[0];
    }
}

/// Reads the transport header.
fn transport(bytes: &[u8], (src, dst): (IpAddr, IpAddr), behind: &Behind) -> Read {
    let Behind { protocol, transport: at, promised, part, .. } = *behind;
    let icmp = if src.is_ipv6() { proto::ICMPV6 } else { proto::ICMP };
    let least = match protocol {
        proto::TCP => 20,
        proto::UDP => 8,
        proto::SCTP => 12,
        protocol if protocol == icmp => {
            let is_error = match bytes.get(at) {
                Some(kind) if src.is_ipv6() => *kind < 128,
                Some(kind) => [3, 4, 11, 12].contains(kind),
                None => false,
            };
            let is_echo = bytes.get(at) == Some(if src.is_ipv6() { &128 } else { &8 });
            let is_fragment = part != Part::Whole;
            let message = Message { src, dst, icmp: at, end: at + promised, is_fragment };
            return match (is_error, is_echo) {
                (true, _) => Read::IcmpError(message),
                (_, true) => Read::Echo(message),
                _ => Read::Other(dst),
            };
        }
        _ => return Read::Other(dst),
    };
    if promised < least || bytes.len() < at + least {
        return Read::Malformed(dst);
    }
    let port = |at: usize| number(bytes, at) as u16;
    Read::Flow(Seen {
        src: SocketAddr::new(src, port(at)),
        dst: SocketAddr::new(dst, port(at + 2)),
        protocol,
        transport: at,
        flags: match protocol {
            proto::TCP => bytes[at + 13],
            proto::SCTP => sctp::says(bytes, at, promised),
            _ => 0,
        },
        promised,
        part,
    })
}

/// Everything in one's complement arithmetic is the remainder of a division by this.
const ONES: u64 = 0xffff;

/// The sum over words of 16 bits; an odd byte at the end counts as if a zero followed.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(*byte) << if at % 2 == 0 { 8 } else { 0 })
        .sum::<u64>()
        % ONES
}

/// True for a packet whose complete checksum looks as if it was still to be completed: one in 65536.
pub fn looks_uncompleted(bytes: &[u8]) -> bool {
    let Read::Flow(seen) = read(bytes) else { return false };
    if seen.protocol == proto::SCTP {
        return false;
    }
    let field = number(bytes, checksum_at(&seen)) as u64;
    field % ONES == pseudo_header(bytes, &seen)
}

/// The sum of an address.
pub(super) fn sum_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

fn pseudo_header(bytes: &[u8], seen: &Seen) -> u64 {
    let addresses = if seen.src.is_ipv6() { 22..54 } else { 26..34 };
    (sum(&bytes[addresses]) + (bytes.len() - seen.transport) as u64 + u64::from(seen.protocol)) % ONES
}

/// What is left when all that a transport checksum is about is summed up with the checksum itself: 0 when it is right.
fn remainder(bytes: &[u8], seen: &Seen) -> u64 {
    (pseudo_header(bytes, seen) + sum(&bytes[seen.transport..])) % ONES
}

/// Stores in the field at an offset what makes `rest` of `remainder`.
pub(super) fn correct(bytes: &mut [u8], at: usize, remainder: u64, wanted: u64) {
    let field = (number(bytes, at) as u64 + wanted % ONES + ONES - remainder % ONES) % ONES;
    bytes[at..at + 2].copy_from_slice(&(field as u16).to_be_bytes());
}

/// Offset of the transport checksum.
pub(super) fn checksum_at(seen: &Seen) -> usize {
    seen.transport + if seen.protocol == proto::TCP { 16 } else { 6 }
}

/// Writes other addresses into the IP header at an offset. An IPv4 header checksum that was right is right afterwards, a wrong
/// one as wrong as before; its offset is returned.
pub(super) fn write_addresses(bytes: &mut [u8], ip: usize, src: IpAddr, dst: IpAddr) -> Option<usize> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = ip..(ip + usize::from(bytes[ip] % 16) * 4).min(bytes.len());
            let before = sum(&bytes[header.clone()]);
            bytes[ip + 12..ip + 16].copy_from_slice(&src.octets());
            bytes[ip + 16..ip + 20].copy_from_slice(&dst.octets());
            let after = sum(&bytes[header]);
            correct(bytes, ip + 10, after, before);
            Some(ip + 10)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes[ip + 8..ip + 24].copy_from_slice(&src.octets());
            bytes[ip + 24..ip + 40].copy_from_slice(&dst.octets());
            None
        }
        mixed => panic!("two families: {mixed:?}"),
    }
}

/// Writes other ends into a packet. Checksums that were right are right afterwards, wrong ones as wrong as before, and a
/// datagram without one has none. Returned are the offsets of those that may be written as 0 or as 0xffff.
pub(super) fn write_ends(bytes: &mut [u8], seen: &Seen, ends: &Ends) -> Vec<usize> {
    if seen.part == Part::Later {
        return write_addresses(bytes, 14, ends.src.ip(), ends.dst.ip()).into_iter().collect();
    }
    if seen.protocol == proto::SCTP {
        let sums = write_addresses(bytes, 14, ends.src.ip(), ends.dst.ip()).into_iter().collect();
        sctp::write_ports(bytes, seen.transport, seen.promised, ends.src.port(), ends.dst.port());
        return sums;
    }
    let at = checksum_at(seen);
    let absent = seen.protocol == proto::UDP && number(bytes, at) == 0;
    let transport = remainder(bytes, seen);
    let mut sums: Vec<usize> = write_addresses(bytes, 14, ends.src.ip(), ends.dst.ip()).into_iter().collect();
    bytes[seen.transport..seen.transport + 2].copy_from_slice(&ends.src.port().to_be_bytes());
    bytes[seen.transport + 2..seen.transport + 4].copy_from_slice(&ends.dst.port().to_be_bytes());
    if absent {
        return sums;
    }
    let after = remainder(bytes, seen);
    correct(bytes, at, after, transport);
    if seen.protocol != proto::UDP {
        sums.push(at);
    } else if number(bytes, at) == 0 {
        // In UDP 0 says that there is none.
        bytes[at..at + 2].fill(0xff);
    }
    sums
}
