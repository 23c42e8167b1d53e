//! Rewinds in place: random histories that are put back again and again beside a plain SQLite twin, and the
//! rules of one restore: preview, conditions, undo, rate, keys.
//!
//! `TIDELOG_HISTORIES` sets how many histories run and `TIDELOG_SEED` the first seed; a failure names its own.

mod rig;
mod twin;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::operations::{Handle, Operation, OperationState};
use tidelog_engine::sql::connection::AutoVacuum;
use tidelog_engine::system::Page;
use tidelog_engine::travel::restores::Outcome;
use tidelog_engine::travel::rewind::{Origin, RestoreTarget, Rewind, Way};
use tidelog_engine::{
    Access, Code, Database, Durability, Engine, IdempotencyKey, Limits, NewDatabase, Params, Parts,
    Request, Settings, Statement, Value,
};
use tidelog_testkit::history::{History, Host, Options, Step, Tables};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{PageSize, Position};
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_mins(1);
const STEPS: usize = 36;

fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(20),
        settle_pause: Duration::from_millis(1),
        restores_max: usize::MAX,
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

fn request(statements: &[String]) -> Request {
    let statement = |sql: &String| Statement {
        sql: sql.clone(),
        params: Params::None,
    };
    Request {
        statements: statements.iter().map(statement).collect(),
        transaction: true,
        durability: Some(Durability::Memory),
        access: Access::owner(),
        limits: Limits::default(),
        idempotency: None,
    }
}

async fn run(database: &Database, sql: &str) -> Position {
    let response = database.execute(request(&[sql.to_owned()])).await;
    response.unwrap_or_else(|e| panic!("{sql}: {e:?}")).bookmark
}

async fn count(database: &Database, sql: &str) -> i64 {
    let response = database.execute(request(&[sql.to_owned()])).await;
    let response = response.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    match response.results[0].rows[0][0] {
        Value::Integer(number) => number,
        ref other => panic!("{sql}: {other:?}"),
    }
}

async fn ended(mut handle: Handle) -> Operation {
    let operation = handle.wait(DEADLINE).await;
    assert!(operation.state.is_final(), "{operation:?}");
    operation
}

async fn succeeded(handle: Result<Handle, tidelog_engine::Error>) -> Operation {
    let operation = ended(handle.expect("accepted")).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation
}

fn to(position: Position) -> Rewind {
    Rewind::to(RestoreTarget::At(At::Bookmark(position)))
}

fn position(operation: &Operation, name: &str) -> Position {
    let result = operation.result.as_ref().expect("a result");
    let text = result[name].as_str().expect("a bookmark");
    text.parse().expect("a bookmark")
}

async fn start(folder: &Path) -> (Engine, Database) {
    let engine = Engine::start(settings(folder), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase::named("orders");
    let database = engine.database_create(namespace.id, new).await;
    (engine, database.expect("create"))
}

/// A state that was: its bookmark, the twin's dump and file, and the generator as it was.
struct Was {
    at: Position,
    dump: blake3::Hash,
    copy: PathBuf,
    /// The pages, as the live database had them then.
    pages: PathBuf,
    tables: Tables,
}

/// Bytes of page 1 that SQLite itself rewrites: change counter, schema cookie, version-valid-for and library version.
const REWRITTEN: [std::ops::Range<usize>; 3] = [24..28, 40..44, 92..100];

/// Compares two files page by page, but for what SQLite itself rewrites.
fn same_pages(live: &Path, was: &Path, page_size: usize) -> Result<(), String> {
    let read = |file: &Path| {
        let mut bytes = std::fs::read(file).expect("a file of pages");
        for range in REWRITTEN {
            bytes[range].fill(0);
        }
        bytes
    };
    let (live, was) = (read(live), read(was));
    if live.len() != was.len() {
        return Err(format!("{} bytes, were {}", live.len(), was.len()));
    }
    let mut pages = live.chunks(page_size).zip(was.chunks(page_size));
    match pages.position(|(live, was)| live != was) {
        Some(at) => Err(format!("page {} is another", at + 1)),
        None => Ok(()),
    }
}

struct Node<'a> {
    runtime: &'a Runtime,
    folder: &'a Path,
    engine: Engine,
    database: Database,
    twin: Connection,
    past: Vec<Was>,
    writer_share: f64,
    rng: StdRng,
}

impl Node<'_> {
    fn remember(&mut self, at: Position, history: &History) -> Result<(), String> {
        let copy = self.folder.join(format!("twin-{}.db", self.past.len()));
        self.twin
            .execute("VACUUM main INTO ?1", [copy.to_str().expect("UTF-8")])
            .expect("copy the twin");
        let pages = self.folder.join(format!("live-{}.db", self.past.len()));
        let exported = self
            .runtime
            .block_on(self.database.export(At::Bookmark(at), &pages));
        exported.map_err(|e| format!("export {at}: {e:?}"))?;
        self.past.push(Was {
            at,
            dump: twin::dump(&self.twin),
            copy,
            pages,
            tables: history.tables(),
        });
        Ok(())
    }

    fn write(&mut self, statements: &[String]) -> Result<Position, String> {
        if self.rng.random_bool(self.writer_share) {
            let writer = self.runtime.block_on(self.database.writer());
            let writer = writer.map_err(|e| format!("{e:?}"))?;
            let written = writer.transaction(|connection| {
                for sql in statements {
                    let mut statement = connection.prepare(sql)?;
                    let mut rows = statement.query([])?;
                    while rows.next()?.is_some() {}
                }
                Ok(())
            });
            let ((), ticket) = written.map_err(|e| format!("{e:?}"))?;
            return match ticket {
                Some(ticket) => self
                    .runtime
                    .block_on(ticket.wait(Durability::Memory))
                    .map_err(|e| format!("{e:?}")),
                None => self
                    .runtime
                    .block_on(self.database.bookmark())
                    .map(|info| info.bookmark)
                    .map_err(|e| format!("{e:?}")),
            };
        }
        let executed = self
            .runtime
            .block_on(self.database.execute(request(statements)));
        executed
            .map(|response| response.bookmark)
            .map_err(|e| format!("{e:?}"))
    }

    /// Writes go on beside the restore; then both are where the history was.
    fn rewind(&mut self, history: &mut History) -> Result<(), String> {
        let at = self.rng.random_range(0..self.past.len());
        let was = &self.past[at];
        let mut rewind = to(was.at);
        if self.rng.random_bool(0.3) {
            let target = rewind.target.clone();
            let plan = self.runtime.block_on(self.database.preview(&target));
            rewind.plan = Some(plan.map_err(|e| format!("preview: {e:?}"))?.id);
        }
        let operation = self.runtime.block_on(async {
            let handle = self.database.rewind(rewind).await?;
            Ok::<_, tidelog_engine::Error>(ended(handle).await)
        });
        let operation = operation.map_err(|e| format!("rewind: {e:?}"))?;
        if operation.state != OperationState::Succeeded {
            return Err(format!("rewind to {}: {operation:?}", was.at));
        }
        let bookmark = position(&operation, "bookmark");
        let file = self.folder.join(format!("twin-of-{}.db", self.past.len()));
        std::fs::copy(&was.copy, &file).expect("copy the twin");
        self.twin = Connection::open(&file).expect("put the twin back");
        history.put_back_to(&was.tables);
        let (dump, pages) = (was.dump, was.pages.clone());
        self.check_live(dump, Some(&pages))?;
        self.remember(bookmark, history)
    }

    /// The live state, exported: its rows, and every page where it is a state that was.
    fn check_live(&self, dump: blake3::Hash, pages: Option<&Path>) -> Result<(), String> {
        let scratch = tempfile::tempdir().expect("tempdir");
        let out = scratch.path().join("live.db");
        let exported = self
            .runtime
            .block_on(self.database.export(At::Latest, &out));
        exported.map_err(|e| format!("export: {e:?}"))?;
        if let Some(pages) = pages {
            let size = usize::try_from(self.database.row().page_size).expect("a page size");
            same_pages(&out, pages, size)?;
        }
        let live = twin::open_restored(&out)?;
        if twin::dump(&live) == dump {
            return Ok(());
        }
        Err("the live database holds other rows than the state it was put back to".to_owned())
    }
}

/// Reads again and again while histories run, so that rewinds meet open snapshots and idle connections.
async fn read_for_ever(database: Database) {
    let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 20000) \
               SELECT sum(x), (SELECT count(*) FROM sqlite_schema) FROM c";
    while database.execute(request(&[sql.to_owned()])).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

fn random_history(seed: u64, runtime: &Runtime) -> Result<usize, String> {
    let folder = tempfile::tempdir().expect("tempdir");
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7265_7769);
    let mut pick = |from: &[u64]| from[rng.random_range(0..from.len())];
    let settings = Settings {
        ship_interval: Duration::from_millis(pick(&[1, 20, 100])),
        chunk_bytes: pick(&[8 << 10, 64 << 10, 4 << 20]),
        settle_bytes: pick(&[1 << 10, 16 << 10, 256 << 10]),
        wal_backfill_bytes: 4 << 10,
        wal_soft_bytes: pick(&[16 << 10, 100 << 10, 1 << 20]),
        spool_bytes: pick(&[2 << 10, 20 << 10, 1 << 20]),
        ..settings(folder.path())
    };
    let options = Options {
        rows_max: 30,
        value_max: 20_000,
        ..Options::default()
    };
    let mut history = History::new(seed, options);
    let setup = history.setup();
    let twin = Connection::open_in_memory().expect("twin");
    twin.execute_batch(&setup.pragmas()).expect("setup");
    let (engine, database) = runtime.block_on(async {
        let engine = Engine::start(settings, Parts::production())
            .await
            .expect("start");
        let namespace = engine.namespace_create("acme").await.expect("namespace");
        let new = NewDatabase {
            page_size: PageSize::new(setup.page_size).expect("a page size"),
            auto_vacuum: match setup.auto_vacuum {
                1 => AutoVacuum::Full,
                2 => AutoVacuum::Incremental,
                _ => AutoVacuum::None,
            },
            ..NewDatabase::named("orders")
        };
        let database = engine
            .database_create(namespace.id, new)
            .await
            .expect("create");
        (engine, database)
    });
    let reader = rng
        .random_bool(0.5)
        .then(|| runtime.spawn(read_for_ever(database.clone())));
    let mut node = Node {
        runtime,
        folder: folder.path(),
        engine,
        database,
        twin,
        past: Vec::new(),
        writer_share: 0.5,
        rng,
    };
    for step in 0..STEPS {
        let reproduction = history.reproduction();
        let failed = |e: String| format!("{reproduction} step {step}: {e}");
        if !node.past.is_empty() && node.rng.random_bool(0.25) {
            node.rewind(&mut history).map_err(failed)?;
            continue;
        }
        let tables = history.tables();
        let step = history.step();
        let statements = match &step {
            Step::Transaction { statements, commit } => {
                let is = |word: &str| statements.iter().any(|sql| sql.starts_with(word));
                if !commit || is("ROLLBACK") {
                    // What a savepoint undid may have made tables: such a step is left out whole.
                    history.put_back_to(&tables);
                    continue;
                }
                let plain =
                    |sql: &&String| !sql.starts_with("SAVEPOINT") && !sql.starts_with("RELEASE");
                statements.iter().filter(plain).cloned().collect()
            }
            Step::Vacuum => {
                Host::vacuum(&mut node.twin).expect("twin");
                vec!["VACUUM".to_owned()]
            }
            Step::Checkpoint => continue,
        };
        if statements.is_empty() {
            continue;
        }
        if statements != ["VACUUM"] {
            Host::transaction(&mut node.twin, &statements, true)
                .map_err(|e| failed(format!("twin: {e}: {step}")))?;
        }
        let at = if statements == ["VACUUM"] {
            let executed = runtime.block_on(node.database.execute(request(&statements)));
            executed
                .map(|response| response.bookmark)
                .map_err(|e| format!("{e:?}"))
        } else {
            node.write(&statements)
        };
        let at = at.map_err(|e| failed(format!("{e}: {step}")))?;
        node.remember(at, &history)
            .map_err(|e| format!("{}: {e}", history.reproduction()))?;
    }
    let failed = |e: String| format!("{}: {e}", history.reproduction());
    let dump = twin::dump(&node.twin);
    node.check_live(dump, None).map_err(failed)?;
    if let Some(reader) = reader {
        reader.abort();
        let _ = runtime.block_on(reader);
    }
    let Node { engine, past, .. } = node;
    runtime
        .block_on(engine.shutdown())
        .map_err(|e| failed(format!("shutdown: {e:?}")))?;
    runtime
        .block_on(check_bucket(folder.path(), &past))
        .map_err(failed)?;
    Ok(past.len())
}

/// Every bookmark, those that were rewound over too, restores from the bucket alone.
async fn check_bucket(folder: &Path, past: &[Was]) -> Result<(), String> {
    let failed = |e| format!("bucket: {e:?}");
    let url = format!("file://{}", folder.join("store").display());
    let bucket = Bucket::open_with_keys(&url, &masters())
        .await
        .map_err(failed)?;
    let found = bucket.find("acme", "orders").await.map_err(failed)?;
    for (number, was) in past.iter().enumerate() {
        let out = folder.join(format!("out-{number}.db"));
        bucket
            .restore(&found, At::Bookmark(was.at), &out, false)
            .await
            .map_err(|e| format!("restore {}: {e:?}", was.at))?;
        let restored = twin::open_restored(&out).map_err(|e| format!("{}: {e}", was.at))?;
        if twin::dump(&restored) != was.dump {
            return Err(format!("{} restored to other rows", was.at));
        }
        std::fs::remove_file(&out).expect("remove");
    }
    Ok(())
}

#[test]
fn random_histories_are_put_back_again_and_again() {
    let env = |name: &str, default: u64| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
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
                    match random_history(seed, &runtime) {
                        Ok(found) => assert!(found > 5, "seed {seed}: {found} states"),
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

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_undone_and_the_undo_is_undone() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = start(folder.path()).await;
    run(&database, "CREATE TABLE t(a)").await;
    let one = run(&database, "INSERT INTO t VALUES(1)").await;
    let two = run(&database, "INSERT INTO t VALUES(2)").await;
    let restored = succeeded(database.rewind(to(one)).await).await;
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 1);
    assert_eq!(position(&restored, "previous_bookmark"), two);
    let first = database
        .restores(Page::default())
        .await
        .expect("list")
        .items;
    assert_eq!(first.len(), 1);
    assert_eq!(
        (first[0].outcome, first[0].previous),
        (Outcome::Succeeded, two)
    );

    let undone = succeeded(database.undo(&first[0].id, None, None).await).await;
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 2);
    let newest = database
        .restores(Page::default())
        .await
        .expect("list")
        .items;
    assert_eq!(newest[0].undo_of.as_deref(), Some(first[0].id.as_str()));
    assert_eq!(newest[0].bookmark, Some(position(&undone, "bookmark")));
    succeeded(database.undo(&newest[0].id, None, None).await).await;
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 1);

    // Its bookmark has been passed since: only naming the present one forces it.
    let three = run(&database, "INSERT INTO t VALUES(3)").await;
    let refused = database.undo(&newest[0].id, None, None).await;
    let refused = refused.expect_err("superseded");
    assert_eq!(refused.code(), Code::RestoreSuperseded);
    assert_eq!(refused.members()["current"], three.to_string());
    let forced = database.undo(&newest[0].id, Some(three), None).await;
    succeeded(forced).await;
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 1);
    let unknown = database.undo("rs_none", None, None).await;
    assert_eq!(unknown.expect_err("unknown").code(), Code::RestoreNotFound);
    engine.shutdown().await.expect("shutdown");
}

/// In one transaction of a writer, which prepares nothing but this.
async fn write(database: &Database, sql: &'static str) -> Result<(), String> {
    let writer = database.writer().await.expect("a writer");
    let written = tokio::task::spawn_blocking(move || {
        writer.transaction(|connection| connection.execute_batch(sql))
    });
    let written = written.await.expect("no panic");
    written.map(drop).map_err(|error| format!("{sql}: {error}"))
}

/// Goal: a writer that sleeps through a rewind does not take what was rolled back for something that is there.
/// SQLite looks at the cookie when it finds nothing of a name, not when it finds too much.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_rewind_took_away_can_be_made_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = start(folder.path()).await;
    let before = run(&database, "CREATE TABLE t(a)").await;
    let made = [
        "CREATE INDEX i ON t(a)",
        "CREATE TABLE u(b)",
        "CREATE VIEW v AS SELECT a FROM t",
        "CREATE TRIGGER w AFTER INSERT ON t BEGIN DELETE FROM t WHERE a < 0; END",
    ];
    // The first that is made again would wake the writer: each has a rewind of its own.
    for again in made {
        for sql in made {
            write(&database, sql).await.expect("made");
        }
        succeeded(database.rewind(to(before)).await).await;
        assert_eq!(write(&database, again).await, Ok(()));
        succeeded(database.rewind(to(before)).await).await;
    }
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_hold_and_a_plan_is_run_once() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = start(folder.path()).await;
    run(&database, "CREATE TABLE t(a)").await;
    let one = run(&database, "INSERT INTO t VALUES(1)").await;
    let two = run(&database, "INSERT INTO t VALUES(2)").await;
    let moved = Rewind {
        only_at: Some(one),
        ..to(one)
    };
    let moved = database.rewind(moved).await.expect_err("it has moved");
    assert_eq!(moved.code(), Code::DatabaseMoved);
    assert_eq!(moved.members()["current_bookmark"], two.to_string());

    let target = RestoreTarget::At(At::Bookmark(one));
    let plan = database.preview(&target).await.expect("preview");
    assert_eq!((plan.commits_undone(), plan.way()), (1, Way::Log));
    assert_eq!((plan.target.position, plan.current.position()), (one, two));
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 2);
    let planned = Rewind {
        plan: Some(plan.id.clone()),
        ..to(one)
    };
    succeeded(database.rewind(planned.clone()).await).await;
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 1);
    let again = database.rewind(planned).await.expect_err("it was run");
    assert_eq!(again.code(), Code::PlanStale);

    let plan = database.preview(&target).await.expect("preview");
    run(&database, "INSERT INTO t VALUES(3)").await;
    let stale = Rewind {
        plan: Some(plan.id),
        ..to(one)
    };
    let stale = database.rewind(stale).await.expect_err("it has moved");
    assert_eq!(stale.code(), Code::PlanStale);
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 2);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: what an earlier restore took back is not read again, on any side of it. Method: a database is put back over large
/// commits; the plan of each later rewind holds only records that still matter, and leads to the same pages.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_does_not_read_what_restores_took_back() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = start(folder.path()).await;
    // Each is stored before the next, in an object of its own: what a plan costs is known to the commit.
    let run = async |sql: &str| {
        let stored = Request {
            durability: Some(Durability::Remote),
            ..request(&[sql.to_owned()])
        };
        database
            .execute(stored)
            .await
            .expect("it is stored")
            .bookmark
    };
    // So that the log since a state is less to read than what led to it.
    run("CREATE TABLE ballast AS SELECT randomblob(3000000)").await;
    let none = run("CREATE TABLE t(a, b)").await;
    let size = usize::try_from(database.row().page_size).expect("a page size");
    let mut saved = Vec::new();
    let save = async |at: Position| {
        let path = folder.path().join(format!("{}.db", at.txid));
        database
            .export(At::Bookmark(at), &path)
            .await
            .expect("export");
        path
    };
    let one = run("INSERT INTO t VALUES(1, NULL)").await;
    let large = "INSERT INTO t VALUES(2, randomblob(100000))";
    let two = run(large).await;
    for _ in 0..7 {
        run(large).await;
    }
    for at in [none, two] {
        saved.push((at, save(at).await));
    }
    succeeded(database.rewind(to(one)).await).await;
    run("INSERT INTO t VALUES(4, NULL)").await;
    // Below it: the commit behind the rewind, and that of the first row. Above it, from there: the first row, and a large one.
    for (at, pages) in saved {
        let target = RestoreTarget::At(At::Bookmark(at));
        let plan = database.preview(&target).await.expect("preview");
        assert_eq!(plan.way(), Way::Log, "{plan:?}");
        let Origin::History(log) = &plan.origin else {
            panic!("no archive was asked for: {plan:?}");
        };
        assert!(log.commits() <= 3, "{plan:?}");
        assert!(plan.commits_undone() > log.commits(), "{plan:?}");
        let rewind = Rewind {
            plan: Some(plan.id),
            quick_check: true,
            ..to(at)
        };
        let done = succeeded(database.rewind(rewind).await).await;
        let result = done.result.expect("a result");
        assert_eq!(result["restore"]["quick_check"], "ok");
        let now = save(database.bookmark().await.expect("bookmark").bookmark).await;
        assert_eq!(same_pages(&now, &pages, size), Ok(()));
    }
    engine.shutdown().await.expect("shutdown");
}

/// Goal: the planner goes by image where the log would cost more bytes than the database, says so, and leads to the
/// same state. Method: a few rows are written over and over until an image is stored, and on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_goes_by_image_where_the_log_is_longer_than_the_database() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        settle_bytes: 4 << 10,
        settle_level: 1,
        ..settings(folder.path())
    };
    let engine = Engine::start(settings, Parts::production()).await;
    let engine = engine.expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase::named("orders");
    let database = engine.database_create(namespace.id, new).await;
    let database = database.expect("create");
    let sum = "SELECT sum(unicode(hex(b)) * a + n) FROM t";
    run(&database, "CREATE TABLE t(a INTEGER PRIMARY KEY, b, n)").await;
    run(
        &database,
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 12) \
         INSERT INTO t SELECT x, randomblob(10000), 0 FROM c",
    )
    .await;
    let write = async || run(&database, "UPDATE t SET b = randomblob(10000), n = n + 1").await;
    let images = || {
        let id = database.row().id.to_string();
        let tenant = folder.path().join("store/tenants");
        let tenants = std::fs::read_dir(tenant).expect("tenants").flatten();
        let folders = tenants.map(|tenant| tenant.path().join(&id).join("images"));
        folders
            .filter_map(|images| std::fs::read_dir(images).ok())
            .flatten()
            .count()
    };
    for round in 0.. {
        if images() > 0 {
            break;
        }
        assert!(round < 2_000, "no image of a log that is longer");
        write().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let then = write().await;
    let (pages, wanted) = (folder.path().join("then.db"), count(&database, sum).await);
    database
        .export(At::Bookmark(then), &pages)
        .await
        .expect("export");
    let target = RestoreTarget::At(At::Bookmark(then));
    let near = database.preview(&target).await.expect("preview");
    assert_eq!(
        near.way(),
        Way::Log,
        "nothing is nearer than where it stands"
    );
    for _ in 0..200 {
        write().await;
    }
    let plan = database.preview(&target).await.expect("preview");
    assert_eq!(plan.way(), Way::Image, "{plan:?}");
    let rewind = Rewind {
        plan: Some(plan.id),
        quick_check: true,
        ..to(then)
    };
    let done = succeeded(database.rewind(rewind).await).await;
    let result = done.result.expect("a result");
    assert_eq!(result["restore"]["way"], Way::Image.as_str());
    assert_eq!(result["restore"]["quick_check"], "ok");
    assert_eq!(count(&database, sum).await, wanted);
    let out = folder.path().join("now.db");
    database.export(At::Latest, &out).await.expect("export");
    let size = usize::try_from(database.row().page_size).expect("a page size");
    assert_eq!(same_pages(&out, &pages, size), Ok(()));
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_effect_was_taken_back_is_neither_replayed_nor_run_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = start(folder.path()).await;
    let before = run(&database, "CREATE TABLE t(a)").await;
    let keyed = || Request {
        idempotency: Some(IdempotencyKey {
            scope: "token route".to_owned(),
            key: "k1".to_owned(),
            fingerprint: [1; 32],
        }),
        ..request(&["INSERT INTO t VALUES(1)".to_owned()])
    };
    database.execute(keyed()).await.expect("the first call");
    let replayed = database.execute(keyed()).await.expect("replayed");
    assert!(replayed.replayed);
    let restored = succeeded(database.rewind(to(before)).await).await;
    let late = database.execute(keyed()).await.expect_err("taken back");
    assert_eq!(late.code(), Code::IdempotencyResultRolledBack);
    assert_eq!(count(&database, "SELECT count(*) FROM t").await, 0);
    engine.shutdown().await.expect("shutdown");

    // The next life knows it too; and what an undo brings back is replayed again.
    let engine = Engine::start(settings(folder.path()), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_by_name("acme").await.expect("namespace");
    let database = engine
        .database(namespace.id, "orders")
        .await
        .expect("database");
    let late = database.execute(keyed()).await.expect_err("taken back");
    assert_eq!(late.code(), Code::IdempotencyResultRolledBack);
    let id = restored.result.expect("a result")["restore"]["id"].clone();
    let undo = database.undo(id.as_str().expect("an id"), None, None).await;
    succeeded(undo).await;
    assert!(database.execute(keyed()).await.expect("replayed").replayed);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: a retry is refused however soon it comes. Method: it waits at the gate right behind the rewind that takes its
/// effect back, and has its turn while that is captured.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_right_behind_the_rewind_is_not_run_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = start(folder.path()).await;
    let before = run(&database, "CREATE TABLE t(a)").await;
    for key in 0..10 {
        let keyed = || Request {
            idempotency: Some(IdempotencyKey {
                scope: "token route".to_owned(),
                key: key.to_string(),
                fingerprint: [1; 32],
            }),
            ..request(&["INSERT INTO t VALUES(1)".to_owned()])
        };
        database.execute(keyed()).await.expect("the first call");
        let held = rig::hold_gate(&database).await;
        let rewinding = database.rewind(to(before)).await;
        rig::at_gate(&engine, rewinding.as_ref().expect("accepted")).await;
        let (retried, retry) = (database.clone(), keyed());
        let retrying = tokio::spawn(async move { retried.execute(retry).await });
        rig::queued(&engine, 2).await;
        drop(held);
        succeeded(rewinding).await;
        let late = retrying.await.expect("no panic").expect_err("taken back");
        assert_eq!(late.code(), Code::IdempotencyResultRolledBack);
        assert_eq!(count(&database, "SELECT count(*) FROM t").await, 0);
    }
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn restores_are_bounded_in_number_and_one_at_a_time() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        restores_max: 2,
        ..settings(folder.path())
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase::named("orders");
    let database = engine
        .database_create(namespace.id, new)
        .await
        .expect("create");
    let one = run(&database, "CREATE TABLE t(a)").await;
    run(&database, "INSERT INTO t VALUES(1)").await;
    let (first, second) = tokio::join!(database.rewind(to(one)), database.rewind(to(one)));
    for refused in [&first, &second]
        .into_iter()
        .filter_map(|handle| handle.as_ref().err())
    {
        assert_eq!(refused.code(), Code::OperationInProgress);
    }
    assert!(first.is_ok() || second.is_ok());
    for handle in [first, second].into_iter().flatten() {
        ended(handle).await;
    }
    while database
        .restores(Page::default())
        .await
        .expect("list")
        .items
        .len()
        < 2
    {
        succeeded(database.rewind(to(one)).await).await;
    }
    let limited = database.rewind(to(one)).await.expect_err("too many");
    assert_eq!(limited.code(), Code::RestoreRateLimited);
    assert!(
        limited.members()["retry_after"]
            .as_u64()
            .is_some_and(|s| s > 0)
    );
    engine.shutdown().await.expect("shutdown");
}
