//! What a failed request is told: RFC 9457 problem documents with a closed table of codes.
//!
//! [`Code`] is the table of docs/api.md in one place: text, status, title, whether a retry can help. A handler
//! names a code or passes an engine error on; the status then follows from the table and nowhere else. Every code of
//! the engine has a row here; one without would take its status from its [`ErrorKind`], matched without a wildcard.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use tidelog_archive::ErrorKind;

macro_rules! codes {
    ($($name:ident $status:literal $text:literal $title:literal $retry:literal;)*) => {
        /// What happened, as a client can tell it apart. The text is stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the title of each row says it")]
        pub enum Code { $($name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            const fn row(self) -> (u16, &'static str, &'static str, bool) {
                match self { $(Self::$name => ($status, $text, $title, $retry),)* }
            }
        }
    };
}

codes! {
    InvalidRequest 400 "invalid-request" "The request is not valid" false;
    UnknownField 400 "unknown-field" "The request has a field that is not known here" false;
    IdempotencyKeyRequired 400 "idempotency-key-required" "This call must carry an Idempotency-Key" false;
    BatonInvalid 400 "baton-invalid" "The baton is not the latest one of a stream of this caller" false;
    StreamExpired 400 "stream-expired" "The stream has ended" false;
    StreamBusy 400 "stream-busy" "Another request runs on the stream" false;
    Unauthenticated 401 "unauthenticated" "No valid token was given" false;
    TokenExpired 401 "token-expired" "The token has expired" false;
    TokenRevoked 401 "token-revoked" "The token has been revoked" false;
    InsufficientPermissions 403 "insufficient-permissions" "The token may not do this" false;
    NamespaceMismatch 403 "namespace-mismatch" "The token belongs to another namespace" false;
    DatabaseReadOnly 403 "database-read-only" "The database takes no writes" false;
    DatabaseBlocked 403 "database-blocked" "The database takes no reads" false;
    NotFound 404 "not-found" "There is nothing at this path" false;
    NamespaceNotFound 404 "namespace-not-found" "There is no such namespace" false;
    DatabaseNotFound 404 "database-not-found" "There is no such database" false;
    OperationNotFound 404 "operation-not-found" "There is no such operation" false;
    MemberNotFound 404 "member-not-found" "There is no such member" false;
    TokenNotFound 404 "token-not-found" "There is no such token" false;
    BookmarkUnknown 404 "bookmark-unknown" "The bookmark names a term that never was" false;
    SnapshotNotFound 404 "snapshot-not-found" "There is no such snapshot" false;
    RestoreNotFound 404 "restore-not-found" "There is no such restore" false;
    ArchiveNotFound 404 "archive-not-found" "There is no such archive" false;
    MethodNotAllowed 405 "method-not-allowed" "The path does not take this method" false;
    RequestTimeout 408 "request-timeout" "The body did not arrive in time" true;
    NameTaken 409 "name-taken" "The name is in use" false;
    IdempotencyInProgress 409 "idempotency-in-progress" "The first call with this key still runs" true;
    RegionFixed 409 "region-fixed" "The region of a database does not change" false;
    DatabaseProtected 409 "database-protected" "The database is protected from deletion" false;
    Refused 409 "refused" "The server refuses to do this now" false;
    OperationInProgress 409 "operation-in-progress" "Another operation of the database runs" true;
    OperationNotCancellable 409 "operation-not-cancellable" "The operation can no longer be cancelled" false;
    TransactionTimeout 409 "transaction-timeout" "The transaction did nothing for too long" false;
    OperationCancelled 409 "operation-cancelled" "The operation was cancelled" false;
    RestoreSuperseded 409 "restore-superseded" "Commits were made after the restore" false;
    ForkParentPinned 409 "fork-parent-pinned" "Forks read through this database" false;
    ArchiveHeld 409 "archive-held" "The archive is held" false;
    SnapshotPinned 409 "snapshot-pinned" "The snapshot is pinned" false;
    IdempotencyResultRolledBack 409 "idempotency-result-rolled-back" "What the first call did was rolled back by a restore" false;
    BookmarkExpired 410 "bookmark-expired" "The bookmark has left the retention window" false;
    BookmarkLost 410 "bookmark-lost" "The commit was never stored and its machine was lost" false;
    NamespaceDeleted 410 "namespace-deleted" "The namespace is deleted" false;
    DatabasePurged 410 "database-purged" "The database has been purged" false;
    SnapshotExpired 410 "snapshot-expired" "The snapshot has left the retention window" false;
    DatabaseMoved 412 "database-moved" "The database has moved since" false;
    PlanStale 412 "plan-stale" "The plan is used up or the database has moved" false;
    BodyTooLarge 413 "body-too-large" "The body is too large" false;
    SqlTooLong 413 "sql-too-long" "The SQL text is too long" false;
    ResultTooLarge 413 "result-too-large" "The result is too large" false;
    UnsupportedMediaType 415 "unsupported-media-type" "The body has a type that is not taken here" false;
    RangeNotSatisfiable 416 "range-not-satisfiable" "The range lies outside of the content" false;
    BookmarkInFuture 422 "bookmark-in-future" "The bookmark lies past the newest commit" false;
    BookmarkForeign 422 "bookmark-foreign" "The bookmark belongs to another history" false;
    BookmarkMalformed 422 "bookmark-malformed" "This is not a bookmark" false;
    RecoveryGap 422 "recovery-gap" "The history has a gap there" false;
    ImportInvalid 422 "import-invalid" "The file cannot be imported" false;
    TooManyParameters 422 "too-many-parameters" "The statement has too many parameters" false;
    TransactionControl 422 "transaction-control" "Transactions are the server's here" false;
    NameInvalid 422 "name-invalid" "The name is not allowed" false;
    IdempotencyKeyReused 422 "idempotency-key-reused" "The key was used for another request" false;
    SqlError 422 "sql-error" "SQLite refused the statement" false;
    RestoreRateLimited 429 "restore-rate-limited" "Too many restores of one database" true;
    RateLimited 429 "rate-limited" "Too many requests" true;
    ObjectCorrupt 500 "object-corrupt" "A stored object is damaged" false;
    DatabaseCorrupt 500 "database-corrupt" "The database file is damaged" false;
    Internal 500 "internal" "The server failed" false;
    Maintenance 503 "maintenance" "Writes are refused during maintenance" true;
    Overloaded 503 "overloaded" "The server has too much to do" true;
    StorageUnavailable 503 "storage-unavailable" "The store does not answer" true;
    WriterFenced 503 "writer-fenced" "Another server has taken over" false;
    DatabaseBusy 503 "database-busy" "Another writer holds the database" true;
    JournalFull 503 "journal-full" "The journal is full until the store answers" true;
    KeyUnavailable 503 "key-unavailable" "The key that opens the data is not at hand" false;
    OperationInterrupted 503 "operation-interrupted" "The server stopped while the operation ran" true;
    QueryTimeout 504 "query-timeout" "The statement took too long" false;
    DurabilityTimeout 504 "durability-timeout" "Committed, but not yet as safe as asked for" false;
    OutcomeUnknown 504 "outcome-unknown" "It is not known whether this took effect" false;
    QuotaExceeded 507 "quota-exceeded" "The database is at its size limit" false;
    DiskFull 507 "disk-full" "The disk is full" true;
}

impl Code {
    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What the code means, for people.
    pub const fn title(self) -> &'static str {
        self.row().2
    }

    /// Whether the same request can succeed later without harm.
    pub const fn retryable(self) -> bool {
        self.row().3
    }

    /// The code with that text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

/// The status of an error that is known by its kind alone.
pub const fn status_of_kind(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Fenced | ErrorKind::Unavailable | ErrorKind::KeyUnavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// A failed request: becomes the problem document once the request's id and path are known.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    retryable: bool,
    detail: String,
    members: Map<String, Value>,
}

impl Problem {
    /// A problem of `code`; `detail` says what is wrong with this request.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            status: code.status(),
            code: code.as_str(),
            title: code.title(),
            retryable: code.retryable(),
            detail: detail.into(),
            members: Map::new(),
        }
    }

    /// A body or query that breaks the rules at one place, named by a JSON pointer.
    pub fn invalid(code: Code, pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = json!([{ "pointer": pointer, "detail": detail }]);
        Self::new(code, detail).with("errors", errors)
    }

    /// Adds a member that belongs to the code.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The request carried an Idempotency-Key, so a retry is safe even where the outcome is unknown.
    #[must_use]
    pub fn keyed(mut self) -> Self {
        self.retryable |= self.status == StatusCode::GATEWAY_TIMEOUT;
        self
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// What the code means.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// Whether role, scope, a block or the rules of SQL refused it: that goes on record.
    pub(crate) fn is_denial(&self) -> bool {
        self.status == StatusCode::FORBIDDEN || self.is_sql_denied()
    }

    /// Whether SQL asked for what no SQL may do here.
    pub(crate) fn is_sql_denied(&self) -> bool {
        self.members.get("sqlite_code").and_then(Value::as_str) == Some("SQLITE_AUTH")
    }

    /// What is wrong with this request.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The document, with the fixed members last so that none can be overwritten.
    pub fn document(&self, instance: &str, request_id: &str) -> Value {
        let mut document = self.members.clone();
        let fixed = [
            ("type", json!(format!("urn:tidelog:problem:{}", self.code))),
            ("title", json!(self.title)),
            ("status", json!(self.status.as_u16())),
            ("detail", json!(self.detail)),
            ("instance", json!(instance)),
            ("code", json!(self.code)),
            ("request_id", json!(request_id)),
            ("retryable", json!(self.retryable)),
        ];
        document.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(document)
    }

    /// The whole answer.
    pub fn response(&self, instance: &str, request_id: &str) -> Response<Body> {
        let body = self.document(instance, request_id).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"tidelog\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        let wait = self.members.get("retry_after").and_then(Value::as_u64);
        let wait = wait.or((self.status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        if let Some(wait) = wait {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait));
        }
        response
    }
}

impl From<tidelog_engine::Error> for Problem {
    fn from(error: tidelog_engine::Error) -> Self {
        let status = status_of_kind(error.kind());
        if status.is_server_error() {
            let cause = causes(&error);
            tracing::warn!(code = error.code().as_str(), %error, cause, "engine refused a request");
        }
        Self::from(&error)
    }
}

impl From<&tidelog_engine::Error> for Problem {
    fn from(error: &tidelog_engine::Error) -> Self {
        let status = status_of_kind(error.kind());
        let mut problem = match Code::parse(error.code().as_str()) {
            Some(code) => Self::new(code, error.to_string()),
            None => Self {
                status,
                code: error.code().as_str(),
                title: "The engine refused the request",
                retryable: error.kind() == ErrorKind::Unavailable,
                detail: error.to_string(),
                members: Map::new(),
            },
        };
        problem.members.extend(error.members().clone());
        problem
    }
}

/// The chain of sources of an error, for the log.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = error.source();
    while let Some(source) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_distinct_kebab_case_and_parse_back() {
        let texts: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            let text = code.as_str();
            assert!(
                text.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{text}"
            );
            assert_eq!(Code::parse(text), Some(*code));
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }

    #[test]
    fn the_manual_lists_every_code_and_every_path() {
        let manual = include_str!("../../docs/api.md");
        for code in Code::ALL {
            assert!(
                manual.contains(&format!("`{code}`", code = code.as_str())),
                "{code:?}"
            );
        }
        for served in crate::surface() {
            let path = served.path.replace("/v1/namespaces/{ns}/", "");
            let path = path
                .split('/')
                .next_back()
                .filter(|word| !word.starts_with('{'));
            let word = path.unwrap_or(served.method.as_str());
            assert!(manual.contains(word), "{served:?}");
        }
    }

    #[test]
    fn every_code_of_the_engine_has_its_row() {
        for code in tidelog_engine::Code::ALL {
            let found = Code::parse(code.as_str());
            let found = found.unwrap_or_else(|| panic!("{code} has no row here"));
            // The engine's kind is coarser, and says the same where it says whose fault it is.
            let error = tidelog_engine::Error::new(*code, "x").with("object", "a/b");
            let coarse = status_of_kind(error.kind());
            let ours = |status: StatusCode| status.is_server_error();
            let refused = matches!(error.kind(), ErrorKind::Exhausted);
            assert!(refused || ours(coarse) == ours(found.status()), "{code}");
            let document = Problem::from(&error).document("", "");
            assert_eq!(document["status"], found.status().as_u16(), "{code}");
            assert_eq!(document["object"], "a/b", "{code}");
        }
        for (code, status) in [
            (Code::DiskFull, 507),
            (Code::ObjectCorrupt, 500),
            (Code::WriterFenced, 503),
        ] {
            assert_eq!(code.status().as_u16(), status);
        }
    }

    #[test]
    fn members_never_replace_the_fixed_ones() {
        let problem = Problem::new(Code::SqlError, "no such table: t")
            .with("status", 200)
            .with("sqlite_code", 1);
        let document = problem.document("/v1/x", "req_1");
        assert_eq!(document["status"], 422);
        assert_eq!(document["sqlite_code"], 1);
        assert_eq!(document["code"], "sql-error");
        assert_eq!(document["instance"], "/v1/x");
        assert_eq!(document["retryable"], false);
    }

    #[test]
    fn unknown_outcome_is_retryable_only_under_a_key() {
        let bare = Problem::new(Code::OutcomeUnknown, "x");
        assert_eq!(bare.document("", "")["retryable"], false);
        assert_eq!(bare.keyed().document("", "")["retryable"], true);
        assert_eq!(
            Problem::new(Code::SqlError, "x").keyed().document("", "")["retryable"],
            false
        );
    }
}
