//! SCTP packets (RFC 9260): built chunk by chunk, with the checksum of a library of others.

use lb_common::sctp::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, HEADER, INIT, INIT_ACK, LIVE, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE,
};

use super::{Checksum, Packet};

/// Offset of the checksum in the common header.
const FIELD: usize = 8;

/// A chunk of that type with that value, padded.
pub fn chunk(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0];
    bytes.extend((4 + value.len() as u16).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A DATA chunk with that payload.
pub fn data(payload: &[u8]) -> Vec<u8> {
    let head = [1_u32.to_be_bytes(), [0, 1, 0, 1], 0_u32.to_be_bytes()].concat();
    chunk(0, &[&head[..], payload].concat())
}

/// The chunks of a packet that says what `flags` say; its payload comes in DATA.
fn chunks(flags: u8, payload: &[u8]) -> Vec<u8> {
    // Tag, window, streams out and in, first sequence number.
    let opening = [&[0xca, 0xfe, 1, 2][..], &[0, 1, 0, 0], &[0, 10, 0, 10], &[0, 0, 0, 1]].concat();
    let first = match flags & !LIVE {
        INIT => chunk(1, &opening),
        INIT_ACK => chunk(2, &[&opening[..], &[0, 7, 0, 12], b"a cookie"].concat()),
        ABORT => chunk(6, &[]),
        SHUTDOWN => chunk(7, &[0, 0, 0, 9]),
        SHUTDOWN_ACK => chunk(8, &[]),
        COOKIE_ECHO => chunk(10, b"a cookie"),
        COOKIE_ACK => chunk(11, &[]),
        SHUTDOWN_COMPLETE => chunk(14, &[]),
        0 if flags & LIVE != 0 => Vec::new(),
        0 => chunk(3, &[0, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0, 0]),
        other => panic!("no chunk says {other:#04x}"),
    };
    if flags & LIVE != 0 { [first, data(payload)].concat() } else { first }
}

/// Common header and chunks, the checksum complete or 0.
pub(super) fn bytes(packet: &Packet) -> Vec<u8> {
    // An INIT has no tag yet.
    let tag = if packet.flags == INIT { 0 } else { packet.sequence };
    with_chunks(packet, tag, &chunks(packet.flags, &packet.payload))
}

fn with_chunks(packet: &Packet, tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut bytes = [packet.src.port().to_be_bytes(), packet.dst.port().to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(chunks);
    if packet.checksum == Checksum::Complete {
        let sum = crc32c::crc32c(&bytes);
        bytes[FIELD..HEADER].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// True when the checksum of a packet, from its common header on, is right.
pub fn is_right(bytes: &[u8]) -> bool {
    let zeroed = [&bytes[..FIELD], &[0; 4], &bytes[HEADER..]].concat();
    crc32c::crc32c(&zeroed).to_le_bytes() == bytes[FIELD..HEADER]
}

/// The packet with another verification tag, so that its checksum is 0: the tag is four bytes like any other, and some four
/// bytes make any checksum.
#[must_use]
pub fn with_checksum_of_zero(packet: &Packet) -> Packet {
    let of = |sequence| {
        let bytes = bytes(&Packet { sequence, ..packet.clone() });
        u32::from_le_bytes(bytes[FIELD..HEADER].try_into().expect("four bytes"))
    };
    // What each bit of the tag changes in the checksum; by elimination, the bits that make it 0.
    let start = of(0);
    let mut rows: Vec<(u32, u32)> = (0..32).map(|bit| (of(1 << bit) ^ start, 1 << bit)).collect();
    let (mut left, mut tag) = (start, 0);
    for bit in (0..32).rev() {
        let Some(at) = rows.iter().position(|(change, _)| change >> bit == 1) else { continue };
        let (change, bits) = rows.swap_remove(at);
        for row in &mut rows {
            if row.0 >> bit & 1 == 1 {
                *row = (row.0 ^ change, row.1 ^ bits);
            }
        }
        if left >> bit & 1 == 1 {
            left ^= change;
            tag ^= bits;
        }
    }
    assert_eq!((left, of(tag)), (0, 0), "some tag makes the checksum 0");
    Packet { sequence: tag, ..packet.clone() }
}

/// The packet with more chunks behind its own.
pub fn followed_by(packet: &Packet, more: &[u8]) -> Vec<u8> {
    let chunks = [&packet.transport()[HEADER..], more].concat();
    packet.framed(&with_chunks(packet, packet.sequence, &chunks))
}
