//! The route table: every method of every path, its minimum role, its body. docs/api.md says what each does.

macro_rules! handler {
    ($path:path) => {
        |call| Box::pin($path(call))
    };
}

mod aliases;
mod archives;
mod databases;
mod forks;
mod health;
mod hrana;
mod maintenance;
mod members;
mod namespaces;
pub(crate) mod operations;
pub(crate) mod operator;
pub(crate) mod query;
mod records;
mod restores;
mod retention;
pub(crate) mod shape;
mod snapshots;
mod time;
mod tokens;
mod transfer;
mod verifications;

use axum::http::Method;
use tidelog_engine::Role::{Admin, Analyst, Operator, Owner, Viewer};

use crate::http::{Access, BodyKind, Call, Route};
use crate::problem::{Code, Problem};

const DATABASES: &str = "/v1/namespaces/{ns}/databases";
const DATABASE: &str = "/v1/namespaces/{ns}/databases/{db}";
const QUERY: &str = "/v1/namespaces/{ns}/databases/{db}/query";
const BATCH: &str = "/v1/namespaces/{ns}/databases/{db}/batch";
const NAMESPACE: &str = "/v1/namespaces/{ns}";
const TOKENS: &str = "/v1/namespaces/{ns}/tokens";
const FORKS: &str = "/v1/namespaces/{ns}/databases/{db}/forks";
const BRANCH: &str = "/v1/namespaces/{ns}/databases/{db}/branches/{ref}";
const RESTORES: &str = "/v1/namespaces/{ns}/databases/{db}/restores";
const SNAPSHOTS: &str = "/v1/namespaces/{ns}/databases/{db}/snapshots";
const SNAPSHOT: &str = "/v1/namespaces/{ns}/databases/{db}/snapshots/{snapshot}";
const TOKEN: &str = "/v1/namespaces/{ns}/tokens/{token}";
const MEMBER: &str = "/v1/namespaces/{ns}/members/{principal}";
const ARCHIVES: &str = "/v1/namespaces/{ns}/databases/{db}/archives";
const ARCHIVE: &str = "/v1/namespaces/{ns}/databases/{db}/archives/{archive}";
const VERIFICATIONS: &str = "/v1/namespaces/{ns}/databases/{db}/verifications";
const VERIFICATION_SCHEDULE: &str = "/v1/namespaces/{ns}/databases/{db}/verification-schedule";
const ARCHIVE_SCHEDULE: &str = "/v1/namespaces/{ns}/databases/{db}/archive-schedule";
const OPERATIONS: &str = "/v1/namespaces/{ns}/operations";

/// Refuses a caller who may not fork `source`: a database that begins with the rows of another is made by whoever may
/// have them all. Paths that name the source are judged before; these calls name it in their bodies.
async fn may_fork(call: &Call, source: &str) -> Result<(), Problem> {
    let principal = call.principal()?;
    let lacks = |required: &str| {
        let detail = format!("this call needs {required} to begin with");
        Problem::new(Code::InsufficientPermissions, detail).with("required", required)
    };
    if let Some(listed) = &principal.token.databases
        && !listed.iter().any(|one| one == source)
    {
        return Err(lacks("a token for the database"));
    }
    if call.app.engine.role_of(principal, Some(source)).await? < Admin {
        return Err(lacks(Admin.as_str()));
    }
    Ok(())
}

/// Every route.
pub(crate) fn table() -> Vec<Route> {
    let role = Access::Role;
    let query = |path, handler| {
        Route::new(Method::POST, path, role(Analyst), handler)
            .body(BodyKind::Json)
            .keyed_by_handler()
    };
    vec![
        Route::new(
            Method::GET,
            "/healthz",
            Access::Public,
            handler!(health::alive),
        ),
        Route::new(
            Method::GET,
            "/readyz",
            Access::Public,
            handler!(health::ready),
        ),
        Route::new(
            Method::GET,
            "/metrics",
            Access::Public,
            handler!(health::metrics),
        ),
        Route::new(
            Method::GET,
            "/v1/openapi.json",
            Access::Public,
            handler!(health::openapi),
        ),
        Route::new(
            Method::POST,
            "/v1/namespaces",
            Access::Server,
            handler!(namespaces::create),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::POST,
            "/v1/retention",
            Access::Server,
            handler!(retention::run),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::GET,
            "/v1/operations/{operation}",
            Access::Server,
            handler!(namespaces::operation),
        ),
        Route::new(
            Method::GET,
            NAMESPACE,
            role(Viewer),
            handler!(namespaces::show),
        )
        .when_deleted(),
        Route::new(
            Method::DELETE,
            NAMESPACE,
            role(Owner),
            handler!(namespaces::delete),
        )
        .when_deleted()
        .whole_namespace(),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/undelete",
            role(Owner),
            handler!(namespaces::undelete),
        )
        .when_deleted()
        .whole_namespace(),
        Route::new(
            Method::POST,
            DATABASES,
            role(Admin),
            handler!(databases::create),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::GET,
            DATABASES,
            role(Viewer),
            handler!(databases::list),
        ),
        Route::new(
            Method::GET,
            DATABASE,
            role(Viewer),
            handler!(databases::show),
        ),
        Route::new(
            Method::PATCH,
            DATABASE,
            role(Admin),
            handler!(databases::change),
        )
        .body(BodyKind::Json)
        .conditional(),
        Route::new(
            Method::DELETE,
            DATABASE,
            role(Owner),
            handler!(databases::delete),
        )
        .conditional(),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/databases/{db}/undelete",
            role(Admin),
            handler!(databases::undelete),
        ),
        query(QUERY, handler!(query::query)),
        query(BATCH, handler!(query::batch)),
        query("/v1/db/{ns}/{db}/query", handler!(query::query)),
        query("/v1/db/{ns}/{db}/batch", handler!(query::batch)),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/bookmarks/current",
            role(Viewer),
            handler!(time::current),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/bookmarks",
            role(Viewer),
            handler!(time::at),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/recovery-window",
            role(Viewer),
            handler!(time::window),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/history",
            role(Analyst),
            handler!(time::history),
        ),
        Route::new(
            Method::POST,
            SNAPSHOTS,
            role(Operator),
            handler!(snapshots::create),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::GET,
            SNAPSHOTS,
            role(Viewer),
            handler!(snapshots::list),
        ),
        Route::new(
            Method::GET,
            SNAPSHOT,
            role(Viewer),
            handler!(snapshots::show),
        ),
        Route::new(
            Method::DELETE,
            SNAPSHOT,
            role(Operator),
            handler!(snapshots::delete),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/export",
            role(Analyst),
            handler!(transfer::export),
        ),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/databases/{db}/import",
            role(Admin),
            handler!(transfer::import),
        )
        .body(BodyKind::File)
        .conditional(),
        Route::new(Method::POST, TOKENS, role(Admin), handler!(tokens::create))
            .body(BodyKind::Json),
        Route::new(Method::GET, TOKENS, role(Admin), handler!(tokens::list)),
        Route::new(Method::DELETE, TOKEN, role(Admin), handler!(tokens::revoke)).in_maintenance(),
        Route::new(Method::GET, TOKEN, role(Admin), handler!(tokens::show)),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/tokens/{token}/rotate",
            role(Admin),
            handler!(tokens::rotate),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/members",
            role(Admin),
            handler!(members::list),
        )
        .whole_namespace(),
        Route::new(Method::GET, MEMBER, role(Admin), handler!(members::show)).whole_namespace(),
        Route::new(Method::PUT, MEMBER, role(Admin), handler!(members::put))
            .body(BodyKind::Json)
            .whole_namespace(),
        Route::new(
            Method::DELETE,
            MEMBER,
            role(Admin),
            handler!(members::delete),
        )
        .in_maintenance()
        .whole_namespace(),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/members/{principal}/revoke",
            role(Admin),
            handler!(members::revoke),
        )
        .in_maintenance()
        .whole_namespace(),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/audit",
            role(Analyst),
            handler!(records::audit),
        ),
        Route::new(Method::POST, FORKS, role(Admin), handler!(forks::create))
            .body(BodyKind::Json)
            .key_required(),
        Route::new(Method::GET, FORKS, role(Viewer), handler!(forks::list)),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/databases/{db}/detach",
            role(Admin),
            handler!(forks::detach),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/branches",
            role(Viewer),
            handler!(forks::branch_list),
        ),
        Route::new(
            Method::PUT,
            BRANCH,
            role(Admin),
            handler!(forks::branch_put),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::GET,
            BRANCH,
            role(Viewer),
            handler!(forks::branch_show),
        ),
        Route::new(
            Method::DELETE,
            BRANCH,
            role(Admin),
            handler!(forks::branch_delete),
        ),
        Route::new(
            Method::GET,
            "/v1/audit",
            Access::Server,
            handler!(records::audit),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/insights",
            role(Analyst),
            handler!(records::insights),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/slow-queries",
            role(Analyst),
            handler!(records::slow_queries),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/maintenance",
            role(Viewer),
            handler!(maintenance::show),
        ),
        Route::new(
            Method::PUT,
            "/v1/namespaces/{ns}/maintenance",
            role(Admin),
            handler!(maintenance::change),
        )
        .body(BodyKind::Json)
        .in_maintenance()
        .whole_namespace(),
        Route::new(
            Method::GET,
            "/v1/maintenance",
            Access::Server,
            handler!(maintenance::show),
        ),
        Route::new(
            Method::PUT,
            "/v1/maintenance",
            Access::Server,
            handler!(maintenance::change),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::POST,
            RESTORES,
            role(Admin),
            handler!(restores::create),
        )
        .body(BodyKind::Json)
        .key_required()
        .conditional(),
        Route::new(
            Method::GET,
            RESTORES,
            role(Viewer),
            handler!(restores::list),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/restores/{restore}",
            role(Viewer),
            handler!(restores::show),
        ),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/databases/{db}/restores/{restore}/undo",
            role(Admin),
            handler!(restores::undo),
        )
        .body(BodyKind::Json)
        .key_required(),
        Route::new(
            Method::POST,
            ARCHIVES,
            role(Operator),
            handler!(archives::create),
        )
        .body(BodyKind::Json)
        .keyed_by_handler()
        .key_required(),
        Route::new(
            Method::GET,
            ARCHIVES,
            role(Viewer),
            handler!(archives::list),
        ),
        Route::new(Method::GET, ARCHIVE, role(Viewer), handler!(archives::show)),
        Route::new(
            Method::PATCH,
            ARCHIVE,
            role(Admin),
            handler!(archives::change),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::DELETE,
            ARCHIVE,
            role(Admin),
            handler!(archives::delete),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/archives/{archive}/content",
            role(Analyst),
            handler!(archives::content),
        ),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/databases/{db}/archives/{archive}/verify",
            role(Operator),
            handler!(archives::verify),
        ),
        Route::new(
            Method::POST,
            VERIFICATIONS,
            role(Operator),
            handler!(verifications::create),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::GET,
            VERIFICATIONS,
            role(Viewer),
            handler!(verifications::list),
        ),
        Route::new(
            Method::GET,
            VERIFICATION_SCHEDULE,
            role(Viewer),
            handler!(verifications::schedule),
        ),
        Route::new(
            Method::PUT,
            VERIFICATION_SCHEDULE,
            role(Operator),
            handler!(verifications::set_schedule),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::DELETE,
            VERIFICATION_SCHEDULE,
            role(Operator),
            handler!(verifications::end_schedule),
        ),
        Route::new(
            Method::GET,
            ARCHIVE_SCHEDULE,
            role(Viewer),
            handler!(archives::schedule),
        ),
        Route::new(
            Method::PUT,
            ARCHIVE_SCHEDULE,
            role(Admin),
            handler!(archives::set_schedule),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::DELETE,
            ARCHIVE_SCHEDULE,
            role(Admin),
            handler!(archives::end_schedule),
        ),
        Route::new(
            Method::GET,
            OPERATIONS,
            role(Viewer),
            handler!(operations::list),
        )
        .when_deleted(),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/operations/{operation}",
            role(Viewer),
            handler!(operations::show),
        )
        .when_deleted(),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/operations/{operation}/cancel",
            role(Operator),
            handler!(operations::cancel),
        ),
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/operations/{operation}/events",
            role(Viewer),
            handler!(operations::events),
        )
        .when_deleted(),
    ]
    .into_iter()
    .chain(alias_routes())
    .chain(hrana_routes())
    .collect()
}

/// What is known elsewhere under other names.
fn alias_routes() -> Vec<Route> {
    let role = Access::Role;
    vec![
        Route::new(
            Method::GET,
            "/v1/namespaces/{ns}/databases/{db}/time_travel/bookmark",
            role(Viewer),
            handler!(aliases::bookmark),
        )
        .reshaped(aliases::as_d1),
        Route::new(
            Method::POST,
            "/v1/namespaces/{ns}/databases/{db}/time_travel/restore",
            role(Admin),
            handler!(aliases::restore),
        )
        .body(BodyKind::Json)
        .conditional()
        .reshaped(aliases::as_d1),
        // What sqld calls a namespace is a database of the credential's namespace.
        Route::new(
            Method::POST,
            "/v1/namespaces/{db}/fork/{to}",
            role(Admin),
            handler!(aliases::fork),
        )
        .body(BodyKind::Json)
        .reshaped(aliases::as_sqld),
    ]
}

/// The paths of Hrana: below namespace and database, below the database alone or `dev`, and bare.
fn hrana_routes() -> Vec<Route> {
    let probes = [
        "/v2",
        "/v3",
        "/{db}/v2",
        "/{db}/v3",
        "/dev/{db}/v2",
        "/dev/{db}/v3",
        "/{ns}/{db}/v2",
        "/{ns}/{db}/v3",
    ];
    let pipelines = [
        "/v2/pipeline",
        "/v3/pipeline",
        "/{db}/v2/pipeline",
        "/{db}/v3/pipeline",
        "/dev/{db}/v2/pipeline",
        "/dev/{db}/v3/pipeline",
        "/{ns}/{db}/v2/pipeline",
        "/{ns}/{db}/v3/pipeline",
    ];
    let cursors = [
        "/v3/cursor",
        "/{db}/v3/cursor",
        "/dev/{db}/v3/cursor",
        "/{ns}/{db}/v3/cursor",
    ];
    let post = |path, handler| {
        Route::new(Method::POST, path, Access::Role(Analyst), handler)
            .body(BodyKind::Raw)
            .hrana()
    };
    let probe =
        |path| Route::new(Method::GET, path, Access::Public, handler!(hrana::version)).hrana();
    let probes = probes.into_iter().map(probe);
    let pipelines = pipelines
        .into_iter()
        .map(|path| post(path, handler!(hrana::pipeline)));
    let cursors = cursors
        .into_iter()
        .map(|path| post(path, handler!(hrana::cursor)));
    probes.chain(pipelines).chain(cursors).collect()
}

/// One line of what is served, for those who check it from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The HTTP method.
    pub method: String,
    /// The path with its placeholders.
    pub path: &'static str,
    /// The least role, `server`, or nothing for a public path.
    pub required: Option<&'static str>,
    /// Whether it takes a JSON body.
    pub takes_json: bool,
}

/// Everything that is served, but for Hrana, whose clients bring its specification along.
pub fn surface() -> Vec<Served> {
    served(|route| !route.hrana)
}

/// What is served for clients that speak Hrana.
pub fn hrana_surface() -> Vec<Served> {
    served(|route| route.hrana)
}

fn served(which: impl Fn(&Route) -> bool) -> Vec<Served> {
    let required = |access| match access {
        Access::Public => None,
        Access::Role(role) => Some(role.as_str()),
        Access::Server => Some("server"),
    };
    let line = |route: Route| Served {
        method: route.method.to_string(),
        path: route.path,
        required: required(route.access),
        takes_json: route.body == BodyKind::Json,
    };
    table().into_iter().filter(which).map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::table;
    use crate::http::router::defects;

    #[test]
    fn every_route_declares_who_may_call_it_and_stays_in_its_namespace() {
        for route in table() {
            assert!(
                defects(&route).is_empty(),
                "{} {}: {:?}",
                route.method,
                route.path,
                defects(&route)
            );
        }
    }

    #[test]
    fn no_method_of_a_path_is_listed_twice() {
        let routes = table();
        let distinct: BTreeSet<_> = routes
            .iter()
            .map(|route| (route.method.to_string(), route.path))
            .collect();
        assert_eq!(distinct.len(), routes.len());
    }
}
