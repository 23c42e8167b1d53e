//! A row of the route table.

use axum::http::Method;
use futures::future::BoxFuture;
use tidelog_engine::Role;

use super::{Answer, Call};
use crate::problem::Problem;

/// What runs when everything before it has passed.
pub(crate) type Handler = fn(Call) -> BoxFuture<'static, Result<Answer, Problem>>;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody, without a token: health and metrics only.
    Public,
    /// A token of the namespace in the path, with at least this role.
    Role(Role),
    /// The server token alone.
    Server,
}

/// What the request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyKind {
    /// There is none; one that comes is refused.
    None,
    /// A JSON object, held whole, within the body limit.
    Json,
    /// Bytes that the handler reads itself, held whole, within the body limit, of whatever type.
    Raw,
    /// A file, staged on disk as it comes, within the import limit.
    File,
}

/// One method of one path.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) body: BodyKind,
    /// Whether `If-Match` with a bookmark guards it; elsewhere the header is refused, never ignored.
    pub(crate) conditional: bool,
    /// Whether its Idempotency-Key is kept in the tenant's own database, by the handler, with the effect.
    pub(crate) keyed_by_handler: bool,
    /// Whether a call without an Idempotency-Key is refused: what people retry blindly and must not do twice.
    pub(crate) key_required: bool,
    /// Whether it speaks Hrana: its database may be named outside the path, its errors are of that protocol, and the
    /// OpenAPI document leaves it out, for its own specification says what it is.
    pub(crate) hrana: bool,
    /// Whether it is answered during maintenance although it changes something.
    pub(crate) in_maintenance: bool,
    /// Whether it is answered in a namespace that is deleted: what shows, ends or brings it back.
    pub(crate) when_deleted: bool,
    /// Whether it reaches beyond single databases, so that a token which is limited to some may not call it.
    pub(crate) whole_namespace: bool,
    pub(crate) handler: Handler,
    /// What becomes of its answers: aliases of a route answer in words of their own.
    pub(crate) reshape: fn(Answer) -> Answer,
}

impl Route {
    /// A route without a body.
    pub(crate) fn new(
        method: Method,
        path: &'static str,
        access: Access,
        handler: Handler,
    ) -> Self {
        Self {
            method,
            path,
            access,
            body: BodyKind::None,
            conditional: false,
            keyed_by_handler: false,
            key_required: false,
            hrana: false,
            in_maintenance: false,
            when_deleted: false,
            whole_namespace: false,
            handler,
            reshape: std::convert::identity,
        }
    }

    /// The same with a body.
    pub(crate) fn body(mut self, body: BodyKind) -> Self {
        self.body = body;
        self
    }

    /// The same, guarded by `If-Match`.
    pub(crate) fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    /// The same, its Idempotency-Key left to the handler.
    pub(crate) fn keyed_by_handler(mut self) -> Self {
        self.keyed_by_handler = true;
        self
    }

    /// The same, refused without an Idempotency-Key. For restores, forks, archives and erasures.
    pub(crate) fn key_required(mut self) -> Self {
        self.key_required = true;
        self
    }

    /// The same, speaking Hrana.
    pub(crate) fn hrana(mut self) -> Self {
        self.hrana = true;
        self
    }

    /// The same, answered during maintenance, too.
    pub(crate) fn in_maintenance(mut self) -> Self {
        self.in_maintenance = true;
        self
    }

    /// The same, its answers given another shape.
    pub(crate) fn reshaped(mut self, reshape: fn(Answer) -> Answer) -> Self {
        self.reshape = reshape;
        self
    }

    /// Whether its path leaves the namespace out: it is the credential's.
    pub(crate) fn implies_namespace(&self) -> bool {
        self.hrana || (self.on_database() && !self.path.contains("{ns}"))
    }

    /// The same, answered in a namespace that is deleted, too.
    pub(crate) fn when_deleted(mut self) -> Self {
        self.when_deleted = true;
        self
    }

    /// The same, closed to tokens that are limited to some databases.
    pub(crate) fn whole_namespace(mut self) -> Self {
        self.whole_namespace = true;
        self
    }

    /// Whether its path lies in a namespace.
    pub(crate) fn in_namespace(&self) -> bool {
        self.path == "/v1/namespaces/{ns}" || self.path.starts_with("/v1/namespaces/{ns}/")
    }

    /// Whether maintenance of its namespace refuses it. Of SQL the engine judges which statements write.
    pub(crate) fn pauses(&self) -> bool {
        let sql = self.is_sql() || self.hrana;
        let tenants = self.in_namespace() || self.implies_namespace();
        self.method != Method::GET && tenants && !sql && !self.in_maintenance
    }

    /// Whether it runs statements.
    pub(crate) fn is_sql(&self) -> bool {
        self.path.ends_with("/query") || self.path.ends_with("/batch")
    }

    /// Whether its answer is due within the request deadline: whole files take as long as they take.
    pub(crate) fn has_deadline(&self) -> bool {
        self.body != BodyKind::File
            && !self.path.ends_with("/export")
            && !self.path.ends_with("/content")
    }

    /// Whether it belongs to one database.
    pub(crate) fn on_database(&self) -> bool {
        self.path.contains("{db}")
    }
}
