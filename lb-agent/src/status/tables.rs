//! How full tables are, and what is going on.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use lb_common::layout::{Bucket4, Class, Control, ServiceStat, Table};
use lb_common::reason::Reason;
use serde::Serialize;

use super::Services;
use crate::apply::TablesView;
use crate::dataplane::memory::TableMemory;
use crate::dataplane::{Counters, Map, Maps, Result};
use crate::model::Family;

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// `services`, `endpoints4`, `endpoints6`, `connections4`, `connections6`.
    pub table: &'static str,
    /// Rows in use; of connections, as the agent counted them last and the programs go on.
    pub entries: u64,
    /// Rows that there are.
    pub size: u64,
}

impl Occupancy {
    /// In hundredths.
    pub fn percent(&self) -> u64 {
        self.entries * 100 / self.size.max(1)
    }
}

/// What was carried in a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// How long was looked.
    pub seconds: f64,
    /// Connections opened.
    pub connections: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions.
    pub bytes: u64,
}

/// A reason with its counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// Name of the reason.
    pub reason: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// Packets while this command looked.
    pub now: u64,
    /// Packets since the tables were made.
    pub total: u64,
}

/// What the tables serve.
pub(super) fn services(view: &TablesView) -> Services {
    let refuses = |verdict: &str| verdict == "reject";
    Services {
        ports: view.services.len(),
        endpoints: view.backends.len(),
        refusing: view
            .services
            .iter()
            .filter(|service| refuses(service.class(Class::Internal).verdict))
            .count(),
    }
}

/// Seconds since the agent's last count of the connection tables.
pub(super) fn counted(memory: &impl TableMemory) -> Option<u32> {
    let counted = memory.load(Table::Control, Control::Counted as u32, 0) as u32;
    // The clock that the note is of runs as long as the machine does, but for its sleep.
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let now: f64 = uptime.split(' ').next()?.parse().ok()?;
    (counted != 0).then(|| (now as u32).saturating_sub(counted))
}

/// How full the tables are that may become full.
pub(super) fn occupancy(maps: &Maps, memory: &impl TableMemory, view: &TablesView) -> Vec<Occupancy> {
    let endpoints = |family| view.backends.iter().filter(|backend| backend.family == family).count() as u64;
    // Row 0 of the service side is never used; that of shares has the totals.
    let rows = |table| u64::from(maps.max_entries(Map::Table(table)).saturating_sub(1));
    let connections = |word| (memory.load(Table::Shares, 0, word) as i64).max(0) as u64;
    let slots: BTreeSet<(u32, usize)> = view
        .services
        .iter()
        .flat_map(|service| service.classes.iter().map(|class| (class.base, class.slots.len())))
        .collect();
    let frontends = |v6: bool| {
        let of_family = |address: &std::net::IpAddr| address.is_ipv6() == v6;
        let entries = view.services.iter().flat_map(|service| &service.frontends);
        entries.filter(|entry| of_family(&entry.address)).count()
            + view.addresses.iter().chain(&view.node_addresses).filter(|address| of_family(address)).count()
    };
    let cells = |table| u64::from(maps.max_entries(Map::Table(table))) * Bucket4::ENTRIES as u64;
    let table = |table, entries, size| Occupancy { table, entries, size };
    vec![
        table("services", view.services.len() as u64, rows(Table::Services)),
        table("frontends4", frontends(false) as u64, cells(Table::Frontends4)),
        table("frontends6", frontends(true) as u64, cells(Table::Frontends6)),
        table("endpoints4", endpoints(Family::V4), rows(Table::Backends4)),
        table("endpoints6", endpoints(Family::V6), rows(Table::Backends6)),
        table(
            "slots",
            slots.iter().map(|(_, length)| *length as u64).sum(),
            u64::from(maps.max_entries(Map::Table(Table::Slots))) * 2,
        ),
        table("connections4", connections(0), u64::from(maps.max_entries(Map::Connections4))),
        table("connections6", connections(1), u64::from(maps.max_entries(Map::Connections6))),
    ]
}

/// Counters at a moment.
pub(super) struct Sample {
    reasons: Vec<(Reason, u64)>,
    traffic: Traffic,
}

impl Sample {
    pub(super) fn take(counters: &Counters<'_>, view: &TablesView) -> Result<Self> {
        let mut traffic = Traffic::default();
        for service in &view.services {
            let row = counters.service(service.index)?;
            let sum = |stats: [ServiceStat; 2]| stats.into_iter().map(|stat| row.get(stat)).sum::<u64>();
            traffic.connections += row.get(ServiceStat::Connections);
            traffic.packets += sum([ServiceStat::Packets, ServiceStat::ReplyPackets]);
            traffic.bytes += sum([ServiceStat::Bytes, ServiceStat::ReplyBytes]);
        }
        Ok(Self { reasons: counters.reasons()?, traffic })
    }
}

/// What happened between two moments.
pub(super) fn between(before: &Sample, after: &Sample, elapsed: Duration) -> (Traffic, Vec<Drops>) {
    // A row that went to another Service meanwhile begins at 0.
    let traffic = Traffic {
        seconds: elapsed.as_secs_f64(),
        connections: after.traffic.connections.saturating_sub(before.traffic.connections),
        packets: after.traffic.packets.saturating_sub(before.traffic.packets),
        bytes: after.traffic.bytes.saturating_sub(before.traffic.bytes),
    };
    let reasons = before.reasons.iter().zip(&after.reasons);
    let mut drops: Vec<Drops> = reasons
        .filter(|(_, (_, total))| *total > 0)
        .map(|((_, before), (reason, total))| Drops {
            reason: reason.name(),
            meaning: reason.meaning(),
            now: total.saturating_sub(*before),
            total: *total,
        })
        .collect();
    drops.sort_by_key(|drops| (std::cmp::Reverse((drops.now, drops.total)), drops.reason));
    (traffic, drops)
}
