//! Time that is stepped by hand and chance that comes from a seed.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidelog_archive::env::{Clock, Entropy, SystemClock};
use tidelog_wal::Timestamp;

/// 2026-01-01T00:00:00Z, where simulated clocks start.
const START_MICROS: u64 = 1_767_225_600_000_000;

/// The system's clock, moved by hand on top of what passes by itself: for whole nodes, which live in real time.
#[derive(Debug)]
pub struct ShiftedClock {
    real: SystemClock,
    wall: AtomicI64,
    monotonic: AtomicI64,
}

impl ShiftedClock {
    /// The system's clock.
    pub fn new() -> Self {
        Self {
            real: SystemClock::new(),
            wall: AtomicI64::new(0),
            monotonic: AtomicI64::new(0),
        }
    }

    /// Lets `seconds` pass.
    pub fn pass(&self, seconds: i64) {
        self.step(seconds);
        self.monotonic.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Sets the wall clock by `seconds`; no time passes.
    pub fn step(&self, seconds: i64) {
        self.wall.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Default for ShiftedClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ShiftedClock {
    fn wall(&self) -> Timestamp {
        let shift = self.wall.load(Ordering::SeqCst) * 1_000_000;
        Timestamp::from_micros(self.real.wall().micros().saturating_add_signed(shift))
    }

    fn monotonic_micros(&self) -> u64 {
        let shift = self.monotonic.load(Ordering::SeqCst) * 1_000_000;
        self.real.monotonic_micros().saturating_add_signed(shift)
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct SimClock {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl SimClock {
    /// A clock at the start of 2026.
    pub const fn new() -> Self {
        Self {
            wall: AtomicU64::new(START_MICROS),
            monotonic: AtomicU64::new(0),
        }
    }

    /// Lets `micros` microseconds pass.
    pub fn advance(&self, micros: u64) {
        self.monotonic.fetch_add(micros, Ordering::SeqCst);
        self.wall.fetch_add(micros, Ordering::SeqCst);
    }

    /// Steps the wall clock by `micros`, in either direction, as an operator or NTP does; no time passes.
    pub fn step_wall(&self, micros: i64) {
        let step = |wall: u64| Some(wall.saturating_add_signed(micros));
        let _ = self
            .wall
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
    }

    /// Sets the wall clock; no time passes.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall.store(wall.micros(), Ordering::SeqCst);
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SimClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.wall.load(Ordering::SeqCst))
    }

    fn monotonic_micros(&self) -> u64 {
        self.monotonic.load(Ordering::SeqCst)
    }
}

/// Chance from a seed: the same calls in the same order draw the same bytes.
#[derive(Debug)]
pub struct SimEntropy(Mutex<StdRng>);

impl SimEntropy {
    /// The chance of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, buf: &mut [u8]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill_bytes(buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_draws_the_same_bytes_and_another_seed_others() {
        let draw = |seed| {
            let entropy = SimEntropy::new(seed);
            (entropy.bytes16(), entropy.bytes16())
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(1).0, draw(1).1);
    }

    #[test]
    fn the_wall_steps_both_ways_and_monotonic_time_does_not() {
        let clock = SimClock::new();
        let start = clock.wall();
        clock.advance(5);
        clock.step_wall(-100);
        assert_eq!(start.micros_since(clock.wall()), 95);
        assert_eq!(clock.monotonic_micros(), 5);
        clock.set_wall(Timestamp::ZERO);
        clock.step_wall(-1);
        assert_eq!(clock.wall(), Timestamp::ZERO);
    }
}
