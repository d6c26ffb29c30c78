//! Rows and slots: nothing handed out twice, nothing lost, nothing used again before its grace period.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::apply::rows::RowAllocator;
use crate::apply::slots::SlotAllocator;

#[test]
fn rows_come_back_longest_free_first_and_only_after_settling() {
    let mut rows = RowAllocator::new(4);
    let all: Vec<_> = std::iter::from_fn(|| rows.allocate()).collect();
    assert_eq!(all, [(1, false), (2, false), (3, false)]);
    rows.retire(2);
    rows.retire(1);
    assert_eq!((rows.used(), rows.allocate()), (1, None));
    rows.settle();
    assert_eq!([rows.allocate(), rows.allocate(), rows.allocate()], [Some((2, true)), Some((1, true)), None]);
    assert_eq!(rows.used(), 3);
}

#[test]
fn rows_in_use_are_not_handed_out() {
    let mut rows = RowAllocator::with_used(6, |row| row == 1 || row == 3);
    assert_eq!(rows.used(), 2);
    let all: Vec<_> = std::iter::from_fn(|| rows.allocate()).map(|(row, _)| row).collect();
    assert_eq!(all, [4, 5, 2]);
}

#[test]
fn neighbouring_free_runs_become_one() {
    let mut slots = SlotAllocator::new(10);
    let runs: Vec<u32> = [2, 3, 2, 3].map(|length| slots.allocate(length).unwrap()).to_vec();
    assert_eq!((runs, slots.allocate(1)), (vec![0, 2, 5, 7], None));
    slots.retire(5, 2);
    slots.retire(2, 3);
    assert_eq!(slots.allocate(1), None);
    slots.settle();
    assert_eq!((slots.allocate(6), slots.allocate(5), slots.used()), (None, Some(2), 10));
}

#[test]
fn the_smallest_run_that_fits_is_taken() {
    let mut slots = SlotAllocator::with_used(20, vec![(4, 1), (7, 3), (12, 8)]).unwrap();
    assert_eq!((slots.allocate(2), slots.allocate(2), slots.allocate(4)), (Some(5), Some(10), Some(0)));
}

#[test]
fn runs_that_overlap_or_lie_outside_are_refused() {
    assert!(SlotAllocator::with_used(8, vec![(0, 3), (2, 1)]).is_none());
    assert!(SlotAllocator::with_used(8, vec![(6, 3)]).is_none());
    assert!(SlotAllocator::with_used(8, vec![(u32::MAX, 3)]).is_none());
}

proptest! {
    #[test]
    fn runs_never_overlap_and_all_room_comes_back(
        steps in proptest::collection::vec((1u32..9, any::<bool>(), any::<prop::sample::Index>()), 1..200)
    ) {
        let mut slots = SlotAllocator::new(64);
        let mut held: BTreeMap<u32, u32> = BTreeMap::new();
        for (length, allocate, which) in steps {
            if allocate || held.is_empty() {
                let Some(start) = slots.allocate(length) else {
                    slots.settle();
                    continue;
                };
                prop_assert!(start + length <= 64);
                prop_assert!(held.iter().all(|(at, run)| at + run <= start || start + length <= *at));
                held.insert(start, length);
            } else {
                let start = *held.keys().nth(which.index(held.len())).unwrap();
                slots.retire(start, held.remove(&start).unwrap());
            }
            prop_assert_eq!(slots.used(), held.values().sum::<u32>());
        }
        for (start, length) in held {
            slots.give_back(start, length);
        }
        slots.settle();
        prop_assert_eq!(slots.allocate(64), Some(0));
    }
}
