//! Tokens: made, listed, revoked. The secret stands in the answer that makes it and nowhere else.

use serde_json::{Value as Json, json};
use tidelog_engine::{NewToken, Role, Scope, TokenKind};

use super::shape;
use crate::http::{Answer, Call, auth};
use crate::problem::{Code, Problem};

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let kind = call.body.word("kind", |word| match word {
        "live" => Ok(TokenKind::Live),
        "test" => Ok(TokenKind::Test),
        "cli" => Ok(TokenKind::Cli),
        _ => Err(format!("kind is live, test or cli, not {word:?}")),
    })?;
    let words = call.body.texts("scopes")?.unwrap_or_default();
    let scopes: Vec<Scope> = words
        .iter()
        .enumerate()
        .map(|(index, word)| match word.as_str() {
            "read" => Ok(Scope::Read),
            "write" => Ok(Scope::Write),
            "admin" => Ok(Scope::Admin),
            _ => {
                let detail = format!("a scope is read, write or admin, not {word:?}");
                let at = format!("/scopes/{index}");
                Err(Problem::invalid(Code::InvalidRequest, &at, detail))
            }
        })
        .collect::<Result<_, _>>()?;
    if scopes.is_empty() {
        let detail = "scopes is required: read, write or admin";
        return Err(Problem::invalid(Code::InvalidRequest, "/scopes", detail));
    }
    let databases = call.body.texts("databases")?;
    let allow_ddl = call.body.boolean("allow_ddl")?;
    let expires_at = call.body.time("expires_at")?;
    call.finish()?;
    let principal = call.principal()?;
    within_own_rights(principal, databases.as_deref(), allow_ddl)?;
    let spec = NewToken {
        namespace: call.namespace()?.id,
        kind: kind.unwrap_or(TokenKind::Live),
        scopes,
        databases,
        expires_at,
        allow_ddl: allow_ddl.unwrap_or(principal.allow_ddl),
        owner: false,
    };
    let (info, secret) = call.app.engine.token_create(spec).await?;
    let bare = shape::token(&info);
    let mut document = bare.clone();
    document["token"] = json!(secret);
    let mut answer = Answer::created(document);
    let mut replay = bare;
    replay["token"] = Json::Null;
    answer.replay = Some(replay);
    Ok(answer)
}

/// A token makes none that may do more than itself. Its role needs no check: no scope reaches above admin.
fn within_own_rights(
    principal: &tidelog_engine::Principal,
    databases: Option<&[String]>,
    allow_ddl: Option<bool>,
) -> Result<(), Problem> {
    debug_assert!(principal.role >= Role::Admin, "the route asks for admin");
    let lacks = |required: &str| {
        let detail = format!("this token may not pass on {required}");
        Problem::new(Code::InsufficientPermissions, detail).with("required", required)
    };
    if allow_ddl == Some(true) && !principal.allow_ddl {
        return Err(lacks("allow_ddl"));
    }
    match (&principal.databases, databases) {
        (None, _) => Ok(()),
        (Some(own), Some(asked)) if asked.iter().all(|name| own.contains(name)) => Ok(()),
        (Some(_), _) => Err(lacks("databases outside its own list")),
    }
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call
        .app
        .engine
        .token_list(call.namespace()?.id, page)
        .await?;
    let items = found.items.iter().map(shape::token).collect();
    Ok(Answer::page(items, found.next_cursor, &link))
}

pub(super) async fn revoke(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    call.app
        .engine
        .token_revoke(call.namespace()?.id, &call.name("token")?)
        .await?;
    Ok(Answer::nothing())
}

/// What the answer to a new namespace shows of its first token.
pub(super) fn first(info: &tidelog_engine::TokenInfo, secret: &str) -> Json {
    json!({ "id": info.id, "token": secret, "display": info.display, "role": auth::name(info.role) })
}
