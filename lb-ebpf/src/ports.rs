//! Which ports Services have something to do with ([`SeenPorts`]): most packets and sockets of others are told by them,
//! without a look-up in a hash table.

use lb_common::byteorder::Be16;
use lb_common::layout::SeenPorts;
use lb_common::tuple::Tuple;

use crate::maps::PORTS;

/// Notes a port. To be called before the entry that it is about can be found.
#[inline(always)]
pub fn note(row: SeenPorts, port: Be16) {
    let Some(row) = PORTS.get_ptr_mut(row as u32) else { return };
    // SAFETY: a valid element, and a place within; volatile because other CPUs read and write it. A line that is right
    // already stays with everybody who has it.
    unsafe {
        let place = row.cast::<u8>().add(SeenPorts::place(port));
        if place.read_volatile() == 0 {
            place.write_volatile(1);
        }
    }
}

/// False when the port was never noted.
#[inline(always)]
pub fn is_noted(row: SeenPorts, port: Be16) -> bool {
    let Some(row) = PORTS.get_ptr(row as u32) else { return true };
    byte(row, port) != 0
}

/// False when no connection table can have an entry of that key, nor of the opposite one.
#[inline(always)]
pub fn may_be_of_a_flow<A>(key: &Tuple<A>) -> bool {
    let Some(row) = PORTS.get_ptr(SeenPorts::Flows as u32) else { return true };
    byte(row, key.dst_port) | byte(row, key.src_port) != 0
}

/// The byte of a port in an element of the table.
#[inline(always)]
fn byte(row: *const [u64; SeenPorts::PLACES / 8], port: Be16) -> u8 {
    // SAFETY: see `note`.
    unsafe { row.cast::<u8>().add(SeenPorts::place(port)).read_volatile() }
}
