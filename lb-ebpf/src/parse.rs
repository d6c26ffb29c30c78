//! From bytes to a flow tuple.

use lb_common::byteorder::Be16;
use lb_common::headers::Part;
use lb_common::proto::{self, tcp};
use lb_common::tuple::Tuple;

use crate::access::{self, Context, ETH_LEN};

/// Offset of the TCP flags in the TCP header.
const TCP_FLAGS: usize = 13;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// More fragments, or an offset: everything but "don't fragment" (RFC 791).
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// A packet of a flow.
pub struct Packet<A> {
    /// Its flow, with the hook in it.
    pub tuple: Tuple<A>,
    /// Offset of the transport header from the start of the packet.
    pub transport: usize,
    /// TCP flags, 0 for UDP; of SCTP see [`lb_common::sctp`].
    pub flags: u8,
    /// Number of a [`Part`].
    pub part: u8,
}

/// What parsing found.
pub enum Parsed<A> {
    /// All of a TCP or UDP packet behind an IP header without options or extension headers.
    Packet(Packet<A>, Head),
    /// Another IP packet: [`crate::unusual`].
    Unusual,
    /// Anything else.
    NotOurs,
}

/// The start of a parsed packet: everything up to the end of its UDP header, or of its TCP header without options, can be
/// read and written through it, until something moves the packet.
#[derive(Clone, Copy)]
pub struct Head(*mut u8);

impl Head {
    /// A pointer to a field that lies within.
    ///
    /// # Safety
    /// The field must lie within what was parsed, and nothing may have moved the packet since. (The verifier sees to both.)
    #[inline(always)]
    pub unsafe fn at<T>(self, offset: usize) -> *mut T {
        // SAFETY: the caller vouches for the offset.
        unsafe { self.0.add(offset).cast() }
    }
}

impl<A> Packet<A> {
    /// True when the packet may change the state of its connection, whatever the state is.
    #[inline(always)]
    pub fn changes_state(&self) -> bool {
        self.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0
    }

    /// True for a fragment without a transport header: ports are its datagram's, and it says nothing about its flow.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.part == Part::Later as u8
    }

    /// True for UDP, whose flows have no beginning and no end.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.tuple.protocol == proto::UDP
    }

    /// True for SCTP.
    #[inline(always)]
    pub fn is_sctp(&self) -> bool {
        self.tuple.protocol == proto::SCTP
    }
}

/// Parses an IPv4 packet without options.
#[inline(always)]
pub fn ipv4(frame: impl Context, hook: u8) -> Parsed<lb_common::address::Ip4> {
    use lb_common::address::Ip4;
    /// Version 4 and five words.
    const PLAIN: u8 = 0x45;
    const HEADER: usize = 20;
    let Some(header) = access::at_mut::<[u8; ETH_LEN + HEADER]>(frame, 0) else { return Parsed::NotOurs };
    // SAFETY: `at_mut` checked the bytes. The fields are aligned as the kernel aligns IP headers (NET_IP_ALIGN).
    let (first, total, fragment, protocol, src, dst) = unsafe {
        let base = header.cast::<u8>().add(ETH_LEN);
        (
            *base,
            u16::from_be(*base.add(2).cast::<u16>()),
            *base.add(6).cast::<u16>(),
            *base.add(9),
            Ip4::from_raw(*base.add(12).cast::<u32>()),
            Ip4::from_raw(*base.add(16).cast::<u32>()),
        )
    };
    if first != PLAIN || fragment & FRAGMENT != 0 {
        return Parsed::Unusual;
    }
    transport::<_, { ETH_LEN + HEADER }>(frame, header.cast(), src, dst, protocol, total, HEADER as u16, hook)
}

/// Parses an IPv6 packet without extension headers.
#[inline(always)]
pub fn ipv6(frame: impl Context, hook: u8) -> Parsed<lb_common::address::Ip6> {
    use lb_common::address::Ip6;
    const HEADER: usize = 40;
    let Some(header) = access::at_mut::<[u8; ETH_LEN + HEADER]>(frame, 0) else { return Parsed::NotOurs };
    // SAFETY: `at_mut` checked the bytes; addresses are read in words of 32 bits, which is how they are aligned.
    let (first, payload, protocol, src, dst) = unsafe {
        let base = header.cast::<u8>().add(ETH_LEN);
        let word = |index: usize| *base.add(8 + index * 4).cast::<u32>() as u64;
        (
            *base,
            u16::from_be(*base.add(4).cast::<u16>()),
            *base.add(6),
            Ip6::from_raw(word(0) | word(1) << 32, word(2) | word(3) << 32),
            Ip6::from_raw(word(4) | word(5) << 32, word(6) | word(7) << 32),
        )
    };
    if first >> 4 != 6 {
        return Parsed::Unusual;
    }
    transport::<_, { ETH_LEN + HEADER }>(frame, header.cast(), src, dst, protocol, payload, 0, hook)
}

/// Parses what lies `OFFSET` bytes behind the start of the packet. The IP header says that it ends `said` bytes after a point
/// that is `before` bytes ahead of there; 0 is a super-packet over 64 KiB (BIG TCP, IPv6 since Linux 5.19, IPv4 since 6.3).
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "all of it stays in registers")]
fn transport<A: Copy, const OFFSET: usize>(
    frame: impl Context,
    start: *mut u8,
    src: A,
    dst: A,
    protocol: u8,
    said: u16,
    before: u16,
    hook: u8,
) -> Parsed<A> {
    // Whether there are that many bytes, with 0 as the largest number.
    let has = |length: usize| said.wrapping_sub(1) >= before + length as u16 - 1;
    let flags = match protocol {
        proto::TCP if has(TCP_LEN) && access::reaches(frame, start, OFFSET + TCP_LEN) => {
            // SAFETY: `reaches` checked the 20 bytes.
            unsafe { *start.add(OFFSET + TCP_FLAGS) }
        }
        proto::UDP if has(UDP_LEN) && access::reaches(frame, start, OFFSET + UDP_LEN) => 0,
        _ => return Parsed::Unusual,
    };
    // SAFETY: `reaches` checked eight bytes at least. Both ports at once; they are aligned as the header is.
    let ports = unsafe { *start.add(OFFSET).cast::<u32>() };
    let (src_port, dst_port) = (Be16::from_raw(ports as u16), Be16::from_raw((ports >> 16) as u16));
    let tuple = Tuple { src, dst, src_port, dst_port, protocol, hook, zero: 0 };
    Parsed::Packet(Packet { tuple, transport: OFFSET, flags, part: Part::Whole as u8 }, Head(start))
}
