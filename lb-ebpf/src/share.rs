//! Fair shares of the connection tables ([`lb_common::share`]): who has much of a table that is nearly full begins a flow in
//! the place of one of its own.
//!
//! The agent counts entries every few seconds; in between programs add what they insert and remove. What the kernel evicts
//! nobody tells, so that the counts are rather too high until the agent counts again.

use lb_common::address::Address;
use lb_common::conntrack;
use lb_common::layout::{ConnEntry, ConnFlags, Control, ServiceStat};
use lb_common::lookup::Tables as _;
use lb_common::reason::Reason;
use lb_common::share::{self, Growth};
use lb_common::tuple::Tuple;

use crate::maps::{RECENT_HEADS, SHARES, Scratch};
use crate::miss::Steps;
use crate::net::Net;
use crate::tables::KernelTables;
use crate::{clock, config, stats, words};

/// Row of the totals.
const TOTAL: u32 = 0;

/// Makes sure that the flow whose entry is ready in the working memory may begin: ends a recent one of its Service for it, if
/// that is the condition.
///
/// # Errors
/// [`Reason::ConnectionTableFull`] when there is none, and the Service has more than its share already.
#[inline(always)]
pub fn make_room<N: Steps>(scratch: &mut Scratch<N::Addr>) -> Result<(), Reason> {
    let service = scratch.entry.service;
    let growth = growth::<N>(service, scratch.now);
    if matches!(growth, Growth::Free) {
        return Ok(());
    }
    let bound = matches!(growth, Growth::Bound);
    if recycle::<N>(scratch, service, bound) || !bound { Ok(()) } else { Err(Reason::ConnectionTableFull) }
}

/// Notes entries that were inserted, or removed (a negative number).
#[inline(always)]
pub fn count<N: Net>(service: u32, entries: i64) {
    add::<N>(service, entries);
    add::<N>(TOTAL, entries);
}

#[inline(always)]
fn add<N: Net>(row: u32, entries: i64) {
    if let Some(row) = SHARES.get_ptr_mut(row) {
        // SAFETY: a valid element, and an index below its length; atomic because other CPUs and the agent add as well.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
                (&raw mut (*row)[N::Addr::V6 as usize]),
                entries as u64,
            );
        }
    }
}

#[inline(always)]
fn entries<N: Net>(row: u32) -> i64 {
    // SAFETY: as in `add`; volatile because others change it at any moment.
    SHARES
        .get_ptr(row)
        .map_or(0, |row| unsafe { (&raw const (*row)[N::Addr::V6 as usize]).read_volatile() as i64 })
}

#[inline(always)]
fn growth<N: Net>(service: u32, now: u32) -> Growth {
    use lb_common::layout::Row as _;
    let word = |index: Control| KernelTables.control(index as u32).map_or(0, |row| row.word(0));
    let counted = word(Control::Counted) as u32;
    // Without an agent that counts, evictions and expiry make the counts meaningless.
    if counted == 0 || now.wrapping_sub(counted) as i32 > share::STALE as i32 {
        return Growth::Free;
    }
    let sharers = word(Control::Sharers) >> if N::Addr::V6 { 32 } else { 0 };
    share::growth(config::connections(), entries::<N>(TOTAL), entries::<N>(service), sharers as u32)
}

/// Ends one of the Service's recent flows and notes the new one in its place in the ring; or in that of a flow that had
/// ended already. False when the flows at hand may not end or are of other Services: then a Service that is not `bound` has
/// the new flow noted in the place of one of these.
#[inline(always)]
fn recycle<N: Steps>(scratch: &mut Scratch<N::Addr>, service: u32, bound: bool) -> bool {
    let ring = share::ring_of(service);
    let family = if N::Addr::V6 { share::RINGS } else { 0 };
    let Some(head) = RECENT_HEADS.get_ptr_mut(family + ring) else { return false };
    let length = config::recent_length();
    // SAFETY: a valid element; volatile because other CPUs add. Two that read the same number try the same places.
    let first = unsafe { head.read_volatile() } as u32;
    for attempt in 0..share::TRIES {
        // SAFETY: as above; atomic for the same reason.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(head, 1);
        }
        let index = ring * length + (first.wrapping_add(attempt) & (length - 1));
        let Some(place) = N::recent().get_ptr_mut(index) else { return false };
        // SAFETY: a valid element. Another CPU may write it meanwhile: a key of two halves is nobody's.
        unsafe { words::copy(&mut scratch.victim, place) };
        let Some(entry) = N::conns().get_ptr_mut(&scratch.victim) else {
            note(place, &scratch.key);
            return true;
        };
        if may_end(entry, service) {
            note(place, &scratch.key);
            N::end_flow();
            stats::service(service, ServiceStat::Recycled);
            return true;
        }
        if !bound && attempt == share::TRIES - 1 {
            note(place, &scratch.key);
        }
    }
    false
}

#[inline(always)]
fn note<A: Copy>(place: *mut Tuple<A>, key: &Tuple<A>) {
    // SAFETY: a valid element of an array map, see `recycle`.
    unsafe { words::copy(place, key) };
}

#[inline(always)]
fn may_end<A>(entry: *mut ConnEntry<A>, of: u32) -> bool {
    // SAFETY: a live element of the map; other CPUs may write single fields meanwhile, which are each valid on their own.
    let (flags, state, service, created, last_seen) =
        unsafe { ((*entry).flags, (*entry).state, (*entry).service, (*entry).created, (*entry).last_seen) };
    service == of
        && flags & (ConnFlags::REPLY | ConnFlags::SOURCE) == 0
        && conntrack::is_recyclable(state, clock::since(last_seen, created))
}
