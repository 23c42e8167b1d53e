//! Random histories through the engine beside a plain SQLite twin: every bookmark that was answered restores,
//! from the bucket alone, to what the twin held at that commit (I2, I3).
//!
//! `TIDELOG_HISTORIES` sets how many histories run and `TIDELOG_SEED` the first seed; a failure names its own.

mod rig;
mod twin;

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tempfile::TempDir;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::database::Ticket;
use tidelog_engine::sql::connection::AutoVacuum;
use tidelog_engine::{
    Database, Durability, Engine, NewDatabase, Parts, Settings, TakeOver, Writer,
};
use tidelog_testkit::history::{History, Host, Options, Step};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{PageSize, Position};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const STEPS: usize = 40;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn settings(folder: &Path, rng: &mut StdRng) -> Settings {
    let mut pick = |from: &[u64]| from[rng.random_range(0..from.len())];
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(pick(&[1, 20, 300])),
        ship_linger: Duration::from_millis(1),
        chunk_bytes: pick(&[8 << 10, 64 << 10, 4 << 20]),
        settle_bytes: pick(&[1 << 10, 16 << 10, 256 << 10]),
        settle_age: Duration::from_millis(pick(&[50, 3_600_000])),
        settle_pause: Duration::from_millis(1),
        wal_backfill_bytes: pick(&[2 << 10, 20 << 10, 1 << 20]),
        wal_soft_bytes: pick(&[16 << 10, 100 << 10, 1 << 20]),
        spool_bytes: pick(&[2 << 10, 20 << 10, 1 << 20]),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

/// The statements without savepoints, which requests may not use: what they undid is left out.
fn flatten(statements: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut marks = Vec::new();
    for sql in statements {
        if sql.starts_with("SAVEPOINT") {
            marks.push(kept.len());
        } else if sql.starts_with("ROLLBACK TO") {
            kept.truncate(marks.last().copied().unwrap_or(0));
        } else if sql.starts_with("RELEASE") {
            marks.pop();
        } else {
            kept.push(sql.clone());
        }
    }
    kept
}

/// A state that was promised: its bookmark, once known, and the twin's dump.
struct Promise {
    ticket: Option<Ticket>,
    bookmark: Option<Position>,
    dump: blake3::Hash,
}

struct Node<'a> {
    runtime: &'a Runtime,
    settings: Settings,
    open: Option<(Engine, Database)>,
    writer: Option<Writer>,
    reader: Option<JoinHandle<()>>,
    reads: bool,
    twin: Connection,
    rng: StdRng,
    promises: Vec<Promise>,
}

impl Node<'_> {
    fn durability(&mut self) -> Durability {
        match self.rng.random_range(0..10) {
            0 => Durability::Remote,
            1..5 => Durability::Local,
            _ => Durability::Memory,
        }
    }

    fn promise(&mut self, ticket: Option<Ticket>, bookmark: Option<Position>) {
        let dump = twin::dump(&self.twin);
        self.promises.push(Promise {
            ticket,
            bookmark,
            dump,
        });
    }

    /// Learns the bookmarks of the tickets that are out.
    fn settle_promises(&mut self) -> Result<(), String> {
        let durability = self.durability();
        for promise in &mut self.promises {
            if let Some(ticket) = promise.ticket.take() {
                let waited = self.runtime.block_on(ticket.wait(durability));
                promise.bookmark = Some(waited.map_err(|e| format!("ticket: {e:?}"))?);
            }
        }
        Ok(())
    }

    fn database(&self) -> Database {
        let (_, database) = self.open.as_ref().expect("the node runs");
        database.clone()
    }

    /// Stops the node: nothing of it may be held when the next one starts in its folder.
    fn stop(&mut self) -> Result<(), String> {
        self.writer = None;
        if let Some(reader) = self.reader.take() {
            reader.abort();
            let _ = self.runtime.block_on(reader);
        }
        match self.open.take() {
            None => Ok(()),
            Some((engine, _)) => self
                .runtime
                .block_on(engine.shutdown())
                .map_err(|e| format!("shutdown: {e:?}")),
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let settings = self.settings.clone();
        let started = self.runtime.block_on(async move {
            let engine = Engine::start(settings, Parts::production()).await?;
            let namespace = engine.namespace_by_name("acme").await?;
            let database = engine.database(namespace.id, "orders").await?;
            Ok::<_, tidelog_engine::Error>((engine, database))
        });
        self.open = Some(started.map_err(|e| format!("start: {e:?}"))?);
        self.read();
        Ok(())
    }

    fn read(&mut self) {
        let database = self.database();
        self.reader = self
            .reads
            .then(|| self.runtime.spawn(read_for_ever(database)));
    }

    fn restart(&mut self) -> Result<(), String> {
        self.settle_promises()?;
        self.stop()?;
        self.start()
    }

    fn by_writer(&mut self, statements: &[String], commit: bool) -> Result<(), String> {
        if self.writer.is_none() {
            let writer = self.runtime.block_on(self.database().writer());
            self.writer = Some(writer.map_err(|e| format!("writer: {e:?}"))?);
        }
        let writer = self.writer.as_ref().expect("just made");
        let written = writer.transaction(|connection| {
            for sql in statements {
                let mut statement = connection.prepare(sql)?;
                let mut rows = statement.query([])?;
                while rows.next()?.is_some() {}
            }
            if commit {
                Ok(())
            } else {
                Err(rusqlite::Error::QueryReturnedNoRows)
            }
        });
        match written {
            Ok(((), ticket)) => {
                if ticket.is_some() {
                    self.promise(ticket, None);
                }
                Ok(())
            }
            Err(_) if !commit => Ok(()),
            Err(error) => Err(format!("write: {error:?}")),
        }
    }

    fn by_request(&mut self, statements: &[String]) -> Result<(), String> {
        let durability = self.durability();
        let executed = self.runtime.block_on(
            self.database()
                .execute(rig::request(statements, durability)),
        );
        let response = executed.map_err(|e| format!("execute: {e:?}"))?;
        self.promise(None, Some(response.bookmark));
        Ok(())
    }
}

impl Host for Node<'_> {
    type Error = String;

    fn transaction(&mut self, statements: &[String], commit: bool) -> Result<(), String> {
        let statements = flatten(statements);
        if statements.is_empty() {
            return Ok(());
        }
        Host::transaction(&mut self.twin, &statements, commit).map_err(|e| format!("twin: {e}"))?;
        if commit && self.rng.random_bool(0.5) {
            self.by_request(&statements)
        } else {
            self.by_writer(&statements, commit)
        }
    }

    fn vacuum(&mut self) -> Result<(), String> {
        Host::vacuum(&mut self.twin).map_err(|e| format!("twin: {e}"))?;
        self.by_request(&["VACUUM".to_owned()])
    }

    fn checkpoint(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..3) {
            0 => self.restart(),
            1 => self.settle_promises(),
            _ => Ok(()),
        }
    }
}

/// Reads again and again while histories run, so that checkpoints meet readers.
async fn read_for_ever(database: Database) {
    let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 20000) \
               SELECT sum(x), (SELECT count(*) FROM sqlite_schema) FROM c";
    while database
        .execute(rig::request(&[sql.to_owned()], Durability::Memory))
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
}

async fn create(settings: Settings, history: &History) -> (Engine, Database) {
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let setup = history.setup();
    let new = NewDatabase {
        page_size: PageSize::new(setup.page_size).expect("a page size"),
        auto_vacuum: match setup.auto_vacuum {
            1 => AutoVacuum::Full,
            2 => AutoVacuum::Incremental,
            _ => AutoVacuum::None,
        },
        ..NewDatabase::named("orders")
    };
    let database = engine.database_create(namespace.id, new).await;
    (engine, database.expect("create"))
}

/// Every promise, restored from the bucket alone.
async fn check(folder: &Path, promises: &[Promise]) -> Result<usize, String> {
    let failed = |e| format!("bucket: {e:?}");
    let url = format!("file://{}", folder.join("store").display());
    let bucket = Bucket::open_with_keys(&url, &masters())
        .await
        .map_err(failed)?;
    let found = bucket.find("acme", "orders").await.map_err(failed)?;
    let scratch = tempfile::tempdir().expect("tempdir");
    for (at, promise) in promises.iter().enumerate() {
        let bookmark = promise
            .bookmark
            .ok_or_else(|| "a ticket without a bookmark".to_owned())?;
        let out = scratch.path().join(format!("{at}.db"));
        bucket
            .restore(&found, At::Bookmark(bookmark), &out, false)
            .await
            .map_err(|e| format!("restore {bookmark}: {e:?}"))?;
        let restored = twin::open_restored(&out).map_err(|e| format!("{bookmark}: {e}"))?;
        if twin::dump(&restored) != promise.dump {
            return Err(format!("{bookmark} restored to other rows than were there"));
        }
        drop(restored);
        std::fs::remove_file(&out).expect("remove");
    }
    Ok(promises.len())
}

fn run(seed: u64, runtime: &Runtime) -> Result<usize, String> {
    let folder: TempDir = tempfile::tempdir().expect("tempdir");
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7469_6465);
    let settings = settings(folder.path(), &mut rng);
    let options = Options {
        rows_max: 30,
        value_max: 20_000,
        ..Options::default()
    };
    let mut history = History::new(seed, options);
    let twin = Connection::open(folder.path().join("twin.db")).expect("twin");
    twin.execute_batch(&format!(
        "{} PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF",
        history.setup().pragmas()
    ))
    .expect("setup");
    let (engine, database) = runtime.block_on(create(settings.clone(), &history));
    let reads = rng.random_bool(0.5);
    let mut node = Node {
        runtime,
        settings: settings.clone(),
        open: Some((engine, database)),
        writer: None,
        reader: None,
        reads,
        twin,
        rng,
        promises: Vec::new(),
    };
    node.read();
    for _ in 0..STEPS {
        let step: Step = history.step();
        node.run(&step)
            .map_err(|e| format!("{}: {e}: {step}", history.reproduction()))?;
    }
    let failed = |e: String| format!("{} {settings:?}: {e}", history.reproduction());
    node.settle_promises().map_err(failed)?;
    node.twin
        .execute_batch("PRAGMA user_version=77")
        .expect("twin");
    let last = rig::request(&["PRAGMA user_version=77".to_owned()], Durability::Remote);
    let flushed = runtime.block_on(node.database().execute(last));
    let flushed = flushed.map_err(|e| failed(format!("flush: {e:?}")))?;
    node.promise(None, Some(flushed.bookmark));
    runtime
        .block_on(check(folder.path(), &node.promises))
        .map_err(failed)?;
    node.restart().map_err(failed)?;
    let found = runtime.block_on(check(folder.path(), &node.promises));
    let found = found.map_err(failed)?;
    node.stop().map_err(failed)?;
    if seed.is_multiple_of(4) {
        lose_the_machine(&mut node, folder.path()).map_err(failed)?;
    }
    Ok(found)
}

/// An empty folder takes the bucket over, writes, and every bookmark still restores.
fn lose_the_machine(node: &mut Node<'_>, folder: &Path) -> Result<(), String> {
    std::fs::remove_dir_all(folder.join("data")).expect("lose the machine");
    node.settings.take_over = TakeOver::All;
    node.start()?;
    node.twin
        .execute_batch("CREATE TABLE afterwards(x); INSERT INTO afterwards VALUES(1)")
        .expect("twin");
    let sql = [
        "CREATE TABLE afterwards(x)",
        "INSERT INTO afterwards VALUES(1)",
    ];
    let write = rig::request(&sql.map(str::to_owned), Durability::Remote);
    let response = node.runtime.block_on(node.database().execute(write));
    let response = response.map_err(|e| format!("write after the loss: {e:?}"))?;
    node.promise(None, Some(response.bookmark));
    node.runtime.block_on(check(folder, &node.promises))?;
    node.stop()
}

#[test]
fn every_bookmark_of_random_histories_restores_to_what_was_there() {
    let (first, count) = (env("TIDELOG_SEED", 0), env("TIDELOG_HISTORIES", 30));
    let next = std::sync::atomic::AtomicU64::new(first);
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let runtime = Runtime::new().expect("runtime");
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match run(seed, &runtime) {
                        Ok(found) => assert!(found > 5, "seed {seed}: {found} bookmarks"),
                        Err(error) => failures.lock().expect("lock").push(error),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("lock");
    assert!(
        failures.is_empty(),
        "{} of {count} histories failed:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}

#[test]
fn every_ticket_of_a_writer_that_runs_ahead_of_capture_resolves() {
    let folder = tempfile::tempdir().expect("tempdir");
    let runtime = Runtime::new().expect("runtime");
    let mut rng = StdRng::seed_from_u64(1);
    let mut settings = settings(folder.path(), &mut rng);
    settings.wal_soft_bytes = 1 << 20;
    let history = History::new(1, Options::default());
    let (engine, database) = runtime.block_on(create(settings, &history));
    let writer = runtime.block_on(database.writer()).expect("writer");
    let create = |c: &Connection| c.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    writer.transaction(create).expect("create");
    let mut tickets = Vec::new();
    for i in 0..5_000 {
        let insert = |c: &Connection| c.execute("INSERT INTO t(b) VALUES(?1)", [i]);
        let (_, ticket) = writer.transaction(insert).expect("insert");
        tickets.push(ticket.expect("a row is a change"));
    }
    let mut last = String::new();
    for ticket in tickets {
        let txid = ticket.txid();
        let position = runtime.block_on(ticket.wait(Durability::Memory));
        let position = position.unwrap_or_else(|e| panic!("commit {txid}: {e:?}"));
        assert_eq!(position.txid, txid);
        assert!(last < position.to_string(), "bookmarks order as commits do");
        last = position.to_string();
    }
    drop(writer);
    runtime.block_on(engine.shutdown()).expect("shutdown");
}

/// A large commit is checkpointed long before its chunk is sealed: its pages must stay until they are stored.
#[test]
fn a_spooled_commit_that_is_checkpointed_before_it_is_shipped_is_stored() {
    let folder = tempfile::tempdir().expect("tempdir");
    let runtime = Runtime::new().expect("runtime");
    let mut rng = StdRng::seed_from_u64(1);
    let settings = Settings {
        wal_soft_bytes: 64 << 10,
        spool_bytes: 16 << 10,
        ship_interval: Duration::from_secs(2),
        chunk_bytes: 4 << 20,
        ..settings(folder.path(), &mut rng)
    };
    let history = History::new(1, Options::default());
    let (engine, database) = runtime.block_on(create(settings, &history));
    let fill = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 400) \
                INSERT INTO t SELECT x, hex(x*x*x) || hex(zeroblob(400)) || hex(x*7919) FROM c";
    let sql = ["CREATE TABLE t(a, b)".to_owned(), fill.to_owned()];
    let written = runtime.block_on(database.execute(rig::request(&sql, Durability::Local)));
    let at = written.expect("write").bookmark;
    let sql = ["CREATE TABLE u(a)".to_owned()];
    let flushed = runtime.block_on(database.execute(rig::request(&sql, Durability::Remote)));
    flushed.expect("everything before is stored");
    let restored = runtime.block_on(async {
        let url = format!("file://{}", folder.path().join("store").display());
        let bucket = Bucket::open_with_keys(&url, &masters())
            .await
            .expect("bucket");
        let found = bucket.find("acme", "orders").await.expect("find");
        let out = folder.path().join("out.db");
        let restored = bucket.restore(&found, At::Bookmark(at), &out, false);
        restored.await.expect("restore");
        twin::open_restored(&out).expect("sound")
    });
    let rows: i64 = restored
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("count");
    assert_eq!(rows, 400);
    runtime.block_on(engine.shutdown()).expect("shutdown");
}
