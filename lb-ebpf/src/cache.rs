//! The flow cache: what the tables said about a flow a moment ago, in array memory of this CPU alone.
//!
//! An entry is void when the generation of its tuple or the epoch moved on, or when it is older than the refresh
//! time: the packet then asks the tables, and the connection entry learns that the flow lives.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use lb_common::address::Address;
use lb_common::layout::{Control, FlowAction, FlowEntry};
use lb_common::tuple::Tuple;

use crate::maps::{CONTROL, GENERATIONS, Scratch};
use crate::net::Net;
use crate::parse::Packet;
use crate::{clock, config};

/// Where a tuple lives in the cache, and what must hold for an entry to be valid.
#[derive(Clone, Copy)]
pub struct Place {
    /// The set among this CPU's.
    set: u32,
    /// Generation and epoch, read before any table, so that a change in between voids what is stored later.
    pub tag: u64,
}

impl Place {
    /// The place of a tuple.
    #[inline(always)]
    pub fn of<A: Address>(tuple: &Tuple<A>) -> Self {
        let hash = tuple.hash();
        // The lower halves, of little-endian words.
        let word = |row: Option<*const u64>| match row {
            // SAFETY: a valid element; volatile because agent and programs change it at any moment.
            Some(pointer) => unsafe { pointer.cast::<u32>().read_volatile() as u64 },
            None => 0,
        };
        let generation = word(GENERATIONS.get_ptr(generation_index(hash)));
        let epoch = word(CONTROL.get_ptr(Control::Epoch as u32));
        // A packet on its way through the node has one tuple at two hooks: two sets, or it would fill both ways of one.
        let set = ((hash >> 32) as u32).wrapping_add(tuple.hook as u32) & config::flow_mask();
        Self { set, tag: generation | epoch << 32 }
    }

    /// The set of this CPU.
    #[inline(always)]
    pub fn set(&self) -> u32 {
        // SAFETY: a helper without arguments; inlined by the verifier on x86 since Linux 6.10.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        cpu * (config::flow_mask() + 1) + self.set
    }
}

#[inline(always)]
fn generation_index(hash: u64) -> u32 {
    hash as u32 & (Control::GENERATIONS - 1)
}

/// True when an entry of the flow cache, which is aligned to eight bytes, is of that tuple: compared in words, because the
/// compiler does it field by field.
#[inline(always)]
pub fn is_of<A: Address>(entry: &Tuple<A>, tuple: &Tuple<A>) -> bool {
    let words = (&raw const *entry).cast::<u64>();
    // SAFETY: the first and the last word of the tuple, whose size is a multiple of eight and whose alignment is that of the
    // entry. (The programs are little-endian, as the words are.)
    let (first, last) = unsafe { (*words, *words.add(size_of::<Tuple<A>>() / 8 - 1)) };
    let same_ends =
        if A::V6 { entry.src == tuple.src && entry.dst == tuple.dst } else { first == tuple.ends() };
    same_ends && last == tuple.tail()
}

/// The valid entry of a packet's flow.
#[inline(always)]
pub fn find<N: Net>(packet: &Packet<N::Addr>, place: &Place) -> Option<&'static mut FlowEntry<N::Addr>> {
    let set = N::flows().get_ptr_mut(place.set())?;
    let now = clock::jiffies();
    for way in 0..2 {
        // SAFETY: an element of the map; only this CPU touches it, and programs do not interrupt each other.
        let entry = unsafe { &mut (*set)[way] };
        if is_of(&entry.tuple, &packet.tuple) && entry.tag == place.tag {
            return (now.wrapping_sub(entry.stamp) < config::flow_refresh()).then_some(entry);
        }
    }
    None
}

/// Remembers the answer in `scratch`, in place of the flow's old entry or the older one of the set. Nothing for SCTP, whose
/// packets never ask.
#[inline(always)]
pub fn store<N: Net>(scratch: &mut Scratch<N::Addr>) {
    let Scratch { packet, place, answer, .. } = scratch;
    if packet.is_sctp() {
        return;
    }
    let Some(set) = N::flows().get_ptr_mut(place.set()) else { return };
    answer.tuple = packet.tuple;
    answer.tag = place.tag;
    answer.stamp = clock::jiffies();
    // SAFETY: as in `find`.
    unsafe {
        let (first, second) = (&raw mut (*set)[0], &raw mut (*set)[1]);
        let older = answer.stamp.wrapping_sub((*first).stamp) >= answer.stamp.wrapping_sub((*second).stamp);
        let way = (*first).tuple == packet.tuple || (older && (*second).tuple != packet.tuple);
        *(if way { first } else { second }) = *answer;
    }
}

/// Remembers that a flow is none of our business.
#[inline(always)]
pub fn store_pass<N: Net>(scratch: &mut Scratch<N::Addr>) {
    scratch.answer.action = FlowAction::Pass as u8;
    store::<N>(scratch);
}

/// Voids what every CPU remembers about a tuple. To be called after the tables changed.
#[inline(always)]
pub fn void<A: Address>(tuple: &Tuple<A>) {
    if let Some(generation) = GENERATIONS.get_ptr_mut(generation_index(tuple.hash())) {
        // SAFETY: a valid element; the addition is atomic because other CPUs and the agent add as well.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
                generation, 1,
            );
        }
    }
}
