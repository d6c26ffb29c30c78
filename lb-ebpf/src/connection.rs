//! The connection tables: creating, following and forgetting flows.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use lb_common::byteorder::Be16;
use lb_common::conntrack::{self, Direction, State};
use lb_common::layout::{ConnEntry, ConnFlags, ServiceStat};
use lb_common::reason::Reason;
use lb_common::tuple::{Rewrite, Tuple};

use crate::access;
use crate::maps::Scratch;
use crate::net::Net;
use crate::{cache, rewrite, stats};

/// `EEXIST`, include/uapi/asm-generic/errno-base.h.
const EXISTS: i32 = -17;
/// Source ports tried when the endpoint already talks to the client's own port through another address: that one and two
/// at random. More would only cost the verifier: a random one of 64512 is hardly ever taken as well.
const PORT_ATTEMPTS: u32 = 3;
/// Seconds of silence after which another flow's UDP port may be taken: twice the timeout of an answered flow.
const UDP_SILENCE: u32 = 240;

/// Monotonic seconds (`CLOCK_MONOTONIC`), as the connection tables count them.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32
}

/// Creates both entries of the flow in `scratch`; the first CPU to do so wins (`BPF_NOEXIST`), and the caller looks up
/// what it made. True for the winner.
///
/// The reply entry comes first: once the forward entry can be found, answers find theirs.
#[inline(always)]
pub fn create<N: Net>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch<N::Addr>,
    service: u32,
) -> Result<bool, Reason> {
    let Scratch { key, other_key: reply_key, entry: forward, other: reply, choice, now, .. } = scratch;
    let now = *now;
    let backend = &choice.backend;
    let hairpin = backend.address == key.src;
    // A pod that reaches itself must not see its own address as the source: it sees the Service's (S-31).
    let src = if hairpin { key.dst } else { key.src };
    *forward = ConnEntry {
        rewrite: Rewrite::new(key, src, backend.address, key.src_port, backend.port),
        service,
        backend: choice.index,
        created: now,
        last_seen: now,
        interface: 0,
        mac: [0; 6],
        state: State::initial(key.protocol) as u8,
        flags: if hairpin { ConnFlags::HAIRPIN } else { 0 },
        zero: 0,
    };
    for _ in 0..PORT_ATTEMPTS {
        *reply_key = forward.rewrite.reply(key.protocol);
        *reply = counterpart::<N>(skb, key, forward, reply_key);
        let inserted = match N::conns().insert(&*reply_key, &*reply, BPF_NOEXIST as u64) {
            Ok(()) => true,
            Err(EXISTS) => take_over::<N>(reply_key, reply, now),
            Err(_) => return Err(Reason::ConnectionTableFull),
        };
        if inserted {
            // The ends may have talked without a Service until now, and the flow cache knows them as none of our
            // business: their next packet is an answer of this flow.
            cache::void(reply_key);
            return match N::conns().insert(&*key, &*forward, BPF_NOEXIST as u64) {
                Ok(()) => Ok(true),
                Err(EXISTS) => {
                    yield_to_winner::<N>(key, forward, reply_key);
                    Ok(false)
                }
                Err(_) => Err(Reason::ConnectionTableFull),
            };
        }
        // SAFETY: a helper without arguments.
        let port = 1024 + (unsafe { bpf_get_prandom_u32() } % (65_536 - 1024)) as u16;
        forward.rewrite = Rewrite::new(key, src, backend.address, Be16::new(port), backend.port);
    }
    Err(Reason::NoFreePort)
}

/// The entry of the other direction. `interface` and MAC of a reply entry are those of the client's device, which is
/// where a forward packet is met.
#[inline(always)]
fn counterpart<N: Net>(
    skb: *mut __sk_buff,
    key: &Tuple<N::Addr>,
    entry: &ConnEntry<N::Addr>,
    other_key: &Tuple<N::Addr>,
) -> ConnEntry<N::Addr> {
    let forward = entry.flags & ConnFlags::REPLY == 0;
    ConnEntry {
        rewrite: Rewrite::new(other_key, key.dst, key.src, key.dst_port, key.src_port),
        service: entry.service,
        backend: entry.backend,
        created: entry.created,
        last_seen: entry.last_seen,
        interface: if forward { access::interface(skb) } else { 0 },
        mac: if forward { rewrite::source_mac(skb) } else { [0; 6] },
        state: entry.state,
        flags: entry.flags ^ ConnFlags::REPLY,
        zero: 0,
    }
}

/// A reply entry of that key exists already: takes it over when it is this flow's own, or nobody's any more.
#[inline(always)]
fn take_over<N: Net>(key: &Tuple<N::Addr>, reply: &ConnEntry<N::Addr>, now: u32) -> bool {
    let Some(existing) = N::conns().get_ptr_mut(key) else { return false };
    // SAFETY: a live element of the map.
    let other = unsafe { (*existing).rewrite };
    if other != reply.rewrite {
        let other_key = other.reply(key.protocol);
        if let Some(forward) = N::conns().get_ptr_mut(&other_key) {
            // SAFETY: as above.
            let (state, last_seen) = unsafe { ((*forward).state, (*forward).last_seen) };
            let silent = state >= State::Unreplied as u8 && now.wrapping_sub(last_seen) > UDP_SILENCE;
            let over = state == State::TimeWait as u8 || state == State::Closed as u8;
            if !silent && !over {
                return false;
            }
            let _ = N::conns().remove(other_key);
            cache::void(&other_key);
        }
    }
    N::conns().insert(key, reply, BPF_ANY as u64).is_ok()
}

/// Another CPU created the flow at the same moment. Its choice stands; our reply entry goes unless it is the same.
#[inline(always)]
fn yield_to_winner<N: Net>(key: &Tuple<N::Addr>, ours: &ConnEntry<N::Addr>, reply_key: &Tuple<N::Addr>) {
    if let Some(winner) = N::conns().get_ptr_mut(key) {
        // SAFETY: a live element of the map.
        if unsafe { (*winner).rewrite } != ours.rewrite {
            let _ = N::conns().remove(reply_key);
            cache::void(reply_key);
        }
    }
}

/// Notes the packet in `scratch` in both entries of its flow and returns the flow's new state.
#[inline(always)]
pub fn follow<N: Net>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch<N::Addr>,
    entry: *mut ConnEntry<N::Addr>,
    direction: Direction,
) -> u8 {
    let Scratch { packet, key, other_key, other: restored, now, .. } = scratch;
    let now = *now;
    // SAFETY: a live element of the map, here and below; fields are written one by one, each valid on its own.
    *other_key = unsafe { (*entry).rewrite.reply(key.protocol) };
    let mut other = N::conns().get_ptr_mut(&*other_key);
    if other.is_none() {
        // The table was full and the kernel evicted it.
        // SAFETY: see above.
        *restored = counterpart::<N>(skb, key, unsafe { &*entry }, other_key);
        let _ = N::conns().insert(&*other_key, &*restored, BPF_NOEXIST as u64);
        // A packet that came in between is remembered as none of our business.
        cache::void(other_key);
        other = N::conns().get_ptr_mut(&*other_key);
    }
    // SAFETY: see above.
    unsafe {
        (*entry).last_seen = now;
        let forward = match other {
            Some(other) => {
                (*other).last_seen = now;
                match direction {
                    Direction::Reply => other,
                    Direction::Forward => {
                        // Another pod may have the address by now, behind another device.
                        if (*other).interface != access::interface(skb) {
                            (*other).interface = access::interface(skb);
                            (*other).mac = rewrite::source_mac(skb);
                            cache::void(other_key);
                        }
                        entry
                    }
                }
            }
            None => entry,
        };
        let old = (*forward).state;
        let new = conntrack::next(old, direction, packet.flags);
        if new != old {
            (*forward).state = new;
            if conntrack::is_settled(old) {
                // Other CPUs may hold the flow as settled and would not show us the packets that matter now.
                cache::void(key);
                cache::void(other_key);
            }
        }
        new
    }
}

/// Removes both entries of a flow that is to choose again.
#[inline(always)]
pub fn forget<N: Net>(key: &Tuple<N::Addr>, entry: *mut ConnEntry<N::Addr>) {
    // SAFETY: a live element of the map.
    let (other_key, service) = unsafe { ((*entry).rewrite.reply(key.protocol), (*entry).service) };
    let _ = N::conns().remove(key);
    let _ = N::conns().remove(other_key);
    cache::void(key);
    cache::void(&other_key);
    stats::service(service, ServiceStat::Reselected);
}
