//! Snapshots: names for commits.

use serde_json::{Value as Json, json};
use tidelog_engine::bucket::At;
use tidelog_engine::travel::labels::{NewSnapshot, Snapshot, SnapshotState};

use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

fn shown(snapshot: &Snapshot) -> Json {
    json!({
        "name": snapshot.name,
        "note": snapshot.note,
        "bookmark": snapshot.bookmark.to_string(),
        "committed_at": time::format(snapshot.committed_at),
        "created_at": time::format(snapshot.created_at),
        "pinned": snapshot.pinned,
        "state": snapshot.state.as_str(),
        "durable": snapshot.state == SnapshotState::Restorable,
        "expires_at": snapshot.expires_at.map(time::format),
        "database_size": snapshot.database_bytes,
    })
}

/// The commit that `bookmark` or `timestamp` means; the newest without either.
fn target(fields: &mut Fields) -> Result<At, Problem> {
    let bookmark = fields.word("bookmark", |text| {
        text.parse().map_err(|_| {
            format!("{text:?} is not a bookmark: term(8)-txid(16)-chain(32), lower-case hex")
        })
    });
    let bookmark = bookmark.map_err(|problem| {
        let detail = problem.detail().to_owned();
        Problem::invalid(Code::BookmarkMalformed, "/bookmark", detail)
    })?;
    match (bookmark, fields.time("timestamp")?) {
        (Some(_), Some(_)) => {
            let detail = "give a bookmark or a timestamp, not both";
            Err(Problem::invalid(Code::InvalidRequest, "/timestamp", detail))
        }
        (Some(bookmark), None) => Ok(At::Bookmark(bookmark)),
        (None, Some(timestamp)) => Ok(At::Time(timestamp)),
        (None, None) => Ok(At::Latest),
    }
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let new = NewSnapshot {
        name: call.body.required_text("name")?,
        note: call.body.text("note")?.unwrap_or_default(),
        at: target(&mut call.body)?,
        pin: call.body.boolean("pin")?.unwrap_or(false),
        expires_at: call.body.time("expires_at")?,
    };
    call.finish()?;
    let made = call.database().await?.snapshot_create(new).await?;
    Ok(Answer::created(shown(&made)))
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.database().await?.snapshots(page).await?;
    let items: Vec<Json> = found.items.iter().map(shown).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let name = call.name("snapshot")?;
    Ok(Answer::ok(shown(
        &call.database().await?.snapshot(&name).await?,
    )))
}

pub(super) async fn delete(mut call: Call) -> Result<Answer, Problem> {
    let unpin = call.query.boolean("unpin")?.unwrap_or(false);
    call.finish()?;
    let name = call.name("snapshot")?;
    call.database().await?.snapshot_delete(&name, unpin).await?;
    Ok(Answer::nothing())
}
