//! The service side's tables as the lookup of `lb-common` wants them: inlined array accesses, volatile loads.

use lb_common::address::Ip6;
use lb_common::layout::{Row, SourceRanges};
use lb_common::lookup::{self, Tables};

use crate::config;
use crate::maps::{
    BACKENDS4, BACKENDS6, CONTROL, FRONTENDS4, FRONTENDS6, SERVICE_RANGES, SERVICES, SLOTS, SOURCE_RANGES,
};

/// The tables of this object.
pub struct KernelTables;

/// A row: a pointer to its first word.
pub struct KernelRow(*const u64);

impl Row for KernelRow {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        // SAFETY: the verifier checks the bounds. Volatile: the agent stores words at any moment, and each is to
        // be loaded exactly once.
        unsafe { self.0.add(index).read_volatile() }
    }
}

impl Tables for KernelTables {
    type Row = KernelRow;

    #[inline(always)]
    fn frontend_mask4(&self) -> u32 {
        config::frontend_mask4()
    }

    #[inline(always)]
    fn frontend_mask6(&self) -> u32 {
        config::frontend_mask6()
    }

    #[inline(always)]
    fn control(&self, index: u32) -> Option<KernelRow> {
        CONTROL.get_ptr(index).map(KernelRow)
    }

    #[inline(always)]
    fn frontends4(&self, bucket: u32) -> Option<KernelRow> {
        FRONTENDS4.get_ptr(bucket).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn frontends6(&self, bucket: u32) -> Option<KernelRow> {
        FRONTENDS6.get_ptr(bucket).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<KernelRow> {
        SERVICES.get_ptr(index).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn slots(&self, word: u32) -> Option<KernelRow> {
        SLOTS.get_ptr(word).map(KernelRow)
    }

    #[inline(always)]
    fn backends4(&self, index: u32) -> Option<KernelRow> {
        BACKENDS4.get_ptr(index).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn backends6(&self, index: u32) -> Option<KernelRow> {
        BACKENDS6.get_ptr(index).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn service_range(&self, index: u32) -> Option<KernelRow> {
        SERVICE_RANGES.get_ptr(index).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn source_range(&self, index: u32) -> Option<KernelRow> {
        SOURCE_RANGES.get_ptr(index).map(|row| KernelRow(row.cast()))
    }

    #[inline(always)]
    fn in_service_ranges(&self, address: Ip6) -> bool {
        in_service_ranges(address.first(), address.last()) != 0
    }

    #[inline(always)]
    fn in_source_ranges(&self, ranges: SourceRanges, address: Ip6) -> bool {
        in_source_ranges(ranges.first, ranges.count, address.first(), address.last()) != 0
    }
}

/// [`lookup::in_service_ranges`] as a global BPF function: the verifier follows its loop once, and not from every state that
/// a caller can be in.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn in_service_ranges(first: u64, last: u64) -> u32 {
    lookup::in_service_ranges(&KernelTables, Ip6::from_raw(first, last)) as u32
}

/// [`lookup::in_source_ranges`] as a global BPF function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn in_source_ranges(begin: u32, count: u32, first: u64, last: u64) -> u32 {
    let ranges = SourceRanges { first: begin, count };
    lookup::in_source_ranges(&KernelTables, ranges, Ip6::from_raw(first, last)) as u32
}
