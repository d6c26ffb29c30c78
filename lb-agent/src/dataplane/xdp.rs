//! The program at the drivers of network devices (XDP).

use clap::ValueEnum;

/// Where network devices run the XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Nowhere.
    #[default]
    Off,
    /// In the driver, at devices whose driver can.
    Native,
    /// In the kernel's receive path, which every device has: slower than in the driver.
    Generic,
    /// In the driver, and where it cannot in the receive path.
    Auto,
}
