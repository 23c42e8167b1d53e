//! A request as a handler gets it: checked, bounded, its fields still to be taken.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use tidelog_engine::system::Page;
use tidelog_engine::system::tokens::Principal;
use tidelog_engine::{Access as SqlAccess, Database, IdempotencyKey};
use tidelog_wal::{NamespaceId, Position};

use super::Route;
use super::audit::{Ended, Known};
use super::idempotency::Recorder;
use super::staging::Staged;
use crate::app::App;
use crate::fields::Fields;
use crate::problem::{Code, Problem};

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) route: Arc<Route>,
    /// The address that calls.
    pub(crate) origin: Option<IpAddr>,
    pub(crate) request_id: String,
    /// The path as it came, for links.
    pub(crate) path: String,
    /// The headers, for what concerns one route alone.
    pub(crate) headers: HeaderMap,
    /// The values of the path's placeholders.
    pub(crate) names: BTreeMap<String, String>,
    /// Absent on public routes only.
    pub(crate) principal: Option<Principal>,
    pub(crate) query: Fields,
    pub(crate) body: Fields,
    /// The body of a raw route.
    pub(crate) raw: Bytes,
    /// The body of a file route.
    pub(crate) file: Option<Staged>,
    /// The bookmark of `If-Match`, where the route takes it: the handler compares it with its effect.
    pub(crate) if_match: Option<Position>,
    /// How long an operation is waited for.
    pub(crate) wait: Duration,
    /// For routes that keep the key with their effect.
    pub(crate) idempotency: Option<IdempotencyKey>,
    /// For all other routes: the record of their answer.
    pub(crate) recorder: Recorder,
}

impl Call {
    /// Counts, and puts on record, what became of something within the call that its answer does not tell: a
    /// statement that was refused, a change that came after the head of the answer.
    pub(crate) fn note(&self, ended: &Ended<'_>, took: Duration) {
        let known = Known {
            route: &self.route,
            request_id: &self.request_id,
            names: &self.names,
            headers: &self.headers,
            origin: self.origin,
            principal: self.principal.as_ref(),
        };
        known.note(&self.app, None, ended, took);
    }

    /// The value of a placeholder of the path.
    pub(crate) fn name(&self, placeholder: &str) -> Result<String, Problem> {
        self.names.get(placeholder).cloned().ok_or_else(|| {
            Problem::new(
                Code::Internal,
                format!("the route has no placeholder {placeholder}"),
            )
        })
    }

    /// Who calls.
    pub(crate) fn principal(&self) -> Result<&Principal, Problem> {
        self.principal
            .as_ref()
            .ok_or_else(|| Problem::new(Code::Unauthenticated, "this call needs a token"))
    }

    /// The namespace of the caller, which the layer has compared with the path's.
    pub(crate) fn namespace(&self) -> Result<NamespaceId, Problem> {
        let namespace = self.principal()?.token.namespace;
        namespace.ok_or_else(|| {
            Problem::new(
                Code::NamespaceMismatch,
                "the server token belongs to no namespace",
            )
        })
    }

    /// The database of the path, opened.
    pub(crate) async fn database(&self) -> Result<Database, Problem> {
        let namespace = self.namespace()?;
        Ok(self
            .app
            .engine
            .database(namespace, &self.name("db")?)
            .await?)
    }

    /// The same, else the one of that name that was deleted last and can be brought back: its history is there.
    pub(crate) async fn database_or_deleted(&self) -> Result<Database, Problem> {
        let (engine, name) = (&self.app.engine, self.name("db")?);
        Ok(engine.database_or_deleted(self.namespace()?, &name).await?)
    }

    /// What the caller's token allows inside SQL.
    pub(crate) fn sql_access(&self) -> Result<SqlAccess, Problem> {
        let token = &self.principal()?.token;
        Ok(SqlAccess {
            role: token.role,
            allow_ddl: token.allow_ddl,
            token: Some(token.id),
            request_id: Some(self.request_id.clone()),
        })
    }

    /// The page asked for, and the start of the link to the next one.
    pub(crate) fn page(&mut self) -> Result<(Page, String), Problem> {
        let limits = &self.app.limits;
        let (default, max) = (limits.page_default, limits.page_max);
        let limit = match self.query.number("limit")? {
            None => default,
            Some(limit) => usize::try_from(limit)
                .ok()
                .filter(|limit| (1..=max).contains(limit))
                .ok_or_else(|| {
                    let detail = format!("limit must be from 1 to {max}");
                    Problem::invalid(Code::InvalidRequest, "/limit", detail)
                })?,
        };
        let cursor = self.query.text("cursor")?;
        Ok((
            Page { limit, cursor },
            format!("{}?limit={limit}&", self.path),
        ))
    }

    /// Refuses every field of body and query that nobody took. To be called before any effect.
    pub(crate) fn finish(&mut self) -> Result<(), Problem> {
        std::mem::take(&mut self.query).finish()?;
        std::mem::take(&mut self.body).finish()
    }
}
