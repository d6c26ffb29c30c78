//! Every map. Sizes here are placeholders of one element: the agent sets `max_entries` before loading.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use lb_common::address::{Ip4, Ip6};
use lb_common::handshake::Histogram;
use lb_common::headers::Headers;
use lb_common::layout::{
    AffinityEntry, AffinityKey, Backend, BackendStat, Bucket4, Bucket6, ConnEntry, Control, EventRate,
    FlowEntry, FragmentEntry, FragmentKey, HeldFragment, MasqueradeAddresses, SeenPorts, Service,
    ServiceName, ServiceStat,
};
use lb_common::lookup::Choice;
use lb_common::reason::Reason;
use lb_common::tuple::Tuple;

use crate::cache::Place;
use crate::events::Story;
use crate::parse::Packet;
use crate::refuse::SUMMED;

/// Control words. Written by the agent.
#[map]
pub static CONTROL: Array<u64> = Array::with_max_entries(Control::WORDS, BPF_F_MMAPABLE);

/// IPv4 frontends. Written by the agent.
#[map]
pub static FRONTENDS4: Array<[u64; Bucket4::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// IPv6 frontends. Written by the agent.
#[map]
pub static FRONTENDS6: Array<[u64; Bucket6::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Service ports. Written by the agent.
#[map]
pub static SERVICES: Array<[u64; Service::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Backend indices, two to a word. Written by the agent.
#[map]
pub static SLOTS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// IPv4 backends. Written by the agent.
#[map]
pub static BACKENDS4: Array<[u64; Backend::<Ip4>::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// IPv6 backends. Written by the agent.
#[map]
pub static BACKENDS6: Array<[u64; Backend::<Ip6>::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Names of Service ports. Written and read by user space only; here so that it is made and pinned with the rest.
#[map]
pub static NAMES: Array<[u64; ServiceName::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Address ranges of Services (S-23). Written by the agent.
#[map]
pub static SERVICE_RANGES: Array<[u64; 4]> =
    Array::with_max_entries(Control::MAX_SERVICE_RANGES, BPF_F_MMAPABLE);

/// Sources that may use load balancer VIPs (S-34). Written by the agent.
#[map]
pub static SOURCE_RANGES: Array<[u64; 4]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Generations of flows, by tuple hash. Moved on by programs and agent whenever an entry of the connection
/// tables is removed or replaced before its time.
#[map]
pub static GENERATIONS: Array<u64> = Array::with_max_entries(Control::GENERATIONS, BPF_F_MMAPABLE);

/// IPv4 connections, both directions: the truth about live flows. Created by the programs, first writer wins;
/// removed by the programs when a flow chooses again and by the agent when it expired. When the table is full
/// the kernel evicts the entries least recently looked up.
#[map]
pub static CONNS4: LruHashMap<Tuple<Ip4>, ConnEntry<Ip4>> = LruHashMap::with_max_entries(1, 0);

/// IPv6 connections, see [`CONNS4`].
#[map]
pub static CONNS6: LruHashMap<Tuple<Ip6>, ConnEntry<Ip6>> = LruHashMap::with_max_entries(1, 0);

/// Entries in the connection tables by Service port, IPv4 and IPv6; row 0 has the totals. Programs add, the agent counts.
#[map]
pub static SHARES: Array<[u64; 2]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Keys of flows that began while the table was nearly full, IPv4: [`lb_common::share::RINGS`] rings, each of a few Services.
#[map]
pub static RECENT4: Array<Tuple<Ip4>> = Array::with_max_entries(1, 0);

/// The same of IPv6.
#[map]
pub static RECENT6: Array<Tuple<Ip6>> = Array::with_max_entries(1, 0);

/// How many flows were written into each ring: those of IPv4, then those of IPv6.
#[map]
pub static RECENT_HEADS: Array<u64> = Array::with_max_entries(2 * lb_common::share::RINGS, 0);

/// Session affinity of IPv4 clients (S-40). Created by the programs; the kernel evicts what was unused longest.
#[map]
pub static AFFINITY4: LruHashMap<AffinityKey<Ip4>, AffinityEntry<Ip4>> = LruHashMap::with_max_entries(1, 0);

/// Session affinity of IPv6 clients, see [`AFFINITY4`].
#[map]
pub static AFFINITY6: LruHashMap<AffinityKey<Ip6>, AffinityEntry<Ip6>> = LruHashMap::with_max_entries(1, 0);

/// Ports of IPv4 datagrams that came in fragments (S-72). Created by the programs; the kernel evicts what was unused
/// longest.
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<Ip4>, FragmentEntry> = LruHashMap::with_max_entries(1, 0);

/// Ports of IPv6 datagrams that came in fragments, see [`FRAGMENTS4`].
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<Ip6>, FragmentEntry> = LruHashMap::with_max_entries(1, 0);

/// Later fragments that wait for their first ones.
#[map]
pub static HELD: Array<HeldFragment> = Array::with_max_entries(1, 0);

/// Locks of the rows of [`HELD`]: a row's number is in the table while somebody has the row. That nothing is inserted twice
/// (`BPF_NOEXIST`) makes a lock of it without the atomic instructions that came with Linux 5.12.
#[map]
pub static HELD_LOCKS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// Ports that Services have something to do with: rows of [`SeenPorts`].
#[map]
pub static PORTS: Array<[u64; SeenPorts::PLACES / 8]> = Array::with_max_entries(SeenPorts::ROWS, 0);

/// Addresses that masqueraded flows get, by the interface they leave by; key 0 for all others. Written by the agent.
#[map]
pub static MASQUERADE: HashMap<u32, MasqueradeAddresses> =
    HashMap::with_max_entries(MasqueradeAddresses::ROWS, 0);

/// Flow cache of IPv4: a region of sets for each CPU, so that no two CPUs ever write the same line.
#[map]
pub static FLOWS4: Array<[FlowEntry<Ip4>; FlowEntry::<Ip4>::WAYS]> = Array::with_max_entries(1, 0);

/// Flow cache of IPv6, see [`FLOWS4`].
#[map]
pub static FLOWS6: Array<[FlowEntry<Ip6>; FlowEntry::<Ip6>::WAYS]> = Array::with_max_entries(1, 0);

/// Where a packet without a cached answer is worked on: its flow's two entries with their keys are too large for the
/// 512 bytes of stack that all BPF functions of a call chain share. Only this CPU uses its own, and programs do not
/// interrupt each other.
#[repr(C)]
pub struct Scratch<A> {
    /// The packet at hand.
    pub packet: Packet<A>,
    /// Its place in the flow cache.
    pub place: Place,
    /// Its headers, when it is an unusual one.
    pub headers: Headers<A>,
    /// What it has in common with the other fragments of its datagram, when it is one.
    pub fragment: FragmentKey<A>,
    /// The moment since when it is held, when it is; places of those that it is waited for by, when it is a first one.
    pub held: u64,
    /// What it has between two offsets, to be summed up.
    pub quoted: [u8; SUMMED],
    /// The IPv6 headers that were read last.
    pub read: Headers<A>,
    /// Its key in the connection table.
    pub key: Tuple<A>,
    /// Key of the other direction.
    pub other_key: Tuple<A>,
    /// Key of the same direction in the pair of entries for the flow's source.
    pub second_key: Tuple<A>,
    /// Key of a flow that may make room for the packet's.
    pub victim: Tuple<A>,
    /// An entry in the making, of the packet's direction.
    pub entry: ConnEntry<A>,
    /// An entry in the making, of the other direction.
    pub other: ConnEntry<A>,
    /// The backend chosen for it.
    pub choice: Choice<A>,
    /// What is to happen to the packet. Also a means to keep the verifier quick: values read back from a map are
    /// unknown to it, so paths that differ in nothing else become one.
    pub answer: FlowEntry<A>,
    /// Monotonic second of the packet.
    pub now: u32,
    /// What is to be told of it.
    pub story: Story,
}

/// Working memory of IPv4.
#[map]
pub static SCRATCH4: PerCpuArray<Scratch<Ip4>> = PerCpuArray::with_max_entries(1, 0);

/// Working memory of IPv6.
#[map]
pub static SCRATCH6: PerCpuArray<Scratch<Ip6>> = PerCpuArray::with_max_entries(1, 0);

/// Counters by Service port.
#[map]
pub static SERVICE_STATS: PerCpuArray<[u64; ServiceStat::WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Counters by IPv4 backend.
#[map]
pub static BACKEND_STATS4: PerCpuArray<[u64; BackendStat::WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Counters by IPv6 backend.
#[map]
pub static BACKEND_STATS6: PerCpuArray<[u64; BackendStat::WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Counters by reason.
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNTERS, 0);

/// The reason counted last on this CPU.
#[map]
pub static LAST_REASON: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// How long endpoints took to answer: a row of a [`Histogram`].
#[map]
pub static HANDSHAKES: PerCpuArray<[u64; Histogram::WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Records for `lb-agent watch`, the only reader.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// How many records there were: rows of [`EventRate`].
#[map]
pub static EVENT_RATES: PerCpuArray<[u64; EventRate::WORDS]> = PerCpuArray::with_max_entries(1, 0);

/// Service ports that are watched, when not all are. Written by `lb-agent watch`.
#[map]
pub static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
