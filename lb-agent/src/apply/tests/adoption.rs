//! Tables of another agent: refused, taken over, repaired.

use std::collections::BTreeSet;

use lb_common::layout::{Class, Control, LAYOUT_VERSION, Publish, Service, ServiceVerdict, Table};

use super::model::{World, meaning, wanted};
use super::steps::{Step, parse};
use super::worlds::{SMALL, apply, difference, full};
use crate::apply::cells::{buckets_of, cells_of, find};
use crate::apply::{AdoptError, Applier, NodeAddresses, TableKey, Way, WayKind, view};
use crate::dataplane::memory::{CountedGrace, TableMemory, TableSizes, VecMemory};

const TEXT: &str = "
service default/web created=1
  http TCP 10.96.0.1:80 -> 10.0.0.1:8080@ 10.0.0.2:8080
    at nodePort=*:30080 loadBalancer=198.51.100.1:80 externalIP=203.0.113.1:80
    outside -> 10.0.0.1:8080
    keeps source
    sources 192.0.2.0/24 198.51.100.0/24
    affinity 60
  http TCP [fd00:96::1]:80 -> [fd00::1]:8080
service default/other created=2
  - UDP 10.96.0.2:53 -> drop
";

fn plans() -> World {
    plans_of(TEXT)
}

fn plans_of(text: &str) -> World {
    let plan = |(_, step)| match step {
        Step::Service(plan) => (plan.service.clone(), plan),
        step => panic!("{step:?} is no Service"),
    };
    parse(text).into_iter().map(plan).collect()
}

fn filled() -> VecMemory {
    let memory = VecMemory::new(SMALL);
    apply(&mut adopt(&memory).unwrap(), full(&plans()));
    memory
}

fn adopt(memory: &VecMemory) -> Result<Applier<&VecMemory>, AdoptError> {
    Applier::adopt(memory, CountedGrace::default())
}

fn key(text: &str, protocol: u8) -> TableKey {
    let address: std::net::SocketAddr = text.parse().unwrap();
    TableKey::service(address.ip(), address.port(), protocol)
}

#[test]
fn new_tables_get_the_version_and_others_are_refused_with_advice() {
    let memory = VecMemory::new(SMALL);
    adopt(&memory).unwrap();
    assert_eq!(memory.load(Table::Control, Control::Version as u32, 0), LAYOUT_VERSION);
    memory.store(Table::Control, Control::Version as u32, 0, LAYOUT_VERSION + 1).unwrap();
    let Err(error) = adopt(&memory) else { panic!("adopted another layout") };
    assert_eq!(error, AdoptError::Version { found: LAYOUT_VERSION + 1, wanted: LAYOUT_VERSION });
    assert!(error.to_string().contains("lb-agent cleanup"));
}

#[test]
fn impossible_sizes_are_refused() {
    let sizes = TableSizes { frontend_buckets: 12, ..SMALL };
    let error = adopt(&VecMemory::new(sizes)).err();
    assert_eq!(error, Some(AdoptError::Size { table: Table::Frontends4, rows: 12 }));
}

#[test]
fn runs_of_slots_that_overlap_are_refused() {
    let memory = filled();
    let view = view(&memory);
    let run = view.services.iter().find(|service| service.class(Class::Internal).slots.len() == 2).unwrap();
    let other = view.services.iter().find(|service| service.class(Class::Internal).slots.is_empty()).unwrap();
    let publish =
        Publish { base: run.class(Class::Internal).base, count: 1, verdict: ServiceVerdict::Random as u8 };
    for class in Class::ALL {
        let before = memory.load(Table::Services, other.index, class as usize);
        memory.store(Table::Services, other.index, class as usize, publish.encode()).unwrap();
        assert!(matches!(adopt(&memory), Err(AdoptError::Damaged(_))));
        memory.store(Table::Services, other.index, class as usize, before).unwrap();
    }
    assert!(adopt(&memory).is_ok());
    // So are runs of source ranges.
    let ranges = memory.load(Table::Services, run.index, Service::SOURCE_RANGES);
    memory.store(Table::Services, other.index, Service::SOURCE_RANGES, ranges).unwrap();
    assert!(matches!(adopt(&memory), Err(AdoptError::Damaged(_))));
}

#[test]
fn node_addresses_are_taken_over_until_the_real_ones_are_known() {
    let memory = filled();
    let node = |local: &[&str], node_ports: &[&str]| {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        NodeAddresses { local: all(local), node_ports: all(node_ports) }
    };
    adopt(&memory).unwrap().set_node_addresses(&node(&["192.0.2.9"], &["192.0.2.9", "fd00:2::9"])).unwrap();
    // A second copy, as an interrupted move leaves it.
    let key = TableKey::node_address("192.0.2.9".parse().unwrap());
    let (cell, _) = find(&memory, &key).next().unwrap();
    let (first, second) = buckets_of(&memory, &key);
    let other = if cell.bucket == first { second } else { first };
    assert_ne!(cell.bucket, other, "the test needs a key with two buckets");
    let copy = cells_of(cell.table, other).find(|cell| cell.is_empty(&memory)).unwrap();
    copy.write(&memory, &key, 0).unwrap();

    let mut applier = adopt(&memory).unwrap();
    let mut world = plans();
    apply(&mut applier, full(&world));
    let told = |memory: &VecMemory| {
        let view = view(memory);
        let texts: Vec<String> = view.node_addresses.iter().map(ToString::to_string).collect();
        (texts.join(" "), view.services.iter().filter(|service| service.policy.host_allowed).count())
    };
    assert_eq!(told(&memory), ("192.0.2.9 fd00:2::9".into(), 1));
    assert_eq!(find(&memory, &key).count(), 1);
    // What was said of other ranges does not hold for new ones, before the addresses are known.
    let web = world.values_mut().find(|plan| plan.ports.len() == 2).unwrap();
    let external = web.ports.iter_mut().find_map(|port| port.external.as_mut()).unwrap();
    external.source_ranges.truncate(1);
    apply(&mut applier, full(&world));
    assert_eq!(told(&memory).1, 0);
    applier.set_node_addresses(&node(&["192.0.2.8", "127.0.0.1"], &["127.0.0.1"])).unwrap();
    assert_eq!(told(&memory), ("127.0.0.1".into(), 1));
}

/// A client's affinity is found by the generation of the row, which every Service port in it has anew, also under
/// another agent and while rows are used again and again.
#[test]
fn no_two_service_ports_have_the_same_row_and_generation() {
    let memory = VecMemory::new(TableSizes { services: 4, ..SMALL });
    let mut seen = BTreeSet::new();
    let world = |name: &str| -> World {
        let text =
            TEXT.replace("default/web", &format!("default/{name}")).replace("default/other", "default/none");
        let mut world: World = plans_of(&text);
        world.retain(|service, _| *service.name == *name);
        world
    };
    for round in 0..6 {
        let mut applier = adopt(&memory).unwrap();
        for name in ["a", "b", "c"] {
            let report = apply(&mut applier, full(&world(name)));
            // Of rows that an earlier agent had the counters are not 0 either.
            assert!(round == 0 || report.reused_services.len() == 2, "{report:?}");
            for service in &view(&memory).services {
                assert!(seen.insert((service.index, service.policy.generation)), "{service:?}");
            }
        }
    }
}

#[test]
fn before_the_first_full_batch_nothing_goes_and_after_it_the_unwanted_is_gone() {
    let memory = filled();
    let before = meaning(&memory);
    let mut applier = adopt(&memory).unwrap();
    assert_eq!(meaning(&memory), before);
    let mut world = plans();
    let (name, plan) = world.pop_last().unwrap();
    let only: World = [(name, plan)].into();
    apply(&mut applier, difference(&World::new(), &only));
    assert_eq!(meaning(&memory), before);
    apply(&mut applier, full(&only));
    assert_eq!(meaning(&memory), wanted(&only));
}

#[test]
fn what_belongs_to_nobody_goes_with_the_first_full_batch() {
    let memory = filled();
    // A frontend of a Service that is not there, and one that leads to the wrong Service.
    let foreign = key("10.96.0.77:80", 6);
    let (bucket, _) = buckets_of(&memory, &foreign);
    let cell = cells_of(Table::Frontends4, bucket).find(|cell| cell.is_empty(&memory)).unwrap();
    cell.write(&memory, &foreign, 40).unwrap();
    let wrong = key("10.96.0.2:53", 17);
    let (cell, _) = find(&memory, &wrong).next().unwrap();
    let web = view(&memory)
        .services
        .iter()
        .find(|service| service.class(Class::Internal).slots.len() == 2)
        .unwrap()
        .index;
    cell.set_value(&memory, &wrong, web).unwrap();
    // An address entry without Service; a verdict without name; a backend of nobody.
    let address = TableKey::address("10.96.0.78".parse().unwrap());
    let (bucket, _) = buckets_of(&memory, &address);
    let cell = cells_of(Table::Frontends4, bucket).find(|cell| cell.is_empty(&memory)).unwrap();
    cell.write(&memory, &address, 0).unwrap();
    let publish = Publish { base: 100, count: 4, verdict: ServiceVerdict::Random as u8 };
    memory.store(Table::Services, 30, 0, publish.encode()).unwrap();
    let row = |word| memory.load(Table::Backends6, 1, word);
    let words: Vec<u64> = (0..6).map(row).collect();
    for (word, value) in words.iter().enumerate() {
        memory.store(Table::Backends6, 20, word, if word == 3 { 50 } else { *value }).unwrap();
    }

    let mut applier = adopt(&memory).unwrap();
    assert_eq!(view(&memory).orphans.len(), 1);
    apply(&mut applier, full(&plans()));
    assert_eq!(meaning(&memory), wanted(&plans()));
    let fresh = VecMemory::new(SMALL);
    let mut other = adopt(&fresh).unwrap();
    apply(&mut other, full(&plans()));
    assert_eq!(applier.occupancy(), other.occupancy());
}

#[test]
fn the_second_copy_of_a_moving_frontend_goes() {
    let memory = filled();
    for text in ["10.96.0.1:80", "[fd00:96::1]:80"] {
        let key = key(text, 6);
        let (cell, service) = find(&memory, &key).next().unwrap();
        let (first, second) = buckets_of(&memory, &key);
        let other = if cell.bucket == first { second } else { first };
        assert_ne!(cell.bucket, other, "the test needs a key with two buckets");
        let copy = cells_of(cell.table, other).find(|cell| cell.is_empty(&memory)).unwrap();
        copy.write(&memory, &key, service).unwrap();
        assert_eq!(find(&memory, &key).count(), 2);
    }
    let mut applier = adopt(&memory).unwrap();
    apply(&mut applier, full(&plans()));
    assert_eq!(meaning(&memory), wanted(&plans()));
    assert_eq!(find(&memory, &key("10.96.0.1:80", 6)).count(), 1);
    assert_eq!(find(&memory, &key("[fd00:96::1]:80", 6)).count(), 1);
}

#[test]
fn ways_are_taken_over_until_the_real_ones_are_known() {
    let memory = filled();
    let address = "10.0.0.1".parse().unwrap();
    let way = Way { interface: 7, mac: [2, 0, 0, 0, 0, 1], kind: WayKind::Local };
    adopt(&memory).unwrap().set_way(address, Some(way)).unwrap();

    let mut applier = adopt(&memory).unwrap();
    apply(&mut applier, full(&plans()));
    let interfaces = |memory: &VecMemory| {
        let view = view(memory);
        view.backends.iter().filter(|b| b.address == address).map(|b| b.interface).collect::<Vec<_>>()
    };
    assert_eq!(interfaces(&memory), [7]);
    applier.set_ways([(address, Way { interface: 9, ..way })].into()).unwrap();
    assert_eq!(interfaces(&memory), [9]);
    applier.set_ways([("10.0.0.2".parse().unwrap(), way)].into()).unwrap();
    assert_eq!(interfaces(&memory), [0]);
    assert_eq!(meaning(&memory).ports.len(), 3);
}

#[test]
fn service_ranges_are_those_the_look_up_sees() {
    use lb_common::layout::{Family, V4, V6};
    let memory = VecMemory::new(SMALL);
    let mut applier = adopt(&memory).unwrap();
    let inside = |address: &str| {
        let tables = crate::dataplane::memory::HostTables(&memory);
        match address.parse().unwrap() {
            std::net::IpAddr::V4(address) => V4::in_service_ranges(&tables, address.into()),
            std::net::IpAddr::V6(address) => V6::in_service_ranges(&tables, address.into()),
        }
    };
    let range = |text: &str, prefix| (text.parse().unwrap(), prefix);
    applier.set_service_ranges(&[range("10.96.3.1", 12), range("fd00:96::", 112)]).unwrap();
    let found = ["10.96.0.0", "10.111.255.255", "10.112.0.0", "fd00:96::ffff", "fd00:96::1:0"].map(inside);
    assert_eq!(found, [true, true, false, true, false]);
    applier.set_service_ranges(&[range("0.0.0.0", 0)]).unwrap();
    assert_eq!(["1.2.3.4", "fd00:96::1"].map(inside), [true, false]);
    applier.set_service_ranges(&[]).unwrap();
    assert_eq!(["1.2.3.4", "10.96.0.1"].map(inside), [false, false]);
    assert!(applier.set_service_ranges(&[range("10.0.0.0", 33)]).is_err());
    assert!(applier.set_service_ranges(&[range("::", 0); 17]).is_err());
}
