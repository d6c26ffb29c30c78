//! An agent that dies at any store leaves tables in which every frontend leads to an old or a new set, whole; and
//! the next agent makes of them what is wanted.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::layout::{Class, Client, FrontendKind, SCOPE_SERVICE};
use proptest::prelude::*;

use super::model::{
    Asker, Found, Meaning, Outcome, PortMeaning, World, admission_of, claimants, cluster_ips, meaning,
    outcome_of, resolve, resolve_for, wanted, wanted_frontends,
};
use super::worlds::{SMALL, apply, difference, full, history, sources};
use crate::apply::{Applier, TableKey, view};
use crate::dataplane::memory::{CountedGrace, StoppingMemory, TableMemory, VecMemory};
use crate::model::Family;
use crate::plan::ServicePortKey;

/// Everybody who may ask for a frontend of a family.
fn askers(family: Family) -> Vec<Asker> {
    let clients = [Client::Pod, Client::Outside, Client::Host];
    let asker = |source| clients.map(|client| Asker { client, source });
    sources(family).into_iter().flat_map(asker).collect()
}

/// What a frontend may lead to while a batch is under way.
fn allowed(key: &TableKey, asker: Asker, states: [(&World, &Meaning); 2]) -> BTreeSet<Outcome> {
    let mut allowed = BTreeSet::new();
    let claims = states.map(|(world, _)| claimants(world, key));
    // Nobody has it, or nobody gets it because it is a cluster IP, or it was a VIP and its ranges change as it goes.
    let blocked = |(world, claims): (&World, &BTreeSet<(ServicePortKey, FrontendKind)>)| {
        key.scope == SCOPE_SERVICE
            && cluster_ips(world).contains(&key.address)
            && claims.iter().all(|(_, kind)| *kind != FrontendKind::ClusterIp)
    };
    let leaves = |(port, kind): &(ServicePortKey, FrontendKind)| {
        let ranges = states.map(|(_, meaning)| meaning.ports.get(port).map(PortMeaning::sources));
        *kind == FrontendKind::LoadBalancer
            && claims[1].iter().all(|(other, _)| other != port)
            && ranges[0] != ranges[1]
    };
    if claims.iter().any(BTreeSet::is_empty)
        || states.iter().zip(&claims).any(|((world, _), claims)| blocked((world, claims)))
        || claims[0].iter().any(leaves)
    {
        allowed.extend([Outcome::UnknownPort, Outcome::Nothing]);
    }
    for (port, kind) in claims.iter().flatten() {
        // A frontend that changes hands may meet its old owner changed already, and its new owner not yet.
        let class = Class::of(*kind, asker.client);
        allowed.extend(states.iter().filter_map(|(_, meaning)| outcome_of(meaning, port, class)));
    }
    allowed
}

/// Whether a source may be let in while a batch is under way.
fn admissions(key: &TableKey, asker: Asker, states: [(&World, &Meaning); 2]) -> BTreeSet<bool> {
    let claims = states.iter().flat_map(|(world, _)| claimants(world, key));
    claims
        .flat_map(|(port, kind)| {
            states.iter().filter_map(move |(_, meaning)| admission_of(meaning, &port, kind, asker))
        })
        .collect()
}

fn check(memory: &impl TableMemory, states: [(&World, &Meaning); 2]) {
    let view = view(memory);
    let keys: BTreeSet<TableKey> = states.iter().flat_map(|(world, _)| wanted_frontends(world)).collect();
    for key in keys {
        for asker in askers(key.family()) {
            let Found { outcome, row, admitted } = resolve_for(memory, &key, asker);
            let allowed = allowed(&key, asker, states);
            assert!(allowed.contains(&outcome), "{key:?} leads {asker:?} to {outcome:?}, allowed: {allowed:?}");
            if let Some(row) = row {
                let service = view.services.iter().find(|service| service.index == row);
                let port =
                    service.and_then(|service| service.key.as_ref()).expect("a frontend leads to a named row");
                let mut claims = states.iter().flat_map(|(world, _)| claimants(world, &key));
                assert!(claims.any(|(claimed, _)| claimed == *port), "{key:?} leads to {port}");
                let allowed = admissions(&key, asker, states);
                assert!(allowed.contains(&admitted), "{key:?} lets {asker:?} in: {admitted}");
            }
        }
    }
}

/// A Service port, its row, and address, port and row of its endpoints.
type PortRows = (ServicePortKey, u32, Vec<(IpAddr, u16, u32)>);

/// Row of every Service port, and of every endpoint of it.
fn rows(memory: &impl TableMemory) -> BTreeSet<PortRows> {
    let view = view(memory);
    let rows = view.services.iter().filter_map(|service| {
        let key = service.key.clone()?;
        let mine = view.backends.iter().filter(|b| b.service == service.index && b.family == key.family);
        let mut backends: Vec<_> = mine.map(|b| (b.address, b.port, b.index)).collect();
        backends.sort_unstable();
        Some((key, service.index, backends))
    });
    rows.collect()
}

/// Applies a history on memory that stops during its last batch, after `limit` stores of it.
fn run(history: &[World], limit: u64) -> (VecMemory, u64) {
    let memory = StoppingMemory::new(VecMemory::new(SMALL), u64::MAX);
    let mut applier = Applier::adopt(&memory, CountedGrace::default()).unwrap();
    let mut before = World::new();
    let (last, earlier) = history.split_last().unwrap();
    for after in earlier {
        apply(&mut applier, difference(&before, after));
        before = after.clone();
    }
    let stores = memory.stores();
    memory.stop_after(limit);
    applier.apply(difference(&before, last));
    drop(applier);
    let stores = memory.stores() - stores;
    (memory.into_inner(), stores)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn at_any_store_everything_is_old_or_new_and_the_next_agent_goes_on(history in history(2..5)) {
        let (last, earlier) = history.split_last().unwrap();
        let before = earlier.last().unwrap();
        let meanings = [wanted(before), wanted(last)];
        let states = [(before, &meanings[0]), (last, &meanings[1])];
        let (settled, _) = run(earlier, u64::MAX);
        let (_, stores) = run(&history, u64::MAX);
        for limit in 0..=stores {
            let (memory, _) = run(&history, limit);
            check(&memory, states);

            let keys: Vec<TableKey> =
                states.iter().flat_map(|(world, _)| wanted_frontends(world)).collect();
            let found: Vec<_> = keys.iter().map(|key| resolve(&memory, key)).collect();
            let memory = StoppingMemory::new(memory, u64::MAX);
            let mut next = Applier::adopt(&memory, CountedGrace::default()).unwrap();
            prop_assert_eq!(memory.stores(), 1, "the epoch and nothing else");
            let adopted: Vec<_> = keys.iter().map(|key| resolve(&memory, key)).collect();
            prop_assert_eq!(found, adopted);

            apply(&mut next, full(last));
            prop_assert_eq!(&meaning(&memory), &meanings[1]);
            for (port, row, backends) in rows(&settled) {
                if !meanings[1].ports.contains_key(&port) {
                    continue;
                }
                prop_assert_eq!(next.service_index(&port), Some(row));
                let now = rows(&memory).into_iter().find(|(key, ..)| *key == port).unwrap().2;
                for (address, number, index) in backends {
                    let same = now.iter().find(|(a, n, _)| (*a, *n) == (address, number));
                    prop_assert!(same.is_none_or(|(_, _, now)| *now == index));
                }
            }
            let mut afresh = Applier::adopt(VecMemory::new(SMALL), CountedGrace::default()).unwrap();
            apply(&mut afresh, full(last));
            prop_assert_eq!(next.occupancy(), afresh.occupancy());
        }
    }

    #[test]
    fn an_agent_that_dies_again_and_again_still_gets_there(history in history(2..4), deaths in proptest::collection::vec(0u64..40, 1..8)) {
        let (mut memory, _) = run(&history, deaths[0]);
        let (last, earlier) = history.split_last().unwrap();
        let before = earlier.last().unwrap();
        let meanings = [wanted(before), wanted(last)];
        for limit in &deaths[1..] {
            let stopping = StoppingMemory::new(memory, *limit);
            if let Ok(mut next) = Applier::adopt(&stopping, CountedGrace::default()) {
                next.apply(full(last));
            }
            memory = stopping.into_inner();
            check(&memory, [(before, &meanings[0]), (last, &meanings[1])]);
        }
        let mut next = Applier::adopt(&memory, CountedGrace::default()).unwrap();
        apply(&mut next, full(last));
        prop_assert_eq!(&meaning(&memory), &meanings[1]);
    }
}
