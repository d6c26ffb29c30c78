//! How long endpoints take to answer: from a client's first SYN to the endpoint's SYN+ACK, as the node sees it.

use crate::conntrack::State;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// Part of a second that one unit of a [`Moment`]'s fraction stands for: 2^14 ns, so that 16 bits hold a second.
const FRACTION_SHIFT: u32 = 14;
/// Microseconds, as a power of two, that the first bucket reaches to: 16.
const FIRST_BUCKET: u32 = 4;

/// A moment of the monotonic clock, to 16 microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Full seconds.
    pub second: u32,
    /// What of the next one has gone by, in units of 16.384 microseconds.
    pub fraction: u16,
}

impl Moment {
    /// The moment of a number of nanoseconds (`bpf_ktime_get_ns`, `CLOCK_MONOTONIC`).
    #[inline(always)]
    pub const fn of_nanos(nanos: u64) -> Self {
        Self { second: (nanos / SECOND) as u32, fraction: ((nanos % SECOND) >> FRACTION_SHIFT) as u16 }
    }

    /// Microseconds since an earlier moment; 0 when that is a later one, as on another CPU it may be by a hair.
    #[inline(always)]
    pub const fn micros_since(self, earlier: Self) -> u32 {
        let seconds = self.second.wrapping_sub(earlier.second) as i32 as i64;
        let fractions = (self.fraction as i64 - earlier.fraction as i64) << FRACTION_SHIFT;
        let micros = seconds * 1_000_000 + fractions / 1000;
        if micros < 0 {
            0
        } else if micros > u32::MAX as i64 {
            u32::MAX
        } else {
            micros as u32
        }
    }
}

/// True for the transition that a handshake is measured at: the endpoint answered the client's SYN.
#[inline(always)]
pub const fn is_answer(old: u8, new: u8) -> bool {
    old == State::SynSent as u8 && new == State::SynReceived as u8
}

/// Counts of handshakes by duration: bucket `i` has those below 16 microseconds times 2^i, the last one all others.
#[derive(Clone, Copy, Debug)]
pub enum Histogram {}

impl Histogram {
    /// Number of buckets. The last but one ends at 16.8 seconds.
    pub const BUCKETS: usize = 22;
    /// Word behind the buckets: the sum of all durations in microseconds.
    pub const SUM: usize = Self::BUCKETS;
    /// Words in the row.
    pub const WORDS: usize = Self::BUCKETS + 1;

    /// The bucket of a duration.
    #[inline(always)]
    pub const fn bucket(micros: u32) -> usize {
        let bucket = (u32::BITS - (micros >> FIRST_BUCKET).leading_zeros()) as usize;
        if bucket < Self::BUCKETS { bucket } else { Self::BUCKETS - 1 }
    }

    /// Where a bucket ends, in microseconds; `None` for the last one, which does not.
    pub const fn bound(bucket: usize) -> Option<u64> {
        if bucket + 1 < Self::BUCKETS { Some(1 << (bucket as u32 + FIRST_BUCKET)) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_over_the_end_of_a_second() {
        let at = |nanos| Moment::of_nanos(nanos);
        assert_eq!(at(2_000_000_000).micros_since(at(1_000_000_000)), 1_000_000);
        let short = at(3_000_010_000).micros_since(at(2_999_990_000));
        assert!(short <= 33, "{short}");
        let long = at(9_400_000_000).micros_since(at(2_600_000_000));
        assert!(long.abs_diff(6_800_000) < 33, "{long}");
        assert_eq!(at(5_000_000_000).micros_since(at(5_500_000_000)), 0);
        assert_eq!(at(u32::MAX as u64 * SECOND).micros_since(at(SECOND)), 0);
    }

    #[test]
    fn a_bucket_has_what_is_below_its_bound_and_not_below_the_one_before() {
        for micros in [0, 1, 15, 16, 17, 31, 32, 1_000, 999_999, 16_777_215, 16_777_216, u32::MAX] {
            let bucket = Histogram::bucket(micros);
            assert!(Histogram::bound(bucket).is_none_or(|bound| u64::from(micros) < bound), "{micros}");
            assert!(bucket == 0 || Histogram::bound(bucket - 1).unwrap() <= micros.into(), "{micros}");
        }
        assert_eq!(Histogram::bucket(u32::MAX), Histogram::BUCKETS - 1);
        assert_eq!(Histogram::bound(Histogram::BUCKETS - 2), Some(16_777_216));
    }

    #[test]
    fn only_the_answer_to_a_syn_is_one() {
        let states = State::ALL.map(|state| state as u8);
        let all = states.iter().flat_map(|old| states.iter().map(move |new| (*old, *new)));
        assert!(all.filter(|(old, new)| is_answer(*old, *new)).eq([(1, 2)]));
    }
}
