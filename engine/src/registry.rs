//! Which databases are open: opened on demand, closed when idle, one at a time each.
//!
//! A slot is all that an idle database costs: no descriptor, no timer, no request (I9). Opening and closing
//! one database happen under its slot's lock, so that a file is never opened before its last descriptor is
//! closed (HAZARDS W0a).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_wal::DatabaseId;

use crate::core::Core;
use crate::database::open::{Journaled, open_database};
use crate::database::state::DbState;
use crate::database::{Lease, Ledger, OpenDb};
use crate::error::{Code, Error};
use crate::ship::blocking;

/// A database this node knows.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Where its commits stand in the journal.
    pub(crate) ledger: Arc<Ledger>,
    open: tokio::sync::Mutex<Option<Arc<OpenDb>>>,
    /// Commits of earlier lives that its files may lack, for the first open.
    journaled: Mutex<Vec<Journaled>>,
}

/// All databases of a node.
#[derive(Debug)]
pub(crate) struct Registry {
    core: Arc<Core>,
    slots: Mutex<HashMap<DatabaseId, Arc<Slot>>>,
}

impl Registry {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            slots: Mutex::new(HashMap::new()),
        }
    }

    /// The slot of a database, made if need be.
    pub(crate) fn slot(&self, id: DatabaseId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id).or_default())
    }

    /// Hands the first open what earlier lives journaled.
    pub(crate) fn set_journaled(&self, id: DatabaseId, commits: Vec<Journaled>) {
        let slot = self.slot(id);
        *slot
            .journaled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = commits;
    }

    /// A lease of the database, opening it if need be. `missing` makes its files when this node has none.
    pub(crate) async fn lease<F>(&self, id: DatabaseId, missing: F) -> Result<Lease, Error>
    where
        F: AsyncFnOnce() -> Result<DbState, Error>,
    {
        let slot = self.slot(id);
        let mut open = slot.open.lock().await;
        if let Some(database) = open.as_ref() {
            if !database.is_poisoned()
                && let Some(lease) = database.lease()
            {
                return Ok(lease);
            }
            let poisoned = Arc::clone(database);
            close(&poisoned).await;
            *open = None;
        }
        let folder = self.core.database_folder(id);
        let state = match DbState::read(self.core.parts.disk.as_ref(), &folder)? {
            Some(state) => state,
            None => missing().await?,
        };
        let journaled = std::mem::take(
            &mut *slot
                .journaled
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let kept = journaled.clone();
        let (core, ledger) = (Arc::clone(&self.core), Arc::clone(&slot.ledger));
        let opened = blocking(move || {
            let mut after = journaled;
            after.retain(|commit| commit.head.txid > state.head.txid);
            open_database(&core, state, &after, ledger)
        })
        .await;
        let database = match opened {
            Ok(database) => database,
            Err(error) => {
                *slot
                    .journaled
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) = kept;
                return Err(error);
            }
        };
        let lease = database
            .lease()
            .ok_or_else(|| Error::internal("a fresh database has no lease"))?;
        *open = Some(database);
        Ok(lease)
    }

    /// The open databases.
    pub(crate) async fn open(&self) -> Vec<(DatabaseId, Arc<OpenDb>)> {
        let slots: Vec<(DatabaseId, Arc<Slot>)> = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots
                .iter()
                .map(|(id, slot)| (*id, Arc::clone(slot)))
                .collect()
        };
        let mut found = Vec::new();
        for (id, slot) in slots {
            if let Some(database) = slot.open.lock().await.as_ref() {
                found.push((id, Arc::clone(database)));
            }
        }
        found
    }

    /// Closes a database that nobody uses and that was not used since `before` (monotonic microseconds).
    pub(crate) async fn close_idle(&self, id: DatabaseId, before: u64) -> Result<bool, Error> {
        let slot = self.slot(id);
        let mut open = slot.open.lock().await;
        let Some(database) = open.as_ref() else {
            return Ok(false);
        };
        if !database.is_idle() || database.last_used() > before {
            return Ok(false);
        }
        let database = Arc::clone(database);
        close(&database).await;
        *open = None;
        Ok(true)
    }

    /// Closes a database whatever its age, waiting for its users.
    pub(crate) async fn close(&self, id: DatabaseId) {
        let slot = self.slot(id);
        let mut open = slot.open.lock().await;
        if let Some(database) = open.take() {
            close(&database).await;
        }
    }

    /// Forgets what earlier lives journaled of a database whose files were made anew.
    pub(crate) fn forget_journaled(&self, id: DatabaseId) {
        self.set_journaled(id, Vec::new());
    }
}

/// Waits for its users and closes it. A database that could not be closed cleanly proves itself when it is
/// opened again.
async fn close(database: &Arc<OpenDb>) {
    database.drain().await;
    let closing = Arc::clone(database);
    if let Err(error) = blocking(move || closing.close()).await
        && error.code() != Code::WriterFenced
    {
        tracing::warn!(database = %database.meta().id, %error, "database was not closed cleanly");
    }
}
