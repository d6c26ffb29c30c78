//! Packets that the flow cache has no answer for: ask the tables, carry the packet, remember the answer.

use aya_ebpf::bindings::__sk_buff;
use lb_common::address::Address;
use lb_common::conntrack::{self, Direction};
use lb_common::layout::{
    Backend, BackendFlags, Client, ConnEntry, ConnFlags, EventKind, FlowAction, FlowEntry, ServiceStat, V4,
    V6,
};
use lb_common::lookup::{self, Unserved};
use lb_common::proto::tcp;
use lb_common::reason::Reason;
use lb_common::tuple::Tuple;

use crate::events::Tell;
use crate::hook::{self, Hook};
use crate::maps::Scratch;
use crate::net::Net;
use crate::parse::Packet;
use crate::refuse::Refusal;
use crate::tables::KernelTables;
use crate::trace::{self, Trace};
use crate::{
    cache, clock, config, connection, echo, events, forward, fragment, icmp, masquerade, ports, refuse,
    rewrite, select, share, stats, unusual, verdict, words,
};

/// Returned by [`carry`]: the connection table does not know the flow. No verdict has these numbers.
const UNKNOWN: i32 = 0x1000;
/// Returned by [`begin`] and [`masquerade`]: an entry is ready in the working memory, for [`enter`].
const READY: i32 = 0x1001;
/// Returned by [`enter`]: the connection table knows the flow now.
const BEGUN: i32 = 0x1002;
/// Returned by [`begin`], with the number of a [`Reason`] added: the packet is to be refused.
const REFUSE: i32 = 0x2000;

/// Added to the hook's number, which tells [`carry`] where the packet was met: the flow's entries were made for this
/// packet, once.
const BEGINS: u32 = 0x100;

/// Carries a packet by the tables.
///
/// Each step is a BPF function of its own, called from here and (but for [`connection::claim`]) not from one another, so
/// that their stacks do not add up; and a global one, which the verifier checks once, whoever calls it (Linux 5.6).
#[inline(always)]
pub fn miss<N: Steps, H: Hook>(skb: *mut __sk_buff) -> i32 {
    let verdict = walk::<N, H>(skb);
    events::tell::<N>(skb, verdict);
    verdict
}

#[inline(always)]
fn walk<N: Steps, H: Hook>(skb: *mut __sk_buff) -> i32 {
    let verdict = N::carry(skb, H::NUMBER as u32);
    if verdict != UNKNOWN {
        return verdict;
    }
    let mut begun = if H::INGRESS { N::begin() } else { N::masquerade(skb) };
    if H::INGRESS && begun == READY {
        begun = N::make_room();
    }
    if begun == READY {
        begun = N::enter(skb);
    }
    if H::INGRESS && trace::enabled() && begun != verdict::PASS {
        let outcome = match begun {
            BEGUN => trace::SERVED,
            refused if refused >= REFUSE => trace::REFUSED,
            _ => trace::DROPPED,
        };
        N::first_packet(outcome);
    }
    if H::INGRESS
        && let Some(scratch) = N::scratch()
    {
        match begun {
            BEGUN => events::note(scratch, EventKind::Opened),
            refused if refused >= REFUSE => events::note(scratch, EventKind::Refused),
            _ => {}
        }
    }
    match begun {
        BEGUN => match N::carry(skb, H::NUMBER as u32 | BEGINS) {
            UNKNOWN => verdict::dropped(Reason::ConnectionTableFull),
            verdict => verdict,
        },
        refused if H::INGRESS && refused >= REFUSE => N::refuse(skb, (refused - REFUSE) as u32),
        verdict => verdict,
    }
}

/// The steps by address family.
pub trait Steps: Refusal + Trace + Tell {
    /// [`carry`] as a global BPF function.
    fn carry(skb: *mut __sk_buff, met: u32) -> i32;
    /// [`begin`] as a global BPF function.
    fn begin() -> i32;
    /// [`share::make_room`] as a global BPF function.
    fn make_room() -> i32;
    /// [`masquerade`] as a global BPF function.
    fn masquerade(skb: *mut __sk_buff) -> i32;
    /// [`enter`] as a global BPF function.
    fn enter(skb: *mut __sk_buff) -> i32;
    /// [`connection::claim`] as a global BPF function.
    fn claim(skb: *mut __sk_buff, port: u32) -> i32;
    /// [`connection::end_flow`] as a global BPF function.
    fn end_flow();
    /// [`connection::restore`] as a global BPF function.
    fn restore(skb: *mut __sk_buff);
    /// [`connection::void_both`] as a global BPF function.
    fn void_both();
    /// [`refuse::refuse`] as a global BPF function.
    fn refuse(skb: *mut __sk_buff, reason: u32) -> i32;
    /// [`unusual::examine`] as a global BPF function.
    fn examine(skb: *mut __sk_buff, met: u32) -> i32;
    /// [`fragment::hold`] as a global BPF function.
    fn hold(skb: *mut __sk_buff, met: u32) -> i32;
    /// [`icmp::error`] as a global BPF function.
    fn error(skb: *mut __sk_buff, met: u32) -> i32;
    /// [`echo::answer`] as a global BPF function.
    fn echo(skb: *mut __sk_buff, met: u32) -> i32;
}

macro_rules! global_functions {
    (
        $family:ty, $carry:ident, $begin:ident, $make_room:ident, $masquerade:ident, $enter:ident, $claim:ident, $end_flow:ident,
        $restore:ident, $void_both:ident, $refuse:ident,         $examine:ident, $hold:ident, $error:ident, $echo:ident
    ) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $carry(skb: *mut __sk_buff, met: u32) -> i32 {
            carry::<$family>(skb, met)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $begin() -> i32 {
            begin::<$family>()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $make_room() -> i32 {
            make_room::<$family>()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $masquerade(skb: *mut __sk_buff) -> i32 {
            masquerade::<$family>(skb)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $enter(skb: *mut __sk_buff) -> i32 {
            enter::<$family>(skb)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(skb: *mut __sk_buff, port: u32) -> i32 {
            connection::claim::<$family>(skb, port)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $end_flow() -> i32 {
            connection::end_flow::<$family>().is_some() as i32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $restore(skb: *mut __sk_buff) -> i32 {
            connection::restore::<$family>(skb).is_some() as i32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $void_both() -> i32 {
            connection::void_both::<$family>().is_some() as i32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $refuse(skb: *mut __sk_buff, reason: u32) -> i32 {
            refuse::refuse::<$family>(skb, reason)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $examine(skb: *mut __sk_buff, met: u32) -> i32 {
            unusual::examine::<$family>(skb, met)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hold(skb: *mut __sk_buff, met: u32) -> i32 {
            fragment::hold::<$family>(skb, met)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error(skb: *mut __sk_buff, met: u32) -> i32 {
            icmp::error::<$family>(skb, met)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $echo(skb: *mut __sk_buff, met: u32) -> i32 {
            echo::answer::<$family>(skb, met)
        }

        impl Steps for $family {
            #[inline(always)]
            fn carry(skb: *mut __sk_buff, met: u32) -> i32 {
                $carry(skb, met)
            }

            #[inline(always)]
            fn begin() -> i32 {
                $begin()
            }

            #[inline(always)]
            fn make_room() -> i32 {
                $make_room()
            }

            #[inline(always)]
            fn masquerade(skb: *mut __sk_buff) -> i32 {
                $masquerade(skb)
            }

            #[inline(always)]
            fn enter(skb: *mut __sk_buff) -> i32 {
                $enter(skb)
            }

            #[inline(always)]
            fn claim(skb: *mut __sk_buff, port: u32) -> i32 {
                $claim(skb, port)
            }

            #[inline(always)]
            fn end_flow() {
                $end_flow();
            }

            #[inline(always)]
            fn restore(skb: *mut __sk_buff) {
                $restore(skb);
            }

            #[inline(always)]
            fn void_both() {
                $void_both();
            }

            #[inline(always)]
            fn refuse(skb: *mut __sk_buff, reason: u32) -> i32 {
                $refuse(skb, reason)
            }

            #[inline(always)]
            fn examine(skb: *mut __sk_buff, met: u32) -> i32 {
                $examine(skb, met)
            }

            #[inline(always)]
            fn hold(skb: *mut __sk_buff, met: u32) -> i32 {
                $hold(skb, met)
            }

            #[inline(always)]
            fn error(skb: *mut __sk_buff, met: u32) -> i32 {
                $error(skb, met)
            }

            #[inline(always)]
            fn echo(skb: *mut __sk_buff, met: u32) -> i32 {
                $echo(skb, met)
            }
        }
    };
}

global_functions!(
    V4,
    carry4,
    begin4,
    make_room4,
    masquerade4,
    enter4,
    claim4,
    end_flow4,
    restore4,
    void_both4,
    refuse4,
    examine4,
    hold4,
    error4,
    echo4
);
global_functions!(
    V6,
    carry6,
    begin6,
    make_room6,
    masquerade6,
    enter6,
    claim6,
    end_flow6,
    restore6,
    void_both6,
    refuse6,
    examine6,
    hold6,
    error6,
    echo6
);

/// True when the packet begins a new connection on an old entry, or its UDP endpoint stopped serving (S-51).
#[inline(always)]
fn chooses_again<N: Net>(packet: &Packet<N::Addr>, entry: *mut ConnEntry<N::Addr>, now: u32) -> bool {
    // SAFETY: a live element of the map, here and below; other CPUs may write single fields meanwhile, which are
    // each valid on their own.
    let (flags, state, created) = unsafe { ((*entry).flags, (*entry).state, (*entry).created) };
    if flags & (ConnFlags::REPLY | ConnFlags::SOURCE) != 0 {
        return false;
    }
    if packet.is_later_fragment() {
        // Its first one decided.
        return false;
    }
    if packet.is_udp() {
        return !backend_serves::<N>(entry);
    }
    connection::begins_anew(packet, state, clock::since(now, created))
        || (connection::is_syn(packet) && conntrack::syn_needs_endpoint(state) && !backend_serves::<N>(entry))
}

/// The backend row of a flow, if it still is the flow's endpoint.
#[inline(always)]
pub fn backend_of<N: Net>(entry: *mut ConnEntry<N::Addr>) -> Option<Backend<N::Addr>> {
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

/// The first packet of a flow where it comes in: [`READY`], or the verdict on a packet that goes no further or is none of
/// our business.
#[inline(always)]
fn begin<N: Steps>() -> i32 {
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    let (packet, key) = (&scratch.packet, &scratch.key);
    let found = lookup::frontend::<N, _>(&KernelTables, key.dst, key.dst_port, key.protocol)
        // Node ports at loopback addresses are for sockets (S-36). Packets to them come from nobody in order, and the
        // stack, which drops them, has not seen this one yet.
        .filter(|_| !key.dst.is_loopback());
    let outside = packet.tuple.hook == hook::FROM_NET;
    let Some(frontend) = found else {
        return match lookup::classify_address::<N, _>(&KernelTables, key.dst) {
            Unserved::UnknownPort if is_spoofed::<N>(key, outside) => verdict::dropped(Reason::SpoofedSource),
            Unserved::UnknownPort => REFUSE + Reason::UnknownPort as i32,
            Unserved::Unallocated => verdict::dropped(Reason::UnallocatedAddress),
            Unserved::NotOurs => {
                if connection::give_way::<N>(scratch) {
                    cache::store_pass::<N>(scratch);
                }
                verdict::PASS
            }
        };
    };
    let service = frontend.service;
    scratch.now = clock::now();
    events::note_service(scratch, service);
    let (packet, key) = (&scratch.packet, &scratch.key);
    if is_spoofed::<N>(key, outside) {
        stats::service(service, ServiceStat::Dropped);
        return verdict::dropped(Reason::SpoofedSource);
    }
    if packet.flags & tcp::RST != 0 {
        stats::service(service, ServiceStat::Dropped);
        return verdict::dropped(Reason::ResetWithoutFlow);
    }
    let policy = lookup::policy(&KernelTables, service);
    let client = if outside { Client::Outside } else { Client::Pod };
    if !lookup::admits::<N, _>(&KernelTables, frontend, policy, client, key.src) {
        stats::service(service, ServiceStat::Dropped);
        return verdict::dropped(Reason::SourceNotAllowed);
    }
    scratch.choice =
        match select::select::<N>(frontend, policy, client, key.src, Some(key.src_port), scratch.now) {
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
    connection::prepare::<N>(scratch, frontend, policy, client);
    READY
}

/// See [`lookup::is_spoofed`].
#[inline(always)]
fn is_spoofed<N: Net>(key: &Tuple<N::Addr>, outside: bool) -> bool {
    lookup::is_spoofed::<N, _>(&KernelTables, key.src, key.dst, outside)
}

/// Room for the flow whose entry is ready: [`READY`], or the verdict.
#[inline(always)]
fn make_room<N: Steps>() -> i32 {
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    match share::make_room::<N>(scratch) {
        Ok(()) => READY,
        Err(reason) => {
            stats::service(scratch.entry.service, ServiceStat::Dropped);
            verdict::dropped(reason)
        }
    }
}

/// Enters the flow whose entry is ready into the connection table: [`BEGUN`], or the verdict.
#[inline(always)]
fn enter<N: Steps>(skb: *mut __sk_buff) -> i32 {
    let entered = connection::enter::<N>(skb);
    let Some(Scratch { entry, .. }) = N::scratch() else {
        return verdict::dropped(Reason::TableInconsistent);
    };
    match entered {
        Ok(won) => {
            if won {
                share::count::<N>(entry.service, 2);
                if entry.flags & ConnFlags::SOURCE == 0 {
                    stats::connection::<N>(entry.service, entry.backend);
                }
            }
            BEGUN
        }
        Err(reason) => {
            stats::service(entry.service, ServiceStat::Dropped);
            verdict::dropped(reason)
        }
    }
}

/// A packet without an entry where it leaves: [`READY`] when it is the first one of a flow that is to be masqueraded, or
/// the verdict.
#[inline(always)]
fn masquerade<N: Net>(skb: *mut __sk_buff) -> i32 {
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    match masquerade::prepare::<N>(skb, scratch) {
        Ok(()) => READY,
        Err(verdict) => verdict,
    }
}

/// Carries a packet of a flow that the connection table knows; [`UNKNOWN`] otherwise. `met` is the hook's number, with
/// [`BEGINS`] or without.
#[inline(always)]
fn carry<N: Steps>(skb: *mut __sk_buff, met: u32) -> i32 {
    let (at, begins) = (met as u8, met & BEGINS != 0);
    let ingress = hook::is_ingress(at);
    let Some(scratch) = N::scratch() else { return verdict::dropped(Reason::TableInconsistent) };
    if !begins {
        // Otherwise a first look noted them already.
        scratch.key = scratch.packet.tuple;
        scratch.key.hook = 0;
        events::begin(scratch);
        if !ports::may_be_of_a_flow(&scratch.key) {
            if ingress {
                return UNKNOWN;
            }
            // Nor is it to be masqueraded.
            cache::store_pass::<N>(scratch);
            return verdict::PASS;
        }
        scratch.now = clock::now();
    }
    let Some(entry) = N::conns().get_ptr_mut(&scratch.key) else { return UNKNOWN };
    // SAFETY: see `chooses_again`.
    let flags = unsafe { (*entry).flags };
    let reply = flags & ConnFlags::REPLY != 0;
    let source = flags & ConnFlags::SOURCE != 0;
    if ingress && !begins && source && !reply && (at == hook::FROM_POD || connection::is_syn(&scratch.packet))
    {
        // No packet on its way, which would be met where it leaves: the client's own to the endpoint itself. At a network
        // device it may be one on its way, too; `connection::give_way` can tell where it begins a flow.
        return UNKNOWN;
    }
    if ingress && !begins && chooses_again::<N>(&scratch.packet, entry, scratch.now) {
        connection::forget::<N>(scratch, entry);
        return UNKNOWN;
    }
    if !ingress && !begins && source && !reply && masquerade::is_outdated::<N>(scratch, entry) {
        scratch.victim = scratch.key;
        N::end_flow();
        return UNKNOWN;
    }
    if !decide::<N>(skb, at, entry, &mut scratch.answer) {
        cache::store_pass::<N>(scratch);
        return verdict::PASS;
    }
    let direction = if reply { Direction::Reply } else { Direction::Forward };
    let state = connection::follow::<N>(skb, scratch, entry, direction, begins);
    scratch.answer.flags = if reply { FlowEntry::<N::Addr>::REPLY } else { 0 };
    if source {
        scratch.answer.flags |= FlowEntry::<N::Addr>::SOURCE;
    }
    // SAFETY: see `chooses_again`.
    unsafe {
        words::copy(&mut scratch.answer.rewrite, &raw const (*entry).rewrite);
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
    let settled =
        scratch.packet.is_udp() || (conntrack::is_settled(state) && !scratch.packet.changes_state());
    // A later fragment does not tell what kind of checksums its flow has.
    if settled && !scratch.packet.is_later_fragment() {
        cache::store::<N>(scratch);
    }
    forward::finish::<N>(skb, &scratch.answer)
}

/// Decides whether packets of an entry are translated at a hook, and notes how they leave from there.
#[inline(always)]
pub fn decide<N: Net>(
    skb: *mut __sk_buff,
    at: u8,
    entry: *mut ConnEntry<N::Addr>,
    answer: &mut FlowEntry<N::Addr>,
) -> bool {
    // SAFETY: see `chooses_again`.
    let (flags, interface, mac) = unsafe { ((*entry).flags, (*entry).interface, (*entry).mac) };
    let reply = flags & ConnFlags::REPLY != 0;
    let hairpin = flags & ConnFlags::HAIRPIN != 0;
    let source = flags & ConnFlags::SOURCE != 0;
    // Destinations are translated where packets come in, and answers turned back at the client's device; sources the
    // other way round: so the stack in between sees one consistent flow. Unless answers between pods do not go through
    // the stack at all.
    let straight = at == hook::FROM_POD
        && config::redirects()
        && flags & (ConnFlags::NET | ConnFlags::MASQUERADE | ConnFlags::SOURCE) == 0;
    let ingress = hook::is_ingress(at);
    if !(if ingress { reply == source || hairpin || straight } else { reply != source && !hairpin }) {
        return false;
    }
    let (action, interface, mac) = if hairpin {
        (FlowAction::Back, 0, if reply { mac } else { rewrite::source_mac(skb) })
    } else if !straight {
        (FlowAction::Stack, 0, mac)
    } else if reply {
        (if interface != 0 { FlowAction::Peer } else { FlowAction::Stack }, interface, mac)
    } else {
        way::<N>(entry)
    };
    answer.action = action as u8;
    answer.interface = interface;
    answer.mac = mac;
    true
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
