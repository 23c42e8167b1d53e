//! Maintenance of a namespace or of the whole server: writes are refused, reads go on.

use serde_json::{Value as Json, json};
use tidelog_engine::system::maintenance::Maintenance;
use tidelog_wal::NamespaceId;

use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

/// The longest reason.
const REASON_CHARS_MAX: usize = 500;

fn shown(on: Option<&Maintenance>, scope: Option<NamespaceId>) -> Json {
    json!({
        "enabled": on.is_some(),
        "reason": on.map(|on| on.reason.clone()),
        "started_at": on.map(|on| time::format(on.started_at)),
        "scope": if scope.is_some() { "namespace" } else { "server" },
    })
}

fn scope(call: &Call) -> Result<Option<NamespaceId>, Problem> {
    Ok(call.principal()?.token.namespace)
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let scope = scope(&call)?;
    Ok(Answer::ok(shown(
        call.app.engine.maintenance(scope).as_ref(),
        scope,
    )))
}

pub(super) async fn change(mut call: Call) -> Result<Answer, Problem> {
    let enabled = call
        .body
        .boolean("enabled")?
        .ok_or_else(|| Problem::invalid(Code::InvalidRequest, "/enabled", "enabled is required"))?;
    let reason = call.body.text("reason")?.unwrap_or_default();
    call.finish()?;
    if reason.chars().count() > REASON_CHARS_MAX {
        let detail = format!("a reason has at most {REASON_CHARS_MAX} characters");
        return Err(Problem::invalid(Code::InvalidRequest, "/reason", detail));
    }
    let scope = scope(&call)?;
    let on = call
        .app
        .engine
        .set_maintenance(scope, enabled.then_some(reason))
        .await?;
    Ok(Answer::ok(shown(on.as_ref(), scope)))
}
