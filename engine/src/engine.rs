//! The engine as callers see it: a node that serves databases.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidelog_archive::root::Root;
use tidelog_archive::store::Store;
use tidelog_archive::term::Terms;
use tidelog_wal::delta::Delta;
use tidelog_wal::record::{RecordHeader, RecordKind, TimeFlag};
use tidelog_wal::{
    DatabaseId, Digest, DigestSeed, NamespaceId, PageCount, PageNo, PageSize, Position, Term,
    Timestamp, TxId, chain,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::boxed;
use crate::capture::Head;
use crate::core::{Core, Parts};
use crate::crash_point;
use crate::database::execute::{self, Bounds};
use crate::database::state::DbState;
use crate::database::{DbMeta, Lease, OpenDb, incarnation_name};
use crate::error::{Code, Error};
use crate::executor::{Executor, blocking};
use crate::files::DbPaths;
use crate::import;
use crate::jobs::Jobs;
use crate::journal::chunk::{ChunkDatabase, WalPosition};
use crate::journal::{Append, Payload};
use crate::keeper;
use crate::node::detached::Detached;
use crate::node::identity::FolderLock;
use crate::node::life::Life;
use crate::node::start::{Started, is_away, open_store, start};
use crate::node::terms::term_error;
use crate::operations::{KEPT_MICROS, OperationType, Running, recover_all};
use crate::registry::Registry;
use crate::request::{BookmarkInfo, Request, Response};
use crate::scratch;
use crate::settings::{Durability, Settings};
use crate::settle::Settler;
use crate::ship::Shipper;
use crate::sql::connection::{AutoVacuum, create};
use crate::system::System;
use crate::system::databases::{DatabasePatch, DatabaseRow, Namespace};
use crate::system::names::check_name;
use crate::system::requests::Record;
use crate::system::tokens::{NewToken, Principal, TokenInfo};
use crate::system::{Page, PageOf};
use crate::travel::archives::sweep;
use crate::travel::rewind::Plans;
use crate::travel::verify::Proofs;

/// How long a stop waits for operations that were interrupted.
const OPERATIONS_END: Duration = Duration::from_secs(10);
/// The pause before a restore of an earlier life that could not be decided is looked at again.
const RECOVERY_PAUSE: Duration = Duration::from_secs(5);

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

#[derive(Debug, Default)]
struct Tasks {
    shipper: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// A running node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

/// A database of a running node. Cheap to clone; opens on first use.
#[derive(Debug, Clone)]
pub struct Database {
    pub(crate) engine: Engine,
    pub(crate) row: DatabaseRow,
}

/// A database to be made.
#[derive(Debug, Clone)]
pub struct NewDatabase {
    /// Its name.
    pub name: String,
    /// Its page size.
    pub page_size: PageSize,
    /// How it gives pages back.
    pub auto_vacuum: AutoVacuum,
}

impl NewDatabase {
    /// A database with SQLite's defaults.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            page_size: PageSize::DEFAULT,
            auto_vacuum: AutoVacuum::None,
        }
    }
}

/// A database whose history exists and whose name does not: dropped, nobody ever meets it.
#[derive(Debug)]
pub struct Draft(pub(crate) Database);

impl Draft {
    /// The database it will be.
    pub const fn database(&self) -> &Database {
        &self.0
    }

    /// Gives it its name, in one transaction with `record`, the answer to repeat.
    #[boxed]
    pub async fn publish(self, record: Option<Record>) -> Result<Database, Error> {
        let system = &self.0.engine.inner.system;
        system.database_add(&self.0.row, record).await?;
        Ok(self.0)
    }
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
            match core.remote.owned_manifest(namespace, id).await {
                Err(error) if error.code() == Code::DatabaseNotFound => {}
                Err(error) => return Err(error),
                Ok(loaded) => {
                    let state = DbState::read(core.parts.disk.as_ref(), &core.database_folder(id))?;
                    let stored = loaded
                        .manifest
                        .settled_position()
                        .or_else(|| core.tails.newest(id));
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

    /// Makes a database.
    #[boxed]
    pub async fn database_create(
        &self,
        namespace: NamespaceId,
        new: NewDatabase,
    ) -> Result<Database, Error> {
        self.database_draft(namespace, new)
            .await?
            .publish(None)
            .await
    }

    /// Makes the history of a database that has no name yet: [`Draft::publish`] gives it one.
    #[boxed]
    pub async fn database_draft(
        &self,
        namespace: NamespaceId,
        new: NewDatabase,
    ) -> Result<Draft, Error> {
        check_name("database", &new.name)?;
        self.check_free(namespace, &new.name).await?;
        let id = DatabaseId::from_bytes(self.inner.core.parts.entropy.bytes16());
        let meta = self.make_database(namespace, id, &new).await?;
        Ok(self.draft(meta, &new.name))
    }

    /// Makes a database of an existing SQLite file, of any page size: its state becomes TxId 1. A WAL or
    /// rollback journal beside the file is recovered into the copy; the file itself is not touched.
    ///
    /// [`Code::ImportInvalid`] says what is wrong with the file; nothing is created then.
    #[boxed]
    pub async fn database_import(
        &self,
        namespace: NamespaceId,
        name: &str,
        file: &std::path::Path,
    ) -> Result<Database, Error> {
        self.database_import_draft(namespace, name, file)
            .await?
            .publish(None)
            .await
    }

    /// The same without its name yet: [`Draft::publish`] gives it.
    #[boxed]
    pub async fn database_import_draft(
        &self,
        namespace: NamespaceId,
        name: &str,
        file: &std::path::Path,
    ) -> Result<Draft, Error> {
        self.check_new(namespace, name).await?;
        let id = DatabaseId::from_bytes(self.inner.core.parts.entropy.bytes16());
        self.import_as(namespace, name, file, id).await
    }

    /// Refuses a name for a new database that is not allowed or in use.
    pub(crate) async fn check_new(&self, namespace: NamespaceId, name: &str) -> Result<(), Error> {
        check_name("database", name)?;
        self.check_free(namespace, name).await
    }

    /// Makes a database with this id of an existing SQLite file.
    pub(crate) async fn import_as(
        &self,
        namespace: NamespaceId,
        name: &str,
        file: &std::path::Path,
        id: DatabaseId,
    ) -> Result<Draft, Error> {
        let core = Arc::clone(&self.inner.core);
        let mut seed = [0; 8];
        core.parts.entropy.fill(&mut seed);
        let seed = DigestSeed::new(u64::from_le_bytes(seed));
        let (proving, from) = (Arc::clone(&core), file.to_owned());
        let proven = blocking(core.executor(), move || import::prove(&proving, id, &from)).await?;
        let meta = DbMeta {
            id,
            namespace,
            page_size: proven.page_size,
            seed,
        };
        core.remote.create_manifest(&meta, name).await?;
        self.inner.registry.note_made(id);
        import::commit(&core, meta, proven).await?;
        crash_point!("import.before_row");
        Ok(self.draft(meta, name))
    }

    /// Names a database that was made; if its name was taken meanwhile, it is kept as a deleted one, so that
    /// nothing stands in the store without a row.
    pub(crate) async fn publish_or_hide(&self, draft: Draft) -> Result<Database, Error> {
        let row = draft.0.row.clone();
        let published = draft.publish(None).await;
        if let Err(error) = &published
            && error.code() == Code::NameTaken
        {
            self.inner.system.database_add_hidden(&row).await?;
        }
        published
    }

    pub(crate) async fn check_free(&self, namespace: NamespaceId, name: &str) -> Result<(), Error> {
        match self.inner.system.database(namespace, name).await {
            Ok(_) => {
                let what = format!("there is a database {name:?} already");
                Err(Error::new(Code::NameTaken, what))
            }
            Err(error) if error.code() == Code::DatabaseNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn draft(&self, meta: DbMeta, name: &str) -> Draft {
        let ids = (meta.namespace, meta.id);
        let row = DatabaseRow::plain(ids, name.to_owned(), meta.page_size, self.now());
        Draft(Database {
            engine: self.clone(),
            row,
        })
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
        if let Some(micros) = patch.retention_micros {
            self.set_retention(namespace, name, micros).await?;
        }
        self.inner
            .system
            .database_patch(namespace, name, patch)
            .await
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

    /// Makes the files and the first commit of a database: TxId 1, the change from nothing.
    pub(crate) async fn make_database(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        new: &NewDatabase,
    ) -> Result<DbMeta, Error> {
        let core = Arc::clone(&self.inner.core);
        let mut seed = [0; 8];
        core.parts.entropy.fill(&mut seed);
        let seed = DigestSeed::new(u64::from_le_bytes(seed));
        let meta = DbMeta {
            id,
            namespace,
            page_size: new.page_size,
            seed,
        };
        let auto_vacuum = new.auto_vacuum;
        self.inner
            .core
            .remote
            .create_manifest(&meta, &new.name)
            .await?;
        self.inner.registry.note_made(id);
        blocking(core.executor(), move || {
            first_commit(&core, meta, auto_vacuum)
        })
        .await?;
        Ok(meta)
    }
}

/// Makes an empty database and journals its creation.
fn first_commit(core: &Core, meta: DbMeta, auto_vacuum: AutoVacuum) -> Result<(), Error> {
    let folder = core.database_folder(meta.id);
    let incarnation = incarnation_name(core);
    let files = folder.join(&incarnation);
    let io = |e| Error::io("make a database", e);
    core.parts.disk.create_folder(&files).map_err(io)?;
    let path = DbPaths::in_folder(&files).database;
    create(&path, meta.page_size, auto_vacuum)
        .map_err(|e| Error::new(Code::Internal, "make a database").caused_by(e))?;
    std::fs::File::open(&path)
        .and_then(|file| file.sync_all())
        .and_then(|()| crate::disk::sync_parent(&path))
        .map_err(io)?;
    let bytes = std::fs::read(&path).map_err(io)?;
    let size = meta.page_size;
    let pages = PageCount::new(u32::try_from(bytes.len() / size.bytes()).unwrap_or(0));
    let image = |page: PageNo| {
        let start = usize::try_from(page.offset(size)).unwrap_or(usize::MAX);
        bytes.get(start..start + size.bytes()).unwrap_or_default()
    };
    let delta = Delta::between(size, (PageCount::ZERO, image), (pages, image));
    let digest = Digest::of(size, pages, |page| {
        Ok::<_, std::convert::Infallible>(meta.seed.page(page, image(page)))
    })
    .unwrap_or_else(|never| match never {});
    let wall = core.parts.clock.wall();
    let header = RecordHeader {
        term: core.term(),
        txid: TxId::FIRST,
        time: wall,
        wall,
        flag: TimeFlag::Live,
        n_before: PageCount::ZERO,
        n_after: pages,
        digest,
        annotations: Vec::new(),
    };
    let mut record = Vec::new();
    header.encode(RecordKind::Delta, &mut record);
    record.extend_from_slice(&delta.pages);
    let chain_before = chain::genesis(meta.id);
    let chain = chain::step(chain_before, &record);
    let database = ChunkDatabase {
        id: meta.id,
        namespace: meta.namespace,
        page_size: size,
        seed: meta.seed,
        chain_before,
    };
    let head = Head {
        term: core.term(),
        txid: TxId::FIRST,
        chain,
        pages,
        digest,
        time: wall,
    };
    let state = DbState {
        meta,
        incarnation,
        head,
        wal: None,
        clean: true,
        stamp: None,
        durable: None,
    };
    // The record first: files without it would be a history that begins with a hole.
    let append = Append {
        txid: TxId::FIRST,
        wal: WalPosition::default(),
        chain,
        payload: Payload::Record(&record),
    };
    crash_point!("create.before_append");
    core.journal.append(&database, &[append])?;
    crash_point!("create.before_state");
    state.write(core.parts.disk.as_ref(), &folder)?;
    core.journal.set_checkpointed(meta.id, TxId::FIRST);
    Ok(())
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
            writes: self.admit_write(),
            size_max: self.row.size_limit,
        };
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
        let gate = self.runtime.block_on(lease.gate())?;
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
