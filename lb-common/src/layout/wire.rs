//! What the XDP program needs beside the tables: devices that frames can be handed to, its counters, and its flow cache.

use crate::tuple::{Rewrite, Tuple};

/// Keys of the table `XDP_DEVICES` (a `BPF_MAP_TYPE_DEVMAP_HASH`; values are interface indices), filled by the agent.
///
/// A frame that is handed to a device that cannot take it is lost without a word, so the program asks before it rewrites
/// anything: for a device that frames are redirected to by its interface index, for the one it came by
/// (`XDP_TX`) by [`WireDevices::back`]; without the latter a frame may go to the device that it came by as to any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireDevices;

impl WireDevices {
    /// Rows of the table: two for each device.
    pub const ROWS: u32 = 4096;
    /// Set in the key of a device that frames may be sent back by; no interface index has it.
    const BACK: u32 = 1 << 31;

    /// Key that says that frames may go back out of the device that they came by.
    pub const fn back(interface: u32) -> u32 {
        interface | Self::BACK
    }

    /// The device that a key of either kind is about.
    pub const fn interface(key: u32) -> u32 {
        key & !Self::BACK
    }
}

/// A row of `WIRE_STATS`, a counter for each CPU: packets that the XDP program sent on.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireStat {
    /// Back out of the device that they came by (`XDP_TX`).
    Back = 0,
    /// Handed to a network device: another one, or the one that they came by where that sends nothing back by itself.
    Forwarded = 1,
    /// Into a pod's device.
    Pod = 2,
}

impl WireStat {
    /// Number of rows.
    pub const COUNTERS: u32 = 3;
    /// Every counter, by row.
    pub const ALL: [Self; 3] = [Self::Back, Self::Forwarded, Self::Pod];

    /// The name used in tables, JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Back => "back",
            Self::Forwarded => "forwarded",
            Self::Pod => "pod",
        }
    }
}

/// What the XDP program does with the packets of a flow.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireAction {
    /// Leave them to the stack, and the programs there.
    Pass = 0,
    /// Rewrite and send back out of the device that they came by.
    Back = 1,
    /// Rewrite and send out of network device `interface`.
    Forward = 2,
    /// Rewrite and hand to the pod behind device `interface`.
    Pod = 3,
}

/// One entry of the XDP program's flow cache, of this CPU alone: all that is to be done with the packets of a flow between
/// their coming in at one device and their leaving by another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireFlow<A> {
    /// The flow as it comes in, with the hook's number.
    pub tuple: Tuple<A>,
    /// What its packets leave as: what the programs at both devices make of them together. The difference of the addresses
    /// is that of the IPv4 header, with one hop less to live.
    pub rewrite: Rewrite<A>,
    /// Generation of the tuple (low half) and epoch (high half) at the time of the look at the tables.
    pub tag: u64,
    /// Low 32 bits of the kernel's jiffies at that time.
    pub stamp: u32,
    /// Index of the Service port.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// Device that they leave by.
    pub interface: u32,
    /// MAC address of the device that they come by: what is addressed to another one is not for this node.
    pub own_mac: [u8; 6],
    /// Destination MAC that they leave with.
    pub destination_mac: [u8; 6],
    /// Source MAC that they leave with.
    pub source_mac: [u8; 6],
    /// Bytes from the IP header on that fit into a frame on their way (its MTU).
    pub longest: u16,
    /// Number of a [`WireAction`].
    pub action: u8,
    /// 1 for the endpoint's answers, 0 for the client's packets.
    pub reply: u8,
    /// Sum over the pseudo header of its packets as they come in, but for their length.
    pub pseudo_header: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Ip4, Ip6};

    #[test]
    fn entries_have_no_hidden_padding() {
        assert_eq!(size_of::<WireFlow<Ip4>>(), 32 + 8 + 4 * 4 + 3 * 6 + 2 + 2 + 2);
        assert_eq!(size_of::<WireFlow<Ip6>>(), 80 + 8 + 4 * 4 + 3 * 6 + 2 + 2 + 2);
    }

    #[test]
    fn actions_are_counted_in_the_row_before() {
        for (action, stat) in [
            (WireAction::Back, WireStat::Back),
            (WireAction::Forward, WireStat::Forwarded),
            (WireAction::Pod, WireStat::Pod),
        ] {
            assert_eq!(action as u32, stat as u32 + 1);
        }
    }

    #[test]
    fn no_device_has_the_key_of_another_ones_way_back() {
        // Interface indices are positive numbers of an `int`.
        assert!(WireDevices::back(1) > i32::MAX as u32);
        assert_ne!(WireDevices::back(1), WireDevices::back(2));
    }

    #[test]
    fn rows_are_dense() {
        for (row, stat) in WireStat::ALL.iter().enumerate() {
            assert_eq!(*stat as usize, row);
        }
        assert_eq!(WireStat::ALL.len() as u32, WireStat::COUNTERS);
    }
}
