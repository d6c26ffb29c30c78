//! Ports that Services have something to do with: a byte for each, so that one look spares those who have nothing to do with
//! any a look-up in a table of connections or sockets.
//!
//! A byte is set before the first entry that it is about, and never cleared: one that is not set says for certain that
//! there is no entry, one that is set nothing. Ports that differ by a multiple of [`SeenPorts::PLACES`] have one byte.

use crate::byteorder::Be16;

/// Rows of the table `PORTS`, of [`SeenPorts::PLACES`] bytes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenPorts {
    /// Source or destination ports, of each key in the connection tables one at least: that of a frontend, or of an
    /// endpoint.
    Flows = 0,
    /// Ports of endpoints that sockets were connected to, or sent datagrams to.
    Sockets = 1,
}

impl SeenPorts {
    /// Number of rows.
    pub const ROWS: u32 = 2;
    /// Bytes of a row, a power of two.
    pub const PLACES: usize = 4096;

    /// The byte of a port in its row.
    #[inline(always)]
    pub const fn place(port: Be16) -> usize {
        port.host() as usize & (Self::PLACES - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_a_place() {
        for port in 0..=u16::MAX {
            assert!(SeenPorts::place(Be16::new(port)) < SeenPorts::PLACES);
        }
        assert_eq!(SeenPorts::place(Be16::new(8080)), 8080 - 4096);
    }
}
