//! Restores: putting a database back in place, what that would do, the list of them, and taking one back.

use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tidelog_engine::bucket::At;
use tidelog_engine::system::tokens::token_id_text;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::restores::RestoreRecord;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind, RewindPlan};
use tidelog_wal::Position;

use super::forks::token;
use super::operations::outcome;
use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// The longest reason in characters.
const REASON_MAX: usize = 500;

/// A bookmark among the fields of an object.
pub(super) fn bookmark(fields: &mut Fields, name: &str) -> Result<Option<Position>, Problem> {
    let Some(text) = fields.text(name)? else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let detail =
            format!("{text:?} is not a bookmark: term(8)-txid(16)-chain(32), lower-case hex");
        Problem::invalid(Code::BookmarkMalformed, &fields.at(name), detail)
    })
}

/// The object `target`, which has to be there.
fn target(call: &mut Call) -> Result<RestoreTarget, Problem> {
    let value = call.body.take("target").ok_or_else(|| {
        let detail =
            "target is required: {\"bookmark\": ...}, {\"timestamp\": ...}, {\"snapshot\": ...}, {\"before_restore\": ...} or {\"archive\": ...}";
        Problem::invalid(Code::InvalidRequest, "/target", detail)
    })?;
    target_of(Fields::of_value(value, "/target")?)
}

/// A state, named in exactly one way.
pub(super) fn target_of(mut fields: Fields) -> Result<RestoreTarget, Problem> {
    let bookmark = bookmark(&mut fields, "bookmark")?.map(At::Bookmark);
    let timestamp = fields.time("timestamp")?.map(At::Time);
    let before = fields.text("before_restore")?.map(RestoreTarget::Before);
    let archive = fields.text("archive")?.map(RestoreTarget::Archive);
    let snapshot = fields.text("snapshot")?.map(At::Snapshot);
    fields.finish()?;
    let at = [bookmark, timestamp, snapshot].map(|at| at.map(RestoreTarget::At));
    let mut named = at.into_iter().chain([before, archive]).flatten();
    match (named.next(), named.next()) {
        (Some(target), None) => Ok(target),
        _ => {
            let detail = "target names exactly one of bookmark, timestamp, snapshot, before_restore, archive";
            Err(Problem::invalid(Code::InvalidRequest, "/target", detail))
        }
    }
}

/// `"mode": "new"`: the state becomes a database of its own.
async fn new_database(mut call: Call, target: RestoreTarget) -> Result<Answer, Problem> {
    let at = match target {
        RestoreTarget::At(at) => at,
        RestoreTarget::Archive(id) => {
            let name = call.body.required_text("name")?;
            call.finish()?;
            // Only one of this very database.
            call.database().await?.archive(&id).await?;
            return super::archives::seeded(&call, &name, &id).await;
        }
        RestoreTarget::Before(_) => {
            let detail = "mode new takes a bookmark, a timestamp, a snapshot or an archive";
            return Err(Problem::invalid(Code::InvalidRequest, "/target", detail));
        }
    };
    let fork = Fork {
        at,
        token: token(&call)?,
        ..Fork::named(call.body.required_text("name")?)
    };
    call.finish()?;
    let handle = call.database().await?.fork(fork).await?;
    outcome(&call, handle, StatusCode::CREATED).await
}

fn plan_shown(plan: &RewindPlan) -> Json {
    let size = plan.page_size;
    json!({
        "id": plan.id,
        "bookmark": plan.target.position.to_string(),
        "committed_at": time::format(plan.target.time),
        "current_bookmark": plan.current.position().to_string(),
        "commits_undone": plan.commits_undone(),
        "way": plan.way().as_str(),
        "archive": plan.archive().map(|archive| archive.id.to_string()),
        "bytes_to_fetch": plan.bytes_to_fetch(),
        "objects_to_fetch": plan.objects_to_fetch(),
        "database_size": plan.current.pages.bytes(size),
        "database_size_after": plan.target.n.bytes(size),
        "estimated_ms": super::shape::millis(plan.estimate()),
    })
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let plan = call.body.text("plan")?;
    let target = match &plan {
        // The plan says it all; a target beside it must not be ignored.
        Some(_) if call.body.take("target").is_some() => {
            let detail = "a plan names its target: leave target out";
            return Err(Problem::invalid(Code::InvalidRequest, "/target", detail));
        }
        Some(_) => RestoreTarget::At(At::Latest),
        None => target(&mut call)?,
    };
    let mode = call.body.word("mode", |word| match word {
        "in_place" => Ok(false),
        "new" => Ok(true),
        _ => Err(format!("mode is in_place or new, not {word:?}")),
    })?;
    if mode == Some(true) {
        return new_database(call, target).await;
    }
    let dry_run = call.body.boolean("dry_run")?.unwrap_or(false);
    let quick_check = call.body.word("verify", |word| match word {
        "quick" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!("verify is none or quick, not {word:?}")),
    })?;
    let preserve_as = call.body.text("preserve_as")?;
    let reason = call.body.text("reason")?;
    if reason
        .as_ref()
        .is_some_and(|text| text.chars().count() > REASON_MAX)
    {
        let detail = format!("a reason has at most {REASON_MAX} characters");
        return Err(Problem::invalid(Code::InvalidRequest, "/reason", detail));
    }
    call.finish()?;
    let database = call.database().await?;
    if dry_run {
        if plan.is_some() {
            let detail = "a plan is run, not previewed again: leave dry_run out";
            return Err(Problem::invalid(Code::InvalidRequest, "/dry_run", detail));
        }
        let plan = database.preview(&target).await?;
        return Ok(Answer::ok(json!({ "plan": plan_shown(&plan) })));
    }
    let rewind = Rewind {
        only_at: call.if_match,
        plan,
        preserve_as,
        quick_check: quick_check.unwrap_or(false),
        reason,
        token: Some(token_id_text(&call.principal()?.token.id)),
        ..Rewind::to(target)
    };
    let handle = database.rewind(rewind).await?;
    outcome(&call, handle, StatusCode::OK).await
}

fn shown(record: &RestoreRecord) -> Json {
    json!({
        "id": record.id,
        "operation": record.operation,
        "created_at": time::format(record.created_at),
        "ended_at": record.ended_at.map(time::format),
        "token": record.token,
        "reason": record.reason,
        "undo_of": record.undo_of,
        "to": record.target.to_string(),
        "from": record.previous.to_string(),
        "previous_bookmark": record.previous.to_string(),
        "bookmark": super::shape::position(record.bookmark),
        "outcome": record.outcome.as_str(),
        "archive": record.archive,
        "preserved_as": record.preserved_as,
        "pages_changed": record.pages_changed,
        "duration_ms": record.duration_micros.map(|micros| micros / 1000),
        "error": record.error,
    })
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.database().await?.restores(page).await?;
    let items: Vec<Json> = found.items.iter().map(shown).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("restore")?;
    let record = call.database().await?.restore(&id).await?;
    Ok(Answer::ok(shown(&record)))
}

/// `POST undo`: `{"force": "<present bookmark>"}` takes back what came after the restore, too.
pub(super) async fn undo(mut call: Call) -> Result<Answer, Problem> {
    let force = bookmark(&mut call.body, "force")?;
    call.finish()?;
    let id = call.name("restore")?;
    let token = Some(token_id_text(&call.principal()?.token.id));
    let handle = call.database().await?.undo(&id, force, token).await?;
    outcome(&call, handle, StatusCode::OK).await
}
