//! A world of databases on one node, and what each of them promises.

mod state;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tidelog_archive::env::{Clock, SystemEntropy};
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::disk::StdDisk;
use tidelog_engine::executor::Threads;
use tidelog_engine::operations::{Handle, Operation, OperationState};
use tidelog_engine::system::databases::DatabasePatch;
use tidelog_engine::travel::archives::{Format, NewArchive};
use tidelog_engine::travel::branches::Branched;
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::labels::NewSnapshot;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Access, Code, Database, Durability, Engine, Error, Limits, MasterKeys, NewDatabase, Params,
    Parts, Request, Settings, Statement, TakeOver,
};
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};
use tidelog_testkit::sealing::masters;
use tidelog_testkit::sim::ShiftedClock;
use tidelog_wal::{NamespaceId, PageSize, Position};

use state::Rows;

const DAY: i64 = 24 * 3600;
/// Days that every database keeps.
const WINDOW_DAYS: i64 = 10;
/// Databases at once, deleted ones among them.
const DATABASES_MAX: usize = 6;
/// States of one database that are looked at after each look of retention, but in every so many histories all.
const LOOKED_AT: usize = 3;
const ALL_IN: u64 = 25;
/// How long an operation may take.
const DEADLINE: Duration = Duration::from_mins(1);

/// What a step did, and what went wrong with it.
type Failed = (&'static str, String);

/// A state that was, and the time until which it was the newest of its database.
#[derive(Debug, Clone)]
struct Was {
    at: Position,
    rows: Arc<Rows>,
    made: i64,
    /// It stands in the history of the database that this one was forked from.
    inherited: bool,
}

#[derive(Debug)]
struct Label {
    name: String,
    was: Was,
    pinned: bool,
}

/// A restore that can be taken back.
#[derive(Debug)]
struct Restored {
    id: String,
    bookmark: Position,
    before: Was,
}

#[derive(Debug)]
struct Archived {
    id: String,
    of: String,
    rows: Arc<Rows>,
}

/// A database as the oracle knows it.
#[derive(Debug)]
struct Tracked {
    name: String,
    rows: Rows,
    past: Vec<Was>,
    labels: Vec<Label>,
    restores: Vec<Restored>,
    parent: Option<String>,
    deleted: bool,
}

impl Tracked {
    fn newest(&self) -> &Was {
        self.past.last().expect("a database has its first state")
    }
}

/// A node, its store, its time, and the oracle beside it.
pub(crate) struct World {
    rng: StdRng,
    folder: tempfile::TempDir,
    settings: Settings,
    clock: Arc<ShiftedClock>,
    store: Store,
    engine: Engine,
    namespace: NamespaceId,
    databases: Vec<Tracked>,
    archives: Vec<Archived>,
    names: u32,
    checked: usize,
    /// Every state that is promised is looked at after each look of retention.
    looks_at_all: bool,
    /// What was done, for who reads a failure.
    log: Vec<String>,
}

fn parts(clock: &Arc<ShiftedClock>) -> Parts {
    Parts {
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        entropy: Arc::new(SystemEntropy),
        disk: Arc::new(StdDisk),
        executor: Arc::new(Threads),
        boot: None,
    }
}

fn request(statements: Vec<String>, durability: Durability) -> Request {
    let statement = |sql| Statement {
        sql,
        params: Params::None,
    };
    Request {
        statements: statements.into_iter().map(statement).collect(),
        transaction: true,
        durability: Some(durability),
        access: Access::owner(),
        limits: Limits::default(),
        idempotency: None,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn said(error: Error) -> String {
    format!("{error:?}")
}

async fn succeeded(handle: Result<Handle, Error>) -> Result<Operation, String> {
    let operation = handle.map_err(said)?.wait(DEADLINE).await;
    match operation.state {
        OperationState::Succeeded => Ok(operation),
        _ => Err(format!("{operation:?}")),
    }
}

impl World {
    pub(crate) async fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x006d_6f64_656c);
        let folder = tempfile::tempdir().expect("tempdir");
        let clock = Arc::new(ShiftedClock::new());
        let faults = FaultStore::new(Arc::new(InMemory::new()), script(|_| Fault::None));
        faults.set_clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let shared = Arc::new(Shared(faults));
        let store = Store::from_object_store(shared, "", StoreOptions::default()).expect("a store");
        let mut pick = |from: &[u64]| from[rng.random_range(0..from.len())];
        let settings = Settings {
            data: folder.path().join("data"),
            store_url: "memory:".to_owned(),
            ship_interval: Duration::from_millis(pick(&[1, 5])),
            ship_linger: Duration::from_millis(1),
            chunk_bytes: pick(&[8 << 10, 4 << 20]),
            settle_bytes: pick(&[1, 4 << 10, 64 << 10]),
            settle_age: Duration::from_millis(pick(&[20, 3_600_000])),
            settle_pause: Duration::from_millis(1),
            wal_backfill_bytes: 4 << 10,
            wal_soft_bytes: pick(&[16 << 10, 1 << 20]),
            spool_bytes: pick(&[8 << 10, 1 << 20]),
            restores_max: usize::MAX,
            take_over: TakeOver::All,
            // A machine that is busy with something else makes no write fail.
            gate_timeout: Duration::from_mins(1),
            durability_timeout: Duration::from_mins(1),
            master_keys: masters(),
            ..Settings::default()
        };
        let engine = Engine::start_on(settings.clone(), parts(&clock), store.clone()).await;
        let engine = engine.expect("start");
        let namespace = engine.namespace_create("acme").await.expect("namespace").id;
        let mut world = Self {
            rng,
            folder,
            settings,
            clock,
            store,
            engine,
            namespace,
            databases: Vec::new(),
            archives: Vec::new(),
            names: 0,
            checked: 0,
            looks_at_all: seed.is_multiple_of(ALL_IN)
                || std::env::var_os("TIDELOG_EVERY_STATE").is_some(),
            log: Vec::new(),
        };
        world.create().await.expect("a first database");
        world
    }

    fn now(&self) -> i64 {
        i64::try_from(self.clock.wall().micros() / 1_000_000).expect("a time of our age")
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    /// What the store lists, for a failure.
    pub(crate) async fn listed(&self) -> String {
        let opened = Bucket::open_on(self.store.clone(), parts(&self.clock), &masters()).await;
        let bucket = match opened {
            Ok(bucket) => bucket,
            Err(error) => return said(error),
        };
        let mut text = String::new();
        for found in bucket.databases().await.unwrap_or_default() {
            let Ok(history) = bucket.history(&found).await else {
                continue;
            };
            let images = history.images.iter();
            let pieces = history.pieces.iter();
            let _ = writeln!(
                text,
                "  {} {}: horizon {}, pinned {:?}, images {:?}, pieces {:?}, terms {:?}",
                found.name,
                found.id,
                history.horizon,
                history.pinned,
                images
                    .map(|i| (i.database, i.position.txid))
                    .collect::<Vec<_>>(),
                pieces
                    .map(|p| (p.database, p.first, p.last, p.run.last))
                    .collect::<Vec<_>>(),
                history.terms,
            );
        }
        text
    }

    /// The last steps, for a failure.
    pub(crate) fn story(&self) -> String {
        self.log.join("\n  ")
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}", self.names)
    }

    async fn database(&self, name: &str) -> Result<Database, String> {
        self.engine
            .database(self.namespace, name)
            .await
            .map_err(|e| format!("{name}: {e:?}"))
    }

    /// One of the live databases.
    fn some(&mut self) -> usize {
        let live: Vec<usize> = (0..self.databases.len())
            .filter(|at| !self.databases[*at].deleted)
            .collect();
        live[self.rng.random_range(0..live.len())]
    }

    /// A state of it that is promised now.
    fn some_state(&mut self, of: usize) -> Was {
        let promised: Vec<&Was> = (self.databases[of].past.iter())
            .filter(|was| self.is_promised(of, was))
            .collect();
        let at = self.rng.random_range(0..promised.len());
        promised[at].clone()
    }

    /// Whether a state is inside the window, is the newest, or is pinned. An hour of doubt is left out.
    fn is_promised(&self, of: usize, was: &Was) -> bool {
        let database = &self.databases[of];
        let pinned = |label: &Label| label.pinned && label.was.at == was.at;
        was.made > self.now() - WINDOW_DAYS * DAY + 3600
            || database.newest().at == was.at
            || database.labels.iter().any(pinned)
    }

    /// Takes one random step.
    pub(crate) async fn step(&mut self) -> Result<(), Failed> {
        let (what, done) = match self.rng.random_range(0..100) {
            0..46 => ("write", self.write().await),
            46..56 => ("rewind", self.rewind().await),
            56..61 => ("undo", self.undo().await),
            61..69 => ("label", self.label().await),
            69..71 => ("unlabel", self.unlabel().await),
            71..77 => ("fork", self.fork().await),
            77..79 => ("detach", self.detach().await),
            79..82 => ("delete", self.delete().await),
            82..85 => ("archive", self.archive().await),
            85..86 => ("create", self.create().await),
            86..96 => ("days", self.days().await),
            96..99 => ("restart", self.restart(false).await),
            _ => ("lose the machine", self.restart(true).await),
        };
        done.map_err(|e| (what, e))
    }

    async fn create(&mut self) -> Result<(), String> {
        if self.databases.len() >= DATABASES_MAX {
            return Ok(());
        }
        let name = self.name("db");
        let new = NewDatabase {
            page_size: PageSize::new(512 << self.rng.random_range(0..5)).expect("a page size"),
            ..NewDatabase::named(&name)
        };
        let made = self.engine.database_create(self.namespace, new).await;
        made.map_err(said)?;
        self.track(name, Rows::default(), Vec::new(), None).await
    }

    /// Sets the window of a new database and remembers the state it begins with.
    async fn track(
        &mut self,
        name: String,
        rows: Rows,
        past: Vec<Was>,
        parent: Option<String>,
    ) -> Result<(), String> {
        let patch = DatabasePatch {
            retention_micros: Some((WINDOW_DAYS * DAY).cast_unsigned() * 1_000_000),
            ..DatabasePatch::default()
        };
        let patched = self.engine.database_patch(self.namespace, &name, patch);
        patched.await.map_err(said)?;
        let database = self.database(&name).await?;
        let at = database.bookmark().await.map_err(said)?.bookmark;
        self.databases.push(Tracked {
            name,
            rows,
            past,
            labels: Vec::new(),
            restores: Vec::new(),
            parent,
            deleted: false,
        });
        self.remember(self.databases.len() - 1, at);
        Ok(())
    }

    fn remember(&mut self, of: usize, at: Position) {
        let made = self.now();
        let database = &mut self.databases[of];
        database.past.push(Was {
            at,
            rows: Arc::new(database.rows.clone()),
            made,
            inherited: false,
        });
    }

    fn durability(&mut self) -> Durability {
        match self.rng.random_range(0..10) {
            0 => Durability::Remote,
            1..4 => Durability::Local,
            _ => Durability::Memory,
        }
    }

    async fn write(&mut self) -> Result<(), String> {
        let of = self.some();
        let statements = self.databases[of].rows.change(&mut self.rng);
        let durability = self.durability();
        let database = self.database(&self.databases[of].name).await?;
        let done = database.execute(request(statements, durability)).await;
        let bookmark = done.map_err(said)?.bookmark;
        self.note(format!("write {} {bookmark}", self.databases[of].name));
        self.remember(of, bookmark);
        Ok(())
    }

    async fn rewind(&mut self) -> Result<(), String> {
        let of = self.some();
        let was = self.some_state(of);
        self.note(format!("rewind {} to {}", self.databases[of].name, was.at));
        let database = self.database(&self.databases[of].name).await?;
        let mut rewind = Rewind::to(RestoreTarget::At(At::Bookmark(was.at)));
        if self.rng.random_bool(0.3) {
            let plan = database.preview(&rewind.target).await.map_err(said)?;
            rewind.plan = Some(plan.id);
        }
        let done = succeeded(database.rewind(rewind).await).await;
        let done = done.map_err(|e| format!("to {}: {e}", was.at))?;
        self.put_back(of, &done, &was.rows).await
    }

    /// Notes what a restore left, and looks at it.
    async fn put_back(
        &mut self,
        of: usize,
        done: &Operation,
        rows: &Arc<Rows>,
    ) -> Result<(), String> {
        let result = done.result.as_ref().ok_or("no result")?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        let id = text(&result["restore"]["id"]).ok_or("no id")?;
        let bookmark = text(&result["bookmark"]).and_then(|text| text.parse().ok());
        let bookmark: Position = bookmark.ok_or("no bookmark")?;
        let before = self.databases[of].newest().clone();
        self.databases[of].rows = Rows::clone(rows);
        self.databases[of].restores.push(Restored {
            id,
            bookmark,
            before,
        });
        self.remember(of, bookmark);
        self.check(of, &self.databases[of].newest().clone(), At::Latest)
            .await
    }

    async fn undo(&mut self) -> Result<(), String> {
        let of = self.some();
        let tracked = &self.databases[of];
        let Some(last) = tracked.restores.last() else {
            return Ok(());
        };
        let (id, before) = (last.id.clone(), last.before.clone());
        let superseded = tracked.newest().at != last.bookmark;
        let current = tracked.newest().at;
        if !self.is_promised(of, &before) {
            return Ok(());
        }
        let database = self.database(&self.databases[of].name).await?;
        if superseded {
            let refused = database.undo(&id, None, None).await.map(drop);
            match refused {
                Err(error) if error.code() == Code::RestoreSuperseded => {}
                other => return Err(format!("an undo over later commits: {other:?}")),
            }
        }
        let force = superseded.then_some(current);
        let done = succeeded(database.undo(&id, force, None).await).await?;
        self.put_back(of, &done, &before.rows).await
    }

    async fn label(&mut self) -> Result<(), String> {
        let of = self.some();
        let was = self.some_state(of);
        let (name, pin) = (self.name("label"), self.rng.random_bool(0.4));
        let new = NewSnapshot {
            name: name.clone(),
            note: String::new(),
            at: At::Bookmark(was.at),
            pin,
            expires_at: None,
        };
        // What stands in the history of the parent is pinned there.
        let forked_at = self.databases[of]
            .past
            .iter()
            .rev()
            .find(|was| was.inherited);
        let refused = pin && was.inherited && forked_at.is_some_and(|at| at.at != was.at);
        let database = self.database(&self.databases[of].name).await?;
        let made = match database.snapshot_create(new).await {
            Err(error) if refused && error.code() == Code::Refused => return Ok(()),
            Ok(made) if !refused => made,
            other => return Err(format!("pin {pin} at {was:?}: {other:?}")),
        };
        if made.bookmark != was.at {
            return Err(format!("{name} names {}", made.bookmark));
        }
        let pinned = made.pinned;
        self.note(format!(
            "label {} {name} at {} inherited {} pinned {pinned}",
            self.databases[of].name, was.at, was.inherited
        ));
        self.databases[of].labels.push(Label { name, was, pinned });
        Ok(())
    }

    async fn unlabel(&mut self) -> Result<(), String> {
        let of = self.some();
        if self.databases[of].labels.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.databases[of].labels.len());
        let label = self.databases[of].labels.remove(at);
        self.note(format!(
            "unlabel {} {}",
            self.databases[of].name, label.name
        ));
        let database = self.database(&self.databases[of].name).await?;
        let deleted = database.snapshot_delete(&label.name, true).await;
        deleted.map_err(said)
    }

    async fn fork(&mut self) -> Result<(), String> {
        if self.databases.len() >= DATABASES_MAX {
            return Ok(());
        }
        let of = self.some();
        let was = self.some_state(of);
        let mut name = self.name("fork");
        let fork = Fork {
            at: At::Bookmark(was.at),
            ..Fork::named(&name)
        };
        let parent = self.database(&self.databases[of].name).await?;
        let failed = |e| format!("at {}: {e}", was.at);
        match self.rng.random_range(0..10) {
            0 => {
                let empty = Fork {
                    schema_only: true,
                    ..fork
                };
                succeeded(parent.fork(empty).await).await.map_err(failed)?;
                self.note(format!("fork {name} at {} without rows", was.at));
                let rows = was.rows.emptied();
                return self.track(name, rows, Vec::new(), None).await;
            }
            1..4 => {
                let put = parent.branch_put(&name, fork.at, None, None).await;
                match put.map_err(said)? {
                    Branched::Begun(handle) => succeeded(Ok(handle)).await.map_err(failed)?,
                    Branched::Stands(row) => return Err(format!("{name} stands: {row:?}")),
                };
                name = parent.branch(&name).await.map_err(said)?.name;
            }
            _ => {
                succeeded(parent.fork(fork).await).await.map_err(failed)?;
            }
        }
        let past = (self.databases[of].past.iter())
            .take_while(|earlier| earlier.at.txid <= was.at.txid)
            .map(|earlier| Was {
                inherited: true,
                ..earlier.clone()
            })
            .collect();
        // A fork hangs on the database whose own history holds its state.
        let row = self.database(&name).await?;
        let hangs_on = row.row().parent.map(|parent| parent.database);
        let mut on = None;
        for tracked in &self.databases {
            if tracked.deleted {
                continue;
            }
            if Some(self.database(&tracked.name).await?.row().id) == hangs_on {
                on = Some(tracked.name.clone());
            }
        }
        self.note(format!("fork {name} at {} hangs on {on:?}", was.at));
        self.track(name, Rows::clone(&was.rows), past, on).await
    }

    async fn detach(&mut self) -> Result<(), String> {
        let of = self.some();
        if self.databases[of].parent.is_none() {
            return Ok(());
        }
        let database = self.database(&self.databases[of].name).await?;
        succeeded(database.detach(None).await).await?;
        self.note(format!("detach {}", self.databases[of].name));
        let (own, lost): (Vec<Was>, Vec<Was>) = std::mem::take(&mut self.databases[of].past)
            .into_iter()
            .partition(|was| !was.inherited);
        let tracked = &mut self.databases[of];
        tracked.parent = None;
        tracked.past = own;
        tracked.restores.clear();
        // What it shared with its parent is nothing to it any more, nor to those who read through it.
        let lost: Vec<Position> = lost.into_iter().map(|was| was.at).collect();
        let mut cut = vec![self.databases[of].name.clone()];
        while let Some(name) = cut.pop() {
            for tracked in &mut self.databases {
                if tracked.name != name && tracked.parent.as_ref() != Some(&name) {
                    continue;
                }
                if tracked.name != name {
                    cut.push(tracked.name.clone());
                }
                tracked.past.retain(|was| !lost.contains(&was.at));
                tracked.labels.retain(|label| !lost.contains(&label.was.at));
                tracked
                    .restores
                    .retain(|done| !lost.contains(&done.before.at));
            }
        }
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), String> {
        let of = self.some();
        let live = self.databases.iter().filter(|one| !one.deleted).count();
        if live < 2 {
            return Ok(());
        }
        let name = self.databases[of].name.clone();
        let deleted = self.engine.database_delete(self.namespace, &name).await;
        deleted.map_err(said)?;
        self.databases[of].deleted = true;
        self.note(format!("delete {name}"));
        Ok(())
    }

    /// Brings deleted databases back, or has them purged, before their time is over.
    async fn decide(&mut self) -> Result<(), String> {
        for of in (0..self.databases.len()).rev() {
            if !self.databases[of].deleted {
                continue;
            }
            let name = self.databases[of].name.clone();
            let has_forks = (self.databases.iter()).any(|one| one.parent.as_ref() == Some(&name));
            if self.rng.random_bool(0.5) {
                let begun = self
                    .engine
                    .database_purge(self.namespace, &name, Purge::default());
                match begun.await {
                    Ok(mut handle) => {
                        let ended = handle.wait(DEADLINE).await;
                        if has_forks || ended.state != OperationState::Succeeded {
                            return Err(format!("purge of {name}: forks {has_forks}: {ended:?}"));
                        }
                        self.databases.remove(of);
                        self.note(format!("purged {name}"));
                        self.archives.retain(|archive| archive.of != name);
                        continue;
                    }
                    Err(error) if has_forks && error.code() == Code::ForkParentPinned => {}
                    Err(error) => return Err(format!("purge of {name}: {error:?}")),
                }
            }
            let back = self.engine.database_undelete(self.namespace, &name).await;
            back.map_err(said)?;
            self.databases[of].deleted = false;
            self.note(format!("undeleted {name}"));
        }
        Ok(())
    }

    async fn archive(&mut self) -> Result<(), String> {
        let of = self.some();
        let was = self.some_state(of);
        let name = self.databases[of].name.clone();
        let database = self.database(&name).await?;
        let new = NewArchive::of(At::Bookmark(was.at), Format::Sqlite);
        let made = succeeded(database.archive_create(new).await).await?;
        let result = made.result.ok_or("no result")?;
        let id = result["archive"]["id"].as_str().ok_or("no id")?.to_owned();
        self.archives.push(Archived {
            id,
            of: name,
            rows: was.rows,
        });
        Ok(())
    }

    /// Days pass, and retention looks at everything.
    async fn days(&mut self) -> Result<(), String> {
        self.decide().await?;
        let days = self.rng.random_range(1..6);
        self.clock.pass(days * DAY);
        self.note(format!("{days} days pass"));
        self.engine.calendar_turn().await.map_err(said)?;
        for of in 0..self.databases.len() {
            let looked_at: Vec<Was> = if self.looks_at_all {
                let past = self.databases[of].past.iter();
                past.filter(|was| self.is_promised(of, was))
                    .cloned()
                    .collect()
            } else {
                (0..LOOKED_AT).map(|_| self.some_state(of)).collect()
            };
            for was in looked_at {
                self.check(of, &was, At::Bookmark(was.at)).await?;
            }
        }
        Ok(())
    }

    async fn restart(&mut self, lost: bool) -> Result<(), String> {
        self.note(format!("restart, lost {lost}"));
        self.engine.shutdown().await.map_err(said)?;
        if lost {
            std::fs::remove_dir_all(&self.settings.data).map_err(|e| e.to_string())?;
        }
        let settings = self.settings.clone();
        let engine = Engine::start_on(settings, parts(&self.clock), self.store.clone());
        self.engine = engine.await.map_err(said)?;
        Ok(())
    }

    /// A state as the node exports it.
    async fn check(&mut self, of: usize, was: &Was, at: At) -> Result<(), String> {
        let name = &self.databases[of].name;
        let out = self.folder.path().join("out.db");
        let exported = self.database(name).await?.export(at, &out).await;
        exported.map_err(|e| format!("{name} at {}: {e:?}", was.at))?;
        same(&out, &was.rows).map_err(|e| format!("{name} at {}: {e}", was.at))?;
        std::fs::remove_file(&out).map_err(|e| e.to_string())?;
        self.checked += 1;
        Ok(())
    }

    /// Everything that is promised restores from the bucket alone; the rest does, too, or is expired by name.
    pub(crate) async fn finish(&mut self) -> Result<usize, String> {
        self.decide().await?;
        for archive in std::mem::take(&mut self.archives) {
            let name = self.name("from-archive");
            let made = self
                .engine
                .database_from_archive(self.namespace, &name, &archive.id, None);
            succeeded(made.await).await?;
            self.track(name, Rows::clone(&archive.rows), Vec::new(), None)
                .await?;
        }
        self.engine.calendar_turn().await.map_err(said)?;
        self.engine.shutdown().await.map_err(said)?;
        let keys: MasterKeys = masters();
        let opened = Bucket::open_on(self.store.clone(), parts(&self.clock), &keys).await;
        let bucket = opened.map_err(said)?;
        let out = self.folder.path().join("out.db");
        for (of, tracked) in self.databases.iter().enumerate() {
            let name = &tracked.name;
            let found = bucket.find("acme", name).await.map_err(said)?;
            let states = tracked
                .past
                .iter()
                .map(|was| (At::Bookmark(was.at), was))
                .chain(
                    (tracked.labels.iter())
                        .map(|label| (At::Snapshot(label.name.clone()), &label.was)),
                );
            for (at, was) in states {
                let restored = bucket.restore(&found, at.clone(), &out, false).await;
                match restored {
                    Ok(_) => {
                        same(&out, &was.rows).map_err(|e| format!("{name} {at:?}: {e}"))?;
                        std::fs::remove_file(&out).map_err(|e| e.to_string())?;
                        self.checked += 1;
                    }
                    Err(error) => {
                        let expired =
                            matches!(error.code(), Code::BookmarkExpired | Code::SnapshotExpired);
                        if !expired || self.is_promised(of, was) {
                            return Err(format!("{name} {at:?}: {error:?}"));
                        }
                    }
                }
            }
        }
        Ok(self.checked)
    }
}

fn same(file: &Path, rows: &Rows) -> Result<(), String> {
    let connection = Connection::open(file).map_err(|e| e.to_string())?;
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(|e| e.to_string())?;
    if sound != "ok" {
        return Err(sound);
    }
    rows.compare(&connection)
}
