//! Bounded attempts with growing, jittered pauses.
//!
//! Only what may be repeated goes through [`Attempts`]: reads, listings and deletions, which repeat
//! harmlessly, and conditional writes between whose attempts `resolve` has read back.
//! Time is tokio's, so that simulation can pause it.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{Failure, timed_out};
use super::{StoreError, StoreSettings};
use crate::env::Entropy;

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    settings: &'a StoreSettings,
    entropy: &'a dyn Entropy,
    deadline: Instant,
    pause: Duration,
    limit: u32,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(settings: &'a StoreSettings, entropy: &'a dyn Entropy) -> Self {
        Self {
            settings,
            entropy,
            deadline: Instant::now() + settings.call_time_max,
            pause: settings.backoff_first,
            limit: settings.attempts_max,
            made: 0,
        }
    }

    /// Attempts for reading back within this call: no later than it, at least one, at most three.
    pub(crate) fn nested(&self) -> Attempts<'a> {
        Attempts {
            settings: self.settings,
            entropy: self.entropy,
            deadline: self.deadline,
            pause: self.settings.backoff_first,
            limit: self.settings.attempts_max.min(3),
            made: 0,
        }
    }

    /// Counts an attempt whose time is bounded elsewhere.
    pub(crate) fn count(&mut self) {
        self.made += 1;
    }

    /// Attempts made so far.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// Runs one attempt within the time allowed for it.
    pub(crate) async fn attempt<T>(
        &mut self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.count();
        self.aside(request).await
    }

    /// Runs a request that does not count as an attempt within the time allowed for one.
    pub(crate) async fn aside<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        bounded(self.settings.request_timeout, request).await
    }

    /// Waits before the next attempt, or says `false` when no attempt is left.
    pub(crate) async fn again(&mut self) -> bool {
        if self.made >= self.limit {
            return false;
        }
        // The upper half is jitter: many clients that failed together come back apart.
        let micros = u64::try_from(self.pause.as_micros()).unwrap_or(u64::MAX);
        let pause = Duration::from_micros(micros / 2 + self.entropy.below(micros / 2 + 1));
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(self.settings.backoff_max);
        true
    }
}

/// One request, given up after `limit`.
pub(crate) async fn bounded<T>(
    limit: Duration,
    request: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    match tokio::time::timeout(limit, request).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(limit)),
    }
}

/// Repeats a request that is harmless to repeat until it succeeds, is answered for good, or the attempts
/// run out.
pub(crate) async fn repeat<T, F, Fut>(
    mut attempts: Attempts<'_>,
    verb: &'static str,
    key: &str,
    mut request: F,
) -> Result<T, StoreError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = object_store::Result<T>>,
{
    loop {
        let error = match attempts.attempt(request()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match Failure::of(&error) {
            Failure::Unclear if attempts.again().await => {}
            failure => return Err(read_error(failure, verb, key, attempts.made(), error)),
        }
    }
}

/// What the last failure of a read, a listing or a deletion means.
pub(crate) fn read_error(
    failure: Failure,
    verb: &'static str,
    key: &str,
    attempts: u32,
    error: object_store::Error,
) -> StoreError {
    let key = key.to_owned();
    match failure {
        Failure::Missing => StoreError::NotFound { key },
        Failure::Refused => StoreError::Conflict { key },
        Failure::Denied => StoreError::Denied {
            verb,
            key,
            source: Box::new(error),
        },
        Failure::Unsupported => StoreError::Invalid {
            what: "the store does not support the request",
            detail: format!("{verb} {key}: {error}"),
        },
        Failure::Unclear => StoreError::Unavailable {
            verb,
            key,
            attempts,
            source: Box::new(error),
        },
    }
}
