//! Frontend buckets: one (IPv4) or two (IPv6) cache lines, five entries, two-choice placement by the writer.
//!
//! Writing an entry: value first, key last (IPv6: the word that holds both last). Removing: the key becomes 0.
//! A removed entry is filled again only after every program that may have matched the old key is done.

use super::Row;
use crate::address::{Address, Ip4, Ip6};
use crate::byteorder::Be16;
use crate::hash;

/// Scope of entries for an address and a Service's port on it: cluster IP, external IP or load balancer VIP.
pub const SCOPE_SERVICE: u8 = 1;
/// Scope of entries that say: this is some Service's cluster IP, whatever the port (S-23). Other frontend addresses have
/// none, because their other ports are not ours (S-37). The value is 0 or [`HAS_ENDPOINTS`].
pub const SCOPE_ADDRESS: u8 = 2;
/// Value of an address entry while clients of some Service port at the cluster IP have an endpoint to go to (S-70).
pub const HAS_ENDPOINTS: u32 = 1;
/// Scope of entries for a node port: the address is unspecified and stands for every node port address.
pub const SCOPE_NODE_PORT: u8 = 3;
/// Scope of entries that say: this is a node port address (S-35).
pub const SCOPE_NODE_ADDRESS: u8 = 4;

/// Which of a Service's fields a frontend comes from: it decides the traffic class (2.4, 2.5).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp = 0,
    /// `spec.externalIPs`.
    ExternalIp = 1,
    /// `status.loadBalancer.ingress`.
    LoadBalancer = 2,
    /// `spec.ports[].nodePort`.
    NodePort = 3,
}

impl FrontendKind {
    /// The kind with that number; an unknown one is treated as a cluster IP, the kind with the fewest rights.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::ExternalIp,
            2 => Self::LoadBalancer,
            3 => Self::NodePort,
            _ => Self::ClusterIp,
        }
    }
}

/// What a frontend leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendValue {
    /// Index of the Service port, below 2^24.
    pub service: u32,
    /// Where the frontend comes from.
    pub kind: FrontendKind,
}

impl FrontendValue {
    /// Service indices lie below this.
    pub const MAX_SERVICES: u32 = 1 << 24;

    /// As stored: the index, the kind in the upper eight bits.
    #[inline(always)]
    pub const fn encode(self) -> u32 {
        self.service & (Self::MAX_SERVICES - 1) | (self.kind as u32) << 24
    }

    /// From the stored value.
    #[inline(always)]
    pub const fn decode(value: u32) -> Self {
        Self {
            service: value & (Self::MAX_SERVICES - 1),
            kind: FrontendKind::from_number((value >> 24) as u8),
        }
    }
}

/// What a frontend is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendKey<A> {
    /// The address clients connect to.
    pub address: A,
    /// The port clients connect to.
    pub port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// One of the `SCOPE_` numbers; never 0, so that no key is 0.
    pub scope: u8,
}

impl<A: Address> FrontendKey<A> {
    /// Port, protocol and scope in 32 bits.
    #[inline(always)]
    pub const fn port_word(&self) -> u32 {
        self.port.raw() as u32 | (self.protocol as u32) << 16 | (self.scope as u32) << 24
    }

    /// The two buckets the key may lie in, of `mask + 1` buckets (a power of two).
    #[inline(always)]
    pub fn buckets(&self, mask: u32) -> (u32, u32) {
        let hash = if A::V6 {
            hash::mix2(self.address.fold(), self.port_word() as u64)
        } else {
            hash::mix(self.address.fold() | (self.port_word() as u64) << 32)
        };
        (hash as u32 & mask, (hash >> 32) as u32 & mask)
    }
}

impl FrontendKey<Ip4> {
    /// The whole key in one word.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        self.address.raw() as u64 | (self.port_word() as u64) << 32
    }
}

/// IPv4 bucket: words 0 to 4 are keys, words 5 to 7 hold the five values ([`FrontendValue`]), two to a word.
#[derive(Clone, Copy, Debug)]
pub enum Bucket4 {}

impl Bucket4 {
    /// Entries in a bucket.
    pub const ENTRIES: usize = 5;
    /// Words in a bucket.
    pub const WORDS: usize = 8;

    /// Word of the value of `entry`, and its shift within.
    #[inline(always)]
    pub const fn value_position(entry: usize) -> (usize, u32) {
        (5 + entry / 2, (entry as u32 & 1) * 32)
    }

    /// The value stored under `key`, see [`FrontendValue`].
    #[inline(always)]
    pub fn find<R: Row>(row: &R, key: &FrontendKey<Ip4>) -> Option<u32> {
        let wanted = key.word();
        let mut entry = 0;
        while entry < Self::ENTRIES {
            if row.word(entry) == wanted {
                let (word, shift) = Self::value_position(entry);
                return Some((row.word(word) >> shift) as u32);
            }
            entry += 1;
        }
        None
    }
}

/// IPv6 bucket: three words an entry: both halves of the address, then port word << 32 | value
/// ([`FrontendValue`]).
#[derive(Clone, Copy, Debug)]
pub enum Bucket6 {}

impl Bucket6 {
    /// Entries in a bucket.
    pub const ENTRIES: usize = 5;
    /// Words in a bucket.
    pub const WORDS: usize = 16;

    /// First word of `entry`; the word that publishes it is two further.
    #[inline(always)]
    pub const fn position(entry: usize) -> usize {
        entry * 3
    }

    /// The word that publishes an entry.
    #[inline(always)]
    pub const fn publish(key: &FrontendKey<Ip6>, value: u32) -> u64
    where
        Ip6: Address,
    {
        let port_word = key.port.raw() as u32 | (key.protocol as u32) << 16 | (key.scope as u32) << 24;
        (port_word as u64) << 32 | value as u64
    }

    /// The value stored under `key`, see [`FrontendValue`].
    #[inline(always)]
    pub fn find<R: Row>(row: &R, key: &FrontendKey<Ip6>) -> Option<u32> {
        let mut entry = 0;
        while entry < Self::ENTRIES {
            let at = Self::position(entry);
            let published = row.word(at + 2);
            if (published >> 32) as u32 == key.port_word()
                && row.word(at) == key.address.first()
                && row.word(at + 1) == key.address.last()
            {
                return Some(published as u32);
            }
            entry += 1;
        }
        None
    }
}
