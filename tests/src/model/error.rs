//! ICMP errors about translated packets (S-71).

use std::net::{IpAddr, SocketAddr};

use lb_common::proto;
use lb_common::reason::Reason;

use super::bytes::{self, Message, Part, Seen, correct, number, sum_of, write_addresses};
use super::{Expected, Model, sctp};
use crate::datapath::entries::Ends;
use crate::datapath::packet::Mac;
use crate::datapath::{Program, Verdict};

/// The packet that an error is about.
struct Quote {
    /// Where its IP header begins.
    ip: usize,
    seen: Seen,
}

/// Reads what an error quotes, when it is of a flow of the error's receiver.
fn quoted(packet: &[u8], error: &Message) -> Option<Quote> {
    let ip = error.icmp + 8;
    if error.is_fragment || ip > error.end {
        return None;
    }
    let behind = bytes::behind(packet, ip, error.dst.is_ipv6()).ok()?;
    let (protocol, transport) = (behind.protocol, behind.transport);
    if behind.part == Part::Later {
        return None;
    }
    let carried = [proto::TCP, proto::UDP, proto::SCTP].contains(&protocol);
    if !carried || transport + 8 > error.end || transport + 8 > packet.len() {
        return None;
    }
    let (src, dst) = bytes::addresses(packet, ip, error.dst.is_ipv6());
    if src != error.dst {
        return None;
    }
    let port = |at: usize| number(packet, at) as u16;
    let (src, dst) = (SocketAddr::new(src, port(transport)), SocketAddr::new(dst, port(transport + 2)));
    Some(Quote {
        ip,
        seen: Seen { src, dst, protocol, transport, flags: 0, promised: behind.promised, part: behind.part },
    })
}

impl Model {
    /// An ICMP error: it goes where a packet would go that answers the quoted one, and changes nothing.
    pub(super) fn error(&mut self, at: Program, packet: &[u8], error: &Message) -> Expected {
        let pass = Expected { verdict: Verdict::Pass, packet: packet.to_vec(), sums: Vec::new() };
        let comes_in = matches!(at, Program::FromPod | Program::FromNet);
        let quote = quoted(packet, error);
        let found = quote.as_ref().and_then(|quote| self.entries.get(&quote.seen.ends().turned()).cloned());
        let (Some(quote), Some(entry)) = (quote, found) else {
            return if comes_in { self.odd(error.dst, Reason::UnrelatedError, packet) } else { pass };
        };
        let mac: Mac = packet[6..12].try_into().expect("six bytes");
        let Some(way) = self.way(at, &entry, mac) else { return pass };
        let mut after = packet.to_vec();
        let Ends { src, dst, .. } = entry.becomes;
        // What the sender of the quoted packet sent: to where the answers seem to come from.
        let mut sums = rewrite_quote(&mut after, &quote, error, dst, src);
        let from = if error.src == quote.seen.dst.ip() { src.ip() } else { error.src };
        sums.extend(rewrite_error(&mut after, packet, error, from, dst.ip()));
        let verdict = way.apply(&mut after);
        Expected { verdict, packet: after, sums }
    }
}

/// Writes other ends into a quoted packet; its checksums, so far as they are quoted, stay as right as they are.
fn rewrite_quote(
    packet: &mut [u8],
    quote: &Quote,
    error: &Message,
    src: SocketAddr,
    dst: SocketAddr,
) -> Vec<usize> {
    let Quote { ip, seen } = quote;
    let ends = |src: SocketAddr, dst: SocketAddr| {
        sum_of(src.ip()) + sum_of(dst.ip()) + u64::from(src.port()) + u64::from(dst.port())
    };
    let mut sums: Vec<usize> = write_addresses(packet, *ip, src.ip(), dst.ip()).into_iter().collect();
    if seen.protocol == proto::SCTP && seen.part == Part::Whole {
        let field = seen.transport + 8..seen.transport + 12;
        let whole = field.end <= error.end && packet.get(field).is_some_and(|crc| crc != [0; 4]);
        if whole {
            sctp::write_ports(packet, seen.transport, seen.promised, src.port(), dst.port());
        }
    }
    packet[seen.transport..seen.transport + 2].copy_from_slice(&src.port().to_be_bytes());
    packet[seen.transport + 2..seen.transport + 4].copy_from_slice(&dst.port().to_be_bytes());
    let field = bytes::checksum_at(seen);
    let quoted = seen.protocol != proto::SCTP && field + 2 <= error.end && field + 2 <= packet.len();
    if !quoted || (seen.protocol == proto::UDP && number(packet, field) == 0) {
        return sums;
    }
    correct(packet, field, ends(src, dst), ends(seen.src, seen.dst));
    if seen.protocol != proto::UDP {
        sums.push(field);
    } else if number(packet, field) == 0 {
        packet[field..field + 2].fill(0xff);
    }
    sums
}

/// Writes other addresses into the error itself, whose message was changed already.
fn rewrite_error(packet: &mut [u8], before: &[u8], error: &Message, src: IpAddr, dst: IpAddr) -> Vec<usize> {
    let total = |bytes: &[u8], src: IpAddr, dst: IpAddr| {
        let pseudo = if src.is_ipv6() { sum_of(src) + sum_of(dst) } else { 0 };
        pseudo + bytes::sum(&bytes[error.icmp..])
    };
    let wanted = total(before, error.src, error.dst);
    let is = total(packet, src, dst);
    correct(packet, error.icmp + 2, is, wanted);
    let mut sums = vec![error.icmp + 2];
    sums.extend(write_addresses(packet, 14, src, dst));
    sums
}
