//! IP addresses as they lie in packets, and the trait that lets one piece of code serve both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;

/// An IPv4 address, bits as in the packet.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip4(u32);

/// An IPv6 address, two halves with bits as in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip6 {
    first: u64,
    last: u64,
}

/// What the datapath needs of an address, whichever family it is.
pub trait Address: Copy + PartialEq + 'static {
    /// True for IPv6.
    const V6: bool;
    /// `0.0.0.0` or `::`.
    const UNSPECIFIED: Self;

    /// Adds the address to a one's complement sum.
    fn add_to(self, sum: Sum) -> Sum;

    /// Folds the address into one word for hashing.
    fn fold(self) -> u64;

    /// Takes the address into a hash, see [`crate::hash::absorb`].
    fn absorb(self, state: u64) -> u64;

    /// True for addresses that mean the host itself: 127.0.0.0/8 (RFC 1122 3.2.1.3), `::1` (RFC 4291 2.5.3).
    fn is_loopback(self) -> bool;

    /// True for addresses that no packet on a wire comes from: unspecified (IPv4: all of 0.0.0.0/8), loopback, multicast
    /// and the limited broadcast (RFC 1122 3.2.1.3, RFC 4291 2.5.2, 2.5.3 and 2.7).
    fn is_nobody(self) -> bool;

    /// As a standard library address.
    fn to_ip(self) -> IpAddr;
}

impl Ip4 {
    /// From the bits as loaded from a packet.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The bits as they lie in a packet.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl From<Ipv4Addr> for Ip4 {
    fn from(address: Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(address.octets()))
    }
}

impl Address for Ip4 {
    const V6: bool = false;
    const UNSPECIFIED: Self = Self(0);

    #[inline(always)]
    fn add_to(self, sum: Sum) -> Sum {
        sum.add_u32(self.0)
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn absorb(self, state: u64) -> u64 {
        // Two of them make one word.
        (state << 32) ^ self.0 as u64
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.0.to_ne_bytes()[0] == 127
    }

    #[inline(always)]
    fn is_nobody(self) -> bool {
        let first = self.0.to_ne_bytes()[0];
        first == 0 || first == 127 || first & 0xf0 == 224 || self.0 == u32::MAX
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self.0.to_ne_bytes()))
    }
}

impl Ip6 {
    /// From the two halves as loaded from a packet.
    #[inline(always)]
    pub const fn from_raw(first: u64, last: u64) -> Self {
        Self { first, last }
    }

    /// The first eight bytes as they lie in a packet.
    #[inline(always)]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The last eight bytes as they lie in a packet.
    #[inline(always)]
    pub const fn last(self) -> u64 {
        self.last
    }
}

impl From<Ipv6Addr> for Ip6 {
    fn from(address: Ipv6Addr) -> Self {
        let octets = address.octets();
        let (mut first, mut last) = ([0; 8], [0; 8]);
        first.copy_from_slice(&octets[..8]);
        last.copy_from_slice(&octets[8..]);
        Self { first: u64::from_ne_bytes(first), last: u64::from_ne_bytes(last) }
    }
}

impl Address for Ip6 {
    const V6: bool = true;
    const UNSPECIFIED: Self = Self { first: 0, last: 0 };

    #[inline(always)]
    fn add_to(self, sum: Sum) -> Sum {
        sum.add_u64(self.first).add_u64(self.last)
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        crate::hash::mix(self.first) ^ self.last
    }

    #[inline(always)]
    fn absorb(self, state: u64) -> u64 {
        crate::hash::absorb(crate::hash::absorb(state, self.first), self.last)
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.first == 0 && self.last == 1_u64.to_be()
    }

    #[inline(always)]
    fn is_nobody(self) -> bool {
        let multicast = self.first.to_ne_bytes()[0] == 0xff;
        multicast || (self.first == 0 && (self.last == 0 || self.last == 1_u64.to_be()))
    }

    fn to_ip(self) -> IpAddr {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&self.first.to_ne_bytes());
        octets[8..].copy_from_slice(&self.last.to_ne_bytes());
        IpAddr::V6(Ipv6Addr::from(octets))
    }
}
