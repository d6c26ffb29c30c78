//! Full tables: who does not fit is reported and tried again, everybody else is served.

use std::net::Ipv4Addr;

use lb_common::layout::{Client, Table};

use super::model::{Asker, Outcome, World, meaning, resolve, resolve_for, wanted, wanted_frontends};
use super::worlds::{apply, cluster_ip, difference, full, pod_ip};
use crate::apply::{Applier, ApplyError, TableKey, view};
use crate::dataplane::memory::{CountedGrace, StoppingMemory, TableSizes, VecMemory};
use crate::model::{Cidr, Family, ObjectName, Protocol};
use crate::plan::{
    Algorithm, ClassPlan, EndpointPlan, ExternalPlan, Frontend, FrontendKind, ServicePlan, ServicePortKey,
    ServicePortPlan, Verdict,
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
        algorithm: Algorithm::Random,
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

/// Chance serves as well; and the table comes when somebody else gives up its own.
#[test]
fn a_maglev_table_without_room_leaves_the_choice_to_chance_until_there_is_some() {
    let mut applier = adopt(TableSizes { slot_words: 22, ..SIZES });
    let maglev = |number, endpoints| {
        let mut plan = service(number, "", Family::V4, endpoints);
        plan.ports[0].algorithm = Algorithm::Maglev;
        plan
    };
    // Six words a table of eleven slots: the third does not leave a quarter of all words free, its list of three does.
    let three = world((1..=3).map(|number| maglev(number, 5)));
    let report = applier.apply(full(&three));
    let no_room =
        ApplyError::NoMaglev { service: "default/s03 TCP".to_owned(), words: 6, used: 12, rows: 22 };
    assert_eq!(report.failures.iter().map(|failure| &failure.error).collect::<Vec<_>>(), [&no_room]);
    assert!(no_room.to_string().contains("--max-slots"));
    let by_chance = world([maglev(1, 5), maglev(2, 5), service(3, "", Family::V4, 5)]);
    assert_eq!(meaning(applier.memory()), wanted(&by_chance));
    assert!(applier.needs_retry());
    assert_eq!(applier.retry().failures.len(), 1);

    let less = world([maglev(1, 1), maglev(2, 1), maglev(3, 5)]);
    apply(&mut applier, difference(&three, &less));
    assert_eq!(meaning(applier.memory()), wanted(&less));
    assert!(!applier.needs_retry());
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

/// A Service with a VIP that is restricted to so many ranges.
fn restricted(number: u8, ranges: u32) -> ServicePlan {
    let mut plan = service(number, "", Family::V4, 1);
    let range = |at: u32| Cidr::new(Ipv4Addr::from_bits(0x0a00_0000 + at * 512).into(), 24).unwrap();
    let verdict = plan.ports[0].internal.verdict.clone();
    plan.ports[0].external = Some(ExternalPlan {
        frontends: vec![Frontend {
            address: Ipv4Addr::new(203, 0, 113, number).into(),
            port: 80,
            kind: FrontendKind::LoadBalancer,
        }],
        inside: verdict.clone(),
        verdict,
        preserve_source: false,
        source_ranges: (0..ranges).map(range).collect(),
    });
    plan
}

/// Whether a client in the first range may use the VIP.
fn admitted(applier: &Applier<VecMemory>, number: u8) -> bool {
    let key = TableKey::service(Ipv4Addr::new(203, 0, 113, number).into(), 80, 6);
    let source = Ipv4Addr::new(10, 0, 0, 7).into();
    let found = resolve_for(applier.memory(), &key, Asker { client: Client::Outside, source });
    assert!(matches!(found.outcome, Outcome::Endpoints(_)), "{found:?}");
    found.admitted
}

#[test]
fn a_vip_with_too_many_source_ranges_is_open_to_nobody_and_everything_else_works() {
    let mut applier = adopt(TableSizes { services: 256, ..SIZES });
    let open = world([restricted(1, 0), restricted(2, 1)]);
    apply(&mut applier, full(&open));
    assert!(admitted(&applier, 1) && admitted(&applier, 2));
    let many = world([restricted(1, 129), restricted(2, 128)]);
    for again in 0..2 {
        let report = if again == 0 { applier.apply(difference(&open, &many)) } else { applier.retry() };
        let [failure] = &report.failures[..] else { panic!("{report:?}") };
        assert_eq!(*failure.service.name, *"s01");
        let expected = ApplyError::TooManySources { service: "default/s01 TCP".into(), count: 129, max: 128 };
        assert_eq!(failure.error, expected);
        assert!(failure.error.to_string().contains("nobody"), "{}", failure.error);
    }
    assert!(!admitted(&applier, 1) && admitted(&applier, 2));
    let view = view(applier.memory());
    assert_eq!(view.services[0].policy.sources, Some(Vec::new()));
    assert!(matches!(resolve(applier.memory(), &internal(1)).0, Outcome::Endpoints(_)));
    // Fewer, and it is served.
    let fewer = world([restricted(1, 3), restricted(2, 128)]);
    apply(&mut applier, difference(&many, &fewer));
    assert!(admitted(&applier, 1) && !applier.needs_retry());
    assert_eq!(meaning(applier.memory()), wanted(&fewer));
}

fn internal(number: u8) -> TableKey {
    TableKey::service(cluster_ip(Family::V4, number), 80, 6)
}

#[test]
fn ranges_without_room_close_the_vip_until_there_is_some() {
    // As many rows as Services: 64.
    let mut applier = adopt(SIZES);
    let before = world([restricted(1, 40), restricted(2, 0)]);
    apply(&mut applier, full(&before));
    let both = world([restricted(1, 40), restricted(2, 30)]);
    let report = applier.apply(difference(&before, &both));
    let full = ApplyError::TableFull { table: Table::SourceRanges, used: 40, rows: 64 };
    assert_eq!(report.failures.iter().map(|failure| &failure.error).collect::<Vec<_>>(), [&full]);
    assert!(admitted(&applier, 1) && !admitted(&applier, 2));
    let fewer = world([restricted(1, 34), restricted(2, 30)]);
    // 34 beside 40 are more than 64: the old ones have to go first, for once.
    apply(&mut applier, difference(&both, &fewer));
    assert_eq!(meaning(applier.memory()), wanted(&fewer));
    assert!(admitted(&applier, 1) && admitted(&applier, 2));
}
