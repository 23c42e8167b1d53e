//! What every route refuses alike, provoked on every one: fields nobody knows, keys and bodies that are wrong, too
//! large or too slow, rates, maintenance, namespaces and databases that are not there.
//!
//! Each test goes through the whole surface and says which routes are excepted and why: one that is excepted in vain
//! fails it, too.

use std::time::Duration;

use reqwest::{Body, Method, RequestBuilder};
use serde_json::{Value as Json, json};
use tidelog_server::settings::Limits;
use tidelog_server::{Served, surface};

use crate::contract;
use crate::tenants::tenant;
use crate::world::{Got, World, fill, read};

/// A route and the tokens of those who may call it.
struct Caller<'a> {
    world: &'a World,
    owner: &'a str,
    namespace: &'a str,
    database: &'a str,
}

impl<'a> Caller<'a> {
    fn of(world: &'a World) -> Self {
        Self {
            world,
            owner: &world.owner,
            namespace: "default",
            database: "orders",
        }
    }

    /// The route without a body or a key.
    fn bare(&self, served: &Served, more: &str) -> RequestBuilder {
        let path = fill(served.path, self.namespace, self.database);
        let method: Method = served.method.parse().expect("a method");
        let url = format!("{}{path}{more}", self.world.base);
        let request = self.world.client.request(method, url);
        match served.required {
            None => request,
            Some("server") => request.bearer_auth(&self.world.server),
            Some(_) => request.bearer_auth(self.owner),
        }
    }

    /// The route as its document describes it, with the body of its example.
    fn call(&self, served: &Served, more: &str) -> RequestBuilder {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut request = self.bare(served, more);
        if served.method == "POST" {
            let key = format!("sweep-{}", NEXT.fetch_add(1, Ordering::Relaxed));
            request = request.header("idempotency-key", key);
        }
        match contract::example(served) {
            Some(example) => request.json(&example),
            None => request,
        }
    }
}

/// Holds the answer of every route of `routes` against the one that is due; `excepted` answer something else.
fn all_are(answers: Vec<(Served, Got)>, due: (u16, &str), excepted: &[&str]) {
    let mut wrong = Vec::new();
    for (served, got) in answers {
        let name = format!("{} {}", served.method, served.path);
        let is_due = (got.status, got.body["code"].as_str()) == (due.0, Some(due.1));
        if is_due == excepted.contains(&&*name) {
            let code = &got.body["code"];
            wrong.push(format!(
                "{name}: {} {code} {}",
                got.status, got.body["detail"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{due:?} is due:\n{}", wrong.join("\n"));
}

async fn answers(
    routes: impl IntoIterator<Item = Served>,
    ask: impl Fn(&Served) -> RequestBuilder,
) -> Vec<(Served, Got)> {
    let mut found = Vec::new();
    for served in routes {
        let got = read(ask(&served)).await;
        found.push((served, got));
    }
    found
}

fn known() -> impl Iterator<Item = Served> {
    surface()
        .into_iter()
        .filter(|served| served.required.is_some())
}

fn of_databases() -> impl Iterator<Item = Served> {
    surface()
        .into_iter()
        .filter(|served| served.path.contains("{db}"))
}

/// Goal: no field, key or body is silently ignored by any route.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_what_it_does_not_take() {
    let limits = Limits {
        body_bytes_max: 2_000,
        import_bytes_max: 2_000,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    world.database("orders").await;
    let caller = Caller::of(&world);
    let twice = |served: &Served| {
        let key = || caller.bare(served, "").header("idempotency-key", "a");
        key().header("idempotency-key", "b")
    };
    all_are(
        answers(surface(), twice).await,
        (400, "invalid-request"),
        &[],
    );
    let large = |served: &Served| {
        let sent = caller.call(served, "");
        sent.header("content-type", "application/json")
            .body(" ".repeat(3_000))
    };
    all_are(
        answers(surface(), large).await,
        (413, "body-too-large"),
        &[],
    );
    let json = || surface().into_iter().filter(|served| served.takes_json);
    let text = |served: &Served| {
        let sent = caller.bare(served, "");
        sent.header("content-type", "text/plain").body("{}")
    };
    all_are(
        answers(json(), text).await,
        (415, "unsupported-media-type"),
        &[],
    );
    let unknown = |served: &Served| {
        let needs_time = ["/bookmarks", "/time_travel/restore"];
        if needs_time.iter().any(|end| served.path.ends_with(end)) {
            return caller.call(served, "?timestamp=1000&nonsense=1");
        }
        caller.call(served, "?nonsense=1")
    };
    let all = answers(surface(), unknown).await;
    all_are(all, (400, "unknown-field"), &[]);
    world.stop().await;
}

/// Goal: a body that stands still is let go by every route.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_lets_a_body_that_stands_still_go() {
    let limits = Limits {
        body_deadline: Duration::from_millis(300),
        import_pause: Duration::from_millis(300),
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let caller = Caller::of(&world);
    let still = |served: &Served| {
        let pending = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        caller.bare(served, "").body(Body::wrap_stream(pending))
    };
    // A client sends none with a GET.
    let changing = surface().into_iter();
    let changing = changing.filter(|served| served.method != "GET");
    let asked = changing.map(async |served| {
        let got = read(still(&served)).await;
        (served, got)
    });
    let all = futures::future::join_all(asked).await;
    all_are(all, (408, "request-timeout"), &[]);
    world.stop().await;
}

/// Goal: rates hold for every route that needs a token.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_keeps_to_the_rate() {
    let limits = Limits {
        requests_per_minute_token: 1,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let caller = Caller::of(&world);
    for (token, path) in [
        (&world.owner, "/v1/namespaces/default/databases"),
        (&world.server, "/v1/maintenance"),
    ] {
        let request = world.client.get(format!("{}{path}", world.base));
        assert_eq!(read(request.bearer_auth(token)).await.status, 200);
    }
    let ask = |served: &Served| caller.call(served, "");
    all_are(answers(known(), ask).await, (429, "rate-limited"), &[]);
    world.stop().await;
}

/// Goal: maintenance pauses every call that changes something, but those that end it or take rights away.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_changes_something_pauses_for_maintenance() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let put = world.ask(Method::PUT, "/v1/namespaces/default/maintenance");
    let on = read(put.json(&json!({ "enabled": true }))).await;
    assert_eq!(on.status, 200, "{on:?}");
    let caller = Caller::of(&world);
    let changing = || {
        let excepted = ["/maintenance", "/batch", "/query"];
        known().filter(move |served| {
            let tenants = served.path.starts_with("/v1/namespaces/");
            let server = served.required == Some("server");
            let other = excepted.iter().any(|end| served.path.ends_with(end));
            served.method != "GET" && tenants && !server && !other
        })
    };
    let excepted = [
        "DELETE /v1/namespaces/{ns}/tokens/{token}",
        "DELETE /v1/namespaces/{ns}/members/{principal}",
        "POST /v1/namespaces/{ns}/members/{principal}/revoke",
    ];
    let ask = |served: &Served| caller.call(served, "");
    all_are(
        answers(changing(), ask).await,
        (503, "maintenance"),
        &excepted,
    );
    // Of SQL the statement counts.
    let sql = || known().filter(|served| served.path.ends_with("/query"));
    let write = |served: &Served| {
        caller
            .bare(served, "")
            .json(&json!({ "sql": "delete from t" }))
    };
    all_are(answers(sql(), write).await, (503, "maintenance"), &[]);
    let batches = || known().filter(|served| served.path.ends_with("/batch"));
    let statements = json!({ "statements": [{ "sql": "delete from t" }] });
    let write = |served: &Served| caller.bare(served, "").json(&statements);
    all_are(answers(batches(), write).await, (503, "maintenance"), &[]);
    world.stop().await;
}

/// Goal: in a deleted namespace nothing is served but what shows its operations.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_closed_in_a_deleted_namespace() {
    let world = World::start().await;
    let owner = tenant(&world, "leaving").await;
    let gone = world
        .client
        .delete(format!("{}/v1/namespaces/leaving", world.base));
    let gone = read(gone.bearer_auth(&owner)).await;
    assert!((200..300).contains(&gone.status), "{gone:?}");
    let caller = Caller {
        owner: &owner,
        namespace: "leaving",
        ..Caller::of(&world)
    };
    // What shows it, its operations, and brings it back.
    let open = [
        "/v1/namespaces/{ns}",
        "/v1/namespaces/{ns}/undelete",
        "/v1/namespaces/{ns}/operations",
        "/v1/namespaces/{ns}/operations/{operation}",
        "/v1/namespaces/{ns}/operations/{operation}/events",
    ];
    let tenants = || {
        let tenants = known().filter(|served| served.required != Some("server"));
        tenants.filter(move |served| !open.contains(&served.path))
    };
    let ask = |served: &Served| caller.call(served, "");
    all_are(
        answers(tenants(), ask).await,
        (410, "namespace-deleted"),
        &[],
    );
    world.stop().await;
}

/// Goal: every route of a database says that there is none, and none of them makes one.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_a_database_says_that_there_is_none() {
    let world = World::start().await;
    let caller = Caller {
        database: "none",
        ..Caller::of(&world)
    };
    let ask = |served: &Served| caller.call(served, "");
    // An import makes it, if there is anything to import; two ask for the time first.
    let excepted = [
        "POST /v1/namespaces/{ns}/databases/{db}/import",
        "GET /v1/namespaces/{ns}/databases/{db}/bookmarks",
        "POST /v1/namespaces/{ns}/databases/{db}/time_travel/restore",
    ];
    let all = answers(of_databases(), ask).await;
    all_are(all, (404, "database-not-found"), &excepted);
    let listed: Json = world.get("/v1/namespaces/default/databases").await.body;
    assert_eq!(listed["items"], json!([]));
    world.stop().await;
}

/// Goal: statements are refused for the same reasons and in the same words by every route that runs them, its short name
/// and the batch among them. Method: small limits, and each reason on each route.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_statements_refuses_them_alike() {
    let limits = Limits {
        sql_bytes_max: 1_000,
        params_max: 2,
        rows_max: 5,
        query_deadline: Duration::from_millis(500),
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let patched = async |patch: Json| {
        let patched = read(world.ask(Method::PATCH, &database).json(&patch)).await;
        assert_eq!(patched.status, 200, "{patched:?}");
    };
    let long = format!("select '{}'", "x".repeat(1_000));
    let rows =
        "with recursive c(x) as (select 1 union all select x + 1 from c limit 9) select x from c";
    let endless =
        "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c";
    let large = "insert into t values(randomblob(1000000))";
    let caller = Caller::of(&world);
    for (patch, sql, params, status, code) in [
        (json!({}), "selec", 0, 422, "sql-error"),
        (json!({}), "begin", 0, 422, "transaction-control"),
        (json!({}), &*long, 0, 413, "sql-too-long"),
        (json!({}), "select ?, ?, ?", 3, 422, "too-many-parameters"),
        (json!({}), rows, 0, 413, "result-too-large"),
        (json!({}), endless, 0, 504, "query-timeout"),
        (
            json!({ "size_limit": 100_000 }),
            large,
            0,
            507,
            "quota-exceeded",
        ),
        (
            json!({ "block_writes": true }),
            "delete from t",
            0,
            403,
            "database-read-only",
        ),
        (
            json!({ "block_reads": true }),
            "select 1",
            0,
            403,
            "database-blocked",
        ),
    ] {
        if patch != json!({}) {
            patched(patch).await;
        }
        let statement = json!({ "sql": sql, "params": vec![1; params] });
        let batch = json!({ "statements": [statement] });
        let ask = |served: &Served| {
            let batched = served.path.ends_with("/batch");
            caller
                .bare(served, "")
                .json(if batched { &batch } else { &statement })
        };
        let routes = known().filter(|served| {
            ["/query", "/batch"]
                .iter()
                .any(|end| served.path.ends_with(end))
        });
        all_are(answers(routes, ask).await, (status, code), &[]);
    }
    world.stop().await;
}

/// Goal: a token for some databases opens no other by any route.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_a_database_is_closed_to_tokens_for_others() {
    let world = World::start().await;
    world.database("orders").await;
    let other = json!({ "scopes": ["admin"], "databases": ["other"] });
    let other = world.token(other).await;
    let caller = Caller {
        owner: &other,
        ..Caller::of(&world)
    };
    let ask = |served: &Served| caller.call(served, "");
    let all = answers(of_databases(), ask).await;
    all_are(all, (403, "insufficient-permissions"), &[]);
    world.stop().await;
}

/// Goal: a condition that is wrong or does not hold stops every call that takes one.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_with_a_condition_keeps_to_it() {
    let world = World::start().await;
    world.database("orders").await;
    let caller = Caller::of(&world);
    let conditional = [
        "PATCH /v1/namespaces/{ns}/databases/{db}",
        "DELETE /v1/namespaces/{ns}/databases/{db}",
        "POST /v1/namespaces/{ns}/databases/{db}/import",
        "POST /v1/namespaces/{ns}/databases/{db}/restores",
        "POST /v1/namespaces/{ns}/databases/{db}/time_travel/restore",
    ];
    let elsewhere = "\"00000001-0000000000000009-0123456789abcdef0123456789abcdef\"";
    for (bookmark, status, code) in [
        ("\"now\"", 422, "bookmark-malformed"),
        (elsewhere, 412, "database-moved"),
    ] {
        let routes = surface().into_iter();
        let routes = routes
            .filter(|served| conditional.contains(&&*format!("{} {}", served.method, served.path)));
        let ask = |served: &Served| caller.call(served, "").header("if-match", bookmark);
        all_are(answers(routes, ask).await, (status, code), &[]);
    }
    // Elsewhere it is refused, not ignored.
    let ask = |served: &Served| caller.call(served, "").header("if-match", elsewhere);
    let others = surface()
        .into_iter()
        .filter(|served| !conditional.contains(&&*format!("{} {}", served.method, served.path)));
    all_are(answers(others, ask).await, (400, "invalid-request"), &[]);
    world.stop().await;
}

/// Goal: every route of a thing that is not there says which thing that is.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_a_thing_says_that_there_is_none() {
    let world = World::start().await;
    world.database("orders").await;
    let caller = Caller::of(&world);
    for (placeholder, code) in [
        ("{archive}", "archive-not-found"),
        ("{restore}", "restore-not-found"),
        ("{snapshot}", "snapshot-not-found"),
        ("{token}", "token-not-found"),
        ("{operation}", "operation-not-found"),
        ("{principal}", "member-not-found"),
    ] {
        let routes = known().filter(|served| served.path.contains(placeholder));
        // A PUT makes it.
        let routes = routes.filter(|served| served.method != "PUT");
        let ask = |served: &Served| caller.call(served, "");
        all_are(answers(routes, ask).await, (404, code), &[]);
    }
    world.stop().await;
}
