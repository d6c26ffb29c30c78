//! Service rows. Word 0 is the publish word: storing it switches the Service over, whole, at once.

/// What a Service does with a new connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceVerdict {
    /// The row is not in use.
    Unused = 0,
    /// One of the slots at random, all alike (S-41).
    Random = 1,
    /// Refuse with a port unreachable (S-21).
    Reject = 2,
    /// Drop (S-22).
    Drop = 3,
}

/// The publish word: slots and verdict of a Service in 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// First slot of the run.
    pub base: u32,
    /// Slots in the run, below 2^24.
    pub count: u32,
    /// Number of a [`ServiceVerdict`].
    pub verdict: u8,
}

impl Publish {
    /// The largest run of slots.
    pub const MAX_COUNT: u32 = (1 << 24) - 1;

    /// As stored.
    #[inline(always)]
    pub const fn encode(self) -> u64 {
        self.base as u64 | (self.count as u64 & Self::MAX_COUNT as u64) << 32 | (self.verdict as u64) << 56
    }

    /// From the stored word.
    #[inline(always)]
    pub const fn decode(word: u64) -> Self {
        Self { base: word as u32, count: (word >> 32) as u32 & Self::MAX_COUNT, verdict: (word >> 56) as u8 }
    }
}

/// Shape of a service row: word 0 is a [`Publish`], the others are reserved and 0.
#[derive(Clone, Copy, Debug)]
pub enum Service {}

impl Service {
    /// Words in a row.
    pub const WORDS: usize = 2;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn publish_words_come_back_whole(base: u32, count in 0..=Publish::MAX_COUNT, verdict in 0u8..4) {
            let publish = Publish { base, count, verdict };
            prop_assert_eq!(Publish::decode(publish.encode()), publish);
        }
    }
}
