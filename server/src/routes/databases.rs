//! Databases: create, list, show, change, delete for a while, bring back.

use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tidelog_engine::bucket::At;
use tidelog_engine::sql::connection::AutoVacuum;
use tidelog_engine::system::databases::DatabasePatch;
use tidelog_engine::system::tokens::token_id_text;
use tidelog_engine::travel::deletion::{Forks, Purge};
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::retention::{DAY_MICROS, WINDOW_DAYS};
use tidelog_engine::{Database, Draft, Durability, NewDatabase};
use tidelog_wal::PageSize;

use super::operations::outcome;
use super::{archives, shape};
use crate::config::Regulation;
use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// A database with where it stands.
async fn described(call: &Call, database: &Database) -> Result<(Json, Answer), Problem> {
    let at = database.bookmark().await?;
    let mut document = shape::database(database.row(), &call.app.region);
    document["bookmark"] = shape::position(Some(at.bookmark));
    document["durable_bookmark"] = shape::position(at.durable_bookmark);
    document["size_bytes"] = json!(at.size_bytes);
    document["history_bytes"] = json!(database.history_bytes());
    document["lag_commits"] = json!(at.lag_commits);
    document["lag_bytes"] = json!(at.lag_bytes);
    document["lag_ms"] = json!(shape::millis(at.lag));
    let place = Answer::nothing().at(Some(at.bookmark), at.durable_bookmark);
    Ok((document, place))
}

async fn shown(call: &Call, database: &Database) -> Result<Answer, Problem> {
    let (document, place) = described(call, database).await?;
    Ok(Answer::ok(document).at(place.bookmark, place.durable_bookmark))
}

/// Gives a database its name, together with the record of the answer, and answers it.
pub(super) async fn publish(call: &Call, draft: Draft) -> Result<Answer, Problem> {
    let (document, place) = described(call, draft.database()).await?;
    let answer = Answer::created(document).at(place.bookmark, place.durable_bookmark);
    draft.publish(call.recorder.record(&answer)).await?;
    Ok(answer)
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let name = call.body.required_text("name")?;
    in_region(&mut call)?;
    let mut new = NewDatabase::named(name);
    if let Some(bytes) = call.body.number("page_size")? {
        let size = u32::try_from(bytes).ok().and_then(PageSize::new);
        new.page_size = size.ok_or_else(|| {
            let detail = "page_size is a power of two from 512 to 65536";
            Problem::invalid(Code::InvalidRequest, "/page_size", detail)
        })?;
    }
    let auto_vacuum = call.body.word("auto_vacuum", |word| match word {
        "none" => Ok(AutoVacuum::None),
        "full" => Ok(AutoVacuum::Full),
        "incremental" => Ok(AutoVacuum::Incremental),
        _ => Err(format!(
            "auto_vacuum is none, full or incremental, not {word:?}"
        )),
    })?;
    if let Some(seed) = call.body.take("seed") {
        let plain = new.page_size == PageSize::DEFAULT && auto_vacuum.is_none();
        return seeded(call, new.name, seed, plain).await;
    }
    new.auto_vacuum = auto_vacuum.unwrap_or_default();
    call.finish()?;
    let namespace = call.namespace()?;
    let draft = call.app.engine.database_draft(namespace, new).await?;
    publish(&call, draft).await
}

/// `region`: `auto`, or the one there is.
fn in_region(call: &mut Call) -> Result<(), Problem> {
    let own = call.app.region.clone();
    let known = |word: &str| match word {
        "auto" => Ok(()),
        word if word == own => Ok(()),
        _ => Err(format!(
            "this server stores in the region {own:?} alone; leave it out or say auto"
        )),
    };
    call.body.word("region", known).map(|_| ())
}

/// `seed`: the new database begins as a fork of another one, or as an archive.
async fn seeded(mut call: Call, name: String, seed: Json, plain: bool) -> Result<Answer, Problem> {
    let mut fields = Fields::of_value(seed, "/seed")?;
    if let Some(archive) = fields.text("archive")? {
        fields.finish()?;
        if !plain {
            return Err(not_plain());
        }
        call.finish()?;
        return archives::seeded(&call, &name, &archive).await;
    }
    let source = fields.required_text("database")?;
    let schema_only = fields.boolean("schema_only")?.unwrap_or(false);
    let bookmark = super::restores::bookmark(&mut fields, "bookmark")?.map(At::Bookmark);
    let time = fields.time("timestamp")?.map(At::Time);
    let snapshot = fields.text("snapshot")?.map(At::Snapshot);
    fields.finish()?;
    let given = [&bookmark, &time, &snapshot].into_iter().flatten().count();
    if given > 1 {
        let detail = "seed names one of bookmark, timestamp and snapshot";
        return Err(Problem::invalid(Code::InvalidRequest, "/seed", detail));
    }
    if !plain {
        return Err(not_plain());
    }
    let lives = super::forks::lives(&mut call.body)?;
    let fork = Fork {
        at: bookmark.or(time).or(snapshot).unwrap_or(At::Latest),
        schema_only,
        lives,
        token: super::forks::token(&call)?,
        ..Fork::named(name)
    };
    call.finish()?;
    super::may_fork(&call, &source).await?;
    let engine = &call.app.engine;
    let source = engine
        .database_or_deleted(call.namespace()?, &source)
        .await?;
    let handle = source.fork(fork).await?;
    outcome(&call, handle, StatusCode::CREATED).await
}

fn not_plain() -> Problem {
    let detail = "a seeded database has the page size and auto_vacuum of what it begins with";
    Problem::invalid(Code::InvalidRequest, "/seed", detail)
}

/// Lists settings; where each database stands is told by the database itself, which would have to be opened.
pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let visible = call.principal()?.token.databases.clone();
    let found = call
        .app
        .engine
        .database_list(call.namespace()?, page)
        .await?;
    let mine = |name: &str| {
        visible
            .as_ref()
            .is_none_or(|names| names.iter().any(|one| one == name))
    };
    let items: Vec<Json> = found
        .items
        .iter()
        .filter(|row| mine(&row.name))
        .map(|row| shape::database(row, &call.app.region))
        .collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    shown(&call, &call.database().await?).await
}

/// `retention`: `{"days": N}`, or the days that a regulation's name stands for.
fn retention(call: &mut Call) -> Result<Option<u64>, Problem> {
    let invalid = |detail: &str| Problem::invalid(Code::InvalidRequest, "/retention", detail);
    let days = match call.body.take("retention") {
        None => return Ok(None),
        Some(Json::String(preset)) => Regulation::parse(&preset)
            .map(Regulation::window_days)
            .ok_or_else(|| {
                invalid("retention is {\"days\": N}, or gdpr (7), soc2 (30), hipaa or pci (90)")
            })?,
        Some(value) => {
            let mut fields = Fields::of_value(value, "/retention")?;
            let days = fields.number("days")?;
            fields.finish()?;
            days.ok_or_else(|| invalid("retention needs days"))?
        }
    };
    let (least, most) = WINDOW_DAYS;
    if !(least..=most).contains(&days) {
        let detail = format!("retention is {least} to {most} days");
        return Err(Problem::invalid(
            Code::InvalidRequest,
            "/retention/days",
            detail,
        ));
    }
    Ok(Some(days * DAY_MICROS))
}

pub(super) async fn change(mut call: Call) -> Result<Answer, Problem> {
    if call.body.take("region").is_some() {
        let detail = "a database stays where it was made; fork it to have it elsewhere";
        return Err(Problem::new(Code::RegionFixed, detail).with("region", call.app.region.clone()));
    }
    let durability = if call.body.cleared("durability") {
        Some(None)
    } else {
        let named = call.body.word("durability", str::parse::<Durability>)?;
        named.map(Some)
    };
    let patch = DatabasePatch {
        block_reads: call.body.boolean("block_reads")?,
        block_writes: call.body.boolean("block_writes")?,
        delete_protection: call.body.boolean("delete_protection")?,
        durability,
        size_limit: call.body.limit("size_limit")?,
        history_limit: call.body.limit("history_limit_bytes")?,
        foreign_keys: call.body.boolean("foreign_keys")?,
        retention_micros: retention(&mut call)?,
    };
    call.finish()?;
    call.app
        .engine
        .database_patch(call.namespace()?, &call.name("db")?, patch)
        .await?;
    shown(&call, &call.database().await?).await
}

pub(super) async fn delete(mut call: Call) -> Result<Answer, Problem> {
    let purge = call.query.boolean("purge")?.unwrap_or(false);
    let detach_forks = call.query.boolean("detach_forks")?.unwrap_or(false);
    call.finish()?;
    let (engine, namespace, name) = (&call.app.engine, call.namespace()?, call.name("db")?);
    if purge {
        let token = Some(token_id_text(&call.principal()?.token.id));
        let forks = if detach_forks {
            Forks::Detach
        } else {
            Forks::Refuse
        };
        let purge = Purge { forks, token };
        let handle = engine.database_purge(namespace, &name, purge).await?;
        return outcome(&call, handle, StatusCode::OK).await;
    }
    if detach_forks {
        let detail =
            "detach_forks goes with purge=true: what is only hidden keeps what its forks need";
        let place = "/detach_forks";
        return Err(Problem::invalid(Code::InvalidRequest, place, detail));
    }
    let database = call.database().await?;
    engine.database_delete(namespace, &name).await?;
    let forks = database.forks().await?;
    if forks.is_empty() {
        return Ok(Answer::nothing());
    }
    let forks: Vec<String> = forks.into_iter().map(|fork| fork.name).collect();
    Ok(Answer::ok(json!({ "deleted": name, "forks": forks })))
}

pub(super) async fn undelete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let (engine, namespace) = (&call.app.engine, call.namespace()?);
    let database = engine
        .database_deleted(namespace, &call.name("db")?)
        .await?;
    let (mut document, place) = described(&call, &database).await?;
    document["state"] = json!("ready");
    let answer = Answer::ok(document).at(place.bookmark, place.durable_bookmark);
    let record = call.recorder.record(&answer);
    engine.database_revive(&database, record).await?;
    Ok(answer)
}
