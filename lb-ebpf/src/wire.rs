//! The XDP program at network devices.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{DevMapHash, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use lb_common::layout::{WireDevices, WireStat};

/// Devices that frames can be handed to, see [`WireDevices`]. Written by the agent; the programs' own, not pinned.
#[map]
pub static XDP_DEVICES: DevMapHash = DevMapHash::with_max_entries(WireDevices::ROWS, 0);

/// Counters of packets that the program sent on, by [`WireStat`].
#[map]
pub static WIRE_STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(WireStat::COUNTERS, 0);

/// A packet from outside the node, as the driver of a network device received it.
#[xdp]
pub fn from_wire(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}
