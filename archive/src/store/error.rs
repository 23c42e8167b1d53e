//! What can go wrong between us and a store, and what it proves about the write that was asked for.

use crate::ErrorKind;

/// An error from below, kept as the source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The look at an object that is not there, which is forbidden to whoever may not list.
pub(super) const ABSENT: &str = "look for the absent";

/// Giving up an upload in parts, which S3 has a right of its own for.
pub(super) const ABORT: &str = "abort the upload of";

/// Why a store call did not do what was asked.
///
/// For a conditional write the variant is a statement about its effect: [`StoreError::Conflict`],
/// [`StoreError::NotApplied`], [`StoreError::Denied`] and [`StoreError::Invalid`] say that it has not
/// happened and never will; [`StoreError::OutcomeUnknown`] says that nobody can tell yet.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No object has this key.
    #[error("no object at {key}")]
    NotFound {
        /// The key, relative to the store's prefix.
        key: String,
    },
    /// Another write stands at this key.
    #[error("another write stands at {key}")]
    Conflict {
        /// The key, relative to the store's prefix.
        key: String,
    },
    /// A read, a listing or a deletion failed after all retries.
    #[error("{verb} {key} failed after {attempts} attempts")]
    Unavailable {
        /// What was attempted.
        verb: &'static str,
        /// The key or prefix, relative to the store's prefix.
        key: String,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        source: BoxError,
    },
    /// The store refused a write although its condition held, each time it was tried.
    #[error(
        "the store refused to write {key} in {attempts} attempts although nothing stands in the way"
    )]
    NotApplied {
        /// The key, relative to the store's prefix.
        key: String,
        /// How often it was tried.
        attempts: u32,
        /// The last refusal.
        source: BoxError,
    },
    /// The credentials do not permit the request.
    #[error("{verb} {key} is not permitted")]
    Denied {
        /// What was attempted.
        verb: &'static str,
        /// The key, relative to the store's prefix.
        key: String,
        /// The store's answer.
        source: BoxError,
    },
    /// A write may have happened, or may still happen, and reading back did not settle it.
    #[error("whether {key} was written cannot be told: {reason}")]
    OutcomeUnknown {
        /// The key, relative to the store's prefix.
        key: String,
        /// What stood in the way of finding out.
        reason: &'static str,
        /// The failure that made it unclear.
        source: BoxError,
    },
    /// An object is shorter than what was asked of it, or its answer was cut.
    #[error("{key} has {have} bytes where {want} were expected")]
    Short {
        /// The key, relative to the store's prefix.
        key: String,
        /// Bytes expected.
        want: u64,
        /// Bytes found.
        have: u64,
    },
    /// The request itself is wrong: a malformed URL or key, or a body above its bound.
    #[error("{what}: {detail}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
        /// The offending text.
        detail: String,
    },
    /// A bound of this client was reached.
    #[error("{what} exceeds {limit} at {key}")]
    Exhausted {
        /// What is bounded.
        what: &'static str,
        /// The bound.
        limit: u64,
        /// The key or prefix, relative to the store's prefix.
        key: String,
    },
    /// The store lacks something without which history could be lost.
    #[error("the store at {url} cannot hold a log: {missing}")]
    Unfit {
        /// The store.
        url: String,
        /// A sentence that says what it does not do.
        missing: &'static str,
    },
    /// The bytes to be uploaded could not be produced.
    #[error("the source of {key} failed")]
    Source {
        /// The key, relative to the store's prefix.
        key: String,
        /// Why.
        source: BoxError,
    },
}

impl StoreError {
    /// The right that the credentials lack, by its name on S3.
    pub fn right(&self) -> Option<&'static str> {
        let Self::Denied { verb, .. } = self else {
            return None;
        };
        match *verb {
            "write" | "begin upload" | "upload" => Some("s3:PutObject"),
            ABORT => Some("s3:AbortMultipartUpload"),
            "read" | "head" => Some("s3:GetObject"),
            "delete" => Some("s3:DeleteObject"),
            "list" | ABSENT => Some("s3:ListBucket"),
            _ => None,
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Unavailable { .. } | Self::NotApplied { .. } | Self::Denied { .. } => {
                ErrorKind::Unavailable
            }
            Self::OutcomeUnknown { .. } => ErrorKind::OutcomeUnknown,
            Self::Short { .. } => ErrorKind::Corrupt,
            Self::Invalid { .. } | Self::Unfit { .. } => ErrorKind::Invalid,
            Self::Exhausted { .. } => ErrorKind::Exhausted,
            Self::Source { .. } => ErrorKind::Internal,
        }
    }
}

/// How one attempt failed, as far as the library's closed error type lets us see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The object is not there.
    Missing,
    /// The condition of a write did not hold, or the store says so: nothing was written by *this*
    /// request.
    Refused,
    /// The credentials do not suffice: nothing was written.
    Denied,
    /// The request can never succeed: nothing was written.
    Unsupported,
    /// Anything else, timeouts among it: a write may have happened or may happen later.
    Unclear,
}

impl Failure {
    pub(crate) fn of(error: &object_store::Error) -> Self {
        use object_store::Error as E;
        match error {
            E::NotFound { .. } => Self::Missing,
            E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => {
                Self::Refused
            }
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Denied,
            E::NotSupported { .. }
            | E::NotImplemented { .. }
            | E::InvalidPath { .. }
            | E::UnknownConfigurationKey { .. } => Self::Unsupported,
            // `Generic` is timeouts, resets and every HTTP status without a variant; `JoinError` is a
            // blocking task that may have got anywhere. The enum is open: what is new is unclear.
            _ => Self::Unclear,
        }
    }
}

/// No answer came within the time allowed for one attempt.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub(crate) struct NoAnswer(pub(crate) std::time::Duration);

/// The failure of one attempt as the library's error, timeouts included.
pub(crate) fn timed_out(limit: std::time::Duration) -> object_store::Error {
    object_store::Error::Generic {
        store: "tidelog",
        source: Box::new(NoAnswer(limit)),
    }
}
