//! The system database: namespaces, databases, tokens, members, operations, audit lines.
//!
//! It is an ordinary database of this engine, so that the bucket alone rebuilds a node. Its commits are
//! answered at `remote` or refused with 503: a revoked token that a machine loss can bring back is worse
//! than a refusal.
//!
//! Rows that every request needs (tokens by hash, databases by name) are kept in memory once read, and
//! forgotten when they change; this node is the only writer.

pub mod audit;
pub mod databases;
pub mod insights;
pub(crate) mod lifecycle;
pub mod maintenance;
pub mod members;
pub mod names;
pub mod namespaces;
pub mod requests;
mod schema;
mod token_rows;
pub mod tokens;

use std::sync::Arc;

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, Row, params_from_iter};
use serde_json::Value as Json;
use tidelog_wal::{DatabaseId, NamespaceId};

use crate::core::Core;
use crate::database::{Lease, Ticket};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::places::For;
use crate::registry::Registry;
use crate::settings::Durability;
use crate::sql::policy::Permission;
use crate::sql::run::sql_error;

/// Asks for a page of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Items at most; 0 asks for the default of 100, the most is 500.
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

impl Page {
    pub(crate) fn limit(&self) -> usize {
        match self.limit {
            0 => 100,
            n => n.min(500),
        }
    }
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct PageOf<T> {
    /// The items.
    pub items: Vec<T>,
    /// Hand this in for the next page; `None` at the end.
    pub next_cursor: Option<String>,
}

impl<T> PageOf<T> {
    /// Cuts one item too many into a page; `cursor` names where an item stands.
    pub(crate) fn cut(mut items: Vec<T>, limit: usize, cursor: impl Fn(&T) -> String) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(cursor);
        Self { items, next_cursor }
    }
}

/// The system database of a node.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) core: Arc<Core>,
    registry: Arc<Registry>,
    pub(crate) id: DatabaseId,
    pub(crate) namespace: NamespaceId,
    databases: databases::Cache,
    tokens: token_rows::Cache,
    members: members::Cache,
    maintenance: maintenance::State,
    closed: namespaces::Closed,
    audit: audit::Waiting,
    insights: insights::Waiting,
}

impl System {
    pub(crate) fn new(
        core: Arc<Core>,
        registry: Arc<Registry>,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Self {
        Self {
            core,
            registry,
            id,
            namespace,
            databases: databases::Cache::default(),
            tokens: token_rows::Cache::default(),
            members: members::Cache::default(),
            maintenance: maintenance::State::default(),
            closed: namespaces::Closed::default(),
            audit: audit::Waiting::default(),
            insights: insights::Waiting::default(),
        }
    }

    /// Makes the tables that are missing, and reads what every request asks for.
    pub(crate) async fn prepare(&self) -> Result<(), Error> {
        let version = self.read(|c| c.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0)));
        let version = version.await?;
        let known = schema::STEPS.len();
        let Some(missing) = usize::try_from(version)
            .ok()
            .and_then(|version| schema::STEPS.get(version..))
        else {
            let what = format!(
                "the system database has schema version {version}, this program knows {known}"
            );
            return Err(Error::new(Code::Refused, what));
        };
        if !missing.is_empty() {
            self.write(move |c| {
                for step in missing {
                    c.execute_batch(step)?;
                }
                c.execute_batch(&format!("PRAGMA user_version={known}"))
            })
            .await?;
        }
        self.load_maintenance().await?;
        self.load_closed().await
    }

    /// Whether audit lines or counts wait to be written.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.audit.is_empty() || self.has_insights()
    }

    async fn lease(&self) -> Result<Lease, Error> {
        self.registry
            .lease_for(For::Engine, self.namespace, self.id)
            .await
    }

    /// Runs `work` in a read transaction.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let lease = self.lease().await?;
        let reader = lease.reader().await?;
        blocking(lease.core.executor(), move || {
            reader.transaction(Permission::READ, None, |sqlite| {
                sqlite
                    .as_engine(work)
                    .map_err(|error| sql_error(sqlite, error))
            })
        })
        .await
    }

    /// A page of what `select` finds with `given`. Its last parameter is how many rows there may be: one more than the page
    /// has, which tells whether another follows. `cursor` names where an item stands.
    pub(crate) async fn page<T, F>(
        &self,
        select: String,
        given: Vec<SqlValue>,
        limit: usize,
        row: F,
        cursor: impl Fn(&T) -> String,
    ) -> Result<PageOf<T>, Error>
    where
        T: Send + 'static,
        F: FnMut(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let items = self.rows(select, given, limit + 1, row).await?;
        Ok(PageOf::cut(items, limit, cursor))
    }

    /// A page of stored lines: JSON objects that have an `id`. `what` is said of one that is none.
    pub(crate) async fn page_of_lines(
        &self,
        select: &str,
        given: Vec<SqlValue>,
        limit: usize,
        what: &str,
    ) -> Result<PageOf<Json>, Error> {
        let line = |row: &Row<'_>| row.get(0);
        let lines: Vec<String> = self.rows(select.to_owned(), given, limit + 1, line).await?;
        let items = lines
            .iter()
            .map(|line| serde_json::from_str(line))
            .collect::<Result<Vec<Json>, _>>()
            .map_err(|error| Error::internal(what).caused_by(error))?;
        Ok(PageOf::cut(items, limit, |line| {
            line["id"].as_str().unwrap_or_default().to_owned()
        }))
    }

    /// What `select` finds with `given`, and with `most` as its last parameter.
    async fn rows<T, F>(
        &self,
        select: String,
        mut given: Vec<SqlValue>,
        most: usize,
        row: F,
    ) -> Result<Vec<T>, Error>
    where
        T: Send + 'static,
        F: FnMut(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        given.push(i64::try_from(most).unwrap_or(i64::MAX).into());
        self.read(move |c| {
            let mut select = c.prepare(&select)?;
            select.query_map(params_from_iter(given), row)?.collect()
        })
        .await
    }

    /// Runs `work` in a write transaction and waits until it is stored.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (value, noted) = self.commit(work).await?;
        noted.stored().await?;
        Ok(value)
    }

    /// Runs `work` in a write transaction and leaves it to the caller to wait until it is stored. The log of a node
    /// is one: whatever is committed later, here or to another database, is stored later.
    pub(crate) async fn commit<T, F>(&self, work: F) -> Result<(T, Noted), Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let lease = self.lease().await?;
        let gate = lease.gate().await?;
        let written = blocking(lease.core.executor(), move || {
            gate.transaction(Permission::ENGINE, None, Vec::new(), |sqlite| {
                sqlite
                    .as_engine(work)
                    .map_err(|error| sql_error(sqlite, error))
            })
        })
        .await?;
        Ok((written.value, Noted(written.ticket)))
    }
}

/// A commit of the system database that may not be stored yet.
#[derive(Debug)]
#[must_use = "what is not stored is not safe"]
pub(crate) struct Noted(Option<Ticket>);

impl Noted {
    /// Waits until it is stored.
    pub(crate) async fn stored(self) -> Result<(), Error> {
        let Some(ticket) = self.0 else { return Ok(()) };
        ticket.wait(Durability::Remote).await.map_err(|error| {
            let what = "the store does not answer: the change is not safe yet and may be repeated";
            Error::new(Code::StorageUnavailable, what)
                .with("committed", true)
                .caused_by(error)
        })?;
        Ok(())
    }
}

pub(crate) fn micros(at: tidelog_wal::Timestamp) -> i64 {
    i64::try_from(at.micros()).unwrap_or(i64::MAX)
}

pub(crate) fn timestamp(micros: i64) -> tidelog_wal::Timestamp {
    tidelog_wal::Timestamp::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A column that holds an id.
pub(crate) fn id16(bytes: &[u8]) -> rusqlite::Result<[u8; 16]> {
    bytes.try_into().map_err(|_| rusqlite::Error::InvalidQuery)
}

/// Whether a write failed because a name stands already.
pub(crate) fn is_unique_violation(error: &Error) -> bool {
    const SQLITE_CONSTRAINT_UNIQUE: i64 = 2067;
    const SQLITE_CONSTRAINT_PRIMARYKEY: i64 = 1555;
    let code = error
        .members()
        .get("sqlite_code")
        .and_then(serde_json::Value::as_i64);
    matches!(
        code,
        Some(SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY)
    )
}
