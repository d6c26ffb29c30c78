//! What differs between IPv4 and IPv6 in the XDP program.

use aya_ebpf::bindings::{bpf_fib_lookup, xdp_md};
use aya_ebpf::maps::Array;
use lb_common::address::{Ip4, Ip6};
use lb_common::layout::{FlowEntry, V4, V6, WireFlow};

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

/// An address family as the XDP program sees it.
pub trait Wire: Net {
    /// Length of the IP header of the packets that are served: none has options.
    const HEADER: usize;
    /// Difference that one hop less to live makes in the sum over the IP header.
    const HOP: u16;

    /// The length of a packet that the stack would forward without a second look, `bytes` of which follow the Ethernet
    /// header; `None` for others: cut off, with options or with no hop left.
    fn forwardable(frame: *mut xdp_md, bytes: u64) -> Option<u32>;

    /// Takes a hop from what the packet has left. A header checksum is somebody else's business.
    fn hop(frame: *mut xdp_md) -> Option<()>;

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
    // The word that is made of time to live and protocol becomes less by the first one's 1 (RFC 791).
    const HOP: u16 = !u16::from_ne_bytes([1, 0]);

    #[inline(always)]
    fn forwardable(frame: *mut xdp_md, bytes: u64) -> Option<u32> {
        let header = access::at::<[u8; 20]>(frame, ETH_LEN)?.cast::<u8>();
        // SAFETY: `at` checked the 20 bytes: version and length at 0, total length at 2, time to live at 8.
        let (first, total, hops) =
            unsafe { (*header, u16::from_be(*header.add(2).cast::<u16>()), *header.add(8)) };
        (first == 0x45 && u64::from(total) <= bytes && total != 0 && hops > 1).then_some(total as u32)
    }

    #[inline(always)]
    fn hop(frame: *mut xdp_md) -> Option<()> {
        let header = access::at_mut::<[u8; 20]>(frame, ETH_LEN)?.cast::<u8>();
        // SAFETY: `at_mut` checked the 20 bytes.
        unsafe { *header.add(8) = (*header.add(8)).wrapping_sub(1) };
        Some(())
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
    const HOP: u16 = 0;

    #[inline(always)]
    fn forwardable(frame: *mut xdp_md, bytes: u64) -> Option<u32> {
        let header = access::at::<[u8; 40]>(frame, ETH_LEN)?.cast::<u8>();
        // SAFETY: `at` checked the 40 bytes: payload length at 4, hop limit at 7. Parsing saw that the transport header
        // follows.
        let (payload, hops) = unsafe { (u16::from_be(*header.add(4).cast::<u16>()), *header.add(7)) };
        let total = payload as u32 + 40;
        (u64::from(total) <= bytes && payload != 0 && hops > 1).then_some(total)
    }

    #[inline(always)]
    fn hop(frame: *mut xdp_md) -> Option<()> {
        let header = access::at_mut::<[u8; 40]>(frame, ETH_LEN)?.cast::<u8>();
        // SAFETY: `at_mut` checked the 40 bytes.
        unsafe { *header.add(7) = (*header.add(7)).wrapping_sub(1) };
        Some(())
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

/// An address in the words of the kernel's structure.
#[inline(always)]
fn words(address: Ip6) -> [u32; 4] {
    let (first, last) = (address.first(), address.last());
    [first as u32, (first >> 32) as u32, last as u32, (last >> 32) as u32]
}
