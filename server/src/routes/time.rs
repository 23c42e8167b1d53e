//! Time: where a database stands, where it stood, how far back it can go, and every commit between.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_wal::{Position, Timestamp};

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// The longest a lookup waits for durability.
const WAIT_MS_MAX: u64 = 30_000;

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
        wait => wait.map(Duration::from_millis),
    };
    call.finish()?;
    let at = call.database().await?.bookmark(wait).await?;
    let document = json!({
        "bookmark": shape::position(Some(at.bookmark)),
        "durable_bookmark": shape::position(at.durable_bookmark),
        "committed_at": time::format(at.committed_at),
        "lag_commits": at.lag_commits,
        "lag_bytes": at.lag_bytes,
        "lag_ms": at.lag_ms,
    });
    Ok(Answer::ok(document).at(Some(at.bookmark), at.durable_bookmark))
}

pub(super) async fn at(mut call: Call) -> Result<Answer, Problem> {
    let timestamp: Option<Timestamp> = call.query.time("timestamp")?;
    let timestamp = timestamp.ok_or_else(|| {
        Problem::invalid(Code::InvalidRequest, "/timestamp", "timestamp is required")
    })?;
    call.finish()?;
    let found = call.database().await?.bookmark_at(timestamp).await?;
    Ok(Answer::ok(json!({
        "bookmark": shape::position(Some(found.bookmark)),
        "committed_at": time::format(found.committed_at),
        "exact": found.exact,
        "database_size": found.database_size,
        "restorable": found.restorable,
        "durable": found.durable,
    })))
}

pub(super) async fn window(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let window = call.database().await?.recovery_window().await?;
    let end = |position: Position, time: Timestamp| json!({ "bookmark": position.to_string(), "committed_at": time::format(time) });
    let gaps: Vec<Json> = window
        .gaps
        .iter()
        .map(|gap| json!({ "after": gap.after.get(), "before": gap.before.get() }))
        .collect();
    Ok(Answer::ok(json!({
        "earliest": window.earliest.map(|(position, time)| end(position, time)),
        "latest": window.latest.map(|(position, time)| end(position, time)),
        "latest_durable": window.latest_durable.map(|(position, time)| end(position, time)),
        "lag_ms": window.lag_ms,
        "time_since_last_durable_ms": window.time_since_last_durable_ms,
        "continuity": window.continuity,
        "gaps": gaps,
    })))
}

pub(super) async fn history(mut call: Call) -> Result<Answer, Problem> {
    let from = bookmark(&mut call, "from")?.map(|position| position.txid);
    let to = bookmark(&mut call, "to")?.map(|position| position.txid);
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.database().await?.history(from, to, page).await?;
    let items = found.items.iter().map(|entry| {
        json!({
            "bookmark": entry.bookmark.to_string(),
            "committed_at": time::format(entry.committed_at),
            "kind": entry.kind,
            "pages": entry.pages,
            "bytes": entry.bytes,
            "page_count": entry.page_count,
            "tables": entry.tables,
            "token": entry.token,
            "request_id": entry.request_id,
        })
    });
    Ok(Answer::page(items.collect(), found.next_cursor, &link))
}
