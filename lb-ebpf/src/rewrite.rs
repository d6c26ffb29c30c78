//! The one place that changes addresses and ports in a packet.
//!
//! The transport checksum field of a packet is either complete, or holds the pseudo-header sum for the device or
//! the receiver to complete (`CHECKSUM_PARTIAL`, usual between pods). `__sk_buff` does not tell which. [`exact`]
//! finds out with the help of the kernel. [`quick`] decides itself: a partial field always equals the pseudo-header
//! sum, a complete one does so once in 65536 packets; a flow that carried a complete one is remembered, and for it an
//! equal field is left to `exact`. So a wrong guess takes a flow that changes from partial to complete checksums, and
//! a coincidence in the first packet after the change. A super-packet's checksum is never complete (GRO and sending
//! stacks leave it partial), so that its field needs no second look.
//!
//! A network device may have summed up the packet itself (`CHECKSUM_COMPLETE`). Such a sum changes by what the rewriting
//! changes in the packet as a whole: nothing in IPv6, where the transport checksum makes up for addresses and ports; the
//! difference of the addresses in IPv4, for which the header checksum makes up a second time. In a fragment without a
//! transport header it is the other way round.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_l4_csum_replace};
use lb_common::address::Address;
use lb_common::checksum::{self, Sum};
use lb_common::layout::FlowEntry;
use lb_common::proto;
use lb_common::tuple::Rewrite;

use crate::access::{self, Context, ETH_LEN};
use crate::hook::Hook;
use crate::net::Net;
use crate::parse::{Head, Packet};
use crate::sctp;

/// `BPF_F_PSEUDO_HDR`, include/uapi/linux/bpf.h.
const PSEUDO_HEADER: u64 = 0x10;
/// `BPF_F_MARK_MANGLED_0`: a UDP field of 0 means no checksum and stays so.
const MANGLED_0: u64 = 0x20;

/// Offset of the checksum field in the transport header of TCP or UDP.
#[inline(always)]
pub const fn checksum_offset(protocol: u8) -> usize {
    if protocol == proto::TCP { 16 } else { 6 }
}

/// The transport header's offset, bounded again for the verifier after a trip through memory.
#[inline(always)]
pub fn transport<A>(packet: &Packet<A>) -> usize {
    packet.transport & 0x1ff
}

/// Rewrites a packet of a cached flow without any helper, but for the device's sum over an IPv4 packet. `None` when only
/// [`exact`] can tell how; the packet is then untouched.
#[inline(always)]
pub fn quick<N: Net, H: Hook>(
    skb: *mut __sk_buff,
    packet: &Packet<N::Addr>,
    head: Head,
    rewrite: &Rewrite<N::Addr>,
    flags: &mut u8,
) -> Option<()> {
    let protocol = packet.tuple.protocol;
    let transport = packet.transport;
    // SAFETY: addresses, ports and checksum lie within what was parsed, here and at the end; no helper here moves the packet.
    let field = unsafe { head.at::<u16>(transport + checksum_offset(protocol)) };
    // SAFETY: see above.
    let old = unsafe { *field };
    let new = if protocol == proto::UDP && old == 0 {
        0
    } else if checksum::same_sum(old, pseudo_header(skb, packet, transport)) {
        if *flags & FlowEntry::<N::Addr>::COMPLETE_CHECKSUM != 0 && !access::is_gso(skb) {
            return None;
        }
        checksum::update_partial(old, rewrite.address_difference)
    } else {
        if access::is_gso(skb) {
            return None;
        }
        *flags |= FlowEntry::<N::Addr>::COMPLETE_CHECKSUM;
        if H::NET && H::INGRESS && !N::Addr::V6 {
            let difference = !rewrite.address_difference;
            // SAFETY: a helper call on the context. It fails when there is no such sum, which is as well.
            unsafe { bpf_csum_update(skb, difference as u32) };
        }
        match checksum::update(old, rewrite.full_difference) {
            0 if protocol == proto::UDP => 0xffff,
            sum => sum,
        }
    };
    // SAFETY: see above.
    unsafe {
        *field = new;
        *head.at::<u32>(transport) = rewrite.src_port.raw() as u32 | (rewrite.dst_port.raw() as u32) << 16;
        N::write_addresses(head.at(ETH_LEN), rewrite);
    }
    Some(())
}

/// Rewrites a packet, the kernel's own functions taking care of its transport checksum. True when that is complete.
#[inline(always)]
pub fn exact<N: Net>(
    skb: *mut __sk_buff,
    packet: &Packet<N::Addr>,
    rewrite: &Rewrite<N::Addr>,
) -> Option<bool> {
    if packet.is_later_fragment() {
        return later_fragment::<N>(skb, rewrite);
    }
    if packet.is_sctp() {
        return sctp::rewrite::<N>(skb, packet, rewrite);
    }
    let transport = transport(packet);
    let offset = transport + checksum_offset(packet.tuple.protocol);
    let mangled = if packet.tuple.protocol == proto::UDP { MANGLED_0 } else { 0 };
    let replace = |difference: u16, flags: u64| {
        // SAFETY: a helper call on the context; packet pointers are derived anew after it.
        unsafe { bpf_l4_csum_replace(skb, offset as u32, 0, difference as u64, flags | mangled) == 0 }
    };
    let field = || {
        // SAFETY: `at` checked the field.
        access::at::<u16>(skb, offset).map(|field| unsafe { *field })
    };
    // What is no part of the pseudo header does not change a field that holds the sum over it: add one and look.
    let before = field()?;
    if !replace(1, 0) {
        return None;
    }
    let complete = field()? != before;
    if complete {
        // Ports are no part of the pseudo header either; the one from above is taken back with them. What the kernel
        // is told to be of the pseudo header it takes out of a device's sum, which would be wrong in IPv6.
        let full = Sum::new().add_u16(rewrite.full_difference);
        let done = if N::Addr::V6 {
            replace(full.difference(Sum::new().add_u16(1)), 0)
        } else {
            let address = Sum::new().add_u16(rewrite.address_difference);
            replace(rewrite.address_difference, PSEUDO_HEADER)
                && replace(full.difference(address.add_u16(1)), 0)
        };
        if !done {
            return None;
        }
    } else if before != 0 || packet.tuple.protocol != proto::UDP {
        // A datagram's 0 means that there is no checksum.
        let field = access::at_mut::<u16>(skb, offset)?;
        // SAFETY: `at_mut` checked the field.
        unsafe { *field = checksum::update_partial(before, rewrite.address_difference) };
    }
    store::<N>(skb, transport, rewrite)?;
    Some(complete)
}

/// Rewrites a fragment without a transport header: the checksum over its datagram is in the first one.
#[inline(always)]
fn later_fragment<N: Net>(skb: *mut __sk_buff, rewrite: &Rewrite<N::Addr>) -> Option<bool> {
    if N::Addr::V6 {
        // Nothing in the packet makes up for the addresses.
        // SAFETY: a helper call on the context. It fails when there is no such sum, which is as well.
        unsafe { bpf_csum_update(skb, rewrite.address_difference as u32) };
    }
    N::store_addresses(skb, rewrite)?;
    Some(false)
}

/// The sum over the pseudo header of the packet as it is: what its checksum field holds when it is not complete.
#[inline(always)]
pub fn pseudo_header<A: Address>(frame: impl Context, packet: &Packet<A>, transport: usize) -> u16 {
    let addresses = packet.tuple.dst.add_to(packet.tuple.src.add_to(Sum::new()));
    let length = access::len(frame).wrapping_sub(transport as u32);
    checksum::pseudo_header(addresses, packet.tuple.protocol, length)
}

/// Stores addresses and ports.
#[inline(always)]
pub fn store<N: Net>(frame: impl Context, transport: usize, rewrite: &Rewrite<N::Addr>) -> Option<()> {
    let ports = access::at_mut::<[u16; 2]>(frame, transport)?;
    // SAFETY: `at_mut` checked the four bytes.
    unsafe { *ports = [rewrite.src_port.raw(), rewrite.dst_port.raw()] };
    N::store_addresses(frame, rewrite)
}

/// Stores the destination MAC.
#[inline(always)]
pub fn destination_mac(skb: *mut __sk_buff, mac: &[u8; 6]) -> Option<()> {
    let header = access::at_mut::<[u8; ETH_LEN]>(skb, 0)?;
    // SAFETY: `at_mut` checked the Ethernet header.
    unsafe { write_mac(header.cast(), mac) };
    Some(())
}

/// Writes a MAC address, by halves: the compiler would call a loop over bytes.
///
/// # Safety
/// `to` points to six writable bytes of a packet's Ethernet header; `mac` is a field of an entry, at an even address.
#[inline(always)]
pub unsafe fn write_mac(to: *mut u16, mac: &[u8; 6]) {
    let from = mac.as_ptr().cast::<u16>();
    for half in 0..3 {
        // SAFETY: the caller vouches for the bytes. Volatile, or the halves become a loop over bytes again.
        unsafe { to.add(half).write_volatile(from.add(half).read_volatile()) };
    }
}

/// Swaps the MAC addresses of a frame.
///
/// # Safety
/// `frame` points to 14 writable bytes.
#[inline(always)]
pub unsafe fn swap_macs(frame: *mut u8) {
    // SAFETY: the caller vouches for the bytes.
    unsafe {
        let (to, from) = (*frame.cast::<[u8; 6]>(), *frame.add(6).cast::<[u8; 6]>());
        *frame.cast::<[u8; 6]>() = from;
        *frame.add(6).cast::<[u8; 6]>() = to;
    }
}

/// The source MAC.
#[inline(always)]
pub fn source_mac(skb: *mut __sk_buff) -> [u8; 6] {
    match access::at::<[u8; ETH_LEN]>(skb, 0) {
        // SAFETY: `at` checked the Ethernet header.
        Some(header) => unsafe { *header.cast::<u8>().add(6).cast::<[u8; 6]>() },
        None => [0; 6],
    }
}
