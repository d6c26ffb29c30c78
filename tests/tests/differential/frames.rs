//! Bytes of unusual packets: ICMP errors, fragments, extension headers.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use etherparse::checksum::Sum16BitWords;

use crate::world;

/// An ICMP error with a quote: which one is a matter of chance.
pub(crate) fn icmp_error(from: IpAddr, to: IpAddr, code: u8, quote: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ethernet2(world::mac(from), [2, 0, 0, 0, 0, 2]);
    let written = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = [3, 3, 11, 12, 4, 5, 8][usize::from(code % 7)];
            let builder = builder.ipv4(from.octets(), to.octets(), 64);
            builder.icmpv4_raw(kind, code / 16, [0, 0, 5, 0xdc]).write(&mut packet, quote)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = [1, 2, 3, 4, 2, 1, 127, 128][usize::from(code % 8)];
            let builder = builder.ipv6(from.octets(), to.octets(), 64);
            builder.icmpv6_raw(kind, code / 16, [0, 0, 5, 0xdc]).write(&mut packet, quote)
        }
        mixed => panic!("two families: {mixed:?}"),
    };
    written.expect("an ICMP error");
    packet
}

/// Makes a packet a fragment: the first one, or a later one to which all that follows the IP header is payload.
pub(crate) fn fragment(bytes: &mut Vec<u8>, v6: bool, later: bool, id: u8) {
    if v6 {
        extend(bytes, 44, 0, u8::from(!later));
        bytes[56] = if later { 1 } else { 0 };
        bytes[61] = id;
        return;
    }
    bytes[19] = id;
    let field: u16 = if later { 0x0020 } else { 0x2000 };
    bytes[20..22].copy_from_slice(&field.to_be_bytes());
    let header = 14 + usize::from(bytes[14] % 16) * 4;
    bytes[24..26].fill(0);
    let sum = Sum16BitWords::new().add_slice(&bytes[14..header]).ones_complement();
    bytes[24..26].copy_from_slice(&sum.to_ne_bytes());
}

/// Puts an extension header in front of what follows an IPv6 header.
pub(crate) fn extend(bytes: &mut Vec<u8>, kind: u8, units: u8, fourth: u8) {
    let len = 8 + 8 * usize::from(units);
    let mut header = vec![0; len];
    (header[0], header[1], header[3]) = (bytes[20], units, fourth);
    bytes[20] = kind;
    bytes.splice(54..54, header);
    let payload = (bytes.len() - 54) as u16;
    bytes[18..20].copy_from_slice(&payload.to_be_bytes());
}
