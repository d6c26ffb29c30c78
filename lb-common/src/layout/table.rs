//! The tables of the service side, their shapes, and the control words.

use super::{Backend, Bucket4, Bucket6, FrontendKey, SourceRanges};
use crate::address::{Address, Ip4, Ip6};
use crate::byteorder::Be16;
use crate::lookup::Tables;

/// Version of everything in `layout`. Another number in [`Control::Version`] means: these tables are not ours to read.
pub const LAYOUT_VERSION: u64 = 4;

/// A table of the service side: an array in mapped memory, rows of a fixed number of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Single words, see [`Control`].
    Control,
    /// IPv4 frontends, [`Bucket4`] rows.
    Frontends4,
    /// IPv6 frontends, [`Bucket6`] rows.
    Frontends6,
    /// Service ports, [`super::Service`] rows; row 0 is never used.
    Services,
    /// Backend indices, two to a word: runs of slots are what a Service chooses from.
    Slots,
    /// IPv4 backends, [`Backend`] rows; row 0 is never used.
    Backends4,
    /// IPv6 backends, [`Backend`] rows; row 0 is never used.
    Backends6,
    /// Names of the Service ports, [`super::ServiceName`] rows, same index as `Services`. Only the agent reads it.
    Names,
    /// Address ranges of Services (S-23): rows of address and mask, two words each.
    ServiceRanges,
    /// Sources that may use the load balancer VIPs of a Service port (S-34): runs of rows like those of `ServiceRanges`.
    SourceRanges,
    /// Entries of the connection tables by Service port, IPv4 and IPv6, same index as `Services`; row 0 has the totals. Added
    /// to by the programs, put right by the agent, which counts.
    Shares,
    /// Generations of flows: a flow cache entry is void when the generation of its tuple moved on.
    Generations,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 12] = [
        Self::Control,
        Self::Frontends4,
        Self::Frontends6,
        Self::Services,
        Self::Slots,
        Self::Backends4,
        Self::Backends6,
        Self::Names,
        Self::ServiceRanges,
        Self::SourceRanges,
        Self::Shares,
        Self::Generations,
    ];

    /// Name of the kernel map.
    pub const fn map_name(self) -> &'static str {
        match self {
            Self::Control => "CONTROL",
            Self::Frontends4 => "FRONTENDS4",
            Self::Frontends6 => "FRONTENDS6",
            Self::Services => "SERVICES",
            Self::Slots => "SLOTS",
            Self::Backends4 => "BACKENDS4",
            Self::Backends6 => "BACKENDS6",
            Self::Names => "NAMES",
            Self::ServiceRanges => "SERVICE_RANGES",
            Self::SourceRanges => "SOURCE_RANGES",
            Self::Shares => "SHARES",
            Self::Generations => "GENERATIONS",
        }
    }

    /// Words in a row, which is one element of the kernel map.
    pub const fn row_words(self) -> usize {
        match self {
            Self::Control | Self::Generations | Self::Slots => 1,
            Self::Frontends4 => Bucket4::WORDS,
            Self::Frontends6 => Bucket6::WORDS,
            Self::Services => super::Service::WORDS,
            Self::Backends4 => Backend::<Ip4>::WORDS,
            Self::Backends6 => Backend::<Ip6>::WORDS,
            Self::Names => super::ServiceName::WORDS,
            Self::ServiceRanges | Self::SourceRanges => 4,
            Self::Shares => 2,
        }
    }
}

/// Words of the control table.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// [`LAYOUT_VERSION`] once the tables are initialised, 0 before.
    Version = 0,
    /// Moves on with every change that may turn a cached answer wrong for many flows at once: a frontend came or
    /// went, a backend stopped serving, a way to a local backend changed. Cached flows then ask the tables again.
    Epoch = 1,
    /// Number of rows in use in [`Table::ServiceRanges`].
    ServiceRanges = 2,
    /// Monotonic second of the agent's last count of [`Table::Shares`], 0 before the first.
    Counted = 3,
    /// Number of Service ports that had entries in the connection tables then, IPv4 in the low half, IPv6 in the high one.
    Sharers = 4,
    /// What somebody who watches wants to be told of, a [`super::Watch`]. Written by `lb-agent watch`, every second.
    Watch = 5,
}

impl Control {
    /// Number of words in the table.
    pub const WORDS: u32 = 8;
    /// Number of generations; a power of two.
    pub const GENERATIONS: u32 = 4096;
    /// Rows of [`Table::ServiceRanges`].
    pub const MAX_SERVICE_RANGES: u32 = 16;
}

/// Position of a slot: word of [`Table::Slots`] and how far its 32 bits are shifted in it.
#[inline(always)]
pub const fn slot_of_word(slot: u32) -> (u32, u32) {
    (slot >> 1, (slot & 1) * 32)
}

/// How translated packets leave (design: forwarding modes). A load-time constant of the programs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// The host's stack routes the translated packet.
    Stack = 0,
    /// Straight into the local endpoint's device or out of the node's network card.
    Redirect = 1,
}

/// A row of a table, readable word by word.
pub trait Row {
    /// Word `index` of the row, read exactly once; `index` is below [`Table::row_words`].
    fn word(&self, index: usize) -> u64;
}

/// What differs between the address families, for code that serves both.
pub trait Family {
    /// The family's address.
    type Addr: Address;

    /// Searches one bucket of the family's frontend table.
    fn find_frontend<T: Tables>(tables: &T, bucket: u32, key: &FrontendKey<Self::Addr>) -> Option<u32>;

    /// The two buckets a key may lie in.
    fn buckets<T: Tables>(tables: &T, key: &FrontendKey<Self::Addr>) -> (u32, u32);

    /// The backend at an index.
    fn backend<T: Tables>(tables: &T, index: u32) -> Option<Backend<Self::Addr>>;

    /// The address as IPv6, an IPv4 one mapped (RFC 4291 2.5.5.2): the notation of range tables.
    fn mapped(address: Self::Addr) -> Ip6;

    /// True when the address lies in a Service range.
    #[inline(always)]
    fn in_service_ranges<T: Tables>(tables: &T, address: Self::Addr) -> bool {
        tables.in_service_ranges(Self::mapped(address))
    }

    /// True when the address lies in one of the ranges a Service port allows.
    #[inline(always)]
    fn in_source_ranges<T: Tables>(tables: &T, ranges: SourceRanges, address: Self::Addr) -> bool {
        tables.in_source_ranges(ranges, Self::mapped(address))
    }
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub enum V4 {}

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub enum V6 {}

impl Family for V4 {
    type Addr = Ip4;

    #[inline(always)]
    fn find_frontend<T: Tables>(tables: &T, bucket: u32, key: &FrontendKey<Ip4>) -> Option<u32> {
        Bucket4::find(&tables.frontends4(bucket)?, key)
    }

    #[inline(always)]
    fn buckets<T: Tables>(tables: &T, key: &FrontendKey<Ip4>) -> (u32, u32) {
        key.buckets(tables.frontend_mask4())
    }

    #[inline(always)]
    fn backend<T: Tables>(tables: &T, index: u32) -> Option<Backend<Ip4>> {
        let row = tables.backends4(index)?;
        Some(Backend::decode4([row.word(0), row.word(1), row.word(2), row.word(3)]))
    }

    #[inline(always)]
    fn mapped(address: Ip4) -> Ip6 {
        Ip6::from_raw(0, (address.raw() as u64) << 32 | 0xffff_u64.to_be() >> 32)
    }
}

impl Family for V6 {
    type Addr = Ip6;

    #[inline(always)]
    fn find_frontend<T: Tables>(tables: &T, bucket: u32, key: &FrontendKey<Ip6>) -> Option<u32> {
        Bucket6::find(&tables.frontends6(bucket)?, key)
    }

    #[inline(always)]
    fn buckets<T: Tables>(tables: &T, key: &FrontendKey<Ip6>) -> (u32, u32) {
        key.buckets(tables.frontend_mask6())
    }

    #[inline(always)]
    fn backend<T: Tables>(tables: &T, index: u32) -> Option<Backend<Ip6>> {
        let row = tables.backends6(index)?;
        Some(Backend::decode6([row.word(0), row.word(1), row.word(2), row.word(3), row.word(4), row.word(5)]))
    }

    #[inline(always)]
    fn mapped(address: Ip6) -> Ip6 {
        address
    }
}

/// A frontend key of either family is built the same way.
impl<A: Address> FrontendKey<A> {
    /// The key of an address and port of a Service.
    #[inline(always)]
    pub const fn service(address: A, port: Be16, protocol: u8) -> Self {
        Self { address, port, protocol, scope: super::SCOPE_SERVICE }
    }

    /// The key that marks an address as some Service's cluster IP (S-23).
    #[inline(always)]
    pub const fn address(address: A) -> Self {
        Self { address, port: Be16::from_raw(0), protocol: 0, scope: super::SCOPE_ADDRESS }
    }

    /// The key of a node port, at whichever node port address.
    #[inline(always)]
    pub const fn node_port(port: Be16, protocol: u8) -> Self {
        Self { address: A::UNSPECIFIED, port, protocol, scope: super::SCOPE_NODE_PORT }
    }

    /// The key that marks an address as one that node ports are served at (S-35).
    #[inline(always)]
    pub const fn node_address(address: A) -> Self {
        Self { address, port: Be16::from_raw(0), protocol: 0, scope: super::SCOPE_NODE_ADDRESS }
    }
}
