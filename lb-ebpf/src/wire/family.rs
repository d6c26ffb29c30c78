//! What differs between IPv4 and IPv6 in the XDP program.

use aya_ebpf::bindings::{bpf_fib_lookup, xdp_md};
use aya_ebpf::maps::Array;
use lb_common::address::{Ip4, Ip6};
use lb_common::layout::{FlowEntry, V4, V6, WireFlow};
use lb_common::tuple::{Rewrite, Tuple};

use crate::access::{self, ETH_LEN};
use crate::net::Net;
use crate::wire::learn::{self, Scratch};
use crate::wire::{WIRE_FLOWS4, WIRE_FLOWS6, WIRE_SCRATCH4, WIRE_SCRATCH6};

/// A set of the program's flow cache.
pub type WireSet<A> = [WireFlow<A>; FlowEntry::<Ip4>::WAYS];

/// `AF_INET`, include/linux/socket.h.
const AF_INET: u8 = 2;
/// `AF_INET6`.
const AF_INET6: u8 = 10;
/// Traffic class and flow label in the first word of an IPv6 header (`IPV6_FLOWINFO_MASK`, include/net/ipv6.h).
const FLOW_INFO: u32 = 0x0fff_ffff_u32.to_be();
/// More fragments, or an offset: everything but "don't fragment" (RFC 791).
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// An address family as the XDP program sees it.
pub trait Wire: Net {
    /// Length of the IP header of the packets that are served: none has options.
    const HEADER: usize;
    /// The headers of a UDP packet, from the Ethernet header on: what every packet has that is served.
    type Frame;
    /// Difference that one hop less to live makes in the sum over the IP header.
    const HOP: u16;

    /// The IP protocol number of a whole packet with nothing between its IP header and its transport header.
    ///
    /// # Safety
    /// All of the header can be read.
    unsafe fn protocol(header: *const u8) -> Option<u8>;

    /// Source and destination of a packet.
    ///
    /// # Safety
    /// All of the header can be read.
    unsafe fn addresses(header: *const u8) -> (Self::Addr, Self::Addr);

    /// The length of a packet, `bytes` of which follow the Ethernet header; `None` when it is cut off, or has no hop left.
    ///
    /// # Safety
    /// All of the header can be read.
    unsafe fn length(header: *const u8, bytes: u64) -> Option<u32>;

    /// True when an entry of the flow cache is that of a tuple.
    fn is_of(flow: &WireFlow<Self::Addr>, tuple: &Tuple<Self::Addr>) -> bool;

    /// Rewrites addresses, and takes a hop from what the packet has left.
    ///
    /// # Safety
    /// All of the header can be written.
    unsafe fn rewrite(header: *mut u8, rewrite: &Rewrite<Self::Addr>);

    /// Sets family, addresses and service class of a question about a route.
    fn ask(fib: &mut bpf_fib_lookup, frame: *mut xdp_md, src: Self::Addr, dst: Self::Addr) -> Option<()>;

    /// The program's flow cache.
    fn wire_flows() -> &'static Array<WireSet<Self::Addr>>;

    /// The program's working memory on this CPU.
    fn wire_scratch() -> Option<&'static mut Scratch<Self::Addr>>;

    /// [`learn::learn`] as a global BPF function.
    fn learn(frame: *mut xdp_md) -> i32;
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn learn4(frame: *mut xdp_md) -> i32 {
    learn::learn::<V4>(frame)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn learn6(frame: *mut xdp_md) -> i32 {
    learn::learn::<V6>(frame)
}

impl Wire for V4 {
    const HEADER: usize = 20;
    type Frame = [u8; ETH_LEN + 20 + 8];
    // The word that is made of time to live and protocol becomes less by the first one's 1 (RFC 791).
    const HOP: u16 = !u16::from_ne_bytes([1, 0]);

    #[inline(always)]
    unsafe fn protocol(header: *const u8) -> Option<u8> {
        // SAFETY: the caller vouches for 20 bytes: version and length at 0, fragment at 6, protocol at 9.
        let (first, fragment, protocol) = unsafe { (*header, *header.add(6).cast::<u16>(), *header.add(9)) };
        (first == 0x45 && fragment & FRAGMENT == 0).then_some(protocol)
    }

    #[inline(always)]
    unsafe fn addresses(header: *const u8) -> (Ip4, Ip4) {
        // SAFETY: the caller vouches for 20 bytes.
        unsafe {
            (Ip4::from_raw(*header.add(12).cast::<u32>()), Ip4::from_raw(*header.add(16).cast::<u32>()))
        }
    }

    #[inline(always)]
    unsafe fn length(header: *const u8, bytes: u64) -> Option<u32> {
        // SAFETY: the caller vouches for 20 bytes: total length at 2, time to live at 8.
        let (total, hops) = unsafe { (u16::from_be(*header.add(2).cast::<u16>()), *header.add(8)) };
        (u64::from(total) <= bytes && hops > 1).then_some(total as u32)
    }

    #[inline(always)]
    fn is_of(flow: &WireFlow<Ip4>, tuple: &Tuple<Ip4>) -> bool {
        let words = (&raw const flow.tuple).cast::<u64>();
        let ends = tuple.src.raw() as u64 | (tuple.dst.raw() as u64) << 32;
        // SAFETY: a tuple has 16 bytes and no padding, and lies at the start of a structure that is aligned to eight.
        unsafe { *words == ends && *words.add(1) == ports(tuple) }
    }

    #[inline(always)]
    unsafe fn rewrite(header: *mut u8, rewrite: &Rewrite<Ip4>) {
        // SAFETY: the caller vouches for 20 bytes.
        unsafe {
            *header.add(8) = (*header.add(8)).wrapping_sub(1);
            Self::write_addresses(header, rewrite);
        }
    }

    #[inline(always)]
    fn ask(fib: &mut bpf_fib_lookup, frame: *mut xdp_md, src: Ip4, dst: Ip4) -> Option<()> {
        let header = access::at::<[u8; 20]>(frame, ETH_LEN)?.cast::<u8>();
        fib.family = AF_INET;
        fib.__bindgen_anon_2.flowinfo = 0;
        // SAFETY: `at` checked the 20 bytes.
        fib.__bindgen_anon_2.tos = unsafe { *header.add(1) };
        fib.__bindgen_anon_3.ipv4_src = src.raw();
        fib.__bindgen_anon_4.ipv4_dst = dst.raw();
        Some(())
    }

    #[inline(always)]
    fn wire_flows() -> &'static Array<WireSet<Ip4>> {
        &WIRE_FLOWS4
    }

    #[inline(always)]
    fn wire_scratch() -> Option<&'static mut Scratch<Ip4>> {
        // SAFETY: an element of this CPU alone, and programs do not interrupt each other on a CPU.
        WIRE_SCRATCH4.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn learn(frame: *mut xdp_md) -> i32 {
        learn4(frame)
    }
}

impl Wire for V6 {
    const HEADER: usize = 40;
    type Frame = [u8; ETH_LEN + 40 + 8];
    const HOP: u16 = 0;

    #[inline(always)]
    unsafe fn protocol(header: *const u8) -> Option<u8> {
        // SAFETY: the caller vouches for 40 bytes: version at 0, next header at 6.
        let (first, protocol) = unsafe { (*header, *header.add(6)) };
        (first >> 4 == 6).then_some(protocol)
    }

    #[inline(always)]
    unsafe fn addresses(header: *const u8) -> (Ip6, Ip6) {
        // SAFETY: the caller vouches for 40 bytes; addresses are read in words of 32 bits, which is how they are aligned.
        unsafe {
            let word = |index: usize| *header.add(8 + index * 4).cast::<u32>() as u64;
            (
                Ip6::from_raw(word(0) | word(1) << 32, word(2) | word(3) << 32),
                Ip6::from_raw(word(4) | word(5) << 32, word(6) | word(7) << 32),
            )
        }
    }

    #[inline(always)]
    unsafe fn length(header: *const u8, bytes: u64) -> Option<u32> {
        // SAFETY: the caller vouches for 40 bytes: payload length at 4, hop limit at 7.
        let (payload, hops) = unsafe { (u16::from_be(*header.add(4).cast::<u16>()), *header.add(7)) };
        let total = payload as u32 + 40;
        (u64::from(total) <= bytes && hops > 1).then_some(total)
    }

    #[inline(always)]
    fn is_of(flow: &WireFlow<Ip6>, tuple: &Tuple<Ip6>) -> bool {
        let Tuple { src, dst, .. } = flow.tuple;
        let ends = (&raw const flow.tuple.src_port).cast::<u64>();
        // SAFETY: ports and what follows them are the last eight bytes of a tuple, at a multiple of eight.
        unsafe { *ends == ports(tuple) && src == tuple.src && dst == tuple.dst }
    }

    #[inline(always)]
    unsafe fn rewrite(header: *mut u8, rewrite: &Rewrite<Ip6>) {
        // SAFETY: the caller vouches for 40 bytes.
        unsafe {
            *header.add(7) = (*header.add(7)).wrapping_sub(1);
            Self::write_addresses(header, rewrite);
        }
    }

    #[inline(always)]
    fn ask(fib: &mut bpf_fib_lookup, frame: *mut xdp_md, src: Ip6, dst: Ip6) -> Option<()> {
        let header = access::at::<[u8; 40]>(frame, ETH_LEN)?;
        fib.family = AF_INET6;
        // SAFETY: `at` checked the 40 bytes.
        fib.__bindgen_anon_2.flowinfo = unsafe { *header.cast::<u32>() } & FLOW_INFO;
        fib.__bindgen_anon_3.ipv6_src = words(src);
        fib.__bindgen_anon_4.ipv6_dst = words(dst);
        Some(())
    }

    #[inline(always)]
    fn wire_flows() -> &'static Array<WireSet<Ip6>> {
        &WIRE_FLOWS6
    }

    #[inline(always)]
    fn wire_scratch() -> Option<&'static mut Scratch<Ip6>> {
        // SAFETY: an element of this CPU alone, and programs do not interrupt each other on a CPU.
        WIRE_SCRATCH6.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn learn(frame: *mut xdp_md) -> i32 {
        learn6(frame)
    }
}

/// What follows the addresses in a tuple, as it lies in memory (little endian: what the programs are compiled for).
#[inline(always)]
fn ports<A>(tuple: &Tuple<A>) -> u64 {
    let Tuple { src_port, dst_port, protocol, hook, .. } = tuple;
    src_port.raw() as u64 | (dst_port.raw() as u64) << 16 | (*protocol as u64) << 32 | (*hook as u64) << 40
}

/// An address in the words of the kernel's structure.
#[inline(always)]
fn words(address: Ip6) -> [u32; 4] {
    let (first, last) = (address.first(), address.last());
    [first as u32, (first >> 32) as u32, last as u32, (last >> 32) as u32]
}
