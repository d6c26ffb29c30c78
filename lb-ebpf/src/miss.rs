//! Packets that the flow cache has no answer for: ask the tables, carry the packet, remember the answer.

use aya_ebpf::bindings::__sk_buff;
use lb_common::conntrack::{self, Direction};
use lb_common::layout::{
    Backend, BackendFlags, Client, ConnEntry, ConnFlags, FlowAction, FlowEntry, ServiceStat, V4, V6,
};
use lb_common::lookup::{self, Unserved};
use lb_common::proto::tcp;
use lb_common::reason::Reason;

use crate::cache;
use crate::hook::Hook;
use crate::net::Net;
use crate::parse::Packet;
use crate::refuse::Refusal;
use crate::tables::KernelTables;
use crate::trace::{self, Trace};
use crate::{config, connection, forward, refuse, rewrite, select, stats, verdict};

/// Returned by [`carry`]: the connection table does not know the flow. No verdict has these numbers.
const UNKNOWN: i32 = 0x1000;
/// Returned by [`begin`]: the connection table knows the flow now.
const BEGUN: i32 = 0x1001;
/// Returned by [`begin`], with the number of a [`Reason`] added: the packet is to be refused.
const REFUSE: i32 = 0x2000;

/// Tells [`carry`] where the packet was met: on its way into a pod.
const RECEIVED: u32 = 0;
/// On its way out of a pod.
const SENT: u32 = 1;
/// On its way out of a pod, and the flow begins with it: its endpoint is chosen, once.
const SENT_FIRST: u32 = 2;

/// Carries a packet by the tables.
///
/// Each step is a BPF function of its own, called from here and not from one another, so that their stacks do not
/// add up; and a global one, which the verifier checks once, whoever calls it (Linux 5.6).
#[inline(always)]
pub fn miss<N: Steps, H: Hook>(skb: *mut __sk_buff) -> i32 {
    let verdict = N::carry(skb, if H::FROM_POD { SENT } else { RECEIVED });
    if !H::FROM_POD || verdict != UNKNOWN {
        return verdict;
    }
    let begun = N::begin(skb);
    if trace::enabled() && begun != verdict::PASS {
        let outcome = match begun {
            BEGUN => trace::SERVED,
            refused if refused >= REFUSE => trace::REFUSED,
            _ => trace::DROPPED,
        };
        N::first_packet(outcome);
    }
    match begun {
        BEGUN => match N::carry(skb, SENT_FIRST) {
            UNKNOWN => verdict::dropped(Reason::ConnectionTableFull),
            verdict => verdict,
        },
        refused if refused >= REFUSE => N::refuse(skb, (refused - REFUSE) as u32),
        verdict => verdict,
    }
}

/// The steps by address family.
pub trait Steps: Refusal + Trace {
    /// [`carry`] as a global BPF function.
    fn carry(skb: *mut __sk_buff, met: u32) -> i32;
    /// [`begin`] as a global BPF function.
    fn begin(skb: *mut __sk_buff) -> i32;
    /// [`refuse::refuse`] as a global BPF function.
    fn refuse(skb: *mut __sk_buff, reason: u32) -> i32;
}

macro_rules! global_functions {
    ($family:ty, $carry:ident, $begin:ident, $refuse:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $carry(skb: *mut __sk_buff, met: u32) -> i32 {
            carry::<$family>(skb, met)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $begin(skb: *mut __sk_buff) -> i32 {
            begin::<$family>(skb)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $refuse(skb: *mut __sk_buff, reason: u32) -> i32 {
            refuse::refuse::<$family>(skb, reason)
        }

        impl Steps for $family {
            #[inline(always)]
            fn carry(skb: *mut __sk_buff, met: u32) -> i32 {
                $carry(skb, met)
            }

            #[inline(always)]
            fn begin(skb: *mut __sk_buff) -> i32 {
                $begin(skb)
            }

            #[inline(always)]
            fn refuse(skb: *mut __sk_buff, reason: u32) -> i32 {
                $refuse(skb, reason)
            }
        }
    };
}

global_functions!(V4, carry4, begin4, refuse4);
global_functions!(V6, carry6, begin6, refuse6);

/// A packet without ports we could look up: only its address counts (S-23, S-70).
#[inline(never)]
pub fn odd<N: Net>(dst: &N::Addr, reason: Reason) -> i32 {
    match lookup::classify_address::<N, _>(&KernelTables, *dst) {
        Unserved::UnknownPort => verdict::dropped(reason),
        Unserved::Unallocated => verdict::dropped(Reason::UnallocatedAddress),
        Unserved::NotOurs => verdict::PASS,
    }
}

/// True when the packet begins a new connection on an old entry, or its UDP endpoint stopped serving (S-51).
#[inline(always)]
fn chooses_again<N: Net>(packet: &Packet<N::Addr>, entry: *mut ConnEntry<N::Addr>, now: u32) -> bool {
    // SAFETY: a live element of the map, here and below; other CPUs may write single fields meanwhile, which are
    // each valid on their own.
    let (flags, state, created) = unsafe { ((*entry).flags, (*entry).state, (*entry).created) };
    if flags & ConnFlags::REPLY != 0 {
        return false;
    }
    if !packet.is_tcp() {
        return !backend_serves::<N>(entry);
    }
    packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
        && (conntrack::syn_selects_again(state, now.wrapping_sub(created))
            || (state == conntrack::State::SynSent as u8 && !backend_serves::<N>(entry)))
}

/// The backend row of a flow, if it still is the flow's endpoint.
#[inline(always)]
fn backend_of<N: Net>(entry: *mut ConnEntry<N::Addr>) -> Option<Backend<N::Addr>> {
    // SAFETY: see `chooses_again`.
    let (index, address, port, service) =
        unsafe { ((*entry).backend, (*entry).rewrite.dst, (*entry).rewrite.dst_port, (*entry).service) };
    let backend = N::backend(&KernelTables, index)?;
    (backend.address == address && backend.port == port && backend.service == service).then_some(backend)
}

#[inline(always)]
fn backend_serves<N: Net>(entry: *mut ConnEntry<N::Addr>) -> bool {
    match backend_of::<N>(entry) {
        Some(backend) => backend.flags & BackendFlags::SERVING != 0,
        None => false,
    }
}

/// The first packet of a flow from a pod: [`BEGUN`], or the verdict on a packet that goes no further or is none of
/// our business.
#[inline(always)]
fn begin<N: Net>(skb: *mut __sk_buff) -> i32 {
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    let (packet, key) = (&scratch.packet, &scratch.key);
    let found = lookup::frontend::<N, _>(&KernelTables, key.dst, key.dst_port, key.protocol);
    let Some(frontend) = found else {
        return match lookup::classify_address::<N, _>(&KernelTables, key.dst) {
            Unserved::UnknownPort => REFUSE + Reason::UnknownPort as i32,
            Unserved::Unallocated => verdict::dropped(Reason::UnallocatedAddress),
            Unserved::NotOurs => {
                cache::store_pass::<N>(scratch);
                verdict::PASS
            }
        };
    };
    let service = frontend.service;
    if packet.flags & tcp::RST != 0 {
        stats::service(service, ServiceStat::Dropped);
        return verdict::dropped(Reason::ResetWithoutFlow);
    }
    let policy = lookup::policy(&KernelTables, service);
    scratch.choice = match select::select::<N>(frontend, policy, Client::Pod, key.src, scratch.now) {
        Ok(choice) => choice,
        Err(Reason::NoEndpoint) => {
            stats::service(service, ServiceStat::Refused);
            return REFUSE + Reason::NoEndpoint as i32;
        }
        Err(reason) => {
            stats::service(service, ServiceStat::Dropped);
            return verdict::dropped(reason);
        }
    };
    match connection::create::<N>(skb, scratch, service) {
        Ok(won) => {
            if won {
                stats::connection::<N>(service, scratch.choice.index);
            }
            BEGUN
        }
        Err(reason) => {
            stats::service(service, ServiceStat::Dropped);
            verdict::dropped(reason)
        }
    }
}

/// Carries a packet of a flow that the connection table knows; [`UNKNOWN`] otherwise.
#[inline(always)]
fn carry<N: Net>(skb: *mut __sk_buff, met: u32) -> i32 {
    let from_pod = met != RECEIVED;
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    scratch.key = scratch.packet.tuple;
    scratch.key.hook = 0;
    scratch.now = connection::now();
    let Some(entry) = N::conns().get_ptr_mut(&scratch.key) else {
        if !from_pod {
            cache::store_pass::<N>(scratch);
            return verdict::PASS;
        }
        return UNKNOWN;
    };
    if met == SENT && chooses_again::<N>(&scratch.packet, entry, scratch.now) {
        connection::forget::<N>(&scratch.key, entry);
        return UNKNOWN;
    }
    // SAFETY: see `chooses_again`.
    let (flags, interface, mac) = unsafe { ((*entry).flags, (*entry).interface, (*entry).mac) };
    let reply = flags & ConnFlags::REPLY != 0;
    let hairpin = flags & ConnFlags::HAIRPIN != 0;
    // Answers are turned back at the client's device, so that the stack in between sees one consistent flow;
    // unless they do not go through the stack at all.
    let ours = if from_pod { !reply || hairpin || config::redirects() } else { reply && !hairpin };
    if !ours {
        cache::store_pass::<N>(scratch);
        return verdict::PASS;
    }
    let direction = if reply { Direction::Reply } else { Direction::Forward };
    let state = connection::follow::<N>(skb, scratch, entry, direction);
    let (action, interface, mac) = if hairpin {
        (FlowAction::Back, 0, if reply { mac } else { rewrite::source_mac(skb) })
    } else if !from_pod || !config::redirects() {
        (FlowAction::Stack, 0, mac)
    } else if reply {
        (if interface != 0 { FlowAction::Peer } else { FlowAction::Stack }, interface, mac)
    } else {
        way::<N>(entry)
    };
    scratch.answer.action = action as u8;
    scratch.answer.interface = interface;
    scratch.answer.mac = mac;
    scratch.answer.flags = if reply { FlowEntry::<N::Addr>::REPLY } else { 0 };
    // SAFETY: see `chooses_again`.
    unsafe {
        scratch.answer.rewrite = (*entry).rewrite;
        scratch.answer.service = (*entry).service;
        scratch.answer.backend = (*entry).backend;
    }
    match rewrite::exact::<N>(skb, &scratch.packet, &scratch.answer.rewrite) {
        Some(true) => scratch.answer.flags |= FlowEntry::<N::Addr>::COMPLETE_CHECKSUM,
        Some(false) => {}
        None => {
            stats::service(scratch.answer.service, ServiceStat::Dropped);
            return verdict::dropped(Reason::RewriteFailed);
        }
    }
    if !scratch.packet.is_tcp() || (conntrack::is_settled(state) && !scratch.packet.changes_state()) {
        cache::store::<N>(scratch);
    }
    forward::finish::<N>(skb, &scratch.answer)
}

/// How the packets of a flow reach its backend in forwarding mode `redirect`.
#[inline(always)]
fn way<N: Net>(entry: *mut ConnEntry<N::Addr>) -> (FlowAction, u32, [u8; 6]) {
    let Some(backend) = backend_of::<N>(entry) else { return (FlowAction::Stack, 0, [0; 6]) };
    let action = if backend.interface == 0 {
        FlowAction::Stack
    } else if backend.flags & BackendFlags::NEIGHBOUR != 0 {
        FlowAction::Neighbour
    } else {
        FlowAction::Peer
    };
    (action, backend.interface, backend.mac)
}
