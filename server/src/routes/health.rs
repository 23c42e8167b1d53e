//! What a supervisor and a monitor ask: alive, ready, and the counters.

use axum::body::Body;
use serde_json::json;
use tidelog_engine::node::detached::Detached;

use crate::http::{Answer, Call};
use crate::metrics;
use crate::problem::Problem;

/// The process answers.
pub(super) async fn alive(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    Ok(Answer::ok(json!({ "status": "ok" })))
}

/// The system database can be read, so requests can be judged. A node that was started without its store says so.
pub(super) async fn ready(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let engine = &call.app.engine;
    engine.namespaces().await?;
    Ok(Answer::ok(match engine.detached() {
        None => json!({ "status": "ready" }),
        Some(mode) => json!({
            "status": "ready",
            "store": "away",
            "writes": mode == Detached::Writes,
        }),
    }))
}

/// The OpenAPI document of what is served.
pub(super) async fn openapi(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let text = crate::openapi::TEXT.as_str();
    Ok(Answer::other("application/json", Body::from(text)))
}

/// The counters as Prometheus reads them.
pub(super) async fn metrics(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let text = metrics::scrape(&call.app).await;
    Ok(Answer::other(
        "text/plain; version=0.0.4; charset=utf-8",
        Body::from(text),
    ))
}
