//! What the tables say, read by anyone at any time: for tools, and for an agent that takes them over.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::layout::{
    Algorithm, BackendFlags, Class, FrontendKind, FrontendValue, HAS_ENDPOINTS, Policy, Publish,
    SCOPE_ADDRESS, SCOPE_NODE_ADDRESS, Service, ServiceName, ServiceVerdict, SourceRanges, Table,
    slot_of_word,
};

use super::backend::{BackendRow, backend_table};
use super::cells::cells_of;
use super::key::TableKey;
use super::ranges;
use crate::dataplane::memory::TableMemory;
use crate::model::{Cidr, Family, ObjectName, Protocol};
use crate::plan::{ServicePortKey, kind_name};

/// Content of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablesView {
    /// Rows of Service ports that have a name or a verdict, by index.
    pub services: Vec<ServiceView>,
    /// Backend rows in use: IPv4 by index, then IPv6 by index.
    pub backends: Vec<BackendView>,
    /// Cluster IPs: addresses whose other ports are refused (S-23), sorted.
    pub addresses: Vec<IpAddr>,
    /// Those of them that have an endpoint at some port (S-70), sorted.
    pub with_endpoints: Vec<IpAddr>,
    /// Addresses that node ports are served at (S-35), sorted.
    pub node_addresses: Vec<IpAddr>,
    /// Frontends that lead to no row of `services`, sorted.
    pub orphans: Vec<FrontendView>,
}

/// A Service port in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// Row; also the row of its counters.
    pub index: u32,
    /// Identity; `None` when the row has no readable name.
    pub key: Option<ServicePortKey>,
    /// Addresses and ports that lead to it, sorted.
    pub frontends: Vec<FrontendEntry>,
    /// What each traffic class chooses from, in the order of [`Class::ALL`].
    pub classes: [ClassView; 3],
    /// Affinity, masquerade, source ranges.
    pub policy: PolicyView,
}

impl ServiceView {
    /// What a traffic class chooses from.
    pub const fn class(&self, class: Class) -> &ClassView {
        &self.classes[class as usize]
    }
}

/// An address and port that lead to a Service port. Cluster IPs sort first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendEntry {
    /// Which of the Service's fields it comes from.
    pub kind: FrontendKind,
    /// The address; unspecified for node ports, which are served at every node port address.
    pub address: IpAddr,
    /// The port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

impl FrontendEntry {
    /// What it is looked up by.
    pub fn key(&self) -> TableKey {
        match self.kind {
            FrontendKind::NodePort => TableKey::node_port(Family::of(self.address), self.port, self.protocol),
            _ => TableKey::service(self.address, self.port, self.protocol),
        }
    }
}

impl fmt::Display for FrontendEntry {
    /// `10.96.0.1:80`, `nodePort=*:30080`, `externalIP=203.0.113.7:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = SocketAddr::new(self.address, self.port);
        match self.kind {
            FrontendKind::ClusterIp => write!(f, "{at}"),
            FrontendKind::NodePort => write!(f, "{}=*:{}", kind_name(self.kind), self.port),
            _ => write!(f, "{}={at}", kind_name(self.kind)),
        }
    }
}

/// What a traffic class of a Service port does with a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassView {
    /// `random`, `maglev`, `reject`, `drop`, `unused` or `unknown`.
    pub verdict: &'static str,
    /// First slot.
    pub base: u32,
    /// Backend rows it chooses from, each once: in the order of the slots; of a Maglev table in the order of their first slots.
    pub slots: Vec<u32>,
    /// Slots that each of them has, in the same order: what its share of new connections is. One each unless `maglev`.
    pub weights: Vec<u32>,
}

/// What holds for a Service port beside its lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyView {
    /// Seconds of client IP affinity, 0 for none (S-40).
    pub affinity_timeout: u32,
    /// Clients outside keep their source address (S-33 c).
    pub preserve_source: bool,
    /// The only sources that load balancer VIPs are for; `None` = everybody, empty = nobody (S-34).
    pub sources: Option<Vec<Cidr>>,
    /// With sources: processes of this node may use the VIPs too.
    pub host_allowed: bool,
    /// How often the row went to another Service port: part of the key of affinities.
    pub generation: u32,
}

/// A frontend in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendView {
    /// What it is looked up by.
    pub key: TableKey,
    /// Row of the Service port.
    pub service: u32,
}

/// A backend in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Family, which says which table.
    pub family: Family,
    /// Row; also the row of its counters.
    pub index: u32,
    /// Row of its Service port.
    pub service: u32,
    /// Address of the endpoint.
    pub address: IpAddr,
    /// Port of the endpoint.
    pub port: u16,
    /// The endpoint serves.
    pub serving: bool,
    /// The classes that list it, in the order of [`Class::ALL`].
    pub classes: [bool; 3],
    /// The endpoint runs on this node.
    pub local: bool,
    /// The endpoint is reached over a network card without the host's stack.
    pub neighbour: bool,
    /// Device that leads there, 0 when the host's stack decides.
    pub interface: u32,
    /// MAC address of a local endpoint.
    pub mac: [u8; 6],
}

/// Reads the tables.
pub fn view(memory: &impl TableMemory) -> TablesView {
    let mut view = TablesView::default();
    for index in 1..memory.rows(Table::Services) {
        let word = |word| memory.load(Table::Services, index, word);
        let published = Class::ALL.map(|class| Publish::decode(word(class as usize)));
        let key = name(memory, index);
        if key.is_none() && published.iter().all(|publish| publish.encode() == 0) {
            continue;
        }
        let ranges = SourceRanges::decode(word(Service::SOURCE_RANGES));
        view.services.push(ServiceView {
            index,
            key,
            frontends: Vec::new(),
            classes: published.map(|publish| class_view(memory, publish)),
            policy: policy_view(memory, Policy::decode(word(Service::POLICY)), ranges),
        });
    }
    for (key, value) in frontends(memory) {
        let FrontendValue { service, kind } = FrontendValue::decode(value);
        let place = view.services.binary_search_by_key(&service, |row| row.index);
        match (key.scope, place) {
            (SCOPE_ADDRESS, _) => {
                view.addresses.push(key.address);
                if value == HAS_ENDPOINTS {
                    view.with_endpoints.push(key.address);
                }
            }
            (SCOPE_NODE_ADDRESS, _) => view.node_addresses.push(key.address),
            (_, Ok(at)) => {
                let TableKey { address, port, protocol, .. } = key;
                view.services[at].frontends.push(FrontendEntry { kind, address, port, protocol });
            }
            (_, Err(_)) => view.orphans.push(FrontendView { key, service }),
        }
    }
    for service in &mut view.services {
        service.frontends.sort_unstable();
    }
    view.addresses.sort_unstable();
    view.with_endpoints.sort_unstable();
    view.node_addresses.sort_unstable();
    view.orphans.sort_unstable();
    for family in [Family::V4, Family::V6] {
        view.backends.extend(backends(memory, family).map(|(index, row)| backend_view(family, index, &row)));
    }
    view
}

/// The name in a row.
pub(super) fn name(memory: &impl TableMemory, index: u32) -> Option<ServicePortKey> {
    // Most rows are empty: one load tells.
    if memory.load(Table::Names, index, 0) == 0 {
        return None;
    }
    let mut row = [0; ServiceName::BYTES];
    for (word, bytes) in row.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&memory.load(Table::Names, index, word).to_ne_bytes());
    }
    let name = ServiceName::decode(&row)?;
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == name.protocol)?;
    Some(ServicePortKey {
        service: ObjectName::new(name.namespace, name.name),
        port_name: name.port_name.into(),
        protocol,
        family: if name.v6 { Family::V6 } else { Family::V4 },
    })
}

/// Every frontend entry with its value, those for an address included.
pub(super) fn frontends(memory: &impl TableMemory) -> Vec<(TableKey, u32)> {
    let mut found = Vec::new();
    for table in [Table::Frontends4, Table::Frontends6] {
        for bucket in 0..memory.rows(table) {
            found.extend(cells_of(table, bucket).filter_map(|cell| cell.load(memory)));
        }
    }
    found
}

/// Every backend row in use.
pub(super) fn backends(memory: &impl TableMemory, family: Family) -> impl Iterator<Item = (u32, BackendRow)> {
    (1..memory.rows(backend_table(family)))
        .map(move |index| (index, BackendRow::load(memory, family, index)))
        .filter(|(_, row)| row.flags & BackendFlags::IN_USE != 0)
}

fn backend_view(family: Family, index: u32, row: &BackendRow) -> BackendView {
    let BackendRow { address, port, flags, service, interface, mac } = *row;
    BackendView {
        family,
        index,
        service,
        address,
        port,
        serving: flags & BackendFlags::SERVING != 0,
        classes: Class::ALL.map(|class| flags & class.backend_flag() != 0),
        local: flags & BackendFlags::LOCAL != 0,
        neighbour: flags & BackendFlags::NEIGHBOUR != 0,
        interface,
        mac,
    }
}

fn class_view(memory: &impl TableMemory, publish: Publish) -> ClassView {
    let (mut slots, mut weights) = (slots(memory, publish), Vec::new());
    if publish.algorithm() == Some(Algorithm::Maglev) {
        let mut places = HashMap::new();
        for row in std::mem::take(&mut slots) {
            let place = *places.entry(row).or_insert(slots.len());
            if place == slots.len() {
                slots.push(row);
                weights.push(0);
            }
            weights[place] += 1;
        }
    } else {
        weights.resize(slots.len(), 1);
    }
    ClassView { verdict: verdict_name(publish.verdict), base: publish.base, slots, weights }
}

fn policy_view(memory: &impl TableMemory, policy: Policy, ranges: SourceRanges) -> PolicyView {
    let rows = ranges.first..ranges.first.saturating_add(ranges.count.min(SourceRanges::MAX));
    let sources = || rows.filter_map(|row| ranges::range(ranges::load(memory, Table::SourceRanges, row)));
    PolicyView {
        affinity_timeout: policy.affinity_timeout,
        preserve_source: policy.flags & Policy::PRESERVE_SOURCE != 0,
        sources: (policy.flags & Policy::SOURCE_RANGES != 0).then(|| sources().collect()),
        host_allowed: policy.flags & Policy::HOST_ALLOWED != 0,
        generation: policy.generation(),
    }
}

fn slots(memory: &impl TableMemory, publish: Publish) -> Vec<u32> {
    if publish.algorithm().is_none() {
        return Vec::new();
    }
    let end = memory.rows(Table::Slots).saturating_mul(2).min(publish.base.saturating_add(publish.count));
    (publish.base..end)
        .map(|slot| {
            let (word, shift) = slot_of_word(slot);
            (memory.load(Table::Slots, word, 0) >> shift) as u32
        })
        .collect()
}

const fn verdict_name(verdict: u8) -> &'static str {
    const UNUSED: u8 = ServiceVerdict::Unused as u8;
    const RANDOM: u8 = ServiceVerdict::Random as u8;
    const MAGLEV: u8 = ServiceVerdict::Maglev as u8;
    const REJECT: u8 = ServiceVerdict::Reject as u8;
    const DROP: u8 = ServiceVerdict::Drop as u8;
    match verdict {
        UNUSED => "unused",
        RANDOM => "random",
        MAGLEV => "maglev",
        REJECT => "reject",
        DROP => "drop",
        _ => "unknown",
    }
}
