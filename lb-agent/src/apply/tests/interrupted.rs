//! An agent that dies at any store leaves tables in which every frontend leads to an old or a new set, whole; and
//! the next agent makes of them what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use lb_common::layout::{Class, Client, FrontendKind, SCOPE_SERVICE};
use proptest::prelude::*;

use super::model::{
    Asker, Found, Meaning, Outcome, PortMeaning, World, admission_of, claimants, cluster_ips, meaning,
    meaning_of_ports, outcome_of, resolve, resolve_for, wanted, wanted_frontends,
};
use super::steps::{Step, parse};
use super::worlds::{SMALL, apply, difference, full, history, sources};
use crate::apply::{Applier, TableKey, view};
use crate::dataplane::memory::{CountedGrace, StoppingMemory, TableMemory, VecMemory};
use crate::plan::ServicePortKey;

/// What somebody may meet at a frontend while a batch is under way.
struct Expected {
    key: TableKey,
    asker: Asker,
    outcomes: Rc<BTreeSet<Outcome>>,
    admissions: BTreeSet<bool>,
    /// Whose row it may lead to.
    ports: Rc<BTreeSet<ServicePortKey>>,
}

fn expected(states: [(&World, &Meaning); 2]) -> Vec<Expected> {
    let keys: BTreeSet<TableKey> = states.iter().flat_map(|(world, _)| wanted_frontends(world)).collect();
    let mut expected = Vec::new();
    for key in keys {
        let claims = states.map(|(world, _)| claimants(world, &key));
        let ports: BTreeSet<_> = claims.iter().flatten().map(|(port, _)| port.clone()).collect();
        let ports = Rc::new(ports);
        for client in [Client::Pod, Client::Outside, Client::Host] {
            let outcomes = Rc::new(outcomes(&key, client, states, &claims));
            for source in sources(key.family()) {
                let asker = Asker { client, source };
                // A VIP that leaves a Service never has the ranges that come, nor has a new one those that go.
                let mut admissions = BTreeSet::new();
                for (at, other) in [(0, 1), (1, 0)] {
                    for claim in &claims[at] {
                        let of = |meaning| admission_of(meaning, &claim.0, claim.1, asker);
                        admissions.extend(of(states[at].1));
                        if claims[other].contains(claim) {
                            admissions.extend(of(states[other].1));
                        }
                    }
                }
                let (outcomes, ports) = (outcomes.clone(), ports.clone());
                expected.push(Expected { key, asker, outcomes, admissions, ports });
            }
        }
    }
    expected
}

type Claims = BTreeSet<(ServicePortKey, FrontendKind)>;

/// What a frontend may lead to.
fn outcomes(
    key: &TableKey,
    client: Client,
    states: [(&World, &Meaning); 2],
    claims: &[Claims; 2],
) -> BTreeSet<Outcome> {
    let mut allowed = BTreeSet::new();
    // Nobody has it, or nobody gets it because it is a cluster IP, or it was a VIP and its ranges change as it goes.
    let blocked = |((world, _), claims): (&(&World, &Meaning), &Claims)| {
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
        || states.iter().zip(claims).any(blocked)
        || claims[0].iter().any(leaves)
    {
        allowed.extend([Outcome::UnknownPort, Outcome::Nothing]);
    }
    for (port, kind) in claims.iter().flatten() {
        // A frontend that changes hands may meet its old owner changed already, and its new owner not yet.
        let class = Class::of(*kind, client);
        allowed.extend(states.iter().filter_map(|(_, meaning)| outcome_of(meaning, port, class)));
    }
    allowed
}

fn check(memory: &impl TableMemory, expected: &[Expected]) {
    let names: BTreeMap<u32, Option<ServicePortKey>> =
        view(memory).services.into_iter().map(|service| (service.index, service.key)).collect();
    for Expected { key, asker, outcomes, admissions, ports } in expected {
        let Found { outcome, row, admitted } = resolve_for(memory, key, *asker);
        assert!(outcomes.contains(&outcome), "{key:?} leads {asker:?} to {outcome:?}, allowed: {outcomes:?}");
        if let Some(row) = row {
            let port = names.get(&row).and_then(Option::as_ref).expect("a frontend leads to a named row");
            assert!(ports.contains(port), "{key:?} leads to {port}");
            assert!(admissions.contains(&admitted), "{key:?} lets {asker:?} in: {admitted}");
        }
    }
}

/// Clients keep their address only with a list that is meant for that: answers of the endpoints of another would not
/// come back through the node.
fn check_sources_kept(memory: &impl TableMemory, states: [&Meaning; 2]) {
    let now = meaning_of_ports(memory);
    for (port, found) in now.iter().filter(|(_, found)| found.preserve_source()) {
        let meant = states.into_iter().filter_map(|state| state.ports.get(port));
        let list = |port: &PortMeaning| port.lists[Class::External as usize].clone();
        let kept: Vec<_> = meant.filter(|port| port.preserve_source()).map(list).collect();
        let unused = list(found).1 == "unused";
        assert!(unused || kept.contains(&list(found)), "{port} keeps sources with {:?}", list(found));
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
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn at_any_store_everything_is_old_or_new_and_the_next_agent_goes_on(history in history(2..5)) {
        let (last, earlier) = history.split_last().unwrap();
        let before = earlier.last().unwrap();
        let meanings = [wanted(before), wanted(last)];
        let states = [(before, &meanings[0]), (last, &meanings[1])];
        let expected = expected(states);
        let (settled, _) = run(earlier, u64::MAX);
        let (_, stores) = run(&history, u64::MAX);
        for limit in 0..=stores {
            let (memory, _) = run(&history, limit);
            check(&memory, &expected);
            check_sources_kept(&memory, [&meanings[0], &meanings[1]]);

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
        let expected = expected([(before, &meanings[0]), (last, &meanings[1])]);
        for limit in &deaths[1..] {
            let stopping = StoppingMemory::new(memory, *limit);
            if let Ok(mut next) = Applier::adopt(&stopping, CountedGrace::default()) {
                next.apply(full(last));
            }
            memory = stopping.into_inner();
            check(&memory, &expected);
        }
        let mut next = Applier::adopt(&memory, CountedGrace::default()).unwrap();
        apply(&mut next, full(last));
        prop_assert_eq!(&meaning(&memory), &meanings[1]);
    }
}

/// The Services of a text.
fn world_of(text: &str) -> World {
    let plans = parse(text).into_iter().map(|(_, step)| match step {
        Step::Service(plan) => (plan.service.clone(), plan),
        step => panic!("{step:?} is no Service"),
    });
    plans.collect()
}

/// A cluster IP takes its whole address away from external IPs of others. At a port that both have, clients are led to
/// one of them at any moment, also between the stores for two ports of the Service with the cluster IP.
#[test]
fn an_external_ip_that_becomes_a_cluster_ip_is_never_unserved() {
    let external = world_of(
        "service default/a created=1\n  - UDP 10.96.0.3:81 -> 10.0.0.1:81\n    at externalIP=10.96.0.2:81\n",
    );
    let cluster = world_of(
        "service default/b created=2\n  - TCP 10.96.0.2:80 -> 10.0.0.2:80\n  - UDP 10.96.0.2:81 -> 10.0.0.2:81\n",
    );
    let key = TableKey::service(Ipv4Addr::new(10, 96, 0, 2).into(), 81, 17);
    let both: World = external.clone().into_iter().chain(cluster.clone()).collect();
    for last in [&cluster, &both] {
        for history in [[external.clone(), last.clone()], [last.clone(), external.clone()]] {
            let (_, stores) = run(&history, u64::MAX);
            for limit in 0..=stores {
                let (outcome, _) = resolve(&run(&history, limit).0, &key);
                assert!(matches!(outcome, Outcome::Endpoints(_)), "{outcome:?} after {limit} stores");
            }
        }
    }
}

/// A VIP that leaves while the ranges change is never open to the sources that come: the old ranges hold for it, or it
/// is not served.
#[test]
fn a_vip_that_leaves_never_has_the_new_ranges() {
    let state = |number: u8, range: &str| {
        world_of(&format!(
            "service default/web created=1\n  - TCP 10.96.0.1:80 -> 10.0.0.1:80\n    \
             at loadBalancer=203.0.113.{number}:80\n    sources {range}\n"
        ))
    };
    let history = [state(1, "10.0.0.0/8"), state(2, "192.0.2.0/24")];
    let (_, stores) = run(&history, u64::MAX);
    let mut admitted = BTreeSet::new();
    for limit in 0..=stores {
        let (memory, _) = run(&history, limit);
        for (number, source) in [(1, "10.0.0.7"), (1, "192.0.2.7"), (2, "10.0.0.7"), (2, "192.0.2.7")] {
            let key = TableKey::service(Ipv4Addr::new(203, 0, 113, number).into(), 80, 6);
            let asker = Asker { client: Client::Outside, source: source.parse().unwrap() };
            let found = resolve_for(&memory, &key, asker);
            if matches!(found.outcome, Outcome::Endpoints(_)) && found.admitted {
                admitted.insert((number, source));
            }
        }
    }
    assert_eq!(admitted, BTreeSet::from([(1, "10.0.0.7"), (2, "192.0.2.7")]));
}
