//! Counts by size: how long calls took, how many events a batch had.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One distribution. Recording is two additions and a search among a few edges; nothing is kept back.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper edges, ascending; above the last one there is one more bucket.
    edges: &'static [f64],
    buckets: Box<[AtomicU64]>,
    /// In units of `scale`, so that it can be added to.
    sum: AtomicU64,
    scale: f64,
}

/// A histogram at one moment.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    pub(super) edges: &'static [f64],
    /// How many were at or under each edge and over the one before; the last is over all edges.
    pub(super) buckets: Vec<u64>,
    pub(super) sum: f64,
}

impl Histogram {
    /// Of durations, summed to the nanosecond.
    pub(super) fn of_seconds(edges: &'static [f64]) -> Self {
        Self::new(edges, 1e-9)
    }

    /// Of whole numbers.
    pub(super) fn of_numbers(edges: &'static [f64]) -> Self {
        Self::new(edges, 1.0)
    }

    fn new(edges: &'static [f64], scale: f64) -> Self {
        let buckets = (0..=edges.len()).map(|_| AtomicU64::new(0)).collect();
        Self { edges, buckets, sum: AtomicU64::new(0), scale }
    }

    pub(super) fn took(&self, time: Duration) {
        self.add(time.as_secs_f64(), u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn had(&self, number: usize) {
        self.add(number as f64, number as u64);
    }

    fn add(&self, value: f64, units: u64) {
        let bucket = self.edges.partition_point(|edge| *edge < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(units, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Distribution {
        Distribution {
            edges: self.edges,
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64 * self.scale,
        }
    }
}

impl Distribution {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The upper edge of the bucket that holds this share of what was recorded: an upper bound, not an estimate.
    /// Over all edges it is the last edge; of nothing it is 0.
    pub(super) fn at_most(&self, share: f64) -> f64 {
        let wanted = self.count() as f64 * share;
        let mut seen = 0;
        for (bucket, edge) in self.buckets.iter().zip(self.edges) {
            seen += bucket;
            if seen > 0 && seen as f64 >= wanted {
                return *edge;
            }
        }
        if seen == self.count() && seen == 0 { 0.0 } else { self.edges.last().copied().unwrap_or(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_whose_edge_is_not_below_it() {
        let batches = Histogram::of_numbers(&[1.0, 4.0, 16.0]);
        for number in [1, 2, 4, 5, 16, 17] {
            batches.had(number);
        }
        let seen = batches.read();
        assert_eq!(seen.buckets, [1, 2, 2, 1]);
        assert_eq!((seen.count(), seen.sum), (6, 45.0));
        assert_eq!(seen.at_most(0.5), 4.0);
        assert_eq!(seen.at_most(1.0), 16.0, "what is over every edge is at the last one");
    }

    #[test]
    fn nothing_recorded_has_no_time() {
        let times = Histogram::of_seconds(&[0.001, 1.0]);
        assert_eq!(times.read().at_most(0.99), 0.0);
        times.took(Duration::from_millis(1));
        assert_eq!(times.read().at_most(0.99), 0.001);
        assert!((times.read().sum - 0.001).abs() < 1e-12);
    }
}
