//! Fragments of IP packets (S-72): each is carried as its first one, which alone has the ports.

mod held;

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use lb_common::address::Address;
use lb_common::layout::{FragmentEntry, FragmentKey};
use lb_common::proto;
use lb_common::reason::Reason;
use lb_common::tuple::Tuple;

pub use self::held::{hold, release};
use crate::clock;
use crate::hook::TO_NET;
use crate::maps::Scratch;
use crate::net::Net;
use crate::parse::Packet;
use crate::unusual::{self, CARRY, FIRST, WAITS};

/// A first fragment, parsed into the working memory: its ports are noted for the later ones, whatever becomes of it.
#[inline(always)]
pub fn first<N: Net>(_skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>) -> i32 {
    let Scratch { packet, headers, fragment, .. } = scratch;
    *fragment = FragmentKey::of(headers);
    let entry = FragmentEntry {
        seen: clock::now(),
        src_port: packet.tuple.src_port,
        dst_port: packet.tuple.dst_port,
        protocol: packet.tuple.protocol,
        zero: [0; 3],
    };
    // The newest datagram with an identification is the one whose fragments come now. Fails only on a CPU that has no
    // entry left to evict; the later fragments are then those of a datagram without a first one.
    let _ = N::fragments().insert(&*fragment, &entry, BPF_ANY as u64);
    if packet.tuple.hook == TO_NET { CARRY } else { FIRST }
}

/// A later fragment, whose headers are in the working memory.
#[inline(always)]
pub fn later<N: Net>(_skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>, at: u8) -> i32 {
    scratch.fragment = FragmentKey::of(&scratch.headers);
    if has_ports::<N>(scratch, at) {
        return CARRY;
    }
    let headers = &scratch.headers;
    if !proto::is_proxied(headers.protocol) {
        return unusual::odd::<N>(at, headers.dst, Reason::NotProxied);
    }
    // What leaves the node has been through a hook that holds back, or is the node's own, which it sends in order; and of
    // what others send through the node, first fragments may go another way.
    if at == TO_NET { crate::verdict::PASS } else { WAITS }
}

/// Makes a packet of the later fragment in the working memory, if its first one came. False otherwise.
#[inline(always)]
fn has_ports<N: Net>(scratch: &mut Scratch<N::Addr>, at: u8) -> bool {
    let Scratch { packet, headers, fragment, .. } = scratch;
    let Some(found) = N::fragments().get_ptr(&*fragment) else { return false };
    // SAFETY: a live element of the map. Another CPU may put another datagram's entry in its place, whole.
    let entry = unsafe { *found };
    if !entry.is_valid(N::Addr::V6, clock::now()) {
        return false;
    }
    *packet = Packet {
        tuple: Tuple {
            src: headers.src,
            dst: headers.dst,
            src_port: entry.src_port,
            dst_port: entry.dst_port,
            protocol: entry.protocol,
            hook: at,
            zero: 0,
        },
        transport: headers.transport as usize,
        flags: 0,
        part: headers.part,
    };
    true
}
