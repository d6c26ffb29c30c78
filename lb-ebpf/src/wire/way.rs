//! How a packet leaves that the stack does not see.

use aya_ebpf::bindings::{bpf_fib_lookup, xdp_md};
use aya_ebpf::helpers::generated::bpf_fib_lookup as ask_the_routes;
use lb_common::address::Address;
use lb_common::layout::{Backend, BackendFlags, WireAction, WireDevices};

use crate::config;
use crate::wire::XDP_DEVICES;
use crate::wire::family::Wire;
use crate::wire::learn::Scratch;

/// `BPF_FIB_LKUP_RET_SUCCESS`, include/uapi/linux/bpf.h: a route to another machine, and its MAC address is known.
const SUCCESS: i64 = 0;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`.
const FRAG_NEEDED: i64 = 8;

/// Where a packet's destination is.
#[derive(Clone, Copy)]
pub enum Site {
    /// A pod of this node, behind this device, with this MAC address.
    Here(u32, [u8; 6]),
    /// Reached through a network device.
    Beyond,
}

/// What [`find`] found.
#[derive(Clone, Copy)]
pub enum Found {
    /// A way; it is in the working memory.
    Way,
    /// The packet is too long for it. The stack says so to its sender, or makes fragments of it.
    TooLong,
    /// None that leaves the stack out.
    Nothing,
}

/// Where a backend is; `None` when its packets go by the stack: in forwarding mode `stack`, and while the device is unknown.
#[inline(always)]
pub fn site<A: Address>(backend: &Backend<A>) -> Option<Site> {
    let known = backend.interface != 0 && backend.flags & BackendFlags::NEIGHBOUR == 0;
    if known && config::redirects() {
        return Some(Site::Here(backend.interface, backend.mac));
    }
    (!known && backend.flags & BackendFlags::LOCAL == 0).then_some(Site::Beyond)
}

/// Asks the kernel's routes for the way of a packet of `length` bytes, as they would be asked between the programs of the
/// stack: with the ends as they are there.
///
/// What is believed of a route and a neighbour is so for as long as the flow cache answers, a few seconds. Since Linux 5.13
/// the answer says how long packets may be; before, no packets longer than this one are served.
#[inline(always)]
pub fn find<N: Wire>(frame: *mut xdp_md, scratch: &mut Scratch<N::Addr>, site: Site, length: u32) -> Found {
    // SAFETY: the context pointer is valid for the whole run of the program.
    let here = unsafe { (*frame).ingress_ifindex };
    let Scratch { tuple, middle, flow, fib, .. } = scratch;
    fib.l4_protocol = middle.protocol;
    fib.sport = middle.src_port.raw();
    fib.dport = middle.dst_port.raw();
    fib.__bindgen_anon_1.tot_len = length as u16;
    fib.ifindex = here;
    if N::ask(fib, frame, middle.src, middle.dst).is_none() {
        return Found::Nothing;
    }
    match ask(frame, fib) {
        SUCCESS => {}
        FRAG_NEEDED => return Found::TooLong,
        _ => return Found::Nothing,
    }
    // SAFETY: both members are the same two bytes.
    flow.longest = unsafe { fib.__bindgen_anon_1.mtu_result };
    flow.source_mac = fib.smac;
    flow.destination_mac = fib.dmac;
    flow.interface = fib.ifindex;
    let action = match site {
        Site::Here(interface, mac) => {
            flow.interface = interface;
            flow.destination_mac = mac;
            WireAction::Pod
        }
        // Devices that send nothing back by themselves may take it as they take another one's.
        Site::Beyond
            if flow.interface == here && XDP_DEVICES.get_ifindex(WireDevices::back(here)).is_some() =>
        {
            WireAction::Back
        }
        Site::Beyond => WireAction::Forward,
    };
    flow.action = action as u8;
    if !matches!(action, WireAction::Back) && XDP_DEVICES.get_ifindex(flow.interface).is_none() {
        return Found::Nothing;
    }
    // Packets to the sender would leave by the device that this one came by: then it is what they would have as their source
    // that this one is to be addressed to. Others may be what a strict `rp_filter` drops; and are the stack's in any case.
    fib.sport = tuple.dst_port.raw();
    fib.dport = tuple.src_port.raw();
    fib.__bindgen_anon_1.tot_len = 0;
    fib.ifindex = here;
    if N::ask(fib, frame, tuple.dst, tuple.src).is_none() || ask(frame, fib) != SUCCESS || fib.ifindex != here
    {
        return Found::Nothing;
    }
    flow.own_mac = fib.smac;
    Found::Way
}

#[inline(always)]
fn ask(frame: *mut xdp_md, fib: &mut bpf_fib_lookup) -> i64 {
    // SAFETY: a helper call on the context, with a structure of the size that it is told; since Linux 4.18.
    unsafe { ask_the_routes(frame.cast(), fib, size_of::<bpf_fib_lookup>() as i32, 0) }
}
