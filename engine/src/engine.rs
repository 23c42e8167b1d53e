//! The engine as callers see it: a node that serves databases.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `run` | a node from its start to its stop, and what it runs beside calls |
//! | `making` | new databases: empty ones, and those made of a file |
//! | `database` | one database: statements, where it stands, sessions for threads |
//!
//! Here is what the three share, and what is asked by name: namespaces, tokens, databases. An [`Engine`] is a handle: every
//! clone is the same node.

mod database;
mod history_room;
mod making;
mod run;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidelog_archive::store::Store;
use tidelog_archive::term::Terms;
use tidelog_wal::{DatabaseId, NamespaceId, Position, Term, Timestamp};
use tokio::sync::watch;

use crate::boxed;
use crate::core::Core;
use crate::error::Error;
use crate::jobs::Jobs;
use crate::node::detached::Detached;
use crate::node::identity::FolderLock;
use crate::node::start::is_away;
use crate::operations::Running;
use crate::registry::Registry;
use crate::settings::Durability;
use crate::system::databases::{DatabasePatch, DatabaseRow, Namespace};
use crate::system::tokens::{NewToken, Principal, TokenInfo};
use crate::system::{Page, PageOf, System};
use crate::travel::rewind::Plans;
use crate::travel::verify::Proofs;

pub use database::{Database, Writer};
pub use making::{Draft, NewDatabase};
use run::Tasks;

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) system: System,
    pub(crate) running: Running,
    pub(crate) plans: Plans,
    pub(crate) proofs: Arc<Proofs>,
    jobs: Jobs,
    pub(crate) terms: Terms,
    notices: Vec<String>,
    /// The store, if it could not be reached at the start.
    away: Option<Store>,
    stop: watch::Sender<bool>,
    pub(crate) stopped: AtomicBool,
    tasks: Mutex<Tasks>,
    lock: Mutex<Option<FolderLock>>,
}

/// A running node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

impl Engine {
    /// What this node does without its store, if it could not be reached at the start; `None` if it could.
    pub fn detached(&self) -> Option<Detached> {
        self.inner.core.detached
    }

    /// Waits until the store answers that was away at the start, and asks it every `pause`. Whoever hears it stops
    /// this node and starts it anew. Never ends where the store was there.
    #[boxed]
    pub async fn store_returned(&self, pause: Duration) {
        let Some(store) = &self.inner.away else {
            return std::future::pending().await;
        };
        let root = tidelog_archive::key::Key::Root.to_string();
        loop {
            match store.get(&root).await {
                Err(error) if is_away(&error) => tokio::time::sleep(pause).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Sentences for the person who started the node.
    pub fn notices(&self) -> &[String] {
        &self.inner.notices
    }

    /// Makes a namespace.
    #[boxed]
    pub async fn namespace_create(&self, name: &str) -> Result<Namespace, Error> {
        self.inner.system.namespace_create(name).await
    }

    /// The namespace of a name.
    #[boxed]
    pub async fn namespace_by_name(&self, name: &str) -> Result<Namespace, Error> {
        self.inner.system.namespace_by_name(name).await
    }

    /// All namespaces.
    #[boxed]
    pub async fn namespaces(&self) -> Result<Vec<Namespace>, Error> {
        self.inner.system.namespaces().await
    }

    /// Makes a token; its secret is shown this once.
    #[boxed]
    pub async fn token_create(&self, new: NewToken) -> Result<(TokenInfo, String), Error> {
        self.inner.system.token_create(new, |_| None).await
    }

    /// The tokens of a namespace.
    #[boxed]
    pub async fn token_list(
        &self,
        namespace: NamespaceId,
        page: Page,
    ) -> Result<PageOf<TokenInfo>, Error> {
        self.inner.system.token_list(namespace, page).await
    }

    /// Ends a token at once.
    #[boxed]
    pub async fn token_revoke(&self, namespace: NamespaceId, id: &str) -> Result<(), Error> {
        self.inner.system.token_revoke(namespace, id).await
    }

    /// Who a secret belongs to.
    #[boxed]
    pub async fn authenticate(&self, secret: &str) -> Result<Principal, Error> {
        self.inner.system.authenticate(secret).await
    }

    /// The databases of a namespace.
    #[boxed]
    pub async fn database_list(
        &self,
        namespace: NamespaceId,
        page: Page,
    ) -> Result<PageOf<DatabaseRow>, Error> {
        self.inner.system.database_list(namespace, page).await
    }

    /// Changes a database's settings.
    #[boxed]
    pub async fn database_patch(
        &self,
        namespace: NamespaceId,
        name: &str,
        patch: DatabasePatch,
    ) -> Result<DatabaseRow, Error> {
        let retention = patch.retention_micros;
        if let Some(micros) = retention {
            self.set_retention(namespace, name, micros).await?;
        }
        let system = &self.inner.system;
        let row = system.database_patch(namespace, name, patch).await?;
        if retention.is_some() {
            // Behind the row: a look that was planned by its old window lies too far ahead.
            self.due_not_later(row.id, self.now()).await?;
        }
        Ok(row)
    }

    /// The database of a name.
    #[boxed]
    pub async fn database(&self, namespace: NamespaceId, name: &str) -> Result<Database, Error> {
        let row = self.inner.system.database(namespace, name).await?;
        Ok(Database {
            engine: self.clone(),
            row,
        })
    }
}

/// The term, for tests and reports.
impl Engine {
    /// This process life.
    pub fn term(&self) -> Term {
        self.inner.core.term()
    }

    /// The store's counters.
    pub fn store_meter(&self) -> tidelog_archive::store::MeterSnapshot {
        self.inner.core.remote.store.meter().snapshot()
    }

    /// The newest Position of this life that is stored, of a database.
    pub fn durable_of(&self, id: DatabaseId) -> Option<Position> {
        let shipped = self.inner.core.journal.shipped_lsn();
        self.inner.registry.slot(id).ledger.durable(shipped)
    }

    /// The wall clock of the node.
    pub fn now(&self) -> Timestamp {
        self.inner.core.parts.clock.wall()
    }

    /// Durability of writes that do not ask for one.
    pub fn default_durability(&self) -> Durability {
        self.inner.core.settings.durability
    }
}
