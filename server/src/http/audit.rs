//! What of a request goes on record: one line for everything that changes something or was refused, named by one
//! table, so that a new route cannot be without. What takes something away is on record before it acts.
//!
//! A line holds names, counts and codes: no body, no query string, no header but the program's name.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{HeaderMap, Method, header};
use serde_json::json;
use tidelog_engine::system::audit::{AuditLine, Severity};
use tidelog_engine::system::tokens::{Principal, token_id_text};

use super::Route;
use super::rates::Key;
use crate::app::App;
use crate::problem::Problem;

/// Endings of paths, and what happens there: on POST or PUT, and on DELETE.
const EVENTS: [(&str, &str, &str); 36] = [
    (
        "/v1/namespaces",
        "admin.namespace_create",
        "admin.namespace_delete",
    ),
    (
        "/v1/namespaces/{ns}",
        "admin.namespace_update",
        "admin.namespace_delete",
    ),
    (
        "/v1/namespaces/{ns}/undelete",
        "admin.namespace_undelete",
        "",
    ),
    ("/databases", "admin.database_create", ""),
    (
        "/databases/{db}",
        "admin.database_update",
        "admin.database_delete",
    ),
    ("/undelete", "admin.database_undelete", ""),
    ("/import", "backup.import", ""),
    ("/export", "backup.export", ""),
    ("/tokens", "admin.api_key_create", ""),
    ("/rotate", "admin.api_key_rotate", ""),
    (
        "/tokens/{token}",
        "admin.api_key_update",
        "admin.api_key_revoke",
    ),
    (
        "/members/{principal}",
        "admin.permission_change",
        "admin.user_delete",
    ),
    ("/members/{principal}/revoke", "auth.token_revoked", ""),
    ("/maintenance", "admin.maintenance", "admin.maintenance"),
    ("/cancel", "admin.operation_cancel", ""),
    ("/snapshots", "backup.snapshot", ""),
    (
        "/snapshots/{snapshot}",
        "backup.snapshot",
        "backup.snapshot_delete",
    ),
    ("/restores", "backup.restore", ""),
    ("/time_travel/restore", "backup.restore", ""),
    ("/undo", "backup.undo", ""),
    ("/forks", "backup.fork", ""),
    ("/fork/{to}", "backup.fork", ""),
    ("/branches/{ref}", "backup.fork", "backup.fork_delete"),
    ("/detach", "backup.detach", ""),
    ("/archives", "backup.archive", ""),
    (
        "/archives/{archive}",
        "backup.archive",
        "backup.archive_delete",
    ),
    ("/verifications", "backup.verify", ""),
    ("/verify", "backup.verify", ""),
    (
        "/verification-schedule",
        "backup.verification_schedule",
        "backup.verification_schedule",
    ),
    (
        "/archive-schedule",
        "backup.archive_schedule",
        "backup.archive_schedule",
    ),
    ("/erasures", "backup.erase", ""),
    ("/retention", "backup.retention_change", ""),
    ("/recovery-sql", "backup.recovery_sql", ""),
    ("/admin/flush", "admin.flush", ""),
    ("/admin/checkpoint", "admin.checkpoint", ""),
    ("/admin/reconcile", "admin.reconcile", ""),
];

/// Events that are on record, stored, before they act.
const GRAVE: [&str; 8] = [
    "backup.restore",
    "backup.undo",
    "backup.erase",
    "backup.import_replace",
    "backup.archive_delete",
    "admin.database_purge",
    "admin.namespace_delete",
    "admin.namespace_purge",
];

/// What a call of this route does; nothing for what only reads. Queries have insights instead.
pub(crate) fn event(route: &Route, query: Option<&str>) -> Option<&'static str> {
    let found = EVENTS.iter().find(|(end, _, _)| route.path.ends_with(end));
    if route.method == Method::GET {
        // Whole databases leave by it.
        return found
            .map(|(_, event, _)| *event)
            .filter(|event| *event == "backup.export");
    }
    if ["/query", "/batch"]
        .iter()
        .any(|end| route.path.ends_with(end))
        || !route.path.starts_with("/v1/")
    {
        return None;
    }
    // Read as the handlers read it: however it is written, what acts is on record.
    let asked = |name: &str| {
        let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        pairs.any(|(key, value)| key == name && value == "true")
    };
    match found {
        Some((_, _, delete)) if route.method == Method::DELETE => match *delete {
            "admin.database_delete" if asked("purge") => Some("admin.database_purge"),
            "admin.namespace_delete" if asked("purge") => Some("admin.namespace_purge"),
            "" => Some("admin.delete"),
            event => Some(event),
        },
        Some((_, "backup.import", _)) if asked("replace") => Some("backup.import_replace"),
        Some((_, event, _)) => Some(event),
        None => Some("admin.change"),
    }
}

/// Whether an event has to be on record before it acts.
pub(crate) fn is_grave(event: &str) -> bool {
    GRAVE.contains(&event)
}

/// What is known of a request, whatever becomes of it.
#[derive(Debug, Clone)]
pub(crate) struct Known<'a> {
    pub(crate) route: &'a Route,
    pub(crate) request_id: &'a str,
    pub(crate) names: &'a std::collections::BTreeMap<String, String>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) origin: Option<IpAddr>,
    pub(crate) principal: Option<&'a Principal>,
}

/// How a call ended, or a statement of one.
#[derive(Debug)]
pub(crate) enum Ended<'a> {
    Done { schema_changed: bool },
    Refused(&'a Problem),
}

impl Ended<'_> {
    fn status(&self) -> u16 {
        match self {
            Self::Done { .. } => 200,
            Self::Refused(problem) => problem.status().as_u16(),
        }
    }
}

/// Audit lines of refusals that one address may cause in a minute.
const NOISE_PER_MINUTE: u32 = 60;

/// The longest text of a header that is kept.
const AGENT_CHARS_MAX: usize = 200;

impl Known<'_> {
    fn line(&self, event: &str) -> AuditLine {
        let token = self.principal.map(|principal| &principal.token);
        let agent = self
            .headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok());
        let resource = [
            "archive",
            "snapshot",
            "token",
            "principal",
            "operation",
            "db",
            "ns",
        ];
        let resource = resource.into_iter().find_map(|name| {
            Some((
                name,
                self.names.get(name).or_else(|| self.names.get("name"))?,
            ))
        });
        AuditLine {
            namespace: token.and_then(|token| token.namespace),
            event: event.to_owned(),
            severity: Severity::Info,
            user: token.map(|token| {
                token
                    .principal
                    .clone()
                    .unwrap_or_else(|| token_id_text(&token.id))
            }),
            action: format!("{} {}", self.route.method, self.route.path),
            resource: match resource {
                Some(("db", _)) => "database".to_owned(),
                Some(("ns", _)) => "namespace".to_owned(),
                Some((name, _)) => name.to_owned(),
                None => "server".to_owned(),
            },
            resource_id: resource.map(|(_, value)| value.chars().take(AGENT_CHARS_MAX).collect()),
            details: json!({
                "database": self.names.get("db"),
                "token": token.map(|token| token_id_text(&token.id)),
                "display": token.map(|token| token.display.clone()),
            }),
            ip: self.origin.map(|ip| ip.to_string()),
            user_agent: agent.map(|agent| agent.chars().take(AGENT_CHARS_MAX).collect()),
            request_id: Some(self.request_id.to_owned()),
            ..AuditLine::default()
        }
    }

    /// The line that stands before a grave event acts.
    pub(crate) fn before(&self, event: &str) -> AuditLine {
        let mut line = self.line(event);
        line.severity = Severity::Critical;
        line.success = true;
        line.details["phase"] = json!("before");
        line
    }

    /// The line of a token that is used for the first time in a while.
    pub(crate) fn first_use(&self) -> AuditLine {
        let mut line = self.line("auth.success");
        line.success = true;
        line
    }

    /// Counts how a call ended, or a statement of one, and puts it on record where that is due.
    pub(crate) fn note(&self, app: &App, event: Option<&str>, ended: &Ended<'_>, took: Duration) {
        let meters = &app.guards.meters;
        let count = match ended.status() {
            401 => Some(&meters.auth_failures),
            403 => Some(&meters.denied),
            429 => Some(&meters.rate_limited),
            _ => None,
        };
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
            // A flood of refusals is counted, not written down line by line.
            let noise = [(Key::Noise(self.origin), NOISE_PER_MINUTE)];
            if app.guards.rates.take(&noise, app.clock.wall()).is_err() {
                return;
            }
        }
        if let Some(line) = self.after(event, ended, took) {
            app.engine.audit(line);
        }
    }

    /// The line of an outcome, if there is one to write.
    fn after(&self, event: Option<&str>, ended: &Ended<'_>, took: Duration) -> Option<AuditLine> {
        let event = match ended {
            Ended::Done {
                schema_changed: true,
            } => "admin.schema_change",
            Ended::Done { .. } => event?,
            Ended::Refused(problem) => match problem.status().as_u16() {
                401 => "auth.failure",
                403 => "authz.denied",
                429 => "security.rate_limit",
                _ if problem.is_sql_denied() => "security.sql_denied",
                _ => event?,
            },
        };
        let mut line = self.line(event);
        line.duration = Some(took);
        match ended {
            Ended::Done { .. } => line.success = true,
            Ended::Refused(problem) => {
                line.severity = Severity::Warning;
                line.error_code = Some(problem.code().to_owned());
                // Titles are ours; a detail may quote what the caller sent.
                line.error_message = Some(problem.title().to_owned());
            }
        }
        if is_grave(event) {
            line.severity = Severity::Critical;
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_that_changes_something_has_an_event_of_its_own() {
        for route in crate::routes::table() {
            let event = event(&route, None);
            let sql = route.path.ends_with("/query") || route.path.ends_with("/batch");
            if route.method == Method::GET || sql || !route.path.starts_with("/v1/") {
                assert!(
                    event.is_none_or(|event| event == "backup.export"),
                    "{route:?}"
                );
            } else {
                assert!(event.is_some(), "{route:?}");
                assert_ne!(event, Some("admin.change"), "{route:?}: name its event");
            }
        }
    }
}
