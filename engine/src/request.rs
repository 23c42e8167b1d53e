//! What a caller asks of a database, and what it is answered.

use std::time::Duration;

use tidelog_wal::record::{Annotation, tag};
use tidelog_wal::{Position, Timestamp};

use crate::settings::Durability;
use crate::sql::policy::Permission;
use crate::sql::run::{Limits, Statement, StatementResult};

/// The ladder of roles: each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Sees state.
    Viewer,
    /// Reads rows and history.
    Analyst,
    /// Writes rows, labels, archives.
    Operator,
    /// Restores, keys, databases.
    Admin,
    /// Everything.
    Owner,
}

impl Role {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Analyst => "analyst",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role of a name; `member` is an operator.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "viewer" => Self::Viewer,
            "analyst" => Self::Analyst,
            "operator" | "member" => Self::Operator,
            "admin" => Self::Admin,
            "owner" => Self::Owner,
            _ => return None,
        })
    }
}

/// Who asks, and what they may do.
#[derive(Debug, Clone)]
pub struct Access {
    /// The verified role.
    pub role: Role,
    /// Whether the token may change schemas.
    pub allow_ddl: bool,
    /// Id of the token, for the commit's record.
    pub token: Option<[u8; 16]>,
    /// Id of the request, for the commit's record.
    pub request_id: Option<String>,
}

impl Access {
    /// The engine's own.
    pub const fn owner() -> Self {
        Self {
            role: Role::Owner,
            allow_ddl: true,
            token: None,
            request_id: None,
        }
    }

    pub(crate) fn permission(&self) -> Permission {
        if self.role < Role::Operator {
            Permission::READ
        } else if self.allow_ddl {
            Permission::DDL
        } else {
            Permission::WRITE
        }
    }

    pub(crate) fn annotations(&self) -> Vec<Annotation> {
        let token = self.token.map(|id| Annotation {
            tag: tag::TOKEN,
            value: id.to_vec(),
        });
        let request = self.request_id.as_ref().map(|id| Annotation {
            tag: tag::REQUEST,
            value: id.as_bytes().to_vec(),
        });
        token.into_iter().chain(request).collect()
    }
}

/// Names a request that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Token, database and route it belongs to.
    pub scope: String,
    /// What the caller chose.
    pub key: String,
    /// SHA-256 of method, path and body.
    pub fingerprint: [u8; 32],
}

/// Statements to run.
#[derive(Debug, Clone)]
pub struct Request {
    /// The statements, in order.
    pub statements: Vec<Statement>,
    /// All in one transaction; else each in its own, stopping at the first error.
    pub transaction: bool,
    /// When to answer; `None`: as the database or the server says.
    pub durability: Option<Durability>,
    /// Who asks.
    pub access: Access,
    /// Bounds.
    pub limits: Limits,
    /// Makes a retry answer what the first call answered.
    pub idempotency: Option<IdempotencyKey>,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Response {
    /// One for each statement.
    pub results: Vec<StatementResult>,
    /// The Position after the request: of its commit, or at least what its reads saw.
    pub bookmark: Position,
    /// The highest Position that is stored.
    pub durable_bookmark: Option<Position>,
    /// The answer is the stored one of an earlier call with the same key.
    pub replayed: bool,
    /// The request changed the schema.
    pub schema_changed: bool,
}

/// Where a database stands.
#[derive(Debug, Clone, Copy)]
pub struct BookmarkInfo {
    /// The newest captured Position.
    pub bookmark: Position,
    /// The newest stored Position.
    pub durable_bookmark: Option<Position>,
    /// Ordered time of the newest commit.
    pub committed_at: Timestamp,
    /// Commits that are not stored yet.
    pub lag_commits: u64,
    /// Bytes of the node's journal that are not stored yet, zero if every commit of this database is.
    pub lag_bytes: u64,
    /// Age of the newest commit that is not stored, zero if all are.
    pub lag: Duration,
    /// Bytes of the database.
    pub size_bytes: u64,
}
