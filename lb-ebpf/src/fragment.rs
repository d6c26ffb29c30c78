//! Fragments of IP packets (S-72): each is carried as its first one, which alone has the ports.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use lb_common::address::Address;
use lb_common::layout::{FragmentEntry, FragmentKey};
use lb_common::proto;
use lb_common::reason::Reason;
use lb_common::tuple::Tuple;

use crate::connection;
use crate::maps::Scratch;
use crate::net::Net;
use crate::parse::Packet;
use crate::unusual::{self, CARRY};

/// A first fragment, parsed into the working memory: its ports are noted for the later ones, whatever becomes of it.
#[inline(always)]
pub fn first<N: Net>(_skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>) -> i32 {
    let Scratch { packet, headers, fragment, .. } = scratch;
    *fragment = FragmentKey::of(headers);
    let entry = FragmentEntry {
        seen: connection::now(),
        src_port: packet.tuple.src_port,
        dst_port: packet.tuple.dst_port,
        protocol: packet.tuple.protocol,
        zero: [0; 3],
    };
    // The newest datagram with an identification is the one whose fragments come now. Fails only on a CPU that has no
    // entry left to evict; the later fragments are then those of a datagram without a first one.
    let _ = N::fragments().insert(&*fragment, &entry, BPF_ANY as u64);
    CARRY
}

/// A later fragment, whose headers are in the working memory.
#[inline(always)]
pub fn later<N: Net>(_skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>, at: u8) -> i32 {
    let Scratch { packet, headers, fragment, .. } = scratch;
    *fragment = FragmentKey::of(headers);
    let found = N::fragments().get_ptr(&*fragment);
    // SAFETY: a live element of the map. Another CPU may put another datagram's entry in its place, whole.
    let found =
        found.map(|entry| unsafe { *entry }).filter(|entry| entry.is_valid(N::Addr::V6, connection::now()));
    let Some(entry) = found else {
        let proxied = proto::is_proxied(headers.protocol);
        return unusual::odd::<N>(
            at,
            headers.dst,
            if proxied { Reason::Fragment } else { Reason::NotProxied },
        );
    };
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
    CARRY
}
