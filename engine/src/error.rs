//! The engine's public error: a closed list of facts, each with a stable code.
//!
//! A caller acts on [`Error::kind`] (retry, status, alerting) or on [`Error::code`] (a fact it knows how to
//! handle); the text is for people. Inside the engine every family has an enum of its own; they become this
//! type where they leave.

use std::fmt;

use tidelog_archive::ErrorKind;

use crate::sealed::{FileDamaged, FileKeyMissing};

/// What happened, as API.md section 4 names it. The text form is stable and kebab-case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each name is the fact; docs/api.md says when")]
pub enum Code {
    InvalidRequest,
    Unauthenticated,
    TokenExpired,
    TokenRevoked,
    InsufficientPermissions,
    DatabaseReadOnly,
    DatabaseBlocked,
    Maintenance,
    MemberNotFound,
    RateLimited,
    NamespaceNotFound,
    NamespaceDeleted,
    DatabaseNotFound,
    TokenNotFound,
    OperationNotFound,
    BookmarkUnknown,
    NameTaken,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    DatabaseProtected,
    BookmarkExpired,
    BookmarkLost,
    DatabasePurged,
    DatabaseMoved,
    SqlTooLong,
    ResultTooLarge,
    BookmarkInFuture,
    BookmarkForeign,
    RecoveryGap,
    ImportInvalid,
    TooManyParameters,
    TransactionControl,
    NameInvalid,
    SqlError,
    ObjectCorrupt,
    DatabaseCorrupt,
    Internal,
    Overloaded,
    StorageUnavailable,
    WriterFenced,
    DatabaseBusy,
    JournalFull,
    KeyUnavailable,
    QueryTimeout,
    DurabilityTimeout,
    OutcomeUnknown,
    QuotaExceeded,
    DiskFull,
    SnapshotNotFound,
    RestoreNotFound,
    ArchiveNotFound,
    OperationInProgress,
    OperationNotCancellable,
    OperationCancelled,
    OperationInterrupted,
    RestoreSuperseded,
    ForkParentPinned,
    ArchiveHeld,
    SnapshotPinned,
    IdempotencyResultRolledBack,
    SnapshotExpired,
    PlanStale,
    RestoreRateLimited,
    Refused,
    StreamBusy,
    StreamExpired,
    TransactionTimeout,
}

impl Code {
    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// What a caller can do about it.
    pub const fn kind(self) -> ErrorKind {
        self.row().1
    }

    const fn row(self) -> (&'static str, ErrorKind) {
        use ErrorKind as K;
        match self {
            Self::InvalidRequest => ("invalid-request", K::Invalid),
            Self::Unauthenticated => ("unauthenticated", K::Invalid),
            Self::TokenExpired => ("token-expired", K::Invalid),
            Self::TokenRevoked => ("token-revoked", K::Invalid),
            Self::InsufficientPermissions => ("insufficient-permissions", K::Invalid),
            Self::DatabaseReadOnly => ("database-read-only", K::Invalid),
            Self::DatabaseBlocked => ("database-blocked", K::Invalid),
            Self::Maintenance => ("maintenance", K::Unavailable),
            Self::MemberNotFound => ("member-not-found", K::NotFound),
            Self::RateLimited => ("rate-limited", K::Exhausted),
            Self::NamespaceNotFound => ("namespace-not-found", K::NotFound),
            Self::NamespaceDeleted => ("namespace-deleted", K::NotFound),
            Self::DatabaseNotFound => ("database-not-found", K::NotFound),
            Self::TokenNotFound => ("token-not-found", K::NotFound),
            Self::OperationNotFound => ("operation-not-found", K::NotFound),
            Self::BookmarkUnknown => ("bookmark-unknown", K::NotFound),
            Self::NameTaken => ("name-taken", K::Conflict),
            Self::IdempotencyInProgress => ("idempotency-in-progress", K::Conflict),
            Self::IdempotencyKeyReused => ("idempotency-key-reused", K::Invalid),
            Self::DatabaseProtected => ("database-protected", K::Conflict),
            Self::BookmarkExpired => ("bookmark-expired", K::NotFound),
            Self::BookmarkLost => ("bookmark-lost", K::NotFound),
            Self::DatabasePurged => ("database-purged", K::NotFound),
            Self::DatabaseMoved => ("database-moved", K::Conflict),
            Self::SqlTooLong => ("sql-too-long", K::Exhausted),
            Self::ResultTooLarge => ("result-too-large", K::Exhausted),
            Self::BookmarkInFuture => ("bookmark-in-future", K::Invalid),
            Self::BookmarkForeign => ("bookmark-foreign", K::Invalid),
            Self::RecoveryGap => ("recovery-gap", K::Invalid),
            Self::ImportInvalid => ("import-invalid", K::Invalid),
            Self::TooManyParameters => ("too-many-parameters", K::Invalid),
            Self::TransactionControl => ("transaction-control", K::Invalid),
            Self::NameInvalid => ("name-invalid", K::Invalid),
            Self::SqlError => ("sql-error", K::Invalid),
            Self::ObjectCorrupt => ("object-corrupt", K::Corrupt),
            Self::DatabaseCorrupt => ("database-corrupt", K::Corrupt),
            Self::Internal => ("internal", K::Internal),
            Self::Overloaded => ("overloaded", K::Unavailable),
            Self::StorageUnavailable => ("storage-unavailable", K::Unavailable),
            Self::WriterFenced => ("writer-fenced", K::Fenced),
            Self::DatabaseBusy => ("database-busy", K::Unavailable),
            Self::JournalFull => ("journal-full", K::Unavailable),
            Self::KeyUnavailable => ("key-unavailable", K::KeyUnavailable),
            Self::QueryTimeout => ("query-timeout", K::Unavailable),
            Self::DurabilityTimeout => ("durability-timeout", K::OutcomeUnknown),
            Self::OutcomeUnknown => ("outcome-unknown", K::OutcomeUnknown),
            Self::QuotaExceeded => ("quota-exceeded", K::Exhausted),
            Self::DiskFull => ("disk-full", K::Exhausted),
            Self::SnapshotNotFound => ("snapshot-not-found", K::NotFound),
            Self::RestoreNotFound => ("restore-not-found", K::NotFound),
            Self::ArchiveNotFound => ("archive-not-found", K::NotFound),
            Self::OperationInProgress => ("operation-in-progress", K::Conflict),
            Self::OperationNotCancellable => ("operation-not-cancellable", K::Conflict),
            Self::OperationCancelled => ("operation-cancelled", K::Conflict),
            Self::OperationInterrupted => ("operation-interrupted", K::Unavailable),
            Self::RestoreSuperseded => ("restore-superseded", K::Conflict),
            Self::ForkParentPinned => ("fork-parent-pinned", K::Conflict),
            Self::ArchiveHeld => ("archive-held", K::Conflict),
            Self::SnapshotPinned => ("snapshot-pinned", K::Conflict),
            Self::IdempotencyResultRolledBack => ("idempotency-result-rolled-back", K::Conflict),
            Self::SnapshotExpired => ("snapshot-expired", K::NotFound),
            Self::PlanStale => ("plan-stale", K::Conflict),
            Self::RestoreRateLimited => ("restore-rate-limited", K::Exhausted),
            Self::Refused => ("refused", K::Conflict),
            Self::StreamBusy => ("stream-busy", K::Conflict),
            Self::StreamExpired => ("stream-expired", K::Invalid),
            Self::TransactionTimeout => ("transaction-timeout", K::Conflict),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error with its code, a sentence, the members API.md asks for, and its source.
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    message: String,
    members: serde_json::Map<String, serde_json::Value>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// An object that was planned with is not there any more.
    gone: bool,
}

impl Error {
    /// An error of `code` that says `message`: what was attempted, with its identifiers, and what to do.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let inner = Inner {
            code,
            message: message.into(),
            members: serde_json::Map::new(),
            source: None,
            gone: false,
        };
        Self(Box::new(inner))
    }

    /// Adds a code-specific member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.0.members.insert(name.to_owned(), value.into());
        self
    }

    /// Adds what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Says whether an object that was planned with was gone.
    #[must_use]
    pub(crate) fn because_gone(mut self, gone: bool) -> Self {
        self.0.gone = gone;
        self
    }

    /// Whether an object that was planned with was gone: what is listed now may lead there all the same.
    pub(crate) const fn is_gone(&self) -> bool {
        self.0.gone
    }

    /// What happened.
    pub const fn code(&self) -> Code {
        self.0.code
    }

    /// What a caller can do about it.
    pub const fn kind(&self) -> ErrorKind {
        self.0.code.kind()
    }

    /// The members of the problem document that belong to the code.
    pub const fn members(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.0.members
    }

    /// An error of the local disk: full where it says so, else internal.
    pub(crate) fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        let sealed = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<FileKeyMissing>());
        if let Some(missing) = sealed {
            let object = missing.path.display().to_string();
            return Self::new(Code::KeyUnavailable, format!("{}: {missing}", what.into()))
                .with("object", object)
                .with("key_id", missing.key_id.to_string())
                .caused_by(source);
        }
        let code = match source.kind() {
            _ if source
                .get_ref()
                .is_some_and(<dyn std::error::Error + Send + Sync>::is::<FileDamaged>) =>
            {
                Code::DatabaseCorrupt
            }
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::DiskFull,
            _ => Code::Internal,
        };
        Self::new(code, what).caused_by(source)
    }

    /// A broken invariant: a defect of this program, said as such.
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::new(Code::Internal, what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug
            .field("code", &self.0.code)
            .field("message", &self.0.message);
        if let Some(source) = &self.0.source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}
