//! Datagrams in fragments: the same steps as for whole ones, a piece at a time.

use super::case::Step;
use super::counters::Event;
use super::packet::ETH_LEN;

/// Where a piece lies in its datagram: bytes from the start of the transport header, a multiple of 8, and whether more
/// follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: usize,
    to: usize,
    more: bool,
}

/// True for a frame with IPv6 in it.
fn is_v6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Length of Ethernet and IP header.
fn headers(frame: &[u8]) -> usize {
    ETH_LEN + if is_v6(frame) { 40 } else { usize::from(frame[ETH_LEN] & 15) * 4 }
}

/// The fragments of a packet without extension headers, `size` bytes of transport header and payload each (a multiple of
/// 8), as RFC 791 and RFC 8200 4.5 have it.
pub fn pieces(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let end = frame.len() - headers(frame);
    let span = |from: usize| Span { from, to: (from + size).min(end), more: from + size < end };
    (0..end).step_by(size).map(|from| piece(frame, id, span(from))).collect()
}

/// One fragment of a packet: bytes `from..to` of transport header and payload.
pub fn piece_of(frame: &[u8], id: u32, from: usize, to: usize) -> Vec<u8> {
    let end = frame.len() - headers(frame);
    piece(frame, id, Span { from, to, more: to < end })
}

fn piece(frame: &[u8], id: u32, span: Span) -> Vec<u8> {
    assert_eq!(span.from % 8, 0, "fragments begin at multiples of 8 bytes");
    let start = headers(frame);
    let mut bytes = frame[..start].to_vec();
    let payload = &frame[start + span.from..start + span.to];
    if is_v6(frame) {
        let next = std::mem::replace(&mut bytes[ETH_LEN + 6], 44);
        let len = (8 + payload.len()) as u16;
        bytes[ETH_LEN + 4..ETH_LEN + 6].copy_from_slice(&len.to_be_bytes());
        let offset = span.from as u16 | u16::from(span.more);
        bytes.extend([next, 0]);
        bytes.extend(offset.to_be_bytes());
        bytes.extend(id.to_be_bytes());
    } else {
        let total = (start - ETH_LEN + payload.len()) as u16;
        let offset = (span.from / 8) as u16 | if span.more { 0x2000 } else { 0 };
        let mut set = |at: usize, value: u16| {
            bytes[ETH_LEN + at..ETH_LEN + at + 2].copy_from_slice(&value.to_be_bytes());
        };
        set(2, total);
        set(4, id as u16);
        set(6, offset);
        set(10, 0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes[ETH_LEN..]).ones_complement();
        bytes[ETH_LEN + 10..ETH_LEN + 12].copy_from_slice(&sum.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

impl Step {
    /// The same step with a datagram in pieces of `size` bytes: each becomes the same piece of what the whole would become,
    /// and is counted as a packet. What else is counted is counted with the first.
    pub fn in_pieces(&self, id: u32, size: usize) -> Vec<Self> {
        let pairs = pieces(&self.packet, id, size).into_iter().zip(pieces(&self.becomes, id, size));
        let piece = |(at, (packet, becomes)): (usize, (Vec<u8>, Vec<u8>))| {
            let len = (packet.len() - ETH_LEN) as u64;
            let events = self.events.iter().filter_map(|event| match *event {
                Event::Forward(service, backend, _) => Some(Event::Forward(service, backend, len)),
                Event::Reply(service, backend, _) => Some(Event::Reply(service, backend, len)),
                event => (at == 0).then_some(event),
            });
            Self { events: events.collect(), packet, becomes, verified: false, ..self.clone() }
        };
        pairs.enumerate().map(piece).collect()
    }
}

/// The port unreachable that refuses the first piece of a datagram, made from the one that refuses the whole: the quoted
/// headers are the piece's.
pub fn refusal(whole: &[u8], piece: &[u8]) -> Vec<u8> {
    let (v6, start) = (is_v6(whole), headers(whole));
    // The same transport header, behind a longer IP header in IPv6.
    let quoted = whole.len() - start - 8 + if v6 { 8 } else { 0 };
    let mut bytes = whole[..start + 8].to_vec();
    bytes.extend(&piece[ETH_LEN..ETH_LEN + quoted]);
    bytes[start + 2..start + 4].fill(0);
    let len = bytes.len() - start;
    let mut sum = etherparse::checksum::Sum16BitWords::new();
    if v6 {
        bytes[ETH_LEN + 4..ETH_LEN + 6].copy_from_slice(&(len as u16).to_be_bytes());
        sum = sum.add_slice(&bytes[ETH_LEN + 8..ETH_LEN + 40]).add_slice(&(len as u32).to_be_bytes());
        sum = sum.add_slice(&[0, 58]);
    }
    let sum = sum.add_slice(&bytes[start..]).ones_complement();
    bytes[start + 2..start + 4].copy_from_slice(&sum.to_ne_bytes());
    bytes
}
