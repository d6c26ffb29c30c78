//! The one hash of the datapath: multiply, xor-shift, multiply.
//!
//! One multiplication of `address << 32 | …` would leave its low bits independent of the address; the second
//! round makes every range of result bits usable on its own.

/// Mixes 64 bits so that every output bit depends on every input bit.
#[inline(always)]
pub const fn mix(word: u64) -> u64 {
    let mut x = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x = x.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

/// Takes a word into a state that began as 0: a step that loses nothing (multiplication by an odd number, exclusive or), but
/// mixes upwards only; [`finish`] does the rest. Half as long as [`mix2`].
#[inline(always)]
pub const fn absorb(state: u64, word: u64) -> u64 {
    state.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word
}

/// The hash of what a state took in.
#[inline(always)]
pub const fn finish(state: u64) -> u64 {
    mix(state)
}

/// Mixes two words into one.
#[inline(always)]
pub const fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a) ^ b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_the_result_spreads_sequential_keys_evenly() {
        for shift in [0, 16, 32, 48] {
            let mut buckets = [0u32; 256];
            for key in 0..65_536u64 {
                buckets[(mix(key << 32) >> shift) as usize & 255] += 1;
            }
            let (low, high) = (buckets.iter().min(), buckets.iter().max());
            assert!(*low.unwrap() > 180 && *high.unwrap() < 340, "shift {shift}: {low:?}..{high:?}");
        }
    }
}
