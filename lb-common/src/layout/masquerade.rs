//! Addresses that masqueraded flows get, by the device they leave by.

use crate::address::{Ip4, Ip6};

/// Value of the table `MASQUERADE`, whose key is an interface index; index 0 stands for every device without a row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasqueradeAddresses {
    /// IPv6 address; unspecified = none.
    pub v6: Ip6,
    /// IPv4 address; unspecified = none.
    pub v4: Ip4,
    /// Always 0.
    pub zero: u32,
}

impl MasqueradeAddresses {
    /// Rows of the table.
    pub const ROWS: u32 = 1024;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_has_no_padding() {
        assert_eq!(size_of::<MasqueradeAddresses>(), 24);
    }
}
