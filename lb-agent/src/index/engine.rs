//! Rounds of planning: when one is due, what it hands to `apply`, and what happens when that fails.
//!
//! The first change after idle is due at once; while a burst lasts there is at most one round an interval, so that
//! a storm costs one plan a Service and interval, not one an event (S-81). All times are passed in: nothing here
//! reads a clock except [`Engine::drive`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::counts::ChangeCounts;
use super::event::Event;
use super::store::{Changes, Index};
use crate::model::ObjectName;
use crate::plan::PlanChange;

/// How the engine paces itself.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// The least time from the end of one round to the start of the next.
    pub min_sync_interval: Duration,
    /// The delay before the first retry of a failed apply; it doubles with every failure in a row.
    pub retry_min: Duration,
    /// The longest delay between retries.
    pub retry_max: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            min_sync_interval: Duration::from_millis(5),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(10),
        }
    }
}

/// Services that are planned ahead of the one that is applied: more than one, because looking at the clock costs as much as
/// planning a small Service; and few, because plans are large.
const AHEAD: usize = 32;

/// Where plans go.
pub trait PlanSink {
    /// Takes all changes, sorted by name, each at most once, and makes them true. They are planned while they are taken, so
    /// that whoever needs no plan for long keeps none. With `full` they are the whole wanted state and anything else applied
    /// has to go. May be called again with a Service already applied; that must do no harm.
    fn apply(
        &mut self,
        full: bool,
        changes: &mut dyn Iterator<Item = PlanChange>,
    ) -> Result<(), ApplyFailure>;
}

/// An apply that did not work, or not for every Service. What failed is planned again and retried.
#[derive(Debug, thiserror::Error)]
#[error("applying {failed}: {reason}")]
pub struct ApplyFailure {
    /// Which Services are not applied.
    pub failed: Failed,
    /// Why, in words for the log.
    pub reason: String,
}

/// The Services an [`ApplyFailure`] speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The whole batch.
    All,
    /// These; the others of the batch are applied.
    Services(Vec<ObjectName>),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => write!(f, "a batch"),
            Self::Services(names) => {
                write!(f, "{} Services", names.len())?;
                names.first().map_or(Ok(()), |first| write!(f, ", first {first}"))
            }
        }
    }
}

impl ApplyFailure {
    /// A failure of the whole batch.
    pub fn all(reason: impl std::fmt::Display) -> Self {
        Self { failed: Failed::All, reason: reason.to_string() }
    }
}

/// What one round did.
#[derive(Debug)]
pub struct Round {
    /// True when it handed over the whole wanted state.
    pub full: bool,
    /// The changes that are applied now.
    pub applied: Vec<PlannedChange>,
    /// When planning began.
    pub started: Instant,
    /// How long planning took.
    pub planning: Duration,
    /// Why changes are not applied yet; they are retried.
    pub failure: Option<ApplyFailure>,
}

/// One applied change, with what its latency is measured from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    /// The Service.
    pub service: ObjectName,
    /// When the oldest event behind it was received.
    pub received: Option<Instant>,
    /// When the oldest change behind it happened in the cluster, where slices tell (S-62).
    pub triggered: Option<Timestamp>,
}

/// Index, planner and pacing in one.
#[derive(Debug)]
pub struct Engine {
    index: Index,
    config: EngineConfig,
    last_round: Option<Instant>,
    retry: Option<Retry>,
    counts: Arc<ChangeCounts>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    not_before: Instant,
    delay: Duration,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(config: EngineConfig) -> Self {
        Self { index: Index::new(), config, last_round: None, retry: None, counts: Arc::default() }
    }

    /// Counts of what was taken in.
    pub fn counts(&self) -> Arc<ChangeCounts> {
        self.counts.clone()
    }

    /// What is known.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes in what a source says. Planning waits for [`run_due`](Self::run_due).
    pub fn handle(&mut self, event: Event) {
        self.counts.took_in(&event);
        self.index.handle(event);
    }

    /// When the next round is due: `now` or earlier means at once, `None` means that there is nothing to do.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.index.has_changes() {
            return None;
        }
        let paced = self.last_round.map_or(now, |last| last + self.config.min_sync_interval);
        Some(self.retry.map_or(paced, |retry| paced.max(retry.not_before)))
    }

    /// Runs a round if one is due at `now`. `clock` tells the time after planning and after applying.
    pub fn run_due(
        &mut self,
        now: Instant,
        clock: impl Fn() -> Instant,
        sink: &mut (impl PlanSink + ?Sized),
    ) -> Option<Round> {
        if self.next_due(now)? > now {
            return None;
        }
        let changes = self.index.take_changes()?;
        let plan = |(name, stamp): (&ObjectName, &super::Stamp)| PlanChange {
            service: name.clone(),
            plan: self.index.plan(name),
            received: stamp.received,
        };
        let mut planning = Duration::ZERO;
        let mut services = changes.services.iter().map(plan);
        let mut ahead = Vec::new().into_iter();
        let mut planned = std::iter::from_fn(|| {
            ahead.next().or_else(|| {
                let begin = clock();
                ahead = services.by_ref().take(AHEAD).collect::<Vec<_>>().into_iter();
                planning += clock().saturating_duration_since(begin);
                ahead.next()
            })
        });
        let failure = sink.apply(changes.full, &mut planned).err();
        let after = clock();
        self.last_round = Some(after);
        let full = changes.full;
        let applied = self.settle(changes, failure.as_ref(), after);
        Some(Round { full, applied, started: now, planning, failure })
    }

    /// Puts back what failed and says what did not.
    fn settle(
        &mut self,
        changes: Changes,
        failure: Option<&ApplyFailure>,
        now: Instant,
    ) -> Vec<PlannedChange> {
        let Changes { full, mut services } = changes;
        let mut back = Changes::default();
        match failure.map(|failure| &failure.failed) {
            None => {
                self.retry = None;
                self.counts.applied_all();
            }
            Some(Failed::All) => back = Changes { full, services: std::mem::take(&mut services) },
            Some(Failed::Services(names)) => {
                back.services = names.iter().filter_map(|name| services.remove_entry(name)).collect();
            }
        }
        if failure.is_some() {
            let delay =
                self.retry.map_or(self.config.retry_min, |r| (r.delay * 2).min(self.config.retry_max));
            self.retry = Some(Retry { not_before: now + delay, delay });
            self.index.restore(back);
        }
        let applied = |(service, stamp): (ObjectName, super::Stamp)| PlannedChange {
            service,
            received: stamp.received,
            triggered: stamp.triggered,
        };
        services.into_iter().map(applied).collect()
    }

    /// Takes in events and runs rounds until the source hangs up; then what is still due is applied, and the engine
    /// comes back. `observe` hears of every round.
    ///
    /// The sink is called on the task that drives, so give it a task of its own.
    pub async fn drive(
        mut self,
        mut events: mpsc::Receiver<Event>,
        sink: &mut (impl PlanSink + ?Sized),
        mut observe: impl FnMut(&Round),
    ) -> Self {
        let clock = || tokio::time::Instant::now().into_std();
        let mut open = true;
        loop {
            let due = self.next_due(clock());
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => {
                        self.handle(event);
                        // What is queued already belongs to the same round.
                        while let Ok(event) = events.try_recv() {
                            self.handle(event);
                        }
                    }
                    None => open = false,
                },
                () = sleep_until(due) => {}
            }
            // The last round waits for nothing.
            let now = if open { clock() } else { self.next_due(clock()).unwrap_or_else(clock) };
            if let Some(round) = self.run_due(now, clock, sink) {
                observe(&round);
            }
            if !open {
                return self;
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
