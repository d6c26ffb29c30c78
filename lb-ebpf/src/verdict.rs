//! Verdicts: the one place that counts reasons, and the return values of the programs.

use lb_common::reason::Reason;

use crate::maps::REASONS;

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
}
