//! Counts of the changes that came in, readable by others while the engine works.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

use super::event::{Change, Event, StoreEvent};

/// Changes of objects of one kind.
#[derive(Debug, Default)]
pub struct KindCount {
    total: AtomicU64,
    pending: AtomicU64,
}

impl KindCount {
    /// Changes so far.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Those that no round has applied yet.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    fn add<T>(&self, event: &StoreEvent<T>) {
        let changes = match event {
            StoreEvent::Apply(_) | StoreEvent::Delete(_) => 1,
            StoreEvent::Reset(objects) => objects.len() as u64,
        };
        self.total.fetch_add(changes, Ordering::Relaxed);
        self.pending.fetch_add(changes, Ordering::Relaxed);
    }
}

/// Changes of objects that came in.
#[derive(Debug, Default)]
pub struct ChangeCounts {
    /// Services.
    pub services: KindCount,
    /// EndpointSlices.
    pub slices: KindCount,
    last: AtomicU64,
}

impl ChangeCounts {
    /// When the last one came in, in milliseconds since 1970; 0 before the first.
    pub fn last_millis(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    pub(super) fn took_in(&self, event: &Event) {
        match &event.change {
            Change::Services(event) => self.services.add(event),
            Change::Slices(event) => self.slices.add(event),
            Change::Node(_) => {}
        }
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        self.last.store(now, Ordering::Relaxed);
    }

    /// A round applied everything. Called by who also takes changes in, so that none is forgotten.
    pub(super) fn applied_all(&self) {
        self.services.pending.store(0, Ordering::Relaxed);
        self.slices.pending.store(0, Ordering::Relaxed);
    }
}
