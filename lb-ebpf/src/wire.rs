//! The XDP program at network devices: packets of established flows between the network and what is behind Services are
//! carried from one device to another before the stack sees them.
//!
//! It knows nothing that the programs of the stack do not: every flow begins with them, and whatever is not simply the next
//! packet of a flow that both ends have agreed on is left to them, untouched ([`xdp_action::XDP_PASS`]). For the others one
//! rewrite does what `from_net` and `to_net` or `to_pod` would do one after the other ([`learn`]), and a hop is counted as
//! the stack would count it.
//!
//! What the stack would do on the way beyond that, it does not do any more: netfilter sees the first packets and the last
//! ones of a flow, and some in between ([`learn::shows_the_stack`]).

mod family;
mod learn;
mod way;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMapHash, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use lb_common::address::{Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::checksum;
use lb_common::layout::{FlowEntry, V4, V6, WireAction, WireDevices, WireFlow, WireStat};
use lb_common::proto::{self, tcp};
use lb_common::tuple::Tuple;

use crate::access::{self, ETH_LEN};
use crate::cache::Place;
use crate::clock;
use crate::hook::FROM_WIRE;
use crate::wire::family::Wire;
use crate::wire::learn::{SERVED, Scratch};
use crate::{config, rewrite, stats};

/// Devices that frames can be handed to, see [`WireDevices`]. Written by the agent; the programs' own, not pinned.
#[map]
pub static XDP_DEVICES: DevMapHash = DevMapHash::with_max_entries(WireDevices::ROWS, 0);

/// Counters of packets that the program sent on, by [`WireStat`].
#[map]
pub static WIRE_STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(WireStat::COUNTERS, 0);

/// The program's flow cache of IPv4, laid out as [`crate::maps::FLOWS4`] is.
#[map]
pub static WIRE_FLOWS4: Array<[WireFlow<Ip4>; FlowEntry::<Ip4>::WAYS]> = Array::with_max_entries(1, 0);

/// The same of IPv6.
#[map]
pub static WIRE_FLOWS6: Array<[WireFlow<Ip6>; FlowEntry::<Ip6>::WAYS]> = Array::with_max_entries(1, 0);

/// Working memory of IPv4, of this CPU alone.
#[map]
pub static WIRE_SCRATCH4: PerCpuArray<Scratch<Ip4>> = PerCpuArray::with_max_entries(1, 0);

/// Working memory of IPv6.
#[map]
pub static WIRE_SCRATCH6: PerCpuArray<Scratch<Ip6>> = PerCpuArray::with_max_entries(1, 0);

const PASS: u32 = xdp_action::XDP_PASS;
const PASS_ACTION: u8 = WireAction::Pass as u8;
const BACK_ACTION: u8 = WireAction::Back as u8;

/// A packet from outside the node, as the driver of a network device received it.
#[xdp]
pub fn from_wire(ctx: XdpContext) -> u32 {
    let frame = ctx.ctx;
    let Some(ethernet) = access::at::<[u8; ETH_LEN]>(frame, 0) else { return PASS };
    // SAFETY: `at` checked the 14 bytes. A tag of a virtual LAN has a type of its own here.
    let protocol = unsafe { *ethernet.cast::<u8>().add(12).cast::<u16>() } as u32;
    match protocol {
        access::ETH_P_IP => carry::<V4>(frame),
        access::ETH_P_IPV6 => carry::<V6>(frame),
        _ => PASS,
    }
}

#[inline(always)]
fn carry<N: Wire>(frame: *mut xdp_md) -> u32 {
    let transport = ETH_LEN + N::HEADER;
    let Some(start) = access::at_mut::<N::Frame>(frame, 0) else { return PASS };
    let header = start.cast::<u8>().cast_const().wrapping_add(ETH_LEN);
    // SAFETY: `at_mut` checked all headers that every packet has.
    let Some(protocol) = (unsafe { N::protocol(header) }) else { return PASS };
    match protocol {
        proto::UDP => {}
        proto::TCP => {
            let Some(tcp) = access::at::<[u8; 20]>(frame, transport) else { return PASS };
            // SAFETY: `at` checked the 20 bytes; flags at 13.
            let flags = unsafe { *tcp.cast::<u8>().add(13) };
            if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
                return PASS;
            }
        }
        _ => return PASS,
    }
    // SAFETY: see above.
    let tuple = unsafe {
        let (src, dst) = N::addresses(header);
        let ports = header.add(N::HEADER).cast::<u16>();
        let (src_port, dst_port) = (Be16::from_raw(*ports), Be16::from_raw(*ports.add(1)));
        Tuple { src, dst, src_port, dst_port, protocol, hook: FROM_WIRE, zero: 0 }
    };
    let place = Place::of(&tuple);
    let flow = match find::<N>(&tuple, &place) {
        Some(flow) => flow,
        None => {
            let Some(scratch) = N::wire_scratch() else { return PASS };
            scratch.tuple = tuple;
            scratch.place = place;
            if N::learn(frame) != SERVED {
                return PASS;
            }
            let Some(flow) = find::<N>(&tuple, &place) else { return PASS };
            flow
        }
    };
    if flow.action == PASS_ACTION {
        return PASS;
    }
    serve::<N>(frame, protocol, flow).unwrap_or(PASS)
}

/// The valid entry of a packet's flow, see [`crate::cache::find`].
#[inline(always)]
fn find<N: Wire>(tuple: &Tuple<N::Addr>, place: &Place) -> Option<&'static WireFlow<N::Addr>> {
    let set = N::wire_flows().get_ptr(place.set())?;
    let now = clock::jiffies();
    for way in 0..FlowEntry::<N::Addr>::WAYS {
        // SAFETY: an element of the map; only this CPU touches it, and programs do not interrupt each other.
        let entry = unsafe { &(*set)[way] };
        if N::is_of(entry, tuple) && entry.tag == place.tag {
            return (now.wrapping_sub(entry.stamp) < config::flow_refresh()).then_some(entry);
        }
    }
    None
}

/// Carries a packet of a remembered flow; `None` when it is one for the stack. Nothing is changed before that is known.
#[inline(always)]
fn serve<N: Wire>(frame: *mut xdp_md, protocol: u8, flow: &WireFlow<N::Addr>) -> Option<u32> {
    let transport = ETH_LEN + N::HEADER;
    let bytes = access::ip_bytes(frame);
    let start = access::at_mut::<N::Frame>(frame, 0)?.cast::<u8>();
    // SAFETY: `at_mut` checked all headers that every packet has, here and below; nothing moves the packet.
    let header = unsafe { start.add(ETH_LEN) };
    // SAFETY: see above.
    let length = unsafe { N::length(header, bytes)? };
    let least = if protocol == proto::TCP { 20 } else { 8 };
    // SAFETY: see above.
    let addressed = unsafe { is_mac(start, &flow.own_mac) };
    if length < N::HEADER as u32 + least || bytes > u64::from(flow.longest) || !addressed {
        return None;
    }
    let field = access::at_mut::<u16>(frame, transport + rewrite::checksum_offset(protocol))?;
    // SAFETY: `at_mut` checked the field.
    let old = unsafe { *field };
    let new = if protocol == proto::UDP && old == 0 {
        0
    } else {
        // The other end of a virtual device may leave the checksum to this one's stack (`CHECKSUM_PARTIAL`), which is
        // the only one who knows. A complete sum looks like that once in 65536 packets.
        let length = (length as u16).wrapping_sub(N::HEADER as u16).to_be();
        if checksum::same_sum(old, checksum::plus(flow.pseudo_header, length)) {
            return None;
        }
        match checksum::update(old, flow.rewrite.full_difference) {
            0 if protocol == proto::UDP => 0xffff,
            sum => sum,
        }
    };
    let verdict = if flow.action == BACK_ACTION {
        xdp_action::XDP_TX
    } else {
        // Asked for before anything is changed: the device may be gone since.
        XDP_DEVICES.redirect(flow.interface, PASS as u64).ok()?
    };
    // SAFETY: see above.
    unsafe {
        *field = new;
        let ports = header.add(N::HEADER).cast::<u16>();
        *ports = flow.rewrite.src_port.raw();
        *ports.add(1) = flow.rewrite.dst_port.raw();
        N::rewrite(header, &flow.rewrite);
        store_mac(start, &flow.destination_mac);
        store_mac(start.add(6), &flow.source_mac);
    }
    stats::translated::<N>(1, bytes, flow.service, flow.backend, flow.reply != 0);
    if let Some(counter) = WIRE_STATS.get_ptr_mut((flow.action as u32).wrapping_sub(1)) {
        // SAFETY: a per-CPU counter; only this CPU writes it, and programs do not interrupt each other on a CPU.
        unsafe { *counter += 1 };
    }
    Some(verdict)
}

/// Stores a MAC address, in words: as one value it would be moved by a function.
///
/// # Safety
/// Six bytes at `to` can be written, and it is aligned to two bytes.
#[inline(always)]
unsafe fn store_mac(to: *mut u8, mac: &[u8; 6]) {
    let from = mac.as_ptr().cast::<u16>();
    // SAFETY: the caller's word; addresses in a `WireFlow` lie at even offsets.
    unsafe {
        let words = (*from, *from.add(1), *from.add(2));
        let to = to.cast::<u16>();
        *to = words.0;
        *to.add(1) = words.1;
        *to.add(2) = words.2;
    }
}

/// True when a MAC address lies at an address.
///
/// # Safety
/// Six bytes at `at` can be read, and it is aligned to two bytes.
#[inline(always)]
unsafe fn is_mac(at: *const u8, mac: &[u8; 6]) -> bool {
    let (at, mac) = (at.cast::<u16>(), mac.as_ptr().cast::<u16>());
    // SAFETY: as in `store_mac`.
    unsafe { (*at ^ *mac) | (*at.add(1) ^ *mac.add(1)) | (*at.add(2) ^ *mac.add(2)) == 0 }
}
