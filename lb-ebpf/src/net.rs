//! What differs between IPv4 and IPv6 in the programs.

use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray};
use lb_common::address::{Ip4, Ip6};
use lb_common::checksum;
use lb_common::headers::{self, Bytes as _, Headers, Unreadable};
use lb_common::layout::{
    AffinityEntry, AffinityKey, BackendStat, ConnEntry, Family, FlowEntry, FragmentEntry, FragmentKey,
    MasqueradeAddresses, V4, V6,
};
use lb_common::proto;
use lb_common::tuple::{Rewrite, Tuple};

use crate::access::{self, Context, ETH_LEN};
use crate::maps::{
    AFFINITY4, AFFINITY6, BACKEND_STATS4, BACKEND_STATS6, CONNS4, CONNS6, FLOWS4, FLOWS6, FRAGMENTS4,
    FRAGMENTS6, RECENT4, RECENT6, SCRATCH4, SCRATCH6, Scratch,
};
use crate::parse::{self, Parsed};
use crate::unusual::Frame;

/// A set of the flow cache.
pub type FlowSet<A> = [FlowEntry<A>; 2];

/// An address family as the programs see it.
pub trait Net: Family {
    /// Parses a packet of the family.
    fn parse(packet: impl Context, hook: u8) -> Parsed<Self::Addr>;

    /// IP protocol number of the family's ICMP.
    const ICMP: u8;
    /// Type of an echo request.
    const ECHO_REQUEST: u8;

    /// True for the types of ICMP messages that quote a packet.
    fn is_icmp_error(kind: u8) -> bool;

    /// Reads the headers of a packet of the family, the careful way.
    fn headers(frame: &Frame) -> Result<Headers<Self::Addr>, Unreadable<Self::Addr>>;

    /// Stores new addresses, and the header checksum where there is one.
    fn store_addresses(packet: impl Context, rewrite: &Rewrite<Self::Addr>) -> Option<()>;

    /// As [`Net::store_addresses`], in the IP header at an address.
    ///
    /// # Safety
    /// All of a header without options can be written there.
    unsafe fn write_addresses(header: *mut u8, rewrite: &Rewrite<Self::Addr>);

    /// The family's flow cache.
    fn flows() -> &'static Array<FlowSet<Self::Addr>>;

    /// The family's connection table.
    fn conns() -> &'static LruHashMap<Tuple<Self::Addr>, ConnEntry<Self::Addr>>;

    /// The family's rings of recent flows.
    fn recent() -> &'static Array<Tuple<Self::Addr>>;

    /// The family's session affinities.
    fn affinities() -> &'static LruHashMap<AffinityKey<Self::Addr>, AffinityEntry<Self::Addr>>;

    /// Ports of the family's datagrams that came in fragments.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self::Addr>, FragmentEntry>;

    /// The family's address in a row of addresses to masquerade with.
    fn masquerade_address(addresses: &MasqueradeAddresses) -> Self::Addr;

    /// The family's working memory on this CPU.
    fn scratch() -> Option<&'static mut Scratch<Self::Addr>>;

    /// The family's backend counters.
    fn backend_stats() -> &'static PerCpuArray<[u64; BackendStat::WORDS]>;
}

impl Net for V4 {
    #[inline(always)]
    fn parse(packet: impl Context, hook: u8) -> Parsed<Ip4> {
        parse::ipv4(packet, hook)
    }

    const ICMP: u8 = proto::ICMP;
    const ECHO_REQUEST: u8 = 8;

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Destination unreachable, source quench, time exceeded, parameter problem (RFC 792). Redirects are about the way
        // from one machine to the next.
        matches!(kind, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    fn headers(frame: &Frame) -> Result<Headers<Ip4>, Unreadable<Ip4>> {
        headers::ipv4(frame, ETH_LEN)
    }

    #[inline(always)]
    fn store_addresses(packet: impl Context, rewrite: &Rewrite<Ip4>) -> Option<()> {
        let header = access::at_mut::<[u8; 20]>(packet, ETH_LEN)?.cast::<u8>();
        // SAFETY: `at_mut` checked the 20 bytes.
        unsafe { Self::write_addresses(header, rewrite) };
        Some(())
    }

    #[inline(always)]
    unsafe fn write_addresses(header: *mut u8, rewrite: &Rewrite<Ip4>) {
        // SAFETY: the caller vouches for the 20 bytes; checksum at 10, source at 12, destination at 16 (RFC 791).
        unsafe {
            let field = header.add(10).cast::<u16>();
            *field = checksum::update(*field, rewrite.address_difference);
            *header.add(12).cast::<u32>() = rewrite.src.raw();
            *header.add(16).cast::<u32>() = rewrite.dst.raw();
        }
    }

    #[inline(always)]
    fn flows() -> &'static Array<FlowSet<Ip4>> {
        &FLOWS4
    }

    #[inline(always)]
    fn conns() -> &'static LruHashMap<Tuple<Ip4>, ConnEntry<Ip4>> {
        &CONNS4
    }

    #[inline(always)]
    fn recent() -> &'static Array<Tuple<Ip4>> {
        &RECENT4
    }

    #[inline(always)]
    fn affinities() -> &'static LruHashMap<AffinityKey<Ip4>, AffinityEntry<Ip4>> {
        &AFFINITY4
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Ip4>, FragmentEntry> {
        &FRAGMENTS4
    }

    #[inline(always)]
    fn masquerade_address(addresses: &MasqueradeAddresses) -> Ip4 {
        addresses.v4
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<Ip4>> {
        // SAFETY: an element of this CPU alone, and programs do not interrupt each other on a CPU.
        SCRATCH4.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn backend_stats() -> &'static PerCpuArray<[u64; BackendStat::WORDS]> {
        &BACKEND_STATS4
    }
}

impl Net for V6 {
    #[inline(always)]
    fn parse(packet: impl Context, hook: u8) -> Parsed<Ip6> {
        parse::ipv6(packet, hook)
    }

    const ICMP: u8 = proto::ICMPV6;
    const ECHO_REQUEST: u8 = 128;

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Errors have types below 128 (RFC 4443 2.1).
        kind < 128
    }

    #[inline(always)]
    fn headers(frame: &Frame) -> Result<Headers<Ip6>, Unreadable<Ip6>> {
        frame.ipv6_headers(ETH_LEN)
    }

    #[inline(always)]
    fn store_addresses(packet: impl Context, rewrite: &Rewrite<Ip6>) -> Option<()> {
        let header = access::at_mut::<[u8; 40]>(packet, ETH_LEN)?.cast::<u8>();
        // SAFETY: `at_mut` checked the 40 bytes.
        unsafe { Self::write_addresses(header, rewrite) };
        Some(())
    }

    #[inline(always)]
    unsafe fn write_addresses(header: *mut u8, rewrite: &Rewrite<Ip6>) {
        let words = [rewrite.src.first(), rewrite.src.last(), rewrite.dst.first(), rewrite.dst.last()];
        for (index, word) in words.into_iter().enumerate() {
            // SAFETY: the caller vouches for the 40 bytes; source at 8, destination at 24 (RFC 8200).
            unsafe {
                *header.add(8 + index * 8).cast::<u32>() = word as u32;
                *header.add(12 + index * 8).cast::<u32>() = (word >> 32) as u32;
            }
        }
    }

    #[inline(always)]
    fn flows() -> &'static Array<FlowSet<Ip6>> {
        &FLOWS6
    }

    #[inline(always)]
    fn conns() -> &'static LruHashMap<Tuple<Ip6>, ConnEntry<Ip6>> {
        &CONNS6
    }

    #[inline(always)]
    fn recent() -> &'static Array<Tuple<Ip6>> {
        &RECENT6
    }

    #[inline(always)]
    fn affinities() -> &'static LruHashMap<AffinityKey<Ip6>, AffinityEntry<Ip6>> {
        &AFFINITY6
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<Ip6>, FragmentEntry> {
        &FRAGMENTS6
    }

    #[inline(always)]
    fn masquerade_address(addresses: &MasqueradeAddresses) -> Ip6 {
        addresses.v6
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch<Ip6>> {
        // SAFETY: an element of this CPU alone, and programs do not interrupt each other on a CPU.
        SCRATCH6.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
    }

    #[inline(always)]
    fn backend_stats() -> &'static PerCpuArray<[u64; BackendStat::WORDS]> {
        &BACKEND_STATS6
    }
}
