//! What stands before the transport header: from the start of an IP packet to its ports, over any storage of the bytes.
//!
//! Here is the careful way, for packets that are not simply TCP or UDP behind a plain header: those the programs read
//! themselves, quicker (`parse.rs` of `lb-ebpf`).

use crate::address::{Ip4, Ip6};

/// Read access to a packet, from its first byte on.
pub trait Bytes {
    /// `L` bytes at an offset, when the packet has them.
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]>;
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
    /// IP protocol number of the transport header.
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
    let payload = u16::from_be_bytes([header[4], header[5]]);
    Ok(Headers {
        src,
        dst,
        id: 0,
        transport: start as u32 + 40,
        payload: if payload == 0 { u16::MAX } else { payload },
        protocol: header[6],
        part: Part::Whole as u8,
    })
}
