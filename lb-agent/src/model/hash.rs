//! Hash tables for names and addresses: quick, and with a secret, because names are the tenants' to make.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

use foldhash::SharedSeed;
use foldhash::fast::{FoldHasher, SeedableRandomState};
use hashbrown::HashTable;

/// Hashes with a secret of this process. The secret is random as the standard library's is, which asks the kernel for it:
/// foldhash's own stems from addresses and the time.
#[derive(Clone, Debug)]
pub struct Keyed(SeedableRandomState);

impl Default for Keyed {
    fn default() -> Self {
        static SHARED: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(random()));
        Self(SeedableRandomState::with_seed(random(), &SHARED))
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(0_u64)
}

impl BuildHasher for Keyed {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        self.0.build_hasher()
    }
}

/// A map with hashes by [`Keyed`].
pub type KeyedMap<K, V> = std::collections::HashMap<K, V, Keyed>;

/// A set with hashes by [`Keyed`].
pub type KeyedSet<K> = std::collections::HashSet<K, Keyed>;

/// Finds numbers by keys that lie elsewhere, with the thing that the number is of: nine bytes each instead of a copy of the
/// key.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    table: HashTable<Number>,
    keyed: Keyed,
}

/// A number and what is kept of its key: enough to grow without a look at the key.
#[derive(Clone, Copy, Debug)]
struct Number {
    hash: u32,
    number: u32,
}

/// The hash of a key, for the [`Numbers`] that made it.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash(u32);

impl KeyHash {
    /// What the table works with: it chooses a bucket by the low bits and compares the highest seven.
    const fn spread(self) -> u64 {
        (self.0 as u64) << 32 | self.0 as u64
    }
}

impl Numbers {
    /// The hash of a key.
    pub fn hash(&self, key: &(impl Hash + ?Sized)) -> KeyHash {
        KeyHash(self.keyed.hash_one(key) as u32)
    }

    /// The number of a key; `is` tells whether a number is the key's.
    pub fn find(&self, hash: KeyHash, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self.table.find(hash.spread(), |entry| entry.hash == hash.0 && is(entry.number));
        found.map(|entry| entry.number)
    }

    /// Adds the number of a key that has none yet.
    pub fn insert(&mut self, hash: KeyHash, number: u32) {
        let entry = Number { hash: hash.0, number };
        self.table.insert_unique(hash.spread(), entry, |entry| KeyHash(entry.hash).spread());
    }

    /// Gives the key of one number another one; false when there was none.
    pub fn replace(&mut self, hash: KeyHash, before: u32, after: u32) -> bool {
        let found =
            self.table.find_mut(hash.spread(), |entry| entry.hash == hash.0 && entry.number == before);
        found.map(|entry| entry.number = after).is_some()
    }

    /// Removes a number; false when it was not there.
    pub fn remove(&mut self, hash: KeyHash, number: u32) -> bool {
        let is = |entry: &Number| entry.hash == hash.0 && entry.number == number;
        self.table.find_entry(hash.spread(), is).map(|entry| entry.remove()).is_ok()
    }

    /// All numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.table.iter().map(|entry| entry.number)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, more: usize) {
        self.table.reserve(more, |entry| KeyHash(entry.hash).spread());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_keys_that_lie_elsewhere() {
        let keys: Vec<String> = (0..10_000).map(|number| format!("key-{number}")).collect();
        let mut numbers = Numbers::default();
        for (number, key) in (0..).zip(&keys) {
            let hash = numbers.hash(key);
            assert_eq!(numbers.find(hash, |found| keys[found as usize] == *key), None);
            numbers.insert(hash, number);
        }
        assert_eq!(numbers.len(), keys.len());
        let find = |numbers: &Numbers, key: &String| {
            numbers.find(numbers.hash(key), |found| keys[found as usize] == *key)
        };
        assert!((0..).zip(&keys).all(|(number, key)| find(&numbers, key) == Some(number)));
        for (number, key) in (0..).zip(&keys).filter(|(number, _)| number % 2 == 0) {
            assert!(numbers.remove(numbers.hash(key), number));
            assert!(!numbers.remove(numbers.hash(key), number));
        }
        let odd = |number: u32| number % 2 == 1;
        assert!((0..).zip(&keys).all(|(number, key)| find(&numbers, key) == odd(number).then_some(number)));
        assert!(numbers.iter().all(odd) && numbers.len() == keys.len() / 2);
    }

    #[test]
    fn a_number_takes_the_place_of_another() {
        let mut numbers = Numbers::default();
        let hash = numbers.hash("key");
        numbers.insert(hash, 1);
        assert!(numbers.replace(hash, 1, 7) && !numbers.replace(hash, 1, 8));
        assert_eq!((numbers.find(hash, |_| true), numbers.len()), (Some(7), 1));
    }

    /// Nobody can choose names that fall together in every agent.
    #[test]
    fn every_table_has_a_secret_of_its_own() {
        let hashes = [Keyed::default(), Keyed::default()].map(|keyed| keyed.hash_one("name"));
        assert_ne!(hashes[0], hashes[1]);
    }
}
