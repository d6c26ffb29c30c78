//! Fragments of IP packets (S-72).

use aya_ebpf::bindings::__sk_buff;
use lb_common::reason::Reason;

use crate::maps::Scratch;
use crate::net::Net;
use crate::unusual;

/// A first fragment, parsed into the working memory.
#[inline(always)]
pub fn first<N: Net>(_skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>) -> i32 {
    unusual::odd::<N>(scratch.packet.tuple.hook, scratch.headers.dst, Reason::Fragment)
}

/// A later fragment, whose headers are in the working memory.
#[inline(always)]
pub fn later<N: Net>(_skb: *mut __sk_buff, scratch: &mut Scratch<N::Addr>, at: u8) -> i32 {
    unusual::odd::<N>(at, scratch.headers.dst, Reason::Fragment)
}
