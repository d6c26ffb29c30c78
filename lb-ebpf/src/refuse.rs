//! Refusals: a port unreachable from the Service's address, straight back into the pod (S-21, S-23).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
};
use lb_common::address::{Address, Ip4, Ip6};
use lb_common::checksum::{self, Sum};
use lb_common::headers::{self, Part};
use lb_common::layout::{V4, V6};
use lb_common::proto;
use lb_common::reason::Reason;

use crate::access::{self, ETH_LEN};
use crate::net::Net;
use crate::parse::Packet;
use crate::{rewrite, sctp, verdict};

/// `BPF_ADJ_ROOM_MAC`, include/uapi/linux/bpf.h: room between Ethernet and IP header.
const ROOM_MAC: u32 = 1;
/// Bytes of the refused packet's transport header that go back: all of a TCP header without options, so that the
/// kernel's checks of ports and sequence number have what they need; at least 8 (RFC 792, RFC 4443 3.1). Of SCTP the common
/// header and, where there is one, the chunk behind it with an INIT's tag, without which the kernel of the client
/// believes nothing (`sctp_err_lookup`, net/sctp/input.c).
const TCP_QUOTE: usize = 20;
const UDP_QUOTE: usize = 8;
const SCTP_QUOTE: usize = 12;
const INIT_QUOTE: usize = 20;
const ICMP_LEN: usize = 8;
/// Room for what is summed up: an IPv6 header with as much behind it as is looked through, or the start of a transport
/// header. A power of two: lengths are masked so that the verifier knows their bounds.
pub const SUMMED: usize = 512;
const _: () = assert!(40 + (headers::MOST_EXTENSION_BYTES as usize) < SUMMED);
/// Hops a refusal may take.
const HOPS: u8 = 64;

/// The headers of a refusal, by address family.
pub trait Refusal: Net {
    /// Length of the IP header written in front.
    const IP_LEN: usize;

    /// False for source addresses that must not be answered (RFC 1122 3.2.2, RFC 4443 2.4e).
    fn may_answer(address: Self::Addr) -> bool;

    /// Writes IP and ICMP header at `header`, of `IP_LEN + 8` bytes. `quote` sums up what follows, `len` is its length.
    ///
    /// # Safety
    /// `header` points to that many writable bytes.
    unsafe fn write(header: *mut u8, from: Self::Addr, to: Self::Addr, quote: Sum, len: usize);
}

/// Refuses the packet in this CPU's working memory and counts the reason, the number of a [`Reason`].
#[inline(always)]
pub fn refuse<N: Refusal>(skb: *mut __sk_buff, reason: u32) -> i32 {
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    if !N::may_answer(scratch.packet.tuple.src) {
        return verdict::dropped(Reason::RefusalForbidden);
    }
    let reason = if reason == Reason::UnknownPort as u32 { Reason::UnknownPort } else { Reason::NoEndpoint };
    if scratch.packet.is_later_fragment() {
        // The first one was answered (RFC 1122 3.2.2, RFC 4443 2.4e: never to any other).
        return verdict::dropped(reason);
    }
    match send::<N>(skb, &scratch.packet, scratch.headers.payload, &mut scratch.quoted) {
        Some(redirected) => {
            verdict::count(reason);
            redirected
        }
        None => verdict::dropped(Reason::RefusalFailed),
    }
}

#[inline(always)]
fn send<N: Refusal>(
    skb: *mut __sk_buff,
    packet: &Packet<N::Addr>,
    payload: u16,
    quote: &mut [u8; SUMMED],
) -> Option<i32> {
    let transport = rewrite::transport(packet);
    let quoted = match packet.tuple.protocol {
        proto::TCP => TCP_QUOTE,
        proto::SCTP if payload as usize >= INIT_QUOTE => INIT_QUOTE,
        proto::SCTP => SCTP_QUOTE,
        _ => UDP_QUOTE,
    };
    let room = N::IP_LEN + ICMP_LEN;
    let partial = if packet.is_sctp() {
        (sctp::is_uncomputed(skb, transport)?, 0)
    } else {
        is_partial(skb, packet, transport)?
    };
    // SAFETY: helper calls on the context; packet pointers are derived anew after them. Trimming also drops
    // segmentation offload.
    let failed = unsafe {
        bpf_skb_change_tail(skb, (transport + quoted) as u32, 0) != 0
            || bpf_skb_adjust_room(skb, room as i32, ROOM_MAC, 0) != 0
    };
    if failed {
        return None;
    }
    let quote_end = transport + room + quoted;
    // Before anything is read from the packet: behind a call it would be read again, and differently in each branch.
    let completed = if packet.is_sctp() { sctp::checksum(skb, transport + room, quoted) } else { 0 };
    let header_sum = sum(skb, ETH_LEN + room, transport + room, quote)?;
    let transport_sum = match partial {
        // A device without checksum offload will complete the quoted checksum on the way, to what makes the rest of
        // the quoted transport header disappear from the sum: reckon with it. One with offload leaves all as it
        // is, and the receiver does not check.
        (true, field) if !packet.is_sctp() => Sum::new().add_u16(!field),
        // The same with a CRC.
        (true, _) => sum(skb, transport + room, quote_end, quote)?.add_u32(completed),
        _ => Sum::new().add_u16(sum(skb, transport + room, quote_end, quote)?.fold()),
    };
    let summed = header_sum.add_u16(transport_sum.fold());
    let frame = access::at_mut::<[u8; ETH_LEN + 48]>(skb, 0)?.cast::<u8>();
    // SAFETY: `at_mut` checked as many bytes as the longer of the two refusals needs, and the shorter one has 28 + 20
    // bytes of quote behind it.
    unsafe {
        rewrite::swap_macs(frame);
        N::write(frame.add(ETH_LEN), packet.tuple.dst, packet.tuple.src, summed, quote_end - ETH_LEN - room);
        Some(bpf_redirect(access::interface(skb), 0) as i32)
    }
}

/// Whether the checksum field of TCP or UDP is not completed yet, and the field.
#[inline(always)]
fn is_partial<A: Address>(skb: *mut __sk_buff, packet: &Packet<A>, transport: usize) -> Option<(bool, u16)> {
    let offset = transport + rewrite::checksum_offset(packet.tuple.protocol);
    // SAFETY: `at` checked the field.
    let field = unsafe { *access::at::<u16>(skb, offset)? };
    let pseudo = rewrite::pseudo_header(skb, packet, transport);
    // Nobody completes the checksum of a datagram in pieces.
    let whole = packet.part == Part::Whole as u8;
    Some((whole && checksum::same_sum(field, pseudo), field))
}

/// The sum of the packet between two offsets, a multiple of four bytes and fewer than [`SUMMED`]; by way of `copy`, because the
/// kernel sums up memory of any length, but of a packet only what the verifier knows to be there.
#[inline(always)]
fn sum(skb: *mut __sk_buff, from: usize, to: usize, copy: &mut [u8; SUMMED]) -> Option<Sum> {
    let length = (to.wrapping_sub(from) & (SUMMED - 4)) as u32;
    if length < 4 {
        return None;
    }
    let copy = copy.as_mut_ptr();
    // SAFETY: helper calls that write and read `length` bytes of `copy`, which has more.
    let sum = unsafe {
        if bpf_skb_load_bytes(skb.cast(), from as u32, copy.cast(), length) != 0 {
            return None;
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, copy.cast(), length, 0)
    };
    (sum >= 0).then(|| Sum::new().add_u32(sum as u32))
}

impl Refusal for V4 {
    const IP_LEN: usize = 20;

    #[inline(always)]
    fn may_answer(address: Ip4) -> bool {
        let first = address.raw().to_ne_bytes()[0];
        first != 0 && first < 224
    }

    #[inline(always)]
    unsafe fn write(header: *mut u8, from: Ip4, to: Ip4, quote: Sum, len: usize) {
        /// Version 4, five words of header; precedence "internetwork control", as the kernel's own errors.
        const START: u16 = u16::from_ne_bytes([0x45, 0xc0]);
        const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
        /// Destination unreachable (3), port (3): RFC 792.
        const PORT_UNREACHABLE: u16 = u16::from_ne_bytes([3, 3]);
        let total = ((Self::IP_LEN + ICMP_LEN + len) as u16).to_be();
        let hops = u16::from_ne_bytes([HOPS, proto::ICMP]);
        let addresses = to.add_to(from.add_to(Sum::new()));
        let ip = addresses.add_u16(START).add_u16(total).add_u16(DONT_FRAGMENT).add_u16(hops);
        // SAFETY: the caller vouches for the bytes.
        unsafe {
            let words = header.cast::<u16>();
            *words = START;
            *words.add(1) = total;
            *words.add(2) = 0;
            *words.add(3) = DONT_FRAGMENT;
            *words.add(4) = hops;
            *words.add(5) = !ip.fold();
            *header.add(12).cast::<u32>() = from.raw();
            *header.add(16).cast::<u32>() = to.raw();
            *words.add(10) = PORT_UNREACHABLE;
            *words.add(11) = !quote.add_u16(PORT_UNREACHABLE).fold();
            *header.add(24).cast::<u32>() = 0;
        }
    }
}

impl Refusal for V6 {
    const IP_LEN: usize = 40;

    #[inline(always)]
    fn may_answer(address: Ip6) -> bool {
        let unspecified = address.first() == 0 && address.last() == 0;
        address.first().to_ne_bytes()[0] != 0xff && !unspecified
    }

    #[inline(always)]
    unsafe fn write(header: *mut u8, from: Ip6, to: Ip6, quote: Sum, len: usize) {
        const START: u32 = u32::from_ne_bytes([0x60, 0, 0, 0]);
        /// Destination unreachable (1), port (4): RFC 4443 3.1.
        const PORT_UNREACHABLE: u16 = u16::from_ne_bytes([1, 4]);
        let payload = ICMP_LEN + len;
        let addresses = to.add_to(from.add_to(Sum::new()));
        let pseudo = checksum::pseudo_header(addresses, proto::ICMPV6, payload as u32);
        let words = [from.first(), from.last(), to.first(), to.last()];
        // SAFETY: the caller vouches for the bytes.
        unsafe {
            *header.cast::<u32>() = START;
            *header.add(4).cast::<u16>() = (payload as u16).to_be();
            *header.add(6).cast::<u16>() = u16::from_ne_bytes([proto::ICMPV6, HOPS]);
            for (index, word) in words.into_iter().enumerate() {
                *header.add(8 + index * 8).cast::<u32>() = word as u32;
                *header.add(12 + index * 8).cast::<u32>() = (word >> 32) as u32;
            }
            *header.add(40).cast::<u16>() = PORT_UNREACHABLE;
            *header.add(42).cast::<u16>() = !quote.add_u16(PORT_UNREACHABLE).add_u16(pseudo).fold();
            *header.add(44).cast::<u32>() = 0;
        }
    }
}
