//! How a packet leaves once it is rewritten.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type,
};
use lb_common::layout::{FlowAction, FlowEntry};
use lb_common::reason::Reason;

use crate::access;
use crate::hook::Hook;
use crate::net::Net;
use crate::parse::{Head, Packet};
use crate::{rewrite, stats, verdict};

/// `PACKET_HOST`, include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;

const PASS: u8 = FlowAction::Pass as u8;
const PEER: u8 = FlowAction::Peer as u8;
const NEIGHBOUR: u8 = FlowAction::Neighbour as u8;
const BACK: u8 = FlowAction::Back as u8;

/// Carries a packet of a cached flow: no helper but the redirect, and where packets come in from a network device one
/// for the device's own checksum. `None` when the tables must be asked.
#[inline(always)]
pub fn established<N: Net, H: Hook>(
    skb: *mut __sk_buff,
    packet: &Packet<N::Addr>,
    head: Head,
    flow: &mut FlowEntry<N::Addr>,
) -> Option<i32> {
    if flow.action == PASS {
        return Some(verdict::PASS);
    }
    if packet.changes_state() {
        return None;
    }
    rewrite::quick::<N, H>(skb, packet, head, &flow.rewrite, &mut flow.flags)?;
    count::<N>(skb, flow);
    if !H::INGRESS {
        // What leaves the node or enters a pod is on its way already.
        return Some(verdict::PASS);
    }
    if has_destination(flow.action) {
        // SAFETY: the destination MAC is what a packet begins with.
        unsafe { rewrite::write_mac(head.at(0), &flow.mac) };
    }
    Some(send(skb, flow.action, flow.interface))
}

/// Counts a rewritten packet and sends it on its way.
#[inline(always)]
pub fn finish<N: Net>(skb: *mut __sk_buff, flow: &FlowEntry<N::Addr>) -> i32 {
    count::<N>(skb, flow);
    leave(skb, flow.action, flow.interface, &flow.mac)
}

/// Counts a rewritten packet, once: where its destination or the Service's address was written into it.
#[inline(always)]
fn count<N: Net>(skb: *mut __sk_buff, flow: &FlowEntry<N::Addr>) {
    if flow.flags & FlowEntry::<N::Addr>::SOURCE == 0 {
        let reply = flow.flags & FlowEntry::<N::Addr>::REPLY != 0;
        stats::packet::<N>(skb, flow.service, flow.backend, reply);
    }
}

/// True when the frame's receiver is known, and not left to the stack or the neighbour table.
#[inline(always)]
fn has_destination(action: u8) -> bool {
    action == PEER || action == BACK
}

/// Sends a rewritten packet on its way.
#[inline(always)]
pub fn leave(skb: *mut __sk_buff, action: u8, interface: u32, mac: &[u8; 6]) -> i32 {
    if has_destination(action) && rewrite::destination_mac(skb, mac).is_none() {
        return verdict::dropped(Reason::RewriteFailed);
    }
    send(skb, action, interface)
}

#[inline(always)]
fn send(skb: *mut __sk_buff, action: u8, interface: u32) -> i32 {
    match action {
        PEER => {
            // SAFETY: helper calls; `redirect_peer` since Linux 5.10. A pod behind a bridge addressed the frame to
            // another MAC than this device's, and the receiving stack would not take it for its own.
            unsafe {
                if (*skb).pkt_type != PACKET_HOST {
                    bpf_skb_change_type(skb, PACKET_HOST);
                }
                bpf_redirect_peer(interface, 0) as i32
            }
        }
        // SAFETY: a helper call, since Linux 5.10; without parameters it resolves the neighbour by the packet.
        NEIGHBOUR => unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 },
        // SAFETY: a helper call.
        BACK => unsafe { bpf_redirect(access::interface(skb), 0) as i32 },
        _ => verdict::PASS,
    }
}
