//! ICMP and ICMPv6 errors: the packet that one quotes, and what becomes of error and quote when that packet was translated on
//! its way (S-71; RFC 792, RFC 4443 2.4; for address translators RFC 5508 4.2 and 4.3).
//!
//! An error about a packet `s -> d` goes back to `s`, as a packet `d -> s` of the same flow would, and the entry of such
//! packets says what became of both ends: the rewrite of `d -> s` has the sender's true address as its destination, and
//! what the sender takes `d` for as its source.

use crate::address::{Address, Ip4, Ip6};
use crate::byteorder::Be16;
use crate::checksum::{self, Sum};
use crate::headers::{self, Bytes, Headers, Part, Unreadable};
use crate::tuple::{Rewrite, Tuple};
use crate::{crc32c, proto, sctp};

/// Length of the ICMP header of an error: type, code, checksum and four bytes by type, such as the MTU.
pub const HEADER: usize = 8;
/// Offset of the checksum in it.
const CHECKSUM: usize = 2;
/// Bytes that every error quotes of what follows the IP header (RFC 792), and receivers insist on.
const LEAST_QUOTED: u32 = 8;

/// Write access to a packet.
pub trait BytesMut: Bytes {
    /// Stores bytes at an offset; `None` when the packet has no room for them there, or cannot be written to.
    fn write<const L: usize>(&mut self, offset: usize, bytes: [u8; L]) -> Option<()>;

    /// [`crc32c::difference`], for who has its own way to compute it.
    #[inline(always)]
    fn crc32c_difference(difference: u32, len: u16) -> u32 {
        crc32c::difference(difference, len)
    }
}

/// An address family's IP header, wherever it lies.
pub trait Ip: Address {
    /// Reads a header and what follows it up to the transport header.
    ///
    /// # Errors
    /// See [`Unreadable`].
    fn read<B: Bytes>(bytes: &B, start: usize) -> Result<Headers<Self>, Unreadable<Self>>;

    /// Stores addresses into the header at an offset. `difference` is that of their sums, new to old; a header checksum is
    /// updated by it. The difference of the sums over the header's checksum fields is returned.
    fn store_addresses<B: BytesMut>(
        bytes: &mut B,
        start: usize,
        src: Self,
        dst: Self,
        difference: u16,
    ) -> Option<u16>;

    /// What new addresses change in the sum that the ICMP checksum is of: they are part of it in ICMPv6 (RFC 4443 2.3).
    fn in_icmp_checksum(difference: u16) -> Sum;
}

impl Ip for Ip4 {
    #[inline(always)]
    fn read<B: Bytes>(bytes: &B, start: usize) -> Result<Headers<Self>, Unreadable<Self>> {
        headers::ipv4(bytes, start)
    }

    #[inline(always)]
    fn store_addresses<B: BytesMut>(
        bytes: &mut B,
        start: usize,
        src: Self,
        dst: Self,
        difference: u16,
    ) -> Option<u16> {
        // Checksum at 10, source at 12, destination at 16 (RFC 791 3.1).
        let old = u16::from_ne_bytes(bytes.read(start + 10)?);
        let new = checksum::update(old, difference);
        let ([c, d], [e, f, g, h], [i, j, k, l]) =
            (new.to_ne_bytes(), src.raw().to_ne_bytes(), dst.raw().to_ne_bytes());
        bytes.write(start + 10, [c, d, e, f, g, h, i, j, k, l])?;
        Some(changed(old, new))
    }

    #[inline(always)]
    fn in_icmp_checksum(_difference: u16) -> Sum {
        Sum::new()
    }
}

impl Ip for Ip6 {
    #[inline(always)]
    fn read<B: Bytes>(bytes: &B, start: usize) -> Result<Headers<Self>, Unreadable<Self>> {
        bytes.ipv6_headers(start)
    }

    #[inline(always)]
    fn store_addresses<B: BytesMut>(
        bytes: &mut B,
        start: usize,
        src: Self,
        dst: Self,
        _difference: u16,
    ) -> Option<u16> {
        // Source at 8, destination at 24 (RFC 8200 3).
        for (index, word) in [src.first(), src.last(), dst.first(), dst.last()].into_iter().enumerate() {
            bytes.write(start + 8 + index * 8, word.to_ne_bytes())?;
        }
        Some(0)
    }

    #[inline(always)]
    fn in_icmp_checksum(difference: u16) -> Sum {
        Sum::new().add_difference(difference)
    }
}

/// The packet that an error is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote<A> {
    /// Its headers; offsets count from the start of the storage, as the error's own.
    pub headers: Headers<A>,
    /// Where its IP header begins.
    pub start: u32,
    /// Where the quote ends by the error's own IP header.
    pub end: u32,
    /// Its source port.
    pub src_port: Be16,
    /// Its destination port.
    pub dst_port: Be16,
}

impl<A: Ip> Quote<A> {
    /// Finds the quote in an error with these headers. `None` when there is none that tells of a flow: too short, of a protocol
    /// without ports, of a later fragment; or when the error itself came in parts, or is not addressed to the quoted
    /// packet's sender.
    #[inline(always)]
    pub fn of<B: Bytes>(bytes: &B, error: &Headers<A>) -> Option<Self> {
        let end = error.transport + error.payload as u32;
        let start = error.transport + HEADER as u32;
        if error.part != Part::Whole as u8 || start > end {
            return None;
        }
        let headers = A::read(bytes, start as usize).ok()?;
        let readable = proto::is_proxied(headers.protocol) && headers.part != Part::Later as u8;
        if !readable || headers.src != error.dst || headers.transport + LEAST_QUOTED > end {
            return None;
        }
        let [a, b, c, d, ..] = bytes.read::<{ LEAST_QUOTED as usize }>(headers.transport as usize)?;
        let (src_port, dst_port) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        let (src_port, dst_port) = (Be16::from_raw(src_port), Be16::from_raw(dst_port));
        Some(Self { headers, start, end, src_port, dst_port })
    }

    /// The tuple of packets that go the way of the error: the quoted one's, turned.
    #[inline(always)]
    pub fn turned(&self) -> Tuple<A> {
        let Headers { src, dst, protocol, .. } = self.headers;
        Tuple::new(dst, src, self.dst_port, self.src_port, protocol)
    }

    /// Offset of the quoted packet's transport checksum, when it was quoted and is one that [`checksum`] can update.
    #[inline(always)]
    fn checksum(&self) -> Option<usize> {
        let offset = self.headers.transport as usize
            + match self.headers.protocol {
                proto::TCP => 16,
                proto::UDP => 6,
                _ => return None,
            };
        (offset + 2 <= self.end as usize).then_some(offset)
    }

    /// Offset of the quoted SCTP packet's checksum, when it was quoted and how much it is of is known: of a fragment it is not.
    #[inline(always)]
    fn crc(&self) -> Option<usize> {
        let Headers { protocol, part, transport, .. } = self.headers;
        let offset = transport + sctp::CHECKSUM as u32;
        let known = protocol == proto::SCTP && part == Part::Whole as u8;
        (known && offset + 4 <= self.end).then_some(offset as usize)
    }
}

/// Ports as they lie in a packet, read little-endian: what a [`crc32c::difference`] is of.
#[inline(always)]
const fn ports(src: Be16, dst: Be16) -> u32 {
    let ([a, b], [c, d]) = (src.raw().to_ne_bytes(), dst.raw().to_ne_bytes());
    u32::from_le_bytes([a, b, c, d])
}

/// Translates an error and its quote by the rewrite of packets that go its way ([`Quote::turned`]). Checksums are updated, not
/// computed: one that was wrong stays wrong. `None` when the packet could not be written to, and may be half done.
///
/// The error's source stays as it is when it is some router's own (RFC 5508 4.3). `start` is the offset of the error's IP header.
#[inline(always)]
pub fn translate<A: Ip, B: BytesMut>(
    bytes: &mut B,
    start: usize,
    error: &Headers<A>,
    quote: &Quote<A>,
    rewrite: &Rewrite<A>,
) -> Option<()> {
    let mut sum = Sum::new().add_difference(rewrite.full_difference);
    let ([a, b], [c, d]) = (rewrite.dst_port.raw().to_ne_bytes(), rewrite.src_port.raw().to_ne_bytes());
    bytes.write(quote.headers.transport as usize, [a, b, c, d])?;
    if let Some(offset) = quote.checksum()
        && let Some(old) = bytes.read(offset)
    {
        let old = u16::from_ne_bytes(old);
        let new = match checksum::update(old, rewrite.full_difference) {
            // A datagram's 0 means that there is no checksum, and one of 0 is sent as all ones (RFC 768).
            _ if quote.headers.protocol == proto::UDP && old == 0 => 0,
            0 if quote.headers.protocol == proto::UDP => 0xffff,
            new => new,
        };
        bytes.write(offset, new.to_ne_bytes())?;
        sum = sum.add_difference(changed(old, new));
    }
    if let Some(offset) = quote.crc()
        && let Some(old) = bytes.read(offset)
    {
        let old = u32::from_le_bytes(old);
        let change = ports(quote.src_port, quote.dst_port) ^ ports(rewrite.dst_port, rewrite.src_port);
        // 0: not computed yet when it was quoted (net/sctp/output.c).
        if old != 0 && change != 0 {
            let new = old ^ B::crc32c_difference(change, quote.headers.payload);
            bytes.write(offset, new.to_le_bytes())?;
            sum = sum.add_u32(new.to_le()).add_u32(!old.to_le());
        }
    }
    // The quoted packet goes the other way: its source is the rewrite's destination.
    let (inner_src, inner_dst) = (rewrite.dst, rewrite.src);
    let difference = rewrite.address_difference;
    sum = sum.add_difference(A::store_addresses(
        bytes,
        quote.start as usize,
        inner_src,
        inner_dst,
        difference,
    )?);
    let src = if error.src == quote.headers.dst { rewrite.src } else { error.src };
    let old = error.dst.add_to(error.src.add_to(Sum::new()));
    let difference = rewrite.dst.add_to(src.add_to(Sum::new())).difference(old);
    sum = sum.add_difference(A::in_icmp_checksum(difference).fold());
    let field = error.transport as usize + CHECKSUM;
    let old = u16::from_ne_bytes(bytes.read(field)?);
    bytes.write(field, checksum::update(old, sum.fold()).to_ne_bytes())?;
    A::store_addresses(bytes, start, src, rewrite.dst, difference)?;
    Some(())
}

/// The difference that a changed checksum field makes to sums over it.
#[inline(always)]
const fn changed(old: u16, new: u16) -> u16 {
    Sum::new().add_u16(new).difference(Sum::new().add_u16(old))
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
