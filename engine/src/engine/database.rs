//! One database of a running node: statements, where it stands, and sessions for threads.
//!
//! A [`Database`] is a row as it was read, and opens on first use. It is refused once the database was purged, or deleted
//! since. What its row or its tenant's maintenance refuses is refused before the write gate; a [`Writer`] is the embedder's
//! own, and asks the node's admission alone.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidelog_wal::TxId;

use super::Engine;
use crate::boxed;
use crate::database::execute::{self, Bounds};
use crate::database::{Lease, OpenDb};
use crate::error::{Code, Error};
use crate::executor::{Executor, blocking};
use crate::request::{BookmarkInfo, Request, Response};
use crate::system::databases::DatabaseRow;

/// A database of a running node. Cheap to clone; opens on first use.
#[derive(Debug, Clone)]
pub struct Database {
    pub(crate) engine: Engine,
    pub(crate) row: DatabaseRow,
}

impl Database {
    /// Its row in the system database, as it was read.
    pub const fn row(&self) -> &DatabaseRow {
        &self.row
    }

    /// The node it is served by.
    pub(crate) const fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where blocking work runs.
    pub(crate) fn executor(&self) -> Arc<dyn Executor> {
        self.engine.inner.core.executor()
    }

    pub(crate) async fn lease(&self) -> Result<Lease, Error> {
        let registry = &self.engine.inner.registry;
        // Whoever asked for a deleted database by name may look at it.
        let deleted = self.row.deleted_at.is_some();
        registry.slot(self.row.id).check(&self.row.name, deleted)?;
        registry.lease(self.row.namespace, self.row.id).await
    }

    /// Runs statements.
    #[boxed]
    pub async fn execute(&self, request: Request) -> Result<Response, Error> {
        let inner = &self.engine.inner;
        self.admit_read()?;
        let lease = self.lease().await?;
        let durability = self
            .row
            .durability
            .unwrap_or(inner.core.settings.durability);
        let bounds = Bounds {
            size_max: self.row.size_limit,
            foreign_keys: self.row.foreign_keys,
        };
        let bounds = (self.admit_write(), bounds);
        execute::execute(lease, request, durability, bounds, self).await
    }

    /// A worker of the node, once this tenant is due one: whoever runs SQL on it holds it meanwhile.
    pub(crate) async fn worker(&self) -> Result<crate::jobs::Job, Error> {
        let inner = &self.engine.inner;
        inner.core.turns.asked(self.row.namespace);
        inner
            .jobs
            .take(self.row.namespace, &inner.core.meters.jobs_waiting)
            .await
    }

    /// Refuses reads of a database that is closed to them.
    pub(crate) fn admit_read(&self) -> Result<(), Error> {
        if self.row.block_reads {
            let what = format!("reads of database {:?} are blocked", self.row.name);
            return Err(Error::new(Code::DatabaseBlocked, what).with("blocked", "reads"));
        }
        Ok(())
    }

    /// Refuses writes of a database that is closed to them, or under maintenance. To be asked before the gate.
    pub(crate) fn admit_write(&self) -> Result<(), Error> {
        if self.row.block_writes {
            let what = format!("database {:?} takes no writes", self.row.name);
            return Err(Error::new(Code::DatabaseReadOnly, what).with("blocked", "writes"));
        }
        let system = &self.engine.inner.system;
        system.check_maintenance(self.row.namespace)
    }

    /// Where it stands.
    #[boxed]
    pub async fn bookmark(&self) -> Result<BookmarkInfo, Error> {
        let lease = self.lease().await?;
        let database = Arc::clone(&lease);
        let head = blocking(lease.core.executor(), move || database.capture_now()).await?;
        let durable = lease.durable();
        let stored = durable.map_or(TxId::ZERO, |position| position.txid);
        let lag_commits = head.txid.since(stored).unwrap_or(0);
        let now = lease.core.parts.clock.wall();
        let lag = if lag_commits == 0 {
            0
        } else {
            now.micros_since(head.time)
        };
        Ok(BookmarkInfo {
            bookmark: head.position(),
            durable_bookmark: durable,
            committed_at: head.time,
            lag_commits,
            lag_bytes: match lag_commits {
                0 => 0,
                _ => lease.core.journal.unshipped_bytes(),
            },
            lag: Duration::from_micros(lag),
            size_bytes: head.pages.bytes(lease.meta().page_size),
        })
    }

    /// A session for a thread of the caller's: transactions without an await between them.
    #[boxed]
    pub async fn writer(&self) -> Result<Writer, Error> {
        let lease = self.lease().await?;
        Ok(Writer {
            database: self.clone(),
            open: Mutex::new(Arc::clone(&lease)),
            runtime: tokio::runtime::Handle::current(),
        })
    }
}

/// Writes to one database from a thread of the caller's, without waiting for durability in between.
#[derive(Debug)]
pub struct Writer {
    database: Database,
    /// As it was open last, without a lease: between two transactions it may be closed.
    open: Mutex<Arc<OpenDb>>,
    runtime: tokio::runtime::Handle,
}

impl Writer {
    /// Runs `work` in one IMMEDIATE transaction. Blocks; must not be called on a thread of the runtime. The
    /// ticket is `None` if nothing changed. Only a transaction that runs keeps a database open.
    pub fn transaction<T>(
        &self,
        work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<(T, Option<crate::database::Ticket>), Error> {
        use crate::sql::policy::Permission;
        use crate::sql::run::sql_error;
        let lease = self.lease()?;
        self.runtime.block_on(self.database.history_pause());
        let gate = self.runtime.block_on(lease.gate())?;
        self.database.admit_history()?;
        gate.enforce_foreign_keys(self.database.row.foreign_keys)?;
        let written = gate.transaction(Permission::DDL, None, Vec::new(), |sqlite| {
            work(sqlite.raw()).map_err(|error| sql_error(sqlite, error))
        })?;
        Ok((written.value, written.ticket))
    }

    /// The database for one transaction, opened anew if need be. Blocks.
    fn lease(&self) -> Result<Lease, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !open.is_poisoned()
            && let Some(lease) = open.lease()
        {
            return Ok(lease);
        }
        let lease = self.runtime.block_on(self.database.lease())?;
        *open = Arc::clone(&lease);
        Ok(lease)
    }

    /// The SQLite file of its last transaction, for measuring. Nobody but the engine may open it.
    pub fn file(&self) -> PathBuf {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.file().to_owned()
    }
}
