//! The places a program is attached to, as types: each program is compiled for its own.

/// Number of [`FromPod`]. Numbers stand in the flow cache's tuples; none is 0, so that no tuple of a cached flow equals an
/// empty entry. Odd ones are those of packets that come in ([`is_ingress`]).
pub const FROM_POD: u8 = 1;
/// Number of [`ToPod`].
pub const TO_POD: u8 = 2;
/// Number of [`FromNet`].
pub const FROM_NET: u8 = 3;
/// Number of [`ToNet`].
pub const TO_NET: u8 = 4;
/// Number of the XDP program's, which is no [`Hook`]: it does what two of them do.
pub const FROM_WIRE: u8 = 5;

/// True for the hooks that packets come in by: there flows begin.
#[inline(always)]
pub const fn is_ingress(number: u8) -> bool {
    number & 1 == 1
}

/// Where a packet was met.
pub trait Hook {
    /// One of the numbers above.
    const NUMBER: u8;
    /// True when packets come in by it.
    const INGRESS: bool = is_ingress(Self::NUMBER);
    /// True for network devices; otherwise the device is a pod's.
    const NET: bool = matches!(Self::NUMBER, FROM_NET | TO_NET);
}

/// Ingress of the host side of a pod's device.
pub enum FromPod {}

impl Hook for FromPod {
    const NUMBER: u8 = FROM_POD;
}

/// Egress of the host side of a pod's device.
pub enum ToPod {}

impl Hook for ToPod {
    const NUMBER: u8 = TO_POD;
}

/// Ingress of a network device.
pub enum FromNet {}

impl Hook for FromNet {
    const NUMBER: u8 = FROM_NET;
}

/// Egress of a network device.
pub enum ToNet {}

impl Hook for ToNet {
    const NUMBER: u8 = TO_NET;
}
