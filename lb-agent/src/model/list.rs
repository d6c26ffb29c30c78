//! Lists that are short nearly always: of tens of thousands of objects each word counts.

use std::fmt;
use std::ops::{Deref, DerefMut};

use smallvec::SmallVec;

/// A list that mostly has one item, which then needs no memory of its own.
pub type Few<T> = SmallVec<[T; 1]>;

/// A list that is mostly empty, and then one word.
#[derive(Clone, PartialEq, Eq)]
pub struct Rare<T>(Option<Box<Items<T>>>);

#[derive(Clone, PartialEq, Eq)]
struct Items<T>(Vec<T>);

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: fmt::Debug> fmt::Debug for Rare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T> Deref for Rare<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], |items| &items.0)
    }
}

impl<T> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_deref_mut().map_or(&mut [], |items| &mut items.0)
    }
}

impl<T> From<Vec<T>> for Rare<T> {
    fn from(items: Vec<T>) -> Self {
        Self((!items.is_empty()).then(|| Box::new(Items(items))))
    }
}

impl<T> FromIterator<T> for Rare<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Vec::from_iter(items).into()
    }
}

impl<'a, T> IntoIterator for &'a Rare<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_list_is_a_word_and_knows_what_it_was_made_of() {
        assert_eq!(size_of::<Rare<String>>(), size_of::<usize>());
        for items in [vec![], vec![1], vec![3, 1, 2]] {
            let mut list: Rare<i32> = items.iter().copied().collect();
            assert_eq!((&list[..], list.len()), (&items[..], items.len()));
            assert_eq!(list, Rare::from(items.clone()));
            assert_eq!(format!("{list:?}"), format!("{items:?}"));
            list.reverse();
            assert!(list.iter().eq(items.iter().rev()));
        }
    }
}
