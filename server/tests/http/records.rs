//! What is on record: the audit log, insights, slow queries; and that no secret is in any of it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::{Engine, Parts, Settings};
use tidelog_server::settings::Limits;
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Shared, script};

use tracing_subscriber::EnvFilter;

use crate::watch::scrape;
use crate::world::{World, patient, read, unhurried};

const AUDIT: &str = "/v1/namespaces/default/audit";

pub(crate) async fn lines(world: &World, query: &str) -> Vec<Json> {
    let got = world.get(&format!("{AUDIT}?limit=500{query}")).await;
    assert_eq!(got.status, 200, "{got:?}");
    got.body["items"].as_array().expect("items").clone()
}

pub(crate) fn events(lines: &[Json]) -> Vec<&str> {
    lines
        .iter()
        .filter_map(|line| line["event_type"].as_str())
        .collect()
}

/// Goal: every change and every refusal has its line, with who, what, whence, and how it ended.
#[tokio::test(flavor = "multi_thread")]
async fn changes_and_refusals_are_on_record() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    world.run(&database, "insert into t values(1)").await;
    let reader = world.token(json!({ "scopes": ["read"] })).await;
    let url = format!("{}{database}", world.base);
    let denied = read(world.client.delete(&url).bearer_auth(&reader)).await;
    assert_eq!(denied.status, 403);
    let member = "/v1/namespaces/default/members/ana";
    read(
        world
            .ask(Method::PUT, member)
            .json(&json!({ "role": "viewer" })),
    )
    .await;
    world
        .post(
            &format!("{database}/query"),
            json!({ "sql": "attach 'x' as y" }),
        )
        .await;
    world
        .post(
            "/v1/namespaces/default/databases",
            json!({ "name": "orders" }),
        )
        .await;
    let all = lines(&world, "").await;
    let seen = events(&all);
    for event in [
        "admin.database_create",
        "admin.schema_change",
        "admin.api_key_create",
        "authz.denied",
        "admin.permission_change",
        "security.sql_denied",
    ] {
        assert!(seen.contains(&event), "{event} in {seen:?}");
    }
    assert!(!seen.contains(&"admin.change"), "{seen:?}");
    let refused = all
        .iter()
        .find(|line| line["error_code"] == "name-taken")
        .expect("the refusal");
    assert_eq!(
        (&refused["success"], &refused["severity"]),
        (&json!(false), &json!("warning"))
    );
    let denied = all
        .iter()
        .find(|line| line["event_type"] == "authz.denied")
        .expect("a line");
    assert_eq!(denied["ip"], "127.0.0.1");
    assert_eq!(
        (&denied["resource"], &denied["resource_id"]),
        (&json!("database"), &json!("orders"))
    );
    assert!(
        denied["request_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("req_"))
    );
    assert!(
        denied["user_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("tok_"))
    );
    assert!(denied["timestamp"].is_string() && denied["duration_ms"].is_number());
    for name in [
        "id",
        "tenant_id",
        "action",
        "details",
        "user_agent",
        "error_message",
    ] {
        assert!(denied.get(name).is_some(), "{name}");
    }
    let some = lines(&world, "&action=authz.").await;
    assert!(
        !some.is_empty()
            && events(&some)
                .iter()
                .all(|event| event.starts_with("authz."))
    );
    let none = lines(&world, "&since=2100-01-01T00:00:00Z").await;
    assert!(none.is_empty());
    let page = world.get(&format!("{AUDIT}?limit=2")).await;
    let cursor = page.body["next_cursor"].as_str().expect("more");
    let next = world.get(&format!("{AUDIT}?limit=2&cursor={cursor}")).await;
    assert!(next.body["items"][0]["id"].as_str() < page.body["items"][1]["id"].as_str());
    world.stop().await;
}

/// Goal: failures without a namespace are in the server's own log, which only the server token reads.
#[tokio::test(flavor = "multi_thread")]
async fn refused_tokens_are_in_the_servers_log() {
    let world = World::start().await;
    let url = format!("{}/v1/namespaces/default/databases", world.base);
    read(
        world
            .client
            .get(url)
            .bearer_auth("tl_live_planted-secret-in-a-token"),
    )
    .await;
    let ask = |token: &str| {
        read(
            world
                .client
                .get(format!("{}/v1/audit", world.base))
                .bearer_auth(token),
        )
    };
    let got = ask(&world.server).await;
    let items = got.body["items"].as_array().expect("items");
    let mut seen = events(items);
    // The reader's own first use.
    seen.retain(|event| *event != "auth.success");
    assert_eq!(seen, ["auth.failure"]);
    assert_eq!(ask(&world.owner).await.status, 403);
    assert!(!got.body.to_string().contains("planted"));
    world.stop().await;
}

/// Goal: what takes something away is stored on record before it acts. Method: a restore leaves a line that says
/// so, older than the line of its outcome; a preview leaves none.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_on_record_before_it_acts() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let made = world.run(&database, "create table t(a)").await;
    let target = json!({ "bookmark": made.body["bookmark"] });
    world.run(&database, "insert into t values(1)").await;
    let path = format!("{database}/restores");
    let preview = world
        .post(&path, json!({ "target": target, "dry_run": true }))
        .await;
    assert_eq!(preview.status, 200, "{preview:?}");
    let before = |lines: &[Json]| {
        let of = lines
            .iter()
            .filter(|line| line["details"]["phase"] == "before");
        of.filter(|line| line["event_type"] == "backup.restore")
            .count()
    };
    assert_eq!(before(&lines(&world, "").await), 0);
    let restored = world.keyed(&path, json!({ "target": target })).await;
    assert_eq!(restored.status, 200, "{restored:?}");
    let all = lines(&world, "&action=backup.restore").await;
    assert_eq!(before(&all), 1);
    // Newest first: the intention is the older one.
    let last = all.last().expect("lines");
    assert!(all.len() >= 2 && (last["severity"] == "critical"));
    let bare = world
        .client
        .post(format!("{}{path}", world.base))
        .bearer_auth(&world.owner);
    let bare = read(bare.json(&json!({ "target": target }))).await;
    assert_eq!(
        (bare.status, bare.code()),
        (400, "idempotency-key-required")
    );
    world.stop().await;
}

/// Goal: whatever takes something away is on record before it acts, however its request is written. Method: each such
/// call in turn, a purge spelt in percent codes and an import that replaces among them; the line that says `before` is
/// older than the outcome's.
#[tokio::test(flavor = "multi_thread")]
async fn every_grave_call_is_on_record_before_it_acts() {
    let world = World::start().await;
    let orders = world.database("orders").await;
    let made = world.run(&orders, "create table t(a)").await;
    let bookmark = made.body["bookmark"].clone();
    world.run(&orders, "insert into t values(1)").await;
    let made = world.keyed(&format!("{orders}/archives"), json!({})).await;
    let archive = made.body["archive"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let restored = world
        .keyed(
            &format!("{orders}/restores"),
            json!({ "target": { "bookmark": bookmark } }),
        )
        .await;
    let restore = restored.body["restore"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let export = world.ask(Method::GET, &format!("{orders}/export"));
    let file = export
        .send()
        .await
        .expect("an answer")
        .bytes()
        .await
        .expect("a file");
    let import = world.ask_keyed(&format!("{orders}/import?replac%65=tru%65"));
    let got = read(import.body(file)).await;
    assert_eq!(got.status, 200, "{got:?}");
    let undo = world
        .keyed(
            &format!("{orders}/restores/{restore}/undo"),
            json!({ "force": got.body["bookmark"] }),
        )
        .await;
    assert_eq!(undo.status, 200, "{undo:?}");
    // The same under D1's name for it.
    let back = bookmark.as_str().expect("a bookmark");
    let path = format!("{orders}/time_travel/restore?bookmark={back}");
    let alias = read(world.ask(Method::POST, &path)).await;
    assert_eq!(alias.status, 200, "{alias:?}");
    let delete = |path: String| read(world.ask(Method::DELETE, &path));
    assert_eq!(
        delete(format!("{orders}/archives/{archive}")).await.status,
        204
    );
    assert_eq!(delete(format!("{orders}?purg%65=%74rue")).await.status, 200);
    let all = lines(&world, "").await;
    for (event, calls) in [
        ("backup.restore", 2),
        ("backup.import_replace", 1),
        ("backup.undo", 1),
        ("backup.archive_delete", 1),
        ("admin.database_purge", 1),
    ] {
        let of: Vec<&Json> = all
            .iter()
            .filter(|line| line["event_type"] == event)
            .collect();
        assert_eq!(of.len(), 2 * calls, "{event}: {of:?}");
        for pair in of.chunks(2) {
            let (after, before) = (pair[0], pair[1]);
            assert_eq!(before["details"]["phase"], "before", "{event}");
            assert_eq!(before["severity"], "critical", "{event}");
            assert_eq!(
                (&after["details"]["phase"], &after["success"]),
                (&Json::Null, &json!(true)),
                "{event}"
            );
        }
    }
    world.stop().await;
}

/// Goal: what cannot be put on record is not done. Method: the store takes no journal, so that no line can be stored, while
/// a restore, a purge and an import that replaces are asked for; once it takes it again, nothing of them has happened.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_put_on_record_is_not_done() {
    let away = Arc::new(AtomicBool::new(false));
    let cut = Arc::clone(&away);
    let plan = script(move |call| match call.op {
        Op::Put if cut.load(Ordering::SeqCst) => Fault::Before,
        _ => Fault::None,
    });
    let settings = StoreSettings {
        attempts_max: 1,
        ..StoreSettings::default()
    };
    let options = StoreOptions {
        settings,
        ..StoreOptions::default()
    };
    let objects = Arc::new(Shared(FaultStore::in_memory(plan)));
    let store = Store::from_object_store(objects, "", options).expect("a store");
    let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
    // A life that waits so long for the store; everything but the refusals is done in a patient one.
    let life = async |durability_timeout: Duration| {
        let settings = Settings {
            data: folder.path().join("data"),
            store_url: "memory:".to_owned(),
            ship_interval: Duration::from_millis(20),
            durability_timeout,
            master_keys: tidelog_testkit::sealing::masters(),
            ..unhurried()
        };
        let engine = Box::pin(Engine::start_on(
            settings,
            Parts::production(),
            store.clone(),
        ));
        let engine = engine.await.expect("the engine starts");
        let world = World::around(engine, Arc::clone(&folder), None, patient());
        Box::pin(world).await
    };
    let world = life(Duration::from_mins(1)).await;
    let orders = world.database("orders").await;
    let made = world.run(&orders, "create table t(a)").await;
    let insert = json!({ "sql": "insert into t values(1)", "durability": "remote" });
    let got = world.post(&format!("{orders}/query"), insert).await;
    assert_eq!(got.status, 200, "{got:?}");
    let export = world.ask(Method::GET, &format!("{orders}/export")).send();
    let file = export.await.expect("an answer").bytes().await;
    let file = file.expect("a file");
    world.stop().await;

    let world = life(Duration::from_secs(3)).await;
    away.store(true, Ordering::SeqCst);
    let target = json!({ "target": { "bookmark": made.body["bookmark"] } });
    let restore = world.ask_keyed(&format!("{orders}/restores")).json(&target);
    let purge = world.ask(Method::DELETE, &format!("{orders}?purge=true"));
    let import = world.ask_keyed(&format!("{orders}/import?replace=true"));
    for refused in [restore, purge, import.body(file)] {
        let got = read(refused).await;
        assert_eq!((got.status, got.code()), (503, "storage-unavailable"));
    }
    away.store(false, Ordering::SeqCst);
    world.stop().await;
    let world = life(Duration::from_mins(1)).await;
    let rows = json!({ "sql": "select count(*) from t", "durability": "remote" });
    let rows = world.post(&format!("{orders}/query"), rows).await;
    assert_eq!(rows.body["rows"], json!([[1]]), "{rows:?}");
    let restores = world.get(&format!("{orders}/restores")).await;
    assert_eq!(restores.body["items"], json!([]), "{restores:?}");
    let operations = world.get("/v1/namespaces/default/operations").await;
    assert_eq!(operations.body["items"], json!([]), "{operations:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn insights_count_and_name_no_sql() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table planted_name(a)").await;
    for _ in 0..3 {
        world
            .run(&database, "insert into planted_name values(1)")
            .await;
    }
    world
        .post(
            &format!("{database}/query"),
            json!({ "sql": "select * from none" }),
        )
        .await;
    let got = world.get(&format!("{database}/insights?hours=2")).await;
    let items = got.body["items"].as_array().expect("items");
    let of = |status: u64| {
        let rows = items.iter().filter(|item| item["status"] == status);
        rows.map(|item| item["requests"].as_u64().unwrap_or(0))
            .sum::<u64>()
    };
    assert_eq!((of(200), of(422)), (4, 1), "{got:?}");
    let written: u64 = items
        .iter()
        .filter_map(|item| item["rows_written"].as_u64())
        .sum();
    assert_eq!(written, 3);
    assert!(!got.body.to_string().contains("planted"));
    for bad in ["0", "169", "x"] {
        assert_eq!(
            world
                .get(&format!("{database}/insights?hours={bad}"))
                .await
                .status,
            400
        );
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_queries_are_kept_without_literals_or_parameters() {
    let limits = Limits {
        slow_query: Duration::ZERO,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let database = world.database("orders").await;
    let body = json!({ "sql": "select 'planted-literal', ?1 -- planted-comment", "params": ["planted-parameter"] });
    assert_eq!(
        world.post(&format!("{database}/query"), body).await.status,
        200
    );
    let got = world.get(&format!("{database}/slow-queries")).await;
    let first = &got.body["items"][0];
    assert_eq!(first["sql"], "select ?, ?1", "{got:?}");
    assert!(first["duration_ms"].is_number() && first["timestamp"].is_string());
    assert!(!got.body.to_string().contains("planted"));
    let long = format!("select {} 1", "1, ".repeat(900));
    world.run(&database, &long).await;
    let got = world.get(&format!("{database}/slow-queries")).await;
    let cut = got.body["items"][0]["sql"].as_str().expect("a text");
    assert!(cut.len() <= 1_500, "{}", cut.len());
    world.stop().await;
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Goal: a secret in SQL, parameters, tokens, headers and names is in no log, audit line, metric or error of
/// somebody else. Method: plant one everywhere, at the finest log level, and scan all that comes out.
#[tokio::test(flavor = "multi_thread")]
async fn planted_secrets_are_nowhere() {
    let log = Log::default();
    let out = log.clone();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace"))
        .with_writer(move || out.clone())
        .with_ansi(false)
        .with_filter_reloading();
    let filter = lines.reload_handle();
    // The process has one log; other tests write into it meanwhile, which only adds to what is scanned.
    let _ = lines.try_init();
    let limits = Limits {
        slow_query: Duration::ZERO,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let database = world.database("orders").await;
    let query = format!("{database}/query");
    world.run(&database, "create table t(a)").await;
    let planted = "pLaNtEd-7c1f";
    for sql in [
        format!("insert into t values('{planted}')"),
        format!("select \"{planted}\" from t"),
        format!("select '{planted}"),
        format!("select * from [{planted}]"),
        format!("-- {planted}"),
        format!("attach '{planted}' as x"),
    ] {
        world.post(&query, json!({ "sql": sql })).await;
    }
    world
        .post(
            &query,
            json!({ "sql": "insert into t values(?)", "params": [planted] }),
        )
        .await;
    world
        .post(&query, json!({ "sql": "select 1", (planted): planted }))
        .await;
    let request = world
        .ask(Method::POST, &query)
        .header("idempotency-key", planted);
    read(
        request
            .header("x-secret", planted)
            .body(format!("{{ {planted}")),
    )
    .await;
    let url = format!("{}{query}?token={planted}", world.base);
    read(
        world
            .client
            .post(url)
            .bearer_auth(format!("tl_live_{planted}")),
    )
    .await;
    let url = format!("{}/v1/namespaces/default/databases", world.base);
    read(world.client.get(&url).bearer_auth(format!("a.{planted}.c"))).await;
    let audit = world
        .get(&format!("{AUDIT}?limit=500"))
        .await
        .body
        .to_string();
    let own = world
        .client
        .get(format!("{}/v1/audit", world.base))
        .bearer_auth(&world.server);
    let own = read(own).await.body.to_string();
    let insights = world
        .get(&format!("{database}/insights"))
        .await
        .body
        .to_string();
    let slow = world
        .get(&format!("{database}/slow-queries"))
        .await
        .body
        .to_string();
    let metrics = scrape(&world).await;
    // The tests that come later are not slowed by it.
    let _ = filter.reload(EnvFilter::new("off"));
    let secrets = [planted, world.owner.as_str(), world.server.as_str()];
    let text = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    assert!(text.contains("request refused"), "the log is caught");
    for secret in secrets {
        for (what, text) in [
            ("the audit log", &audit),
            ("the server's audit log", &own),
            ("insights", &insights),
            ("slow queries", &slow),
            ("metrics", &metrics),
        ] {
            assert!(!text.contains(secret), "{secret} in {what}: {text}");
        }
        // Other libraries of the test's own client log what it sends: only the server's lines count.
        let leaks: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("tidelog") && line.contains(secret))
            .collect();
        assert!(leaks.is_empty(), "{secret} in the log: {leaks:?}");
    }
    world.stop().await;
}

/// Goal: lines leave for the bucket as JSON lines of their tenant and day, once.
#[tokio::test(flavor = "multi_thread")]
async fn lines_are_shipped_to_the_bucket() {
    let store = Store::open("memory:", StoreOptions::default()).expect("a store");
    let world = World::on(Parts::production(), store.clone()).await;
    world.database("orders").await;
    let objects = async || {
        let listed = store.list("tenants/").await.expect("a listing");
        let audit = listed.iter().filter(|one| one.key.contains("/audit/"));
        audit.count()
    };
    world.engine.ship_audit().await.expect("shipped");
    let before = objects().await;
    assert!(before > 0, "lines are there");
    world.engine.ship_audit().await.expect("nothing to ship");
    assert_eq!(
        objects().await,
        before,
        "what is in the bucket is not written again"
    );
    world.database("more").await;
    world.engine.ship_audit().await.expect("shipped");
    assert!(objects().await > before);
    assert!(lines(&world, "").await.len() >= 2, "they are still listed");
    world.stop().await;
}

/// Goal: a token that is used is on record, and its thousand requests do not fill the log. Method: many requests of
/// two tokens; one line each, which names the token by its id and display alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_use_of_a_token_is_on_record_and_the_next_ones_are_not() {
    let world = World::start().await;
    let token = world.token(json!({ "scopes": ["read"] })).await;
    let url = format!("{}/v1/namespaces/default/databases", world.base);
    for _ in 0..20 {
        let got = read(world.client.get(&url).bearer_auth(&token)).await;
        assert_eq!(got.status, 200);
        world.get("/v1/namespaces/default/databases").await;
    }
    let used = lines(&world, "&action=auth.success").await;
    let displays: std::collections::BTreeSet<_> = used
        .iter()
        .map(|line| {
            line["details"]["display"]
                .as_str()
                .expect("a display")
                .to_owned()
        })
        .collect();
    assert_eq!(used.len(), 2, "{used:?}");
    assert!(displays.contains(&token[..11]) && displays.contains(&world.owner[..11]));
    for line in &used {
        assert_eq!(
            (&line["success"], &line["ip"]),
            (&json!(true), &json!("127.0.0.1"))
        );
        assert!(!line.to_string().contains(&token));
    }
    world.stop().await;
}
