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
    /// All of a TCP or UDP packet behind an IP header without extension headers.
    Packet(Packet<A>),
    /// Another IP packet: [`crate::unusual`].
    Unusual,
    /// Anything else.
    NotOurs,
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

/// Offset of the transport header behind an IPv4 header of this many bytes: masked so that the verifier knows its
/// bounds.
#[inline(always)]
const fn transport_offset(header: u8) -> usize {
    ETH_LEN + (header as usize & 0x3c)
}

/// Parses an IPv4 packet.
#[inline(always)]
pub fn ipv4(frame: impl Context, hook: u8) -> Parsed<lb_common::address::Ip4> {
    use lb_common::address::Ip4;
    let Some(header) = access::at::<[u8; 20]>(frame, ETH_LEN) else { return Parsed::NotOurs };
    // SAFETY: `at` checked the 20 bytes. The fields are aligned as the kernel aligns IP headers (NET_IP_ALIGN).
    let (first, total, fragment, protocol, src, dst) = unsafe {
        let base = header.cast::<u8>();
        (
            *base,
            u16::from_be(*base.add(2).cast::<u16>()),
            *base.add(6).cast::<u16>(),
            *base.add(9),
            Ip4::from_raw(*base.add(12).cast::<u32>()),
            Ip4::from_raw(*base.add(16).cast::<u32>()),
        )
    };
    let length = (first & 0x0f) * 4;
    if first >> 4 != 4 || length < 20 || fragment & FRAGMENT != 0 {
        return Parsed::Unusual;
    }
    // A total length of 0 is a super-packet over 64 KiB (BIG TCP, Linux 6.3).
    let payload = if total == 0 { u16::MAX } else { total.saturating_sub(length as u16) };
    transport(frame, src, dst, protocol, transport_offset(length), payload, hook)
}

/// Parses an IPv6 packet without extension headers.
#[inline(always)]
pub fn ipv6(frame: impl Context, hook: u8) -> Parsed<lb_common::address::Ip6> {
    use lb_common::address::Ip6;
    let Some(header) = access::at::<[u8; 40]>(frame, ETH_LEN) else { return Parsed::NotOurs };
    // SAFETY: `at` checked the 40 bytes; addresses are read in words of 32 bits, which is how they are aligned.
    let (first, payload, protocol, src, dst) = unsafe {
        let base = header.cast::<u8>();
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
    // A payload length of 0 is a super-packet over 64 KiB (BIG TCP, Linux 5.19).
    let payload = if payload == 0 { u16::MAX } else { payload };
    transport(frame, src, dst, protocol, ETH_LEN + 40, payload, hook)
}

#[inline(always)]
fn transport<A: Copy>(
    frame: impl Context,
    src: A,
    dst: A,
    protocol: u8,
    offset: usize,
    payload: u16,
    hook: u8,
) -> Parsed<A> {
    let flags = match protocol {
        proto::TCP => {
            let header = access::at::<[u8; TCP_LEN]>(frame, offset);
            let Some(header) = header.filter(|_| payload as usize >= TCP_LEN) else {
                return Parsed::Unusual;
            };
            // SAFETY: `at` checked the 20 bytes.
            unsafe { *header.cast::<u8>().add(TCP_FLAGS) }
        }
        proto::UDP if payload as usize >= UDP_LEN => 0,
        proto::UDP => return Parsed::Unusual,
        _ => return Parsed::Unusual,
    };
    let Some(ports) = access::at::<[u16; 4]>(frame, offset) else { return Parsed::Unusual };
    // SAFETY: `at` checked the eight bytes.
    let (src_port, dst_port) = unsafe { (Be16::from_raw((*ports)[0]), Be16::from_raw((*ports)[1])) };
    Parsed::Packet(Packet {
        tuple: Tuple { src, dst, src_port, dst_port, protocol, hook, zero: 0 },
        transport: offset,
        flags,
        part: Part::Whole as u8,
    })
}
