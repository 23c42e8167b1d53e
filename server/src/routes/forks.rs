//! Forks and branches: databases that begin in another's history.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tidelog_engine::bucket::At;
use tidelog_engine::system::databases::DatabaseRow;
use tidelog_engine::system::tokens::token_id_text;
use tidelog_engine::travel::branches::Branched;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::RestoreTarget;

use super::operations::outcome;
use super::restores::target_of;
use super::shape;
use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// How long a fork that goes by itself may live, in seconds: a day to thirty.
const TTL_SECONDS: std::ops::RangeInclusive<u64> = 86_400..=2_592_000;

/// The state that `target` names, the newest without one.
fn state(call: &mut Call) -> Result<At, Problem> {
    let Some(value) = call.body.take("target") else {
        return Ok(At::Latest);
    };
    match target_of(Fields::of_value(value, "/target")?)? {
        RestoreTarget::At(at) => Ok(at),
        RestoreTarget::Before(_) | RestoreTarget::Archive(_) => {
            let detail = "a fork begins at a bookmark, a timestamp or a snapshot";
            Err(Problem::invalid(Code::InvalidRequest, "/target", detail))
        }
    }
}

/// `ttl_seconds` of a body.
pub(super) fn lives(fields: &mut Fields) -> Result<Option<Duration>, Problem> {
    match fields.number("ttl_seconds")? {
        None => Ok(None),
        Some(seconds) if TTL_SECONDS.contains(&seconds) => Ok(Some(Duration::from_secs(seconds))),
        Some(_) => {
            let (from, to) = (TTL_SECONDS.start(), TTL_SECONDS.end());
            let detail = format!("ttl_seconds is from {from} (a day) to {to} (30 days)");
            let place = fields.at("ttl_seconds");
            Err(Problem::invalid(Code::InvalidRequest, &place, detail))
        }
    }
}

pub(super) fn token(call: &Call) -> Result<Option<String>, Problem> {
    Ok(Some(token_id_text(&call.principal()?.token.id)))
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let fork = Fork {
        at: state(&mut call)?,
        schema_only: call.body.boolean("schema_only")?.unwrap_or(false),
        lives: lives(&mut call.body)?,
        token: token(&call)?,
        ..Fork::named(call.body.required_text("name")?)
    };
    call.finish()?;
    let handle = call.database_or_deleted().await?.fork(fork).await?;
    outcome(&call, handle, StatusCode::CREATED).await
}

/// A fork as a list of its parent's shows it.
fn shown(row: &DatabaseRow, region: &str) -> Json {
    let mut document = shape::database(row, region);
    document["branch"] = json!(row.branch);
    document
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let found = call.database().await?.forks().await?;
    let items: Vec<Json> = found
        .iter()
        .map(|row| shown(row, &call.app.region))
        .collect();
    Ok(Answer::page(&items, None, ""))
}

pub(super) async fn detach(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let token = token(&call)?;
    let handle = call.database().await?.detach(token).await?;
    outcome(&call, handle, StatusCode::OK).await
}

pub(super) async fn branch_put(mut call: Call) -> Result<Answer, Problem> {
    let at = state(&mut call)?;
    let lives = lives(&mut call.body)?;
    call.finish()?;
    let (database, name, token) = (call.database().await?, call.name("ref")?, token(&call)?);
    match database.branch_put(&name, at, lives, token).await? {
        Branched::Stands(row) => Ok(Answer::ok(
            json!({ "database": shown(&row, &call.app.region) }),
        )),
        Branched::Begun(handle) => outcome(&call, handle, StatusCode::CREATED).await,
    }
}

pub(super) async fn branch_list(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let found = call.database().await?.branches().await?;
    let items: Vec<Json> = found
        .iter()
        .map(|row| shown(row, &call.app.region))
        .collect();
    Ok(Answer::page(&items, None, ""))
}

pub(super) async fn branch_show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let row = call.database().await?.branch(&call.name("ref")?).await?;
    Ok(Answer::ok(shown(&row, &call.app.region)))
}

pub(super) async fn branch_delete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let name = call.name("ref")?;
    call.database().await?.branch_delete(&name).await?;
    Ok(Answer::nothing())
}
