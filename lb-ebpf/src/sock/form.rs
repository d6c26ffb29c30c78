//! How an address lies in the context of a program, and what differs between the families.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use lb_common::address::{Address as _, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{Family, SocketEnd, V4, V6};

use crate::net::Net;

/// The third word of an IPv4 address in IPv6 notation (RFC 4291 2.5.5.2).
const MAPPED: u32 = 0xffff_u32.to_be();

/// What sockets need to know about an address family.
pub trait Sockets: Net {
    /// `127.0.0.1` or `::1`.
    const LOOPBACK: Self::Addr;

    /// The address in IPv6 notation back in its own.
    fn unmapped(address: Ip6) -> Self::Addr;

    /// What stands for a pod's address before its packets have one: made of the cookie of its network namespace, from
    /// the multicast range, which no packet comes from.
    fn of_namespace(cookie: u64) -> Self::Addr;

    /// The address that an application means: `0.0.0.0` and `::` mean its own host (`tcp_v4_connect`, `tcp_v6_connect`).
    fn meant(address: Self::Addr) -> Self::Addr;

    /// The address that stands in the tables for it: all of 127.0.0.0/8 is the host itself.
    fn listed(address: Self::Addr) -> Self::Addr;
}

const fn ip4(a: u8, b: u8, c: u8, d: u8) -> Ip4 {
    Ip4::from_raw(u32::from_ne_bytes([a, b, c, d]))
}

impl Sockets for V4 {
    const LOOPBACK: Ip4 = ip4(127, 0, 0, 1);

    #[inline(always)]
    fn unmapped(address: Ip6) -> Ip4 {
        Ip4::from_raw((address.last() >> 32) as u32)
    }

    #[inline(always)]
    fn of_namespace(cookie: u64) -> Ip4 {
        Ip4::from_raw((0xe000_0000 | (cookie as u32 & 0x0fff_ffff)).to_be())
    }

    #[inline(always)]
    fn meant(address: Ip4) -> Ip4 {
        if address == Ip4::UNSPECIFIED { Self::LOOPBACK } else { address }
    }

    #[inline(always)]
    fn listed(address: Ip4) -> Ip4 {
        const NETWORK: u32 = ip4(255, 0, 0, 0).raw();
        if address.raw() & NETWORK == ip4(127, 0, 0, 0).raw() { Self::LOOPBACK } else { address }
    }
}

impl Sockets for V6 {
    const LOOPBACK: Ip6 = Ip6::from_raw(0, 1_u64.to_be());

    #[inline(always)]
    fn unmapped(address: Ip6) -> Ip6 {
        address
    }

    #[inline(always)]
    fn of_namespace(cookie: u64) -> Ip6 {
        Ip6::from_raw(0xff00_0000_0000_0000_u64.to_be(), cookie)
    }

    #[inline(always)]
    fn meant(address: Ip6) -> Ip6 {
        if address == Ip6::UNSPECIFIED { Self::LOOPBACK } else { address }
    }

    #[inline(always)]
    fn listed(address: Ip6) -> Ip6 {
        address
    }
}

/// A place in the context where an address stands.
pub trait Form {
    /// The family of the address.
    type Net: Sockets;

    /// Address and port in the context.
    fn end(ctx: *mut bpf_sock_addr) -> SocketEnd;

    /// Writes address and port.
    fn store(ctx: *mut bpf_sock_addr, end: &SocketEnd);
}

/// IPv4 in an IPv4 address structure.
pub enum Plain4 {}
/// IPv6.
pub enum Plain6 {}
/// IPv4 in an IPv6 address structure.
pub enum Mapped4 {}

/// The socket's protocol; 0 for one that does not fit into an IP header (MPTCP).
#[inline(always)]
pub fn protocol(ctx: *mut bpf_sock_addr) -> u8 {
    // SAFETY: the context pointer is valid for the whole run of the program (here and below). All accesses are volatile
    // and of 32 bits: the kernel allows no others to these fields (`sock_addr_is_valid_access`, net/core/filter.c).
    let protocol = unsafe { (&raw const (*ctx).protocol).read_volatile() };
    if protocol < 256 { protocol as u8 } else { 0 }
}

/// True when the IPv6 address structure in the context holds an IPv4 address.
#[inline(always)]
pub fn is_mapped(ctx: *mut bpf_sock_addr) -> bool {
    word(ctx, 0) == 0 && word(ctx, 1) == 0 && word(ctx, 2) == MAPPED
}

#[inline(always)]
fn word(ctx: *mut bpf_sock_addr, index: usize) -> u32 {
    // SAFETY: see `protocol`; the index is a constant below 4.
    unsafe { (&raw const (*ctx).user_ip6[index]).read_volatile() }
}

#[inline(always)]
fn set_word(ctx: *mut bpf_sock_addr, index: usize, value: u32) {
    // SAFETY: see `word`.
    unsafe { (&raw mut (*ctx).user_ip6[index]).write_volatile(value) }
}

/// The port in the context.
#[inline(always)]
pub fn port(ctx: *mut bpf_sock_addr) -> Be16 {
    // SAFETY: see `protocol`.
    Be16::from_raw(unsafe { (&raw const (*ctx).user_port).read_volatile() } as u16)
}

/// The port of a socket's peer, 0 when it has none.
#[inline(always)]
pub fn peer_port(ctx: *mut bpf_sock) -> Be16 {
    // SAFETY: as in `protocol`; a field of 16 bits (`bpf_sock_is_valid_access`, net/core/filter.c).
    Be16::from_raw(unsafe { (&raw const (*ctx).dst_port).read_volatile() })
}

#[inline(always)]
fn set_port(ctx: *mut bpf_sock_addr, port: Be16) {
    // SAFETY: see `protocol`.
    unsafe { (&raw mut (*ctx).user_port).write_volatile(port.raw() as u32) }
}

impl Form for Plain4 {
    type Net = V4;

    #[inline(always)]
    fn end(ctx: *mut bpf_sock_addr) -> SocketEnd {
        // SAFETY: see `protocol`.
        let address = Ip4::from_raw(unsafe { (&raw const (*ctx).user_ip4).read_volatile() });
        SocketEnd::new(V4::mapped(address), port(ctx))
    }

    #[inline(always)]
    fn store(ctx: *mut bpf_sock_addr, end: &SocketEnd) {
        let address = V4::unmapped(end.address).raw();
        // SAFETY: see `protocol`.
        unsafe { (&raw mut (*ctx).user_ip4).write_volatile(address) };
        set_port(ctx, end.port);
    }
}

impl Form for Mapped4 {
    type Net = V4;

    #[inline(always)]
    fn end(ctx: *mut bpf_sock_addr) -> SocketEnd {
        SocketEnd::new(V4::mapped(Ip4::from_raw(word(ctx, 3))), port(ctx))
    }

    #[inline(always)]
    fn store(ctx: *mut bpf_sock_addr, end: &SocketEnd) {
        set_word(ctx, 3, V4::unmapped(end.address).raw());
        set_port(ctx, end.port);
    }
}

impl Form for Plain6 {
    type Net = V6;

    #[inline(always)]
    fn end(ctx: *mut bpf_sock_addr) -> SocketEnd {
        let half = |index| word(ctx, index) as u64 | (word(ctx, index + 1) as u64) << 32;
        SocketEnd::new(Ip6::from_raw(half(0), half(2)), port(ctx))
    }

    #[inline(always)]
    fn store(ctx: *mut bpf_sock_addr, end: &SocketEnd) {
        let (first, last) = (end.address.first(), end.address.last());
        set_word(ctx, 0, first as u32);
        set_word(ctx, 1, (first >> 32) as u32);
        set_word(ctx, 2, last as u32);
        set_word(ctx, 3, (last >> 32) as u32);
        set_port(ctx, end.port);
    }
}
