//! Snapshots over HTTP: names for commits, by bookmark, by time, by default the newest.

use reqwest::Method;
use serde_json::json;

use crate::world::{World, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_names_a_commit_and_an_export_finds_it() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    let first = world.run(&orders, "insert into t values(1)").await;
    let bookmark = first.body["bookmark"].as_str().expect("a bookmark");
    world.run(&orders, "insert into t values(2)").await;
    let path = format!("{orders}/snapshots");

    let body = json!({ "name": "before two", "note": "n", "bookmark": bookmark, "pin": true });
    let made = world.post(&path, body).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["bookmark"], bookmark);
    assert_eq!(made.body["state"], "restorable");
    assert_eq!(made.body["durable"], true);
    assert_eq!(made.body["pinned"], true);
    assert!(made.body["expires_at"].is_null(), "{made:?}");
    assert!(
        made.body["database_size"].as_u64() >= Some(8192),
        "{made:?}"
    );
    let newest = world.post(&path, json!({ "name": "newest" })).await;
    assert_eq!(newest.status, 201, "{newest:?}");
    assert!(
        newest.body["expires_at"].is_string(),
        "it dies with the window"
    );

    let shown = world.get(&format!("{path}/before%20two")).await;
    assert_eq!((shown.status, &shown.body), (200, &made.body));
    let page = world.get(&format!("{path}?limit=1")).await;
    assert_eq!(page.body["items"][0]["name"], "before two");
    let cursor = page.body["next_cursor"].as_str().expect("a second page");
    let page = world.get(&format!("{path}?limit=1&cursor={cursor}")).await;
    assert_eq!(page.body["items"][0]["name"], "newest");
    assert!(page.body["next_cursor"].is_null());

    let export = world.ask(
        Method::GET,
        &format!("{orders}/export?snapshot=before%20two"),
    );
    let export = export.send().await.expect("an answer");
    assert_eq!(export.headers()["db-bookmark"], bookmark);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_snapshot_is_said_by_its_code() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    let run = world.run(&orders, "create table t(a)").await;
    let bookmark = run.body["bookmark"].as_str().expect("a bookmark");
    let path = format!("{orders}/snapshots");
    let made = world.post(&path, json!({ "name": "a", "pin": true })).await;
    assert_eq!(made.status, 201, "{made:?}");

    let foreign = bookmark.replace(&bookmark[bookmark.len() - 4..], "0000");
    let future = format!("{}-00000000000000ff-{}", &bookmark[..8], &bookmark[26..]);
    for (body, status, code) in [
        (json!({ "name": "a" }), 409, "name-taken"),
        (json!({ "name": "" }), 422, "name-invalid"),
        (json!({ "name": "x/y" }), 422, "name-invalid"),
        (json!({ "name": "x".repeat(81) }), 422, "name-invalid"),
        (json!({}), 400, "invalid-request"),
        (json!({ "name": "b", "nope": 1 }), 400, "unknown-field"),
        (
            json!({ "name": "b", "expires_at": 1 }),
            400,
            "invalid-request",
        ),
        (
            json!({ "name": "b", "note": "x".repeat(513) }),
            400,
            "invalid-request",
        ),
        (
            json!({ "name": "b", "bookmark": "x" }),
            422,
            "bookmark-malformed",
        ),
        (
            json!({ "name": "b", "bookmark": foreign }),
            422,
            "bookmark-foreign",
        ),
        (
            json!({ "name": "b", "bookmark": future }),
            422,
            "bookmark-in-future",
        ),
        (
            json!({ "name": "b", "timestamp": 1 }),
            410,
            "bookmark-expired",
        ),
        (
            json!({ "name": "b", "bookmark": bookmark, "timestamp": 1 }),
            400,
            "invalid-request",
        ),
    ] {
        let got = world.post(&path, body.clone()).await;
        assert_eq!((got.status, got.code()), (status, code), "{body}: {got:?}");
    }
    let got = world.get(&format!("{path}/none")).await;
    assert_eq!((got.status, got.code()), (404, "snapshot-not-found"));
    let got = world.get(&format!("{orders}/export?snapshot=none")).await;
    assert_eq!((got.status, got.code()), (404, "snapshot-not-found"));
    let delete = |name: &str| world.ask(Method::DELETE, &format!("{path}/{name}"));
    let got = read(delete("none")).await;
    assert_eq!((got.status, got.code()), (404, "snapshot-not-found"));
    let got = read(delete("a")).await;
    assert_eq!((got.status, got.code()), (409, "snapshot-pinned"));
    let got = read(delete("a?unpin=true")).await;
    assert_eq!(got.status, 204, "{got:?}");
    let got = world.get(&format!("{path}/a")).await;
    assert_eq!((got.status, got.code()), (404, "snapshot-not-found"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_has_room_for_so_many_snapshots_and_says_how_many() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    let path = format!("{orders}/snapshots");
    let mut made = 0;
    let refused = loop {
        let body = json!({ "name": format!("s{made}"), "note": "n".repeat(500), "pin": true });
        let got = world.post(&path, body).await;
        if got.status != 201 {
            break got;
        }
        made += 1;
        assert!(made < 1_000, "there is a bound");
    };
    assert_eq!((refused.status, refused.code()), (507, "quota-exceeded"));
    assert!(refused.body["limit"].is_u64(), "{refused:?}");
    assert!(refused.body["used"].is_u64(), "{refused:?}");
    // Short ones are bounded by number.
    world.run(&orders, "create table t(a)").await;
    let got = read(world.ask(Method::DELETE, &format!("{path}/s0?unpin=true"))).await;
    assert_eq!(got.status, 204);
    let got = world.post(&path, json!({ "name": "again" })).await;
    assert_eq!(got.status, 201, "a deleted one makes room: {got:?}");
    world.stop().await;
}
