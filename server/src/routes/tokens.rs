//! Tokens: made, listed, revoked. The secret stands in the answer that makes it and nowhere else.

use serde_json::{Value as Json, json};
use tidelog_engine::Role;
use tidelog_engine::system::tokens::{NewToken, TokenInfo, TokenKind};

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// What a scope lets a token do at most.
fn role(scope: &str) -> Option<Role> {
    match scope {
        "read" => Some(Role::Analyst),
        "write" => Some(Role::Operator),
        "admin" => Some(Role::Admin),
        _ => None,
    }
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let kind = call.body.word("kind", |word| {
        TokenKind::parse(word).ok_or_else(|| format!("kind is live, test or cli, not {word:?}"))
    })?;
    let scopes = call.body.texts("scopes")?.unwrap_or_default();
    let roles: Vec<Role> = scopes
        .iter()
        .enumerate()
        .map(|(index, scope)| {
            role(scope).ok_or_else(|| {
                let detail = format!("a scope is read, write or admin, not {scope:?}");
                Problem::invalid(Code::InvalidRequest, &format!("/scopes/{index}"), detail)
            })
        })
        .collect::<Result<_, _>>()?;
    let role = roles.into_iter().max().ok_or_else(|| {
        let detail = "scopes is required: read, write or admin";
        Problem::invalid(Code::InvalidRequest, "/scopes", detail)
    })?;
    let databases = call.body.texts("databases")?;
    let allow_ddl = call.body.boolean("allow_ddl")?;
    let expires_at = call.body.time("expires_at")?;
    call.finish()?;
    let own = &call.principal()?.token;
    within_own_rights(own, databases.as_deref(), allow_ddl)?;
    let spec = NewToken {
        namespace: Some(call.namespace()?),
        kind: kind.unwrap_or_default(),
        role,
        scopes,
        databases,
        allow_ddl: allow_ddl.unwrap_or(own.allow_ddl),
        expires_at,
        rate: None,
        principal: None,
    };
    let recorder = &call.recorder;
    let kept = |info: &TokenInfo| recorder.record(&shown(info, None));
    let made = call.app.engine.token_create_recorded(spec, kept).await?;
    Ok(shown(&made.0, Some(&made.1)))
}

/// The answer that makes a token. A repeated call gets it without the secret, which is kept nowhere.
fn shown(info: &TokenInfo, secret: Option<&str>) -> Answer {
    let mut document = shape::token(info);
    document["token"] = json!(secret);
    Answer::created(document)
}

/// A token makes none that may do more than itself. Its role needs no check: no scope reaches above admin.
fn within_own_rights(
    own: &TokenInfo,
    databases: Option<&[String]>,
    allow_ddl: Option<bool>,
) -> Result<(), Problem> {
    let lacks = |required: &str| {
        let detail = format!("this token may not pass on {required}");
        Problem::new(Code::InsufficientPermissions, detail).with("required", required)
    };
    if allow_ddl == Some(true) && !own.allow_ddl {
        return Err(lacks("allow_ddl"));
    }
    match (&own.databases, databases) {
        (None, _) => Ok(()),
        (Some(listed), Some(asked)) if asked.iter().all(|name| listed.contains(name)) => Ok(()),
        (Some(_), _) => Err(lacks("databases outside its own list")),
    }
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.app.engine.token_list(call.namespace()?, page).await?;
    let items: Vec<Json> = found.items.iter().map(shape::token).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn revoke(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    call.app
        .engine
        .token_revoke(call.namespace()?, &call.name("token")?)
        .await?;
    Ok(Answer::nothing())
}
