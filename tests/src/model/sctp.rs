//! SCTP, read chunk by chunk; its CRC, bit by bit.

use super::bytes::number;

/// What the chunks of a packet say, in the numbers of [`lb_common::sctp`]: the first that matters, and whether there is data.
/// An abortion counts wherever it stands among the first four.
pub(super) fn says(bytes: &[u8], transport: usize, promised: usize) -> u8 {
    use lb_common::sctp::{
        ABORT, COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, LIVE, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
    };
    let (mut first, mut live) = (0, 0);
    let mut at = 12;
    for _ in 0..4 {
        if at + 4 > promised || transport + at + 4 > bytes.len() {
            break;
        }
        let (kind, len) = (bytes[transport + at], number(bytes, transport + at + 2));
        if len < 4 {
            break;
        }
        let matters = match kind {
            0 | 4 | 64 => {
                live = LIVE;
                0
            }
            1 => INIT,
            2 => INIT_ACK,
            6 => return ABORT,
            7 => SHUTDOWN,
            8 => SHUTDOWN_ACK,
            10 => COOKIE_ECHO,
            11 => COOKIE_ACK,
            14 => SHUTDOWN_COMPLETE,
            _ => 0,
        };
        if first == 0 {
            first = matters;
        }
        at += len.div_ceil(4) * 4;
    }
    first | live
}

/// What is left of a message of these bytes when it is divided by the polynomial of CRC32c.
fn remainder(bytes: impl Iterator<Item = u8>) -> u32 {
    let mut crc = 0;
    for byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    crc
}

/// The checksum of a packet of that length is by this another one when its ports are others.
fn change(before: [u8; 4], after: [u8; 4], len: usize) -> [u8; 4] {
    let ports = (0..4).map(|at| before[at] ^ after[at]);
    let nothing = std::iter::repeat_n(0, len - 4);
    remainder(ports.chain(nothing)).to_le_bytes()
}

/// Writes other ports into a packet; a checksum that was right is right afterwards.
pub(super) fn write_ports(bytes: &mut [u8], transport: usize, promised: usize, src: u16, dst: u16) {
    let before: [u8; 4] = bytes[transport..transport + 4].try_into().expect("four bytes");
    let (src, dst) = (src.to_be_bytes(), dst.to_be_bytes());
    let after = [src[0], src[1], dst[0], dst[1]];
    bytes[transport..transport + 4].copy_from_slice(&after);
    if before != after {
        let change = change(before, after, promised);
        (0..4).for_each(|at| bytes[transport + 8 + at] ^= change[at]);
    }
}
