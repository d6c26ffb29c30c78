//! Echo requests to cluster IPs (S-70): answered by the program itself, where the agent was told to and the cluster IP has
//! an endpoint. What is answered was asked by one machine alone, and no answer is answered again.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_redirect};
use lb_common::address::Address;
use lb_common::checksum::{self, Sum};
use lb_common::headers::Part;
use lb_common::layout::{Family, FrontendKey, HAS_ENDPOINTS, V4, V6};
use lb_common::lookup;
use lb_common::reason::Reason;

use crate::access::{self, ETH_LEN};
use crate::hook;
use crate::refuse::Refusal;
use crate::tables::KernelTables;
use crate::{config, rewrite, unusual, verdict};

/// Length of an echo request's header (RFC 792, RFC 4443 4.1).
const ECHO_LEN: usize = 8;
/// Hops an answer may take.
const HOPS: u8 = 64;
/// `BPF_F_INGRESS`, include/uapi/linux/bpf.h.
const INGRESS: u64 = 1;

/// How a request becomes its answer, by address family.
pub trait Echo: Refusal {
    /// Makes an answer of a request without options or extension headers: addresses, type, hops and checksums. False when
    /// the packet is shorter than that.
    fn turn(skb: *mut __sk_buff) -> bool;
}

/// Answers the echo request whose headers are in the working memory.
#[inline(always)]
pub fn answer<N: Echo>(skb: *mut __sk_buff, met: u32) -> i32 {
    let at = met as u8;
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    let headers = &scratch.headers;
    if !is_answered::<N>(headers.dst)
        || headers.part != Part::Whole as u8
        || headers.transport as usize != ETH_LEN + N::IP_LEN
        || !N::may_answer(headers.src)
        || headers.src.is_loopback()
    {
        return unusual::odd::<N>(at, headers.dst, Reason::NotProxied);
    }
    if lookup::classify_address::<N, _>(&KernelTables, headers.src) != lookup::Unserved::NotOurs {
        return if hook::is_ingress(at) { verdict::dropped(Reason::SpoofedSource) } else { verdict::PASS };
    }
    if (headers.payload as usize) < ECHO_LEN
        || !access::pull(skb, ETH_LEN + N::IP_LEN + ECHO_LEN)
        || !N::turn(skb)
    {
        return unusual::odd::<N>(at, headers.dst, Reason::Malformed);
    }
    // What leaves the node by a network device is from the node itself, and the answer comes in by that device.
    let flags = if hook::is_ingress(at) { 0 } else { INGRESS };
    // SAFETY: a helper call.
    unsafe { bpf_redirect(access::interface(skb), flags) as i32 }
}

/// True for a cluster IP at which somebody could serve.
#[inline(always)]
fn is_answered<N: Family>(address: N::Addr) -> bool {
    config::answers_echo()
        && lookup::find::<N, _>(&KernelTables, &FrontendKey::address(address)) == Some(HAS_ENDPOINTS)
}

/// What the sum over a packet changes by when the two bytes of a word become others.
#[inline(always)]
const fn difference(new: [u8; 2], old: [u8; 2]) -> u16 {
    Sum::new().add_u16(u16::from_ne_bytes(new)).difference(Sum::new().add_u16(u16::from_ne_bytes(old)))
}

impl Echo for V4 {
    #[inline(always)]
    fn turn(skb: *mut __sk_buff) -> bool {
        let Some(frame) = access::at_mut::<[u8; ETH_LEN + 28]>(skb, 0) else { return false };
        // SAFETY: `at_mut` checked the bytes: IP at 14 with hops at 8, checksum at 10, addresses at 12 and 16; the message
        // behind it with its checksum at 2. A device's sum over all stays right: checksums make up for what changes.
        unsafe {
            let ip = frame.cast::<u8>().add(ETH_LEN);
            rewrite::swap_macs(frame.cast());
            let (src, dst) = (*ip.add(12).cast::<u32>(), *ip.add(16).cast::<u32>());
            *ip.add(12).cast::<u32>() = dst;
            *ip.add(16).cast::<u32>() = src;
            let (hops, protocol) = (*ip.add(8), *ip.add(9));
            *ip.add(8) = HOPS;
            let field = ip.add(10).cast::<u16>();
            *field = checksum::update(*field, difference([HOPS, protocol], [hops, protocol]));
            let code = *ip.add(21);
            *ip.add(20) = 0;
            let field = ip.add(22).cast::<u16>();
            *field = checksum::update(*field, difference([0, code], [8, code]));
        }
        true
    }
}

impl Echo for V6 {
    #[inline(always)]
    fn turn(skb: *mut __sk_buff) -> bool {
        let Some(frame) = access::at_mut::<[u8; ETH_LEN + 48]>(skb, 0) else { return false };
        // SAFETY: `at_mut` checked the bytes: IP at 14 with hops at 7, addresses at 8 and 24; the message behind it with its
        // checksum at 2.
        let hops = unsafe {
            let ip = frame.cast::<u8>().add(ETH_LEN);
            rewrite::swap_macs(frame.cast());
            for word in 0..4 {
                let (src, dst) = (ip.add(8 + word * 4).cast::<u32>(), ip.add(24 + word * 4).cast::<u32>());
                let (from, to) = (*src, *dst);
                *src = to;
                *dst = from;
            }
            let hops = [*ip.add(6), *ip.add(7)];
            *ip.add(7) = HOPS;
            let code = *ip.add(41);
            *ip.add(40) = 129;
            let field = ip.add(42).cast::<u16>();
            *field = checksum::update(*field, difference([129, code], [128, code]));
            hops
        };
        let difference = difference([hops[0], HOPS], hops);
        // SAFETY: a helper call on the context, for a device's sum over all of the packet: nothing in it makes up for the
        // hops. It fails when there is no such sum, which is as well.
        unsafe { bpf_csum_update(skb, difference as u32) };
        true
    }
}
