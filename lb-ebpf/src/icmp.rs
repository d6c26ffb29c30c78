//! ICMP and ICMPv6 errors about translated packets (S-71).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_store_bytes;
use lb_common::headers::Bytes;
use lb_common::icmp::{self, BytesMut, Ip, Quote};
use lb_common::reason::Reason;

use crate::access::ETH_LEN;
use crate::net::Net;
use crate::unusual::{self, Frame};
use crate::{forward, miss, sctp, verdict};

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

impl BytesMut for Frame {
    #[inline(always)]
    fn write<const L: usize>(&mut self, offset: usize, bytes: [u8; L]) -> Option<()> {
        // SAFETY: a helper call on the context that reads `L` bytes of the stack; packet pointers are derived anew after it.
        // Without flags it leaves a device's sum over the packet alone: all that changes here makes up for itself in it.
        let failed =
            unsafe { bpf_skb_store_bytes(self.0, offset as u32, bytes.as_ptr().cast(), L as u32, 0) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn crc32c_difference(difference: u32, len: u16) -> u32 {
        sctp::crc32c_difference(difference, len as u32)
    }
}

/// Carries the ICMP error whose headers are in the working memory.
///
/// It goes where a packet of the flow would go that comes from the end the quoted one went to, and is translated where
/// that is: the same entry, the same hooks. It proves nothing about the flow and changes nothing of it: anybody may have
/// sent it.
#[inline(always)]
pub fn error<N: Net>(skb: *mut __sk_buff, met: u32) -> i32
where
    N::Addr: Ip,
{
    let at = met as u8;
    let Some(scratch) = N::scratch() else { return verdict::PASS };
    let mut frame = Frame(skb);
    let Some(quote) = Quote::of(&frame, &scratch.headers) else {
        return unusual::odd::<N>(at, scratch.headers.dst, Reason::UnrelatedError);
    };
    scratch.key = quote.turned();
    let Some(entry) = N::conns().get_ptr_mut(&scratch.key) else {
        return unusual::odd::<N>(at, scratch.headers.dst, Reason::UnrelatedError);
    };
    if !miss::decide::<N>(skb, at, entry, &mut scratch.answer) {
        return verdict::PASS;
    }
    // SAFETY: a live element of the map; its rewrite never changes.
    scratch.answer.rewrite = unsafe { (*entry).rewrite };
    let answer = &scratch.answer;
    match icmp::translate(&mut frame, ETH_LEN, &scratch.headers, &quote, &answer.rewrite) {
        Some(()) => forward::leave(skb, answer.action, answer.interface, &answer.mac),
        None => verdict::dropped(Reason::RewriteFailed),
    }
}
