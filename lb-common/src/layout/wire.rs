//! What the XDP program needs beside the tables: devices that frames can be handed to, and its counters.

/// Keys of the table `XDP_DEVICES` (a `BPF_MAP_TYPE_DEVMAP_HASH`; values are interface indices), filled by the agent.
///
/// A frame that is handed to a device that cannot take it is lost without a word, so the program asks before it rewrites
/// anything: for a device that frames are redirected to by its interface index, for the one it came by
/// (`XDP_TX`) by [`WireDevices::back`].
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
    /// Out of another network device.
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

#[cfg(test)]
mod tests {
    use super::*;

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
