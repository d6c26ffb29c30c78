//! Random histories end in tables that mean what they should, as if filled afresh.

use std::sync::Arc;

use proptest::prelude::*;

use super::model::{meaning, wanted, wanted_on};
use super::worlds::{SMALL, apply, difference, full, history, node_addresses, world};
use crate::apply::tests::model::World;
use crate::apply::{Applier, NodeAddresses, view};
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

    /// Addresses of the node come and go in between: what is served at them, and whose VIPs its processes may use.
    #[test]
    fn the_node_and_its_services_change_in_any_order(
        steps in (history(1..6), proptest::collection::vec(node_addresses(), 6))
    ) {
        let memory = StoppingMemory::new(VecMemory::new(SMALL), u64::MAX);
        let mut applier = Applier::adopt(&memory, CountedGrace::default()).unwrap();
        let (mut before, mut node) = (World::new(), NodeAddresses::default());
        for (after, next) in steps.0.into_iter().zip(steps.1) {
            apply(&mut applier, difference(&before, &after));
            prop_assert_eq!(meaning(&memory), wanted_on(&after, &node.local));
            applier.set_node_addresses(&next).unwrap();
            prop_assert_eq!(meaning(&memory), wanted_on(&after, &next.local));
            let expected: std::collections::BTreeSet<_> = next.node_ports.iter().copied().collect();
            prop_assert_eq!(view(&memory).node_addresses, expected.into_iter().collect::<Vec<_>>());
            let stores = memory.stores();
            applier.set_node_addresses(&next).unwrap();
            prop_assert_eq!(memory.stores(), stores, "the same again");
            (before, node) = (after, next);
        }
        // Another agent goes on with what is there until it is told, and stores nothing when that is the same.
        drop(applier);
        let mut applier = Applier::adopt(&memory, CountedGrace::default()).unwrap();
        apply(&mut applier, full(&before));
        prop_assert_eq!(meaning(&memory), wanted_on(&before, &node.local));
        let stores = memory.stores();
        applier.set_node_addresses(&node).unwrap();
        prop_assert_eq!(memory.stores(), stores);
        applier.set_node_addresses(&NodeAddresses::default()).unwrap();
        prop_assert!(view(&memory).node_addresses.is_empty());
    }

    #[test]
    fn failing_stores_are_made_up_for(
        (history, nodes) in (history(1..7), proptest::collection::vec(node_addresses(), 6)),
        seed: u64,
        one_in in 2u64..40,
    ) {
        let memory = Arc::new(VecMemory::new(SMALL));
        let faulty = FaultyMemory::new(memory.clone(), seed, one_in);
        let mut applier = loop {
            if let Ok(applier) = Applier::adopt(&faulty, CountedGrace::default()) {
                break applier;
            }
        };
        let mut before = World::new();
        for (after, node) in history.into_iter().zip(nodes) {
            // What fails is noted, and done with any later call.
            let failed = applier.set_node_addresses(&node).is_err();
            prop_assert!(!failed || applier.needs_retry());
            let mut report = applier.apply(difference(&before, &after));
            while applier.needs_retry() {
                report = applier.retry();
            }
            prop_assert_eq!(report.failures, []);
            prop_assert_eq!(meaning(&memory), wanted_on(&after, &node.local));
            let expected: std::collections::BTreeSet<_> = node.node_ports.iter().copied().collect();
            prop_assert_eq!(view(&memory).node_addresses, expected.into_iter().collect::<Vec<_>>());
            before = after;
        }
        while applier.set_node_addresses(&NodeAddresses::default()).is_err() {}
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
