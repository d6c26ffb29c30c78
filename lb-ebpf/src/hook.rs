//! The places a program is attached to, as types: each program is compiled for its own.

/// Where a packet was met.
pub trait Hook {
    /// True when the pod at the device sent the packet.
    const FROM_POD: bool;
    /// Number in the flow cache's tuples; not 0, so that no tuple of a cached flow equals an empty entry.
    const NUMBER: u8;
}

/// Ingress of the host side of a pod's device.
pub enum FromPod {}

impl Hook for FromPod {
    const FROM_POD: bool = true;
    const NUMBER: u8 = 1;
}

/// Egress of the host side of a pod's device.
pub enum ToPod {}

impl Hook for ToPod {
    const FROM_POD: bool = false;
    const NUMBER: u8 = 2;
}
