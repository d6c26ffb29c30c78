//! SCTP (S-73).

use crate::unusual::Frame;

/// Length of the common header (RFC 9260 3.1).
pub const HEADER: usize = 12;

/// What the packet does to its association, in the bits of TCP's flags: see `lb_common::proto::tcp`.
#[inline(always)]
pub fn flags(_frame: &Frame, _transport: usize) -> u8 {
    0
}
