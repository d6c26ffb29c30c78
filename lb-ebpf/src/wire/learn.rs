//! Flows that the flow cache has no answer for: what the programs of the stack would do with the packet, all of them.
//!
//! Tables are read in the order in which a packet would meet the programs: as it comes in ([`crate::hook::FROM_NET`]), and
//! as it would leave. Where they would do more than rewrite it (choose, create, restore, follow a change), it is theirs.

use aya_ebpf::bindings::{bpf_fib_lookup, xdp_md};
use lb_common::address::Address;
use lb_common::checksum::{self, Sum};
use lb_common::conntrack;
use lb_common::layout::{BackendFlags, ConnEntry, ConnFlags, WireAction, WireFlow};
use lb_common::lookup::{self, Unserved};
use lb_common::proto;
use lb_common::tuple::{Rewrite, Tuple};

use crate::access::{self, ETH_LEN};
use crate::cache::Place;
use crate::tables::KernelTables;
use crate::wire::family::Wire;
use crate::wire::way::{self, Site};
use crate::{clock, miss};

/// Returned by [`learn`]: the flow cache has the answer now, for this packet as well.
pub const SERVED: i32 = 1;
/// Returned by [`learn`]: this packet is for the stack.
const PASSED: i32 = 0;

/// Seconds of which the stack sees a flow for [`SHOWN`].
const PERIOD: u32 = 32;
/// Longer than the flow cache answers by itself, so that no flow with packets misses them.
const SHOWN: u32 = 5;

/// Where a flow is worked on.
#[repr(C)]
pub struct Scratch<A> {
    /// The packet's flow, with the hook's number.
    pub tuple: Tuple<A>,
    /// Its place in the flow cache.
    pub place: Place,
    /// Its key in the connection table.
    pub key: Tuple<A>,
    /// Its key where it would leave.
    pub middle: Tuple<A>,
    /// Key of the other direction.
    pub other_key: Tuple<A>,
    /// The answer.
    pub flow: WireFlow<A>,
    /// A question about a route.
    pub fib: bpf_fib_lookup,
}

/// What was found out about a flow.
enum Lesson {
    /// Its packets are to be served, from this one on.
    Serve,
    /// Its packets are to be served, from the next one on.
    Next,
    /// Its packets are for the stack, until something changes.
    Never,
    /// This packet is for the stack.
    NotNow,
}

/// Both entries of a pair.
struct Pair<A> {
    entry: *mut ConnEntry<A>,
    other: *mut ConnEntry<A>,
}

impl<A> Pair<A> {
    /// Shows that the flow lives, as [`crate::connection::follow`] does.
    #[inline(always)]
    fn touch(&self, now: u32) {
        // SAFETY: live elements of the map; other CPUs may write the same fields, each valid on its own.
        unsafe {
            (*self.entry).last_seen = now;
            (*self.other).last_seen = now;
        }
    }
}

/// Looks for the answer for the flow in the working memory and remembers it: [`SERVED`] or [`PASSED`].
#[inline(always)]
pub fn learn<N: Wire>(frame: *mut xdp_md) -> i32 {
    let Some(scratch) = N::wire_scratch() else { return PASSED };
    match examine::<N>(frame, scratch) {
        Lesson::Serve => {
            store::<N>(scratch);
            SERVED
        }
        Lesson::Next => {
            store::<N>(scratch);
            PASSED
        }
        Lesson::Never => {
            scratch.flow.action = WireAction::Pass as u8;
            store::<N>(scratch);
            PASSED
        }
        Lesson::NotNow => PASSED,
    }
}

#[inline(always)]
fn examine<N: Wire>(frame: *mut xdp_md, scratch: &mut Scratch<N::Addr>) -> Lesson {
    const KIND: u8 = ConnFlags::REPLY | ConnFlags::SOURCE;
    const SOURCE: u8 = ConnFlags::SOURCE;
    const REPLY: u8 = ConnFlags::REPLY;
    let Some(start) = access::at::<N::Frame>(frame, 0) else { return Lesson::NotNow };
    // SAFETY: `at` checked all headers that every packet has.
    let length = unsafe { N::length(start.cast::<u8>().add(ETH_LEN), access::ip_bytes(frame)) };
    let Some(length) = length else { return Lesson::NotNow };
    let time = clock::now();
    scratch.key = scratch.tuple;
    scratch.key.hook = 0;
    let Some(entry) = N::conns().get_ptr_mut(&scratch.key) else { return stranger::<N>(&scratch.key) };
    // SAFETY: a live element of the map, here and below; single fields, each valid on its own.
    let flags = unsafe { (*entry).flags };
    if flags & ConnFlags::HAIRPIN != 0 {
        return Lesson::Never;
    }
    scratch.middle = scratch.key;
    // What comes in is a client's packet, whose destination is translated; an answer to a masqueraded one, whose destination
    // is turned back; or an answer that is only looked at where it leaves.
    let (reply, first) = match flags & KIND {
        0 if flags & ConnFlags::NET != 0 => (false, true),
        KIND => (true, true),
        REPLY if flags & ConnFlags::NET != 0 => (true, false),
        _ => return Lesson::Never,
    };
    let Some(coming) = settled::<N>(scratch.key.protocol, &mut scratch.other_key, entry) else {
        return Lesson::NotNow;
    };
    if first {
        // SAFETY: see above.
        unsafe {
            let Rewrite { src, dst, src_port, dst_port, .. } = (*entry).rewrite;
            scratch.middle = Tuple::new(src, dst, src_port, dst_port, scratch.key.protocol);
        }
    }
    let leaving = if first { N::conns().get_ptr_mut(&scratch.middle) } else { None };
    // SAFETY: see above.
    let found = leaving.map(|leaving| unsafe { (*leaving).flags }).unwrap_or(0);
    let masquerade = flags & ConnFlags::MASQUERADE != 0;
    let leaves = match leaving {
        Some(leaving) if reply => {
            if found & KIND != REPLY || found & ConnFlags::HAIRPIN != 0 || found & ConnFlags::NET == 0 {
                return Lesson::Never;
            }
            Some(leaving)
        }
        // The other entry was evicted, and is restored when the next packet of the client comes in.
        None if reply && first => return Lesson::NotNow,
        None if reply => None,
        Some(leaving) if masquerade => {
            // SAFETY: see above. The tables may say meanwhile that the flow is not to be masqueraded.
            if found & KIND != SOURCE || unsafe { (*coming.other).flags } & ConnFlags::MASQUERADE == 0 {
                return Lesson::NotNow;
            }
            Some(leaving)
        }
        // Not made yet, or its endpoint is a process of this node.
        None if masquerade => return Lesson::NotNow,
        // Another flow's, which translates what leaves.
        Some(_) if found & KIND == SOURCE || found & KIND == REPLY => return Lesson::Never,
        _ => None,
    };
    let second = match leaves {
        Some(leaving) => match settled::<N>(scratch.key.protocol, &mut scratch.other_key, leaving) {
            Some(second) => Some(second),
            None => return Lesson::NotNow,
        },
        None => None,
    };
    // Whose packets are counted: of the pair that translates the destination.
    let counted = if reply { leaves.unwrap_or(entry) } else { entry };
    let last = leaves.unwrap_or(entry);
    // SAFETY: see above.
    unsafe {
        let Rewrite { src, dst, src_port, dst_port, .. } = (*last).rewrite;
        scratch.flow.rewrite = Rewrite::new(&scratch.key, src, dst, src_port, dst_port);
        scratch.flow.service = (*counted).service;
        scratch.flow.backend = (*counted).backend;
        scratch.flow.reply = reply as u8;
    }
    let addresses = Sum::new().add_difference(scratch.flow.rewrite.address_difference);
    scratch.flow.rewrite.address_difference = addresses.add_difference(N::HOP).fold();
    let came = scratch.key.dst.add_to(scratch.key.src.add_to(Sum::new()));
    scratch.flow.pseudo_header = checksum::pseudo_header(came, scratch.key.protocol, 0);
    let mut site = Site::Beyond;
    if !reply {
        // A TCP flow stays with an endpoint that is gone from the tables; where that is, only routing knows.
        let Some(backend) = miss::backend_of::<N>(entry) else { return Lesson::Never };
        if scratch.key.protocol == proto::UDP && backend.flags & BackendFlags::SERVING == 0 {
            return Lesson::NotNow;
        }
        match way::site(&backend) {
            Some(found) => site = found,
            None => return Lesson::Never,
        }
    }
    match way::find::<N>(frame, scratch, site, length) {
        way::Found::Nothing => return Lesson::Never,
        way::Found::TooLong => return Lesson::NotNow,
        way::Found::Way => {}
    }
    // SAFETY: see above.
    if shows_the_stack(time.wrapping_sub(unsafe { (*counted).created })) {
        return Lesson::Next;
    }
    coming.touch(time);
    if let Some(second) = second {
        second.touch(time);
    }
    Lesson::Serve
}

/// A flow that the connection tables do not know: for the stack, where it may begin; for as long as frontends stay as they
/// are when no Service has its destination.
#[inline(always)]
fn stranger<N: Wire>(key: &Tuple<N::Addr>) -> Lesson {
    let found = lookup::frontend::<N, _>(&KernelTables, key.dst, key.dst_port, key.protocol)
        .filter(|_| !key.dst.is_loopback());
    if found.is_some() {
        return Lesson::NotNow;
    }
    match lookup::classify_address::<N, _>(&KernelTables, key.dst) {
        Unserved::NotOurs => Lesson::Never,
        Unserved::UnknownPort | Unserved::Unallocated => Lesson::NotNow,
    }
}

/// The pair of an entry when its flow is one whose ends have agreed on it, so that a packet of its middle changes nothing.
/// `None` as well when the other entry was evicted.
#[inline(always)]
fn settled<N: Wire>(
    protocol: u8,
    other_key: &mut Tuple<N::Addr>,
    entry: *mut ConnEntry<N::Addr>,
) -> Option<Pair<N::Addr>> {
    // SAFETY: a live element of the map, here and below.
    let reply = unsafe {
        *other_key = (*entry).rewrite.reply(protocol);
        (*entry).flags & ConnFlags::REPLY != 0
    };
    let other = N::conns().get_ptr_mut(&*other_key)?;
    let forward = if reply { other } else { entry };
    // SAFETY: as above.
    let state = unsafe { (*forward).state };
    conntrack::is_settled(state).then_some(Pair { entry, other })
}

/// True when a flow of that age is to be seen by the stack for a moment: its neighbours are believed for as long as packets
/// go to them by the stack, which asks them now and then whether they are still there (`neigh_event_send`,
/// include/net/neighbour.h); and whoever follows connections there sees that this one lives.
#[inline(always)]
fn shows_the_stack(age: u32) -> bool {
    age % PERIOD < SHOWN
}

/// Remembers the answer in the working memory, see [`crate::cache::store`].
#[inline(always)]
fn store<N: Wire>(scratch: &mut Scratch<N::Addr>) {
    let Scratch { tuple, place, flow, .. } = scratch;
    let Some(set) = N::wire_flows().get_ptr_mut(place.set()) else { return };
    flow.tuple = *tuple;
    flow.tag = place.tag;
    flow.stamp = clock::jiffies();
    // SAFETY: an element of the map; only this CPU touches it, and programs do not interrupt each other.
    unsafe {
        let (first, second) = (&raw mut (*set)[0], &raw mut (*set)[1]);
        let older = flow.stamp.wrapping_sub((*first).stamp) >= flow.stamp.wrapping_sub((*second).stamp);
        let way = (*first).tuple == *tuple || (older && (*second).tuple != *tuple);
        *(if way { first } else { second }) = *flow;
    }
}
