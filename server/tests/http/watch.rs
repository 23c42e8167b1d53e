//! What a monitor reads: every metric is there, and moves with what it counts.

use serde_json::json;

use crate::world::World;

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
    assert!(value(&after, "tidelog_jobs_waiting") < 1.0);
    assert!(
        !after.contains("orders"),
        "a metric names a tenant's database"
    );
    world.stop().await;
}
