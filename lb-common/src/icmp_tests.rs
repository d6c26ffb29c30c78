//! Errors with quotes of every kind, made from scratch, cut short, or of random bytes.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Where the IP packet begins.
const START: usize = 14;

/// A packet in ordinary memory.
#[derive(Clone, Debug, PartialEq)]
struct Storage(Vec<u8>);

impl Bytes for Storage {
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]> {
        self.0.get(offset..offset.checked_add(L)?)?.try_into().ok()
    }
}

impl BytesMut for Storage {
    fn write<const L: usize>(&mut self, offset: usize, bytes: [u8; L]) -> Option<()> {
        self.0.get_mut(offset..offset.checked_add(L)?)?.copy_from_slice(&bytes);
        Some(())
    }
}

/// One end of a flow.
type End<A> = (A, u16);

/// What tests need of an address family: headers written from scratch.
trait Build: Ip + core::fmt::Debug {
    const ICMP: u8;

    fn octets(self) -> Vec<u8>;
    fn header(src: Self, dst: Self, protocol: u8, payload: usize, options: usize) -> Vec<u8>;
}

impl Build for Ip4 {
    const ICMP: u8 = 1;

    fn octets(self) -> Vec<u8> {
        self.raw().to_ne_bytes().to_vec()
    }

    fn header(src: Self, dst: Self, protocol: u8, payload: usize, options: usize) -> Vec<u8> {
        let length = 20 + options * 4;
        let mut bytes = vec![0x40 | (length / 4) as u8, 0];
        bytes.extend(((length + payload) as u16).to_be_bytes());
        bytes.extend([0x12, 0x34, 0x40, 0, 63, protocol, 0, 0]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(vec![1; options * 4]);
        let sum = (!sum(&bytes)).to_ne_bytes();
        bytes[10..12].copy_from_slice(&sum);
        bytes
    }
}

impl Build for Ip6 {
    const ICMP: u8 = 58;

    fn octets(self) -> Vec<u8> {
        [self.first().to_ne_bytes(), self.last().to_ne_bytes()].concat()
    }

    fn header(src: Self, dst: Self, protocol: u8, payload: usize, _options: usize) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((payload as u16).to_be_bytes());
        bytes.extend([protocol, 63]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes
    }
}

/// The one's complement sum of bytes, an odd one at the end filled up with zero.
fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).fold(Sum::new(), |sum, pair| sum.add_u16(word(pair))).fold()
}

/// The complement of the sum over a pseudo header and a message.
fn checksum<A: Build>(src: A, dst: A, protocol: u8, message: &[u8]) -> u16 {
    let pseudo = [src.octets(), dst.octets(), vec![0, 0, 0, protocol]].concat();
    let length = (message.len() as u32).to_be_bytes();
    !sum(&[&sum(&pseudo).to_ne_bytes()[..], &sum(&length).to_ne_bytes(), &sum(message).to_ne_bytes()].concat())
}

/// A packet of a flow.
fn packet<A: Build>(from: End<A>, to: End<A>, protocol: u8, payload: &[u8], options: usize) -> Vec<u8> {
    let length = payload.len() as u16 + 8;
    let mut message = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let field = if protocol == proto::TCP {
        message.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        16
    } else {
        message.extend(length.to_be_bytes());
        message.extend([0, 0]);
        6
    };
    message.extend(payload);
    let sum = match checksum(from.0, to.0, protocol, &message) {
        0 if protocol == proto::UDP => 0xffff,
        sum => sum,
    };
    message[field..field + 2].copy_from_slice(&sum.to_ne_bytes());
    let mut bytes = A::header(from.0, to.0, protocol, message.len(), options);
    bytes.extend(message);
    bytes
}

/// An error about a packet, of which it quotes that many bytes, behind an Ethernet header.
fn error<A: Build>(from: A, to: A, about: &[u8], quoted: usize, options: usize) -> Storage {
    let kind = if A::V6 { [2, 0] } else { [3, 4] };
    let quote = &about[..quoted.min(about.len())];
    let mut message = [&kind[..], &[0, 0], &1400_u32.to_be_bytes(), quote].concat();
    let sum = if A::V6 { checksum(from, to, A::ICMP, &message) } else { !sum(&message) };
    message[2..4].copy_from_slice(&sum.to_ne_bytes());
    Storage([vec![0; START], A::header(from, to, A::ICMP, message.len(), options), message].concat())
}

/// Everything that an error and its translation are made of.
#[derive(Clone, Debug)]
struct Case<A> {
    /// The quoted packet's ends, and what they were before its translation.
    ends: [End<A>; 4],
    router: Option<A>,
    protocol: u8,
    payload: Vec<u8>,
    /// Bytes quoted beyond those that every error quotes.
    quoted: usize,
    options: [usize; 2],
}

impl<A: Build> Case<A> {
    fn check(&self) -> Result<(), TestCaseError> {
        let [src, dst, old_src, old_dst] = self.ends;
        let Self { protocol, payload, .. } = self;
        let [options, inner] = self.options;
        let least = A::header(src.0, dst.0, *protocol, 0, inner).len() + 8;
        let mut quoted = least + self.quoted;
        if *protocol == proto::TCP && quoted == least + 9 {
            // Half a checksum cannot be updated.
            quoted += 1;
        }
        let about = packet(src, dst, *protocol, payload, inner);
        let mut got = error(self.router.unwrap_or(dst.0), src.0, &about, quoted, options);
        let headers = A::read(&got, START).expect("headers");
        let quote = Quote::of(&got, &headers).expect("a quote");
        let port = Be16::new;
        let turned = Tuple::new(dst.0, src.0, port(dst.1), port(src.1), *protocol);
        prop_assert_eq!(quote.turned(), turned);
        let rewrite = Rewrite::new(&turned, old_dst.0, old_src.0, port(old_dst.1), port(old_src.1));
        translate(&mut got, START, &headers, &quote, &rewrite).expect("room");
        let about = packet(old_src, old_dst, *protocol, payload, inner);
        // A router that has the quoted packet's destination is that destination.
        let from = self.router.filter(|router| *router != dst.0).unwrap_or(old_dst.0);
        prop_assert_eq!(got, error(from, old_src.0, &about, quoted, options));
        Ok(())
    }
}

fn case<A: Build>(address: impl Strategy<Value = A> + Clone) -> impl Strategy<Value = Case<A>> {
    let end = (address.clone(), any::<u16>());
    (
        [end.clone(), end.clone(), end.clone(), end],
        proptest::option::of(address),
        prop_oneof![Just(proto::TCP), Just(proto::UDP)],
        proptest::collection::vec(any::<u8>(), 0..64),
        0..80_usize,
        [0..=10_usize, 0..=10_usize],
    )
        .prop_map(|(ends, router, protocol, payload, quoted, options)| Case {
            ends,
            router,
            protocol,
            payload,
            quoted,
            options,
        })
}

/// Few different bytes, so that sums of zero and equal addresses come up.
fn byte() -> impl Strategy<Value = u8> + Clone {
    prop_oneof![Just(0), Just(0xff), any::<u8>()].boxed()
}

fn word() -> impl Strategy<Value = u64> + Clone {
    [byte(), byte(), byte(), byte(), byte(), byte(), byte(), byte()].prop_map(u64::from_ne_bytes).boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_translated_ipv4_error_is_what_would_have_been_sent_without_a_translation(
        case in case([byte(), byte(), byte(), byte()].prop_map(|b| Ip4::from_raw(u32::from_ne_bytes(b))).boxed()),
    ) {
        case.check()?;
    }

    #[test]
    fn a_translated_ipv6_error_is_what_would_have_been_sent_without_a_translation(
        case in case((word(), word()).prop_map(|(first, last)| Ip6::from_raw(first, last)).boxed()),
    ) {
        case.check()?;
    }

    #[test]
    fn nothing_but_addresses_ports_and_checksums_changes_whatever_the_bytes(
        v6: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        (inner, protocol) in (prop_oneof![Just(0x45_u8), Just(0x60), Just(0x4f), any::<u8>()],
            prop_oneof![Just(proto::TCP), Just(proto::UDP), Just(proto::SCTP), any::<u8>()]),
        address: u32,
    ) {
        if v6 {
            let to = Ip6::from_raw(u64::from(address), 7);
            whatever(to, 40, inner, protocol, &bytes)?;
        } else {
            whatever(Ip4::from_raw(address), 20, inner, protocol, &bytes)?;
        }
    }
}

/// An error to `to` whose quote is those bytes, made plausible in a few places.
fn whatever<A: Build>(
    to: A,
    header: usize,
    inner: u8,
    protocol: u8,
    bytes: &[u8],
) -> Result<(), TestCaseError> {
    let mut about = bytes.to_vec();
    let (at, source) = if A::V6 { (6, 8) } else { (9, 12) };
    let own = to.octets();
    if about.len() >= header {
        about[0] = inner;
        about[at] = protocol;
        about[source..source + own.len()].copy_from_slice(&own);
    }
    let before = error(to, to, &about, bytes.len(), 0);
    let headers = A::read(&before, START).expect("headers");
    let Some(quote) = Quote::of(&before, &headers) else { return Ok(()) };
    let turned = quote.turned();
    let rewrite = Rewrite::new(&turned, to, turned.src, Be16::new(1), Be16::new(2));
    let mut after = before.clone();
    translate(&mut after, START, &headers, &quote, &rewrite).expect("room");
    let (transport, start) = (quote.headers.transport as usize, quote.start as usize);
    let addresses = |at: usize| at + source..at + source + 2 * own.len();
    let of_header = |at: usize| if A::V6 { at..at } else { at + 10..at + 12 };
    let may_change = [
        addresses(START),
        of_header(START),
        headers.transport as usize + 2..headers.transport as usize + 4,
        addresses(start),
        of_header(start),
        transport..transport + 4,
        quote.checksum().map_or(0..0, |at| at..at + 2),
        quote.crc().map_or(0..0, |at| at..at + 4),
    ];
    for (at, (old, new)) in before.0.iter().zip(&after.0).enumerate() {
        let may = may_change.iter().any(|range| range.contains(&at));
        prop_assert!(old == new || may, "byte {at}: {old:02x} became {new:02x}");
    }
    prop_assert_eq!(before.0.len(), after.0.len());
    Ok(())
}

#[test]
fn a_datagram_without_a_checksum_stays_one_in_a_quote() {
    let address = |last| Ip4::from(core::net::Ipv4Addr::new(10, 0, 0, last));
    let (src, dst, service) = ((address(1), 4000), (address(2), 8080), (address(3), 80));
    let without = |to| {
        let mut bytes = packet(src, to, proto::UDP, b"payload", 0);
        bytes[26..28].fill(0);
        bytes
    };
    let mut got = error(address(9), src.0, &without(dst), 35, 0);
    let headers = Ip4::read(&got, START).expect("headers");
    let quote = Quote::of(&got, &headers).expect("a quote");
    let rewrite = Rewrite::new(&quote.turned(), service.0, src.0, Be16::new(80), Be16::new(4000));
    translate(&mut got, START, &headers, &quote, &rewrite).expect("room");
    assert_eq!(got, error(address(9), src.0, &without(service), 35, 0));
}
