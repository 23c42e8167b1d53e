//! Time: where a database stands.

use std::time::Duration;

use serde_json::json;

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// The longest a lookup waits for durability.
const WAIT_MS_MAX: u64 = 30_000;
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) async fn current(mut call: Call) -> Result<Answer, Problem> {
    let wait = match call.query.number("wait_durable_ms")? {
        Some(wait) if wait > WAIT_MS_MAX => {
            let detail = format!("wait_durable_ms is at most {WAIT_MS_MAX}");
            return Err(Problem::invalid(
                Code::InvalidRequest,
                "/wait_durable_ms",
                detail,
            ));
        }
        wait => Duration::from_millis(wait.unwrap_or(0)),
    };
    call.finish()?;
    let database = call.database().await?;
    let began = call.app.clock.monotonic_micros();
    let first = database.bookmark().await?;
    let mut at = first;
    let over = |now: u64| u128::from(now.saturating_sub(began)) >= wait.as_micros();
    // What is waited for is the commit that was newest when the question came.
    while at
        .durable_bookmark
        .is_none_or(|durable| durable.txid < first.bookmark.txid)
        && !over(call.app.clock.monotonic_micros())
    {
        tokio::time::sleep(LOOK_EVERY).await;
        at = database.bookmark().await?;
    }
    let document = json!({
        "bookmark": shape::position(Some(at.bookmark)),
        "durable_bookmark": shape::position(at.durable_bookmark),
        "committed_at": time::format(at.committed_at),
        "lag_commits": at.lag_commits,
        "lag_bytes": at.lag_bytes,
        "lag_ms": shape::millis(at.lag),
    });
    Ok(Answer::ok(document).at(Some(at.bookmark), at.durable_bookmark))
}
