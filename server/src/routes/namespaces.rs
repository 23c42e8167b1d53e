//! Namespaces: made with the server token, together with their first owner token; ended by an owner, with every
//! database in them, for seven days or for good.

use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tidelog_engine::system::databases::Namespace;
use tidelog_engine::system::tokens::{TokenInfo, token_id_text};

use super::operations::{outcome, shown};
use super::shape;
use crate::http::{Answer, Call};
use crate::problem::Problem;
use crate::time;

fn document(namespace: &Namespace, owner: &TokenInfo, secret: Option<&str>) -> Json {
    let mut token = shape::token(owner);
    token["token"] = json!(secret);
    json!({ "name": namespace.name, "id": namespace.id.to_string(), "owner_token": token })
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let name = call.body.required_text("name")?;
    call.finish()?;
    let (engine, recorder) = (&call.app.engine, &call.recorder);
    let kept = |namespace: &Namespace, owner: &TokenInfo| {
        recorder.record(&Answer::created(document(namespace, owner, None)))
    };
    let (namespace, owner, secret) = engine.namespace_create_owned(&name, kept).await?;
    let document = document(&namespace, &owner, Some(&secret));
    Ok(Answer::created(document))
}

/// The namespace of the caller as it stands.
async fn described(call: &Call) -> Result<Json, Problem> {
    let (engine, id) = (&call.app.engine, call.namespace()?);
    let namespace = engine.namespace_by_id(id).await?;
    let end = engine.namespace_end(id);
    Ok(json!({
        "name": namespace.name,
        "id": namespace.id.to_string(),
        "created_at": time::format(namespace.created_at),
        "state": match end {
            None => "ready",
            Some(end) if end.purging => "purging",
            Some(_) => "deleted",
        },
        "deleted_at": end.map(|end| time::format(end.deleted_at)),
        "purged_from": end.map(|end| time::format(end.over_at())),
    }))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    described(&call).await.map(Answer::ok)
}

pub(super) async fn delete(mut call: Call) -> Result<Answer, Problem> {
    let purge = call.query.boolean("purge")?.unwrap_or(false);
    call.finish()?;
    let (engine, id) = (&call.app.engine, call.namespace()?);
    if purge {
        let token = token_id_text(&call.principal()?.token.id);
        let handle = engine.namespace_purge(id, Some(token)).await?;
        return outcome(&call, handle, StatusCode::OK).await;
    }
    engine.namespace_delete(id).await?;
    described(&call).await.map(Answer::ok)
}

pub(super) async fn undelete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let (engine, id) = (&call.app.engine, call.namespace()?);
    let back = engine.namespace_undelete(id).await?;
    let mut document = described(&call).await?;
    document["databases_brought_back"] = json!(back);
    Ok(Answer::ok(document))
}

/// An operation of a namespace that is gone, and with it whoever could ask for it there.
pub(super) async fn operation(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("operation")?;
    let operation = call.app.engine.operation_of_gone(&id).await?;
    Ok(Answer::ok(shown(&operation)))
}
