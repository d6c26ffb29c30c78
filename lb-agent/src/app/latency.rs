//! How long a change takes from its receipt to the kernel.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tracing::{debug, warn};

use crate::index::Round;

/// Latencies of the changes applied so far: counts by power of two of microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    buckets: [u64; 32],
    count: u64,
}

impl Histogram {
    fn record(&mut self, micros: u64) {
        let bucket = (64 - micros.leading_zeros() as usize).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    /// Upper bound, in microseconds, of the bucket in which the given share of all changes is reached.
    fn quantile(&self, share: f64) -> Option<u64> {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        self.buckets.iter().enumerate().find_map(|(bucket, count)| {
            seen += count;
            (seen >= wanted && seen > 0).then(|| 1 << bucket)
        })
    }
}

/// A line of the latency log.
#[derive(Debug, Serialize)]
struct Line<'a> {
    service: &'a str,
    trigger_time: Option<Timestamp>,
    received: Timestamp,
    applied: Timestamp,
    latency_us: u64,
}

/// Records every applied change.
pub(super) struct Latencies {
    histogram: Histogram,
    log: Option<File>,
}

impl Latencies {
    /// `log`: file that gets a line for every change.
    pub(super) fn new(log: Option<&Path>) -> io::Result<Self> {
        let open = |path| OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { histogram: Histogram::default(), log: log.map(open).transpose()? })
    }

    /// Records what a round applied; call it right after the round.
    pub(super) fn record(&mut self, round: &Round) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut lines = Vec::new();
        for change in &round.applied {
            let Some(received) = change.received else { continue };
            let latency = now.saturating_duration_since(received);
            let latency_us = latency.as_micros() as u64;
            self.histogram.record(latency_us);
            debug!(service = %change.service, latency_us, "programmed");
            if self.log.is_some() {
                let service = change.service.to_string();
                let received = before(wall, latency);
                let line = Line {
                    service: &service,
                    trigger_time: change.triggered,
                    received,
                    applied: wall,
                    latency_us,
                };
                // A line of plain fields always serialises.
                if serde_json::to_writer(&mut lines, &line).is_ok() {
                    lines.push(b'\n');
                }
            }
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(&lines)
        {
            warn!(%error, "the latency log is not written any more");
            self.log = None;
        }
    }

    /// Changes so far, with the bounds below which half and 99 of 100 of them were applied, in microseconds.
    pub(super) fn summary(&self) -> Option<(u64, u64, u64)> {
        Some((self.histogram.count, self.histogram.quantile(0.5)?, self.histogram.quantile(0.99)?))
    }
}

fn before(wall: Timestamp, latency: Duration) -> Timestamp {
    wall.checked_sub(latency).unwrap_or(wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds_of_what_was_recorded() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for micros in [100; 98] {
            histogram.record(micros);
        }
        histogram.record(5_000);
        histogram.record(u64::MAX);
        assert_eq!(histogram.quantile(0.5), Some(128));
        assert_eq!(histogram.quantile(0.99), Some(8_192));
    }
}
