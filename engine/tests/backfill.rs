//! Backfills beside writers: nobody waits for one, no chunk of the journal waits for a writer or a reader, and a reader
//! does not keep the WAL growing for ever.

mod rig;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tidelog_engine::bucket::At;
use tidelog_engine::disk::{AppendFile, Disk, StdDisk};
use tidelog_engine::operations::OperationState;
use tidelog_engine::streams::{Results, Step, Stream};
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::travel::verify::{Level, NewVerification};
use tidelog_engine::{
    Access, Code, Database, Durability, Engine, Limits, Params, Parts, Settings, Statement,
    TakeOver,
};
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, script};

/// A disk whose chunks cannot be synced while it is shut: whoever tries waits.
#[derive(Debug, Clone, Default)]
struct ShutDisk(Arc<Shut>);

#[derive(Debug, Default)]
struct Shut {
    closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl ShutDisk {
    fn shut(&self, shut: bool) {
        *self.0.closed.lock().expect("lock") = shut;
        self.0.opened.notify_all();
    }

    fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct ShutFile {
    disk: ShutDisk,
    file: Box<dyn AppendFile>,
}

impl AppendFile for ShutFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let shut = &self.disk.0;
        shut.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = shut.closed.lock().expect("lock");
        drop(shut.opened.wait_while(guard, |shut| *shut).expect("lock"));
        shut.waiting.fetch_sub(1, Ordering::SeqCst);
        self.file.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}

impl Disk for ShutDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let file = StdDisk.create(path)?;
        let disk = self.clone();
        Ok(Box::new(ShutFile { disk, file }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        StdDisk.read(path)
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        StdDisk.read_at(path, offset, len)
    }

    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        StdDisk.write_atomic(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        StdDisk.remove(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        StdDisk.list(folder)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        StdDisk.create_folder(folder)
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        StdDisk.free_bytes(folder)
    }
}

/// The wal-index of a database: its last frame, and up to which it was backfilled. Read by another process: closing
/// a descriptor of it in this one would drop SQLite's locks.
fn frames(settings: &Settings, database: &Database) -> (u32, u32) {
    let folder = settings.data.join("databases");
    let folder = folder.join(database.row().id.to_string());
    let state = std::fs::read_to_string(folder.join("state")).expect("a state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("json");
    let files = folder.join(state["incarnation"].as_str().expect("incarnation"));
    let read = Command::new("cat")
        .arg(files.join("db.sqlite-shm"))
        .output();
    let bytes = read.expect("cat").stdout;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    (word(16), word(96))
}

const FILL: &str = "INSERT INTO t(b) VALUES(zeroblob(20000))";

async fn node(settings: Settings, parts: Parts) -> (Engine, Database) {
    let engine = Engine::start(settings, parts).await.expect("start");
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(&database, create, Durability::Remote).await;
    (engine, database)
}

/// Goal: a backfill takes neither the gate nor the capture lock while it waits. Method: the journal's sync, which
/// comes first, does not return; commits go on, are captured, and no frame of them is backfilled (DESIGN 5.3).
#[tokio::test(flavor = "multi_thread")]
async fn writers_go_on_while_a_backfill_waits_for_the_journal() {
    let folder = tempfile::tempdir().expect("tempdir");
    let disk = ShutDisk::default();
    let settings = Settings {
        ship_interval: Duration::from_hours(1),
        wal_backfill_bytes: 64 << 10,
        wal_soft_bytes: 1 << 30,
        idle_close: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let parts = Parts {
        disk: Arc::new(disk.clone()),
        ..Parts::production()
    };
    let (engine, database) = node(settings.clone(), parts).await;
    disk.shut(true);
    rig::until("a backfill that waits", || async {
        rig::run(&database, FILL, Durability::Memory).await;
        disk.waiting() > 0
    })
    .await;
    let mut last = rig::run(&database, FILL, Durability::Memory).await;
    let (_, before) = frames(&settings, &database);
    for _ in 0..40 {
        let next = rig::run(&database, FILL, Durability::Memory).await;
        assert!(next.txid > last.txid);
        last = next;
    }
    // Every bookmark was answered from a captured commit.
    assert_eq!(database.bookmark().await.expect("captured").bookmark, last);
    let (written, backfilled) = frames(&settings, &database);
    assert!(written > 200, "{written} frames");
    assert_eq!(backfilled, before, "the journal was not synced");
    disk.shut(false);
    rig::until("a backfill that ends", || async {
        frames(&settings, &database).1 > before
    })
    .await;
    // And the WAL is begun anew by itself where a backfill reached its end.
    rig::until("a new life of the WAL", || async {
        rig::run(&database, FILL, Durability::Memory).await;
        frames(&settings, &database).0 < written
    })
    .await;
    let rows = rig::numbers(&database, "SELECT count(*) FROM t").await[0];
    engine.shutdown().await.expect("shutdown");
    drop((engine, database));
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let database = rig::orders(&engine).await;
    let again = rig::numbers(&database, "SELECT count(*) FROM t").await[0];
    assert_eq!(again, rows);
    engine.shutdown().await.expect("shutdown");
}

fn step(sql: &str) -> Step {
    Step {
        condition: None,
        statement: Statement {
            sql: sql.to_owned(),
            params: Params::None,
        },
        want_rows: true,
    }
}

async fn ask(stream: &Stream, database: &Database, sql: &str) {
    let limits = Limits::default();
    let turn = stream.enter(
        database.clone(),
        Access::owner(),
        limits,
        Some(Durability::Memory),
    );
    let mut turn = turn.await.expect("a turn");
    let sink = Results::of(1, limits, limits.result_bytes_max);
    let mut results = turn.program(vec![step(sql)], sink).await.expect(sql);
    results.steps.remove(0).expect("it ran").expect(sql);
    turn.finish().await.expect(sql);
    turn.keep().expect(sql);
}

/// Goal: a database that stays open and is rarely written gives its chunks free, whoever holds its write gate and
/// whatever an old reader keeps in the WAL; and its files alone then hold what was in them. Method: a copy of the
/// folder, taken without the chunks that went, opens with every commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_waits_neither_for_a_writer_nor_for_a_reader() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        idle_sweep: Duration::from_millis(20),
        checkpoint_age: Duration::from_millis(50),
        settle_bytes: 1,
        idle_close: Duration::from_hours(1),
        stream_idle: Duration::from_hours(1),
        stream_gate_idle: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let journal = settings.data.join("journal");
    let (engine, database) = node(settings, Parts::production()).await;
    let reader = database.stream([1; 16]).expect("a stream");
    ask(&reader, &database, "BEGIN").await;
    ask(&reader, &database, "SELECT count(*) FROM t").await;
    for _ in 0..5 {
        rig::run(&database, FILL, Durability::Remote).await;
    }
    let writer = database.stream([2; 16]).expect("a stream");
    ask(&writer, &database, "BEGIN IMMEDIATE").await;
    ask(&writer, &database, FILL).await;
    rig::until("one open chunk and nothing else", || async {
        std::fs::read_dir(&journal).expect("journal").count() == 1
    })
    .await;
    let copy = tempfile::tempdir().expect("tempdir");
    for name in ["data", "store"] {
        let (from, to) = (folder.path().join(name), copy.path().join(name));
        // The node may remove a file that `cp` has listed: then once more.
        rig::until("a whole copy", || async {
            let _ = std::fs::remove_dir_all(&to);
            let copied = Command::new("cp")
                .args(["-a", "-T"])
                .args([&from, &to])
                .status();
            copied.expect("cp").success()
        })
        .await;
    }
    ask(&writer, &database, "COMMIT").await;
    drop((reader, writer));
    assert_eq!(rig::numbers(&database, "SELECT count(*) FROM t").await, [6]);
    engine.shutdown().await.expect("shutdown");

    let settings = Settings {
        take_over: TakeOver::All,
        ..rig::settings(copy.path())
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let database = rig::orders(&engine).await;
    assert_eq!(rig::numbers(&database, "SELECT count(*) FROM t").await, [5]);
    rig::run(&database, FILL, Durability::Remote).await;
    engine.shutdown().await.expect("shutdown");
}

/// Goal: once everything is in the file, a copy reads the file alone (DESIGN 5.7). Method: an open transaction larger than
/// its cache has begun the WAL anew and written over the frames that were captured; what is read must still have
/// the digest of the newest commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_database_is_read_while_a_transaction_writes_over_the_old_wal() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        idle_sweep: Duration::from_millis(20),
        checkpoint_age: Duration::from_millis(20),
        idle_close: Duration::from_hours(1),
        stream_gate_idle: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let (engine, database) = node(settings.clone(), Parts::production()).await;
    for _ in 0..100 {
        rig::run(&database, FILL, Durability::Memory).await;
    }
    rig::run(&database, FILL, Durability::Remote).await;
    rig::until("everything in the file", || async {
        let (written, backfilled) = frames(&settings, &database);
        written > 0 && written == backfilled
    })
    .await;
    let writer = database.stream([1; 16]).expect("a stream");
    ask(&writer, &database, "BEGIN IMMEDIATE").await;
    let all = "UPDATE t SET b = replace(hex(b), '00', 'spilled ')";
    ask(&writer, &database, all).await;
    let verification = database.verify(NewVerification::of(Level::Full)).await;
    let done = verification.expect("accepted").wait(rig::PATIENCE).await;
    let found = done.result.expect("a result");
    assert_eq!(found["verification"]["outcome"], "verified", "{found}");
    ask(&writer, &database, "COMMIT").await;
    drop(writer);
    let verification = database.verify(NewVerification::of(Level::Full)).await;
    let done = verification.expect("accepted").wait(rig::PATIENCE).await;
    let found = done.result.expect("a result");
    assert_eq!(found["verification"]["outcome"], "verified", "{found}");
    engine.shutdown().await.expect("shutdown");
}

/// Goal: one long query does not keep the WAL growing for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_query_ends_when_the_wal_is_long() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        reader_max_age: Duration::from_millis(50),
        wal_backfill_bytes: 32 << 10,
        wal_soft_bytes: 64 << 10,
        wal_hard_bytes: 256 << 10,
        idle_sweep: Duration::from_millis(20),
        ..rig::settings(folder.path())
    };
    let (engine, database) = node(settings.clone(), Parts::production()).await;
    rig::run(&database, FILL, Durability::Memory).await;
    let asked = database.clone();
    let query = tokio::spawn(async move {
        let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) \
                       SELECT count(*), (SELECT count(*) FROM t) FROM c";
        let mut request = rig::request(&[endless], Durability::Memory);
        request.limits.deadline = rig::PATIENCE * 2;
        asked.execute(request).await
    });
    rig::until("the end of the query", || async {
        rig::run(&database, FILL, Durability::Memory).await;
        query.is_finished()
    })
    .await;
    let error = query.await.expect("it ran").expect_err("it was ended");
    assert_eq!(error.code(), Code::QueryTimeout, "{error:?}");
    assert!(error.to_string().contains("write-ahead log"), "{error}");
    // The WAL comes to its end. What is short elsewhere may be old on a busy machine.
    let count = "SELECT count(*) FROM t";
    rig::until("a short WAL", || async {
        rig::run(&database, FILL, Durability::Memory).await;
        let short = database.execute(rig::request(&[count], Durability::Memory));
        if let Err(error) = short.await {
            assert_eq!(error.code(), Code::QueryTimeout, "{error:?}");
        }
        frames(&settings, &database).0 < 64
    })
    .await;
    // Beside a short WAL a reader is let be.
    rig::numbers(&database, count).await;
    engine.shutdown().await.expect("shutdown");
}

/// Goal: what a rewind leaves in the WAL is copied once the rewind is stored, and after a while where it cannot be.
/// Method: the store holds what the rewind's commit is uploaded as; no frame is copied while it is looked, then all of
/// them, and the second time though the store goes on holding it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_waits_for_a_rewind_to_be_stored_but_not_for_ever() {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        wal_backfill_bytes: 64 << 10,
        wal_soft_bytes: 1 << 30,
        spool_bytes: 4 << 10,
        settle_bytes: 1 << 30,
        checkpoint_age: Duration::from_hours(1),
        idle_close: Duration::from_hours(1),
        ..rig::settings(folder.path())
    };
    let faults = FaultStore::in_memory(script(|_| Fault::None));
    let store = rig::patient_store(&faults);
    let engine = Engine::start_on(settings.clone(), Parts::production(), store);
    let engine = engine.await.expect("start");
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(&database, create, Durability::Remote).await;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
                INSERT INTO t(b) SELECT randomblob(2000) FROM n";
    let filled = rig::run(&database, fill, Durability::Remote).await;
    let change = "UPDATE t SET b = randomblob(2000)";
    let changed = rig::run(&database, change, Durability::Remote).await;
    for (state, let_go) in [(filled, true), (changed, false)] {
        rig::until("everything in the file", || async {
            let (written, backfilled) = frames(&settings, &database);
            written == backfilled
        })
        .await;
        faults.set_plan(script(|call| {
            let part = call.op == Op::Put && call.key.contains("/segments/");
            if part { Fault::Hold } else { Fault::None }
        }));
        let to = Rewind::to(RestoreTarget::At(At::Bookmark(state)));
        let mut rewind = database.rewind(to).await.expect("begun");
        rig::until("a commit that is not stored", || async {
            rewind.current().phase == "store"
        })
        .await;
        for _ in 0..50 {
            let (written, backfilled) = frames(&settings, &database);
            assert!(backfilled < written, "{backfilled} of {written} frames");
        }
        faults.set_plan(script(|_| Fault::None));
        if let_go {
            faults.let_go();
        }
        rig::until("everything in the file", || async {
            let (written, backfilled) = frames(&settings, &database);
            written == backfilled
        })
        .await;
        if !let_go {
            assert_eq!(rewind.current().phase, "store");
            faults.let_go();
        }
        let ended = rewind.wait(rig::PATIENCE).await;
        assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    }
    engine.shutdown().await.expect("shutdown");
}
