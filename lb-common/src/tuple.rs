//! Flow tuples and what a translation makes of them.

use crate::address::Address;
use crate::byteorder::Be16;
use crate::checksum::Sum;
use crate::hash;

/// A flow as a packet carries it. Key of the connection tables: no padding may stay unset.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: Be16,
    /// Destination port.
    pub dst_port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// 0 in the connection tables; the hook in the flow cache, whose entries differ by hook.
    pub hook: u8,
    /// Always 0.
    pub zero: u16,
}

impl<A: Address> Tuple<A> {
    /// A tuple as the connection tables know it.
    #[inline(always)]
    pub const fn new(src: A, dst: A, src_port: Be16, dst_port: Be16, protocol: u8) -> Self {
        Self { src, dst, src_port, dst_port, protocol, hook: 0, zero: 0 }
    }

    /// The hash that places the tuple in the flow cache and among the generations.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        hash::finish(hash::absorb(self.ends(), self.ports_and_protocol()))
    }

    /// Both addresses in one word: of IPv4 as it lies in (little-endian) memory, of IPv6 a part of the hash.
    #[inline(always)]
    pub fn ends(&self) -> u64 {
        self.src.absorb(self.dst.absorb(0))
    }

    /// Ports and protocol in the lower 40 bits.
    #[inline(always)]
    const fn ports_and_protocol(&self) -> u64 {
        (self.src_port.raw() as u32 | (self.dst_port.raw() as u32) << 16) as u64
            | (self.protocol as u64) << 32
    }

    /// All behind the addresses in one word, as it lies in (little-endian) memory.
    #[inline(always)]
    pub const fn tail(&self) -> u64 {
        self.ports_and_protocol() | (self.hook as u64) << 40 | (self.zero as u64) << 48
    }
}

/// What a Maglev table is asked with: the client's address and port, and nothing that differs from node to node. Without a
/// port (0) all connections of a client hash alike, as with session affinity they should.
#[inline(always)]
pub fn client_hash<A: Address>(client: A, port: Be16) -> u32 {
    (hash::mix2(client.fold(), port.raw() as u64) >> 32) as u32
}

/// What a packet of a flow becomes: the new tuple and the checksum differences that go with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// New source address.
    pub src: A,
    /// New destination address.
    pub dst: A,
    /// New source port.
    pub src_port: Be16,
    /// New destination port.
    pub dst_port: Be16,
    /// Difference of the address sums: IPv4 header checksum, and transport checksums not completed yet.
    pub address_difference: u16,
    /// Difference of the sums over addresses and ports: completed transport checksums.
    pub full_difference: u16,
}

impl<A: Address> Rewrite<A> {
    /// The translation of `from` into the given tuple.
    #[inline(always)]
    pub fn new(from: &Tuple<A>, src: A, dst: A, src_port: Be16, dst_port: Be16) -> Self {
        let old = from.dst.add_to(from.src.add_to(Sum::new()));
        let new = dst.add_to(src.add_to(Sum::new()));
        let old_ports = old.add_u16(from.src_port.raw()).add_u16(from.dst_port.raw());
        let new_ports = new.add_u16(src_port.raw()).add_u16(dst_port.raw());
        Self {
            src,
            dst,
            src_port,
            dst_port,
            address_difference: new.difference(old),
            full_difference: new_ports.difference(old_ports),
        }
    }

    /// The tuple that the other direction of the flow arrives with.
    #[inline(always)]
    pub const fn reply(&self, protocol: u8) -> Tuple<A> {
        Tuple::new(self.dst, self.src, self.dst_port, self.src_port, protocol)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::address::{Ip4, Ip6};

    #[test]
    fn the_keys_of_the_kernel_tables_have_no_padding() {
        assert_eq!(size_of::<Tuple<Ip4>>(), 16);
        assert_eq!(size_of::<Tuple<Ip6>>(), 40);
        assert_eq!(size_of::<Rewrite<Ip4>>(), 16);
        assert_eq!(size_of::<Rewrite<Ip6>>(), 40);
    }

    #[test]
    fn the_reply_of_a_reply_is_the_flow_itself() {
        let a = Ip6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
        let vip = Ip6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
        let b = Ip6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3));
        let flow = Tuple::new(a, vip, Be16::new(4000), Be16::new(80), 6);
        let forward = Rewrite::new(&flow, a, b, Be16::new(4000), Be16::new(8080));
        let reply = forward.reply(6);
        assert_eq!((reply.src, reply.dst, reply.src_port.host()), (b, a, 8080));
        let back = Rewrite::new(&reply, vip, a, Be16::new(80), Be16::new(4000));
        assert_eq!(back.reply(6), flow);
    }

    /// Nodes of different versions have to agree: who changes this moves clients while a cluster is upgraded.
    #[test]
    fn the_hash_of_a_client_is_fixed_and_even() {
        let (four, six) = (
            Ip4::from(Ipv4Addr::new(192, 0, 2, 7)),
            Ip6::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
        );
        let hashes = [
            client_hash(four, Be16::new(40_000)),
            client_hash(four, Be16::new(0)),
            client_hash(six, Be16::new(40_000)),
        ];
        assert_eq!(hashes, [3_164_039_545, 4_195_023_192, 957_941_708]);
        let mut sixteenths = [0u32; 16];
        for port in 1024..=u16::MAX {
            sixteenths[(client_hash(four, Be16::new(port)) >> 28) as usize] += 1;
        }
        let even = 64_512 / 16;
        assert!(sixteenths.iter().all(|count| count.abs_diff(even) < even / 10), "{sixteenths:?}");
    }

    #[test]
    fn tuples_that_differ_in_one_port_bit_hash_apart() {
        let (a, b) = (Ip4::from(Ipv4Addr::new(10, 0, 0, 1)), Ip4::from(Ipv4Addr::new(10, 96, 0, 1)));
        let hash = |port| Tuple::new(a, b, Be16::new(port), Be16::new(80), 6).hash();
        let low: std::collections::BTreeSet<_> = (1024..5120).map(|port| hash(port) & 0xfff).collect();
        assert!(low.len() > 2400, "{} of 4096 generations used by 4096 ports", low.len());
    }
}
