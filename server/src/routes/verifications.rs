//! Verifications: making one, the list of them, and when they are made by themselves.

use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tidelog_engine::system::tokens::token_id_text;
use tidelog_engine::travel::verify::{Level, NewVerification, Schedule, Verification};

use super::archives::state;
use super::operations::outcome;
use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// A verification as the API shows it.
pub(super) fn shown(one: &Verification) -> Json {
    json!({
        "id": one.id,
        "level": one.level.as_str(),
        "outcome": one.outcome.as_str(),
        "started_at": time::format(one.started_at),
        "ended_at": time::format(one.ended_at),
        "bookmark": one.bookmark,
        "restore_duration_ms": one.restore_duration.map(shape::millis),
        "scheduled": one.scheduled,
        "covers": one.covers,
        "findings": one.findings,
    })
}

fn percent(call: &mut Call) -> Result<u8, Problem> {
    let asked = call.body.number("sample_percent")?.unwrap_or(100);
    u8::try_from(asked)
        .ok()
        .filter(|percent| (1..=100).contains(percent))
        .ok_or_else(|| {
            let detail = "sample_percent is from 1 to 100";
            Problem::invalid(Code::InvalidRequest, "/sample_percent", detail)
        })
}

fn level(call: &mut Call) -> Result<Level, Problem> {
    call.body.word("level", Level::parse)?.ok_or_else(|| {
        let detail = "level is required: objects, chain, restore or full";
        Problem::invalid(Code::InvalidRequest, "/level", detail)
    })
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let new = NewVerification {
        level: level(&mut call)?,
        at: state(&mut call.body, "target")?,
        sample_percent: percent(&mut call)?,
        token: Some(token_id_text(&call.principal()?.token.id)),
    };
    if new.at.is_some() && matches!(new.level, Level::Objects | Level::Chain) {
        let detail = "the levels objects and chain look at all of history: leave target out";
        return Err(Problem::invalid(Code::InvalidRequest, "/target", detail));
    }
    call.finish()?;
    let handle = call.database().await?.verify(new).await?;
    outcome(&call, handle, StatusCode::OK).await
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.database().await?.verifications(page).await?;
    let items: Vec<Json> = found.items.iter().map(shown).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

fn scheduled(schedule: Option<&Schedule>) -> Answer {
    Answer::ok(json!({ "schedule": schedule.map(|schedule| json!({
        "every_seconds": schedule.every.as_secs(),
        "level": schedule.level.as_str(),
        "sample_percent": schedule.sample_percent,
        "due_at": time::format(schedule.due),
    })) }))
}

pub(super) async fn schedule(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let schedule = call.database().await?.verification_schedule().await?;
    Ok(scheduled(schedule.as_ref()))
}

pub(super) async fn set_schedule(mut call: Call) -> Result<Answer, Problem> {
    let every = shape::span(&mut call, "every")?;
    let level = level(&mut call)?;
    let percent = percent(&mut call)?;
    call.finish()?;
    let database = call.database().await?;
    let set = database
        .set_verification_schedule(Some((every, level, percent)))
        .await?;
    Ok(scheduled(set.as_ref()))
}

pub(super) async fn end_schedule(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let database = call.database().await?;
    database.set_verification_schedule(None).await?;
    Ok(Answer::nothing())
}
