//! The packets of an explanation: made, and read again after a program had them.

use std::net::{IpAddr, SocketAddr};

use lb_common::proto::{self, tcp};

use crate::dataplane::Ends;
use crate::net::Mac;

/// Length of an Ethernet header (IEEE 802.3).
const ETHERNET: usize = 14;
/// Source of frames whose sender's address is not known: one that no card has (IEEE 802 local bit).
const SOME_MAC: Mac = [2, 0, 0, 0, 0, 1];

/// What a packet is to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The first one: TCP's SYN, SCTP's INIT, an echo request.
    First,
    /// The first answer: TCP's SYN and ACK, SCTP's INIT ACK.
    Answer,
    /// One of an established flow.
    Later,
}

/// A frame from a device's neighbour with that MAC address, where it is known.
pub(super) fn frame(ends: &Ends, part: Part, source: Option<Mac>) -> Vec<u8> {
    let transport = transport(ends, part);
    let mut frame = vec![2, 0, 0, 0, 0, 2];
    frame.extend(source.unwrap_or(SOME_MAC));
    match (ends.from.ip(), ends.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791 3.1: no options, may not be fragmented, 64 hops.
            let length = (20 + transport.len()) as u16;
            let mut header = vec![0x45, 0];
            header.extend(length.to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, ends.protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([0x08, 0x00]);
            frame.extend(header);
        }
        (from, to) => {
            // RFC 8200 3.
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([ends.protocol, 64]);
            frame.extend(octets(from));
            frame.extend(octets(to));
        }
    }
    frame.extend(transport);
    frame
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn transport(ends: &Ends, part: Part) -> Vec<u8> {
    let (from, to) = (ends.from.port().to_be_bytes(), ends.to.port().to_be_bytes());
    let mut bytes = [from, to].concat();
    let at = match ends.protocol {
        proto::TCP => {
            let flags = match part {
                Part::First => tcp::SYN,
                Part::Answer => tcp::SYN | tcp::ACK,
                Part::Later => tcp::ACK,
            };
            // RFC 9293 3.1: sequence, acknowledgement, five words of header, window.
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
        proto::UDP => {
            bytes.extend([0, 8, 0, 0]);
            6
        }
        proto::SCTP => {
            // RFC 9260 3.1, 3.3: verification tag and checksum, which the programs change and never check; then a chunk:
            // INIT, INIT ACK or HEARTBEAT.
            let (chunk, tag) = match part {
                Part::First => (1, 0),
                Part::Answer => (2, 1),
                Part::Later => (4, 1),
            };
            bytes.extend([0, 0, 0, tag, 0, 0, 0, 0, chunk, 0, 0, 20]);
            bytes.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
            return bytes;
        }
        // RFC 792, RFC 4443 4.1: an echo request, and an identifier in the place of the ports.
        protocol => {
            let kind = if protocol == proto::ICMPV6 { 128 } else { 8 };
            bytes = vec![kind, 0, 0, 0, 0, 1, 0, 1];
            2
        }
    };
    let mut pseudo = Vec::new();
    if ends.protocol != proto::ICMP {
        pseudo.extend(octets(ends.from.ip()));
        pseudo.extend(octets(ends.to.ip()));
        pseudo.extend((bytes.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, ends.protocol]);
    }
    let sum = checksum(&[&pseudo, &bytes]);
    // A sum of zero means that there is none (RFC 768).
    let sum = if sum == 0 && ends.protocol == proto::UDP { 0xffff } else { sum };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The Internet checksum (RFC 1071) over parts of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum: u64 = words.map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

/// What a packet shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its addresses, ports (0 where it has none) and protocol.
    pub(super) ends: Ends,
    /// Type and code of an ICMP message.
    pub(super) icmp: Option<(u8, u8)>,
}

/// Reads a frame; `None` when it is no IP packet without options.
pub(super) fn read(frame: &[u8]) -> Option<Seen> {
    let ip = frame.get(ETHERNET..)?;
    let (from, to, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
            (address(12)?, address(16)?, *ip.get(9)?, ip.get(usize::from(ip.first()? & 15) * 4..)?)
        }
        [0x86, 0xdd] => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
            (address(8)?, address(24)?, *ip.get(6)?, ip.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*transport.get(at)?, *transport.get(at + 1)?]));
    let is_icmp = matches!(protocol, proto::ICMP | proto::ICMPV6);
    let (source, destination) = if is_icmp { (0, 0) } else { (port(0)?, port(2)?) };
    Some(Seen {
        ends: Ends { from: SocketAddr::new(from, source), to: SocketAddr::new(to, destination), protocol },
        icmp: if is_icmp { Some((*transport.first()?, *transport.get(1)?)) } else { None },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(from: &str, to: &str, protocol: u8) -> Ends {
        Ends { from: from.parse().unwrap(), to: to.parse().unwrap(), protocol }
    }

    #[test]
    fn what_is_made_reads_as_what_was_asked_for() {
        for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
            for (from, to) in [("10.1.0.7:4000", "10.96.0.1:80"), ("[fd00::7]:4000", "[fd00:96::1]:80")] {
                let asked = ends(from, to, protocol);
                for part in [Part::First, Part::Answer, Part::Later] {
                    assert_eq!(read(&frame(&asked, part, None)), Some(Seen { ends: asked, icmp: None }));
                }
            }
        }
        let ping = read(&frame(&ends("[fd00::7]:0", "[fd00:96::1]:0", proto::ICMPV6), Part::First, None));
        assert_eq!(ping.unwrap().icmp, Some((128, 0)));
    }

    #[test]
    fn checksums_verify() {
        let made = frame(&ends("10.1.0.7:4000", "10.96.0.1:80", proto::UDP), Part::First, None);
        assert_eq!(checksum(&[&made[14..34]]), 0, "IPv4 header");
        let pseudo = [&made[26..34], &[0, 17, 0, 8]].concat();
        assert_eq!(checksum(&[&pseudo, &made[34..]]), 0, "UDP");
    }

    #[test]
    fn what_is_no_packet_is_not_read() {
        let made = frame(&ends("10.1.0.7:4000", "10.96.0.1:80", proto::TCP), Part::First, None);
        for length in 0..made.len() {
            let read = read(&made[..length]);
            assert!(read.is_none() || length >= 38, "{length}: {read:?}");
        }
    }
}
