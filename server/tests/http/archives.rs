//! Archives over HTTP.

use std::io::Read as _;

use reqwest::Method;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::world::{Got, World, read};

async fn make(world: &World, database: &str, key: &str, body: serde_json::Value) -> Got {
    let request = world.ask(Method::POST, &format!("{database}/archives"));
    let request = request
        .header("idempotency-key", key)
        .header("prefer", "wait=30");
    read(request.json(&body)).await
}

async fn filled(world: &World) -> String {
    let database = world.database("orders").await;
    world
        .run(&database, "create table t(a integer primary key, b)")
        .await;
    let sql = "with recursive c(x) as (select 1 union all select x + 1 from c where x < 2000) \
               insert into t select x, hex(randomblob(50)) from c";
    world.run(&database, sql).await;
    database
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_made_listed_downloaded_in_ranges_and_restored() {
    let world = World::start().await;
    let database = filled(&world).await;
    let keyless = world.post(&format!("{database}/archives"), json!({})).await;
    assert_eq!(
        (keyless.status, keyless.code()),
        (400, "idempotency-key-required")
    );
    let made = make(&world, &database, "k1", json!({ "name": "nightly" })).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(made.body["operation"]["type"], "archive");
    let archive = &made.body["archive"];
    let id = archive["id"].as_str().expect("an id").to_owned();
    let again = make(&world, &database, "k1", json!({ "name": "nightly" })).await;
    assert_eq!(again.body["archive"]["id"], id.as_str());
    let other = make(&world, &database, "k1", json!({ "name": "other" })).await;
    assert_eq!(
        (other.status, other.code()),
        (422, "idempotency-key-reused")
    );
    let listed = world.get(&format!("{database}/archives")).await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed.body["items"][0]["rows"]["t"], 2000);
    let path = format!("{database}/archives/{id}/content");
    let whole = world
        .ask(Method::GET, &path)
        .send()
        .await
        .expect("an answer");
    assert_eq!(whole.status(), 200);
    let headers = whole.headers().clone();
    assert_eq!(headers["accept-ranges"], "bytes");
    let bytes = whole.bytes().await.expect("a body");
    let sum = hex(&Sha256::digest(&bytes));
    assert_eq!(headers["etag"], format!("\"{sum}\"").as_str());
    assert_eq!(headers["content-digest"], headers["repr-digest"]);
    for (range, part) in [
        ("bytes=0-9", &bytes[..10]),
        ("bytes=10-", &bytes[10..]),
        ("bytes=-7", &bytes[bytes.len() - 7..]),
    ] {
        let request = world.ask(Method::GET, &path).header("range", range);
        let got = request.send().await.expect("an answer");
        assert_eq!(got.status(), 206, "{range}");
        assert!(got.headers().contains_key("content-range"), "{range}");
        assert!(!got.headers().contains_key("content-digest"), "{range}");
        assert_eq!(got.headers()["repr-digest"], headers["repr-digest"]);
        assert_eq!(got.bytes().await.expect("a body"), part, "{range}");
    }
    let beyond = format!("bytes={}-", bytes.len());
    let got = read(world.ask(Method::GET, &path).header("range", beyond)).await;
    assert_eq!((got.status, got.code()), (416, "range-not-satisfiable"));
    let stale = world.ask(Method::GET, &path).header("range", "bytes=0-9");
    let stale = stale.header("if-range", "\"another\"").send().await;
    assert_eq!(stale.expect("an answer").status(), 200);
    let mut plain = Vec::new();
    let mut decoder = zstd::Decoder::new(&bytes[..]).expect("zstd");
    decoder.read_to_end(&mut plain).expect("unpack");
    assert_eq!(archive["sha256"], hex(&Sha256::digest(&plain)));
    assert_eq!(&plain[..15], b"SQLite format 3");
    let seeded = json!({ "name": "again", "seed": { "archive": id } });
    let restored = world.post("/v1/namespaces/default/databases", seeded).await;
    assert_eq!(restored.status, 201, "{restored:?}");
    let count = world
        .run(
            "/v1/namespaces/default/databases/again",
            "select count(*) from t",
        )
        .await;
    assert_eq!(count.body["rows"][0][0], 2000);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_put_back_in_place_to_an_archive_and_that_is_undone() {
    let world = World::start().await;
    let database = filled(&world).await;
    let made = make(&world, &database, "k", json!({})).await;
    let id = made.body["archive"]["id"].as_str().expect("an id");
    world.run(&database, "delete from t").await;
    let restores = format!("{database}/restores");
    let target = json!({ "archive": id });
    let got = world
        .keyed(&restores, json!({ "target": target, "dry_run": true }))
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    let plan = &got.body["plan"];
    assert_eq!(
        (&plan["archive"], &plan["way"]),
        (&json!(id), &json!("archive"))
    );
    assert_eq!(plan["commits_undone"], 1);
    let got = world.keyed(&restores, json!({ "plan": plan["id"] })).await;
    assert_eq!(got.status, 200, "{got:?}");
    let restore = got.body["restore"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let count = async || {
        let got = world.run(&database, "select count(*) from t").await;
        got.body["rows"][0][0].clone()
    };
    assert_eq!(count().await, 2000);
    let got = world.get(&format!("{restores}/{restore}")).await;
    assert_eq!(got.body["archive"], id, "{got:?}");
    let got = world
        .keyed(&format!("{restores}/{restore}/undo"), json!({}))
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(count().await, 0);
    // Under a new name; and nothing but an archive of this very database.
    let body = json!({ "target": target, "mode": "new", "name": "beside" });
    let got = world.keyed(&restores, body).await;
    assert_eq!(got.status, 201, "{got:?}");
    for body in [
        json!({ "target": { "archive": "none" } }),
        json!({ "target": { "archive": "none" }, "mode": "new", "name": "x" }),
    ] {
        let got = world.keyed(&restores, body).await;
        assert_eq!(
            (got.status, got.code()),
            (404, "archive-not-found"),
            "{got:?}"
        );
    }
    let both = json!({ "target": { "archive": id, "timestamp": 0 } });
    let got = world.keyed(&restores, both).await;
    assert_eq!((got.status, got.code()), (400, "invalid-request"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_for_an_archive_is_said() {
    let world = World::start().await;
    let database = filled(&world).await;
    for (body, status, code) in [
        (json!({ "format": "tar" }), 400, "invalid-request"),
        (json!({ "target": {} }), 400, "invalid-request"),
        (
            json!({ "target": { "bookmark": "x" } }),
            422,
            "bookmark-malformed",
        ),
        (
            json!({ "target": { "timestamp": 0 } }),
            410,
            "bookmark-expired",
        ),
        (json!({ "name": "" }), 422, "name-invalid"),
        (json!({ "colour": 1 }), 400, "unknown-field"),
    ] {
        let got = make(&world, &database, "k", body.clone()).await;
        assert_eq!((got.status, got.code()), (status, code), "{body}");
    }
    for path in ["", "/content"] {
        let got = world.get(&format!("{database}/archives/none{path}")).await;
        assert_eq!((got.status, got.code()), (404, "archive-not-found"));
    }
    let seed = json!({ "name": "x", "page_size": 8192, "seed": { "archive": "none" } });
    let got = world.post("/v1/namespaces/default/databases", seed).await;
    assert_eq!((got.status, got.code()), (400, "invalid-request"));
    let seed = json!({ "name": "x", "seed": { "archive": "none" } });
    let got = world.post("/v1/namespaces/default/databases", seed).await;
    assert_eq!((got.status, got.code()), (404, "archive-not-found"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_keeps_an_archive_and_verification_is_noted() {
    let world = World::start().await;
    let database = filled(&world).await;
    let body = json!({ "format": "sql", "legal_hold": true });
    let made = make(&world, &database, "k", body).await;
    let id = made.body["archive"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let path = format!("{database}/archives/{id}");
    let refused = read(world.ask(Method::DELETE, &path)).await;
    assert_eq!((refused.status, refused.code()), (409, "archive-held"));
    let checked = world.post(&format!("{path}/verify"), json!({})).await;
    assert_eq!(checked.status, 400, "it takes no body");
    let checked = read(world.ask(Method::POST, &format!("{path}/verify"))).await;
    assert_eq!(checked.body["outcome"], "verified", "{checked:?}");
    let shown = world.get(&path).await;
    assert_eq!(shown.body["verified"]["outcome"], "verified");
    let loosened = world
        .ask(Method::PATCH, &path)
        .json(&json!({ "legal_hold": false }));
    assert_eq!(read(loosened).await.body["legal_hold"], false);
    assert_eq!(read(world.ask(Method::DELETE, &path)).await.status, 204);
    assert_eq!(world.get(&path).await.code(), "archive-not-found");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_file_replaces_a_database_and_is_taken_back() {
    let world = World::start().await;
    let database = filled(&world).await;
    let path = format!("{database}/import?replace=true");
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, sql: &str| {
        let path = folder.path().join(name);
        let plain = rusqlite::Connection::open(&path).expect("open");
        plain.execute_batch(sql).expect("fill");
        drop(plain);
        std::fs::read(path).expect("read")
    };
    let good = file("good.db", "create table s(a); insert into s values(1)");
    let other = file("other.db", "pragma page_size=8192; create table s(a)");
    let before = world.get(&format!("{database}/bookmarks/current")).await;
    let before = before.body["bookmark"]
        .as_str()
        .expect("a bookmark")
        .to_owned();
    let refused = read(world.ask(Method::POST, &path).body(other)).await;
    assert_eq!((refused.status, refused.code()), (422, "import-invalid"));
    assert_eq!(refused.body["page_size"], 4096);
    let taken = read(
        world
            .ask(Method::POST, &format!("{database}/import"))
            .body(good.clone()),
    );
    assert_eq!(taken.await.code(), "name-taken");
    let elsewhere = before.replacen("00000001", "00000002", 1);
    let moved = world
        .ask(Method::POST, &path)
        .header("if-match", format!("\"{elsewhere}\""));
    assert_eq!(
        read(moved.body(good.clone())).await.code(),
        "database-moved"
    );
    let guarded = world
        .ask(Method::POST, &path)
        .header("if-match", format!("\"{before}\""));
    let done = read(guarded.body(good)).await;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(done.body["previous_bookmark"], before.as_str());
    let found = world.run(&database, "select a from s").await;
    assert_eq!(found.body["rows"][0][0], 1);
    let body = json!({ "target": { "bookmark": before } });
    let request = world.ask(Method::POST, &format!("{database}/restores"));
    let back = read(request.header("idempotency-key", "k").json(&body)).await;
    assert_eq!(back.status, 200, "{back:?}");
    let found = world.run(&database, "select count(*) from t").await;
    assert_eq!(found.body["rows"][0][0], 2000);
    let absent = world.ask(
        Method::POST,
        "/v1/namespaces/default/databases/none/import?replace=true",
    );
    assert_eq!(read(absent.body("x")).await.code(), "database-not-found");
    world.stop().await;
}

/// A token for some databases restores none of another's archives.
#[tokio::test(flavor = "multi_thread")]
async fn a_limited_token_makes_nothing_of_another_databases_archive() {
    let world = World::start().await;
    let database = filled(&world).await;
    let made = make(&world, &database, "k", json!({})).await;
    let id = made.body["archive"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let limited = world
        .token(json!({ "scopes": ["admin"], "databases": ["mine"] }))
        .await;
    let body = json!({ "name": "mine", "seed": { "archive": id } });
    let request = world
        .client
        .post(format!("{}/v1/namespaces/default/databases", world.base));
    let got = read(request.bearer_auth(&limited).json(&body)).await;
    assert_eq!((got.status, got.code()), (404, "archive-not-found"));
    world.stop().await;
}

/// Goal: a regulation's name keeps an archive for its days. Method: each name; the archive is not deleted before.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_kept_for_as_long_as_a_regulation_asks() {
    let world = World::start().await;
    let database = filled(&world).await;
    let day = |text: &serde_json::Value| {
        let time = tidelog_server::time::parse(text.as_str().expect("a time")).expect("a time");
        time.micros() / (24 * 3600 * 1_000_000)
    };
    for (name, days) in [("gdpr", 30), ("soc2", 90), ("hipaa", 365), ("pci", 365)] {
        let made = make(&world, &database, name, json!({ "retain_for": name })).await;
        assert_eq!(made.status, 201, "{made:?}");
        let archive = &made.body["archive"];
        let kept = day(&archive["retain_until"]) - day(&archive["created_at"]);
        assert!((days..=days + 1).contains(&kept), "{name}: {archive}");
        let id = archive["id"].as_str().expect("an id");
        let path = format!("{database}/archives/{id}");
        let got = read(world.ask(Method::DELETE, &path)).await;
        assert_eq!((got.status, got.code()), (409, "archive-held"));
    }
    for body in [
        json!({ "retain_for": "iso" }),
        json!({ "retain_for": "gdpr", "retain_until": "2099-01-01T00:00:00Z" }),
    ] {
        let got = make(&world, &database, "bad", body).await;
        assert_eq!(
            (got.status, got.code()),
            (400, "invalid-request"),
            "{got:?}"
        );
        assert_eq!(got.body["errors"][0]["pointer"], "/retain_for");
    }
    world.stop().await;
}

/// The schedule itself is the engine's; here is what a caller may say of it and sees.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_schedule_is_set_shown_and_ended() {
    let world = World::start().await;
    let path = format!("{}/archive-schedule", world.database("orders").await);
    assert!(world.get(&path).await.body["schedule"].is_null());
    let put = |body: serde_json::Value| read(world.ask(Method::PUT, &path).json(&body));
    for (body, code) in [
        (json!({}), "invalid-request"),
        (json!({ "every": "59m" }), "invalid-request"),
        (json!({ "every": "367d" }), "invalid-request"),
        (json!({ "every": "1d", "format": "csv" }), "invalid-request"),
        (
            json!({ "every": "1d", "retain": { "newest": 0 } }),
            "invalid-request",
        ),
        (
            json!({ "every": "1d", "retain": { "days": 0 } }),
            "invalid-request",
        ),
        (
            json!({ "every": "1d", "retain": { "newest": 5_000_000_000_u64 } }),
            "invalid-request",
        ),
        (
            json!({ "every": "1d", "retain": { "hours": 1 } }),
            "unknown-field",
        ),
        (json!({ "every": "1d", "level": "chain" }), "unknown-field"),
    ] {
        assert_eq!(put(body.clone()).await.code(), code, "{body}");
    }
    let set = put(json!({ "every": "24h", "retain": { "newest": 7, "days": 90 } })).await;
    assert_eq!(set.status, 200, "{set:?}");
    let schedule = &set.body["schedule"];
    assert_eq!(schedule["every_seconds"], 86_400);
    assert_eq!(schedule["format"], "sqlite");
    assert_eq!(schedule["retain"], json!({ "newest": 7, "days": 90 }));
    assert!(schedule["due_at"].is_string() && schedule["last"].is_null());
    assert_eq!(world.get(&path).await.body, set.body);
    // It deletes archives, which an operator may not.
    let operator = world.token(json!({ "scopes": ["write"] })).await;
    let url = format!("{}{path}", world.base);
    let got = read(world.client.delete(&url).bearer_auth(&operator)).await;
    assert_eq!((got.status, &got.body["required"]), (403, &json!("admin")));
    let log = "/v1/namespaces/default/audit?action=backup.archive_schedule";
    let lines = world.get(log).await.body["items"].clone();
    assert!(
        lines.as_array().is_some_and(|lines| !lines.is_empty()),
        "{lines}"
    );
    assert_eq!(read(world.ask(Method::DELETE, &path)).await.status, 204);
    assert!(world.get(&path).await.body["schedule"].is_null());
    world.stop().await;
}
