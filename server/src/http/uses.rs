//! Which tokens were used lately, and from where: the first use in a while is an event of the audit log, the
//! thousands after it are not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tidelog_wal::Timestamp;

/// A use is news again after this long.
const NEWS_AGAIN_US: u64 = 5 * 60 * 1_000_000;
/// Uses kept before those that would be news again are forgotten.
const SWEEP_AT: usize = 10_000;

/// A token, and the address it came from.
type Use = ([u8; 16], Option<IpAddr>);

/// When each was last on record.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<HashMap<Use, u64>>);

impl Uses {
    /// Whether this use is news; it counts as told.
    pub(crate) fn is_news(&self, token: [u8; 16], from: Option<IpAddr>, now: Timestamp) -> bool {
        let now = now.micros();
        let is_old = |told: u64| now.saturating_sub(told) >= NEWS_AGAIN_US;
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&(token, from)).is_some_and(|at| !is_old(*at)) {
            return false;
        }
        if told.len() >= SWEEP_AT {
            told.retain(|_, at| !is_old(*at));
        }
        told.insert((token, from), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_use_in_five_minutes_is_news() {
        let uses = Uses::default();
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let (home, away) = (None, Some(IpAddr::from([10, 0, 0, 1])));
        assert!(uses.is_news([1; 16], home, at(1_000)));
        assert!(!uses.is_news([1; 16], home, at(1_299)));
        assert!(uses.is_news([1; 16], away, at(1_001)));
        assert!(uses.is_news([2; 16], home, at(1_001)));
        assert!(uses.is_news([1; 16], home, at(1_300)));
        assert!(!uses.is_news([1; 16], home, at(1_301)));
    }
}
