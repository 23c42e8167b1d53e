//! What a monitor reads: every metric is there, and moves with what it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::system::audit::AuditLine;
use tidelog_engine::{Engine, Parts, Settings};
use tidelog_server::settings::Limits;
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Shared, script};

use crate::world::{World, hold, patient, unhurried};

/// The value of a series, which must be there.
pub(crate) fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.parse()
        .unwrap_or_else(|_| panic!("{series} is {line:?}"))
}

pub(crate) async fn scrape(world: &World) -> String {
    let got = world
        .client
        .get(format!("{}/metrics", world.base))
        .send()
        .await;
    got.expect("an answer").text().await.expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_move_with_commits_flushes_and_requests() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let before = scrape(&world).await;
    world.run(&database, "create table t(a)").await;
    for _ in 0..5 {
        let body = json!({ "sql": "insert into t values(1)", "durability": "remote" });
        let got = world.post(&format!("{database}/query"), body).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
    let after = scrape(&world).await;
    let route = "/v1/namespaces/{ns}/databases/{db}/query";
    let labels = format!("method=\"POST\",route=\"{route}\"");
    for (series, least) in [
        (
            format!("tidelog_http_request_duration_seconds_count{{{labels}}}"),
            6.0,
        ),
        (
            format!("tidelog_http_requests_total{{{labels},status=\"2xx\"}}"),
            6.0,
        ),
        ("tidelog_capture_duration_seconds_count".to_owned(), 5.0),
        ("tidelog_open_databases".to_owned(), 2.0),
        ("tidelog_journal_bytes".to_owned(), 1.0),
        (
            "tidelog_oldest_restorable_timestamp_seconds".to_owned(),
            1_000_000_000.0,
        ),
        (
            "tidelog_store_requests_total{verb=\"put\",outcome=\"ok\"}".to_owned(),
            1.0,
        ),
    ] {
        assert!(value(&after, &series) >= least, "{series}\n{after}");
    }
    let captures = "tidelog_capture_duration_seconds_count";
    assert!(value(&after, captures) > value(&before, captures));
    // The last write was answered once it was stored.
    assert!(value(&after, "tidelog_last_flush_seconds") < 60.0);
    // Jobs of the node's own may wait at the moment of a look.
    let mut waits = value(&after, "tidelog_jobs_waiting");
    for _ in 0..6_000 {
        if waits < 1.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        waits = value(&scrape(&world).await, "tidelog_jobs_waiting");
    }
    assert!(waits < 1.0, "{waits} jobs wait for ever");
    assert!(
        !after.contains("orders"),
        "a metric names a tenant's database"
    );
    world.stop().await;
}

/// Every metric that a dashboard or an alert names, without what Prometheus adds to a histogram.
fn named(text: &str) -> std::collections::BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("tidelog_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

/// A life of a server on a store whose uploads take a moment; everything is settled at once.
async fn life(folder: &Arc<TempDir>, store: &Store, limits: Limits) -> World {
    let settings = Settings {
        data: folder.path().join("data"),
        store_url: "memory:".to_owned(),
        ship_interval: Duration::from_millis(20),
        settle_bytes: 1,
        settle_pause: Duration::from_millis(1),
        master_keys: tidelog_testkit::sealing::masters(),
        ..unhurried()
    };
    let engine = Engine::start_on(settings, Parts::production(), store.clone());
    let engine = Box::pin(engine).await.expect("the engine starts");
    Box::pin(World::around(engine, Arc::clone(folder), None, limits)).await
}

/// Goal: the files in `deploy/` name what a server serves, and each of those moves. Method: one scenario in two lives that
/// writes, settles, fails, is refused, waits, loses audit lines and finds a file that somebody else wrote to; every metric
/// must differ from a fresh server's somewhere on the way.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_dashboard_and_alerts_exists_and_moves() {
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let mut names = std::collections::BTreeSet::new();
    for file in ["alerts.yml", "grafana-dashboard.json"] {
        let text = std::fs::read_to_string(format!("{deploy}/{file}")).expect(file);
        names.extend(named(&text));
    }
    assert!(names.len() > 15, "{names:?}");
    let limits = Limits {
        slow_query: Duration::ZERO,
        in_flight_per_principal: 12,
        ..patient()
    };
    let slow_uploads = script(|call| match call.op {
        Op::Put => Fault::Delay(Duration::from_millis(30)),
        _ => Fault::None,
    });
    let objects = Arc::new(Shared(FaultStore::in_memory(slow_uploads)));
    let store = Store::from_object_store(objects, "", StoreOptions::default()).expect("a store");
    let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
    let world = life(&folder, &store, limits.clone()).await;
    let first = scrape(&world).await;
    let mut seen = vec![first];
    // More databases than a tenant has workers.
    let mut queries = Vec::new();
    for number in 0..14 {
        let database = world.database(&format!("orders-{number}")).await;
        world.run(&database, "create table t(a)").await;
        queries.push(format!("{database}/query"));
    }
    let url = format!("{}/v1/namespaces/default/databases", world.base);
    let unknown = world
        .client
        .get(&url)
        .bearer_auth("tl_live_unknown")
        .send()
        .await;
    assert_eq!(unknown.expect("an answer").status(), 401);
    assert_eq!(
        world.get("/v1/namespaces/other/databases").await.status,
        403
    );
    let slow = "insert into t with recursive c(x) as (select 1 union all select x+1 from c limit 300000) \
                select x from c";
    let burst = (0..16_usize).map(|number| {
        let query = &queries[number.saturating_sub(2)];
        world.post(query, json!({ "sql": slow }))
    });
    let over = AtomicBool::new(false);
    let burst = async {
        let answers = futures::future::join_all(burst).await;
        over.store(true, Ordering::SeqCst);
        answers
    };
    // As long as it lasts.
    let watch = async {
        let mut texts = Vec::new();
        while texts.len() < 40 || !over.load(Ordering::SeqCst) {
            texts.push(scrape(&world).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        texts
    };
    let (answers, texts) = tokio::join!(burst, watch);
    assert!(answers.iter().any(|got| got.status == 429), "{answers:?}");
    seen.extend(texts);
    // Too many to wait, though the node writes those down meanwhile that do.
    for _ in 0..70_000 {
        world.engine.audit(AuditLine::default());
    }
    seen.push(scrape(&world).await);
    let settled = "tidelog_settle_duration_seconds_count";
    let waited = tokio::time::timeout(Duration::from_mins(1), async {
        loop {
            let text = scrape(&world).await;
            if value(&text, settled) > 0.0 {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    seen.push(waited.await.expect("a database is settled"));
    let namespace = world.engine.namespace_by_name("default").await;
    let namespace = namespace.expect("the namespace").id;
    let database = world.engine.database(namespace, "orders-13").await;
    let writer = database.expect("the database").writer().await;
    let writer = writer.expect("a database in use");
    let file = writer.file();
    // A writer that waits for its gate until that was seen.
    let (holding, release) = hold(writer).await;
    let look = async {
        let waits = async || {
            let text = scrape(&world).await;
            let waits = value(&text, "tidelog_gates_waiting") > 0.0;
            waits.then_some(text)
        };
        let text = loop {
            if let Some(text) = waits().await {
                break text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        drop(release);
        text
    };
    let insert = json!({ "sql": "insert into t values(1)" });
    let both = async { tokio::join!(world.post(&queries[13], insert), look) };
    let both = tokio::time::timeout(Duration::from_mins(1), both).await;
    let (answer, text) = both.expect("a writer that waits");
    assert_eq!(answer.status, 200, "{answer:?}");
    seen.push(text);
    holding.await.expect("it ends");
    world.stop().await;

    let stranger = rusqlite::Connection::open(file).expect("nobody has it open");
    let insert = "insert into t values(1)";
    stranger
        .execute_batch(insert)
        .expect("written behind its back");
    drop(stranger);
    let world = life(&folder, &store, limits).await;
    let rows = json!({ "sql": "select count(*) from t" });
    assert_eq!(world.post(&queries[13], rows).await.status, 200);
    seen.push(scrape(&world).await);
    // The oldest point of a fresh node stays where it is for as long as its window, and what another server's take-over
    // left takes that other one: `a_term_that_was_closed_meanwhile_is_not_gone_on_with` counts it.
    let still = [
        "tidelog_oldest_restorable_timestamp_seconds",
        "tidelog_diverged_forks_total",
    ];
    for name in &names {
        let lines = |text: &str| {
            let of = text.lines().filter(|line| line.starts_with(name.as_str()));
            of.map(str::to_owned).collect::<Vec<_>>()
        };
        let last = seen.last().map(String::as_str).unwrap_or_default();
        assert!(!lines(last).is_empty(), "{name} is named and not served");
        let moved = seen.iter().any(|text| lines(text) != lines(&seen[0]));
        assert!(
            moved || still.contains(&name.as_str()),
            "{name} never moved"
        );
    }
    world.stop().await;
}
