//! What is on record: the audit log, what queries cost, and the slow ones.

use serde_json::{Value as Json, json};
use tidelog_engine::system::audit::AuditFilter;
use tidelog_engine::system::tokens::token_id_text;

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// Hours that insights look back at most, and when nothing is said.
const HOURS_MAX: u64 = 168;
const HOURS_DEFAULT: u64 = 24;

/// Turns the microseconds of a line into its time.
fn timed(mut line: Json) -> Json {
    if let Some(fields) = line.as_object_mut()
        && let Some(micros) = fields.remove("at_micros").and_then(|at| at.as_u64())
    {
        let at = time::format(tidelog_wal::Timestamp::from_micros(micros));
        fields.insert("timestamp".to_owned(), json!(at));
    }
    line
}

pub(super) async fn audit(mut call: Call) -> Result<Answer, Problem> {
    let filter = AuditFilter {
        event: call.query.text("action")?,
        since: call.query.time("since")?,
    };
    let (page, link) = call.page()?;
    call.finish()?;
    let token = &call.principal()?.token;
    let found = call
        .app
        .engine
        .audit_list(token.namespace, filter, page)
        .await?;
    // To a token for some databases the log is about those.
    let listed = token.databases.as_deref();
    let own = |line: &Json| {
        let of = line["details"]["database"].as_str();
        listed.is_none_or(|listed| listed.iter().any(|name| Some(name.as_str()) == of))
    };
    let items = found.items.into_iter().filter(own).map(timed);
    let items: Vec<Json> = items.collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn insights(mut call: Call) -> Result<Answer, Problem> {
    let hours = call.query.number("hours")?.unwrap_or(HOURS_DEFAULT);
    call.finish()?;
    if !(1..=HOURS_MAX).contains(&hours) {
        let detail = format!("hours is from 1 to {HOURS_MAX}");
        return Err(Problem::invalid(Code::InvalidRequest, "/hours", detail));
    }
    let database = call.database().await?;
    let found = call.app.engine.insights(database.row().id, hours).await?;
    let items: Vec<Json> = found
        .iter()
        .map(|one| {
            json!({
                "hour": time::format(one.hour),
                "token": token_id_text(&one.token),
                "status": one.status,
                "requests": one.requests,
                "rows_read": one.rows_read,
                "rows_written": one.rows_written,
                "duration_ms": shape::millis(one.total),
                "longest_ms": shape::millis(one.longest),
            })
        })
        .collect();
    Ok(Answer::ok(json!({ "hours": hours, "items": items })))
}

pub(super) async fn slow_queries(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let database = call.database().await?;
    let found = call
        .app
        .engine
        .slow_queries(database.row().id, page)
        .await?;
    let items: Vec<Json> = found.items.into_iter().map(timed).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}
