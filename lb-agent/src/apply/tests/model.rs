//! What the tables should mean, worked out naively from plans, and what they do mean.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::address::{Address, Ip4, Ip6};
use lb_common::byteorder::Be16;
use lb_common::layout::{
    Algorithm, Class, Client, Family as Layout, FrontendKey, FrontendKind, FrontendValue, Publish, Table, V4,
    V6, slot_of_word,
};
use lb_common::lookup::{Unserved, admits, choose, classify_address, find, policy};
use lb_common::reason::Reason;

use crate::apply::frontends::frontend_keys;
use crate::apply::{TableKey, maglev, view};
use crate::dataplane::memory::{HostTables, TableMemory};
use crate::model::{Cidr, ObjectName};
use crate::plan::{EndpointPlan, ServicePlan, ServicePortKey, ServicePortPlan, Verdict};

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

/// An endpoint: address, port, serving, local, the classes that list it.
type Endpoint = (IpAddr, u16, bool, bool, [bool; 3]);

/// What a class chooses from, in the order of its slots, and its verdict.
type List = (Vec<(IpAddr, u16)>, &'static str);

/// What a Service port means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortMeaning {
    pub(super) lists: [List; 3],
    pub(super) endpoints: BTreeSet<Endpoint>,
    affinity_timeout: u32,
    preserve_source: bool,
    sources: Option<Vec<Cidr>>,
    host_allowed: bool,
}

impl PortMeaning {
    /// Clients outside keep their address.
    pub(super) fn preserve_source(&self) -> bool {
        self.preserve_source
    }

    /// The sources that VIPs are for.
    pub(super) fn sources(&self) -> Option<&[Cidr]> {
        self.sources.as_deref()
    }
}

/// What tables mean, whatever row things lie in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) frontends: BTreeMap<TableKey, (ServicePortKey, FrontendKind)>,
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Those with an endpoint at some port.
    with_endpoints: BTreeSet<IpAddr>,
    pub(super) ports: BTreeMap<ServicePortKey, PortMeaning>,
}

/// Who asks: what a look-up is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) client: Client,
    pub(super) source: IpAddr,
}

fn keys(plan: &ServicePlan) -> impl Iterator<Item = (TableKey, FrontendKind, &ServicePortKey)> {
    plan.ports.iter().flat_map(|port| frontend_keys(port).map(|(key, kind)| (key, kind, &port.key)))
}

/// Every Service port that wants a frontend, and as what.
pub(super) fn claimants(world: &World, key: &TableKey) -> BTreeSet<(ServicePortKey, FrontendKind)> {
    let all = world.values().flat_map(keys).filter(|(found, ..)| found == key);
    all.map(|(_, kind, port)| (port.clone(), kind)).collect()
}

/// Every frontend that some Service port wants.
pub(super) fn wanted_frontends(world: &World) -> BTreeSet<TableKey> {
    world.values().flat_map(keys).map(|(key, ..)| key).collect()
}

/// Addresses that are some Service's cluster IP.
pub(super) fn cluster_ips(world: &World) -> BTreeSet<IpAddr> {
    let internal = world.values().flat_map(keys).filter(|(_, kind, _)| *kind == FrontendKind::ClusterIp);
    internal.map(|(key, ..)| key.address).collect()
}

/// What the tables should mean when the node has no address.
pub(super) fn wanted(world: &World) -> Meaning {
    wanted_on(world, &[])
}

/// What the tables should mean on a node with these addresses.
pub(super) fn wanted_on(world: &World, local: &[IpAddr]) -> Meaning {
    let addresses = cluster_ips(world);
    let mut services: Vec<&ServicePlan> = world.values().collect();
    services.sort_by_key(|plan| (Reverse(plan.created.map(Reverse)), plan.service.clone()));
    let mut owners = BTreeMap::new();
    // Cluster IPs first: they win whoever is older, and no other Service gets any port of their address.
    for internal in [true, false] {
        for (key, kind, port) in services.iter().flat_map(|plan| keys(plan)) {
            let blocked = key.scope == lb_common::layout::SCOPE_SERVICE && addresses.contains(&key.address);
            if (kind == FrontendKind::ClusterIp) == internal && (internal || !blocked) {
                owners.entry(key).or_insert_with(|| (port.clone(), kind));
            }
        }
    }
    let ports = services.iter().flat_map(|plan| &plan.ports);
    let ports: BTreeMap<ServicePortKey, PortMeaning> =
        ports.map(|port| (port.key.clone(), port_meaning(port, local))).collect();
    let mut with_endpoints = BTreeSet::new();
    for (key, (port, kind)) in &owners {
        if *kind == FrontendKind::ClusterIp && !ports[port].lists[Class::Internal as usize].0.is_empty() {
            with_endpoints.insert(key.address);
        }
    }
    Meaning { frontends: owners, addresses, with_endpoints, ports }
}

fn port_meaning(port: &ServicePortPlan, local: &[IpAddr]) -> PortMeaning {
    let target = |at: &u32| {
        let endpoint = &port.endpoints[*at as usize];
        (endpoint.address, endpoint.port)
    };
    let lists = Class::ALL.map(|class| match port.verdict(class) {
        Some(Verdict::Balance(chosen)) => {
            let is_table = port.algorithm == Algorithm::Maglev && chosen.len() > 1;
            let verdict = if is_table { "maglev" } else { "random" };
            (chosen.iter().map(target).collect(), verdict)
        }
        Some(Verdict::Drop) => (Vec::new(), "drop"),
        // Nobody asks a class without frontends.
        Some(Verdict::Reject) | None => (Vec::new(), "reject"),
    });
    let lists: [List; 3] = lists;
    let endpoint = |e: &EndpointPlan| {
        let at = (e.address, e.port);
        (e.address, e.port, e.serving, e.local, Class::ALL.map(|class| lists[class as usize].0.contains(&at)))
    };
    let sources = port.external.as_ref().map(|external| external.source_ranges.clone());
    let sources = sources.filter(|sources| !sources.is_empty());
    PortMeaning {
        endpoints: port.endpoints.iter().map(endpoint).collect(),
        affinity_timeout: port.affinity_timeout.unwrap_or(0),
        preserve_source: port.external.as_ref().is_some_and(|external| external.preserve_source),
        host_allowed: sources.iter().flatten().any(|range| local.iter().any(|a| range.contains(*a))),
        sources,
        lists,
    }
}

/// What the tables mean, read without any of the applier's memory.
pub(super) fn meaning(memory: &impl TableMemory) -> Meaning {
    let view = view(memory);
    assert_eq!(view.orphans, [], "frontends that lead nowhere");
    let mut meaning = Meaning {
        addresses: view.addresses.iter().copied().collect(),
        with_endpoints: view.with_endpoints.iter().copied().collect(),
        ports: meaning_of_ports(memory),
        ..Meaning::default()
    };
    assert_eq!(meaning.addresses.len(), view.addresses.len(), "an address twice");
    for service in &view.services {
        let key = service.key.clone().expect("a row without name");
        for frontend in &service.frontends {
            let value = (key.clone(), frontend.kind);
            assert!(meaning.frontends.insert(frontend.key(), value).is_none(), "{frontend:?} twice");
        }
    }
    for backend in &view.backends {
        let owner = view.services.iter().find(|service| service.index == backend.service);
        let owner = owner.expect("a backend without Service port");
        let target = (backend.address, backend.port, backend.serving, backend.local, backend.classes);
        let key = owner.key.as_ref().expect("a row without name");
        assert!(meaning.ports[key].endpoints.contains(&target), "a backend of another family");
    }
    meaning
}

/// What the rows of Service ports mean, whatever leads to them.
pub(super) fn meaning_of_ports(memory: &impl TableMemory) -> BTreeMap<ServicePortKey, PortMeaning> {
    let view = view(memory);
    let mut ports = BTreeMap::new();
    for service in &view.services {
        let Some(key) = service.key.clone() else { continue };
        let backends = || view.backends.iter().filter(|backend| backend.family == key.family);
        let mine = || backends().filter(|backend| backend.service == service.index);
        let slot = |row: &u32| {
            let backend =
                backends().find(|backend| backend.index == *row).expect("an empty backend in a slot");
            assert_eq!(backend.service, service.index, "a foreign backend in a slot");
            (backend.address, backend.port)
        };
        let endpoints: BTreeSet<Endpoint> =
            mine().map(|b| (b.address, b.port, b.serving, b.local, b.classes)).collect();
        assert_eq!(mine().count(), endpoints.len(), "an endpoint twice");
        let list = |class| {
            let class = service.class(class);
            let mut list: Vec<(IpAddr, u16)> = class.slots.iter().map(slot).collect();
            if class.verdict == "maglev" {
                list.sort_unstable();
                let identities: Vec<u64> = list.iter().copied().map(maglev::identity).collect();
                let size = maglev::size(maglev::TEST_SIZES, list.len()).expect("few endpoints");
                let table = maglev::table(size, &identities);
                for (at, wanted) in (class.base..).zip(table) {
                    let (word, shift) = slot_of_word(at);
                    let row = (memory.load(Table::Slots, word, 0) >> shift) as u32;
                    assert_eq!(slot(&row), list[usize::from(wanted)], "slot {at} of {key}");
                }
            }
            (list, class.verdict)
        };
        let policy = &service.policy;
        let entry = PortMeaning {
            lists: Class::ALL.map(list),
            endpoints,
            affinity_timeout: policy.affinity_timeout,
            preserve_source: policy.preserve_source,
            sources: policy.sources.clone(),
            host_allowed: policy.host_allowed,
        };
        assert!(ports.insert(key.clone(), entry).is_none(), "{key} twice");
    }
    ports
}

/// What a wanted Service port does with a new connection of a class.
pub(super) fn outcome_of(meaning: &Meaning, port: &ServicePortKey, class: Class) -> Option<Outcome> {
    meaning.ports.get(port).map(|port| match &port.lists[class as usize] {
        (slots, "random" | "maglev") => Outcome::Endpoints(slots.iter().copied().collect()),
        (_, "drop") => Outcome::Drop,
        _ => Outcome::Reject,
    })
}

/// Whether a wanted Service port lets a source in at a frontend of a kind.
pub(super) fn admission_of(
    meaning: &Meaning,
    port: &ServicePortKey,
    kind: FrontendKind,
    asker: Asker,
) -> Option<bool> {
    let port = meaning.ports.get(port)?;
    let Some(sources) = port.sources.as_ref().filter(|_| kind == FrontendKind::LoadBalancer) else {
        return Some(true);
    };
    Some(match asker.client {
        Client::Host => port.host_allowed,
        _ => sources.iter().any(|range| range.contains(asker.source)),
    })
}

/// What a look-up of a frontend gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The chosen list.
    pub(super) outcome: Outcome,
    /// The row of the Service port.
    pub(super) row: Option<u32>,
    /// Whether the source is let in.
    pub(super) admitted: bool,
}

/// What a pod finds at a frontend.
pub(super) fn resolve(memory: &impl TableMemory, key: &TableKey) -> (Outcome, Option<u32>) {
    let found = resolve_for(memory, key, Asker { client: Client::Pod, source: key.address });
    (found.outcome, found.row)
}

/// What the programs' own look-ups find, with every random number that reaches another slot.
pub(super) fn resolve_for(memory: &impl TableMemory, key: &TableKey, asker: Asker) -> Found {
    match (key.address, asker.source) {
        (IpAddr::V4(address), IpAddr::V4(source)) => {
            resolve_in::<V4>(memory, Ip4::from(address), key, asker.client, source.into())
        }
        (IpAddr::V6(address), IpAddr::V6(source)) => {
            resolve_in::<V6>(memory, Ip6::from(address), key, asker.client, source.into())
        }
        _ => panic!("an asker of the other family"),
    }
}

fn resolve_in<F: Layout>(
    memory: &impl TableMemory,
    address: F::Addr,
    key: &TableKey,
    client: Client,
    source: F::Addr,
) -> Found {
    let tables = HostTables(memory);
    let TableKey { port, protocol, scope, .. } = *key;
    let key = FrontendKey { address, port: Be16::new(port), protocol, scope };
    let Some(value) = find::<F, _>(&tables, &key) else {
        let outcome = match classify_address::<F, _>(&tables, address) {
            Unserved::UnknownPort => Outcome::UnknownPort,
            _ => Outcome::Nothing,
        };
        return Found { outcome, row: None, admitted: true };
    };
    let value = FrontendValue::decode(value);
    let service = value.service;
    let admitted = admits::<F, _>(&tables, value, policy(&tables, service), client, source);
    let class = Class::of(value.kind, client);
    let count = Publish::decode(memory.load(Table::Services, service, class as usize)).count.max(1);
    let mut endpoints = BTreeMap::new();
    for slot in 0..u64::from(count) {
        let random = ((slot << 32).div_ceil(u64::from(count))) as u32;
        let outcome = match choose::<F, _>(&tables, service, class, |_| random) {
            Ok(choice) => {
                assert_eq!(choice.backend.service, service, "a foreign backend was chosen");
                assert_ne!(
                    choice.backend.flags & class.backend_flag(),
                    0,
                    "listed without the bit of its class"
                );
                let target = (choice.backend.address.to_ip(), choice.backend.port.host());
                *endpoints.entry(target).or_insert(0_u64) += 1;
                continue;
            }
            Err(Reason::NoEndpoint) => Outcome::Reject,
            Err(Reason::NoLocalEndpoint) => Outcome::Drop,
            Err(reason) => {
                panic!("{key:?} leads to row {service}: {reason:?}", key = (address.to_ip(), key.port.host()))
            }
        };
        return Found { outcome, row: Some(service), admitted };
    }
    let publish = Publish::decode(memory.load(Table::Services, service, class as usize));
    let most = if publish.algorithm() == Some(Algorithm::Maglev) {
        u64::from(count).div_ceil(endpoints.len() as u64)
    } else {
        1
    };
    assert!(endpoints.values().all(|slots| (most.max(2) - 1..=most).contains(slots)), "{endpoints:?}");
    Found { outcome: Outcome::Endpoints(endpoints.into_keys().collect()), row: Some(service), admitted }
}
