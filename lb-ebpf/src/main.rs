//! The kernel side: programs at the pods' and the network devices that carry Service traffic.
//!
//! `from_pod` sees what a pod sends, `to_pod` what a pod receives; `from_net` and `to_net` see what comes into and leaves
//! the node at a network device. All share one path: parse, flow cache, and on a miss the tables. The path of an established flow calls no helper but the redirect: everything that needs
//! one lives in functions of their own (`#[inline(never)]`), which become separate BPF functions.

#![no_std]
#![no_main]
#![allow(internal_features, reason = "`atomic_xadd`: the stable atomics do not lower for this target")]
#![feature(asm_experimental_arch, core_intrinsics)]

mod access;
mod cache;
mod clock;
mod config;
mod connection;
mod echo;
mod events;
mod forward;
mod fragment;
mod hook;
mod icmp;
mod maps;
mod masquerade;
mod miss;
mod net;
mod parse;
mod ports;
mod refuse;
mod rewrite;
mod sctp;
mod select;
mod share;
mod sock;
mod stats;
mod tables;
mod trace;
mod unusual;
mod verdict;
mod wire;
mod words;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::hook::{FromNet, FromPod, Hook, ToNet, ToPod};
use crate::miss::Steps;
use crate::parse::Parsed;

/// A pod's outgoing packet, at the ingress of the host side of its device.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    run::<FromPod>(ctx.skb.skb)
}

/// A packet on its way into a pod, at the egress of the host side of its device.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    run::<ToPod>(ctx.skb.skb)
}

/// A packet from outside the node, at the ingress of a network device.
#[classifier]
pub fn from_net(ctx: TcContext) -> i32 {
    run::<FromNet>(ctx.skb.skb)
}

/// A packet that leaves the node, at the egress of a network device.
#[classifier]
pub fn to_net(ctx: TcContext) -> i32 {
    run::<ToNet>(ctx.skb.skb)
}

#[inline(always)]
fn run<H: Hook>(skb: *mut __sk_buff) -> i32 {
    if H::NET && access::has_vlan_tag(skb) {
        return verdict::PASS;
    }
    access::ensure_headers(skb);
    match access::protocol(skb) {
        access::ETH_P_IP => family::<lb_common::layout::V4, H>(skb),
        access::ETH_P_IPV6 => family::<lb_common::layout::V6, H>(skb),
        _ => verdict::PASS,
    }
}

#[inline(always)]
fn family<N: Steps, H: Hook>(skb: *mut __sk_buff) -> i32 {
    let (packet, head) = match N::parse(skb, H::NUMBER) {
        Parsed::Packet(packet, head) => (packet, head),
        Parsed::Unusual => return unusual::carry::<N, H>(skb),
        Parsed::NotOurs => return verdict::PASS,
    };
    let place = cache::Place::of(&packet.tuple);
    if let Some(flow) = cache::find::<N>(&packet, &place)
        && let Some(verdict) = forward::established::<N, H>(skb, &packet, head, flow)
    {
        return verdict;
    }
    // At network devices this was asked before. A pod's packets in a VLAN begin no flow; of a flow that is cached there is
    // no time to ask.
    if !H::NET && access::has_vlan_tag(skb) {
        return verdict::PASS;
    }
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    scratch.packet = packet;
    scratch.place = place;
    miss::miss::<N, H>(skb)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // A loop without end: the verifier refuses the program if a panic can be reached at all.
    loop {}
}

/// The programs call helpers that the kernel offers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
