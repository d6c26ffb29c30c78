//! Access to the packet and its metadata. Every dereference of packet memory goes through [`at`] or [`at_mut`].

use core::hint::black_box;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
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

/// What a program is given of a packet: a buffer of the stack (tc), or a frame as its driver received it (XDP).
pub trait Context: Copy {
    /// Start of the packet.
    fn start(self) -> usize;
    /// End of the part of the packet that can be read directly.
    fn end(self) -> usize;
    /// All of the packet, from the Ethernet header on.
    fn len(self) -> u32;
    /// Packets on the wire that this one stands for.
    fn packets(self) -> u64;
}

impl Context for *mut __sk_buff {
    #[inline(always)]
    fn start(self) -> usize {
        // SAFETY: the context pointer is valid for the whole run of the program (here and below).
        unsafe { (*self).data as usize }
    }

    #[inline(always)]
    fn end(self) -> usize {
        // SAFETY: see `start`.
        unsafe { (*self).data_end as usize }
    }

    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: see `start`.
        unsafe { (*self).len }
    }

    #[inline(always)]
    fn packets(self) -> u64 {
        // SAFETY: see `start`.
        let segments = unsafe { (*self).gso_segs };
        if segments == 0 { 1 } else { segments as u64 }
    }
}

impl Context for *mut xdp_md {
    #[inline(always)]
    fn start(self) -> usize {
        // SAFETY: the context pointer is valid for the whole run of the program (here and below).
        unsafe { (*self).data as usize }
    }

    #[inline(always)]
    fn end(self) -> usize {
        // SAFETY: see `start`.
        unsafe { (*self).data_end as usize }
    }

    // The program is attached without fragments of frames (`xdp.frags`): all of the frame can be read directly.
    #[inline(always)]
    fn len(self) -> u32 {
        data_end(self).wrapping_sub(data(self)) as u32
    }

    #[inline(always)]
    fn packets(self) -> u64 {
        1
    }
}

/// `skb->protocol`.
#[inline(always)]
pub fn protocol(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context pointer is valid for the whole run of the program (here and below).
    unsafe { (*skb).protocol }
}

/// See [`Context::len`].
#[inline(always)]
pub fn len(packet: impl Context) -> u32 {
    packet.len()
}

/// Bytes from the IP header on.
#[inline(always)]
pub fn ip_bytes(packet: impl Context) -> u64 {
    (packet.len() as u64).wrapping_sub(ETH_LEN as u64)
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

/// See [`Context::start`].
#[inline(always)]
pub fn data(packet: impl Context) -> usize {
    packet.start()
}

/// See [`Context::end`].
#[inline(always)]
pub fn data_end(packet: impl Context) -> usize {
    let mut end = packet.end();
    // SAFETY: a move of a register to itself. It hides from the compiler where the value comes from: it would turn
    // `start + size > end` into `start >= end + 1 - size`, and the verifier allows no arithmetic on a packet's end.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) end, options(pure, nomem, nostack, preserves_flags)) };
    end
}

/// Sees to it that the headers lie in directly readable memory. Costs two comparisons when they do.
#[inline(always)]
pub fn ensure_headers(skb: *mut __sk_buff) {
    let linear = data_end(skb).wrapping_sub(data(skb));
    if linear < HEADERS && (linear as u32) < len(skb) && !has_plain_headers(skb, linear) {
        pull_headers(skb);
    }
}

/// Whether plain headers lie in the readable memory. What a local socket sends by TCP has its headers there and its data in pages:
/// to pull a few bytes of data beside the headers makes the kernel copy the buffer, which the socket keeps for retransmission.
#[inline(always)]
fn has_plain_headers(skb: *mut __sk_buff, linear: usize) -> bool {
    let Some(first) = at::<u8>(skb, ETH_LEN) else { return false };
    // SAFETY: `at` checked the byte.
    match unsafe { *first } {
        0x45 => linear >= ETH_LEN + 20 + 20,
        first => first >> 4 == 6 && linear >= ETH_LEN + 40 + 20,
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
pub fn at<T>(packet: impl Context, offset: usize) -> Option<*const T> {
    at_mut(packet, offset).map(|pointer: *mut T| pointer.cast_const())
}

/// As [`at`], for writing.
#[inline(always)]
pub fn at_mut<T>(packet: impl Context, offset: usize) -> Option<*mut T> {
    let start = data(packet) + offset;
    if start + size_of::<T>() > data_end(packet) { None } else { Some(start as *mut T) }
}

/// True when the packet that begins at `start` has that many directly readable bytes.
#[inline(always)]
pub fn reaches(packet: impl Context, start: *mut u8, bytes: usize) -> bool {
    start as usize + bytes <= data_end(packet)
}
