//! Time and chance as parameters: nothing else in the product reads a clock or draws a random number.
//!
//! A component takes `Arc<dyn Clock>` and `Arc<dyn Entropy>`; production passes [`SystemClock`] and
//! [`SystemEntropy`], simulation passes its own, and one seed then replays byte for byte.

use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tidelog_wal::Timestamp;

/// Reads time. Sleeping is tokio's business, which simulation pauses.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The wall clock. May step in either direction.
    fn wall(&self) -> Timestamp;

    /// Microseconds since some fixed point in this process's life. Never runs backwards.
    fn monotonic_micros(&self) -> u64;
}

/// Draws random bytes fit for nonces, ids and keys.
pub trait Entropy: fmt::Debug + Send + Sync {
    /// Fills `buf` with random bytes.
    fn fill(&self, buf: &mut [u8]);

    /// A random 128-bit value: a nonce, a write id, an id.
    fn bytes16(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        bytes
    }

    /// A random number below `bound`, 0 if `bound` is 0. Slightly biased: for jitter, not for secrets.
    fn below(&self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes).checked_rem(bound).unwrap_or(0)
    }
}

/// The clocks of the operating system.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic reading starts at 0 now.
    pub fn new() -> Self {
        // The one place that reads the clocks: everything else takes a `Clock`.
        #[allow(clippy::disallowed_methods)]
        let origin = Instant::now();
        Self { origin }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        // The one place that reads the clocks: everything else takes a `Clock`.
        #[allow(clippy::disallowed_methods)]
        let now = SystemTime::now();
        // A clock before 1970 reads as 1970; one after the year 586,000 as the end of time.
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn monotonic_micros(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// The random source of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buf: &mut [u8]) {
        // The one place that draws from the system: everything else takes an `Entropy`.
        #[allow(clippy::disallowed_methods)]
        getrandom::fill(buf).expect("the system's random source works, or nothing here is safe");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_moves_forward_and_chance_differs() {
        let clock = SystemClock::new();
        let first = clock.monotonic_micros();
        assert!(clock.monotonic_micros() >= first);
        assert!(clock.wall() > Timestamp::from_micros(1_600_000_000_000_000));
        assert_ne!(SystemEntropy.bytes16(), SystemEntropy.bytes16());
    }

    #[test]
    fn below_stays_below_and_tolerates_zero() {
        assert_eq!(SystemEntropy.below(0), 0);
        assert!((0..1_000).all(|_| SystemEntropy.below(7) < 7));
    }
}
