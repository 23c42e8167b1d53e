//! Which refusals a call can get: from its row in the route table, and from what its handler takes and does.
//!
//! Tests hold the list both ways: an answer that is not listed fails the test that got it, and what is listed and never
//! seen fails another, unless that says why it cannot be provoked.

use axum::http::Method;
use tidelog_engine::Role;

use crate::http::{Access, BodyKind, Route};
use crate::problem::Code;

/// A call: its method and the end of its path.
type End = (&'static str, &'static str);

/// Calls whose body names a state: by bookmark, time or snapshot.
const BY_TARGET: &[End] = &[
    ("POST", "/databases"),
    ("POST", "/forks"),
    ("PUT", "/branches/{ref}"),
    ("POST", "/restores"),
    ("POST", "/archives"),
    ("POST", "/verifications"),
];
/// Calls that name one by bookmark beside these.
const BY_BOOKMARK: &[End] = &[
    ("GET", "/history"),
    ("GET", "/export"),
    ("POST", "/snapshots"),
    ("POST", "/time_travel/restore"),
];
/// Calls that name one by time alone.
const BY_TIME: &[End] = &[
    ("GET", "/bookmarks"),
    ("GET", "/time_travel/bookmark"),
    ("POST", "/fork/{to}"),
];
/// Calls that put a database back in place.
const RESTORES: &[End] = &[
    ("POST", "/restores"),
    ("POST", "/undo"),
    ("POST", "/time_travel/restore"),
];
/// Calls that only read, and read from the store.
const FROM_STORE: &[End] = &[
    ("GET", "/export"),
    ("GET", "/history"),
    ("GET", "/bookmarks"),
    ("GET", "/time_travel/bookmark"),
    ("GET", "/recovery-window"),
];
/// Calls that make something of a name.
const NAMES: &[End] = &[
    ("POST", "/v1/namespaces"),
    ("POST", "/databases"),
    ("POST", "/import"),
    ("POST", "/forks"),
    ("POST", "/fork/{to}"),
    ("PUT", "/branches/{ref}"),
    ("POST", "/restores"),
    ("POST", "/snapshots"),
];
/// Calls that destroy a database, if they are told to.
const DESTROYS: &[End] = &[
    ("DELETE", "/databases/{db}"),
    ("DELETE", "/v1/namespaces/{ns}"),
];

fn is(route: &Route, ends: &[End]) -> bool {
    let fits = |(method, end): &End| route.method.as_str() == *method && route.path.ends_with(end);
    ends.iter().any(fits)
}

/// Calls that may take long: their end is the end of an operation.
fn is_operation(route: &Route) -> bool {
    let others: &[End] = &[
        ("POST", "/import"),
        ("POST", "/detach"),
        ("POST", "/fork/{to}"),
        ("POST", "/verify"),
    ];
    let begins = BY_TARGET
        .iter()
        .chain(RESTORES)
        .chain(DESTROYS)
        .chain(others);
    is(route, &begins.copied().collect::<Vec<_>>())
}

/// Whether a route can be refused with a code.
pub(super) fn may_answer(route: &Route, code: Code) -> bool {
    let known = route.access != Access::Public;
    let tenants = matches!(route.access, Access::Role(_));
    let changes = known && route.method != Method::GET;
    let posts = known && route.method == Method::POST;
    let within = |part: &str| route.path.contains(part);
    // The others say what the process knows without a look at a database.
    let looks = known || route.path == "/readyz";
    let by_bookmark = is(route, BY_TARGET) || is(route, BY_BOOKMARK);
    let by_state = by_bookmark || is(route, BY_TIME);
    let by_snapshot = is(route, BY_TARGET) || is(route, &[("GET", "/export")]);
    match code {
        Code::InvalidRequest
        | Code::UnknownField
        | Code::RequestTimeout
        | Code::BodyTooLarge
        | Code::Internal => true,
        Code::UnsupportedMediaType => route.body == BodyKind::Json,
        Code::RangeNotSatisfiable => route.path.ends_with("/content"),
        Code::OutcomeUnknown => route.has_deadline() || changes,
        // Faults of the machine, the store or another server, wherever something is read.
        Code::ObjectCorrupt
        | Code::DatabaseCorrupt
        | Code::Overloaded
        | Code::StorageUnavailable
        | Code::WriterFenced
        | Code::DatabaseBusy
        | Code::KeyUnavailable => looks,
        Code::DiskFull | Code::JournalFull => changes,
        // What is read from the store is waited for first.
        Code::DurabilityTimeout => changes || is(route, FROM_STORE),
        Code::Unauthenticated | Code::TokenExpired | Code::TokenRevoked | Code::RateLimited => {
            known
        }
        // Whoever is known in a namespace may see what is not of single databases.
        Code::InsufficientPermissions => {
            let everybody = route.access == Access::Role(Role::Viewer);
            known && (!everybody || route.on_database() || route.whole_namespace)
        }
        Code::NamespaceMismatch => tenants,
        // To delete what is deleted is refused, to purge it is not.
        Code::NamespaceDeleted => {
            tenants && (!route.when_deleted || is(route, &[("DELETE", "/namespaces/{ns}")]))
        }
        Code::DatabaseNotFound => {
            route.on_database() || is(route, BY_TARGET) || within("/retention")
        }
        Code::DatabasePurged => is(
            route,
            &[
                ("POST", "/databases/{db}/undelete"),
                ("DELETE", "/databases/{db}"),
                ("POST", "/forks"),
            ],
        ),
        Code::IdempotencyKeyRequired => route.key_required,
        Code::IdempotencyInProgress | Code::IdempotencyKeyReused => posts,
        Code::OperationInProgress | Code::OperationCancelled | Code::OperationInterrupted => {
            is_operation(route)
        }
        Code::Maintenance => route.pauses() || route.is_sql(),
        Code::NameTaken => is(route, NAMES) || is(route, &[("POST", "/{db}/undelete")]),
        Code::NameInvalid => {
            is(route, NAMES)
                || is(
                    route,
                    &[("POST", "/archives"), ("PUT", "/members/{principal}")],
                )
        }
        // A namespace goes with all its forks.
        Code::ForkParentPinned => is(route, &[("DELETE", "/databases/{db}")]),
        Code::DatabaseProtected => {
            is(route, DESTROYS) || is(route, &[("DELETE", "/branches/{ref}")])
        }
        Code::ArchiveHeld => {
            is(route, DESTROYS) || is(route, &[("DELETE", "/{archive}"), ("PATCH", "/{archive}")])
        }
        Code::DatabaseReadOnly => route.is_sql() || is(route, &[("POST", "/import")]),
        Code::DatabaseBlocked => route.is_sql() || is(route, &[("GET", "/export")]),
        Code::QuotaExceeded => {
            let others: &[End] = &[
                ("POST", "/snapshots"),
                ("POST", "/import"),
                ("POST", "/restores"),
            ];
            route.is_sql() || is(route, others)
        }
        Code::IdempotencyResultRolledBack
        | Code::SqlError
        | Code::QueryTimeout
        | Code::SqlTooLong
        | Code::ResultTooLarge
        | Code::TooManyParameters
        | Code::TransactionControl => route.is_sql(),
        Code::ImportInvalid => is(
            route,
            &[
                ("POST", "/import"),
                ("POST", "/databases"),
                ("POST", "/restores"),
            ],
        ),
        Code::RegionFixed => is(route, &[("PATCH", "/databases/{db}")]),
        Code::BookmarkMalformed => {
            by_bookmark || route.conditional || is(route, &[("POST", "/undo")])
        }
        Code::BookmarkUnknown
        | Code::BookmarkLost
        | Code::BookmarkInFuture
        | Code::BookmarkForeign => by_bookmark,
        Code::BookmarkExpired => by_state,
        // No bookmark is of a commit that is missing.
        Code::RecoveryGap => by_state && !is(route, &[("GET", "/history")]),
        Code::SnapshotNotFound => by_snapshot || within("{snapshot}"),
        Code::SnapshotExpired => by_snapshot,
        Code::SnapshotPinned => is(route, &[("DELETE", "/{snapshot}")]),
        Code::OperationNotFound => within("{operation}"),
        Code::OperationNotCancellable => route.path.ends_with("/cancel"),
        Code::MemberNotFound => {
            within("{principal}") && route.method != Method::PUT
                || is(route, &[("POST", "/tokens")])
        }
        Code::TokenNotFound => within("{token}"),
        Code::RestoreNotFound => within("{restore}") || is(route, &[("POST", "/restores")]),
        Code::RestoreSuperseded => route.path.ends_with("/undo"),
        Code::RestoreRateLimited => is(route, RESTORES),
        Code::PlanStale => is(route, &[("POST", "/restores")]),
        Code::ArchiveNotFound => {
            within("{archive}") || is(route, &[("POST", "/restores"), ("POST", "/databases")])
        }
        Code::DatabaseMoved => route.conditional,
        Code::Refused => is(route, &[("POST", "/snapshots")]),
        // Hrana's own, what the router answers where there is no route, and what nobody with a token hears.
        Code::NamespaceNotFound
        | Code::BatonInvalid
        | Code::StreamExpired
        | Code::StreamBusy
        | Code::TransactionTimeout
        | Code::MethodNotAllowed
        | Code::NotFound => false,
    }
}
