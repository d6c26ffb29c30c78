//! What every map has to look like. The loader reuses pinned maps without asking; this asks.

use lb_common::address::{Ip4, Ip6};
use lb_common::handshake::Histogram;
use lb_common::layout::{
    AffinityEntry, AffinityKey, BackendStat, ConnEntry, ConnectedSocket, Event, EventRate, FragmentEntry,
    FragmentKey, MasqueradeAddresses, SeenPorts, ServiceStat, SocketFlow, SocketKey, SocketPeer, Table,
    WireStat,
};
use lb_common::tuple::Tuple;

use super::events::Events;
use super::sizes::Sizes;
use super::sys::MapInfo;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const RING_BUFFER: u32 = 27;
const MMAPABLE: u32 = 1 << 10;

/// A map that is pinned and adopted by the next agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// A table of the service side.
    Table(Table),
    /// IPv4 connections.
    Connections4,
    /// IPv6 connections.
    Connections6,
    /// Session affinity of IPv4 clients.
    Affinity4,
    /// Session affinity of IPv6 clients.
    Affinity6,
    /// Ports of IPv4 datagrams that came in fragments.
    Fragments4,
    /// Ports of IPv6 datagrams that came in fragments.
    Fragments6,
    /// Addresses to masquerade with, by interface.
    Masquerade,
    /// Sockets that are connected to a Service.
    Sockets,
    /// Endpoints of unconnected UDP sockets.
    SocketFlows,
    /// Frontends of unconnected UDP sockets.
    SocketPeers,
    /// Ports that Services have something to do with.
    Ports,
    /// Counters by Service port.
    ServiceStats,
    /// Counters by IPv4 backend.
    BackendStats4,
    /// Counters by IPv6 backend.
    BackendStats6,
    /// Counters by reason.
    Reasons,
    /// How long endpoints took to answer.
    Handshakes,
    /// Records for somebody who watches.
    Events,
    /// How many records there were.
    EventRates,
    /// Service ports that are watched.
    Watched,
    /// Counters of packets that the XDP program sent on.
    WireStats,
}

/// Kind and sizes of a map, all but its number of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    kind: u32,
    key_size: u32,
    value_size: u32,
    flags: u32,
}

impl Map {
    /// Every pinned map.
    pub fn all() -> impl Iterator<Item = Self> {
        Table::ALL.into_iter().map(Self::Table).chain([
            Self::Connections4,
            Self::Connections6,
            Self::Affinity4,
            Self::Affinity6,
            Self::Fragments4,
            Self::Fragments6,
            Self::Masquerade,
            Self::Sockets,
            Self::SocketFlows,
            Self::SocketPeers,
            Self::Ports,
            Self::ServiceStats,
            Self::BackendStats4,
            Self::BackendStats6,
            Self::Reasons,
            Self::WireStats,
            Self::Handshakes,
            Self::Events,
            Self::EventRates,
            Self::Watched,
        ])
    }

    /// Name in the object and of the pin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Table(table) => table.map_name(),
            Self::Connections4 => "CONNS4",
            Self::Connections6 => "CONNS6",
            Self::Affinity4 => "AFFINITY4",
            Self::Affinity6 => "AFFINITY6",
            Self::Fragments4 => "FRAGMENTS4",
            Self::Fragments6 => "FRAGMENTS6",
            Self::Masquerade => "MASQUERADE",
            Self::Sockets => "SOCKETS",
            Self::SocketFlows => "SOCKET_FLOWS",
            Self::SocketPeers => "SOCKET_PEERS",
            Self::Ports => "PORTS",
            Self::ServiceStats => "SERVICE_STATS",
            Self::BackendStats4 => "BACKEND_STATS4",
            Self::BackendStats6 => "BACKEND_STATS6",
            Self::Reasons => "REASONS",
            Self::WireStats => "WIRE_STATS",
            Self::Handshakes => "HANDSHAKES",
            Self::Events => "EVENTS",
            Self::EventRates => "EVENT_RATES",
            Self::Watched => "WATCHED",
        }
    }

    /// True for maps that only the agent writes, and programs read: two instances of the programs may have them in common
    /// and know nothing of each other.
    pub const fn is_read_only(self) -> bool {
        match self {
            Self::Table(table) => !matches!(table, Table::Generations | Table::Shares),
            Self::Masquerade => true,
            _ => false,
        }
    }

    /// Elements that a new map gets.
    pub fn max_entries(self, sizes: &Sizes) -> u32 {
        match self {
            Self::Table(table) => sizes.rows(table),
            Self::Connections4 | Self::Connections6 => sizes.connections,
            Self::Affinity4 | Self::Affinity6 => sizes.affinities(),
            Self::Fragments4 | Self::Fragments6 => FragmentEntry::ROWS,
            Self::Masquerade => MasqueradeAddresses::ROWS,
            Self::Sockets | Self::SocketFlows | Self::SocketPeers => sizes.sockets(),
            Self::Ports => SeenPorts::ROWS,
            Self::ServiceStats => sizes.rows(Table::Services),
            Self::BackendStats4 => sizes.rows(Table::Backends4),
            Self::BackendStats6 => sizes.rows(Table::Backends6),
            Self::Reasons => Sizes::REASONS,
            Self::WireStats => WireStat::COUNTERS,
            Self::Handshakes | Self::EventRates => 1,
            Self::Events => Event::RING,
            Self::Watched => Events::SERVICES,
        }
    }

    pub(crate) const fn shape(self) -> Shape {
        const fn array(kind: u32, words: usize, flags: u32) -> Shape {
            Shape { kind, key_size: 4, value_size: words as u32 * 8, flags }
        }
        const fn hash(kind: u32, key_size: usize, value_size: usize) -> Shape {
            Shape { kind, key_size: key_size as u32, value_size: value_size as u32, flags: 0 }
        }
        match self {
            Self::Table(table) => array(ARRAY, table.row_words(), MMAPABLE),
            Self::Connections4 => hash(LRU_HASH, size_of::<Tuple<Ip4>>(), size_of::<ConnEntry<Ip4>>()),
            Self::Connections6 => hash(LRU_HASH, size_of::<Tuple<Ip6>>(), size_of::<ConnEntry<Ip6>>()),
            Self::Affinity4 => hash(LRU_HASH, size_of::<AffinityKey<Ip4>>(), size_of::<AffinityEntry<Ip4>>()),
            Self::Affinity6 => hash(LRU_HASH, size_of::<AffinityKey<Ip6>>(), size_of::<AffinityEntry<Ip6>>()),
            Self::Fragments4 => hash(LRU_HASH, size_of::<FragmentKey<Ip4>>(), size_of::<FragmentEntry>()),
            Self::Fragments6 => hash(LRU_HASH, size_of::<FragmentKey<Ip6>>(), size_of::<FragmentEntry>()),
            Self::Masquerade => hash(HASH, size_of::<u32>(), size_of::<MasqueradeAddresses>()),
            Self::Sockets => hash(LRU_HASH, size_of::<u64>(), size_of::<ConnectedSocket>()),
            Self::SocketFlows => hash(LRU_HASH, size_of::<SocketKey>(), size_of::<SocketFlow>()),
            Self::SocketPeers => hash(LRU_HASH, size_of::<SocketKey>(), size_of::<SocketPeer>()),
            Self::Ports => array(ARRAY, SeenPorts::PLACES / 8, 0),
            Self::ServiceStats => array(PERCPU_ARRAY, ServiceStat::WORDS, 0),
            Self::BackendStats4 | Self::BackendStats6 => array(PERCPU_ARRAY, BackendStat::WORDS, 0),
            Self::Reasons | Self::WireStats => array(PERCPU_ARRAY, 1, 0),
            Self::Handshakes => array(PERCPU_ARRAY, Histogram::WORDS, 0),
            Self::Events => Shape { kind: RING_BUFFER, key_size: 0, value_size: 0, flags: 0 },
            Self::EventRates => array(PERCPU_ARRAY, EventRate::WORDS, 0),
            Self::Watched => hash(HASH, size_of::<u32>(), size_of::<u32>()),
        }
    }

    /// The first way in which a map is not what this agent needs; `None` when it fits. Its number of elements may
    /// differ from the configured one, but must suit the layout.
    pub(crate) fn difference(self, found: &MapInfo) -> Option<String> {
        let wanted = self.shape();
        let pairs = [
            ("type", found.kind, wanted.kind),
            ("key size", found.key_size, wanted.key_size),
            ("value size", found.value_size, wanted.value_size),
            ("flags", found.flags, wanted.flags),
        ];
        for (what, found, wanted) in pairs {
            if found != wanted {
                return Some(format!("map {} has {what} {found}, not {wanted}", self.name()));
            }
        }
        let entries = found.max_entries;
        let least = match self {
            Self::Table(table @ (Table::Control | Table::Generations | Table::ServiceRanges)) => {
                Sizes::default().rows(table)
            }
            Self::Reasons => Sizes::REASONS,
            Self::WireStats => WireStat::COUNTERS,
            Self::Ports => SeenPorts::ROWS,
            _ => 1,
        };
        let buckets = matches!(self, Self::Table(Table::Frontends4 | Table::Frontends6));
        if entries < least || (buckets && !entries.is_power_of_two()) {
            return Some(format!("map {} has {entries} elements", self.name()));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(map: Map, max_entries: u32) -> MapInfo {
        let Shape { kind, key_size, value_size, flags } = map.shape();
        MapInfo { kind, id: 1, key_size, value_size, max_entries, flags }
    }

    #[test]
    fn a_map_made_for_the_same_layout_fits_whatever_its_size() {
        for map in Map::all() {
            let entries = map.max_entries(&Sizes::default());
            assert_eq!(map.difference(&info(map, entries)), None);
        }
        assert_eq!(Map::Connections4.difference(&info(Map::Connections4, 77)), None);
    }

    #[test]
    fn every_property_that_the_programs_rely_on_is_compared() {
        let map = Map::Table(Table::Frontends4);
        let good = info(map, 8);
        let cases = [
            (MapInfo { kind: 1, ..good }, "type"),
            (MapInfo { key_size: 8, ..good }, "key size"),
            (MapInfo { value_size: 8, ..good }, "value size"),
            (MapInfo { flags: 0, ..good }, "flags"),
            (MapInfo { max_entries: 12, ..good }, "12 elements"),
        ];
        for (bad, text) in cases {
            let reason = map.difference(&bad).unwrap();
            assert!(reason.contains(text) && reason.contains("FRONTENDS4"), "{reason}");
        }
    }
}
