//! A node from its start to its stop.
//!
//! - A start answers once the system database is there; what an earlier life left open is ended beside serving.
//! - A stop interrupts operations, closes every database, ships what is pending, and ends all that the start began, in this
//!   order. Its mark ([`Life`]) says that nothing of this life can be lost any more, so it comes after everything is synced,
//!   and the folder is let go of last. Stopping twice is stopping once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidelog_archive::root::Root;
use tidelog_archive::store::Store;
use tidelog_wal::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::making::{NewDatabase, first_commit};
use super::{Engine, Inner};
use crate::boxed;
use crate::core::{Core, Parts};
use crate::database::DbMeta;
use crate::database::state::DbState;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::jobs::Jobs;
use crate::keeper;
use crate::node::detached::Detached;
use crate::node::life::Life;
use crate::node::start::{Started, open_store, start};
use crate::node::terms::term_error;
use crate::operations::{KEPT_MICROS, OperationType, Running, recover_all};
use crate::rebuild::Unsettled;
use crate::registry::Registry;
use crate::scratch;
use crate::settings::Settings;
use crate::settle::Settler;
use crate::ship::Shipper;
use crate::sql::connection::AutoVacuum;
use crate::system::System;
use crate::travel::archives::sweep;
use crate::travel::rewind::Plans;

/// How long a stop waits for operations that were interrupted.
const OPERATIONS_END: Duration = Duration::from_secs(10);

/// The pause before a restore of an earlier life that could not be decided is looked at again.
const RECOVERY_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Tasks {
    shipper: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Engine {
    /// Starts a node. Must be called within a tokio runtime.
    #[boxed]
    pub async fn start(settings: Settings, parts: Parts) -> Result<Self, Error> {
        let store = open_store(&settings.store_url, &parts)?;
        Box::pin(Self::start_on(settings, parts, store)).await
    }

    /// Starts a node on a store of the caller's.
    #[boxed]
    pub async fn start_on(settings: Settings, parts: Parts, store: Store) -> Result<Self, Error> {
        let started = start(settings, parts, store).await?;
        let Started {
            lock,
            core,
            terms,
            tail,
            root,
            inherited,
            fresh,
            notices,
            away,
        } = started;
        let attached = away.is_none();
        scratch::empty(&core)?;
        let registry = Arc::new(Registry::new(Arc::clone(&core)));
        for (id, commits) in inherited.journaled {
            registry.set_journaled(id, commits);
        }
        let system = System::new(
            Arc::clone(&core),
            Arc::clone(&registry),
            root.system_namespace,
            root.system_database,
        );
        let (stop, stopped) = watch::channel(false);
        let (settle, inbox) = mpsc::unbounded_channel();
        // The receiver is at hand: it cannot fail.
        let _ = settle.send(tail);
        let shipper = Shipper {
            core: Arc::clone(&core),
            store: core.remote.store.clone(),
            settle,
            stop: stopped,
        };
        let (settler, registered) = (terms.clone(), Arc::clone(&registry));
        let settler = Settler::new(Arc::clone(&core), registered, settler, inbox);
        let mut tasks = Tasks::default();
        if attached {
            tasks.shipper = Some(tokio::spawn(shipper.run()));
            tasks
                .others
                .push(tokio::spawn(settler.run(stop.subscribe())));
        }
        for (name, work) in [
            (
                "tidelog-capture",
                Box::new(Core::pump_loop) as Box<dyn FnOnce(&Core) + Send>,
            ),
            ("tidelog-sync", Box::new(Core::sync_loop)),
            ("tidelog-backfill", Box::new(Core::backfill_loop)),
        ] {
            let core = Arc::clone(&core);
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || work(&core))
                .map_err(|e| Error::io("start a thread", e))?;
            tasks.threads.push(thread);
        }
        let jobs = Jobs::new(core.settings.workers, core.settings.workers_per_tenant);
        let inner = Inner {
            core,
            registry,
            system,
            running: Running::default(),
            plans: Plans::default(),
            proofs: Arc::default(),
            jobs,
            terms,
            notices,
            away,
            stop,
            stopped: AtomicBool::new(false),
            tasks: Mutex::new(tasks),
            lock: Mutex::new(Some(lock)),
        };
        let engine = Self {
            inner: Arc::new(inner),
        };
        if attached {
            engine.make_system(&root, fresh).await?;
        }
        engine.inner.system.prepare().await?;
        for (id, key) in engine.inner.system.rolled_back_keys().await? {
            engine.inner.core.rolled_back.add(id, &[key]);
        }
        engine.note_undecided().await?;
        engine.spawn_idle_sweep();
        if !attached {
            return Ok(engine);
        }
        engine.spawn_recovery();
        engine.spawn_calendar();
        engine.spawn_record_keeper();
        engine.spawn_stream_sweep();
        let drills = engine.drill_loop(engine.inner.stop.subscribe());
        engine.inner.lock_tasks().others.push(tokio::spawn(drills));
        Ok(engine)
    }

    /// Notes the restores that an earlier life left open: which calls they took back is not known yet.
    async fn note_undecided(&self) -> Result<(), Error> {
        for operation in self.inner.system.operations_open().await? {
            let puts_in_place = match operation.kind {
                OperationType::Restore => true,
                OperationType::Import => operation.note.get("replace").is_some(),
                _ => false,
            };
            if let Some(database) = operation.database.filter(|_| puts_in_place) {
                let rolled_back = &self.inner.core.rolled_back;
                rolled_back.undecided(operation.id, database);
            }
        }
        Ok(())
    }

    /// Makes the system database, if this start or one before it that died has not come to it.
    async fn make_system(&self, root: &Root, fresh: bool) -> Result<(), Error> {
        let (namespace, id) = (root.system_namespace, root.system_database);
        let core = Arc::clone(&self.inner.core);
        if !fresh {
            let unsettled = Unsettled::of(&core, id);
            match core.remote.owned_manifest(namespace, id).await {
                Err(error) if error.code() == Code::DatabaseNotFound => {}
                Err(error) => return Err(error),
                Ok(loaded) => {
                    let state = DbState::read(core.parts.disk.as_ref(), &core.database_folder(id))?;
                    let stored = unsettled.stored(&loaded.manifest);
                    let journaled = self.inner.registry.has_journaled(id);
                    if state.is_some() || stored.is_some() || journaled {
                        return Ok(());
                    }
                    // Only its manifest was made.
                    let meta = DbMeta {
                        id,
                        namespace,
                        page_size: loaded.manifest.page_size,
                        seed: loaded.manifest.seed,
                    };
                    return blocking(core.executor(), move || {
                        first_commit(&core, meta, AutoVacuum::None)
                    })
                    .await;
                }
            }
        }
        self.make_database(namespace, id, &NewDatabase::named("system"))
            .await?;
        Ok(())
    }

    /// Runs `task` until the stop, which waits for it.
    pub(crate) fn spawn_until_stop<F>(&self, task: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = tokio::spawn(task(self.inner.stop.subscribe()));
        self.inner.lock_tasks().others.push(task);
    }

    fn spawn_idle_sweep(&self) {
        let inner = Arc::downgrade(&self.inner);
        let mut stop = self.inner.stop.subscribe();
        let pause = self.inner.core.settings.idle_sweep;
        let sweep = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = stop.changed() => return,
                }
                let Some(inner) = inner.upgrade() else { return };
                inner.close_idle().await;
                keeper::checkpoint_waiting(&inner.core, &inner.registry).await;
            }
        });
        self.inner.lock_tasks().others.push(sweep);
    }

    /// Ends what an earlier life left open, beside serving.
    fn spawn_recovery(&self) {
        let engine = self.clone();
        let mut stop = self.inner.stop.subscribe();
        let recovery = tokio::spawn(async move {
            let recovered = async {
                recover_all(&engine).await?;
                engine.fork_diverged().await?;
                sweep(&engine).await?;
                let now = engine.now().micros();
                let old = Timestamp::from_micros(now.saturating_sub(KEPT_MICROS));
                engine.inner.system.operations_prune(old).await?;
                // Keyed writes wait for it.
                while engine.inner.core.rolled_back.waits() {
                    tokio::time::sleep(RECOVERY_PAUSE).await;
                    recover_all(&engine).await?;
                }
                Ok::<_, Error>(())
            };
            tokio::select! {
                ended = recovered => if let Err(error) = ended {
                    tracing::warn!(%error, "operations of earlier lives are not ended yet");
                },
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
        self.inner.lock_tasks().others.push(recovery);
    }

    /// Stops: closes every database, ships what is pending, ends the threads. Settling goes on at the next
    /// start.
    #[boxed]
    pub async fn shutdown(&self) -> Result<(), Error> {
        if self.inner.stopped.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let inner = &self.inner;
        let deadline = tokio::time::Instant::now() + OPERATIONS_END;
        for mut operation in inner.running.interrupt() {
            operation
                .wait(deadline.duration_since(tokio::time::Instant::now()))
                .await;
        }
        inner.flush_records().await;
        inner.registry.shut();
        for (id, _) in inner.registry.open().await {
            inner.registry.close(id).await;
        }
        inner.stop.send_replace(true);
        inner.core.journal.wake_shipper();
        let shipper = inner.lock_tasks().shipper.take();
        if let Some(shipper) = shipper {
            shipper
                .await
                .map_err(|e| Error::internal("the shipper panicked").caused_by(e))?;
        }
        inner.core.pump.close();
        inner.core.backfills.close();
        inner.core.journal.stop_syncing();
        let (others, threads) = {
            let mut tasks = inner.lock_tasks();
            (
                std::mem::take(&mut tasks.others),
                std::mem::take(&mut tasks.threads),
            )
        };
        for task in others {
            // A task that panicked has said so in the log.
            let _ = task.await;
        }
        blocking(self.inner.core.executor(), move || {
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| Error::internal("a thread panicked"))?;
            }
            Ok(())
        })
        .await?;
        inner.core.journal.collect()?;
        inner.mark_stopped()?;
        // Nothing of this life writes any more: the folder is free for the next one.
        inner
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match inner.core.journal.poisoned() {
            None => Ok(()),
            Some(error) => Err(Error::new(error.code(), error.to_string())),
        }
    }

    /// Stops, and closes the term of this life: the next node needs not be told to take it over.
    #[boxed]
    pub async fn release(&self) -> Result<(), Error> {
        self.shutdown().await?;
        let term = self.term();
        let closed = self.inner.terms.close(term, term).await;
        closed.map_err(|e| term_error("close the term of this life", e))?;
        Ok(())
    }
}

impl Inner {
    /// Turns true when the node stops.
    pub(crate) fn stop_signal(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Leaves the mark that nothing of this life can be lost any more: everything it journaled is synced.
    fn mark_stopped(&self) -> Result<(), Error> {
        let (core, system) = (&self.core, &self.system);
        let synced = core.journal.synced_lsn() >= core.journal.appended_lsn();
        if !synced || core.detached == Some(Detached::Reads) {
            return Ok(());
        }
        let life = Life {
            boot: core.parts.boot.clone(),
            stopped: true,
            system: (system.namespace, system.id),
        };
        life.write(core.parts.disk.as_ref(), &core.settings.data)
    }

    fn lock_tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn close_idle(&self) {
        let settings = &self.core.settings;
        let idle = u64::try_from(settings.idle_close.as_micros()).unwrap_or(u64::MAX);
        let before = self
            .core
            .parts
            .clock
            .monotonic_micros()
            .saturating_sub(idle);
        for (id, database) in self.registry.open_now() {
            database.interrupt_old_reads();
            if database.last_used() > before {
                continue;
            }
            // While it can still be used: the close itself, which nobody gets past, then has little to copy.
            if database.has_much_to_backfill() {
                let core = Arc::clone(&self.core);
                let backfilled = blocking(self.core.executor(), move || {
                    core.scratches.with(|scratch| database.backfill(scratch))
                });
                if let Err(error) = backfilled.await {
                    tracing::debug!(database = %id, %error, "not backfilled before its close");
                }
            }
            if let Err(error) = self.registry.close_idle(id, before).await {
                tracing::warn!(database = %id, %error, "idle database was not closed");
            }
        }
    }
}

impl Core {
    fn pump_loop(&self) {
        self.pump.run();
    }

    fn sync_loop(&self) {
        self.journal.sync_loop();
    }

    fn backfill_loop(&self) {
        self.backfills.run();
    }
}
