//! What stands before the transport header: from the start of an IP packet to its ports, over any storage of the bytes.
//!
//! Here is the careful way, for packets that are not simply TCP or UDP behind a plain header: those the programs read
//! themselves, quicker (`parse.rs` of `lb-ebpf`).

use crate::address::{Ip4, Ip6};

/// Read access to a packet, from its first byte on.
pub trait Bytes {
    /// `L` bytes at an offset, when the packet has them.
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]>;

    /// [`ipv6`], for who has its own way to read headers.
    ///
    /// # Errors
    /// See [`Unreadable`].
    #[inline(always)]
    fn ipv6_headers(&self, start: usize) -> Result<Headers<Ip6>, Unreadable<Ip6>>
    where
        Self: Sized,
    {
        ipv6(self, start)
    }
}

/// Which part of a datagram a packet is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// The first fragment: it has the ports.
    First = 1,
    /// A later fragment: no transport header.
    Later = 2,
}

/// What was found before the transport header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification of the datagram that a fragment is of, bits as in the packet; 0 when it is whole.
    pub id: u32,
    /// Where the transport header begins, or in a later fragment the payload, in bytes from the start of the storage.
    pub transport: u32,
    /// Bytes from there to the end of the IP packet, by the IP header's own word; `u16::MAX` in a super-packet over
    /// 64 KiB (BIG TCP, Linux 5.19), which does not say.
    pub payload: u16,
    /// IP protocol number of the transport header; in a later fragment of IPv6 the number that its fragment header
    /// names, be it a transport or not.
    pub protocol: u8,
    /// Number of a [`Part`].
    pub part: u8,
}

/// Why there are no [`Headers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable<A> {
    /// Not even a whole IP header.
    Nothing,
    /// A packet to this address with headers that contradict themselves or end too early.
    Malformed(A),
    /// A packet to this address with more headers, or others, than we look through: left alone, or dropped at a Service.
    Unknown(A),
}

/// Bits of the IPv4 fragment field (RFC 791 3.1).
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// Extension headers (RFC 8200 4.3 to 4.6) that are looked through.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Whose length is counted otherwise, and whose contents a translation would break (RFC 4302).
const AUTHENTICATION: u8 = 51;
/// Bits of the fragment header's offset field (RFC 8200 4.5): where the fragment lies, in units of eight bytes, and
/// whether more follow.
const OFFSET6: u16 = 0xfff8;
const MORE_FRAGMENTS6: u16 = 0x0001;
/// How many extension headers are looked through, and how many bytes of them: hosts may limit both (RFC 8504 5.3).
pub const MOST_EXTENSIONS: usize = 8;
/// See [`MOST_EXTENSIONS`].
pub const MOST_EXTENSION_BYTES: u32 = 256;

/// Reads an IPv4 header at an offset.
///
/// # Errors
/// See [`Unreadable`].
#[inline(always)]
pub fn ipv4<B: Bytes>(bytes: &B, start: usize) -> Result<Headers<Ip4>, Unreadable<Ip4>> {
    let Some(header) = bytes.read::<20>(start) else { return Err(Unreadable::Nothing) };
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (src, dst) = (Ip4::from_raw(word(12)), Ip4::from_raw(word(16)));
    let length = (header[0] & 0x0f) as u16 * 4;
    let (total, fragment) = (half(2), half(6));
    if header[0] >> 4 != 4 || length < 20 || (total != 0 && total < length) {
        return Err(Unreadable::Malformed(dst));
    }
    let part = match (fragment & OFFSET, fragment & MORE_FRAGMENTS) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    let id = if matches!(part, Part::Whole) { 0 } else { u16::from_ne_bytes([header[4], header[5]]) as u32 };
    Ok(Headers {
        src,
        dst,
        id,
        transport: start as u32 + length as u32,
        payload: if total == 0 { u16::MAX } else { total - length },
        protocol: header[9],
        part: part as u8,
    })
}

/// Reads an IPv6 header and the extension headers behind it, at an offset.
///
/// A fragment header that says neither offset nor more is of a whole packet (RFC 6946). What a first fragment has between
/// its fragment header and its ports is not looked through: later fragments name that header, not the transport.
///
/// # Errors
/// See [`Unreadable`].
#[inline(always)]
pub fn ipv6<B: Bytes>(bytes: &B, start: usize) -> Result<Headers<Ip6>, Unreadable<Ip6>> {
    let Some(header) = bytes.read::<40>(start) else { return Err(Unreadable::Nothing) };
    let word = |at: usize| {
        let bytes: [u8; 8] = [
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
            header[at + 4],
            header[at + 5],
            header[at + 6],
            header[at + 7],
        ];
        u64::from_ne_bytes(bytes)
    };
    let (src, dst) = (Ip6::from_raw(word(8), word(16)), Ip6::from_raw(word(24), word(32)));
    if header[0] >> 4 != 6 {
        return Err(Unreadable::Malformed(dst));
    }
    let said = u16::from_be_bytes([header[4], header[5]]);
    // 0 in a super-packet: its length is in a hop-by-hop option (RFC 2675), or nowhere.
    let payload = if said == 0 { u16::MAX } else { said };
    let found = |protocol: u8, part: Part, id: u32, extensions: u32| {
        let transport = start as u32 + 40 + extensions;
        let payload = if said == 0 { payload } else { payload - extensions as u16 };
        Ok(Headers { src, dst, id, transport, payload, protocol, part: part as u8 })
    };
    let (mut protocol, mut part, mut id, mut extensions, mut fragmented) =
        (header[6], Part::Whole, 0, 0_u32, false);
    for index in 0..=MOST_EXTENSIONS {
        let known = match protocol {
            HOP_BY_HOP => index == 0,
            FRAGMENT => !fragmented,
            ROUTING | DESTINATION_OPTIONS => true,
            AUTHENTICATION => false,
            _ => return found(protocol, part, id, extensions),
        };
        if !known || index == MOST_EXTENSIONS || matches!(part, Part::First) {
            break;
        }
        let Some(extension) = bytes.read::<8>(start + 40 + extensions as usize) else {
            return Err(Unreadable::Malformed(dst));
        };
        let length = if protocol == FRAGMENT { 8 } else { extension[1] as u32 * 8 + 8 };
        if extensions + length > payload as u32 {
            return Err(Unreadable::Malformed(dst));
        }
        // The destination of a packet with segments left is a stop on its way.
        if extensions + length > MOST_EXTENSION_BYTES || (protocol == ROUTING && extension[3] != 0) {
            break;
        }
        extensions += length;
        if protocol == FRAGMENT {
            fragmented = true;
            let place = u16::from_be_bytes([extension[2], extension[3]]);
            let named = u32::from_ne_bytes([extension[4], extension[5], extension[6], extension[7]]);
            if place & OFFSET6 != 0 {
                return found(extension[0], Part::Later, named, extensions);
            }
            if place & MORE_FRAGMENTS6 != 0 {
                (part, id) = (Part::First, named);
            }
        }
        protocol = extension[0];
    }
    Err(Unreadable::Unknown(dst))
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
