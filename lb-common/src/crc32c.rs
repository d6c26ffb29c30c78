//! CRC32c (Castagnoli), the checksum of SCTP (RFC 9260 appendix A), kept right when ports change.
//!
//! A CRC is linear: the checksums of two packets of one length differ by the CRC of their difference alone, whatever else is
//! in them. The difference of two headers that differ in their ports is four bytes and then only zeros, and a CRC of that
//! is a product of polynomials over GF(2): the four bytes times x to the number of all bits. So the packet behind the ports is
//! never looked at, and the work is the same for every length.
//!
//! Polynomials are written the way the CRC has its bits: the coefficient of x^0 is the highest bit.

/// x^32 modulo the polynomial, 0x1edc6f41 with its bits turned round.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// x^(8n) for n below 256.
static BYTES: [u32; 256] = powers(8);
/// x^(8 * 256n) for n below 256.
static PAGES: [u32; 256] = powers(8 * 256);

/// The powers of x^`bits`, from x^0 on.
const fn powers(bits: u32) -> [u32; 256] {
    let mut step = ONE;
    let mut bit = 0;
    while bit < bits {
        step = times_x(step);
        bit += 1;
    }
    let mut table = [ONE; 256];
    let mut index = 1;
    while index < 256 {
        table[index] = multiply(table[index - 1], step);
        index += 1;
    }
    table
}

/// All ones for an odd number, 0 for an even one: no branch, which the programs' verifier would follow both ways.
#[inline(always)]
const fn mask(number: u32) -> u32 {
    (number & 1).wrapping_neg()
}

#[inline(always)]
const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ (POLYNOMIAL & mask(a))
}

/// The product of two polynomials, in 32 steps.
#[inline(always)]
pub const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut power = 0;
    while power < 32 {
        product ^= a & mask(b >> 31);
        a = times_x(a);
        b <<= 1;
        power += 1;
    }
    product
}

/// What a checksum field has to be changed by (exclusive or) when the first four bytes of the packet change by `difference`
/// (exclusive or) and nothing else does but the field itself, which counts as zero. `len` is the length of the packet, from
/// those bytes to its end. Both words as they lie in memory, read little-endian.
#[inline(always)]
pub fn difference(difference: u32, len: u16) -> u32 {
    difference_by(difference, len, multiply)
}

/// [`difference`] by another way to [`multiply`].
#[inline(always)]
pub fn difference_by(difference: u32, len: u16, multiply: impl Fn(u32, u32) -> u32) -> u32 {
    multiply(multiply(difference, BYTES[len as usize & 0xff]), PAGES[len as usize >> 8])
}

/// What the checksum of a packet is made of besides the [`difference`]s that its words make, each with what is left of the
/// packet from there on, all taken together by exclusive or. The first word counts inverted.
pub const FINAL: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn checksum(bytes: &[u8]) -> u32 {
        bytes.chunks_exact(4).enumerate().fold(FINAL, |sum, (at, word)| {
            let word = u32::from_le_bytes(word.try_into().unwrap());
            sum ^ difference(if at == 0 { !word } else { word }, (bytes.len() - 4 * at) as u16)
        })
    }

    #[test]
    fn the_test_vectors_of_rfc_3720() {
        // Appendix B.4, as numbers: the bytes printed there are little-endian.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(checksum(&ascending), 0x46dd_794e);
    }

    #[test]
    fn every_length_is_right() {
        // One zero after the other, by the definition; every length that a packet can have.
        let mut expected = 0xdead_beef;
        for len in 0..=u16::MAX {
            assert_eq!(difference(0xdead_beef, len), expected, "length {len}");
            for _ in 0..8 {
                expected = times_x(expected);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_packet_with_other_ports_has_the_checksum_of_another_implementation(
            len in prop_oneof![12..200_usize, 12..65_536_usize], seed: u64, ports: [u8; 4],
        ) {
            let mut random = seed;
            let mut packet: Vec<u8> = (0..len).map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 56) as u8
            }).collect();
            packet[8..12].fill(0);
            let before = crc32c::crc32c(&packet);
            let change = u32::from_le_bytes(packet[..4].try_into().unwrap()) ^ u32::from_le_bytes(ports);
            packet[..4].copy_from_slice(&ports);
            prop_assert_eq!(before ^ difference(change, len as u16), crc32c::crc32c(&packet));
        }

        #[test]
        fn words_sum_up_to_the_checksum_of_another_implementation(words in prop::collection::vec(any::<u32>(), 1..20)) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(checksum(&bytes), crc32c::crc32c(&bytes));
        }

        #[test]
        fn no_change_changes_nothing(len: u16) {
            prop_assert_eq!(difference(0, len), 0);
        }
    }
}
