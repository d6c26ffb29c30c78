//! Packets with every kind of header in front of their ports, whole, in parts, cut short.

use core::net::{Ipv4Addr, Ipv6Addr};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// A packet in ordinary memory.
struct Storage(Vec<u8>);

impl Bytes for Storage {
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]> {
        self.0.get(offset..offset.checked_add(L)?)?.try_into().ok()
    }
}

const SRC: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7);
const DST: Ipv6Addr = Ipv6Addr::new(0xfd00, 8, 9, 10, 11, 12, 13, 14);
const ICMP6: u8 = 58;
const NO_NEXT_HEADER: u8 = 59;
const UDP: u8 = 17;

/// An extension header before it is known what follows: its own number, and its bytes from the second on.
type Extension = (u8, Vec<u8>);

/// An extension header with options of so many units of eight bytes beyond the first.
fn options(number: u8, units: u8) -> Extension {
    let mut bytes = vec![units];
    // All of it padding: PadN options (RFC 8200 4.2) of at most 255 bytes.
    let mut rest = usize::from(units) * 8 + 6;
    while rest > 0 {
        let len = rest.min(255);
        bytes.extend(if len == 1 { vec![0] } else { [vec![1, len as u8 - 2], vec![0; len - 2]].concat() });
        rest -= len;
    }
    (number, bytes)
}

fn routing(left: u8) -> Extension {
    (ROUTING, vec![0, 4, left, 0, 0, 0, 0])
}

fn fragment(offset: u16, more: bool, id: u32) -> Extension {
    let place = ((offset * 8) | u16::from(more)).to_be_bytes();
    (FRAGMENT, [vec![0], place.to_vec(), id.to_be_bytes().to_vec()].concat())
}

/// An IPv6 packet with these headers and `payload` bytes of a transport.
fn packet(extensions: &[Extension], protocol: u8, payload: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let numbers = extensions.iter().map(|(number, _)| *number).chain([protocol]).skip(1);
    for ((_, bytes), next) in extensions.iter().zip(numbers) {
        body.push(next);
        body.extend(bytes);
    }
    body.extend(vec![0xee; payload]);
    let first = extensions.first().map_or(protocol, |(number, _)| *number);
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend([first, 64]);
    bytes.extend(SRC.octets());
    bytes.extend(DST.octets());
    bytes.extend(body);
    bytes
}

fn read(bytes: Vec<u8>) -> Result<Headers<Ip6>, Unreadable<Ip6>> {
    let framed = [vec![0; 14], bytes].concat();
    ipv6(&Storage(framed), 14)
}

/// Where the transport begins behind an Ethernet header, when so many bytes of extension headers stand before it.
fn behind(extensions: usize) -> u32 {
    14 + 40 + extensions as u32
}

#[test]
fn extension_headers_are_looked_through_in_any_order() {
    let unknown = Err(Unreadable::Unknown(Ip6::from(DST)));
    let cases: &[(&[Extension], Option<usize>)] = &[
        (&[], Some(0)),
        (&[options(HOP_BY_HOP, 0)], Some(8)),
        (&[options(HOP_BY_HOP, 2), options(DESTINATION_OPTIONS, 1)], Some(40)),
        (&[options(DESTINATION_OPTIONS, 0), routing(0), options(DESTINATION_OPTIONS, 0)], Some(24)),
        // Only right behind the IP header (RFC 8200 4.1).
        (&[options(DESTINATION_OPTIONS, 0), options(HOP_BY_HOP, 0)], None),
        (&[options(HOP_BY_HOP, 0), options(HOP_BY_HOP, 0)], None),
        (&[routing(1)], None),
        (&[options(AUTHENTICATION, 0)], None),
        // As long as can be: 255 units of eight bytes beyond the first.
        (&[options(DESTINATION_OPTIONS, 31)], Some(256)),
        (&[options(DESTINATION_OPTIONS, 32)], None),
        (&[options(DESTINATION_OPTIONS, 255)], None),
        (&vec![options(DESTINATION_OPTIONS, 0); 8], Some(64)),
        (&vec![options(DESTINATION_OPTIONS, 0); 9], None),
    ];
    for (extensions, length) in cases {
        let expected = length.map_or(unknown, |length| {
            Ok(Headers {
                src: SRC.into(),
                dst: DST.into(),
                id: 0,
                transport: behind(length),
                payload: 8,
                protocol: UDP,
                part: Part::Whole as u8,
            })
        });
        assert_eq!(read(packet(extensions, UDP, 8)), expected, "{extensions:02x?}");
    }
}

#[test]
fn what_is_no_extension_header_is_the_transport() {
    for protocol in [0x06, UDP, ICMP6, 132, NO_NEXT_HEADER, 50, 135, 253, 255] {
        let found = read(packet(&[options(HOP_BY_HOP, 0)], protocol, 20)).expect("headers");
        assert_eq!((found.protocol, found.transport, found.payload), (protocol, behind(8), 20));
    }
}

#[test]
fn a_fragment_header_sets_number_and_part() {
    let id = u32::from_ne_bytes([1, 2, 3, 4]);
    let of = |offset, more| fragment(offset, more, 0x0102_0304);
    let part = |extensions: &[Extension], protocol| {
        let found = read(packet(extensions, protocol, 16)).expect("headers");
        (found.part, found.id, found.protocol, found.transport, found.payload)
    };
    let first = Part::First as u8;
    let later = Part::Later as u8;
    assert_eq!(part(&[of(0, true)], UDP), (first, id, UDP, behind(8), 16));
    assert_eq!(part(&[of(1, true)], UDP), (later, id, UDP, behind(8), 16));
    assert_eq!(part(&[of(0x1fff, false)], UDP), (later, id, UDP, behind(8), 16));
    assert_eq!(part(&[options(HOP_BY_HOP, 0), of(0, true)], UDP), (first, id, UDP, behind(16), 16));
    // Later fragments have no header behind theirs, whatever it names.
    assert_eq!(part(&[of(9, true)], DESTINATION_OPTIONS), (later, id, DESTINATION_OPTIONS, behind(8), 16));
    // An atomic fragment is a whole packet (RFC 6946), and may have more headers.
    assert_eq!(part(&[of(0, false)], UDP), (0, 0, UDP, behind(8), 16));
    let atomic = [of(0, false), options(DESTINATION_OPTIONS, 0)];
    assert_eq!(part(&atomic, UDP), (0, 0, UDP, behind(16), 16));
    let unknown = Err(Unreadable::Unknown(Ip6::from(DST)));
    for extensions in [[of(0, true), options(DESTINATION_OPTIONS, 0)], [of(0, false), of(0, true)]] {
        assert_eq!(read(packet(&extensions, UDP, 16)), unknown, "{extensions:02x?}");
    }
}

#[test]
fn headers_that_end_too_early_are_malformed() {
    let malformed = Err(Unreadable::Malformed(Ip6::from(DST)));
    let whole = packet(&[options(HOP_BY_HOP, 1), options(DESTINATION_OPTIONS, 0)], UDP, 0);
    assert!(read(whole.clone()).is_ok());
    for length in 40..whole.len() {
        assert_eq!(read(whole[..length].to_vec()), malformed, "{length}");
    }
    // Longer than the packet says it is.
    for said in 1_u16..24 {
        let mut bytes = whole.clone();
        bytes[4..6].copy_from_slice(&said.to_be_bytes());
        assert_eq!(read(bytes), malformed, "{said}");
    }
    for length in 0..40 {
        assert_eq!(read(whole[..length].to_vec()), Err(Unreadable::Nothing));
    }
    let mut bytes = whole;
    bytes[0] = 0x40;
    assert_eq!(read(bytes), malformed);
}

#[test]
fn a_super_packet_does_not_say_its_length() {
    // As Linux makes them: with a jumbo payload option (RFC 2675) from 5.19 on, later without any extension header.
    let jumbo = (HOP_BY_HOP, vec![0, 0xc2, 4, 0, 1, 0x11, 0x70]);
    for (extensions, length) in [(vec![jumbo], 8), (vec![], 0)] {
        let mut bytes = packet(&extensions, 6, 20);
        bytes[4..6].copy_from_slice(&[0, 0]);
        let found = read(bytes).expect("headers");
        assert_eq!((found.payload, found.transport, found.protocol), (u16::MAX, behind(length), 6));
    }
}

/// An IPv4 header with that much of options, and payload.
fn packet4(options: u8, payload: u16, fragment: u16) -> Vec<u8> {
    let length = 20 + u16::from(options) * 4;
    let mut bytes = vec![0x45 + options, 0];
    bytes.extend((length + payload).to_be_bytes());
    bytes.extend([0xab, 0xcd]);
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(vec![1; usize::from(options) * 4 + usize::from(payload)]);
    bytes
}

#[test]
fn ipv4_options_are_stepped_over_and_fragments_told_apart() {
    let dst = Ip4::from(Ipv4Addr::new(10, 0, 0, 2));
    let id = u32::from(u16::from_ne_bytes([0xab, 0xcd]));
    for options in 0..=10 {
        for (fragment, part, id) in [
            (0, Part::Whole, 0),
            (0x4000, Part::Whole, 0),
            (0x2000, Part::First, id),
            (0x2001, Part::Later, id),
            (0x1fff, Part::Later, id),
        ] {
            let found = ipv4(&Storage(packet4(options, 9, fragment)), 0).expect("headers");
            let transport = 20 + u32::from(options) * 4;
            assert_eq!((found.transport, found.payload, found.protocol), (transport, 9, UDP));
            assert_eq!((found.part, found.id, found.dst), (part as u8, id, dst));
        }
    }
    for (at, value) in [(0, 0x44), (0, 0x65), (3, 19)] {
        let mut bytes = packet4(0, 9, 0);
        bytes[at] = value;
        assert_eq!(ipv4(&Storage(bytes), 0), Err(Unreadable::Malformed(dst)));
    }
    let mut bytes = packet4(0, 9, 0);
    bytes[2..4].copy_from_slice(&[0, 0]);
    assert_eq!(ipv4(&Storage(bytes), 0).map(|found| found.payload), Ok(u16::MAX), "a super-packet");
}

fn extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        (prop_oneof![Just(HOP_BY_HOP), Just(DESTINATION_OPTIONS)], 0_u8..6).prop_map(|(n, u)| options(n, u)),
        (0_u8..3).prop_map(routing),
        (0_u16..3, any::<bool>(), any::<u32>()).prop_map(|(offset, more, id)| fragment(offset, more, id)),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_read_within_their_bounds(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let storage = Storage(bytes);
        for start in [0, 14, 18] {
            if let Ok(found) = ipv6(&storage, start) {
                prop_assert!(found.transport <= start as u32 + 40 + MOST_EXTENSION_BYTES);
            }
            if let Ok(found) = ipv4(&storage, start) {
                prop_assert!(found.transport <= start as u32 + 60);
            }
        }
    }

    #[test]
    fn what_is_found_lies_where_the_packet_has_it(
        extensions in prop::collection::vec(extension(), 0..10), payload in 0_usize..64,
    ) {
        // A payload length of 0 says that there is more than it can say.
        prop_assume!(payload != 0 || !extensions.is_empty());
        let bytes = packet(&extensions, UDP, payload);
        let length: usize = extensions.iter().map(|(_, bytes)| bytes.len() + 1).sum();
        if let Ok(found) = read(bytes.clone()) {
            let end = found.transport + u32::from(found.payload);
            prop_assert_eq!(end as usize, 14 + bytes.len(), "to the end");
            if found.part != Part::Later as u8 {
                prop_assert_eq!(found.transport, behind(length));
                prop_assert_eq!(found.protocol, UDP);
            }
            prop_assert!(found.part != Part::Whole as u8 || found.id == 0);
        }
    }
}
