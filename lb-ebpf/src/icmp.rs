//! ICMP and ICMPv6 errors about translated packets (S-71).

use aya_ebpf::bindings::__sk_buff;
use lb_common::headers::Bytes;
use lb_common::reason::Reason;

use crate::access;
use crate::net::Net;
use crate::unusual::{self, Frame};
use crate::verdict;

/// What an ICMP message is to us.
pub enum Kind {
    /// An error that quotes the packet it is about.
    Error,
    /// Somebody asks whether the address is alive.
    EchoRequest,
    /// None of our business.
    Other,
}

/// Looks at the type of the ICMP message at an offset.
#[inline(always)]
pub fn kind<N: Net>(frame: &Frame, offset: usize) -> Kind {
    match frame.read::<1>(offset) {
        Some([kind]) if N::is_icmp_error(kind) => Kind::Error,
        Some([kind]) if kind == N::ECHO_REQUEST => Kind::EchoRequest,
        _ => Kind::Other,
    }
}

/// Carries the ICMP error whose headers are in the working memory.
#[inline(always)]
pub fn error<N: Net>(skb: *mut __sk_buff, met: u32) -> i32 {
    core::hint::black_box(access::len(skb));
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    unusual::odd::<N>(met as u8, scratch.headers.dst, Reason::UnrelatedError)
}
