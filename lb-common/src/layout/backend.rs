//! Backend rows: where a chosen connection goes.
//!
//! A row is written whole before any slot names it. Later only its flags (word 0 for IPv4, word 2 for IPv6) and
//! its way (interface and MAC) change: the interface becomes 0, then the MAC is stored, then the new interface.

use crate::address::{Address, Ip4, Ip6};
use crate::byteorder::Be16;

/// Bits of [`Backend::flags`].
#[derive(Clone, Copy, Debug)]
pub enum BackendFlags {}

impl BackendFlags {
    /// The row is in use.
    pub const IN_USE: u16 = 1;
    /// The endpoint serves; without it UDP flows choose again (S-51), TCP flows stay (S-50).
    pub const SERVING: u16 = 2;
    /// The endpoint runs on this node; `interface` is the host side of its device.
    pub const LOCAL: u16 = 4;
    /// The endpoint is reached over the network card `interface`.
    pub const NEIGHBOUR: u16 = 8;
    /// The endpoint is in the list of class [`super::Class::Internal`]. Set before the publish word that lists it,
    /// cleared after the one that does not: an affinity counts only with the bit of its class (S-40).
    pub const IN_INTERNAL: u16 = 16;
    /// As [`Self::IN_INTERNAL`], of class [`super::Class::External`].
    pub const IN_EXTERNAL: u16 = 32;
    /// As [`Self::IN_INTERNAL`], of class [`super::Class::Cluster`].
    pub const IN_CLUSTER: u16 = 64;
}

/// One endpoint of one Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    /// Endpoint address.
    pub address: A,
    /// Endpoint port.
    pub port: Be16,
    /// [`BackendFlags`].
    pub flags: u16,
    /// Index of the Service port it belongs to.
    pub service: u32,
    /// Device that leads there, 0 when not known: then the host's stack finds the way.
    pub interface: u32,
    /// MAC address of a local endpoint.
    pub mac: [u8; 6],
}

impl<A: Address> Backend<A> {
    /// Words in a row.
    pub const WORDS: usize = if A::V6 { 6 } else { 4 };

    /// The word that holds port and flags.
    pub const FLAGS_WORD: usize = if A::V6 { 2 } else { 0 };
    /// The word that holds service and interface.
    pub const INTERFACE_WORD: usize = if A::V6 { 3 } else { 1 };
    /// The word that holds the MAC address.
    pub const MAC_WORD: usize = if A::V6 { 4 } else { 2 };

    #[inline(always)]
    const fn port_and_flags(&self) -> u32 {
        self.port.raw() as u32 | (self.flags as u32) << 16
    }

    #[inline(always)]
    const fn service_and_interface(&self) -> u64 {
        self.service as u64 | (self.interface as u64) << 32
    }

    #[inline(always)]
    const fn mac_word(&self) -> u64 {
        let m = self.mac;
        u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0])
    }

    #[inline(always)]
    const fn from_parts(address: A, ports: u32, way: u64, mac: u64) -> Self {
        let m = mac.to_ne_bytes();
        Self {
            address,
            port: Be16::from_raw(ports as u16),
            flags: (ports >> 16) as u16,
            service: way as u32,
            interface: (way >> 32) as u32,
            mac: [m[0], m[1], m[2], m[3], m[4], m[5]],
        }
    }
}

impl Backend<Ip4> {
    /// As stored.
    pub const fn encode4(&self) -> [u64; 4] {
        let first = self.address.raw() as u64 | (self.port_and_flags() as u64) << 32;
        [first, self.service_and_interface(), self.mac_word(), 0]
    }

    /// From the stored words.
    #[inline(always)]
    pub const fn decode4(words: [u64; 4]) -> Self {
        Self::from_parts(Ip4::from_raw(words[0] as u32), (words[0] >> 32) as u32, words[1], words[2])
    }
}

impl Backend<Ip6> {
    /// As stored.
    pub const fn encode6(&self) -> [u64; 6] {
        [
            self.address.first(),
            self.address.last(),
            (self.port_and_flags() as u64) << 32,
            self.service_and_interface(),
            self.mac_word(),
            0,
        ]
    }

    /// From the stored words.
    #[inline(always)]
    pub const fn decode6(words: [u64; 6]) -> Self {
        Self::from_parts(Ip6::from_raw(words[0], words[1]), (words[2] >> 32) as u32, words[3], words[4])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn backends_come_back_whole(
            first: u64, last: u64, port: u16, flags: u16, service: u32, interface: u32, mac: [u8; 6],
        ) {
            let port = Be16::new(port);
            let six = Backend { address: Ip6::from_raw(first, last), port, flags, service, interface, mac };
            prop_assert_eq!(Backend::decode6(six.encode6()), six);
            let four = Backend { address: Ip4::from_raw(first as u32), port, flags, service, interface, mac };
            prop_assert_eq!(Backend::decode4(four.encode4()), four);
        }
    }
}
