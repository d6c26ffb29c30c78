//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! Sums are taken over words as they lie in memory: one's complement addition does not care about byte order
//! as long as one order is kept throughout (RFC 1071, section 2B).

/// A one's complement sum that has not been folded to 16 bits yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds 16 bits.
    #[inline(always)]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds 32 bits.
    #[inline(always)]
    pub const fn add_u32(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds 64 bits.
    #[inline(always)]
    pub const fn add_u64(self, word: u64) -> Self {
        Self(self.0 + (word & 0xffff_ffff) + (word >> 32))
    }

    /// Adds a difference made by [`Sum::difference`].
    #[inline(always)]
    pub const fn add_difference(self, difference: u16) -> Self {
        self.add_u16(difference)
    }

    /// The sum in 16 bits, without the final inversion. Never 0 unless everything added was 0.
    #[inline(always)]
    pub const fn fold(self) -> u16 {
        let mut x = self.0;
        x = (x & 0xffff_ffff) + (x >> 32);
        x = (x & 0xffff) + (x >> 16);
        x = (x & 0xffff) + (x >> 16);
        x = (x & 0xffff) + (x >> 16);
        x as u16
    }

    /// What must be added to a sum over `old` to make it a sum over `self`.
    #[inline(always)]
    pub const fn difference(self, old: Self) -> u16 {
        Self(self.fold() as u64 + (!old.fold()) as u64).fold()
    }
}

/// Updates a checksum field that holds the inverted sum (the usual case): RFC 1624, equation 3.
#[inline(always)]
pub const fn update(field: u16, difference: u16) -> u16 {
    !plus(!field, difference)
}

/// Updates a checksum field of a packet whose checksum the device or the receiver completes
/// (`CHECKSUM_PARTIAL`): it holds the pseudo-header sum, not inverted and without the ports.
#[inline(always)]
pub const fn update_partial(field: u16, address_difference: u16) -> u16 {
    plus(field, address_difference)
}

/// The sum of two words, in 16 bits. Of two there is one carry at the most, and adding it makes no other: the largest sum is
/// `0x1fffe`.
#[inline(always)]
pub const fn plus(a: u16, b: u16) -> u16 {
    let sum = a as u32 + b as u32;
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The pseudo-header sum that the field of a `CHECKSUM_PARTIAL` packet holds: `addresses` is the sum over both
/// addresses, `len` the length of the transport header and payload in bytes.
#[inline(always)]
pub const fn pseudo_header(addresses: Sum, protocol: u8, len: u32) -> u16 {
    // Both numbers are big-endian in the pseudo header (RFC 9293 3.1, RFC 8200 8.1).
    addresses.add_u32(len.to_be()).add_u32((protocol as u32).to_be()).fold()
}

/// True when two fields mean the same sum: 0 and 0xffff are both zero in one's complement.
#[inline(always)]
pub const fn same_sum(a: u16, b: u16) -> bool {
    a == b || ((a == 0 || a == 0xffff) && (b == 0 || b == 0xffff))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(words: &[u16]) -> Sum {
        words.iter().fold(Sum::new(), |sum, word| sum.add_u16(*word))
    }

    proptest! {
        #[test]
        fn two_words_are_added_as_many_are(a: u16, b: u16) {
            prop_assert_eq!(plus(a, b), Sum::new().add_u16(a).add_u16(b).fold());
        }


        #[test]
        fn update_equals_a_fresh_checksum(head: [u16; 6], old: [u16; 6], new: [u16; 6]) {
            let before = !sum(&[head, old].concat()).fold();
            let after = !sum(&[head, new].concat()).fold();
            let got = update(before, sum(&new).difference(sum(&old)));
            prop_assert!(same_sum(got, after), "{got:04x} {after:04x}");
        }

        #[test]
        fn update_partial_equals_a_fresh_pseudo_header(old: [u32; 2], new: [u32; 2], len in 8u32..70_000) {
            let of = |a: [u32; 2]| Sum::new().add_u32(a[0]).add_u32(a[1]);
            let got = update_partial(pseudo_header(of(old), 6, len), of(new).difference(of(old)));
            prop_assert!(same_sum(got, pseudo_header(of(new), 6, len)));
        }

        #[test]
        fn wide_words_sum_like_narrow_ones(words: [u16; 4]) {
            let wide = words.iter().rev().fold(0u64, |wide, word| (wide << 16) | u64::from(*word));
            prop_assert_eq!(Sum::new().add_u64(wide).fold(), sum(&words).fold());
        }
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // RFC 1624, section 4: header checksum 0xdd2f, field 0x5555 becomes 0x3285.
        let difference = sum(&[0x3285]).difference(sum(&[0x5555]));
        assert_eq!(update(0xdd2f, difference), 0x0000);
    }
}
