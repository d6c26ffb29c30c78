//! SCTP (S-73): ports are translated, and the CRC follows them without a look at what lies behind.
//!
//! No packet of SCTP comes by the flow cache: parsing leaves it to [`crate::unusual`], and nothing is stored for it.
//!
//! A sender whose device computes checksums leaves the field 0 (`CHECKSUM_PARTIAL` with `csum_not_inet`, net/sctp/output.c),
//! and so do the packets between pods, all the way. Such a field stays 0, for whoever completes it. A computed checksum is 0 as
//! well once in 2^32 packets: the kernel is asked which it is.
//!
//! Addresses are no part of the checksum. Those inside an INIT or INIT ACK, for associations over several addresses, are not
//! translated: the other side tries them and gets no answer, and the association uses the one it began with.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_csum_update, bpf_l4_csum_replace};
use lb_common::address::Address;
use lb_common::checksum::Sum;
use lb_common::crc32c;
use lb_common::headers::{Bytes, Part};
use lb_common::sctp::CHECKSUM;
pub use lb_common::sctp::HEADER;
use lb_common::tuple::Rewrite;

use crate::net::Net;
use crate::parse::Packet;
use crate::unusual::Frame;
use crate::{access, rewrite};

/// [`crc32c::multiply`] as a global BPF function: checked once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crc32c_multiply(a: u32, b: u32) -> u32 {
    crc32c::multiply(a, b)
}

/// [`crc32c::difference`].
#[inline(always)]
pub fn crc32c_difference(difference: u32, len: u32) -> u32 {
    crc32c::difference_by(difference, len as u16, |a, b| crc32c_multiply(a, b))
}

/// [`lb_common::sctp::flags`] as a global BPF function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sctp_flags(skb: *mut __sk_buff, transport: u32, len: u32) -> u32 {
    lb_common::sctp::flags(&Frame(skb), transport as usize, len as usize) as u32
}

/// What the packet does to its association, see [`lb_common::sctp`]: `len` bytes from its common header on.
#[inline(always)]
pub fn flags(skb: *mut __sk_buff, transport: usize, len: u16) -> u8 {
    sctp_flags(skb, transport as u32, len as u32) as u8
}

/// Rewrites a packet of SCTP. Never a sum that the flow cache would have to know of: always `Some(false)` or `None`.
#[inline(always)]
pub fn rewrite<N: Net>(
    skb: *mut __sk_buff,
    packet: &Packet<N::Addr>,
    rewrite: &Rewrite<N::Addr>,
) -> Option<bool> {
    let transport = rewrite::transport(packet);
    let ports = |src: u16, dst: u16| src as u32 | (dst as u32) << 16;
    let new = ports(rewrite.src_port.raw(), rewrite.dst_port.raw());
    let change = ports(packet.tuple.src_port.raw(), packet.tuple.dst_port.raw()) ^ new;
    // What the packet as a whole changes by, for a device's sum over it: the IPv4 header checksum makes up for addresses.
    let mut sum = Sum::new().add_u16(rewrite.full_difference);
    if !N::Addr::V6 {
        sum = sum.add_u16(!rewrite.address_difference);
    }
    if change != 0 {
        // How long the whole is, only its last fragment knows.
        if packet.part != Part::Whole as u8 {
            return None;
        }
        if !is_uncomputed(skb, transport)? {
            let len = N::scratch()?.headers.payload;
            let by = crc32c_difference(change, len as u32);
            let field = access::at_mut::<[u16; 2]>(skb, transport + CHECKSUM)?;
            // SAFETY: `at_mut` checked the four bytes.
            unsafe {
                let old = ports((*field)[0], (*field)[1]);
                let new = old ^ by;
                *field = [new as u16, (new >> 16) as u16];
                sum = sum.add_u32(new).add_u32(!old);
            }
        }
    }
    // SAFETY: a helper call on the context. It fails when there is no such sum, which is as well.
    unsafe { bpf_csum_update(skb, sum.fold() as u32) };
    rewrite::store::<N>(skb, transport, rewrite)?;
    Some(false)
}

/// True when the checksum has not been computed yet: it is not to be touched.
#[inline(always)]
pub fn is_uncomputed(skb: *mut __sk_buff, transport: usize) -> Option<bool> {
    let offset = transport + CHECKSUM;
    let field = || {
        // SAFETY: `at` checked the field.
        access::at::<[u16; 2]>(skb, offset).map(|field| unsafe { *field })
    };
    if field()? != [0, 0] {
        return Some(false);
    }
    // A field that somebody will complete does not change when a sum does that is no part of a pseudo header: add one and
    // look, as for TCP and UDP. A super-packet's is never complete.
    // SAFETY: a helper call on the context; packet pointers are derived anew after it.
    if access::is_gso(skb) || unsafe { bpf_l4_csum_replace(skb, offset as u32, 0, 1, 0) } != 0 {
        return Some(true);
    }
    let uncomputed = field()? == [0, 0];
    let field = access::at_mut::<[u16; 2]>(skb, offset)?;
    // SAFETY: `at_mut` checked the field.
    unsafe { *field = [0, 0] };
    Some(uncomputed)
}

/// The checksum of the first `len` bytes of a packet of SCTP, a multiple of four and at most 20: a global BPF function, see
/// above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sctp_checksum(skb: *mut __sk_buff, transport: u32, len: u32) -> u32 {
    let mut sum = crc32c::FINAL;
    for word in 0..5 {
        if word * 4 >= len {
            break;
        }
        let Some(bytes) = Frame(skb).read::<4>((transport + word * 4) as usize) else { break };
        let inverted = if word == 0 { u32::MAX } else { 0 };
        sum ^= crc32c_difference(u32::from_le_bytes(bytes) ^ inverted, len - word * 4);
    }
    sum
}

/// See [`sctp_checksum`].
#[inline(always)]
pub fn checksum(skb: *mut __sk_buff, transport: usize, len: usize) -> u32 {
    sctp_checksum(skb, transport as u32, len as u32)
}
