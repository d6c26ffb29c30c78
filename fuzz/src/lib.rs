//! What the fuzz targets share: numbers from the fuzzer's bytes, packets over them, and checksums done slowly.

use lb_common::headers::Bytes;
use lb_common::icmp::BytesMut;

/// The fuzzer's bytes, taken from the front; zeros when there are no more.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next bytes.
    pub fn take<const L: usize>(&mut self) -> [u8; L] {
        let mut taken = [0; L];
        let len = L.min(self.0.len());
        let (front, rest) = self.0.split_at(len);
        taken[..len].copy_from_slice(front);
        self.0 = rest;
        taken
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// The next 16 bits.
    pub fn half(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    /// The next 32 bits.
    pub fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    /// The next 64 bits.
    pub fn long(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// A packet in a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet(pub Vec<u8>);

impl Bytes for Packet {
    fn read<const L: usize>(&self, offset: usize) -> Option<[u8; L]> {
        self.0.get(offset..offset.checked_add(L)?)?.try_into().ok()
    }
}

impl BytesMut for Packet {
    fn write<const L: usize>(&mut self, offset: usize, bytes: [u8; L]) -> Option<()> {
        self.0.get_mut(offset..offset.checked_add(L)?)?.copy_from_slice(&bytes);
        Some(())
    }
}

/// The sum of words in memory order, as the remainder of a division by 0xffff: what one's complement arithmetic is.
pub fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|word| u16::from_ne_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
    words.map(u64::from).sum::<u64>() % 0xffff
}
