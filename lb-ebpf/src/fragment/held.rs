//! Later fragments that come before their first one: held until it comes, because it alone says where they go.
//!
//! A held fragment is a copy in a row of [`HELD`]. When the first one comes, it goes back to where it was met, and the held
//! ones after it, each to its own device: they all come by our programs again, which know the ports now. Where packets come
//! in they queue up as if they had just arrived (`netif_rx`); where they go out the program runs again inside the helper.
//! So nothing in the working memory is to be trusted after the first of them left.
//!
//! Whoever works on a row has its lock, and nobody waits for one. No fragment is left behind when both come at the same
//! moment: the first one's ports are noted before the rows are searched, and are looked for again after a row is filled.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use lb_common::address::Ip6;
use lb_common::layout::{FragmentKey, HeldFragment, V6};
use lb_common::lookup::{self, Unserved};
use lb_common::reason::Reason;

use super::has_ports;
use crate::access::{self, ETH_LEN};
use crate::clock;
use crate::hook::{self, FROM_NET};
use crate::maps::{HELD, HELD_LOCKS, Scratch};
use crate::net::Net;
use crate::tables::KernelTables;
use crate::unusual::{self, CARRY};
use crate::verdict;

/// Returned by [`keep_fragment`] and [`fill_row`]: no row. Rows have numbers from 0 on.
const NOT_KEPT: i32 = -1;
/// Returned by [`fill_row`].
const KEPT: i32 = 0;

#[inline(always)]
fn lock(row: u32) -> bool {
    HELD_LOCKS.insert(row, 0, BPF_NOEXIST as u64).is_ok()
}

#[inline(always)]
fn unlock(row: u32) {
    let _ = HELD_LOCKS.remove(row);
}

/// The key of a datagram as the table has it.
#[inline(always)]
fn key_of<N: Net>(key: &FragmentKey<N::Addr>) -> FragmentKey<Ip6> {
    let FragmentKey { src, dst, id, protocol, zero } = *key;
    FragmentKey { src: N::mapped(src), dst: N::mapped(dst), id, protocol, zero }
}

/// Puts the key of the packet's datagram where the functions of both families find it.
#[inline(always)]
fn publish_key<N: Net>(key: &FragmentKey<N::Addr>) -> Option<()> {
    let key = key_of::<N>(key);
    V6::scratch()?.fragment = key;
    Some(())
}

/// Holds the later fragment in the working memory, if it may wait; [`CARRY`] when its first one came in the meantime.
///
/// Pods' fragments may all wait: without its first one no datagram is worth anything to its receiver. At a network device
/// those may that are addressed to us; of what goes through the node for others, the first may go through another node.
#[inline(always)]
pub fn hold<N: Net>(skb: *mut __sk_buff, met: u32) -> i32 {
    let at = met as u8;
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    let dst = scratch.headers.dst;
    if hook::is_ingress(at) {
        match lookup::classify_address::<N, _>(&KernelTables, dst) {
            Unserved::UnknownPort => {}
            Unserved::Unallocated => return verdict::dropped(Reason::UnallocatedAddress),
            Unserved::NotOurs if at == FROM_NET && !lookup::is_node_address::<N, _>(&KernelTables, dst) => {
                return verdict::PASS;
            }
            Unserved::NotOurs => {}
        }
    }
    if publish_key::<N>(&scratch.fragment).is_none() {
        return verdict::PASS;
    }
    let row = keep_fragment(skb, met);
    if row < 0 {
        return unusual::odd::<N>(at, dst, Reason::FragmentsFull);
    }
    let (Some(scratch), Some(Scratch { held, .. })) = (N::scratch(), V6::scratch()) else {
        return verdict::PASS;
    };
    if has_ports::<N>(scratch, at) && take_back(row as u32, *held) { CARRY } else { verdict::SHOT }
}

/// Copies the fragment whose key is in the working memory of IPv6 into a free row: its number, with the moment in that working
/// memory, or [`NOT_KEPT`]. A global BPF function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn keep_fragment(skb: *mut __sk_buff, met: u32) -> i32 {
    let Some(Scratch { fragment: key, .. }) = V6::scratch() else { return NOT_KEPT };
    let first = HeldFragment::row(key, 0);
    let now = clock::nanos();
    for place in 0..HeldFragment::WINDOW {
        let row = HeldFragment::next(first, place);
        let Some(held) = HELD.get_ptr(row) else { break };
        // SAFETY: a live element; volatile because other CPUs change it at any moment. What it says is not relied on.
        let since = unsafe { (&raw const (*held).since).read_volatile() };
        if !HeldFragment::waits(since, now) && fill_row(skb, row, met) == KEPT {
            return row as i32;
        }
    }
    NOT_KEPT
}

/// Copies the fragment into a row, unless that is in use: [`KEPT`], or [`NOT_KEPT`]. A global BPF function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fill_row(skb: *mut __sk_buff, row: u32, met: u32) -> i32 {
    if !lock(row) {
        return NOT_KEPT;
    }
    let kept = fill(skb, row, met as u8);
    unlock(row);
    if kept.is_some() { KEPT } else { NOT_KEPT }
}

#[inline(always)]
fn fill(skb: *mut __sk_buff, row: u32, at: u8) -> Option<()> {
    let held = HELD.get_ptr_mut(row)?;
    let scratch = V6::scratch()?;
    let now = clock::nanos();
    let length = access::len(skb);
    if length == 0 || length as usize > HeldFragment::FRAME {
        return None;
    }
    // SAFETY: a live element that is this CPU's alone while it has the lock; the helper fills as many bytes as the row has.
    unsafe {
        let since = (*held).since;
        if HeldFragment::waits(since, now) {
            return None;
        }
        if since != 0 {
            // Its first one never came.
            verdict::count(Reason::Fragment);
        }
        (*held).since = 0;
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*held).frame).cast(), length) != 0 {
            return None;
        }
        (*held).key = scratch.fragment;
        (*held).interface = access::interface(skb);
        (*held).length = length;
        (*held).hook = at;
        (&raw mut (*held).since).write_volatile(now);
    }
    scratch.held = now;
    Some(())
}

/// Frees a row again that was filled at that moment. False when it is somebody else's by now: the fragment is on its way.
#[inline(always)]
fn take_back(row: u32, since: u64) -> bool {
    if !lock(row) {
        return false;
    }
    let taken = match HELD.get_ptr_mut(row) {
        // SAFETY: see `fill`.
        Some(held) => unsafe {
            let ours = (*held).since == since;
            if ours {
                (*held).since = 0;
            }
            ours
        },
        None => false,
    };
    unlock(row);
    taken
}

/// Lets go of the fragments that wait for the first one in the working memory, if there are any: it goes back to where it
/// was met, and they follow. [`CARRY`] when none waits.
#[inline(always)]
pub fn release<N: Net>(skb: *mut __sk_buff, met: u32) -> i32 {
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    if publish_key::<N>(&scratch.fragment).is_none() {
        return verdict::PASS;
    }
    release_fragments(skb, met)
}

/// See [`release`]; the key is in the working memory of IPv6. A global BPF function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn release_fragments(skb: *mut __sk_buff, met: u32) -> i32 {
    let at = met as u8;
    let Some(Scratch { fragment: key, held: places, .. }) = V6::scratch() else { return verdict::PASS };
    let first = HeldFragment::row(key, 0);
    *places = 0;
    for place in 0..HeldFragment::WINDOW {
        if claim_row(HeldFragment::next(first, place), met) != 0 {
            *places |= 1 << place;
        }
    }
    // Those rows are locked, so that the programs that run from here on do not find them.
    let places = *places;
    if places == 0 {
        return CARRY;
    }
    let direction = if hook::is_ingress(at) { BPF_F_INGRESS } else { 0 };
    // SAFETY: a helper call on the context.
    if unsafe { bpf_clone_redirect(skb, access::interface(skb), direction as u64) } < 0 {
        verdict::count(Reason::RewriteFailed);
    }
    for place in 0..HeldFragment::WINDOW {
        if places & (1 << place) != 0 {
            send_fragment(skb, HeldFragment::next(first, place), direction);
        }
    }
    verdict::SHOT
}

/// Locks a row if a fragment waits there for the first one whose key is in the working memory of IPv6: 1, or 0. A global BPF
/// function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_row(row: u32, met: u32) -> u32 {
    let at = met as u8;
    let (Some(Scratch { fragment: key, .. }), Some(held)) = (V6::scratch(), HELD.get_ptr(row)) else {
        return 0;
    };
    // SAFETY: a live element. Looked at twice: without the lock, to see whether to try, and with it.
    let wanted = || unsafe {
        let since = (&raw const (*held).since).read_volatile();
        since != 0 && HeldFragment::waits(since, clock::nanos()) && (*held).hook == at && (*held).key == *key
    };
    if !wanted() || !lock(row) {
        return 0;
    }
    if wanted() {
        return 1;
    }
    unlock(row);
    0
}

/// Sends a copy of what a row holds, written over this packet, by the row's device, and frees the row and its lock, which the
/// caller has. A global BPF function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_fragment(skb: *mut __sk_buff, row: u32, direction: u32) -> i32 {
    if send(skb, row, direction).is_none() {
        verdict::count(Reason::RewriteFailed);
    }
    unlock(row);
    verdict::SHOT
}

#[inline(always)]
fn send(skb: *mut __sk_buff, row: u32, direction: u32) -> Option<()> {
    /// A sum that the device made over the packet changes with what the packet becomes.
    const FLAGS: u64 = (BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH) as u64;
    const ETHERNET: u32 = ETH_LEN as u32;
    let held = HELD.get_ptr_mut(row)?;
    // SAFETY: a live element that is this CPU's alone while it has the lock; helper calls that read no more of the row
    // than it has. The device's sum does not reach to the Ethernet header.
    unsafe {
        let (length, interface) = ((*held).length, (*held).interface);
        (&raw mut (*held).since).write_volatile(0);
        if length <= ETHERNET || length as usize > HeldFragment::FRAME {
            return None;
        }
        let frame = (&raw const (*held).frame).cast::<u8>();
        let done = bpf_skb_change_tail(skb, length, 0) == 0
            && bpf_skb_store_bytes(skb, 0, frame.cast(), ETHERNET, 0) == 0
            && bpf_skb_store_bytes(skb, ETHERNET, frame.add(ETH_LEN).cast(), length - ETHERNET, FLAGS) == 0
            && bpf_clone_redirect(skb, interface, direction as u64) >= 0;
        done.then_some(())
    }
}
