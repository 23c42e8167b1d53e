//! What an error means for its caller: one small, closed set for the whole product.
//!
//! Every error type of this crate and of those above it answers `kind()`. Retries, HTTP statuses and
//! alerts derive from the kind and from nothing else, so a kind exists only where a caller would act
//! differently.

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// What was asked for does not exist. Asking again changes nothing.
    NotFound,
    /// Somebody else was first: read again, decide again.
    Conflict,
    /// This process life has been closed by another one: it must stop writing for good.
    Fenced,
    /// A store, disk or network did not answer: the same request may succeed later.
    Unavailable,
    /// Stored bytes are not what was written. Never retried into success.
    Corrupt,
    /// Stored bytes are sealed, and the key that opens them is not at hand.
    KeyUnavailable,
    /// The request itself is wrong: no retry helps.
    Invalid,
    /// A bound was reached: queue, disk, memory or number space.
    Exhausted,
    /// A write may or may not have happened, and it could not be found out which.
    OutcomeUnknown,
    /// A broken invariant of our own.
    Internal,
}
