//! Limits: rates with their headers, requests at once, sizes, blocked databases.

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_server::config::Preset;
use tidelog_server::settings::Limits;

use crate::world::{Got, World, read, read_refused};

const DATABASES: &str = "/v1/namespaces/default/databases";

async fn patch(world: &World, database: &str, body: Json) -> Got {
    read(world.ask(Method::PATCH, database).json(&body)).await
}

async fn query(world: &World, database: &str, sql: &str) -> Got {
    world
        .post(&format!("{database}/query"), json!({ "sql": sql }))
        .await
}

fn number(got: &Got, name: &str) -> u64 {
    let text = got
        .header(name)
        .unwrap_or_else(|| panic!("{name} in {got:?}"));
    text.parse().expect("a number")
}

/// Goal: a token and its tenant both have a rate, told in headers before and when it is used up.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_counts_down_in_headers_and_then_refuses() {
    let limits = Limits {
        requests_per_minute_namespace: 12,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let made = world
        .post(
            "/v1/namespaces/default/tokens",
            json!({ "scopes": ["read"], "rate_per_minute": 4 }),
        )
        .await;
    assert_eq!(made.body["rate_per_minute"], 4);
    let secret = made.body["token"].as_str().expect("a secret");
    let url = format!("{}{DATABASES}", world.base);
    let mut last = None;
    for left in [3, 2, 1, 0] {
        let got = read(world.client.get(&url).bearer_auth(secret)).await;
        assert_eq!(got.status, 200, "{got:?}");
        assert_eq!(
            (
                number(&got, "ratelimit-limit"),
                number(&got, "ratelimit-remaining")
            ),
            (4, left)
        );
        assert_eq!(number(&got, "x-ratelimit-remaining"), left);
        assert!(number(&got, "ratelimit-reset") <= 60);
        assert!(number(&got, "x-ratelimit-reset") > 1_600_000_000);
        last = Some(got);
    }
    let _ = last;
    let got = read(world.client.get(&url).bearer_auth(secret)).await;
    assert_eq!((got.status, got.code()), (429, "rate-limited"));
    assert!((1..=120).contains(&number(&got, "retry-after")));
    assert_eq!(number(&got, "ratelimit-remaining"), 0);
    // The tenant's own: the owner has no rate but shares it.
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(world.get(DATABASES).await.status);
    }
    assert!(
        statuses.contains(&200) && statuses.ends_with(&[429]),
        "{statuses:?}"
    );
    let other = read(
        world
            .client
            .get(format!("{}/v1/audit", world.base))
            .bearer_auth(&world.server),
    )
    .await;
    assert_eq!(other.status, 200, "another tenant is not touched");
    world.stop().await;
}

/// Goal: a member has one rate, however many tokens they make themselves, and a successor begins no new one. Method: two
/// tokens of a member and the successor of one; another member's token has a rate of its own.
#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_of_a_member_share_one_rate() {
    let limits = Limits {
        requests_per_minute_token: 30,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    for name in ["ana", "bob"] {
        let path = format!("/v1/namespaces/default/members/{name}");
        let put = world.ask(Method::PUT, &path);
        let put = read(put.json(&json!({ "role": "viewer" }))).await;
        assert_eq!(put.status, 200, "{put:?}");
    }
    let make = |name: &'static str| {
        let body = json!({ "scopes": ["read"], "principal": name });
        world.post("/v1/namespaces/default/tokens", body)
    };
    let (one, two, other) = (make("ana").await, make("ana").await, make("bob").await);
    let secret = |made: &Got| made.body["token"].as_str().expect("a secret").to_owned();
    let url = format!("{}{DATABASES}", world.base);
    let ask = |secret: String| read(world.client.get(&url).bearer_auth(secret));
    for left in [29, 28, 27] {
        let got = ask(secret(&one)).await;
        assert_eq!(number(&got, "ratelimit-remaining"), left);
    }
    let got = ask(secret(&two)).await;
    assert_eq!(number(&got, "ratelimit-remaining"), 26, "the same window");
    let id = one.body["id"].as_str().expect("an id");
    let path = format!("/v1/namespaces/default/tokens/{id}/rotate");
    let next = world.post(&path, json!({})).await;
    let got = ask(secret(&next)).await;
    assert_eq!(number(&got, "ratelimit-remaining"), 25, "nor a fresh one");
    let got = ask(secret(&other)).await;
    assert_eq!(number(&got, "ratelimit-remaining"), 29);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rates_no_header_is_sent() {
    let world = World::start().await;
    let got = world.get(DATABASES).await;
    assert!(got.header("ratelimit-limit").is_none());
    world.stop().await;
}

/// Goal: one token cannot have every worker. Method: slow reads up to the bound, and as many more. On a busy machine the
/// first may be over when the last are asked for: then again with slower ones.
#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_are_bounded_by_token() {
    let mut statuses = [0; 4];
    for seconds in [3, 15, 60] {
        let limits = Limits {
            in_flight_per_principal: 2,
            query_deadline: std::time::Duration::from_secs(seconds),
            ..Limits::default()
        };
        let world = World::with(limits).await;
        let database = world.database("orders").await;
        let slow =
            "with recursive c(x) as (select 1 union all select x+1 from c) select max(x) from c";
        let ask = || query(&world, &database, slow);
        let (a, b, c, d) = tokio::join!(ask(), ask(), ask(), ask());
        let all = [a, b, c, d];
        statuses = [0, 1, 2, 3].map(|at: usize| all[at].status);
        statuses.sort_unstable();
        let slow = all.into_iter().find(|got| got.status == 504);
        assert_eq!(slow.expect("one runs").code(), "query-timeout");
        assert_eq!(query(&world, &database, "select 1").await.status, 200);
        world.stop().await;
        if statuses == [429, 429, 504, 504] {
            return;
        }
    }
    panic!("{statuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_at_its_size_takes_what_does_not_grow_it() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    assert_eq!(
        patch(&world, &database, json!({ "size_limit": 65536 }))
            .await
            .status,
        200
    );
    let fill = "insert into t select randomblob(3000) from json_each('[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24]')";
    let got = query(&world, &database, fill).await;
    assert_eq!((got.status, got.code()), (507, "quota-exceeded"), "{got:?}");
    world.run(&database, "insert into t values(1)").await;
    world.run(&database, "delete from t").await;
    assert_eq!(
        patch(&world, &database, json!({ "size_limit": 1_000_000 }))
            .await
            .status,
        200
    );
    world.run(&database, fill).await;
    world.stop().await;
}

/// Goal: a history at its limit takes no write, says so with figures, still reads and rewinds, and takes writes again
/// once the limit is lifted.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_at_its_limit_takes_no_write() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let insert = async || {
        let call = world.ask(Method::POST, &format!("{database}/query"));
        let call = call.header("idempotency-key", "first");
        read(call.json(&json!({ "sql": "insert into t values(1)" }))).await
    };
    let first = insert().await;
    assert_eq!(first.status, 200, "{first:?}");
    let shown = world.get(&database).await;
    let used = shown.body["history_bytes"].as_u64().expect("bytes");
    assert!(used > 0, "{shown:?}");
    assert_eq!(shown.body["history_limit_bytes"], Json::Null);
    let limited = patch(&world, &database, json!({ "history_limit_bytes": used })).await;
    assert_eq!(limited.status, 200, "{limited:?}");
    assert_eq!(limited.body["history_limit_bytes"], used);
    let refused = query(&world, &database, "insert into t values(2)").await;
    assert_eq!((refused.status, refused.code()), (507, "quota-exceeded"));
    assert_eq!(refused.body["resource"], "history", "{refused:?}");
    assert_eq!(refused.body["limit"], used);
    assert!(refused.body["used"].as_u64() >= Some(used), "{refused:?}");
    let counted = query(&world, &database, "select count(*) from t").await;
    assert_eq!(counted.body["rows"][0][0], 1, "{counted:?}");
    // Whoever asks again hears what was done, and not that there is no room to do it.
    assert_eq!(insert().await.status, 200);
    let export = world.ask(Method::GET, &format!("{database}/export"));
    let file = export.send().await.expect("sent").bytes().await;
    let file = file.expect("a file").to_vec();
    let import = world.ask_keyed(&format!("{database}/import?replace=true"));
    let refused = read(import.body(file)).await;
    assert_eq!((refused.status, refused.code()), (507, "quota-exceeded"));
    let begin = json!({ "requests": [{ "type": "execute", "stmt": { "sql": "insert into t values(2)" } }] });
    let stream = world.post("/default/orders/v2/pipeline", begin).await;
    assert_eq!(stream.body["results"][0]["type"], "error", "{stream:?}");
    let to = json!({ "target": { "bookmark": first.body["bookmark"] } });
    let rewound = world.keyed(&format!("{database}/restores"), to).await;
    assert!(matches!(rewound.status, 200 | 202), "{rewound:?}");
    for (value, status) in [(json!("much"), 400), (json!(-1), 400), (Json::Null, 200)] {
        let body = json!({ "history_limit_bytes": value });
        assert_eq!(patch(&world, &database, body).await.status, status);
    }
    world.run(&database, "insert into t values(2)").await;
    world.stop().await;
}

/// Goal: foreign keys are enforced where a database says so, by every way to write.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_are_enforced_as_the_database_says() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world
        .run(&database, "create table p(id integer primary key)")
        .await;
    world
        .run(&database, "create table c(p integer references p)")
        .await;
    let orphan = "insert into c values(7)";
    let of = async |on: bool| {
        let set = patch(&world, &database, json!({ "foreign_keys": on })).await;
        assert_eq!((set.status, &set.body["foreign_keys"]), (200, &json!(on)));
        let read = query(&world, &database, "pragma foreign_keys").await;
        assert_eq!(read.body["rows"][0][0], json!(i32::from(on)), "{read:?}");
        let status = if on { 422 } else { 200 };
        let got = query(&world, &database, orphan).await;
        assert_eq!(got.status, status, "{got:?}");
        let batch = json!({ "statements": [{ "sql": orphan }, { "sql": "select 1" }] });
        let got = world.post(&format!("{database}/batch"), batch).await;
        assert_eq!(got.status, status, "{got:?}");
        let step = json!({ "requests": [{ "type": "execute", "stmt": { "sql": orphan } }] });
        let got = world.post("/default/orders/v2/pipeline", step).await;
        let outcome = if on { "error" } else { "ok" };
        assert_eq!(got.body["results"][0]["type"], outcome, "{got:?}");
    };
    of(true).await;
    of(false).await;
    of(true).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_bounded_where_the_configuration_says_so() {
    let mut config = Preset::Development.config();
    config.limits.tables_max = 2;
    let world = World::of(config).await;
    let database = world.database("orders").await;
    world
        .run(
            &database,
            "create table a(x integer primary key autoincrement)",
        )
        .await;
    world.run(&database, "create table b(x)").await;
    let got = query(&world, &database, "create table c(x)").await;
    assert_eq!(
        (got.status, got.code(), &got.body["limit"]),
        (507, "quota-exceeded", &json!(2))
    );
    let keyed = world
        .ask(Method::POST, &format!("{database}/query"))
        .header("idempotency-key", "k");
    let keyed = read(keyed.json(&json!({ "sql": "insert into a(x) values(null)" }))).await;
    assert_eq!(
        keyed.status, 200,
        "the engine's own tables do not count: {keyed:?}"
    );
    world.run(&database, "drop table b").await;
    world.run(&database, "create table c(x)").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_databases_refuse_reads_or_writes() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    patch(&world, &database, json!({ "block_writes": true })).await;
    assert_eq!(
        query(&world, &database, "select * from t").await.status,
        200
    );
    let got = query(&world, &database, "insert into t values(1)").await;
    assert_eq!((got.status, got.code()), (403, "database-read-only"));
    patch(
        &world,
        &database,
        json!({ "block_writes": false, "block_reads": true }),
    )
    .await;
    let got = query(&world, &database, "select * from t").await;
    assert_eq!((got.status, got.code()), (403, "database-blocked"));
    patch(&world, &database, json!({ "block_reads": false })).await;
    world.run(&database, "insert into t values(1)").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_database_is_not_deleted() {
    let world = World::start().await;
    let database = world.database("orders").await;
    patch(&world, &database, json!({ "delete_protection": true })).await;
    let got = read(world.ask(Method::DELETE, &database)).await;
    assert_eq!((got.status, got.code()), (409, "database-protected"));
    patch(&world, &database, json!({ "delete_protection": false })).await;
    assert_eq!(read(world.ask(Method::DELETE, &database)).await.status, 204);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_preset_are_the_ones_that_hold() {
    let world = World::of(Preset::Strict.config()).await;
    let database = world.database("orders").await;
    let long = format!("select '{}'", "x".repeat(10_000));
    let got = query(&world, &database, &long).await;
    assert_eq!(
        (got.status, got.code(), &got.body["limit"]),
        (413, "sql-too-long", &json!(10_000))
    );
    let body = json!({ "sql": "select 1", "params": ["x".repeat(1 << 20)] });
    let path = format!("{database}/query");
    let got = read_refused(|| world.ask(Method::POST, &path).json(&body)).await;
    assert_eq!((got.status, got.code()), (413, "body-too-large"));
    let rows =
        "with recursive c(x) as (select 1 union all select x+1 from c limit 10001) select x from c";
    assert_eq!(
        query(&world, &database, rows).await.code(),
        "result-too-large"
    );
    let got = world.get(DATABASES).await;
    assert_eq!(
        got.header("ratelimit-limit"),
        Some("100"),
        "the tightest of three"
    );
    world.stop().await;
}

/// Goal: texts are cut where SQLite cuts them, in strings, comments and triggers, not at every semicolon.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_one_statement_where_sqlite_says_so() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    for one in [
        "select ';'",
        "select 1 -- ; select 2",
        "select /* ; */ 1;",
        "create trigger r after insert on t begin delete from t where a = 1; delete from t where a = 2; end",
    ] {
        world.run(&database, one).await;
    }
    for two in ["select 1; select 2", "select ';'; delete from t"] {
        let got = query(&world, &database, two).await;
        assert_eq!((got.status, got.code()), (422, "sql-error"), "{two}");
    }
    world.stop().await;
}
