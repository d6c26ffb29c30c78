//! Random histories end in tables that mean what they should, as if filled afresh.

use std::sync::Arc;

use proptest::prelude::*;

use super::model::{meaning, wanted};
use super::worlds::{SMALL, apply, difference, full, history, world};
use crate::apply::Applier;
use crate::apply::tests::model::World;
use crate::dataplane::memory::{CountedGrace, FaultyMemory, StoppingMemory, VecMemory};

fn fresh(world: &World) -> Applier<VecMemory> {
    let mut applier = Applier::adopt(VecMemory::new(SMALL), CountedGrace::default()).unwrap();
    apply(&mut applier, full(world));
    applier
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_history_ends_like_a_fresh_fill(history in history(1..9), in_full: u16) {
        let mut applier = Applier::adopt(VecMemory::new(SMALL), CountedGrace::default()).unwrap();
        let mut before = World::new();
        for (step, after) in history.into_iter().enumerate() {
            let batch = if in_full >> step & 1 == 1 { full(&after) } else { difference(&before, &after) };
            apply(&mut applier, batch);
            prop_assert_eq!(meaning(applier.memory()), wanted(&after));
            before = after;
        }
        let other = fresh(&before);
        prop_assert_eq!(meaning(other.memory()), wanted(&before));
        prop_assert_eq!(other.occupancy(), applier.occupancy());
        apply(&mut applier, full(&World::new()));
        prop_assert!(applier.occupancy().iter().all(|table| table.used == 0));
    }

    #[test]
    fn failing_stores_are_made_up_for(history in history(1..7), seed: u64, one_in in 2u64..40) {
        let memory = Arc::new(VecMemory::new(SMALL));
        let faulty = FaultyMemory::new(memory.clone(), seed, one_in);
        let mut applier = loop {
            if let Ok(applier) = Applier::adopt(&faulty, CountedGrace::default()) {
                break applier;
            }
        };
        let mut before = World::new();
        for after in history {
            let mut report = applier.apply(difference(&before, &after));
            while applier.needs_retry() {
                report = applier.retry();
            }
            prop_assert_eq!(report.failures, []);
            prop_assert_eq!(meaning(&memory), wanted(&after));
            before = after;
        }
        prop_assert_eq!(fresh(&before).occupancy(), applier.occupancy());
    }

    #[test]
    fn what_is_there_is_not_stored_again(first in world(), second in world()) {
        let memory = StoppingMemory::new(VecMemory::new(SMALL), u64::MAX);
        let mut applier = Applier::adopt(&memory, CountedGrace::default()).unwrap();
        apply(&mut applier, full(&first));
        apply(&mut applier, full(&second));
        let before = memory.stores();
        apply(&mut applier, full(&second));
        prop_assert_eq!(memory.stores(), before);
    }
}

#[test]
fn thousands_of_cycles_leave_nothing_behind() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut sample = || {
        let tree = world().new_tree(&mut runner).unwrap();
        proptest::strategy::ValueTree::current(&tree)
    };
    let grace = CountedGrace::default();
    let mut applier = Applier::adopt(VecMemory::new(SMALL), grace.clone()).unwrap();
    let mut before = World::new();
    for _ in 0..3000 {
        let after = sample();
        apply(&mut applier, difference(&before, &after));
        before = after;
    }
    assert_eq!(meaning(applier.memory()), wanted(&before));
    assert_eq!(applier.occupancy(), fresh(&before).occupancy());
    assert!(grace.count() > 0, "nothing was ever used again");
    apply(&mut applier, full(&World::new()));
    assert!(applier.occupancy().iter().all(|table| table.used == 0));
}
