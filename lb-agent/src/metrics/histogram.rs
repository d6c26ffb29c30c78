//! Histograms of durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::handshake::Histogram as Handshakes;

/// Counts of durations by upper bound.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds in seconds, ascending.
    bounds: &'static [f64],
    /// One more than bounds: what is longer than the last.
    counts: Box<[AtomicU64]>,
    nanos: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    /// Upper bounds in seconds, with the durations that were no longer.
    pub(super) buckets: Vec<(f64, u64)>,
    /// All of them.
    pub(super) count: u64,
    /// Their sum in seconds.
    pub(super) sum: f64,
}

impl Histogram {
    /// An empty one with these upper bounds in seconds, which ascend.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, nanos: AtomicU64::new(0) }
    }

    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was counted, added up from below.
    pub(super) fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let mut running = |counter: &AtomicU64| {
            count += counter.load(Ordering::Relaxed);
            count
        };
        let buckets = self.bounds.iter().copied().zip(self.counts.iter().map(&mut running)).collect();
        let count = self.counts.last().map_or(0, running);
        Snapshot { buckets, count, sum: self.nanos.load(Ordering::Relaxed) as f64 / 1e9 }
    }
}

impl Snapshot {
    /// Handshakes, as the programs count them.
    pub(super) fn of_handshakes(row: &[u64; Handshakes::WORDS]) -> Self {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(Handshakes::BUCKETS);
        for (bucket, handshakes) in row[..Handshakes::BUCKETS].iter().enumerate() {
            count += handshakes;
            if let Some(micros) = Handshakes::bound(bucket) {
                buckets.push((micros as f64 / 1e6, count));
            }
        }
        Self { buckets, count, sum: row[Handshakes::SUM] as f64 / 1e6 }
    }

    /// Both together; they have the same bounds.
    pub(super) fn and(mut self, other: &Self) -> Self {
        for ((_, count), (_, more)) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.count += other.count;
        self.sum += other.sum;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_come_with_their_bounds_in_seconds() {
        let mut row = [0; Handshakes::WORDS];
        (row[0], row[3], row[Handshakes::BUCKETS - 1], row[Handshakes::SUM]) = (2, 1, 1, 20_000_120);
        let snapshot = Snapshot::of_handshakes(&row);
        assert_eq!(snapshot.buckets.len(), Handshakes::BUCKETS - 1);
        assert_eq!(snapshot.buckets[..4], [(0.000016, 2), (0.000032, 2), (0.000064, 2), (0.000128, 3)]);
        assert_eq!((snapshot.count, snapshot.sum), (4, 20.00012));
    }

    #[test]
    fn a_bucket_has_everything_up_to_its_bound() {
        let histogram = Histogram::new(&[0.001, 0.01, 1.0]);
        for micros in [0, 1_000, 1_001, 999_999, 1_000_000, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets, [(0.001, 2), (0.01, 3), (1.0, 5)]);
        assert_eq!(snapshot.count, 6);
        assert!((snapshot.sum - 62.002).abs() < 1e-9);
        let twice = snapshot.clone().and(&snapshot);
        assert_eq!((twice.buckets[0], twice.count), ((0.001, 4), 12));
    }
}
