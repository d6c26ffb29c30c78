//! Metrics in the text format of Prometheus: kube-proxy's names where it has the same thing, `lb_` for our own (S-62).
//!
//! [`Metrics`] holds what the agent counts itself; [`Scrape`] adds what is read when somebody asks: the programs'
//! counters, the tables, the process. `catalogue` is the list of all of them.

mod catalogue;
mod histogram;
mod process;
mod scrape;
mod services;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use catalogue::{FAMILIES, Family, Kind};
pub use histogram::Histogram;
pub use scrape::Scrape;

use crate::dataplane::{Swept, XdpPlace};
use crate::index::{ChangeCounts, Round};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that comes and goes.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// What it is now.
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Answers of a health path, by status.
#[derive(Debug, Default)]
pub struct Answers {
    ok: Counter,
    unavailable: Counter,
}

impl Answers {
    /// One more: 200, or 503.
    pub fn count(&self, healthy: bool) {
        if healthy { &self.ok } else { &self.unavailable }.add(1);
    }

    fn by_code(&self) -> [(&'static str, u64); 2] {
        [("200", self.ok.get()), ("503", self.unavailable.get())]
    }
}

/// What the last sweep of the connection tables left.
#[derive(Clone, Debug, Default)]
struct Live {
    by_state: BTreeMap<&'static str, u64>,
    by_service: HashMap<u32, u64>,
    entries: [u64; 2],
}

/// What the agent counts itself.
#[derive(Debug)]
pub struct Metrics {
    started: Timestamp,
    /// Changes taken in.
    pub changes: Arc<ChangeCounts>,
    /// Answers of `/healthz` of the health server.
    pub healthz: Answers,
    /// Answers of `/livez` there.
    pub livez: Answers,
    /// Programs that somebody took from a device, and that were put back.
    pub device_repairs: Counter,
    /// Programs that somebody took from the cgroup, and that were put back.
    pub socket_repairs: Counter,
    /// XDP programs that somebody took from a device, and that were put back.
    pub xdp_repairs: Counter,
    xdp_devices: [Gauge; 2],
    /// Tables whose pin somebody removed, and that were pinned again.
    pub table_repairs: Counter,
    /// Pod devices that have the programs.
    pub pod_devices: Gauge,
    /// Network devices that have the programs.
    pub net_devices: Gauge,
    full_rounds: Histogram,
    partial_rounds: Histogram,
    programming: Histogram,
    event_to_kernel: Histogram,
    planning: Histogram,
    failures: Counter,
    last_sync: Gauge,
    sweeps: Histogram,
    expired: Counter,
    orphans: Counter,
    live: Mutex<Live>,
}

impl Metrics {
    /// Nothing happened yet; `changes` counts what the index takes in.
    pub fn new(changes: Arc<ChangeCounts>) -> Self {
        Self {
            started: Timestamp::now(),
            changes,
            healthz: Answers::default(),
            livez: Answers::default(),
            device_repairs: Counter::default(),
            socket_repairs: Counter::default(),
            xdp_repairs: Counter::default(),
            xdp_devices: Default::default(),
            table_repairs: Counter::default(),
            pod_devices: Gauge::default(),
            net_devices: Gauge::default(),
            full_rounds: Histogram::new(catalogue::SYNC_BOUNDS),
            partial_rounds: Histogram::new(catalogue::SYNC_BOUNDS),
            programming: Histogram::new(catalogue::PROGRAMMING_BOUNDS),
            event_to_kernel: Histogram::new(catalogue::SYNC_BOUNDS),
            planning: Histogram::new(catalogue::SYNC_BOUNDS),
            failures: Counter::default(),
            last_sync: Gauge::default(),
            sweeps: Histogram::new(catalogue::SYNC_BOUNDS),
            expired: Counter::default(),
            orphans: Counter::default(),
            live: Mutex::default(),
        }
    }

    /// Devices that run the XDP program in that place.
    pub fn xdp_devices(&self, place: XdpPlace) -> &Gauge {
        match place {
            XdpPlace::Native => &self.xdp_devices[0],
            XdpPlace::Generic => &self.xdp_devices[1],
        }
    }

    /// Counts a round of planning and applying; call it right after the round.
    pub fn round(&self, round: &Round) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let took = now.saturating_duration_since(round.started);
        if round.full { &self.full_rounds } else { &self.partial_rounds }.observe(took);
        self.planning.observe(round.planning);
        if round.failure.is_some() {
            self.failures.add(1);
        } else {
            self.last_sync.set(millis(wall));
        }
        for change in &round.applied {
            if let Some(received) = change.received {
                self.event_to_kernel.observe(now.saturating_duration_since(received));
            }
            // What happened before this agent started says nothing of it, as with kube-proxy.
            if let Some(triggered) = change.triggered.filter(|triggered| *triggered >= self.started) {
                self.programming
                    .observe(Duration::try_from(wall.duration_since(triggered)).unwrap_or_default());
            }
        }
    }

    /// Counts a sweep of the connection tables.
    pub fn swept(&self, took: Duration, swept: Swept) {
        self.sweeps.observe(took);
        self.expired.add(swept.expired);
        self.orphans.add(swept.orphans);
        let live = Live {
            by_state: swept.live.by_state,
            by_service: swept.live.by_service,
            entries: [0, 1].map(|family| swept.entries.values().map(|of_service| of_service[family]).sum()),
        };
        *self.live() = live;
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or_default()
}
