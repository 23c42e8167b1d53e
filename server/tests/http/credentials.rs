//! Tokens: made with bounds, shown once, rotated with overlap, ended at once; and who guesses too often.

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_server::config::Preset;
use tidelog_server::settings::Limits;

use crate::world::{Got, World, read};

const TOKENS: &str = "/v1/namespaces/default/tokens";
const DATABASES: &str = "/v1/namespaces/default/databases";

async fn as_(world: &World, secret: &str, path: &str) -> Got {
    let url = format!("{}{path}", world.base);
    read(world.client.get(url).bearer_auth(secret)).await
}

fn text(document: &Json, name: &str) -> String {
    document[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {document}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_the_prefix_of_its_kind_and_a_display_of_eleven() {
    let world = World::start().await;
    for kind in ["live", "test", "cli"] {
        let made = world
            .post(TOKENS, json!({ "scopes": ["read"], "kind": kind }))
            .await;
        let (secret, display) = (text(&made.body, "token"), text(&made.body, "display"));
        assert!(secret.starts_with(&format!("tl_{kind}_")), "{secret}");
        assert_eq!(display.len(), 11);
        assert!(secret.starts_with(&display) && secret.len() >= 50);
        let shown = world
            .get(&format!("{TOKENS}/{}", text(&made.body, "id")))
            .await;
        assert_eq!(
            (shown.status, &shown.body["display"]),
            (200, &made.body["display"])
        );
        assert!(!shown.body.to_string().contains(&secret));
    }
    let got = world
        .post(TOKENS, json!({ "scopes": ["read"], "kind": "signed" }))
        .await;
    assert_eq!((got.status, got.code()), (400, "invalid-request"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_told_so() {
    let world = World::start().await;
    let body = json!({ "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z" });
    let secret = world.token(body).await;
    let got = as_(&world, &secret, DATABASES).await;
    assert_eq!((got.status, got.code()), (401, "token-expired"));
    assert_eq!(
        got.header("www-authenticate"),
        Some("Bearer realm=\"tidelog\"")
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_overlaps_and_then_the_old_one_ends() {
    let world = World::start().await;
    let made = world
        .post(TOKENS, json!({ "scopes": ["read"], "databases": ["a"] }))
        .await;
    let (old, id) = (text(&made.body, "token"), text(&made.body, "id"));
    let path = format!("{TOKENS}/{id}/rotate");
    let turned = world.post(&path, json!({ "overlap_seconds": 3600 })).await;
    assert_eq!(turned.status, 201, "{turned:?}");
    let new = text(&turned.body, "token");
    assert_ne!(old, new);
    assert_eq!(turned.body["databases"], json!(["a"]));
    for secret in [&old, &new] {
        assert_eq!(as_(&world, secret, DATABASES).await.status, 200);
    }
    let path = format!("{TOKENS}/{}/rotate", text(&turned.body, "id"));
    let last = world.post(&path, json!({ "overlap_seconds": 0 })).await;
    assert_eq!(as_(&world, &new, DATABASES).await.code(), "token-expired");
    assert_eq!(
        as_(&world, &text(&last.body, "token"), DATABASES)
            .await
            .status,
        200
    );
    let got = world.post(&path, json!({})).await;
    assert_eq!(
        (got.status, got.code()),
        (401, "token-expired"),
        "an ended token is not turned"
    );
    let got = world
        .post(&format!("{TOKENS}/tok_none/rotate"), json!({}))
        .await;
    assert_eq!(got.code(), "token-not-found");
    world.stop().await;
}

/// Goal: the time of the last use is shown. Method: insights write what waits, so nothing has to be slept for.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_of_a_token_is_kept_apart() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let made = world.post(TOKENS, json!({ "scopes": ["read"] })).await;
    let (secret, id) = (text(&made.body, "token"), text(&made.body, "id"));
    let path = format!("{TOKENS}/{id}");
    assert_eq!(world.get(&path).await.body["last_used_at"], Json::Null);
    assert_eq!(as_(&world, &secret, &database).await.status, 200);
    assert_eq!(world.get(&format!("{database}/insights")).await.status, 200);
    assert!(world.get(&path).await.body["last_used_at"].is_string());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_passes_on_no_more_than_it_has() {
    let world = World::start().await;
    let limited = world
        .token(json!({ "scopes": ["admin"], "allow_ddl": false, "databases": ["a"] }))
        .await;
    let url = format!("{}{TOKENS}", world.base);
    for (body, needed) in [
        (
            json!({ "scopes": ["admin"], "databases": ["a"], "allow_ddl": true }),
            "allow_ddl",
        ),
        (
            json!({ "scopes": ["read"] }),
            "databases outside its own list",
        ),
        (
            json!({ "scopes": ["read"], "databases": ["a", "b"] }),
            "databases outside its own list",
        ),
    ] {
        let got = read(world.client.post(&url).bearer_auth(&limited).json(&body)).await;
        assert_eq!(
            (got.status, got.code()),
            (403, "insufficient-permissions"),
            "{body}"
        );
        assert_eq!(got.body["required"], needed);
    }
    let body = json!({ "scopes": ["read"], "databases": ["a"] });
    let made = read(world.client.post(&url).bearer_auth(&limited).json(&body)).await;
    assert_eq!((made.status, &made.body["allow_ddl"]), (201, &json!(false)));
    let owner = world.get(TOKENS).await;
    let mut owner = owner.body["items"].as_array().expect("items").iter();
    let owner = owner
        .rfind(|token| token["role"] == "owner")
        .expect("an owner token");
    let path = format!("{TOKENS}/{}/rotate", text(owner, "id"));
    let admin = world.token(json!({ "scopes": ["admin"] })).await;
    let url = format!("{}{path}", world.base);
    let got = read(world.client.post(url).bearer_auth(admin).json(&json!({}))).await;
    assert_eq!(
        (got.status, &got.body["required"]),
        (403, &json!("owner")),
        "an admin takes over no owner"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_tokens_of_a_production_server_change_no_schema_unless_told() {
    let world = World::of(Preset::Production.config()).await;
    for (kind, asked, allowed) in [
        ("live", None, false),
        ("live", Some(true), true),
        ("test", None, true),
        ("cli", None, true),
    ] {
        let mut body = json!({ "scopes": ["write"], "kind": kind });
        if let Some(asked) = asked {
            body["allow_ddl"] = json!(asked);
        }
        let made = world.post(TOKENS, body).await;
        assert_eq!(made.body["allow_ddl"], json!(allowed), "{kind} {asked:?}");
    }
    world.stop().await;
}

/// Goal: guessing is bounded, and who is known is let in all the same. Method: more wrong tokens than a minute
/// allows from one address, then a known token and an unknown good one.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_are_throttled_and_known_ones_are_not() {
    let limits = Limits {
        auth_failures_per_minute: 5,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let fresh = world.token(json!({ "scopes": ["read"] })).await;
    let mut refused = Vec::new();
    for round in 0..12 {
        refused.push(as_(&world, &format!("tl_live_wrong{round}"), DATABASES).await);
    }
    assert_eq!(refused[0].code(), "unauthenticated");
    let last = refused.last().expect("twelve");
    assert_eq!((last.status, last.code()), (429, "rate-limited"));
    let wait: u64 = last
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("seconds");
    assert!((1..=120).contains(&wait), "{wait}");
    assert_eq!(world.get(DATABASES).await.status, 200, "the owner is known");
    assert_eq!(
        as_(&world, &fresh, DATABASES).await.status,
        429,
        "nobody has seen this one yet"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_of_a_member_ends_at_once() {
    let world = World::start().await;
    let member = "/v1/namespaces/default/members/ana";
    let put = read(
        world
            .ask(Method::PUT, member)
            .json(&json!({ "role": "operator" })),
    )
    .await;
    assert_eq!(put.status, 200, "{put:?}");
    let mut secrets = Vec::new();
    for _ in 0..3 {
        secrets.push(
            world
                .token(json!({ "scopes": ["write"], "principal": "ana" }))
                .await,
        );
    }
    let other = world.token(json!({ "scopes": ["write"] })).await;
    for secret in &secrets {
        assert_eq!(as_(&world, secret, DATABASES).await.status, 200);
    }
    let ended = read(world.ask(Method::POST, &format!("{member}/revoke"))).await;
    assert_eq!(
        (ended.status, &ended.body["tokens_revoked"]),
        (200, &json!(3)),
        "{ended:?}"
    );
    for secret in &secrets {
        let got = as_(&world, secret, DATABASES).await;
        assert_eq!((got.status, got.code()), (401, "token-revoked"));
    }
    assert_eq!(as_(&world, &other, DATABASES).await.status, 200);
    let got = world
        .post(TOKENS, json!({ "scopes": ["read"], "principal": "bob" }))
        .await;
    assert_eq!((got.status, got.code()), (404, "member-not-found"));
    world.stop().await;
}
