//! What the tables should mean, worked out naively from plans, and what they do mean.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{Class, Family as Layout, FrontendKey, Publish, Table, V4, V6};
use lb_common::lookup::{Unserved, choose, classify_address, find};
use lb_common::reason::Reason;

use crate::apply::{TableKey, view};
use crate::dataplane::memory::{HostTables, TableMemory};
use crate::model::ObjectName;
use crate::plan::{EndpointPlan, ServicePlan, ServicePortKey, Verdict};

/// Wanted plans of all Services.
pub(super) type World = BTreeMap<ObjectName, ServicePlan>;

/// What a new connection to an address and port meets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Endpoints(BTreeSet<(IpAddr, u16)>),
    Reject,
    Drop,
    /// The address is known, the port is not.
    UnknownPort,
    Nothing,
}

/// An endpoint: address, port, serving, local.
type Endpoint = (IpAddr, u16, bool, bool);

/// What the slots hold in their order, the verdict, and the endpoints of a Service port.
type PortMeaning = (Vec<(IpAddr, u16)>, &'static str, BTreeSet<Endpoint>);

/// What tables mean, whatever row things lie in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) frontends: BTreeMap<TableKey, ServicePortKey>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) ports: BTreeMap<ServicePortKey, PortMeaning>,
}

fn keys(plan: &ServicePlan) -> impl Iterator<Item = (TableKey, &ServicePortKey)> {
    plan.ports.iter().flat_map(|port| {
        port.internal.frontends.iter().map(|frontend| {
            let key = TableKey::service(frontend.address, frontend.port, port.key.protocol.number());
            (key, &port.key)
        })
    })
}

/// Every Service port that wants a frontend.
pub(super) fn claimants(world: &World, key: &TableKey) -> BTreeSet<ServicePortKey> {
    world.values().flat_map(keys).filter(|(found, _)| found == key).map(|(_, port)| port.clone()).collect()
}

/// Every frontend that some Service port wants and the datapath carries.
pub(super) fn wanted_frontends(world: &World) -> BTreeSet<TableKey> {
    world.values().flat_map(keys).map(|(key, _)| key).filter(TableKey::is_carried).collect()
}

/// What the tables should mean.
pub(super) fn wanted(world: &World) -> Meaning {
    let mut meaning = Meaning::default();
    let mut services: Vec<&ServicePlan> = world.values().collect();
    services.sort_by_key(|plan| (Reverse(plan.created.map(Reverse)), plan.service.clone()));
    for plan in services {
        for (key, port) in keys(plan) {
            meaning.addresses.insert(key.address);
            if key.is_carried() {
                meaning.frontends.entry(key).or_insert_with(|| port.clone());
            }
        }
        for port in &plan.ports {
            let target = |at: &u32| {
                let endpoint = &port.endpoints[*at as usize];
                (endpoint.address, endpoint.port)
            };
            let (slots, verdict) = match &port.internal.verdict {
                Verdict::Balance(chosen) => (chosen.iter().map(target).collect(), "random"),
                Verdict::Reject => (Vec::new(), "reject"),
                Verdict::Drop => (Vec::new(), "drop"),
            };
            let endpoint = |e: &EndpointPlan| (e.address, e.port, e.serving, e.local);
            let endpoints = port.endpoints.iter().map(endpoint).collect();
            meaning.ports.insert(port.key.clone(), (slots, verdict, endpoints));
        }
    }
    meaning
}

/// What the tables mean, read without any of the applier's memory.
pub(super) fn meaning(memory: &impl TableMemory) -> Meaning {
    let view = view(memory);
    assert_eq!(view.orphans, [], "frontends that lead nowhere");
    let mut meaning = Meaning { addresses: view.addresses.iter().copied().collect(), ..Meaning::default() };
    assert_eq!(meaning.addresses.len(), view.addresses.len(), "an address twice");
    for service in &view.services {
        let key = service.key.clone().expect("a row without name");
        let family = key.family;
        let backends = || view.backends.iter().filter(move |backend| backend.family == family);
        let mine = || backends().filter(|backend| backend.service == service.index);
        let slot = |row: &u32| {
            let backend =
                backends().find(|backend| backend.index == *row).expect("an empty backend in a slot");
            assert_eq!(backend.service, service.index, "a foreign backend in a slot");
            (backend.address, backend.port)
        };
        let endpoints: BTreeSet<Endpoint> = mine().map(|b| (b.address, b.port, b.serving, b.local)).collect();
        assert_eq!(mine().count(), endpoints.len(), "an endpoint twice");
        let entry = (service.slots.iter().map(slot).collect(), service.verdict, endpoints);
        assert!(meaning.ports.insert(key.clone(), entry).is_none(), "{key} twice");
        for frontend in &service.frontends {
            assert!(meaning.frontends.insert(*frontend, key.clone()).is_none(), "{frontend:?} twice");
        }
    }
    let owned = view.backends.iter().all(|b| view.services.iter().any(|s| s.index == b.service));
    assert!(owned, "a backend without Service port");
    meaning
}

/// What a wanted Service port does with a new connection.
pub(super) fn outcome_of(meaning: &Meaning, port: &ServicePortKey) -> Option<Outcome> {
    meaning.ports.get(port).map(|(slots, verdict, _)| match *verdict {
        "random" => Outcome::Endpoints(slots.iter().copied().collect()),
        "drop" => Outcome::Drop,
        _ => Outcome::Reject,
    })
}

/// What the programs' own look-ups find, with every random number that reaches another slot; and whose row it is.
pub(super) fn resolve(memory: &impl TableMemory, key: &TableKey) -> (Outcome, Option<u32>) {
    match key.address {
        IpAddr::V4(address) => {
            let address = Ip4::from(address);
            resolve_in::<V4>(memory, address, key)
        }
        IpAddr::V6(address) => {
            let address = Ip6::from(address);
            resolve_in::<V6>(memory, address, key)
        }
    }
}

fn resolve_in<F: Layout>(
    memory: &impl TableMemory,
    address: F::Addr,
    key: &TableKey,
) -> (Outcome, Option<u32>) {
    let tables = HostTables(memory);
    let key = FrontendKey::service(address, Be16::new(key.port), key.protocol);
    let Some(service) = find::<F, _>(&tables, &key) else {
        return match classify_address::<F, _>(&tables, address) {
            Unserved::UnknownPort => (Outcome::UnknownPort, None),
            _ => (Outcome::Nothing, None),
        };
    };
    let count = Publish::decode(memory.load(Table::Services, service, 0)).count.max(1);
    let mut endpoints = BTreeSet::new();
    for slot in 0..u64::from(count) {
        let random = ((slot << 32).div_ceil(u64::from(count))) as u32;
        match choose::<F, _>(&tables, service, Class::Internal, random) {
            Ok(choice) => {
                assert_eq!(choice.backend.service, service, "a foreign backend was chosen");
                let target = (choice.backend.address.to_ip(), choice.backend.port.host());
                assert!(endpoints.insert(target), "an endpoint in two slots");
            }
            Err(Reason::NoEndpoint) => return (Outcome::Reject, Some(service)),
            Err(Reason::NoLocalEndpoint) => return (Outcome::Drop, Some(service)),
            Err(reason) => {
                panic!("{key:?} leads to row {service}: {reason:?}", key = (address.to_ip(), key.port.host()))
            }
        }
    }
    assert_eq!(endpoints.len(), count as usize);
    (Outcome::Endpoints(endpoints), Some(service))
}
