//! The counters of `stats` and `verdict`, from programs that may be interrupted: atomic additions. A program at a device
//! that interrupts one on the same CPU is done before this one goes on, so its plain additions lose nothing.

use lb_common::layout::{BackendStat, ServiceStat};
use lb_common::reason::Reason;

use crate::maps::{REASONS, SERVICE_STATS};
use crate::net::Net;

/// Adds one.
///
/// # Safety
/// `counter` points to a live counter.
#[inline(always)]
unsafe fn add(counter: *mut u64) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: as the caller promises.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}

/// Counts a call that fails.
#[inline(always)]
pub fn reason(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: a live element.
        unsafe { add(counter) };
    }
}

/// Counts one event of a Service.
#[inline(always)]
pub fn service(service: u32, stat: ServiceStat) {
    if let Some(row) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: a live row; the index is a constant below its length.
        unsafe { add(&raw mut (*row)[stat as usize]) };
    }
}

/// Counts a new connection for its Service and its backend.
#[inline(always)]
pub fn connection<N: Net>(service_index: u32, backend: u32) {
    service(service_index, ServiceStat::Connections);
    if let Some(row) = N::backend_stats().get_ptr_mut(backend) {
        // SAFETY: as above.
        unsafe { add(&raw mut (*row)[BackendStat::Connections as usize]) };
    }
}
