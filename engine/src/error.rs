//! The engine's public error: a closed list of facts, each with a stable code.
//!
//! A caller acts on [`Error::kind`] (retry, status, alerting) or on [`Error::code`] (a fact it knows how to
//! handle); the text is for people. Inside the engine every family has an enum of its own; they become this
//! type where they leave.

use std::fmt;

use tidelog_archive::ErrorKind;

use crate::sealed::{FileDamaged, FileKeyMissing};

macro_rules! codes {
    ($($name:ident $text:literal $kind:ident;)*) => {
        /// What happened, as API.md section 4 names it. The text form is stable and kebab-case.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "each name is the fact; docs/api.md says when")]
        pub enum Code { $($name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            const fn row(self) -> (&'static str, ErrorKind) {
                match self { $(Self::$name => ($text, ErrorKind::$kind),)* }
            }
        }
    };
}

codes! {
    InvalidRequest "invalid-request" Invalid;
    Unauthenticated "unauthenticated" Invalid;
    TokenExpired "token-expired" Invalid;
    TokenRevoked "token-revoked" Invalid;
    InsufficientPermissions "insufficient-permissions" Invalid;
    DatabaseReadOnly "database-read-only" Invalid;
    DatabaseBlocked "database-blocked" Invalid;
    Maintenance "maintenance" Unavailable;
    MemberNotFound "member-not-found" NotFound;
    RateLimited "rate-limited" Exhausted;
    NamespaceNotFound "namespace-not-found" NotFound;
    NamespaceDeleted "namespace-deleted" NotFound;
    DatabaseNotFound "database-not-found" NotFound;
    TokenNotFound "token-not-found" NotFound;
    OperationNotFound "operation-not-found" NotFound;
    BookmarkUnknown "bookmark-unknown" NotFound;
    NameTaken "name-taken" Conflict;
    IdempotencyInProgress "idempotency-in-progress" Conflict;
    IdempotencyKeyReused "idempotency-key-reused" Invalid;
    DatabaseProtected "database-protected" Conflict;
    BookmarkExpired "bookmark-expired" NotFound;
    BookmarkLost "bookmark-lost" NotFound;
    DatabasePurged "database-purged" NotFound;
    DatabaseMoved "database-moved" Conflict;
    SqlTooLong "sql-too-long" Exhausted;
    ResultTooLarge "result-too-large" Exhausted;
    BookmarkInFuture "bookmark-in-future" Invalid;
    BookmarkForeign "bookmark-foreign" Invalid;
    RecoveryGap "recovery-gap" Invalid;
    ImportInvalid "import-invalid" Invalid;
    TooManyParameters "too-many-parameters" Invalid;
    TransactionControl "transaction-control" Invalid;
    NameInvalid "name-invalid" Invalid;
    SqlError "sql-error" Invalid;
    ObjectCorrupt "object-corrupt" Corrupt;
    DatabaseCorrupt "database-corrupt" Corrupt;
    Internal "internal" Internal;
    Overloaded "overloaded" Unavailable;
    StorageUnavailable "storage-unavailable" Unavailable;
    WriterFenced "writer-fenced" Fenced;
    DatabaseBusy "database-busy" Unavailable;
    JournalFull "journal-full" Unavailable;
    KeyUnavailable "key-unavailable" KeyUnavailable;
    QueryTimeout "query-timeout" Unavailable;
    DurabilityTimeout "durability-timeout" OutcomeUnknown;
    OutcomeUnknown "outcome-unknown" OutcomeUnknown;
    QuotaExceeded "quota-exceeded" Exhausted;
    DiskFull "disk-full" Exhausted;
    SnapshotNotFound "snapshot-not-found" NotFound;
    RestoreNotFound "restore-not-found" NotFound;
    ArchiveNotFound "archive-not-found" NotFound;
    OperationInProgress "operation-in-progress" Conflict;
    OperationNotCancellable "operation-not-cancellable" Conflict;
    OperationCancelled "operation-cancelled" Conflict;
    OperationInterrupted "operation-interrupted" Unavailable;
    RestoreSuperseded "restore-superseded" Conflict;
    ForkParentPinned "fork-parent-pinned" Conflict;
    ArchiveHeld "archive-held" Conflict;
    SnapshotPinned "snapshot-pinned" Conflict;
    IdempotencyResultRolledBack "idempotency-result-rolled-back" Conflict;
    SnapshotExpired "snapshot-expired" NotFound;
    PlanStale "plan-stale" Conflict;
    RestoreRateLimited "restore-rate-limited" Exhausted;
    Refused "refused" Conflict;
    StreamBusy "stream-busy" Conflict;
    StreamExpired "stream-expired" Invalid;
    TransactionTimeout "transaction-timeout" Conflict;
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
