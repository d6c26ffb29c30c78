//! Access to the packet and its metadata. Every dereference of packet memory goes through [`at`] or [`at_mut`].

use core::hint::black_box;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_pull_data;

/// EtherType of IPv4, as `skb->protocol` shows it.
pub const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
/// EtherType of IPv6, as `skb->protocol` shows it.
pub const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;
/// The virtual LAN's number in a tag (IEEE 802.1Q 9.6).
const VLAN_NUMBER: u32 = 0x0fff;
/// Length of an Ethernet header.
pub const ETH_LEN: usize = 14;
/// Bytes that hold every header the datapath reads: Ethernet, an IPv4 header with all its options, TCP.
const HEADERS: usize = ETH_LEN + 60 + 20;

/// `skb->protocol`.
#[inline(always)]
pub fn protocol(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context pointer is valid for the whole run of the program (here and below).
    unsafe { (*skb).protocol }
}

/// `skb->len`: all of the packet, from the Ethernet header on.
#[inline(always)]
pub fn len(skb: *mut __sk_buff) -> u32 {
    // SAFETY: see `protocol`.
    unsafe { (*skb).len }
}

/// Bytes from the IP header on.
#[inline(always)]
pub fn ip_bytes(skb: *mut __sk_buff) -> u64 {
    (len(skb) as u64).wrapping_sub(ETH_LEN as u64)
}

/// Packets on the wire that this buffer stands for.
#[inline(always)]
pub fn packets(skb: *mut __sk_buff) -> u64 {
    // SAFETY: see `protocol`.
    let segments = unsafe { (*skb).gso_segs };
    if segments == 0 { 1 } else { segments as u64 }
}

/// True for a buffer that stands for several packets.
#[inline(always)]
pub fn is_gso(skb: *mut __sk_buff) -> bool {
    // SAFETY: see `protocol`.
    unsafe { (*skb).gso_size != 0 }
}

/// True for a packet of a virtual LAN whose tag lies beside it. It arrives as an IP packet at the device below that of
/// the LAN, where nothing of it is ours (`__netif_receive_skb_core`, net/core/dev.c, takes the tag out of the packet). A
/// tag without a number is about priority alone, and the packet is the device's own (IEEE 802.1Q 6.9).
#[inline(always)]
pub fn has_vlan_tag(skb: *mut __sk_buff) -> bool {
    // SAFETY: see `protocol`. Asked in this order: Linux before 6.1 leaves the old tag when it is there no more.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_NUMBER != 0 }
}

/// Index of the device the packet is at.
#[inline(always)]
pub fn interface(skb: *mut __sk_buff) -> u32 {
    // SAFETY: see `protocol`.
    unsafe { (*skb).ifindex }
}

/// Start of the packet.
#[inline(always)]
pub fn data(skb: *mut __sk_buff) -> usize {
    // SAFETY: see `protocol`.
    unsafe { (*skb).data as usize }
}

/// End of the part of the packet that can be read directly.
#[inline(always)]
pub fn data_end(skb: *mut __sk_buff) -> usize {
    // SAFETY: see `protocol`.
    let mut end = unsafe { (*skb).data_end as usize };
    // SAFETY: a move of a register to itself. It hides from the compiler where the value comes from: it would turn
    // `start + size > end` into `start >= end + 1 - size`, and the verifier allows no arithmetic on a packet's end.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) end, options(pure, nomem, nostack, preserves_flags)) };
    end
}

/// Sees to it that the headers lie in directly readable memory. Costs two comparisons when they do.
#[inline(always)]
pub fn ensure_headers(skb: *mut __sk_buff) {
    let linear = data_end(skb).wrapping_sub(data(skb));
    if linear < HEADERS && (linear as u32) < len(skb) {
        pull_headers(skb);
    }
}

#[inline(never)]
fn pull_headers(skb: *mut __sk_buff) -> i32 {
    let wanted = if len(skb) < HEADERS as u32 { len(skb) } else { HEADERS as u32 };
    // SAFETY: a helper call on the context. When it fails the packet is as before, and parsing finds it too short.
    black_box(unsafe { bpf_skb_pull_data(skb, wanted) } as i32)
}

/// Sees to it that the first `end` bytes lie in directly readable memory; false when the packet has fewer.
#[inline(always)]
pub fn pull(skb: *mut __sk_buff, end: usize) -> bool {
    // SAFETY: a helper call on the context.
    data_end(skb).wrapping_sub(data(skb)) >= end || unsafe { bpf_skb_pull_data(skb, end as u32) } == 0
}

/// A pointer to `T` at an offset from the start of the packet, when it lies in directly readable memory.
#[inline(always)]
pub fn at<T>(skb: *mut __sk_buff, offset: usize) -> Option<*const T> {
    at_mut(skb, offset).map(|pointer: *mut T| pointer.cast_const())
}

/// As [`at`], for writing.
#[inline(always)]
pub fn at_mut<T>(skb: *mut __sk_buff, offset: usize) -> Option<*mut T> {
    let start = data(skb) + offset;
    if start + size_of::<T>() > data_end(skb) { None } else { Some(start as *mut T) }
}
