//! Echo requests to cluster IPs (S-70).

use aya_ebpf::bindings::__sk_buff;
use lb_common::reason::Reason;

use crate::access;
use crate::hook;
use crate::net::Net;
use crate::{unusual, verdict};

/// Answers the echo request whose headers are in the working memory.
#[inline(always)]
pub fn answer<N: Net>(skb: *mut __sk_buff) -> i32 {
    core::hint::black_box(access::len(skb));
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    unusual::odd::<N>(hook::FROM_POD, scratch.headers.dst, Reason::NotProxied)
}
