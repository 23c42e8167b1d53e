//! Time: where a database stands, where it stood, how far back it can go, and every commit between.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_wal::Position;

use super::{shape, verifications};
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

/// A bookmark among the query parameters.
pub(super) fn bookmark(call: &mut Call, name: &str) -> Result<Option<Position>, Problem> {
    let Some(text) = call.query.text(name)? else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let detail =
            format!("{text:?} is not a bookmark: term(8)-txid(16)-chain(32), lower-case hex");
        Problem::invalid(Code::BookmarkMalformed, &format!("/{name}"), detail)
    })
}

pub(super) async fn at(mut call: Call) -> Result<Answer, Problem> {
    let timestamp = call.query.time("timestamp")?.ok_or_else(|| {
        Problem::invalid(Code::InvalidRequest, "/timestamp", "timestamp is required")
    })?;
    call.finish()?;
    let found = call.database().await?.bookmark_at(timestamp).await?;
    Ok(Answer::ok(json!({
        "bookmark": found.bookmark.to_string(),
        "committed_at": time::format(found.committed_at),
        "exact": found.exact,
        "database_size": found.database_bytes,
        // It was found in the store, which is where a restore reads.
        "restorable": true,
        "durable": true,
    })))
}

pub(super) async fn window(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let database = call.database().await?;
    let window = database.recovery_window().await?;
    let last_verified = database.last_verified().await?;
    let measured = database.measured_restore().await?;
    let gaps: Vec<Json> = window
        .gaps
        .iter()
        .map(|(after, resumes)| json!({ "after": after.to_string(), "resumes": resumes.to_string() }))
        .collect();
    let document = json!({
        "earliest": shape::position(window.earliest.map(|(position, _)| position)),
        "earliest_committed_at": window.earliest.map(|(_, committed_at)| time::format(committed_at)),
        "latest": window.latest.to_string(),
        "latest_durable": shape::position(window.latest_durable),
        "lag_ms": shape::millis(window.lag),
        "continuity": if gaps.is_empty() { "ok" } else { "gap" },
        "gaps": gaps,
        "rpo": rpo(window.lag),
        "rto_ms": measured.map(shape::millis),
        "last_verified": last_verified.as_ref().map(verifications::shown),
    });
    Ok(Answer::ok(document))
}

/// What could be lost, by durability of the write: what it survives at the least, and the age of what would be
/// lost if the machine were gone now.
fn rpo(lag: Duration) -> Json {
    let level = |survives: &str, at_risk: Duration| json!({ "survives": survives, "at_risk_ms": shape::millis(at_risk) });
    json!({
        "memory": level("process_crash", lag),
        "local": level("power_loss", lag),
        "remote": level("machine_loss", Duration::ZERO),
    })
}

pub(super) async fn history(mut call: Call) -> Result<Answer, Problem> {
    let from = bookmark(&mut call, "from")?;
    let to = bookmark(&mut call, "to")?;
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.database().await?.history(from, to, page).await?;
    let items: Vec<Json> = found.items.iter().map(shape::commit).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}
