//! Namespaces: made with the server token, together with their first owner token.

use serde_json::json;
use tidelog_engine::Role;
use tidelog_engine::system::tokens::{NewToken, TokenKind};

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::Problem;

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let name = call.body.required_text("name")?;
    call.finish()?;
    let engine = &call.app.engine;
    let namespace = engine.namespace_create(&name).await?;
    let spec = NewToken {
        namespace: Some(namespace.id),
        kind: TokenKind::Live,
        role: Role::Owner,
        scopes: vec!["admin".to_owned()],
        databases: None,
        allow_ddl: true,
        expires_at: None,
    };
    let (info, secret) = engine.token_create(spec).await?;
    let mut token = shape::token(&info);
    token["token"] = json!(secret);
    let id = namespace.id.to_string();
    Ok(Answer::created(
        json!({ "name": namespace.name, "id": id, "owner_token": token }),
    ))
}
