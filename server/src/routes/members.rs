//! Members: who tokens and signed callers stand for, and what they may do. Nobody gives, changes or takes away a
//! role above their own.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tidelog_engine::Role;
use tidelog_engine::system::members::Member;
use tidelog_engine::system::names::check_name;

use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

fn shown(member: &Member) -> Json {
    let databases: BTreeMap<&str, &str> = member
        .databases
        .iter()
        .map(|(name, role)| (name.as_str(), role.as_str()))
        .collect();
    json!({
        "principal": member.principal,
        "role": member.role.as_str(),
        "databases": databases,
        "created_at": time::format(member.created_at),
        "changed_at": time::format(member.changed_at),
    })
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| {
        format!("a role is owner, admin, operator, member, analyst or viewer, not {text:?}")
    })
}

fn missing(principal: &str) -> Problem {
    Problem::new(
        Code::MemberNotFound,
        format!("there is no member {principal:?}"),
    )
}

/// The member of the path as they stand, whose rights must not be above the caller's.
async fn below(call: &Call, principal: &str) -> Result<Option<Member>, Problem> {
    let member = call.app.engine.member(call.namespace()?, principal).await?;
    let own = call.principal()?.token.role;
    let highest = member
        .iter()
        .flat_map(|member| member.databases.values().chain([&member.role]))
        .max();
    match highest {
        Some(role) if *role > own => Err(lacks(*role)),
        _ => Ok(member),
    }
}

fn lacks(role: Role) -> Problem {
    let detail = format!("this call needs {role} itself", role = role.as_str());
    Problem::new(Code::InsufficientPermissions, detail).with("required", role.as_str())
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.app.engine.member_list(call.namespace()?, page).await?;
    let items: Vec<Json> = found.items.iter().map(shown).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let principal = call.name("principal")?;
    let member = call
        .app
        .engine
        .member(call.namespace()?, &principal)
        .await?;
    Ok(Answer::ok(shown(
        &member.ok_or_else(|| missing(&principal))?,
    )))
}

pub(super) async fn put(mut call: Call) -> Result<Answer, Problem> {
    let principal = call.name("principal")?;
    let given = call
        .body
        .word("role", role)?
        .ok_or_else(|| Problem::invalid(Code::InvalidRequest, "/role", "role is required"))?;
    let mut databases = BTreeMap::new();
    if let Some(listed) = call.body.take("databases") {
        let mut fields = Fields::of_value(listed, "/databases")?;
        for name in fields.names() {
            check_name("database", &name)?;
            if let Some(role) = fields.word(&name, role)? {
                databases.insert(name, role);
            }
        }
    }
    call.finish()?;
    let own = call.principal()?.token.role;
    if let Some(above) = databases.values().chain([&given]).find(|role| **role > own) {
        return Err(lacks(*above));
    }
    below(&call, &principal).await?;
    let engine = &call.app.engine;
    let member = engine
        .member_put(call.namespace()?, &principal, given, databases)
        .await?;
    Ok(Answer::ok(shown(&member)))
}

pub(super) async fn delete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let principal = call.name("principal")?;
    below(&call, &principal)
        .await?
        .ok_or_else(|| missing(&principal))?;
    let engine = &call.app.engine;
    engine.member_delete(call.namespace()?, &principal).await?;
    Ok(Answer::nothing())
}

/// Ends every token of a member, and every signed token made for them so far.
pub(super) async fn revoke(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let principal = call.name("principal")?;
    below(&call, &principal)
        .await?
        .ok_or_else(|| missing(&principal))?;
    let engine = &call.app.engine;
    let revoked = engine
        .revoke_principal(call.namespace()?, &principal, None)
        .await?;
    Ok(Answer::ok(
        json!({ "principal": principal, "tokens_revoked": revoked }),
    ))
}
