//! Namespaces: made with the server token, together with their first owner token.

use serde_json::{Value as Json, json};
use tidelog_engine::system::databases::Namespace;
use tidelog_engine::system::tokens::TokenInfo;

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::Problem;

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
