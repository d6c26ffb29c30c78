//! Everything the programs count, as a whole: what one packet moved, and that it moved nothing else.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};
use lb_common::layout::{BackendStat, ServiceStat};
use lb_common::reason::Reason;

use super::Datapath;

/// Counters that are not zero, by name.
pub type Counters = BTreeMap<String, u64>;

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to a backend of a Service was opened.
    Opened(u32, u32),
    /// A flow of a Service chose another endpoint.
    Reselected(u32),
    /// A packet of that many bytes went to a backend of a Service.
    Forward(u32, u32, u64),
    /// A packet of that many bytes came from a backend of a Service.
    Reply(u32, u32, u64),
    /// A packet was refused or dropped.
    Reason(Reason),
    /// A packet to a Service was refused.
    Refused(u32),
    /// A packet to a Service was dropped.
    Dropped(u32),
}

const SERVICE_STATS: [ServiceStat; ServiceStat::WORDS] = [
    ServiceStat::Connections,
    ServiceStat::Packets,
    ServiceStat::Bytes,
    ServiceStat::ReplyPackets,
    ServiceStat::ReplyBytes,
    ServiceStat::Refused,
    ServiceStat::Dropped,
    ServiceStat::Reselected,
];

const BACKEND_STATS: [BackendStat; BackendStat::WORDS] = [
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
pub fn sum(v6: bool, events: &[Event]) -> Counters {
    use {BackendStat as B, ServiceStat as S};
    let mut counters = Counters::new();
    let mut add = |name: String, count| *counters.entry(name).or_default() += count;
    for event in events {
        match *event {
            Event::Opened(service, backend) => {
                add(service_name(service, S::Connections), 1);
                add(backend_name(v6, backend, B::Connections), 1);
            }
            Event::Reselected(service) => add(service_name(service, S::Reselected), 1),
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
            Event::Reason(reason) => add(reason.name().to_owned(), 1),
            Event::Refused(service) => add(service_name(service, S::Refused), 1),
            Event::Dropped(service) => add(service_name(service, S::Dropped), 1),
        }
    }
    counters
}

/// What was counted between two readings.
pub fn since(before: &Counters, after: &Counters) -> Counters {
    let moved = |(name, count): (&String, &u64)| {
        let moved = count - before.get(name).copied().unwrap_or_default();
        (moved != 0).then(|| (name.clone(), moved))
    };
    after.iter().filter_map(moved).collect()
}

impl Datapath {
    /// Reads every counter.
    ///
    /// # Errors
    /// When the kernel refuses the read.
    pub fn counters(&mut self) -> Result<Counters> {
        let (services, backends) = (self.services, self.backends);
        let mut counters = Counters::new();
        let map = self.ebpf.map_mut("SERVICE_STATS").context("map SERVICE_STATS")?;
        let map: PerCpuArray<&mut MapData, [u64; ServiceStat::WORDS]> = map.try_into()?;
        for service in 0..services {
            let rows = map.get(&service, 0)?;
            for stat in SERVICE_STATS {
                let count = rows.iter().map(|row| row[stat as usize]).sum();
                counters.insert(service_name(service, stat), count);
            }
        }
        for (v6, name) in [(false, "BACKEND_STATS4"), (true, "BACKEND_STATS6")] {
            let map = self.ebpf.map_mut(name).with_context(|| format!("map {name}"))?;
            let map: PerCpuArray<&mut MapData, [u64; BackendStat::WORDS]> = map.try_into()?;
            for backend in 0..backends {
                let rows = map.get(&backend, 0)?;
                for stat in BACKEND_STATS {
                    let count = rows.iter().map(|row| row[stat as usize]).sum();
                    counters.insert(backend_name(v6, backend, stat), count);
                }
            }
        }
        let map = self.ebpf.map_mut("REASONS").context("map REASONS")?;
        let map: PerCpuArray<&mut MapData, u64> = map.try_into()?;
        for reason in Reason::ALL {
            counters.insert(reason.name().to_owned(), map.get(&(reason as u32), 0)?.iter().sum());
        }
        counters.retain(|_, count| *count != 0);
        Ok(counters)
    }
}
