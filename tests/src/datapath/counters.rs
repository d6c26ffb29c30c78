//! Everything the programs count, as a whole: what one packet moved, and that it moved nothing else.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};
use lb_common::layout::{BackendStat, ServiceStat};
use lb_common::reason::Reason;

use super::Datapath;

/// What was counted, by name; nothing that is zero.
pub type Counts = BTreeMap<String, u64>;

/// A reading of the counters: of all reasons, and of the Services and backends from certain rows on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    first_service: u32,
    first_backend: u32,
    services: Vec<[u64; ServiceStat::WORDS]>,
    backends: [Vec<[u64; BackendStat::WORDS]>; 2],
    reasons: Vec<u64>,
}

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to a backend of a Service was opened.
    Opened(u32, u32),
    /// A flow of a Service chose another endpoint.
    Reselected(u32),
    /// A flow made room for a newer one of its Service.
    Recycled(u32),
    /// A packet of that many bytes went to a backend of a Service.
    Forward(u32, u32, u64),
    /// A packet of that many bytes came from a backend of a Service.
    Reply(u32, u32, u64),
    /// So many packets more than one in what went to a backend of a Service, or (true) came from it.
    Segments(u32, u32, bool, u32),
    /// A packet was refused or dropped.
    Reason(Reason),
    /// A packet to a Service was refused.
    Refused(u32),
    /// A packet to a Service was dropped.
    Dropped(u32),
}

/// All but handshakes, which take the time they take; metrics and `top` are tested for those.
const SERVICE_STATS: [ServiceStat; 9] = [
    ServiceStat::Connections,
    ServiceStat::Packets,
    ServiceStat::Bytes,
    ServiceStat::ReplyPackets,
    ServiceStat::ReplyBytes,
    ServiceStat::Refused,
    ServiceStat::Dropped,
    ServiceStat::Reselected,
    ServiceStat::Recycled,
];

/// As [`SERVICE_STATS`].
const BACKEND_STATS: [BackendStat; 5] = [
    BackendStat::Connections,
    BackendStat::Packets,
    BackendStat::Bytes,
    BackendStat::ReplyPackets,
    BackendStat::ReplyBytes,
];

fn service_name(service: u32, stat: ServiceStat) -> String {
    format!("service {service} {stat:?}")
}

fn backend_name(v6: bool, backend: u32, stat: BackendStat) -> String {
    format!("backend{} {backend} {stat:?}", if v6 { 6 } else { 4 })
}

/// What the events amount to.
pub fn sum(v6: bool, events: &[Event]) -> Counts {
    use {BackendStat as B, ServiceStat as S};
    let mut counters = Counts::new();
    let mut add = |name: String, count| *counters.entry(name).or_default() += count;
    for event in events {
        match *event {
            Event::Opened(service, backend) => {
                add(service_name(service, S::Connections), 1);
                add(backend_name(v6, backend, B::Connections), 1);
            }
            Event::Reselected(service) => add(service_name(service, S::Reselected), 1),
            Event::Recycled(service) => add(service_name(service, S::Recycled), 1),
            Event::Forward(service, backend, bytes) => {
                add(service_name(service, S::Packets), 1);
                add(service_name(service, S::Bytes), bytes);
                add(backend_name(v6, backend, B::Packets), 1);
                add(backend_name(v6, backend, B::Bytes), bytes);
            }
            Event::Reply(service, backend, bytes) => {
                add(service_name(service, S::ReplyPackets), 1);
                add(service_name(service, S::ReplyBytes), bytes);
                add(backend_name(v6, backend, B::ReplyPackets), 1);
                add(backend_name(v6, backend, B::ReplyBytes), bytes);
            }
            Event::Segments(service, backend, reply, more) => {
                let (of_service, of_backend) =
                    if reply { (S::ReplyPackets, B::ReplyPackets) } else { (S::Packets, B::Packets) };
                add(service_name(service, of_service), more.into());
                add(backend_name(v6, backend, of_backend), more.into());
            }
            Event::Reason(reason) => add(reason.name().to_owned(), 1),
            Event::Refused(service) => add(service_name(service, S::Refused), 1),
            Event::Dropped(service) => add(service_name(service, S::Dropped), 1),
        }
    }
    counters
}

impl Reading {
    /// What was counted since an earlier reading. Rows that were not there then count from zero.
    pub fn since(&self, before: &Self) -> Counts {
        let mut counts = Counts::new();
        let mut add = |name: &dyn Fn() -> String, after: u64, before: Option<&u64>| {
            if after != before.copied().unwrap_or_default() {
                counts.insert(name(), after - before.copied().unwrap_or_default());
            }
        };
        for (row, stats) in self.services.iter().enumerate() {
            let old = before.services.get(row);
            for stat in SERVICE_STATS {
                let name = || service_name(self.first_service + row as u32, stat);
                add(&name, stats[stat as usize], old.map(|old| &old[stat as usize]));
            }
        }
        for (family, rows) in self.backends.iter().enumerate() {
            for (row, stats) in rows.iter().enumerate() {
                let old = before.backends[family].get(row);
                for stat in BACKEND_STATS {
                    let name = || backend_name(family == 1, self.first_backend + row as u32, stat);
                    add(&name, stats[stat as usize], old.map(|old| &old[stat as usize]));
                }
            }
        }
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            add(&|| reason.name().to_owned(), self.reasons[at], before.reasons.get(at));
        }
        counts
    }

    /// True when no row of an earlier reading moved.
    pub fn has_rows_of(&self, before: &Self) -> bool {
        let same = |family: usize| self.backends[family].starts_with(&before.backends[family]);
        self.services.starts_with(&before.services) && same(0) && same(1)
    }

    /// Packets counted for Services, both ways.
    pub fn packets(&self) -> u64 {
        let both = |row: &[u64; ServiceStat::WORDS]| {
            row[ServiceStat::Packets as usize] + row[ServiceStat::ReplyPackets as usize]
        };
        self.services.iter().map(both).sum()
    }

    /// Packets counted for any reason.
    pub fn reasons(&self) -> u64 {
        self.reasons.iter().sum()
    }
}

impl Datapath {
    /// Reads the counters of all reasons, and of the rows in use from the given Service and backend on.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub fn counters(&mut self, first_service: u32, first_backend: u32) -> Result<Reading> {
        fn rows<const WORDS: usize>(
            map: &PerCpuArray<&mut MapData, [u64; WORDS]>,
            range: std::ops::Range<u32>,
        ) -> Result<Vec<[u64; WORDS]>> {
            let sum = |row| {
                let cpus = map.get(&row, 0)?;
                Ok(std::array::from_fn(|word| cpus.iter().map(|cpu| cpu[word]).sum()))
            };
            range.map(sum).collect()
        }
        let (services, backends) = (first_service..self.services, first_backend..self.backends);
        Ok(Reading {
            first_service,
            first_backend,
            services: rows(&self.per_cpu("SERVICE_STATS")?, services)?,
            backends: [
                rows(&self.per_cpu("BACKEND_STATS4")?, backends.clone())?,
                rows(&self.per_cpu("BACKEND_STATS6")?, backends)?,
            ],
            reasons: rows::<1>(&self.per_cpu("REASONS")?, 1..Reason::COUNTERS)?.concat(),
        })
    }

    fn per_cpu<const WORDS: usize>(&mut self, name: &str) -> Result<PerCpuArray<&mut MapData, [u64; WORDS]>> {
        Ok(self.ebpf.map_mut(name).with_context(|| format!("map {name}"))?.try_into()?)
    }
}
