//! Verifications over HTTP, where their last result shows, and their schedules.

use reqwest::Method;
use serde_json::json;

use crate::world::{World, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_shows_in_its_list_the_window_and_the_metrics() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let window = world.get(&format!("{database}/recovery-window")).await;
    assert!(window.body["last_verified"].is_null() && window.body["rto_ms"].is_null());
    let path = format!("{database}/verifications");
    for level in ["objects", "chain", "restore", "full"] {
        let done = world.post(&path, json!({ "level": level })).await;
        assert_eq!(done.status, 200, "{level}: {done:?}");
        assert_eq!(
            done.body["verification"]["outcome"], "verified",
            "{level}: {done:?}"
        );
        assert_eq!(done.body["operation"]["type"], "verification");
    }
    let listed = world.get(&path).await;
    let items = listed.body["items"].as_array().expect("items").clone();
    assert_eq!(items.len(), 4);
    assert_eq!(items[0]["level"], "full");
    assert!(items[0]["restore_duration_ms"].is_number());
    assert!(items[0]["covers"]["live"].is_object());
    let window = world.get(&format!("{database}/recovery-window")).await.body;
    assert_eq!(window["last_verified"]["id"], items[0]["id"]);
    assert_eq!(window["rto_ms"], items[0]["restore_duration_ms"]);
    assert_eq!(window["rpo"]["remote"]["at_risk_ms"], 0.0);
    assert_eq!(window["rpo"]["local"]["survives"], "power_loss");
    assert_eq!(window["rpo"]["memory"]["survives"], "process_crash");
    let metrics = world.client.get(format!("{}/metrics", world.base)).send();
    let metrics = metrics
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text");
    for line in [
        "tidelog_verifications_total{outcome=\"verified\"} 4",
        "tidelog_verification_age_seconds ",
        "tidelog_restore_duration_seconds ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_and_begin_nothing() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let path = format!("{database}/verifications");
    for (body, status, code) in [
        (json!({}), 400, "invalid-request"),
        (json!({ "level": "deep" }), 400, "invalid-request"),
        (
            json!({ "level": "full", "sample_percent": 0 }),
            400,
            "invalid-request",
        ),
        (
            json!({ "level": "chain", "target": { "timestamp": 0 } }),
            400,
            "invalid-request",
        ),
        (
            json!({ "level": "restore", "target": { "timestamp": 0 } }),
            410,
            "bookmark-expired",
        ),
        (
            json!({ "level": "full", "dry": true }),
            400,
            "unknown-field",
        ),
    ] {
        let got = world.post(&path, body.clone()).await;
        assert_eq!((got.status, got.code()), (status, code), "{body}");
    }
    let operations = world.get("/v1/namespaces/default/operations").await;
    assert_eq!(operations.body["items"], json!([]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_set_shown_and_ended() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let path = format!("{database}/verification-schedule");
    assert!(world.get(&path).await.body["schedule"].is_null());
    let put = |body| read(world.ask(Method::PUT, &path).json(&body));
    for bad in [
        json!({ "level": "chain" }),
        json!({ "every": "1w", "level": "chain" }),
        json!({ "every": 5, "level": "chain" }),
        json!({ "every": "24h" }),
    ] {
        assert_eq!(put(bad.clone()).await.code(), "invalid-request", "{bad}");
    }
    let body = json!({ "every": "24h", "level": "restore", "sample_percent": 10 });
    let set = put(body).await;
    assert_eq!(set.body["schedule"]["every_seconds"], 86_400, "{set:?}");
    let shown = world.get(&path).await;
    assert_eq!(shown.body, set.body);
    assert_eq!(read(world.ask(Method::DELETE, &path)).await.status, 204);
    assert!(world.get(&path).await.body["schedule"].is_null());
    world.stop().await;
}
