//! Fragments of datagrams: which ports the first one had, for those after it (S-72).

use crate::address::{Address, Ip6};
use crate::byteorder::Be16;
use crate::hash;
use crate::headers::Headers;

/// Key of the tables of fragments: what all fragments of a datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification, bits as in the packet.
    pub id: u32,
    /// IPv4: IP protocol number (RFC 791 3.2). IPv6: 0, because only the first fragment says what the datagram is
    /// (RFC 8200 4.5).
    pub protocol: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

impl<A: Address> FragmentKey<A> {
    /// The key of the fragment with those headers.
    #[inline(always)]
    pub const fn of(headers: &Headers<A>) -> Self {
        let protocol = if A::V6 { 0 } else { headers.protocol };
        Self { src: headers.src, dst: headers.dst, id: headers.id, protocol, zero: [0; 3] }
    }
}

/// What the first fragment of a datagram said.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentEntry {
    /// Monotonic second in which it came.
    pub seen: u32,
    /// Source port.
    pub src_port: Be16,
    /// Destination port.
    pub dst_port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

impl FragmentEntry {
    /// Entries of each table: datagrams of which fragments may be under way at the same time.
    pub const ROWS: u32 = 8_192;

    /// Seconds that an entry says something for: as long as the kernel waits for a datagram's missing fragments. After
    /// that the same identification is another datagram's. `IP_FRAG_TIME`, include/net/ip.h (RFC 1122 3.3.2);
    /// `IPV6_FRAG_TIMEOUT`, include/net/ipv6.h (RFC 8200 4.5).
    #[inline(always)]
    pub const fn lifetime(v6: bool) -> u32 {
        if v6 { 60 } else { 30 }
    }

    /// True while the entry says something, `now` in monotonic seconds.
    #[inline(always)]
    pub const fn is_valid(&self, v6: bool, now: u32) -> bool {
        now.wrapping_sub(self.seen) < Self::lifetime(v6)
    }
}

/// A later fragment that came before its first one, and waits for it: a row of the table of held fragments.
///
/// Who has the row's lock reads and writes it; without it a row can only be looked at, to see whether to try.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeldFragment {
    /// Monotonic nanosecond since when it waits; 0 = the row is free.
    pub since: u64,
    /// Of which datagram it is, IPv4 addresses mapped ([`super::Family::mapped`]).
    pub key: FragmentKey<Ip6>,
    /// Index of the device it was met at.
    pub interface: u32,
    /// Its length, from the Ethernet header on.
    pub length: u32,
    /// Number of the hook it was met at.
    pub hook: u8,
    /// Always 0.
    pub zero: [u8; 7],
    /// The fragment.
    pub frame: [u8; Self::FRAME],
}

impl HeldFragment {
    /// Longest fragment that is held, in bytes: one of a network with an MTU of 9000.
    pub const FRAME: usize = 9_216;
    /// Rows of the table, shared by all devices and both families; a power of two.
    pub const ROWS: u32 = 256;
    /// Rows that a datagram's fragments may lie in: 64, so that a word has a bit for each. The largest datagram has 44
    /// fragments where the MTU is 1500.
    pub const WINDOW: u32 = 64;
    /// Nanoseconds that a fragment waits. Packets that overtake one another on their way do so by milliseconds.
    pub const PATIENCE: u64 = 2_000_000_000;

    /// True while a row that reads `since` holds a fragment that is still waited for, at monotonic nanosecond `now`.
    #[inline(always)]
    pub const fn waits(since: u64, now: u64) -> bool {
        since != 0 && now.wrapping_sub(since) < Self::PATIENCE
    }

    /// The row at a place of the window of the datagram with that key.
    #[inline(always)]
    pub fn row(key: &FragmentKey<Ip6>, place: u32) -> u32 {
        let ends = key.src.fold() ^ key.dst.fold().rotate_left(23);
        let first = hash::mix2(ends, key.id as u64 | (key.protocol as u64) << 32) as u32;
        Self::next(first, place)
    }

    /// The row at a place of the window that begins with the row `first`.
    #[inline(always)]
    pub const fn next(first: u32, place: u32) -> u32 {
        first.wrapping_add(place) & (Self::ROWS - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::address::{Ip4, Ip6};
    use crate::headers::Part;

    #[test]
    fn keys_and_entries_have_no_padding() {
        assert_eq!(size_of::<FragmentKey<Ip4>>(), 16);
        assert_eq!(size_of::<FragmentKey<Ip6>>(), 40);
        assert_eq!(size_of::<FragmentEntry>(), 12);
        assert_eq!(size_of::<HeldFragment>(), 64 + HeldFragment::FRAME);
    }

    #[test]
    fn the_protocol_tells_datagrams_apart_in_ipv4_only() {
        fn keys<A: Address>(address: A) -> [FragmentKey<A>; 2] {
            [6, 17].map(|protocol| {
                let part = Part::Later as u8;
                let headers =
                    Headers { src: address, dst: address, id: 7, transport: 34, payload: 8, protocol, part };
                FragmentKey::of(&headers)
            })
        }
        let [tcp, udp] = keys(Ip4::from(Ipv4Addr::LOCALHOST));
        assert_ne!(tcp, udp);
        let [tcp, udp] = keys(Ip6::from(Ipv6Addr::LOCALHOST));
        assert_eq!(tcp, udp);
    }

    #[test]
    fn an_entry_is_void_when_the_kernel_no_longer_waits_for_the_datagram() {
        let port = Be16::new(1);
        let entry =
            FragmentEntry { seen: u32::MAX, src_port: port, dst_port: port, protocol: 17, zero: [0; 3] };
        for (v6, lifetime) in [(false, 30), (true, 60)] {
            assert!(entry.is_valid(v6, u32::MAX) && entry.is_valid(v6, lifetime - 2));
            assert!(!entry.is_valid(v6, lifetime - 1));
        }
    }

    #[test]
    fn a_window_is_of_different_rows_and_windows_begin_anywhere() {
        let address = Ip6::from(Ipv6Addr::LOCALHOST);
        let key = |id| FragmentKey { src: address, dst: address, id, protocol: 0, zero: [0; 3] };
        let rows = |id| (0..HeldFragment::WINDOW).map(move |place| HeldFragment::row(&key(id), place));
        let window: std::collections::BTreeSet<_> = rows(1).collect();
        assert_eq!(window.len() as u32, HeldFragment::WINDOW);
        assert!(window.iter().all(|row| *row < HeldFragment::ROWS));
        let first: std::collections::BTreeSet<_> = (0..4096).filter_map(|id| rows(id).next()).collect();
        assert_eq!(first.len() as u32, HeldFragment::ROWS);
    }

    #[test]
    fn a_fragment_waits_for_two_seconds() {
        let waits = HeldFragment::waits;
        assert!(!waits(0, 1) && waits(1, 1) && waits(1, HeldFragment::PATIENCE));
        assert!(!waits(1, HeldFragment::PATIENCE + 1));
    }
}
