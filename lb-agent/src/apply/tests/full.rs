//! Full tables: who does not fit is reported and tried again, everybody else is served.

use lb_common::layout::Table;

use super::model::{Outcome, World, meaning, resolve, wanted, wanted_frontends};
use super::worlds::{apply, cluster_ip, difference, full, pod_ip};
use crate::apply::{Applier, ApplyError};
use crate::dataplane::memory::{CountedGrace, StoppingMemory, TableSizes, VecMemory};
use crate::model::{Family, ObjectName, Protocol};
use crate::plan::{
    ClassPlan, EndpointPlan, Frontend, FrontendKind, ServicePlan, ServicePortKey, ServicePortPlan, Verdict,
};

const SIZES: TableSizes = TableSizes { frontend_buckets: 8, services: 64, slot_words: 64, backends: 64 };

/// A Service with a cluster IP of its own and so many endpoints.
fn service(number: u8, port_name: &str, family: Family, endpoints: u8) -> ServicePlan {
    let service = ObjectName::new("default", &format!("s{number:02}"));
    let endpoint = |at| EndpointPlan { address: pod_ip(family, at), port: 80, local: false, serving: true };
    let address = cluster_ip(family, number);
    let verdict =
        if endpoints == 0 { Verdict::Reject } else { Verdict::Balance((0..endpoints.into()).collect()) };
    let port = ServicePortPlan {
        key: ServicePortKey {
            service: service.clone(),
            port_name: port_name.into(),
            protocol: Protocol::Tcp,
            family,
        },
        endpoints: (0..endpoints).map(endpoint).collect(),
        internal: ClassPlan {
            frontends: vec![Frontend { address, port: 80, kind: FrontendKind::ClusterIp }],
            verdict,
        },
        external: None,
        affinity_timeout: None,
    };
    ServicePlan { service, created: None, ports: vec![port], health_check: None }
}

fn world(plans: impl IntoIterator<Item = ServicePlan>) -> World {
    plans.into_iter().map(|plan| (plan.service.clone(), plan)).collect()
}

fn adopt(sizes: TableSizes) -> Applier<VecMemory> {
    Applier::adopt(VecMemory::new(sizes), CountedGrace::default()).unwrap()
}

/// Adds Services until the table is full; how many fit.
fn fill(family: Family) -> u8 {
    let mut applier = adopt(SIZES);
    let mut before = World::new();
    let table = if family == Family::V4 { Table::Frontends4 } else { Table::Frontends6 };
    for number in 1u8.. {
        let after = world((1..=number).map(|number| service(number, "", family, 1)));
        let report = applier.apply(difference(&before, &after));
        for key in wanted_frontends(&before) {
            assert!(matches!(resolve(applier.memory(), &key), (Outcome::Endpoints(_), _)));
        }
        if let [failure] = &report.failures[..] {
            assert!(matches!(failure.error, ApplyError::TableFull { table: full, .. } if full == table));
            assert!(applier.needs_retry());

            // Once others have gone there is room.
            let mut left = after.clone();
            let gone = world([service(1, "", family, 1), service(2, "", family, 1)]);
            left.retain(|name, _| !gone.contains_key(name));
            apply(&mut applier, difference(&after, &left));
            assert_eq!(meaning(applier.memory()), wanted(&left));
            assert!(!applier.needs_retry());
            return number - 1;
        }
        before = after;
    }
    unreachable!("tables are finite")
}

#[test]
fn frontends_move_to_make_room_until_hardly_an_entry_is_left() {
    // Two entries each, the address being one: 40 entries.
    assert!(fill(Family::V4) >= 18);
    assert!(fill(Family::V6) >= 18);
}

#[test]
fn an_agent_that_dies_while_frontends_move_loses_none() {
    for family in [Family::V4, Family::V6] {
        let fits = fill(family);
        let (before, after) = (
            world((1..=fits - 6).map(|number| service(number, "", family, 1))),
            world((1..=fits).map(|number| service(number, "", family, 1))),
        );
        let run = |limit| {
            let memory = StoppingMemory::new(VecMemory::new(SIZES), u64::MAX);
            let grace = CountedGrace::default();
            let mut applier = Applier::adopt(&memory, grace.clone()).unwrap();
            apply(&mut applier, full(&before));
            let stores = memory.stores();
            memory.stop_after(limit);
            applier.apply(difference(&before, &after));
            drop(applier);
            let stores = memory.stores() - stores;
            (memory.into_inner(), stores, grace.count())
        };
        let (_, stores, graces) = run(u64::MAX);
        assert!(graces > 0, "nothing had to move");
        for limit in 0..stores {
            let (memory, ..) = run(limit);
            for key in wanted_frontends(&before) {
                assert!(matches!(resolve(&memory, &key), (Outcome::Endpoints(_), _)), "{key:?} at {limit}");
            }
            let mut next = Applier::adopt(memory, CountedGrace::default()).unwrap();
            apply(&mut next, full(&after));
            assert_eq!(meaning(next.memory()), wanted(&after));
        }
    }
}

#[test]
fn a_service_too_large_for_the_slots_keeps_what_it_had() {
    let mut applier = adopt(TableSizes { slot_words: 8, ..SIZES });
    let small = world([service(1, "", Family::V4, 6), service(2, "", Family::V4, 4)]);
    apply(&mut applier, full(&small));

    let large = world([service(1, "", Family::V4, 14), service(2, "", Family::V4, 2)]);
    let report = applier.apply(difference(&small, &large));
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].error, ApplyError::TableFull { table: Table::Slots, used: 4, rows: 8 });
    let half = world([service(1, "", Family::V4, 6), service(2, "", Family::V4, 2)]);
    assert_eq!(wanted(&half).frontends, meaning(applier.memory()).frontends);
    for key in wanted_frontends(&half) {
        let Outcome::Endpoints(found) = resolve(applier.memory(), &key).0 else { panic!("{key:?} has none") };
        assert_eq!(found.len(), if key.address == cluster_ip(Family::V4, 1) { 6 } else { 2 });
    }

    // Published as soon as there is room for both, the old run and the new one.
    let fits = world([service(1, "", Family::V4, 10), service(2, "", Family::V4, 0)]);
    apply(&mut applier, difference(&large, &fits));
    assert_eq!(meaning(applier.memory()), wanted(&fits));
}

#[test]
fn a_renamed_port_gets_the_row_of_the_old_one_when_there_is_no_other() {
    let mut applier = adopt(TableSizes { services: 3, backends: 5, ..SIZES });
    let before = world([service(1, "old", Family::V4, 2), service(2, "", Family::V4, 2)]);
    apply(&mut applier, full(&before));
    let after = world([service(1, "new", Family::V4, 2), service(2, "", Family::V4, 2)]);
    let report = apply(&mut applier, difference(&before, &after));
    assert_eq!(meaning(applier.memory()), wanted(&after));
    assert_eq!(report.reused_services.len(), 1);
    assert_eq!(report.reused_backends.len(), 2);
}

#[test]
fn backends_without_room_are_reported_and_come_later() {
    let mut applier = adopt(TableSizes { backends: 6, ..SIZES });
    let both = world([service(1, "", Family::V6, 3), service(2, "", Family::V6, 3)]);
    let report = applier.apply(full(&both));
    assert_eq!(report.failures.len(), 1);
    assert_eq!(*applier.pending().next().unwrap(), ObjectName::new("default", "s02"));
    assert!(matches!(report.failures[0].error, ApplyError::TableFull { table: Table::Backends6, .. }));
    let fewer = world([service(1, "", Family::V6, 2), service(2, "", Family::V6, 3)]);
    apply(&mut applier, difference(&both, &fewer));
    assert_eq!(meaning(applier.memory()), wanted(&fewer));
}

#[test]
fn a_name_that_kubernetes_would_not_allow_is_refused_alone() {
    let long = "x".repeat(64);
    let mut applier = adopt(SIZES);
    let report =
        applier.apply(full(&world([service(1, &long, Family::V4, 1), service(2, "", Family::V4, 1)])));
    assert!(matches!(&report.failures[..], [failure] if matches!(failure.error, ApplyError::NameTooLong(_))));
    assert_eq!(applier.service_count(), 1);
}
