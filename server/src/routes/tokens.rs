//! Tokens: made, listed, rotated, revoked. The secret stands in the answer that makes it and nowhere else.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_engine::Role;
use tidelog_engine::system::tokens::{NewToken, TokenInfo, TokenKind};

use super::shape;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// How long a rotated token stays valid when nothing is said, and at most.
const OVERLAP_DEFAULT_S: u64 = 3_600;
const OVERLAP_MAX_S: u64 = 7 * 24 * 3_600;

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
    let rate = call.body.number("rate_per_minute")?;
    let rate = rate.map(|rate| {
        let fits = u32::try_from(rate).ok().filter(|rate| *rate != 0);
        fits.ok_or_else(|| {
            let detail = "rate_per_minute is from 1 to 4294967295";
            Problem::invalid(Code::InvalidRequest, "/rate_per_minute", detail)
        })
    });
    let rate = rate.transpose()?;
    let member = call.body.text("principal")?;
    call.finish()?;
    if let Some(name) = &member {
        let found = call.app.engine.member(call.namespace()?, name).await?;
        found.ok_or_else(|| {
            Problem::new(Code::MemberNotFound, format!("there is no member {name:?}"))
        })?;
    }
    let own = &call.principal()?.token;
    if role > own.role {
        return Err(lacks(role.as_str()));
    }
    within_own_rights(own, databases.as_deref(), allow_ddl)?;
    let kind = kind.unwrap_or_default();
    let ddl = call.app.live_tokens_allow_ddl || kind != TokenKind::Live;
    let spec = NewToken {
        namespace: Some(call.namespace()?),
        kind,
        role,
        scopes,
        databases,
        allow_ddl: allow_ddl.unwrap_or(own.allow_ddl && ddl),
        expires_at,
        rate: rate.or(own.rate),
        // Who stands for a member makes no token that outlives them.
        principal: member.or_else(|| own.principal.clone()),
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

/// A token makes none that may do more than itself.
fn within_own_rights(
    own: &TokenInfo,
    databases: Option<&[String]>,
    allow_ddl: Option<bool>,
) -> Result<(), Problem> {
    if allow_ddl == Some(true) && !own.allow_ddl {
        return Err(lacks("allow_ddl"));
    }
    match (&own.databases, databases) {
        (None, _) => Ok(()),
        (Some(listed), Some(asked)) if asked.iter().all(|name| listed.contains(name)) => Ok(()),
        (Some(_), _) => Err(lacks("databases outside its own list")),
    }
}

fn lacks(required: &str) -> Problem {
    let detail = format!("this token may not pass on or take away {required}");
    Problem::new(Code::InsufficientPermissions, detail).with("required", required)
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let (engine, namespace) = (&call.app.engine, call.namespace()?);
    let found = engine.token(namespace, &call.name("token")?).await?;
    Ok(Answer::ok(shape::token(&found)))
}

/// A new secret with the same rights; the old one ends after the overlap.
pub(super) async fn rotate(mut call: Call) -> Result<Answer, Problem> {
    let overlap = call
        .body
        .number("overlap_seconds")?
        .unwrap_or(OVERLAP_DEFAULT_S);
    call.finish()?;
    if overlap > OVERLAP_MAX_S {
        let detail = format!("overlap_seconds is at most {OVERLAP_MAX_S}");
        return Err(Problem::invalid(
            Code::InvalidRequest,
            "/overlap_seconds",
            detail,
        ));
    }
    let (engine, namespace, id) = (&call.app.engine, call.namespace()?, call.name("token")?);
    let (old, own) = (
        engine.token(namespace, &id).await?,
        &call.principal()?.token,
    );
    if old.role > own.role {
        return Err(lacks(old.role.as_str()));
    }
    within_own_rights(own, old.databases.as_deref(), Some(old.allow_ddl))?;
    let recorder = &call.recorder;
    let kept = |info: &TokenInfo| recorder.record(&shown(info, None));
    let overlap = Duration::from_secs(overlap);
    let made = engine.token_rotate(namespace, &id, overlap, kept).await?;
    Ok(shown(&made.0, Some(&made.1)))
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.app.engine.token_list(call.namespace()?, page).await?;
    let items: Vec<Json> = found.items.iter().map(shape::token).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

/// Ends a token, which may not have more rights than the caller's: nobody takes away what stands above them.
pub(super) async fn revoke(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let (engine, namespace, id) = (&call.app.engine, call.namespace()?, call.name("token")?);
    let (found, own) = (
        engine.token(namespace, &id).await?,
        &call.principal()?.token,
    );
    if found.role > own.role {
        return Err(lacks(found.role.as_str()));
    }
    within_own_rights(own, found.databases.as_deref(), None)?;
    engine.token_revoke(namespace, &id).await?;
    Ok(Answer::nothing())
}
