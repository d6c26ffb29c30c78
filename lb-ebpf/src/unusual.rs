//! Packets that are not simply TCP or UDP behind a plain IP header: fragments, extension headers, SCTP, ICMP errors, echo
//! requests, and whatever else there is.
//!
//! They are read the careful way, through a helper: wherever their bytes lie and whatever they claim to be. Those that
//! turn out to be of a flow are carried by the tables like any other; none is answered for by the flow cache.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use lb_common::address::Ip6;
use lb_common::byteorder::Be16;
use lb_common::headers::{self, Bytes, Headers, Part, Unreadable};
use lb_common::layout::V6;
use lb_common::lookup::{self, Unserved};
use lb_common::proto;
use lb_common::reason::Reason;
use lb_common::tuple::Tuple;

use crate::access;
use crate::cache::Place;
use crate::hook::{self, Hook};
use crate::maps::Scratch;
use crate::miss::{self, Steps};
use crate::net::Net;
use crate::parse::Packet;
use crate::tables::KernelTables;
use crate::{events, fragment, icmp, sctp, verdict};

/// Returned by [`examine`]: the packet in the working memory is to be carried. No verdict has these numbers.
pub const CARRY: i32 = 0x3000;
/// Returned by [`examine`]: a first fragment, to be carried as [`CARRY`] says; others may wait for it.
pub const FIRST: i32 = 0x3003;
/// Returned by [`examine`]: a later fragment, whose first one did not come yet.
pub const WAITS: i32 = 0x3004;
/// Returned by [`examine`]: an ICMP error, whose headers are in the working memory.
const ERROR: i32 = 0x3001;
/// Returned by [`examine`]: an echo request, whose headers are in the working memory.
const ECHO: i32 = 0x3002;

/// A packet, read through a helper.
pub struct Frame(pub *mut __sk_buff);

impl Bytes for Frame {
    #[inline(always)]
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]> {
        let mut bytes = [0; L];
        // SAFETY: a helper call on the context that fills `L` bytes of the stack, or fails.
        let failed =
            unsafe { bpf_skb_load_bytes(self.0.cast(), offset as u32, bytes.as_mut_ptr().cast(), L as u32) };
        (failed == 0).then_some(bytes)
    }

    #[inline(always)]
    fn ipv6_headers(&self, start: usize) -> Result<Headers<Ip6>, Unreadable<Ip6>> {
        let found = headers6(self.0, start as u32);
        let Some(Scratch { read, .. }) = V6::scratch() else { return Err(Unreadable::Nothing) };
        match found {
            READ => Ok(*read),
            MALFORMED => Err(Unreadable::Malformed(read.dst)),
            UNKNOWN => Err(Unreadable::Unknown(read.dst)),
            _ => Err(Unreadable::Nothing),
        }
    }
}

/// Returned by [`headers6`], for [`Frame::ipv6_headers`]: the headers are in the working memory, or the destination of a
/// packet that cannot be read.
const READ: u32 = 0;
const MALFORMED: u32 = 1;
const UNKNOWN: u32 = 2;
const NOTHING: u32 = 3;

/// [`headers::ipv6`] as a global BPF function: its loop is followed once, for packets and for what errors quote.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn headers6(skb: *mut __sk_buff, start: u32) -> u32 {
    let Some(Scratch { read, .. }) = V6::scratch() else { return NOTHING };
    match headers::ipv6(&Frame(skb), start as usize) {
        Ok(headers) => {
            *read = headers;
            READ
        }
        Err(Unreadable::Nothing) => NOTHING,
        Err(Unreadable::Malformed(dst)) => {
            read.dst = dst;
            MALFORMED
        }
        Err(Unreadable::Unknown(dst)) => {
            read.dst = dst;
            UNKNOWN
        }
    }
}

/// Carries an unusual packet, or says what else becomes of it.
#[inline(always)]
pub fn carry<N: Steps, H: Hook>(skb: *mut __sk_buff) -> i32 {
    events::begin_unusual();
    let examined = match N::examine(skb, H::NUMBER as u32) {
        FIRST => fragment::release::<N>(skb, H::NUMBER as u32),
        WAITS => N::hold(skb, H::NUMBER as u32),
        examined => examined,
    };
    let verdict = match examined {
        CARRY => {
            let Some(scratch) = N::scratch() else { return verdict::PASS };
            scratch.place = Place::of(&scratch.packet.tuple);
            return miss::miss::<N, H>(skb);
        }
        ERROR => N::error(skb, H::NUMBER as u32),
        ECHO if H::INGRESS || H::NET => N::echo(skb, H::NUMBER as u32),
        ECHO => verdict::PASS,
        verdict => verdict,
    };
    events::tell_unusual::<N>(skb, verdict);
    verdict
}

/// Reads the packet's headers into the working memory: [`CARRY`], [`ERROR`], [`ECHO`], or the verdict.
#[inline(always)]
pub fn examine<N: Net>(skb: *mut __sk_buff, met: u32) -> i32 {
    let at = met as u8;
    if access::has_vlan_tag(skb) {
        return verdict::PASS;
    }
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    let frame = Frame(skb);
    scratch.headers = match N::headers(&frame) {
        Ok(headers) => headers,
        Err(Unreadable::Nothing) => return verdict::PASS,
        Err(Unreadable::Malformed(dst)) => {
            events::note_unreadable::<N>(scratch, dst);
            return odd::<N>(at, dst, Reason::Malformed);
        }
        Err(Unreadable::Unknown(dst)) => {
            events::note_unreadable::<N>(scratch, dst);
            return odd::<N>(at, dst, Reason::NotProxied);
        }
    };
    let headers = scratch.headers;
    if headers.part == Part::Later as u8 {
        return fragment::later::<N>(skb, scratch, at);
    }
    let transport = headers.transport as usize;
    let least = match headers.protocol {
        proto::TCP => 20,
        proto::UDP => 8,
        proto::SCTP => sctp::HEADER,
        protocol if protocol == N::ICMP => {
            return match icmp::kind::<N>(&frame, transport) {
                icmp::Kind::Error => ERROR,
                icmp::Kind::EchoRequest => ECHO,
                icmp::Kind::Other => odd::<N>(at, headers.dst, Reason::NotProxied),
            };
        }
        _ => return odd::<N>(at, headers.dst, Reason::NotProxied),
    };
    if (headers.payload as usize) < least || !access::pull(skb, transport + least) {
        return odd::<N>(at, headers.dst, Reason::Malformed);
    }
    let Some(ports) = frame.read::<4>(transport) else {
        return odd::<N>(at, headers.dst, Reason::Malformed);
    };
    let flags = match headers.protocol {
        proto::TCP => frame.read::<1>(transport + 13).map_or(0, |flags| flags[0]),
        proto::SCTP => sctp::flags(skb, transport, headers.payload),
        _ => 0,
    };
    scratch.packet = Packet {
        tuple: Tuple {
            src: headers.src,
            dst: headers.dst,
            src_port: Be16::from_raw(u16::from_ne_bytes([ports[0], ports[1]])),
            dst_port: Be16::from_raw(u16::from_ne_bytes([ports[2], ports[3]])),
            protocol: headers.protocol,
            hook: at,
            zero: 0,
        },
        transport,
        flags,
        part: headers.part,
    };
    if headers.part == Part::First as u8 {
        return fragment::first::<N>(skb, scratch);
    }
    CARRY
}

/// The verdict on a packet that no Service can carry: only its address counts (S-23, S-70).
#[inline(never)]
pub fn odd<N: Net>(at: u8, dst: N::Addr, reason: Reason) -> i32 {
    if !hook::is_ingress(at) {
        return verdict::PASS;
    }
    match lookup::classify_address::<N, _>(&KernelTables, dst) {
        Unserved::UnknownPort => verdict::dropped(reason),
        Unserved::Unallocated => verdict::dropped(Reason::UnallocatedAddress),
        Unserved::NotOurs => verdict::PASS,
    }
}
