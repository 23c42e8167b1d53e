//! How much a caller may ask: requests a minute by a sliding window, and requests at once.
//!
//! The window is counted in two halves: this minute, and the part of the last one that still lies in the last
//! sixty seconds, taken as evenly spread. A request is counted for every key it falls under, or, if one of them
//! refuses it, for none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tidelog_wal::{NamespaceId, Timestamp};

use super::caller::Caller;
use crate::problem::{Code, Problem};

const MINUTE: u64 = 60 * 1_000_000;
/// Windows kept before those that are over are forgotten.
const SWEEP_AT: usize = 100_000;

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// One principal.
    Caller(Caller),
    /// One token, for a rate of its own.
    Token([u8; 16]),
    /// One tenant.
    Namespace(Option<NamespaceId>),
    /// One principal from one address.
    Peer(IpAddr, Caller),
    /// Refused tokens from one address.
    Failures(IpAddr),
    /// Refusals of one address that were put on record.
    Noise(Option<IpAddr>),
    /// Connections of one address.
    Connections(IpAddr),
    /// Connections that one principal uses.
    Connected(Caller),
    /// Connections that the principals of one tenant use.
    ConnectedTo(Option<NamespaceId>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    minute: u64,
    now: u32,
    before: u32,
}

impl Window {
    fn at(self, minute: u64) -> Self {
        match minute.saturating_sub(self.minute) {
            0 => self,
            1 => Self {
                minute,
                now: 0,
                before: self.now,
            },
            _ => Self {
                minute,
                now: 0,
                before: 0,
            },
        }
    }

    /// Requests of the last sixty seconds, rounded up.
    fn used(self, micros_in: u64) -> u32 {
        let left = u64::from(self.before) * (MINUTE - micros_in);
        self.now
            .saturating_add(u32::try_from(left.div_ceil(MINUTE)).unwrap_or(u32::MAX))
    }

    /// Seconds until one more fits, at least 1.
    fn wait(self, limit: u32, micros_in: u64) -> u64 {
        let rest = MINUTE - micros_in;
        let micros = match limit.checked_sub(self.now.saturating_add(1)) {
            // Until enough of the last minute has slid out.
            Some(room) if self.before > room => {
                let gone = u64::from(self.before - room) * MINUTE;
                gone.div_ceil(u64::from(self.before))
                    .saturating_sub(micros_in)
            }
            Some(_) => 0,
            // Until this minute is the last one, and enough of it has slid out.
            None => {
                let over = u64::from(self.now.saturating_add(1).saturating_sub(limit));
                rest + (over * MINUTE).div_ceil(u64::from(self.now.max(1)))
            }
        };
        micros.div_ceil(1_000_000).max(1)
    }
}

/// How a caller stands after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    /// Seconds until the window is surely over.
    pub(crate) reset: u64,
    /// The same as Unix seconds.
    pub(crate) reset_at: u64,
}

/// The windows of every caller.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<Key, Window>>);

/// A request too many: seconds to wait, and how the caller stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) wait: u64,
    pub(crate) standing: Standing,
}

fn place(now: Timestamp) -> (u64, u64) {
    (now.micros() / MINUTE, now.micros() % MINUTE)
}

impl Rates {
    /// Counts a request under every key whose limit is not 0; answers the tightest standing.
    pub(crate) fn take(
        &self,
        keys: &[(Key, u32)],
        now: Timestamp,
    ) -> Result<Option<Standing>, Refused> {
        let (minute, inside) = place(now);
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= SWEEP_AT {
            windows.retain(|_, window| minute.saturating_sub(window.minute) < 2);
        }
        let standing = |window: Window, limit: u32, extra: u32| Standing {
            limit,
            remaining: limit.saturating_sub(window.used(inside).saturating_add(extra)),
            reset: (MINUTE - inside).div_ceil(1_000_000),
            reset_at: (minute + 1) * 60,
        };
        let limited = || keys.iter().filter(|(_, limit)| *limit != 0);
        let mut tightest: Option<Standing> = None;
        for (key, limit) in limited() {
            let window = windows.get(key).copied().unwrap_or_default().at(minute);
            if window.used(inside) >= *limit {
                return Err(Refused {
                    wait: window.wait(*limit, inside),
                    standing: standing(window, *limit, 0),
                });
            }
            let here = standing(window, *limit, 1);
            if tightest.is_none_or(|known| here.remaining < known.remaining) {
                tightest = Some(here);
            }
        }
        for (key, _) in limited() {
            let window = windows.entry(*key).or_default();
            *window = window.at(minute);
            window.now = window.now.saturating_add(1);
        }
        Ok(tightest)
    }

    /// Whether a key has used up its limit.
    pub(crate) fn is_used_up(&self, key: Key, limit: u32, now: Timestamp) -> Option<u64> {
        let (minute, inside) = place(now);
        let windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.get(&key).copied().unwrap_or_default().at(minute);
        (limit != 0 && window.used(inside) >= limit).then(|| window.wait(limit, inside))
    }
}

impl Refused {
    /// What the caller is told.
    pub(crate) fn problem(&self) -> Problem {
        let limit = self.standing.limit;
        let detail = format!(
            "more than {limit} requests in a minute; wait {} s",
            self.wait
        );
        Problem::new(Code::RateLimited, detail)
            .with("limit", limit)
            .with("retry_after", self.wait)
    }
}

impl Standing {
    /// Tells it in the headers of an answer, in both spellings.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        const NAMES: [(&str, &str, &str); 2] = [
            ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
            (
                "x-ratelimit-limit",
                "x-ratelimit-remaining",
                "x-ratelimit-reset",
            ),
        ];
        for ((limit, remaining, reset), value) in NAMES.into_iter().zip([self.reset, self.reset_at])
        {
            headers.insert(
                HeaderName::from_static(limit),
                HeaderValue::from(self.limit),
            );
            headers.insert(
                HeaderName::from_static(remaining),
                HeaderValue::from(self.remaining),
            );
            headers.insert(HeaderName::from_static(reset), HeaderValue::from(value));
        }
    }
}

/// Requests that run now, by key.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Mutex<HashMap<Key, usize>>);

/// A request that runs; it counts until this goes.
#[derive(Debug)]
pub(crate) struct Running {
    all: Arc<InFlight>,
    keys: Vec<Key>,
}

impl InFlight {
    /// Counts a request under every key whose limit is not 0, or under none.
    pub(crate) fn enter(self: &Arc<Self>, keys: &[(Key, usize)]) -> Result<Running, Problem> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = || keys.iter().filter(|(_, limit)| *limit != 0);
        for (key, limit) in limited() {
            if counts.get(key).copied().unwrap_or(0) >= *limit {
                let detail = format!("{limit} requests run already; wait for one to end");
                let problem = Problem::new(Code::RateLimited, detail).with("limit", *limit);
                return Err(problem.with("retry_after", 1));
            }
        }
        let keys: Vec<Key> = limited().map(|(key, _)| *key).collect();
        for key in &keys {
            *counts.entry(*key).or_default() += 1;
        }
        drop(counts);
        Ok(Running {
            all: Arc::clone(self),
            keys,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn the_window_slides_over_the_minute() {
        let rates = Rates::default();
        let keys = [(Key::Token([1; 16]), 6)];
        for taken in 0..6 {
            let standing = rates
                .take(&keys, at(6_000))
                .expect("within")
                .expect("limited");
            assert_eq!((standing.limit, standing.remaining), (6, 5 - taken));
        }
        let refused = rates.take(&keys, at(6_000)).expect_err("one too many");
        assert_eq!(refused.standing.remaining, 0);
        assert!(refused.wait >= 60, "{refused:?}");
        // Half of the next minute: half of the six have slid out.
        for _ in 0..3 {
            assert!(rates.take(&keys, at(6_090)).is_ok());
        }
        let refused = rates.take(&keys, at(6_090)).expect_err("used up");
        assert!(
            rates.take(&keys, at(6_090 + refused.wait)).is_ok(),
            "{refused:?}"
        );
        assert!(rates.take(&keys, at(6_400)).is_ok());
    }

    #[test]
    fn the_wait_that_is_told_is_enough_and_not_much_more() {
        for limit in 1..12 {
            let rates = Rates::default();
            let keys = [(Key::Failures(IpAddr::from([127, 0, 0, 1])), limit)];
            let mut now = 60_000;
            for _ in 0..200 {
                match rates.take(&keys, at(now)) {
                    Ok(_) => now += 2,
                    Err(refused) => {
                        assert!(refused.wait <= 120);
                        now += refused.wait;
                        assert!(rates.take(&keys, at(now)).is_ok(), "limit {limit} at {now}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_request_that_one_key_refuses_counts_for_none() {
        let rates = Rates::default();
        let (token, tenant) = (Key::Token([1; 16]), Key::Namespace(None));
        let keys = [(token, 100), (tenant, 1)];
        assert!(rates.take(&keys, at(0)).is_ok());
        for _ in 0..50 {
            assert!(rates.take(&keys, at(1)).is_err());
        }
        let standing = rates
            .take(&[(token, 100)], at(2))
            .expect("within")
            .expect("limited");
        assert_eq!(standing.remaining, 98);
        assert_eq!(rates.take(&[(tenant, 0)], at(2)), Ok(None));
    }

    #[test]
    fn requests_at_once_are_counted_until_they_end() {
        let flights = Arc::new(InFlight::default());
        let keys = [(Key::Token([1; 16]), 2)];
        let first = flights.enter(&keys).expect("one");
        let second = flights.enter(&keys).expect("two");
        assert_eq!(
            flights.enter(&keys).expect_err("three").code(),
            "rate-limited"
        );
        drop(first);
        assert!(flights.enter(&keys).is_ok());
        drop(second);
        assert!(flights.0.lock().expect("no panic").is_empty());
    }
}
