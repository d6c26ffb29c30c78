//! SCTP packets (RFC 9260): which chunks matter to an association, said in the bits of TCP's flags, so that whatever begins,
//! ends or resets a flow looks alike in both.

use crate::headers::Bytes;
use crate::proto::tcp::{ACK, FIN, RST, SYN};

/// Length of the common header (3.1).
pub const HEADER: usize = 12;
/// Offset of the checksum in it.
pub const CHECKSUM: usize = 8;

/// INIT: somebody wants an association.
pub const INIT: u8 = SYN;
/// INIT ACK: the answer to it.
pub const INIT_ACK: u8 = SYN | ACK;
/// COOKIE ECHO: the client returns what the INIT ACK gave it.
pub const COOKIE_ECHO: u8 = 0x40;
/// COOKIE ACK: the association stands.
pub const COOKIE_ACK: u8 = COOKIE_ECHO | ACK;
/// SHUTDOWN: the sender has no more data, and everything it sent arrived.
pub const SHUTDOWN: u8 = FIN;
/// SHUTDOWN ACK: neither has the other side.
pub const SHUTDOWN_ACK: u8 = FIN | ACK;
/// SHUTDOWN COMPLETE: the last packet of an association, which nobody answers.
pub const SHUTDOWN_COMPLETE: u8 = FIN | RST;
/// ABORT: the association is over, without an answer.
pub const ABORT: u8 = RST;
/// DATA or HEARTBEAT: what no side sends any more that sent a SHUTDOWN or an ABORT.
pub const LIVE: u8 = 0x80;

/// Chunks that are looked at. An ABORT stands alone or behind a few control chunks; DATA comes last.
const CHUNKS: usize = 4;

/// What a chunk of each type says. The others change nothing: acknowledgements, errors, extensions. A table and no `match`,
/// because the programs' verifier would follow every arm of it for every chunk.
static KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    kinds[0] = LIVE; // DATA
    kinds[4] = LIVE; // HEARTBEAT
    kinds[64] = LIVE; // I-DATA (RFC 8260 2.1)
    kinds[1] = INIT;
    kinds[2] = INIT_ACK;
    kinds[6] = ABORT;
    kinds[7] = SHUTDOWN;
    kinds[8] = SHUTDOWN_ACK;
    kinds[10] = COOKIE_ECHO;
    kinds[11] = COOKIE_ACK;
    kinds[14] = SHUTDOWN_COMPLETE;
    kinds
};

/// What the packet does to its association. `transport` is where the common header begins, `len` the bytes from there to the
/// end of the IP packet.
///
/// The first chunk that says something counts, with [`LIVE`] added from any other; an ABORT wherever it stands. Chunks that
/// do not fit end the search: the receiver throws such a packet away.
#[inline(always)]
pub fn flags<B: Bytes>(bytes: &B, transport: usize, len: usize) -> u8 {
    let mut offset = HEADER;
    let mut flags = 0;
    for _ in 0..CHUNKS {
        if offset + 4 > len {
            break;
        }
        let Some([kind, _, high, low]) = bytes.read::<4>(transport + offset) else { break };
        let length = (high as usize) << 8 | low as usize;
        if length < 4 {
            break;
        }
        let says = KINDS[kind as usize];
        if says == ABORT {
            return ABORT;
        }
        flags |= if flags & !LIVE == 0 { says } else { says & LIVE };
        // Chunks are padded to a multiple of four bytes; the length leaves the padding out.
        offset += (length + 3) & !3;
    }
    flags
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    struct Slice<'a>(&'a [u8]);

    impl Bytes for Slice<'_> {
        fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]> {
            self.0.get(offset..offset + L)?.try_into().ok()
        }
    }

    /// A packet of chunks: type and bytes of value.
    fn packet(chunks: &[(u8, usize)]) -> Vec<u8> {
        let mut bytes = std::vec![0; HEADER];
        for (kind, value) in chunks {
            bytes.extend([*kind, 0]);
            bytes.extend((4 + *value as u16).to_be_bytes());
            bytes.resize(bytes.len() + value.next_multiple_of(4), 0xaa);
        }
        bytes
    }

    fn read(chunks: &[(u8, usize)]) -> u8 {
        let bytes = packet(chunks);
        flags(&Slice(&bytes), 0, bytes.len())
    }

    #[test]
    fn chunks_say_what_they_do() {
        assert_eq!(read(&[(1, 16)]), INIT);
        assert_eq!(read(&[(2, 300)]), INIT_ACK);
        assert_eq!(read(&[(10, 280), (0, 13)]), COOKIE_ECHO | LIVE);
        assert_eq!(read(&[(11, 0), (3, 12)]), COOKIE_ACK);
        assert_eq!(read(&[(3, 12), (7, 4)]), SHUTDOWN);
        assert_eq!(read(&[(8, 0)]), SHUTDOWN_ACK);
        assert_eq!(read(&[(14, 0)]), SHUTDOWN_COMPLETE);
        assert_eq!(read(&[(4, 40)]), LIVE);
        assert_eq!(read(&[(3, 12), (0, 1400)]), LIVE);
        assert_eq!(read(&[(3, 12)]), 0);
    }

    #[test]
    fn an_abort_counts_behind_other_chunks_but_not_beyond_the_end() {
        assert_eq!(read(&[(6, 0)]), ABORT);
        assert_eq!(read(&[(3, 13), (9, 5), (6, 4)]), ABORT);
        assert_eq!(read(&[(0, 1), (0, 2), (0, 3), (6, 0)]), ABORT);
        assert_eq!(read(&[(0, 1), (0, 2), (0, 3), (0, 4), (6, 0)]), LIVE);
        let bytes = packet(&[(3, 12), (6, 0)]);
        assert_eq!(flags(&Slice(&bytes), 0, bytes.len() - 4), 0, "padding behind the packet");
    }

    #[test]
    fn a_chunk_without_a_length_ends_the_search() {
        let mut bytes = packet(&[(3, 12), (6, 0)]);
        bytes[HEADER + 2..HEADER + 4].fill(0);
        assert_eq!(flags(&Slice(&bytes), 0, bytes.len()), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..120), transport in 0..140_usize, len in 0..200_usize) {
            flags(&Slice(&bytes), transport, len);
        }
    }
}
