//! Load-time constants: the agent sets them before the programs are verified, so that the verifier drops the
//! branches they rule out.

use aya_ebpf::Global;
use lb_common::layout::Forwarding;

/// Number of a [`Forwarding`].
#[unsafe(no_mangle)]
static FORWARDING: Global<u32> = Global::new(0);
/// Buckets of the IPv4 frontend table, minus one.
#[unsafe(no_mangle)]
static FRONTEND_MASK4: Global<u32> = Global::new(0);
/// Buckets of the IPv6 frontend table, minus one.
#[unsafe(no_mangle)]
static FRONTEND_MASK6: Global<u32> = Global::new(0);
/// Sets of the flow cache for one CPU and one family, minus one.
#[unsafe(no_mangle)]
static FLOW_MASK: Global<u32> = Global::new(0);
/// Jiffies after which a cached flow asks the tables again, and thereby shows that it lives.
#[unsafe(no_mangle)]
static FLOW_REFRESH: Global<u32> = Global::new(1000);

/// Entries that a connection table can hold; 0 when nobody says, and shares are not enforced.
#[unsafe(no_mangle)]
static CONNECTIONS: Global<u32> = Global::new(0);
/// Places in each ring of recent flows, a power of two.
#[unsafe(no_mangle)]
static RECENT_LENGTH: Global<u32> = Global::new(1);
/// First source port of masqueraded flows.
#[unsafe(no_mangle)]
static MASQUERADE_PORT_FIRST: Global<u32> = Global::new(1024);
/// How many source ports masqueraded flows may have.
#[unsafe(no_mangle)]
static MASQUERADE_PORT_COUNT: Global<u32> = Global::new(31_744);
/// 1: echo requests to cluster IPs that have an endpoint are answered.
#[unsafe(no_mangle)]
static ECHO_REPLY: Global<u32> = Global::new(0);
/// Cookie of the network namespace whose sockets are translated when they connect, 0 = of every one.
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

/// See [`CONNECTIONS`].
#[inline(always)]
pub fn connections() -> u32 {
    CONNECTIONS.load()
}

/// See [`RECENT_LENGTH`].
#[inline(always)]
pub fn recent_length() -> u32 {
    RECENT_LENGTH.load()
}

/// See [`MASQUERADE_PORT_FIRST`] and [`MASQUERADE_PORT_COUNT`].
#[inline(always)]
pub fn masquerade_ports() -> (u32, u32) {
    (MASQUERADE_PORT_FIRST.load(), MASQUERADE_PORT_COUNT.load())
}

/// See [`ECHO_REPLY`].
#[inline(always)]
pub fn answers_echo() -> bool {
    ECHO_REPLY.load() != 0
}

/// See [`NETNS_COOKIE`].
#[inline(always)]
pub fn netns_cookie() -> u64 {
    NETNS_COOKIE.load()
}

/// True in forwarding mode `redirect`.
#[inline(always)]
pub fn redirects() -> bool {
    FORWARDING.load() == Forwarding::Redirect as u32
}

/// See [`FRONTEND_MASK4`].
#[inline(always)]
pub fn frontend_mask4() -> u32 {
    FRONTEND_MASK4.load()
}

/// See [`FRONTEND_MASK6`].
#[inline(always)]
pub fn frontend_mask6() -> u32 {
    FRONTEND_MASK6.load()
}

/// See [`FLOW_MASK`].
#[inline(always)]
pub fn flow_mask() -> u32 {
    FLOW_MASK.load()
}

/// See [`FLOW_REFRESH`].
#[inline(always)]
pub fn flow_refresh() -> u32 {
    FLOW_REFRESH.load()
}
