//! Masquerade: flows that get an address of the node as their source (S-30, S-33), by a second pair of entries.
//!
//! The first pair turns client -> frontend into client -> endpoint where the packet comes in, as for every flow. What
//! leaves is looked up under client -> endpoint: the second pair turns it into node -> endpoint there, and the answers into
//! endpoint -> client where they come in. So the stack between the hooks sees client and endpoint in both directions, and
//! never a packet with an address of its own as the source.
//!
//! The pair is made where the flow's first packet leaves, because only there it is known by which device; and not at all
//! when the endpoint is a process of this node, because its packets leave nowhere. The flow's reply entry, found under the
//! opposite tuple, says that it is to be made. The answers' entry is the allocation of the port: the first to insert it has
//! it (`BPF_NOEXIST`).

use aya_ebpf::bindings::__sk_buff;
use lb_common::address::Address;
use lb_common::byteorder::Be16;
use lb_common::conntrack::State;
use lb_common::layout::{ConnEntry, ConnFlags, ServiceStat};
use lb_common::reason::Reason;
use lb_common::tuple::{Rewrite, Tuple};

use crate::maps::{MASQUERADE, Scratch};
use crate::net::Net;
use crate::{access, cache, clock, config, connection, stats, verdict};

/// Source ports tried. With nine of ten ports towards an endpoint in use, one of these is free in 29 of 30 cases.
pub const ATTEMPTS: u32 = 32;
/// The row of the devices that have none of their own.
const DEFAULT: u32 = 0;

/// Makes the forward entry of the second pair ready for [`connection::enter`], if the packet in `scratch` is of a flow that
/// is to be masqueraded. Otherwise the verdict: it is none of our business, or cannot be sent.
#[inline(always)]
pub fn prepare<N: Net>(skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>) -> Result<(), i32> {
    const WANTED: u8 = ConnFlags::MASQUERADE | ConnFlags::REPLY;
    let Scratch { key, other_key, entry, now, .. } = scratch;
    *other_key = *key;
    connection::turn(other_key);
    // SAFETY: a live element of the map, here and below; single words, each valid on its own.
    let answers =
        N::conns().get_ptr_mut(&*other_key).filter(|found| unsafe { (**found).flags } & WANTED == WANTED);
    let Some(answers) = answers else {
        cache::store_pass::<N>(scratch);
        return Err(verdict::PASS);
    };
    // SAFETY: see above.
    let (service, backend, port) =
        unsafe { ((*answers).service, (*answers).backend, (*answers).masquerade_port) };
    let Some(address) = address::<N>(access::interface(skb)) else {
        stats::service(service, ServiceStat::Dropped);
        return Err(verdict::dropped(Reason::NoMasqueradeAddress));
    };
    let port = if port.raw() != 0 { port } else { own_port(key.src_port) };
    *entry = ConnEntry {
        rewrite: Rewrite::new(key, address, key.dst, port, key.dst_port),
        service,
        backend,
        created: *now,
        last_seen: *now,
        interface: 0,
        mac: [0; 6],
        state: State::initial(key.protocol) as u8,
        flags: ConnFlags::SOURCE,
        masquerade_port: Be16::from_raw(0),
        created_fraction: 0,
    };
    Ok(())
}

/// Notes the port that a flow got in the entry of its answers.
#[inline(always)]
pub fn note_port<N: Net>(answers: &Tuple<N::Addr>, port: Be16) {
    if let Some(answers) = N::conns().get_ptr_mut(answers) {
        // SAFETY: see `prepare`.
        unsafe { (*answers).masquerade_port = port };
    }
}

/// The client's own port, brought into the range: clients that choose at random stay as hard to guess.
#[inline(always)]
fn own_port(port: Be16) -> Be16 {
    let (first, count) = config::masquerade_ports();
    let above = (port.host() as u32).wrapping_sub(first);
    // A port below the range gives a large number; any remainder will do. No count of 0 is ever set.
    Be16::new((first + above % if count == 0 { 1 } else { count }) as u16)
}

/// What flows get that leave by a device.
#[inline(always)]
fn address<N: Net>(interface: u32) -> Option<N::Addr> {
    of_row::<N>(interface).or_else(|| of_row::<N>(DEFAULT))
}

#[inline(always)]
fn of_row<N: Net>(row: u32) -> Option<N::Addr> {
    let addresses = MASQUERADE.get_ptr(&row)?;
    // SAFETY: a live element of the map. The agent replaces rows whole.
    let address = N::masquerade_address(unsafe { &*addresses });
    (address != N::Addr::UNSPECIFIED).then_some(address)
}

/// True when the second pair's forward `entry`, found for the packet in `scratch`, is not that of the packet's flow: this
/// one is not to be masqueraded, or is a new connection between the same ends.
#[inline(always)]
pub fn is_outdated<N: Net>(scratch: &mut Scratch<N::Addr>, entry: *mut ConnEntry<N::Addr>) -> bool {
    // SAFETY: see `prepare`.
    let (state, created) = unsafe { ((*entry).state, (*entry).created) };
    let anew = connection::begins_anew(&scratch.packet, state, clock::since(scratch.now, created));
    scratch.other_key = scratch.key;
    connection::turn(&mut scratch.other_key);
    let Some(answers) = N::conns().get_ptr_mut(&scratch.other_key) else {
        // Evicted; the next packet that comes in restores it.
        return anew;
    };
    // SAFETY: see `prepare`.
    let outdated = anew || unsafe { (*answers).flags } & ConnFlags::MASQUERADE == 0;
    if outdated {
        // The XDP program remembers what both pairs make of the client's packets.
        // SAFETY: see `prepare`.
        scratch.other_key = unsafe { (*answers).rewrite.reply(scratch.key.protocol) };
        cache::void(&scratch.other_key);
    }
    outdated
}
