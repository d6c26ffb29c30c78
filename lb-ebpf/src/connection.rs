//! The connection tables: creating, following and forgetting flows.
//!
//! A flow has a pair of entries that translate its destination and turn its answers back. One that is masqueraded has a
//! second pair ([`ConnFlags::SOURCE`]) for its source, see [`crate::masquerade`]. Here a pair is a pair.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lb_common::byteorder::Be16;
use lb_common::conntrack::{self, Direction, State};
use lb_common::handshake::Moment;
use lb_common::layout::{Client, ConnEntry, ConnFlags, FrontendValue, Policy, SeenPorts, ServiceStat};
use lb_common::proto::{self, tcp};
use lb_common::reason::Reason;
use lb_common::tuple::{Rewrite, Tuple};

use crate::access;
use crate::maps::Scratch;
use crate::miss::Steps;
use crate::net::Net;
use crate::parse::Packet;
use crate::{cache, clock, config, events, hook, masquerade, ports, rewrite, share, stats};

/// `EEXIST`, include/uapi/asm-generic/errno-base.h.
const EXISTS: i32 = -17;
/// Source ports tried when the endpoint already talks to the client's own port through another address: that one and two
/// at random. More would only cost the verifier: a random one of 64512 is hardly ever taken as well.
const PORT_ATTEMPTS: u32 = 3;
/// The ports they are of: first and number.
const PORTS: (u32, u32) = (1024, 65_536 - 1024);
/// Seconds of silence after which another flow's UDP port may be taken: twice the timeout of an answered flow.
const UDP_SILENCE: u32 = 240;

/// Makes the forward entry of the flow in `scratch` to the backend chosen there ready for [`enter`].
#[inline(always)]
pub fn prepare<N: Net>(
    scratch: &mut Scratch<N::Addr>,
    frontend: FrontendValue,
    policy: Policy,
    client: Client,
) {
    let Scratch { key, entry: forward, choice, now, .. } = scratch;
    let backend = &choice.backend;
    let masquerade = policy.masquerades(frontend.kind, client);
    let outside = matches!(client, Client::Outside);
    // A pod that reaches itself must not see its own address as the source: it sees the Service's (S-31). One of another
    // node sees that of this node, if it would anyway, so that its answers come back here.
    let hairpin = backend.address == key.src && !(outside && masquerade);
    let src = if hairpin { key.dst } else { key.src };
    let mut flags = if outside { ConnFlags::NET } else { 0 };
    if hairpin {
        flags |= ConnFlags::HAIRPIN;
    } else if masquerade {
        flags |= ConnFlags::MASQUERADE;
    }
    let moment = if key.protocol == proto::TCP {
        Moment::of_nanos(clock::nanos())
    } else {
        Moment { second: *now, fraction: 0 }
    };
    *forward = ConnEntry {
        rewrite: Rewrite::new(key, src, backend.address, key.src_port, backend.port),
        service: frontend.service,
        backend: choice.index,
        created: moment.second,
        last_seen: *now,
        interface: 0,
        mac: [0; 6],
        state: State::initial(key.protocol) as u8,
        flags,
        masquerade_port: Be16::from_raw(0),
        created_fraction: moment.fraction,
    };
}

/// Inserts both entries of the pair whose forward entry stands in the working memory, with its own source port or, while
/// another flow has that towards the endpoint, with others at random. True for the CPU that did it, false when another one
/// was quicker: the caller looks up what was made.
#[inline(always)]
pub fn enter<N: Steps>(skb: *mut __sk_buff) -> Result<bool, Reason> {
    let inconsistent = Reason::TableInconsistent;
    // Not a reference that outlives the calls below: they use that memory, too.
    let (source, mut port) = match N::scratch() {
        Some(Scratch { entry, .. }) => {
            (entry.flags & ConnFlags::SOURCE != 0, entry.rewrite.src_port.host() as u32)
        }
        None => return Err(inconsistent),
    };
    let ((first, count), attempts) =
        if source { (config::masquerade_ports(), masquerade::ATTEMPTS) } else { (PORTS, PORT_ATTEMPTS) };
    let mut claimed = TAKEN;
    for attempt in 0..masquerade::ATTEMPTS {
        if attempt >= attempts {
            break;
        }
        claimed = N::claim(skb, port);
        if claimed != TAKEN {
            break;
        }
        // SAFETY: a helper without arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        port = first + ((random as u64 * count as u64) >> 32) as u32;
    }
    match claimed {
        TAKEN => return Err(Reason::NoFreePort),
        FULL => return Err(Reason::ConnectionTableFull),
        _ => {}
    }
    let Some(Scratch { key, other_key, .. }) = N::scratch() else { return Err(inconsistent) };
    if !source {
        // Packets to the endpoint may be remembered as none of our business where they leave, from an earlier
        // conversation; or as packets of an earlier flow.
        turn(other_key);
        cache::void(other_key);
    } else if claimed == CLAIMED {
        *other_key = *key;
        turn(other_key);
        masquerade::note_port::<N>(other_key, Be16::new(port as u16));
    }
    Ok(claimed == CLAIMED)
}

/// Returned by [`claim`]: the pair is there, and this CPU made it.
const CLAIMED: i32 = 0;
/// The pair is there; another CPU was quicker.
const YIELDED: i32 = 1;
/// Another flow has the port.
const TAKEN: i32 = 2;
/// There is no room.
const FULL: i32 = 3;

/// Inserts both entries of the pair whose forward entry stands in the working memory, with that source port. The first CPU
/// to do so wins (`BPF_NOEXIST`).
///
/// The reply entry comes first: it is the allocation of the port; and once the forward entry can be found, answers find
/// theirs.
#[inline(always)]
pub fn claim<N: Net>(skb: *mut __sk_buff, port: u32) -> i32 {
    let Some(scratch) = N::scratch() else { return FULL };
    let Scratch { key, other_key: reply_key, entry: forward, other: reply, now, .. } = scratch;
    let Rewrite { src, dst, dst_port, .. } = forward.rewrite;
    forward.rewrite = Rewrite::new(key, src, dst, Be16::new(port as u16), dst_port);
    *reply_key = forward.rewrite.reply(key.protocol);
    counterpart::<N>(skb, key, forward, reply_key, reply);
    ports::note(SeenPorts::Flows, key.dst_port);
    ports::note(SeenPorts::Flows, reply_key.src_port);
    match N::conns().insert(&*reply_key, &*reply, BPF_NOEXIST as u64) {
        Ok(()) => {}
        Err(EXISTS) if take_over::<N>(reply_key, reply, *now) => {}
        Err(EXISTS) => return TAKEN,
        Err(_) => return FULL,
    }
    // The ends may have talked without a Service until now, and the flow cache knows them as none of our business: their
    // next packet is an answer of this flow.
    cache::void(reply_key);
    match N::conns().insert(&*key, &*forward, BPF_NOEXIST as u64) {
        Ok(()) => CLAIMED,
        Err(EXISTS) => {
            yield_to_winner::<N>(key, forward, reply_key);
            YIELDED
        }
        Err(_) => FULL,
    }
}

/// Turns a tuple into that of the other direction, where nothing is translated.
#[inline(always)]
pub fn turn<A: Copy>(tuple: &mut Tuple<A>) {
    (tuple.src, tuple.dst) = (tuple.dst, tuple.src);
    (tuple.src_port, tuple.dst_port) = (tuple.dst_port, tuple.src_port);
}

/// Makes the entry of the other direction. `interface` and MAC of a reply entry are those of the client's device, which is
/// where a forward packet is met. Written in place: there is little stack.
#[inline(always)]
fn counterpart<N: Net>(
    skb: *mut __sk_buff,
    key: &Tuple<N::Addr>,
    entry: &ConnEntry<N::Addr>,
    other_key: &Tuple<N::Addr>,
    other: &mut ConnEntry<N::Addr>,
) {
    let forward = entry.flags & ConnFlags::REPLY == 0;
    other.rewrite = Rewrite::new(other_key, key.dst, key.src, key.dst_port, key.src_port);
    other.service = entry.service;
    other.backend = entry.backend;
    other.created = entry.created;
    other.last_seen = entry.last_seen;
    other.interface = if forward { access::interface(skb) } else { 0 };
    other.mac = if forward { rewrite::source_mac(skb) } else { [0; 6] };
    other.state = entry.state;
    other.flags = entry.flags ^ ConnFlags::REPLY;
    other.masquerade_port = Be16::from_raw(0);
    other.created_fraction = 0;
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
            if !is_free::<N>(forward, now) {
                return false;
            }
            let _ = N::conns().remove(other_key);
            cache::void(&other_key);
        }
    }
    N::conns().insert(key, reply, BPF_ANY as u64).is_ok()
}

/// True when nobody uses the flow of that forward entry any more, so that another one may have its source port.
#[inline(always)]
fn is_free<N: Net>(forward: *mut ConnEntry<N::Addr>, now: u32) -> bool {
    // SAFETY: a live element of the map.
    let (state, last_seen) = unsafe { ((*forward).state, (*forward).last_seen) };
    let silence = clock::since(now, last_seen);
    conntrack::is_over(state, silence) || (conntrack::is_udp(state) && silence > UDP_SILENCE)
}

/// Ends the flow through a Service whose answers would be taken for those to the packet in `scratch`, which its client sends to
/// the endpoint itself from the port that it had used for the flow. A SYN is believed when the flow is one whose port is
/// free; a pod's datagram tells that it does not wait for the flow's answers any more.
///
/// A pod's flow where pods' packets come in, and one of a client outside at a network device. There a packet may be met
/// that a program has translated already, at a second device: its own flow is none that is over, if it begins with a SYN,
/// but for datagrams nothing tells. False when the next packet is to ask again, because the flow may be over by then.
#[inline(always)]
pub fn give_way<N: Steps>(scratch: &mut Scratch<N::Addr>) -> bool {
    const KIND: u8 = ConnFlags::REPLY | ConnFlags::SOURCE | ConnFlags::NET | ConnFlags::HAIRPIN;
    let Scratch { packet, key, other_key, victim, now, .. } = scratch;
    let is_pods = packet.tuple.hook == hook::FROM_POD;
    let asks = is_syn(packet) || (is_pods && packet.is_udp());
    if !asks || !ports::may_be_of_a_flow(key) {
        return true;
    }
    let wanted = if is_pods { ConnFlags::REPLY } else { ConnFlags::REPLY | ConnFlags::NET };
    *other_key = *key;
    turn(other_key);
    let Some(answers) = N::conns().get_ptr_mut(&*other_key) else { return true };
    // SAFETY: a live element of the map, here and below; single fields, each valid on its own.
    if unsafe { (*answers).flags } & KIND != wanted {
        return true;
    }
    // SAFETY: as above.
    *victim = unsafe { (*answers).rewrite.reply(key.protocol) };
    let forward = N::conns().get_ptr_mut(&*victim);
    // SAFETY: as above. The client may have another flow through the Service since the kernel evicted this one's entry.
    let own = forward.filter(|forward| unsafe { (**forward).rewrite.reply(key.protocol) } == *other_key);
    match own {
        Some(forward) if packet.is_udp() || is_free::<N>(forward, *now) => N::end_flow(),
        Some(_) => return false,
        None => {
            let _ = N::conns().remove(&*other_key);
            cache::void(other_key);
        }
    }
    true
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

/// Notes the packet in `scratch` in both entries of its pair and returns the flow's new state. Where it `begins` the flow, the
/// entry of the other direction was made for it and knows all of it.
#[inline(always)]
pub fn follow<N: Steps>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch<N::Addr>,
    entry: *mut ConnEntry<N::Addr>,
    direction: Direction,
    begins: bool,
) -> u8 {
    let Scratch { packet, key, other_key, now, story, .. } = scratch;
    let now = *now;
    // SAFETY: a live element of the map, here and below; fields are written one by one, each valid on its own.
    *other_key = unsafe { (*entry).rewrite.reply(key.protocol) };
    let mut other = None;
    if !begins {
        other = N::conns().get_ptr_mut(&*other_key);
        if other.is_none() {
            N::restore(skb);
            other = N::conns().get_ptr_mut(&*other_key);
        }
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
                        // Another pod may have the address by now, behind another device. What comes from outside may
                        // claim to be anybody's, and no pod is there.
                        let of_pod = (*entry).flags & (ConnFlags::NET | ConnFlags::SOURCE) == 0
                            && packet.tuple.hook == hook::FROM_POD;
                        if of_pod && (*other).interface != access::interface(skb) {
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
        let age = clock::since(now, (*forward).created);
        let new = if packet.is_later_fragment() {
            old
        } else {
            conntrack::next_at(old, direction, packet.flags, age)
        };
        if new != old {
            (*forward).state = new;
            events::note_transition::<N>(story, forward, old, new);
            if conntrack::begins_to_wait(old, new) {
                (*forward).created = now;
            }
            if conntrack::is_settled(old) {
                // Other CPUs may hold the flow as settled and would not show us the packets that matter now.
                N::void_both();
            }
        }
        new
    }
}

/// Makes the other direction's entry again of the one in the table under the key in the working memory: the table was full and
/// the kernel evicted it.
#[inline(always)]
pub fn restore<N: Net>(skb: *mut __sk_buff) -> Option<()> {
    let Scratch { key, other_key, other: restored, .. } = N::scratch()?;
    let entry = N::conns().get_ptr_mut(&*key)?;
    // SAFETY: a live element of the map.
    counterpart::<N>(skb, key, unsafe { &*entry }, other_key, restored);
    let _ = N::conns().insert(&*other_key, &*restored, BPF_NOEXIST as u64);
    // A packet that came in between is remembered as none of our business; and where the flow is to be masqueraded
    // but the entry was missing that says so, one of the other direction.
    cache::void(other_key);
    turn(other_key);
    cache::void(other_key);
    turn(other_key);
    Some(())
}

/// Voids what every CPU remembers about both directions of the flow whose keys are in the working memory.
#[inline(always)]
pub fn void_both<N: Net>() -> Option<()> {
    let Scratch { key, other_key, .. } = N::scratch()?;
    cache::void(key);
    cache::void(other_key);
    Some(())
}

/// True for a SYN or INIT that begins a new connection on a pair whose old one is over, `age` seconds old.
#[inline(always)]
pub fn begins_anew<A>(packet: &Packet<A>, state: u8, age: u32) -> bool {
    is_syn(packet) && conntrack::syn_selects_again(state, age)
}

/// True for a SYN of a client.
#[inline(always)]
pub fn is_syn<A>(packet: &Packet<A>) -> bool {
    packet.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Removes all entries of the flow that is to choose again; `entry` is that of its key in the working memory.
#[inline(always)]
pub fn forget<N: Steps>(scratch: &mut Scratch<N::Addr>, entry: *mut ConnEntry<N::Addr>) {
    // SAFETY: a live element of the map.
    let service = unsafe { (*entry).service };
    scratch.victim = scratch.key;
    N::end_flow();
    stats::service(service, ServiceStat::Reselected);
}

/// Removes all entries of the flow whose key, that of the client's packets, is in the working memory as the victim's.
#[inline(always)]
pub fn end_flow<N: Net>() -> Option<()> {
    let Scratch { victim: key, other_key, second_key, .. } = N::scratch()?;
    let entry = N::conns().get_ptr_mut(&*key)?;
    // SAFETY: a live element of the map.
    let flags = unsafe { (*entry).flags };
    remove_pair::<N>(key, other_key, entry);
    if flags & ConnFlags::MASQUERADE != 0 {
        turn(other_key);
        if let Some(second) = N::conns().get_ptr_mut(&*other_key) {
            // SAFETY: as above.
            if unsafe { (*second).flags } & ConnFlags::SOURCE != 0 {
                *second_key = *other_key;
                remove_pair::<N>(second_key, other_key, second);
            }
        }
    }
    Some(())
}

/// Removes `entry`, whose key is `key`, and the one of the other direction, whose key is stored in `other_key`.
#[inline(always)]
fn remove_pair<N: Net>(key: &Tuple<N::Addr>, other_key: &mut Tuple<N::Addr>, entry: *mut ConnEntry<N::Addr>) {
    // SAFETY: a live element of the map.
    let service = unsafe { (*entry).service };
    // SAFETY: as above.
    *other_key = unsafe { (*entry).rewrite.reply(key.protocol) };
    let _ = N::conns().remove(key);
    let _ = N::conns().remove(&*other_key);
    share::count::<N>(service, -2);
    cache::void(key);
    cache::void(other_key);
}
