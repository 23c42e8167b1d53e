//! What a node counts about itself, for whoever watches it: durations in fixed buckets, and a snapshot of its
//! queues and watermarks. Counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper ends of the buckets, in microseconds; a last bucket takes what is longer.
pub const BOUNDS_MICROS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    5_000_000, 30_000_000,
];

/// Durations, counted in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

/// The counts of a [`Histogram`] at one moment, not cumulated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Durations up to each bound, and those beyond the last.
    pub buckets: [u64; BOUNDS_MICROS.len() + 1],
    /// The sum of all durations.
    pub sum_micros: u64,
}

impl Counts {
    /// How many durations were counted.
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, micros: u64) {
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
            ..Counts::default()
        };
        for (to, from) in counts.buckets.iter_mut().zip(&self.counts) {
            *to = from.load(Ordering::Relaxed);
        }
        counts
    }
}

/// What parts of a running node count.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) capture: Histogram,
    pub(crate) settle: Histogram,
    /// Queries that wait for one of the node's workers.
    pub(crate) jobs_waiting: AtomicU64,
    /// Writers that wait for a gate.
    pub(crate) gates_waiting: AtomicU64,
    /// Times that files were at no commit that history leads to.
    pub(crate) discontinuities: AtomicU64,
    /// Forks made of what a life had not stored whose term another closed.
    pub(crate) diverged_forks: AtomicU64,
}

/// A node at one moment.
#[derive(Debug, Clone, Default)]
pub struct NodeStatus {
    /// Bytes under the journal folder.
    pub journal_bytes: u64,
    /// Bytes of it that are not stored yet.
    pub journal_waiting_bytes: u64,
    /// Commits of this life that are not stored yet.
    pub lag_commits: u64,
    /// Age of the oldest commit that is not stored yet, in microseconds.
    pub lag_micros: u64,
    /// Since the last journal object was stored, in microseconds; since the start if none was.
    pub since_flush_micros: u64,
    /// Databases with descriptors.
    pub open_databases: u64,
    /// Queries that wait for a worker.
    pub jobs_waiting: u64,
    /// Writers that wait for a gate.
    pub gates_waiting: u64,
    /// Times that files were at no commit that history leads to.
    pub discontinuities: u64,
    /// Forks made of what a life had not stored whose term another closed.
    pub diverged_forks: u64,
    /// Ordered time of the oldest state that can be restored, of the databases that this life has read.
    pub oldest_restorable_micros: Option<u64>,
    /// Time to capture a pass of commits.
    pub capture: Counts,
    /// Time to settle a database.
    pub settle: Counts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 31_000_000] {
            histogram.record(micros);
        }
        let counts = histogram.counts();
        assert_eq!(counts.buckets[0], 2);
        assert_eq!(counts.buckets[1], 1);
        assert_eq!(counts.buckets[BOUNDS_MICROS.len()], 1);
        assert_eq!((counts.total(), counts.sum_micros), (4, 31_000_201));
    }
}
