//! Session affinity (S-40): which endpoint a client's last new connection to a Service port went to.

use super::{Backend, Class};
use crate::address::Address;
use crate::byteorder::Be16;

/// Key of the affinity tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityKey<A> {
    /// Source address of the client as it arrived; unspecified for processes of the node.
    pub client: A,
    /// Index of the Service port.
    pub service: u32,
    /// [`super::Policy::generation`] of its row: what clients of an earlier Service port in the same row were given
    /// is never found.
    pub generation: u32,
}

/// What is remembered. Names the endpoint beside its row, because rows are used again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityEntry<A> {
    /// Address of the endpoint.
    pub address: A,
    /// Index of its backend row.
    pub backend: u32,
    /// Monotonic second of the client's last new connection.
    pub last_new: u32,
    /// Port of the endpoint.
    pub port: Be16,
    /// Always 0.
    pub zero: [u16; 3],
}

impl<A: Address> AffinityEntry<A> {
    /// True when the client is to stay: the time is not over (`now` and `timeout` in seconds) and the endpoint, whose
    /// row reads `backend` now, is in the list of the class.
    #[inline(always)]
    pub fn holds(&self, backend: &Backend<A>, service: u32, class: Class, now: u32, timeout: u32) -> bool {
        now.wrapping_sub(self.last_new) < timeout
            && backend.service == service
            && backend.port == self.port
            && backend.address == self.address
            && backend.flags & class.backend_flag() != 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::address::{Ip4, Ip6};
    use crate::layout::BackendFlags;

    #[test]
    fn keys_and_entries_have_no_padding() {
        assert_eq!(size_of::<AffinityKey<Ip4>>(), 12);
        assert_eq!(size_of::<AffinityKey<Ip6>>(), 24);
        assert_eq!(size_of::<AffinityEntry<Ip4>>(), 20);
        assert_eq!(size_of::<AffinityEntry<Ip6>>(), 32);
    }

    #[test]
    fn an_affinity_ends_with_its_time_its_list_and_its_endpoint() {
        let (address, port) = (Ip4::from(Ipv4Addr::new(10, 1, 0, 1)), Be16::new(8080));
        let entry = AffinityEntry { address, backend: 3, last_new: 100, port, zero: [0; 3] };
        let flags = BackendFlags::IN_USE | BackendFlags::IN_INTERNAL;
        let backend = Backend { address, port, flags, service: 7, interface: 0, mac: [0; 6] };
        assert!(entry.holds(&backend, 7, Class::Internal, 109, 10));
        assert!(!entry.holds(&backend, 7, Class::Internal, 110, 10), "over");
        assert!(!entry.holds(&backend, 7, Class::External, 101, 10), "not in that list");
        assert!(!entry.holds(&backend, 8, Class::Internal, 101, 10), "row of another Service");
        let moved = Backend { address: Ip4::from(Ipv4Addr::new(10, 1, 0, 2)), ..backend };
        assert!(!entry.holds(&moved, 7, Class::Internal, 101, 10), "row of another endpoint");
    }
}
