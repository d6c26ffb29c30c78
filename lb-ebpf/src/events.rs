//! Records for `lb-agent watch`: connections that begin and end, packets refused and dropped.
//!
//! Nothing is recorded unless somebody watches ([`Control::Watch`]), and never for a packet of an established flow. Steps
//! note what is to be told in the working memory; it is written down once, at the end of a packet's way.

use aya_ebpf::bindings::__sk_buff;
use lb_common::address::{Address, Ip6};
use lb_common::byteorder::Be16;
use lb_common::handshake::{self, Histogram, Moment};
use lb_common::layout::{
    BackendStat, ConnFlags, Control, Event, EventKind, EventRate, FlowEntry, Row as _, ServiceStat, Watch,
};
use lb_common::lookup::Tables as _;
use lb_common::tuple::Tuple;

use crate::maps::{EVENT_RATES, EVENTS, HANDSHAKES, SERVICE_STATS, Scratch, WATCHED};
use crate::net::Net;
use crate::tables::KernelTables;
use crate::{access, clock, verdict};

/// Added to what is told: the packet is known by its headers alone.
const BY_HEADERS: u32 = 1 << 16;

/// What a packet's steps have to tell; 0 for nothing.
#[repr(C)]
pub struct Story {
    /// Number of an [`EventKind`], and a state above it.
    told: u32,
    /// Microseconds of a handshake.
    micros: u32,
    /// Index of the Service port that the packet was for.
    service: u32,
}

/// Forgets what an earlier packet had to tell.
#[inline(always)]
pub fn begin<A>(scratch: &mut Scratch<A>) {
    scratch.story = Story { told: 0, micros: 0, service: 0 };
}

/// Notes the Service port that a packet without a flow is for.
#[inline(always)]
pub fn note_service<A>(scratch: &mut Scratch<A>, service: u32) {
    scratch.story.service = service;
}

/// Notes what became of the first packet of a flow.
#[inline(always)]
pub fn note<A>(scratch: &mut Scratch<A>, kind: EventKind) {
    scratch.story.told = kind as u32;
}

/// Notes the transition of a flow to another state, and counts an answer to a SYN. `entry` is the flow's forward entry.
#[inline(always)]
pub fn note_transition<N: Net>(
    story: &mut Story,
    entry: *mut lb_common::layout::ConnEntry<N::Addr>,
    old: u8,
    new: u8,
) {
    // SAFETY: a live element of the map; each field is valid on its own.
    let (flags, service, backend, created) = unsafe {
        let began = Moment { second: (*entry).created, fraction: (*entry).created_fraction };
        ((*entry).flags, (*entry).service, (*entry).backend, began)
    };
    if flags & ConnFlags::SOURCE != 0 {
        // The pair that translates the destination tells.
        return;
    }
    if let Some(kind) = EventKind::of_transition(old, new) {
        story.told = kind as u32 | (new as u32) << 8;
    }
    if handshake::is_answer(old, new) {
        story.micros = Moment::of_nanos(clock::nanos()).micros_since(created);
        count::<N>(service, backend, story.micros);
    }
}

/// Counts an answered connection.
#[inline(always)]
fn count<N: Net>(service: u32, backend: u32, micros: u32) {
    // SAFETY: per-CPU rows, here and below; only this CPU writes them. The indices are below the rows' lengths.
    unsafe {
        if let Some(row) = HANDSHAKES.get_ptr_mut(0) {
            let row = &mut *row;
            if let Some(count) = row.get_mut(Histogram::bucket(micros)) {
                *count += 1;
            }
            row[Histogram::SUM] += micros as u64;
        }
        if let Some(row) = SERVICE_STATS.get_ptr_mut(service) {
            (*row)[ServiceStat::Handshakes as usize] += 1;
            (*row)[ServiceStat::HandshakeMicros as usize] += micros as u64;
        }
        if let Some(row) = N::backend_stats().get_ptr_mut(backend) {
            (*row)[BackendStat::Handshakes as usize] += 1;
            (*row)[BackendStat::HandshakeMicros as usize] += micros as u64;
        }
    }
}

/// Tells what the steps had to tell of a packet that the tables carried, once it has its verdict.
#[inline(always)]
pub fn tell<N: Tell>(skb: *mut __sk_buff, verdict: i32) {
    let Some(scratch) = N::scratch() else { return };
    let told = scratch.story.told;
    let told = if told == 0 && verdict == verdict::SHOT { EventKind::Dropped as u32 } else { told };
    if told != 0 && watch().kinds >> (told as u8 & 7) & 1 != 0 {
        N::tell(skb, told);
    }
}

/// Forgets why an earlier packet was dropped.
#[inline(always)]
pub fn begin_unusual() {
    verdict::forget();
}

/// Notes what could be read of a packet whose headers could not: its destination.
#[inline(always)]
pub fn note_unreadable<N: Net>(scratch: &mut Scratch<N::Addr>, dst: N::Addr) {
    (scratch.headers.src, scratch.headers.dst, scratch.headers.protocol) = (N::Addr::UNSPECIFIED, dst, 0);
}

/// Tells of an unusual packet that was dropped before it was one of a flow. One that goes no further for no reason that is
/// counted was not: it waits for others of its datagram, or they left together.
#[inline(always)]
pub fn tell_unusual<N: Tell>(skb: *mut __sk_buff, verdict: i32) {
    const DROPPED: u32 = EventKind::Dropped as u32;
    if verdict == verdict::SHOT && watch().kinds >> DROPPED & 1 != 0 && verdict::last() != verdict::NO_REASON
    {
        N::tell(skb, DROPPED | BY_HEADERS);
    }
}

#[inline(always)]
fn watch() -> Watch {
    Watch::decode(KernelTables.control(Control::Watch as u32).map_or(0, |row| row.word(0)))
}

/// Telling, by address family.
pub trait Tell: Net {
    /// [`write`] as a global BPF function.
    fn tell(skb: *mut __sk_buff, told: u32);
}

macro_rules! global_function {
    ($family:ty, $tell:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $tell(skb: *mut __sk_buff, told: u32) -> i32 {
            write::<$family>(skb, told)
        }

        impl Tell for $family {
            #[inline(always)]
            fn tell(skb: *mut __sk_buff, told: u32) {
                $tell(skb, told);
            }
        }
    };
}

global_function!(lb_common::layout::V4, tell4);
global_function!(lb_common::layout::V6, tell6);

/// Writes a record, if it is wanted and not too many are. Always 0: a global function has to return something.
#[inline(always)]
fn write<N: Net>(skb: *mut __sk_buff, told: u32) -> i32 {
    let (watch, kind) = (watch(), told as u8);
    let nanos = clock::nanos();
    let second = (nanos / clock::SECOND) as u32;
    let Some(scratch) = N::scratch() else { return 0 };
    if !watch.wants(kind, second) {
        return 0;
    }
    let flows = kind == EventKind::Answered as u8 || kind == EventKind::Closed as u8;
    let opened = kind == EventKind::Opened as u8;
    let service = match (flows, opened) {
        (true, _) => scratch.answer.service,
        (_, true) => scratch.entry.service,
        _ => scratch.story.service,
    };
    if watch.services && WATCHED.get_ptr(&service).is_none() {
        return 0;
    }
    let Some(rate) = EVENT_RATES.get_ptr_mut(0) else { return 0 };
    // SAFETY: a per-CPU row; only this CPU writes it.
    let rate = unsafe { &mut *rate };
    if rate[EventRate::SECOND] != second as u64 {
        rate[EventRate::SECOND] = second as u64;
        rate[EventRate::COUNT] = 0;
    }
    if rate[EventRate::COUNT] >= watch.rate as u64 {
        rate[EventRate::LOST] += 1;
        return 0;
    }
    let Some(mut record) = EVENTS.reserve::<Event>(0) else {
        rate[EventRate::LOST] += 1;
        return 0;
    };
    rate[EventRate::COUNT] += 1;
    let reply = flows && scratch.answer.flags & FlowEntry::<N::Addr>::REPLY != 0;
    let client: &Tuple<N::Addr> = if reply { &scratch.other_key } else { &scratch.key };
    let nowhere = (N::Addr::UNSPECIFIED, Be16::from_raw(0));
    let (endpoint, endpoint_port) = match (flows, opened) {
        (true, _) if reply => (scratch.key.src, scratch.key.src_port),
        (true, _) => (scratch.answer.rewrite.dst, scratch.answer.rewrite.dst_port),
        (_, true) => (scratch.entry.rewrite.dst, scratch.entry.rewrite.dst_port),
        _ => nowhere,
    };
    let reason = if flows || opened { 0 } else { verdict::last() as u8 };
    let by_headers = told & BY_HEADERS != 0;
    let (src, dst, protocol) = if by_headers {
        (scratch.headers.src, scratch.headers.dst, scratch.headers.protocol)
    } else {
        (client.src, client.dst, client.protocol)
    };
    let none = Be16::from_raw(0);
    record.write(Event {
        nanos,
        client: N::mapped(src),
        frontend: N::mapped(dst),
        endpoint: mapped_or_nothing::<N>(endpoint),
        service,
        micros: scratch.story.micros,
        interface: access::interface(skb),
        client_port: if by_headers { none } else { client.src_port },
        frontend_port: if by_headers { none } else { client.dst_port },
        endpoint_port,
        protocol,
        kind,
        reason,
        state: (told >> 8) as u8,
        zero: 0,
    });
    record.submit(0);
    0
}

#[inline(always)]
fn mapped_or_nothing<N: Net>(address: N::Addr) -> Ip6 {
    if address == N::Addr::UNSPECIFIED { Ip6::UNSPECIFIED } else { N::mapped(address) }
}
