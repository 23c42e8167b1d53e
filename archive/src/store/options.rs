//! Settings and components of a [`Store`](super::Store). Settings are plain numbers, each with what
//! raising and lowering it costs; components are what simulation replaces.

use std::sync::Arc;
use std::time::Duration;

use crate::env::{Clock, Entropy, SystemClock, SystemEntropy};

/// An object above this length goes up in parts, through [`put_unique`](super::Store::put_unique).
pub const SINGLE_PUT_MAX: u64 = 64 << 20;

/// The longest object that [`replace`](super::Store::replace) accepts: mutable objects are small by
/// design, and the filesystem store compares their digests under a lock.
pub const REPLACE_MAX: u64 = 1 << 20;

/// How patient a store is. The defaults suit S3 over the internet.
#[derive(Debug, Clone, Copy)]
pub struct StoreSettings {
    /// Time for one attempt of one request. Lower gives up on slow uploads; higher holds a dead
    /// connection longer before the next attempt.
    pub request_timeout: Duration,
    /// Time to connect. Lower fails on far networks; higher delays noticing a dead endpoint.
    pub connect_timeout: Duration,
    /// Attempts of one call. Higher rides out longer outages inside one call; lower hands the decision to
    /// the caller sooner.
    pub attempts_max: u32,
    /// Time for one call with all its attempts; no new attempt begins after it.
    pub call_time_max: Duration,
    /// Pause before the second attempt; doubles from there, with jitter over its upper half.
    pub backoff_first: Duration,
    /// The longest pause between attempts.
    pub backoff_max: Duration,
    /// Length of one part of a large upload; at least 5 MiB on S3. Higher takes more memory
    /// (`part_bytes * (parts_in_flight + 1)` an upload); lower takes more requests and bounds the
    /// object at 10,000 parts.
    pub part_bytes: usize,
    /// Parts of one upload that travel at once.
    pub parts_in_flight: usize,
    /// Length of one ranged GET of a streamed download. Higher takes more memory; lower takes more
    /// requests.
    pub read_chunk_bytes: u64,
    /// Entries of one sorted listing; above it the call fails rather than take unbounded memory.
    pub list_entries_max: usize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            attempts_max: 6,
            call_time_max: Duration::from_mins(1),
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            part_bytes: 16 << 20,
            parts_in_flight: 2,
            read_chunk_bytes: 8 << 20,
            list_entries_max: 1_000_000,
        }
    }
}

/// Settings and components.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Plain numbers.
    pub settings: StoreSettings,
    /// Tells the time, for the difference between our clock and the store's.
    pub clock: Arc<dyn Clock>,
    /// Draws jitter and the names of probe objects.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            settings: StoreSettings::default(),
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
        }
    }
}
