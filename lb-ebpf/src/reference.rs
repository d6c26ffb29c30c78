//! Programs to measure the datapath against: small, and doing what load balancers are usually made of; and those that send frames
//! through XDP programs and count what comes back. Never attached by the agent; an object of their own.

#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{__sk_buff, BPF_ANY, xdp_md};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LruHashMap, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};

/// `TCX_NEXT`.
const PASS: i32 = -1;
/// Keys that the benchmark fills in, and as many for connections.
const ENTRIES: u32 = 1024;

/// As a table of Services, one of endpoints and one of devices would be.
#[map]
static FIRST: HashMap<u64, u64> = HashMap::with_max_entries(ENTRIES, 0);
#[map]
static SECOND: HashMap<u64, u64> = HashMap::with_max_entries(ENTRIES, 0);
#[map]
static THIRD: HashMap<u64, u64> = HashMap::with_max_entries(ENTRIES, 0);
/// As a table of connections would be: keys of 16 bytes, values of 48.
#[map]
static CONNECTIONS: LruHashMap<[u64; 2], [u64; 6]> = LruHashMap::with_max_entries(65_536, 0);

/// A frame to be sent, in words: the first bytes of a packet without options.
#[map]
static LIVE_FRAME: Array<[u64; WORDS]> = Array::with_max_entries(1, 0);
/// The port, in network byte order, of which UDP datagrams are counted and dropped; then how many were.
#[map]
static ARRIVED: Array<u64> = Array::with_max_entries(2, 0);
/// Words of a frame: 14, 20 and 8 bytes of headers and 6 of payload.
const WORDS: usize = 6;

/// Sends a frame where it came from, after writing it anew: what it meets on its way changes it, and the kernel uses its memory
/// again as it is.
#[xdp]
pub fn send(ctx: XdpContext) -> u32 {
    let Some(frame) = words(&ctx) else { return XDP_ABORTED };
    let Some(written) = LIVE_FRAME.get_ptr(0) else { return XDP_ABORTED };
    // SAFETY: a live element of the map, and a part of the frame that `words` checked.
    unsafe { *frame = *written };
    XDP_TX
}

/// Devices that [`hand_back`] hands frames to: the one that they come by, under its own number.
#[map]
static BACK: DevMapHash = DevMapHash::with_max_entries(1, 0);

/// The least that a program can do to send a frame back: MAC addresses change places.
#[xdp]
pub fn bounce(ctx: XdpContext) -> u32 {
    if turn(&ctx).is_some() { XDP_TX } else { XDP_PASS }
}

/// The same for a device that sends nothing back by itself: the frame is handed to it as to another one.
#[xdp]
pub fn hand_back(ctx: XdpContext) -> u32 {
    if turn(&ctx).is_none() {
        return XDP_PASS;
    }
    let packet: *mut xdp_md = ctx.ctx;
    // SAFETY: the context pointer is valid for the whole run of the program.
    let here = unsafe { (*packet).ingress_ifindex };
    BACK.redirect(here, u64::from(XDP_PASS)).unwrap_or(XDP_ABORTED)
}

/// Lets the MAC addresses of a frame change places.
#[inline(always)]
fn turn(ctx: &XdpContext) -> Option<()> {
    let bytes = words(ctx)?.cast::<u16>();
    for index in 0..3 {
        // SAFETY: the first 12 bytes of a part of the frame that `words` checked.
        unsafe { core::ptr::swap(bytes.add(index), bytes.add(index + 3)) };
    }
    Some(())
}

/// Counts and drops UDP datagrams of a port over IPv4 without options.
#[xdp]
pub fn arrive(ctx: XdpContext) -> u32 {
    let Some(frame) = words(&ctx) else { return XDP_PASS };
    let (Some(port), Some(count)) = (ARRIVED.get_ptr(0), ARRIVED.get_ptr_mut(1)) else {
        return XDP_PASS;
    };
    // SAFETY: bytes 12 to 38 of a part of the frame that `words` checked, and live elements of the map.
    unsafe {
        let bytes = frame.cast::<u8>();
        let udp_over_ip4 = *bytes.add(12).cast::<u16>() == 0x0800_u16.to_be() && *bytes.add(23) == 17;
        let to = u64::from(*bytes.add(36).cast::<u16>());
        if !udp_over_ip4 || *port == 0 || to != *port {
            return XDP_PASS;
        }
        *count += 1;
    }
    XDP_DROP
}

/// The beginning of a frame, when it is as long as that.
#[inline(always)]
fn words(ctx: &XdpContext) -> Option<*mut [u64; WORDS]> {
    let packet: *mut xdp_md = ctx.ctx;
    // SAFETY: the context pointer is valid for the whole run of the program.
    let (start, end) = unsafe { ((*packet).data as usize, (*packet).data_end as usize) };
    if start + size_of::<[u64; WORDS]>() > end { None } else { Some(start as *mut [u64; WORDS]) }
}

/// Nothing: what the measuring itself costs.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    PASS
}

/// Three look-ups in hash tables and one in a table of connections, each with the result of the one before as its key: an
/// established flow in a balancer made of hash tables.
#[classifier]
pub fn hash_lookups(ctx: TcContext) -> i32 {
    let key = length(ctx.skb.skb) & u64::from(ENTRIES - 1);
    let Some(key) = value(FIRST.get_ptr(key)) else { return PASS };
    let Some(key) = value(SECOND.get_ptr(key)) else { return PASS };
    let Some(key) = value(THIRD.get_ptr(key)) else { return PASS };
    i32::from(CONNECTIONS.get_ptr([key, key]).is_some()) + PASS
}

/// An insert into a table of connections under a new key: the least that a new flow costs a balancer with a kernel table.
#[classifier]
pub fn lru_insert(_ctx: TcContext) -> i32 {
    // SAFETY: a helper without arguments.
    let key = unsafe { bpf_get_prandom_u32() } as u64;
    let _ = CONNECTIONS.insert([key, !key], [key; 6], u64::from(BPF_ANY));
    PASS
}

/// Bytes of a frame that a program of XDP may change, in words.
const FRAME: usize = 12;

/// How the frame begins that [`wire_again`] hands on.
#[map]
static WIRE_FRAME: Array<[u64; FRAME]> = Array::with_max_entries(1, 0);
/// The program that gets it.
#[map]
static WIRE_NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Nothing, in XDP.
#[xdp]
pub fn wire_empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Makes the frame what it was before the last run and hands it on: the kernel does not put it back when it repeats a program.
#[xdp]
pub fn wire_again(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + FRAME * 8 > ctx.data_end() {
        return XDP_ABORTED;
    }
    let Some(frame) = WIRE_FRAME.get_ptr(0) else { return XDP_ABORTED };
    for word in 0..FRAME {
        // SAFETY: so many bytes of the frame are there, and of the row; x86 and ARM64 store words anywhere.
        unsafe { (start as *mut u64).add(word).write_volatile((*frame)[word]) };
    }
    // SAFETY: the array's programs are of XDP as this one is; without one the call returns.
    unsafe { WIRE_NEXT.tail_call(&ctx, 0) };
    XDP_ABORTED
}

#[inline(always)]
fn length(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the context pointer is valid for the whole run of the program.
    unsafe { (*skb).len as u64 }
}

#[inline(always)]
fn value(found: Option<*const u64>) -> Option<u64> {
    // SAFETY: a live element of the map.
    found.map(|value| unsafe { *value })
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel offers some helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
