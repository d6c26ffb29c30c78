//! Verdicts: the one place that counts reasons, and the return values of the programs.

use lb_common::reason::Reason;

use crate::maps::{LAST_REASON, REASONS};

/// Go on: the next program, or the stack (`TCX_NEXT`, `TC_ACT_UNSPEC` in include/uapi/linux/pkt_cls.h).
pub const PASS: i32 = -1;
/// Drop the packet (`TCX_DROP`, `TC_ACT_SHOT`), of which nothing is counted here.
pub const SHOT: i32 = 2;

/// Drops the packet and counts why.
#[inline(always)]
pub fn dropped(reason: Reason) -> i32 {
    count(reason);
    SHOT
}

/// Counts a packet that is refused or dropped.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU counter; only this CPU writes it, and programs do not interrupt each other on a CPU.
        unsafe { *counter += 1 };
    }
    if let Some(last) = LAST_REASON.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { *last = reason as u32 };
    }
}

/// Answered by [`last`] after [`forget`]: nothing was counted since.
pub const NO_REASON: u32 = u32::MAX;

/// Forgets which reason was counted last.
#[inline(always)]
pub fn forget() {
    if let Some(last) = LAST_REASON.get_ptr_mut(0) {
        // SAFETY: as in `count`.
        unsafe { *last = NO_REASON };
    }
}

/// The reason counted last on this CPU.
#[inline(always)]
pub fn last() -> u32 {
    // SAFETY: as in `count`.
    LAST_REASON.get_ptr(0).map_or(0, |last| unsafe { *last })
}
