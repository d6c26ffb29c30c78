//! Maglev tables (Eisenbud and others, NSDI 2016, 3.4): which endpoint a client's hash leads to.
//!
//! Every endpoint has an order of its own in which it would like to have the slots: `offset`, `offset + skip`, … modulo the
//! table's size, a prime, both numbers by a hash of its address and port. The endpoints take turns, each taking the first
//! slot of its order that is free, until none is. So all have as many slots as another, give or take one; all nodes
//! that know the same endpoints build the same table; and when an endpoint comes or goes, slots that did not have to
//! change hands mostly do not.
//!
//! The last free slots are hard to find: half of all looks are for the last hundredth. When few are left, the place of each
//! of them in an endpoint's order is computed instead, which takes the inverse of `skip` modulo the prime.

use std::net::IpAddr;

use lb_common::hash::mix2;

/// Sizes of tables: the most endpoints, and the slots for them, a prime.
pub(super) type Sizes = &'static [(u32, u32)];

/// Sixteen slots an endpoint at least, so that shares differ by a sixteenth at most. There are few sizes because tables of
/// different sizes have little in common: an endpoint more or less that takes another size moves most clients' hashes.
pub(super) const SIZES: Sizes = &[(63, 1_021), (1_023, 16_381), (8_191, 131_071)];

/// Sizes for tests of all that a table's slots lead to.
pub(super) const TEST_SIZES: Sizes = &[(2, 5), (6, 11)];

/// Slots of the table for so many endpoints. `None` when it is not worth one (a single endpoint), or there are too many.
pub(super) fn size(sizes: Sizes, endpoints: usize) -> Option<u32> {
    let found = sizes.iter().find(|(most, _)| endpoints <= *most as usize);
    found.map(|(_, size)| *size).filter(|_| endpoints > 1)
}

/// What places an endpoint's slots: the same on every node.
pub fn identity((address, port): (IpAddr, u16)) -> u64 {
    match address {
        IpAddr::V4(address) => mix2(u64::from(address.to_bits()), u64::from(port)),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            mix2(mix2((bits >> 64) as u64, bits as u64), u64::from(port))
        }
    }
}

/// An endpoint's turn.
#[derive(Clone, Copy)]
struct Turn {
    /// The slot looked at last.
    at: u32,
    skip: u32,
}

/// Builds the table: for every slot the position of its endpoint in `identities`, of which there are no more than slots,
/// and fewer than 65,536. `size` is a prime.
pub fn table(size: u32, identities: &[u64]) -> Vec<u16> {
    /// No endpoint has it yet.
    const FREE: u16 = u16::MAX;
    let scaled = |half: u64, range: u32| ((half * u64::from(range)) >> 32) as u32;
    let turn = |identity: &u64| Turn {
        at: scaled(identity >> 32, size),
        skip: scaled(identity & 0xffff_ffff, size - 1) + 1,
    };
    let mut turns: Vec<Turn> = identities.iter().map(turn).collect();
    let mut slots = vec![FREE; size as usize];
    if turns.is_empty() {
        return slots;
    }
    // As many computations for each of these as there would be looks.
    let few = size.isqrt() / 2;
    let mut who = 0;
    for _ in few..size {
        let Turn { at, skip } = &mut turns[who];
        while slots[*at as usize] != FREE {
            *at += *skip;
            if *at >= size {
                *at -= size;
            }
        }
        slots[*at as usize] = who as u16;
        who = if who + 1 == turns.len() { 0 } else { who + 1 };
    }
    let mut free: Vec<u32> = (0..size).filter(|slot| slots[*slot as usize] == FREE).collect();
    let modulo = Modulo::new(size);
    while !free.is_empty() {
        let Turn { at, skip } = &mut turns[who];
        let inverse = modulo.inverse(*skip);
        let steps = |slot: u32| modulo.of(u64::from(slot + size - *at) * u64::from(inverse));
        let nearest =
            free.iter().enumerate().min_by_key(|(_, slot)| steps(**slot)).map_or(0, |(place, _)| place);
        *at = free.swap_remove(nearest);
        slots[*at as usize] = who as u16;
        who = if who + 1 == turns.len() { 0 } else { who + 1 };
    }
    slots
}

/// Remainders by a prime without divisions.
struct Modulo {
    prime: u64,
    /// 2^64 divided by the prime, rounded down (the prime is odd).
    reciprocal: u64,
}

impl Modulo {
    fn new(prime: u32) -> Self {
        Self { prime: prime.into(), reciprocal: u64::MAX / u64::from(prime) }
    }

    fn of(&self, number: u64) -> u32 {
        let quotient = ((u128::from(number) * u128::from(self.reciprocal)) >> 64) as u64;
        let rest = number - quotient * self.prime;
        // The quotient is one too small at most.
        (if rest >= self.prime { rest - self.prime } else { rest }) as u32
    }

    /// The number whose product with this one leaves 1: its power of prime - 2 (Fermat).
    fn inverse(&self, number: u32) -> u32 {
        let product = |a: u32, b: u32| self.of(u64::from(a) * u64::from(b));
        let (mut power, mut exponent, mut result) = (number, self.prime - 2, 1);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = product(result, power);
            }
            power = product(power, power);
            exponent >>= 1;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The paper's own algorithm, with its lists written out.
    fn naive(size: u32, identities: &[u64]) -> Vec<u16> {
        let permutation = |identity: &u64| -> Vec<usize> {
            let offset = ((identity >> 32) * u64::from(size)) >> 32;
            let skip = (((identity & 0xffff_ffff) * u64::from(size - 1)) >> 32) + 1;
            (0..u64::from(size)).map(|step| ((offset + step * skip) % u64::from(size)) as usize).collect()
        };
        let permutations: Vec<Vec<usize>> = identities.iter().map(permutation).collect();
        let mut next = vec![0; identities.len()];
        let mut slots: Vec<Option<u16>> = vec![None; size as usize];
        for turn in 0..size as usize {
            let who = turn % identities.len();
            while slots[permutations[who][next[who]]].is_some() {
                next[who] += 1;
            }
            slots[permutations[who][next[who]]] = Some(who as u16);
        }
        slots.into_iter().flatten().collect()
    }

    fn endpoints(numbers: &BTreeSet<u16>) -> Vec<u64> {
        let address = |number: &u16| IpAddr::from([10, 1, (number >> 8) as u8, *number as u8]);
        numbers.iter().map(|number| identity((address(number), 8080))).collect()
    }

    /// Slots whose endpoint is another, among those whose endpoint is there before and after.
    fn moved(before: &BTreeSet<u16>, after: &BTreeSet<u16>, size: u32) -> (usize, usize) {
        let owners = |numbers: &BTreeSet<u16>| -> Vec<u16> {
            let all: Vec<u16> = numbers.iter().copied().collect();
            table(size, &endpoints(numbers)).into_iter().map(|at| all[usize::from(at)]).collect()
        };
        let (before_owners, after_owners) = (owners(before), owners(after));
        let pairs = || before_owners.iter().zip(&after_owners);
        let needless = |(was, is): &(&u16, &u16)| was != is && after.contains(was) && before.contains(is);
        (pairs().filter(|(was, is)| was != is).count(), pairs().filter(needless).count())
    }

    #[test]
    fn remainders_and_inverses_are_those_of_division() {
        for prime in [7_u32, 1_021, 16_381, 131_071] {
            let modulo = Modulo::new(prime);
            for number in
                [0, 1, u64::from(prime) - 1, prime.into(), u64::from(prime) * u64::from(prime) * 2 - 1]
            {
                assert_eq!(u64::from(modulo.of(number)), number % u64::from(prime));
            }
            for number in (1..prime).step_by((prime / 7) as usize) {
                assert_eq!(modulo.of(u64::from(number) * u64::from(modulo.inverse(number))), 1);
            }
        }
    }

    #[test]
    fn sizes_are_primes_and_leave_sixteen_slots_an_endpoint() {
        for (most, size) in SIZES {
            assert!((2..).take_while(|factor| factor * factor <= *size).all(|factor| size % factor != 0));
            assert!(most * 16 <= *size && *most < u32::from(u16::MAX));
        }
        assert_eq!(
            [0, 1, 2, 63, 64, 8_191, 8_192].map(|endpoints| size(SIZES, endpoints)),
            [None, None, Some(1_021), Some(1_021), Some(16_381), Some(131_071), None]
        );
    }

    /// Nodes of different versions have to agree: who changes this moves clients while a cluster is upgraded.
    #[test]
    fn a_table_is_fixed() {
        let slots = table(13, &endpoints(&(1..=4).collect()));
        assert_eq!(slots, [2, 2, 2, 0, 0, 0, 0, 1, 1, 3, 3, 1, 3]);
        assert_eq!(identity(("fd00::1".parse().unwrap(), 53)), 14_075_134_990_906_977_056);
    }

    #[test]
    fn one_of_a_thousand_endpoints_moves_little_more_than_its_own_slots() {
        let all: BTreeSet<u16> = (1..=1_000).collect();
        let (mut gone, mut needless) = (0, 0);
        for number in [1, 77, 500, 999] {
            let rest = all.iter().copied().filter(|other| *other != number).collect();
            let (moved, more) = moved(&all, &rest, 16_381);
            (gone, needless) = (gone + moved - more, needless + more);
        }
        // Figure 12 of the paper: with so small a table for so many endpoints some further slots change hands, too.
        assert!((4 * 16..=4 * 17).contains(&gone), "{gone}");
        assert!(needless < 4 * 16_381 / 50, "{needless} of {} moved needlessly", 4 * 16_381);
    }

    /// How much else moves depends on the endpoints: nothing bounds it for all of them (two whose orders run side by side
    /// change many places when a third comes), so it is said of many.
    #[test]
    fn little_else_moves_when_an_endpoint_comes() {
        let sets = 400;
        let (mut all, mut much) = (0, 0);
        for set in 0..sets {
            let mut numbers: BTreeSet<u16> = (0..2 + set % 61).map(|at| mix2(set, at) as u16).collect();
            let before = numbers.clone();
            numbers.insert((0_u16..).find(|number| !before.contains(number)).unwrap_or_default());
            let (_, needless) = moved(&before, &numbers, 1_021);
            all += needless;
            much += usize::from(needless > 1_021 / 10);
        }
        // It is a twenty-fifth.
        assert!(all <= sets as usize * 1_021 / 20, "{all} slots of {sets} tables moved needlessly");
        assert_eq!(much, 0, "of {sets} tables lost a tenth");
    }

    proptest! {
        #[test]
        fn a_table_is_that_of_the_paper(
            numbers in prop::collection::btree_set(any::<u16>(), 1..40),
            size in prop::sample::select(vec![41_u32, 251, 1_021]),
        ) {
            let identities = endpoints(&numbers);
            prop_assert_eq!(table(size, &identities), naive(size, &identities));
        }

        #[test]
        fn endpoints_share_the_slots_evenly(numbers in prop::collection::btree_set(any::<u16>(), 1..64)) {
            let mut counts = vec![0_u32; numbers.len()];
            for at in table(1_021, &endpoints(&numbers)) {
                counts[usize::from(at)] += 1;
            }
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{counts:?}");
        }

        /// What has to move is the share of the endpoint that came or went.
        #[test]
        fn an_endpoint_that_comes_or_goes_moves_its_share(
            numbers in prop::collection::btree_set(any::<u16>(), 2..63),
            new in any::<u16>(),
        ) {
            let mut more = numbers.clone();
            prop_assume!(more.insert(new));
            let share = 1_021 / more.len() + 1;
            for (before, after) in [(&numbers, &more), (&more, &numbers)] {
                let (moved, needless) = moved(before, after, 1_021);
                prop_assert!(moved - needless <= share, "{moved} moved, {needless} needlessly");
            }
        }
    }
}
