//! Which databases are open: opened on demand, closed when idle, one at a time each.
//!
//! A slot is all that an idle database costs: no descriptor, no timer, no request (I9). Opening and closing
//! one database happen under its slot's lock, so that a file is never opened before its last descriptor is
//! closed (HAZARDS W0a). Opening one beyond [`places`](crate::places) closes the one that was unused for longest, else one
//! that only streams at rest keep in use; where every one is in use it waits for an end, no longer than for the write
//! gate, and is refused then.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_archive::manifest::State as ManifestState;
use tidelog_wal::{DatabaseId, NamespaceId, Position};

use crate::core::Core;
use crate::database::open::{Journaled, Opening, open_database};
use crate::database::state::DbState;
use crate::database::{Lease, Ledger, OpenDb};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::gap;
use crate::node::inherit::journaled_of;
use crate::places::{Changes, For, Full, Place, Places};
use crate::rebuild::{Unsettled, restore_files};
use crate::streams::Streams;

/// An open database and its place; the database is let go of first.
#[derive(Debug)]
struct Opened {
    database: Arc<OpenDb>,
    _place: Place,
}

/// A slot that is held: nobody else opens or closes its database meanwhile.
#[derive(Debug)]
struct Held<'a> {
    open: tokio::sync::MutexGuard<'a, Option<Opened>>,
    /// Dropped after the lock.
    released: Released<'a>,
}

/// Says that a slot was let go of whose database could be closed: a look for a place that came upon the lock has passed
/// it by.
#[derive(Debug)]
struct Released<'a> {
    database: Option<Arc<OpenDb>>,
    changes: &'a Changes,
}

impl<'a> Held<'a> {
    const fn new(open: tokio::sync::MutexGuard<'a, Option<Opened>>, changes: &'a Changes) -> Self {
        let database = None;
        let released = Released { database, changes };
        Self { open, released }
    }
}

impl Deref for Held<'_> {
    type Target = Option<Opened>;

    fn deref(&self) -> &Option<Opened> {
        &self.open
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Option<Opened> {
        &mut self.open
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let opened = self.open.as_ref();
        self.released.database = opened.map(|opened| Arc::clone(&opened.database));
    }
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        if self.database.as_ref().is_some_and(|one| one.is_idle()) {
            self.changes.tell();
        }
    }
}

/// A database this node knows.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Where its commits stand in the journal.
    pub(crate) ledger: Arc<Ledger>,
    open: tokio::sync::Mutex<Option<Opened>>,
    /// Commits of earlier lives that its files may lack, for the first open.
    journaled: Mutex<Vec<Journaled>>,
    /// This life owns its manifest and has compared its files with the store.
    owned: AtomicBool,
    /// It was deleted: handles are refused, the engine itself may still read it.
    hidden: AtomicBool,
    /// It was purged.
    gone: AtomicBool,
}

impl Slot {
    /// Refuses handles from now on, or no longer.
    pub(crate) fn hide(&self, hidden: bool) {
        self.hidden.store(hidden, Ordering::Release);
    }

    /// Refuses a handle of a database that was purged, or deleted since the handle was made.
    pub(crate) fn check(&self, name: &str, deleted: bool) -> Result<(), Error> {
        if self.gone.load(Ordering::Acquire) {
            return Err(crate::system::lifecycle::purged(name));
        }
        if !deleted && self.hidden.load(Ordering::Acquire) {
            let what = format!("database {name:?} was deleted");
            return Err(Error::new(Code::DatabaseNotFound, what));
        }
        Ok(())
    }

    fn check_gone(&self, id: DatabaseId) -> Result<(), Error> {
        if self.gone.load(Ordering::Acquire) {
            return Err(crate::system::lifecycle::purged(&id.to_string()));
        }
        Ok(())
    }
}

/// All databases of a node.
#[derive(Debug)]
pub(crate) struct Registry {
    core: Arc<Core>,
    slots: Mutex<HashMap<DatabaseId, Arc<Slot>>>,
    places: Places,
    /// The streams of clients, which end before the database they are on is closed.
    pub(crate) streams: Arc<Streams>,
    /// The node stops: nothing is opened any more.
    shut: AtomicBool,
}

impl Registry {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            streams: Arc::new(Streams::new(Arc::clone(&core))),
            places: Places::new(core.settings.open_databases_max, core.place_changes.clone()),
            core,
            slots: Mutex::new(HashMap::new()),
            shut: AtomicBool::new(false),
        }
    }

    /// Says that the node stops: from now on nobody gets a database.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        // Who waits for a place gets none any more.
        self.places.changes().tell();
    }

    /// Whether the node stops.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// The slot of a database, made if need be.
    pub(crate) fn slot(&self, id: DatabaseId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id).or_default())
    }

    /// Holds a slot, once nobody else does.
    async fn hold<'a>(&'a self, slot: &'a Slot) -> Held<'a> {
        Held::new(slot.open.lock().await, self.places.changes())
    }

    /// Holds a slot, if nobody else does.
    fn try_hold<'a>(&'a self, slot: &'a Slot) -> Option<Held<'a>> {
        let open = slot.open.try_lock().ok()?;
        Some(Held::new(open, self.places.changes()))
    }

    /// Hands the first open what earlier lives journaled.
    pub(crate) fn set_journaled(&self, id: DatabaseId, commits: Vec<Journaled>) {
        let slot = self.slot(id);
        *slot
            .journaled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = commits;
    }

    /// Whether an earlier life journaled commits that the files may lack.
    pub(crate) fn has_journaled(&self, id: DatabaseId) -> bool {
        !lock(&self.slot(id).journaled).is_empty()
    }

    /// Says that this life made the database: nothing in the store is older.
    pub(crate) fn note_made(&self, id: DatabaseId) {
        self.slot(id).owned.store(true, Ordering::Release);
    }

    /// A lease of the database for a tenant's call, opening it if need be.
    pub(crate) async fn lease(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Lease, Error> {
        self.lease_for(For::Tenant, namespace, id).await
    }

    /// A lease of the database, opening it if need be.
    ///
    /// The first open of a life takes the manifest over, and restores the files from the store where this node
    /// has none or the store is ahead of them.
    pub(crate) async fn lease_for(
        &self,
        whom: For,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Lease, Error> {
        let slot = self.slot(id);
        let mut open = self.hold(&slot).await;
        slot.check_gone(id)?;
        // Under the slot's lock: what shutting down has closed stays closed.
        if self.is_shut() {
            return Err(Error::new(Code::Overloaded, "the node is shutting down"));
        }
        if let Some(opened) = open.as_ref() {
            let database = Arc::clone(&opened.database);
            if !database.is_poisoned()
                && let Some(lease) = database.lease()
            {
                return Ok(lease);
            }
            self.end(&database).await;
            *open = None;
        }
        let place = self.place(whom, namespace, id).await?;
        let folder = self.core.database_folder(id);
        let mut state = DbState::read(self.core.parts.disk.as_ref(), &folder)?;
        let mut journaled = lock(&slot.journaled).clone();
        let opened_before = slot.owned.load(Ordering::Acquire);
        if opened_before && self.core.detached.is_none() {
            self.core.remote.refresh_key(namespace, id);
        }
        if !opened_before && self.core.detached.is_some() {
            if state.is_none() {
                let what =
                    format!("database {id} is not in the data folder, and the store is away");
                return Err(Error::new(Code::StorageUnavailable, what));
            }
            slot.owned.store(true, Ordering::Release);
        } else if !opened_before {
            if state.is_none() && !journaled.is_empty() {
                // The files were never finished; their commits are on their way to the store.
                let journal = &self.core.journal;
                journal.wait_shipped(journal.appended_lsn()).await?;
            }
            let unsettled = Unsettled::of(&self.core, id);
            let loaded = self.core.remote.owned_manifest(namespace, id).await?;
            if let ManifestState::Purged(_) = loaded.manifest.state {
                return Err(crate::system::lifecycle::purged(&id.to_string()));
            }
            let stored = unsettled.stored(&loaded.manifest);
            // Without files the journal alone is no state to go on from; with them it may end before they do, since
            // chunks go in any order.
            let newest = journaled.last().map(|j| j.head);
            let local = state.as_ref().map(|state| match newest {
                Some(head) if head.txid > state.head.txid => head,
                _ => state.head,
            });
            if behind(local.map(|head| head.position()), stored) {
                let head = local.map(|head| head.position().to_string());
                tracing::info!(database = %id, local = head, "restoring the files from the store");
                state = Some(restore_files(&self.core, Some(self), &loaded, state).await?);
                journaled.clear();
                lock(&slot.journaled).clear();
            }
            if let Some(position) = stored {
                slot.ledger.set_durable(position);
            }
            slot.owned.store(true, Ordering::Release);
        }
        let Some(state) = state else {
            let what = format!("neither this node nor the store holds a commit of database {id}");
            return Err(Error::new(Code::DatabaseCorrupt, what));
        };
        let (core, ledger) = (Arc::clone(&self.core), Arc::clone(&slot.ledger));
        let continuous = opened_before || core.same_boot;
        let opening = blocking(self.core.executor(), move || {
            if opened_before && !state.clean {
                journaled = journaled_of(&core, id)?;
            }
            journaled.retain(|commit| commit.head.txid > state.head.txid);
            open_database(&core, state, &journaled, ledger, continuous)
        })
        .await?;
        let database = match opening {
            Opening::Open(database) => database,
            Opening::Unproven(found) => {
                let loaded = self.core.remote.owned_manifest(namespace, id).await?;
                let state = gap::go_on(&self.core, &loaded, *found).await?;
                let (core, ledger) = (Arc::clone(&self.core), Arc::clone(&slot.ledger));
                match blocking(self.core.executor(), move || {
                    open_database(&core, state, &[], ledger, true)
                })
                .await?
                {
                    Opening::Open(database) => database,
                    Opening::Unproven(found) => {
                        let what =
                            format!("files of database {id} that were just made: {}", found.why);
                        return Err(Error::new(Code::DatabaseCorrupt, what));
                    }
                }
            }
        };
        lock(&slot.journaled).clear();
        let lease = database
            .lease()
            .ok_or_else(|| Error::internal("a fresh database has no lease"))?;
        place.held_by(&database);
        *open = Some(Opened {
            database,
            _place: place,
        });
        Ok(lease)
    }

    /// A place for a database that is about to be opened.
    async fn place(
        &self,
        whom: For,
        namespace: NamespaceId,
        id: DatabaseId,
    ) -> Result<Place, Error> {
        let mut late = pin!(tokio::time::sleep(self.core.settings.gate_timeout));
        let (mut is_late, mut was_last) = (false, false);
        loop {
            // Before the look: what ends from here on is not missed.
            let changed = self.places.changes().next();
            let full = match self.places.take(namespace, id, whom) {
                Ok(place) => return Ok(place),
                Err(full) => full,
            };
            if self.close_longest_unused(full).await {
                continue;
            }
            if whom == For::Engine {
                return Ok(self.places.take_beyond(namespace, id));
            }
            if was_last || self.is_shut() {
                return Err(full.error());
            }
            // At the end of the wait, too: nobody tells of a statement that ends beside streams at rest.
            was_last = is_late;
            if self.rest_streams(full).await {
                continue;
            }
            if is_late {
                return Err(full.error());
            }
            // The bound first: it holds where something changes all the time.
            tokio::select! {
                biased;
                () = &mut late => is_late = true,
                () = changed => {}
            }
        }
    }

    /// Closes the connections of streams at rest where they alone are in the way; whether there were such.
    async fn rest_streams(&self, full: Full) -> bool {
        // The databases are let go of before the connections are waited for: one may want to close.
        let used = self.places.used(full).into_iter();
        let mut resting = used.map(|database| self.streams.rest(&database));
        let Some(resting) = resting.find(|sessions| !sessions.is_empty()) else {
            return false;
        };
        let closed = blocking(self.core.executor(), move || {
            drop(resting);
            Ok(())
        });
        closed.await.is_ok()
    }

    /// Closes the database that was unused for longest of those that would make the place; whether there was one.
    async fn close_longest_unused(&self, full: Full) -> bool {
        for id in self.places.unused(full) {
            let slot = self.slot(id);
            // Whoever holds it opens or closes that database, and may itself wait for a place.
            let Some(mut open) = self.try_hold(&slot) else {
                continue;
            };
            let Some(opened) = open.as_ref() else {
                continue;
            };
            let database = Arc::clone(&opened.database);
            if !database.drain_unused() {
                continue;
            }
            self.end(&database).await;
            *open = None;
            return true;
        }
        false
    }

    /// How many databases are open or about to be.
    pub(crate) fn count(&self) -> usize {
        self.places.count()
    }

    /// Whether a database is open.
    pub(crate) async fn is_open(&self, id: DatabaseId) -> bool {
        let slot = self.slot(id);
        self.hold(&slot).await.is_some()
    }

    /// The open databases, but for those that are being opened or closed.
    pub(crate) fn open_now(&self) -> Vec<(DatabaseId, Arc<OpenDb>)> {
        self.places.open()
    }

    /// The open databases, once those that are being opened are.
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
            if let Some(opened) = self.hold(&slot).await.as_ref() {
                found.push((id, Arc::clone(&opened.database)));
            }
        }
        found
    }

    /// Closes a database that nobody uses and that was not used since `before` (monotonic microseconds).
    pub(crate) async fn close_idle(&self, id: DatabaseId, before: u64) -> Result<bool, Error> {
        let slot = self.slot(id);
        let mut open = self.hold(&slot).await;
        let Some(opened) = open.as_ref() else {
            return Ok(false);
        };
        let database = Arc::clone(&opened.database);
        if !database.is_idle() || database.last_used() > before {
            return Ok(false);
        }
        self.end(&database).await;
        *open = None;
        Ok(true)
    }

    /// Closes a purged database, waiting for its users, and opens it no more.
    pub(crate) async fn bury(&self, id: DatabaseId) {
        self.slot(id).gone.store(true, Ordering::Release);
        self.close(id).await;
    }

    /// Closes a database whatever its age, waiting for its users.
    pub(crate) async fn close(&self, id: DatabaseId) {
        let slot = self.slot(id);
        let mut open = self.hold(&slot).await;
        if let Some(opened) = open.take() {
            self.end(&opened.database).await;
        }
    }
}

impl Registry {
    /// Ends its streams and closes it.
    async fn end(&self, database: &Arc<OpenDb>) {
        database.begin_closing();
        self.streams.end_of(database.meta().id);
        close(database).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the store holds commits that this node lacks, or another history of the same length.
fn behind(local: Option<Position>, stored: Option<Position>) -> bool {
    match (local, stored) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(local), Some(stored)) => {
            local.txid < stored.txid || local.txid == stored.txid && local.chain != stored.chain
        }
    }
}

/// Waits for its users and closes it. A database that could not be closed cleanly proves itself when it is
/// opened again.
async fn close(database: &Arc<OpenDb>) {
    database.drain().await;
    let closing = Arc::clone(database);
    if let Err(error) = blocking(database.core.executor(), move || closing.close()).await
        && error.code() != Code::WriterFenced
    {
        tracing::warn!(database = %database.meta().id, %error, "database was not closed cleanly");
    }
}

#[cfg(test)]
mod tests;
