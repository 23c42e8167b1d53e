//! The edge: security headers, CORS, maintenance, the request deadline.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_engine::NewDatabase;
use tidelog_server::config::Preset;
use tidelog_server::settings::Limits;

use crate::world::{Got, World, read, read_as_is};

const DATABASES: &str = "/v1/namespaces/default/databases";

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_the_security_headers() {
    let world = World::start().await;
    for path in [
        "/healthz",
        "/nowhere",
        DATABASES,
        "/v1/namespaces/other/databases",
    ] {
        let got = world.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "strict-origin-when-cross-origin"),
            ("x-xss-protection", "1; mode=block"),
            (
                "strict-transport-security",
                "max-age=31536000; includeSubDomains; preload",
            ),
            (
                "permissions-policy",
                "geolocation=(), microphone=(), camera=()",
            ),
        ] {
            assert_eq!(got.header(name), Some(value), "{path} {name}");
        }
        assert!(
            got.header("content-security-policy")
                .is_some_and(|text| text.contains("default-src 'none'"))
        );
        assert!(
            got.header("x-request-id")
                .is_some_and(|id| id.starts_with("req_"))
        );
        let stored = (path != "/healthz").then_some("no-store");
        assert_eq!(got.header("cache-control"), stored, "{path}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_let_in_by_list_alone() {
    let mut config = Preset::Development.config();
    config.http.cors_origins = vec!["https://app.example.org".to_owned()];
    let world = World::of(config).await;
    let preflight = |origin: &'static str| {
        let request = world
            .client
            .request(Method::OPTIONS, format!("{}{DATABASES}", world.base));
        let request = request.header("origin", origin);
        read(request.header("access-control-request-method", "POST"))
    };
    let good = preflight("https://app.example.org").await;
    assert_eq!(good.status, 204);
    assert_eq!(
        good.header("access-control-allow-origin"),
        Some("https://app.example.org")
    );
    assert_eq!(good.header("access-control-max-age"), Some("86400"));
    assert!(
        good.header("access-control-allow-methods")
            .is_some_and(|all| all.contains("PATCH"))
    );
    assert_eq!(good.header("access-control-allow-credentials"), None);
    for origin in [
        "https://evil.example.org",
        "https://app.example.org.evil.com",
        "null",
    ] {
        let bad = preflight(origin).await;
        assert_eq!(bad.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(bad.header("access-control-allow-methods"), None, "{origin}");
    }
    let ask = world
        .ask(Method::GET, DATABASES)
        .header("origin", "https://app.example.org");
    let got = read(ask).await;
    assert_eq!(
        got.header("access-control-allow-origin"),
        Some("https://app.example.org")
    );
    assert_eq!(got.header("vary"), Some("origin"));
    let got = read(
        world
            .ask(Method::GET, DATABASES)
            .header("origin", "https://evil.example.org"),
    )
    .await;
    assert_eq!(
        (got.status, got.header("access-control-allow-origin")),
        (200, None)
    );
    world.stop().await;
}

async fn put(world: &World, token: &str, path: &str, body: Json) -> Got {
    let request = world.client.put(format!("{}{path}", world.base));
    read(request.bearer_auth(token).json(&body)).await
}

/// Goal: maintenance of a namespace and of the server refuses what changes anything and lets reads through.
#[tokio::test(flavor = "multi_thread")]
async fn maintenance_refuses_writes_and_lets_reads_through() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    for (path, token) in [
        ("/v1/namespaces/default/maintenance", &world.owner),
        ("/v1/maintenance", &world.server),
    ] {
        let on = put(
            &world,
            token,
            path,
            json!({ "enabled": true, "reason": "moving house" }),
        )
        .await;
        assert_eq!(
            (on.status, &on.body["enabled"]),
            (200, &json!(true)),
            "{on:?}"
        );
        assert!(on.body["started_at"].is_string());
        world.run(&database, "select * from t").await;
        let write = world
            .post(
                &format!("{database}/query"),
                json!({ "sql": "insert into t values(1)" }),
            )
            .await;
        assert_eq!((write.status, write.code()), (503, "maintenance"));
        assert!(write.header("retry-after").is_some());
        assert!(
            write.body["detail"]
                .as_str()
                .is_some_and(|text| text.contains("moving house"))
        );
        let made = world.post(DATABASES, json!({ "name": "more" })).await;
        assert_eq!((made.status, made.code()), (503, "maintenance"));
        assert_eq!(world.get(DATABASES).await.status, 200);
        let token_id = "/v1/namespaces/default/tokens/tok_none";
        let revoked = read(world.ask(Method::DELETE, token_id)).await;
        assert_eq!(
            revoked.code(),
            "token-not-found",
            "a leaked token can be ended meanwhile"
        );
        let off = put(&world, token, path, json!({ "enabled": false })).await;
        assert_eq!(off.body["enabled"], json!(false));
        world.run(&database, "insert into t values(1)").await;
    }
    let shown = world.get("/v1/namespaces/default/maintenance").await;
    assert_eq!(shown.body["enabled"], json!(false));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_answered_all_the_same() {
    let limits = Limits {
        request_deadline: Duration::from_millis(200),
        query_deadline: Duration::from_secs(6),
        ..Limits::default()
    };
    let world = World::with(limits).await;
    // Made without a request, which would have its deadline, too.
    let namespace = world.engine.namespace_by_name("default").await;
    let namespace = namespace.expect("the first start made it").id;
    let orders = NewDatabase::named("orders");
    let made = world.engine.database_create(namespace, orders).await;
    made.expect("a database");
    let slow = "with recursive c(x) as (select 1 union all select x+1 from c) select max(x) from c";
    let query = world.ask(Method::POST, &format!("{DATABASES}/orders/query"));
    let got = read_as_is(query.json(&json!({ "sql": slow }))).await;
    assert_eq!((got.status, got.code()), (504, "outcome-unknown"));
    world.stop().await;
}
