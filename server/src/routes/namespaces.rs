//! Namespaces: made with the server token, together with their first owner token.

use serde_json::{Value as Json, json};
use tidelog_engine::{NewToken, Scope, TokenKind};

use super::tokens;
use crate::http::{Answer, Call};
use crate::problem::Problem;

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let name = call.body.required_text("name")?;
    call.finish()?;
    let engine = &call.app.engine;
    let namespace = engine.namespace_create(&name).await?;
    let spec = NewToken {
        namespace: namespace.id,
        kind: TokenKind::Live,
        scopes: vec![Scope::Admin],
        databases: None,
        expires_at: None,
        allow_ddl: true,
        owner: true,
    };
    let (info, secret) = engine.token_create(spec).await?;
    let document = |token: Json| json!({ "name": namespace.name, "id": namespace.id.to_string(), "owner_token": token });
    let mut answer = Answer::created(document(tokens::first(&info, &secret)));
    answer.replay = Some(document(Json::Null));
    Ok(answer)
}
