//! Databases: create, list, show, change, delete for a while, bring back.

use tidelog_engine::{DatabasePatch, Durability, NewDatabase};

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let name = call.body.required_text("name")?;
    let page_size = match call.body.number("page_size")? {
        None => None,
        Some(size) => Some(u32::try_from(size).map_err(|_| {
            Problem::invalid(
                Code::InvalidRequest,
                "/page_size",
                "page_size is out of range",
            )
        })?),
    };
    let durability = call.body.word("durability", str::parse::<Durability>)?;
    call.finish()?;
    let spec = NewDatabase {
        name,
        page_size,
        durability,
    };
    let info = call
        .app
        .engine
        .database_create(&call.namespace()?, spec)
        .await?;
    Ok(Answer::created(shape::database(&info)).at(info.bookmark, info.durable_bookmark))
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let namespace = call.namespace()?;
    let visible = call.principal()?.databases.clone();
    let found = call.app.engine.database_list(namespace.id, page).await?;
    let mine = |name: &str| {
        visible
            .as_ref()
            .is_none_or(|names| names.iter().any(|one| one == name))
    };
    let items = found
        .items
        .iter()
        .filter(|info| mine(&info.name))
        .map(shape::database)
        .collect();
    Ok(Answer::page(items, found.next_cursor, &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let info = call
        .app
        .engine
        .database_info(call.namespace()?.id, &call.name("db")?)
        .await?;
    Ok(Answer::ok(shape::database(&info)).at(info.bookmark, info.durable_bookmark))
}

pub(super) async fn change(mut call: Call) -> Result<Answer, Problem> {
    let patch = DatabasePatch {
        block_reads: call.body.boolean("block_reads")?,
        block_writes: call.body.boolean("block_writes")?,
        delete_protection: call.body.boolean("delete_protection")?,
        durability: call.body.word("durability", str::parse::<Durability>)?,
    };
    call.finish()?;
    let namespace = call.namespace()?;
    let info = call
        .app
        .engine
        .database_patch(namespace.id, &call.name("db")?, patch)
        .await?;
    Ok(Answer::ok(shape::database(&info)).at(info.bookmark, info.durable_bookmark))
}

pub(super) async fn delete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    call.app
        .engine
        .database_delete(call.namespace()?.id, &call.name("db")?)
        .await?;
    Ok(Answer::nothing())
}

pub(super) async fn undelete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let namespace = call.namespace()?;
    let info = call
        .app
        .engine
        .database_undelete(namespace.id, &call.name("db")?)
        .await?;
    Ok(Answer::ok(shape::database(&info)).at(info.bookmark, info.durable_bookmark))
}
