//! Connections that stay, and new ones all the time.

use std::{fmt, time::Duration, time::Instant};

use futures::future::join_all;
use lb_tests::{
    netns::Namespace,
    workload::{Load, LoadReport, RunningLoad, http_get},
};

use crate::common::SECONDS;

/// Time between two requests on a connection that stays: of hundreds, and of few.
const PULSE: Duration = Duration::from_secs(2);
const FAST_PULSE: Duration = Duration::from_millis(700);
/// Time between two new connections of one loop: as many loops run as the rate takes.
const BETWEEN: Duration = Duration::from_millis(50);
/// Connections that are opened at once at the beginning.
const BATCH: usize = 25;

/// Who asks what.
#[derive(Clone)]
pub(crate) struct Way {
    from: Namespace,
    url: String,
}

impl Way {
    pub(crate) fn new(from: &impl AsRef<Namespace>, url: String) -> Self {
        Self { from: from.as_ref().clone(), url }
    }

    pub(crate) async fn answers(&self) -> bool {
        http_get(&self.from, &self.url).await.is_ok()
    }
}

/// Traffic under way.
pub(crate) struct Traffic {
    live: Vec<RunningLoad>,
    fresh: Vec<RunningLoad>,
    begin: Instant,
    pulse: Duration,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Counts {
    live: Vec<LoadReport>,
    fresh: Vec<LoadReport>,
    took: Duration,
}

impl Traffic {
    /// Opens `live` connections, each of which carries a request every two seconds (few of them more often), and `per_second` new ones a second, with
    /// one request each. All ways have the same part of it. Returns once every connection has had an answer.
    pub(crate) async fn start(ways: &[Way], live: usize, per_second: u32) -> Self {
        let pulse = if live > 100 { PULSE } else { FAST_PULSE };
        let mut connections = Vec::with_capacity(live);
        for (number, way) in (0..live).zip(ways.iter().cycle()) {
            connections.push(Load::keep_alive(&way.url).interval(pulse).timeout(SECONDS).start(&way.from));
            if number % BATCH == BATCH - 1 {
                tokio::time::sleep(pulse * BATCH as u32 / live.max(BATCH) as u32).await;
            }
        }
        for connection in &connections {
            connection.wait_for(1, SECONDS).await.unwrap();
        }
        let loops = per_second as usize * BETWEEN.as_millis() as usize / 1000;
        let begin = Instant::now();
        let mut fresh = Vec::new();
        for (_, way) in (0..loops).zip(ways.iter().cycle()) {
            fresh.push(Load::http(&way.url).interval(BETWEEN).timeout(SECONDS).start(&way.from));
            tokio::time::sleep(BETWEEN / loops as u32).await;
        }
        Self { live: connections, fresh, begin, pulse }
    }

    /// Lets it go on for a while, in which every connection has carried something.
    pub(crate) async fn pulse(&self) {
        tokio::time::sleep(self.pulse + self.pulse / 4).await;
    }

    /// The longest that a new connection has waited for its answer yet.
    pub(crate) fn slowest(&self) -> Duration {
        self.fresh.iter().flat_map(|load| load.report().latencies).max().unwrap_or_default()
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> Counts {
        let took = self.begin.elapsed();
        let fresh = join_all(self.fresh.into_iter().map(RunningLoad::stop)).await;
        let live = join_all(self.live.into_iter().map(RunningLoad::stop)).await;
        Counts { live, fresh, took }
    }
}

impl Counts {
    /// Asserts that nobody noticed anything, and prints the counts.
    pub(crate) fn nobody_noticed(&self, what: &str) {
        println!("{what}: {self}");
        let failed = self.live.iter().chain(&self.fresh).find(|report| !report.failures.is_empty());
        assert!(failed.is_none(), "{what}: {self}\n{}", failed.unwrap());
        assert_eq!((self.reopened(), self.moved()), (0, 0), "{what}: {self}");
        assert!(self.live.iter().all(|report| report.requests() > 1), "{what}: {self}");
    }

    /// New connections a second.
    pub(crate) fn rate(&self) -> f64 {
        requests(&self.fresh) as f64 / self.took.as_secs_f64()
    }

    /// Connections that had to be opened again.
    fn reopened(&self) -> u64 {
        self.live.iter().map(|report| report.connections - 1).sum()
    }

    /// Connections that were answered by more than one endpoint.
    fn moved(&self) -> usize {
        self.live.iter().filter(|report| report.by_backend.len() != 1).count()
    }
}

fn requests(reports: &[LoadReport]) -> u64 {
    reports.iter().map(LoadReport::requests).sum()
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = |reports: &[LoadReport]| reports.iter().map(|it| it.failures.len()).sum::<usize>();
        let slowest = |reports: &[LoadReport]| {
            reports.iter().flat_map(|report| &report.latencies).max().copied().unwrap_or_default()
        };
        write!(
            f,
            "{} live connections with {} requests ({} failed, {} opened again, {} moved, slowest answer {:.0?}), {} new \
             connections in {:.1?}, {:.0} a second ({} failed, slowest answer {:.0?})",
            self.live.len(),
            requests(&self.live),
            failures(&self.live),
            self.reopened(),
            self.moved(),
            slowest(&self.live),
            requests(&self.fresh),
            self.took,
            self.rate(),
            failures(&self.fresh),
            slowest(&self.fresh),
        )
    }
}
