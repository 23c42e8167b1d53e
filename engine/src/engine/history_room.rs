//! What the history of a database may take in the store: near its limit writers wait, at it they are refused.
//!
//! Counted is what its manifest lists and what of it is stored and not listed yet, with the segment parts of large
//! commits. What waits in the journal folder, and what is marked for deletion, is not. A limit stops writes of the
//! tenant's alone: a rewind, a shorter window and the deletions of retention go on, which are the way back.
//!
//! A writer waits before it takes the write gate, and is refused behind it: there it is known whether the call is a
//! repeated one whose answer is kept.

use std::sync::Arc;
use std::time::Duration;

use super::Database;
use crate::error::{Code, Error};

/// From so many tenths of the limit on a writer waits.
const SLOWED_FROM: u64 = 9;
/// What it waits just below the limit.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a writer waits whose database's history takes `used` of `limit` bytes; `None` if there is no room.
fn pause(used: u64, limit: u64) -> Option<Duration> {
    if used >= limit {
        return None;
    }
    let slowed = limit / 10 * SLOWED_FROM;
    let (over, span) = (used.saturating_sub(slowed), limit - slowed);
    let micros = u128::from(over) * PAUSE_MAX.as_micros() / u128::from(span);
    Some(Duration::from_micros(
        u64::try_from(micros).unwrap_or(u64::MAX),
    ))
}

impl Database {
    /// Bytes that its history takes in the store. While its manifest was not read in this life, what is not listed
    /// yet alone.
    pub fn history_bytes(&self) -> u64 {
        let core = &self.engine.inner.core;
        let (listed, settled) = core.remote.listed(self.row.id).unwrap_or_default();
        listed.saturating_add(core.tails.bytes_after(self.row.id, settled))
    }

    /// Waits as a writer does whose database's history nears its limit.
    pub(crate) async fn history_pause(&self) {
        let Some(limit) = self.row.history_limit else {
            return;
        };
        self.measure_history();
        let pause = pause(self.history_bytes(), limit).unwrap_or_default();
        if pause > Duration::ZERO {
            tokio::time::sleep(pause).await;
        }
    }

    /// Refuses a write where the history is at its limit.
    pub(crate) fn admit_history(&self) -> Result<(), Error> {
        let Some(limit) = self.row.history_limit else {
            return Ok(());
        };
        let used = self.history_bytes();
        if pause(used, limit).is_some() {
            return Ok(());
        }
        let what = "the history of the database is at its limit; shorten its retention, or have \
                    history_limit_bytes raised";
        let error = Error::new(Code::QuotaExceeded, what).with("resource", "history");
        Err(error.with("limit", limit).with("used", used))
    }

    /// Has the manifest read, if it is not in memory. Nobody waits for the store to write at `memory` or `local`: a
    /// later write will know.
    fn measure_history(&self) {
        let core = &self.engine.inner.core;
        let (namespace, id) = (self.row.namespace, self.row.id);
        if core.remote.listed(id).is_some() || !core.remote.begin_reading(id) {
            return;
        }
        let core = Arc::clone(core);
        tokio::spawn(async move {
            if let Err(error) = core.remote.owned_manifest(namespace, id).await {
                tracing::debug!(%error, database = %id, "its history was not measured");
            }
            core.remote.end_reading(id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_wait_near_the_limit_and_are_refused_at_it() {
        assert_eq!(pause(0, 1000), Some(Duration::ZERO));
        assert_eq!(pause(900, 1000), Some(Duration::ZERO));
        assert_eq!(pause(950, 1000), Some(Duration::from_millis(500)));
        assert_eq!(pause(999, 1000), Some(Duration::from_millis(990)));
        assert_eq!(pause(1000, 1000), None);
        assert_eq!(pause(u64::MAX, 1000), None);
        assert_eq!(pause(0, 0), None);
        assert_eq!(
            pause(u64::MAX - 1, u64::MAX).map(|it| it < PAUSE_MAX),
            Some(true)
        );
    }
}
