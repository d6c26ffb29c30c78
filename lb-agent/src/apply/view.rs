//! What the tables say, read by anyone at any time: for tools, and for an agent that takes them over.

use std::net::IpAddr;

use lb_common::layout::{BackendFlags, Publish, ServiceName, ServiceVerdict, Table, slot_of_word};
use serde::Serialize;

use super::backend::{BackendRow, backend_table};
use super::cells::cells_of;
use super::key::TableKey;
use crate::dataplane::memory::TableMemory;
use crate::model::{Family, ObjectName, Protocol};
use crate::plan::ServicePortKey;

/// Content of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TablesView {
    /// Rows of Service ports that have a name or a verdict, by index.
    pub services: Vec<ServiceView>,
    /// Backend rows in use: IPv4 by index, then IPv6 by index.
    pub backends: Vec<BackendView>,
    /// Address entries (S-23), sorted.
    pub addresses: Vec<IpAddr>,
    /// Frontends that lead to no row of `services`, sorted.
    pub orphans: Vec<FrontendView>,
}

/// A Service port in the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    /// Row; also the row of its counters.
    pub index: u32,
    /// Identity; `None` when the row has no readable name.
    pub key: Option<ServicePortKey>,
    /// Addresses and ports that lead to it, sorted.
    pub frontends: Vec<TableKey>,
    /// `random`, `reject`, `drop`, `unused` or `unknown`.
    pub verdict: &'static str,
    /// First slot.
    pub base: u32,
    /// Backend rows it chooses from, in the order of the slots.
    pub slots: Vec<u32>,
}

/// A frontend in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FrontendView {
    /// What it is looked up by.
    pub key: TableKey,
    /// Row of the Service port.
    pub service: u32,
}

/// A backend in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
        let publish = Publish::decode(memory.load(Table::Services, index, 0));
        let key = name(memory, index);
        if key.is_none() && publish.encode() == 0 {
            continue;
        }
        view.services.push(ServiceView {
            index,
            key,
            frontends: Vec::new(),
            verdict: verdict_name(publish.verdict),
            base: publish.base,
            slots: slots(memory, publish),
        });
    }
    for (key, service) in frontends(memory) {
        if key == TableKey::address(key.address) {
            view.addresses.push(key.address);
            continue;
        }
        match view.services.binary_search_by_key(&service, |row| row.index) {
            Ok(at) => view.services[at].frontends.push(key),
            Err(_) => view.orphans.push(FrontendView { key, service }),
        }
    }
    for service in &mut view.services {
        service.frontends.sort_unstable();
    }
    view.addresses.sort_unstable();
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

/// Every frontend entry, address entries included.
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
        local: flags & BackendFlags::LOCAL != 0,
        neighbour: flags & BackendFlags::NEIGHBOUR != 0,
        interface,
        mac,
    }
}

fn slots(memory: &impl TableMemory, publish: Publish) -> Vec<u32> {
    if publish.verdict != ServiceVerdict::Random as u8 {
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
    const REJECT: u8 = ServiceVerdict::Reject as u8;
    const DROP: u8 = ServiceVerdict::Drop as u8;
    match verdict {
        UNUSED => "unused",
        RANDOM => "random",
        REJECT => "reject",
        DROP => "drop",
        _ => "unknown",
    }
}
