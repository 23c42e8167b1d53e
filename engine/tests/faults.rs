//! The local disk fails behind, before and beside a COMMIT (RELIABILITY 6 and 7; HAZARDS W22): what the caller
//! hears is true, nothing acknowledged is lost, nothing is invented, and opening anew recovers.

mod gaps;
mod rig;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidelog_engine::bucket::At;
use tidelog_engine::disk::{AppendFile, Disk, StdDisk};
use tidelog_engine::{Code, Database, Durability, Engine, Error, Parts, Settings};

/// What the engine asks of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Write,
    Sync,
    Truncate,
    Replace,
}

type Plan = Box<dyn FnMut(Call, &Path) -> Option<io::Error> + Send>;

/// The real disk, failing by plan. A write that fails leaves half of its bytes.
#[derive(Clone, Default)]
struct FaultDisk {
    plan: Arc<Mutex<Option<Plan>>>,
    free: Arc<Mutex<Option<u64>>>,
}

impl std::fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultDisk")
    }
}

impl FaultDisk {
    fn parts(&self) -> Parts {
        Parts {
            disk: Arc::new(self.clone()),
            ..Parts::production()
        }
    }

    fn plan(&self, plan: impl FnMut(Call, &Path) -> Option<io::Error> + Send + 'static) {
        *self.plan.lock().expect("lock") = Some(Box::new(plan));
    }

    /// Fails the next `times` calls of this kind to files whose name ends so.
    fn fail(&self, what: Call, ends: &'static str, times: usize, kind: io::ErrorKind) {
        let mut left = times;
        self.plan(move |call, path| {
            let name = path.to_string_lossy();
            if call != what || !name.ends_with(ends) || left == 0 {
                return None;
            }
            left -= 1;
            Some(kind.into())
        });
    }

    fn heal(&self) {
        *self.plan.lock().expect("lock") = None;
    }

    fn check(&self, call: Call, path: &Path) -> io::Result<()> {
        let mut plan = self.plan.lock().expect("lock");
        match plan.as_mut().and_then(|plan| plan(call, path)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    path: PathBuf,
    file: Box<dyn AppendFile>,
}

impl AppendFile for FaultFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.disk.check(Call::Write, &self.path) {
            self.file.write_at(offset, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.file.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.check(Call::Sync, &self.path)?;
        self.file.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.check(Call::Truncate, &self.path)?;
        self.file.truncate(len)
    }
}

impl Disk for FaultDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.check(Call::Create, path)?;
        Ok(Box::new(FaultFile {
            disk: self.clone(),
            path: path.to_owned(),
            file: StdDisk.create(path)?,
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        StdDisk.read(path)
    }

    fn read_at(&self, path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        StdDisk.read_at(path, offset, len)
    }

    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.check(Call::Replace, path)?;
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
        match *self.free.lock().expect("lock") {
            Some(free) => Ok(free),
            None => StdDisk.free_bytes(folder),
        }
    }
}

struct Rig {
    folder: tempfile::TempDir,
    disk: FaultDisk,
    engine: Engine,
    database: Database,
    /// Rows whose commit stands, whatever was answered.
    rows: i64,
}

const ROW: &str = "INSERT INTO t(b) VALUES(randomblob(100))";
/// Spooled: its delta exceeds `spool_bytes`.
const LARGE: &str = "INSERT INTO t(b) VALUES(randomblob(60000))";

fn settings(folder: &Path) -> Settings {
    Settings {
        spool_bytes: 16 << 10,
        // A chunk is sealed when a `remote` writer waits and at no other time: what begins the next one would meet the
        // fault that is meant for an append.
        ship_interval: Duration::from_hours(1),
        ..rig::settings(folder)
    }
}

impl Rig {
    async fn new() -> Self {
        Self::with(|settings| settings).await
    }

    async fn with(adapt: impl FnOnce(Settings) -> Settings) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let disk = FaultDisk::default();
        let settings = adapt(settings(folder.path()));
        let engine = Engine::start(settings, disk.parts()).await.expect("start");
        let database = rig::orders(&engine).await;
        let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
        rig::run(&database, create, Durability::Remote).await;
        let mut rig = Self {
            folder,
            disk,
            engine,
            database,
            rows: 0,
        };
        rig.row(Durability::Local).await;
        rig
    }

    async fn row(&mut self, level: Durability) {
        rig::run(&self.database, ROW, level).await;
        self.rows += 1;
    }

    async fn refused(&self, sql: &str, level: Durability) -> Error {
        let done = rig::try_run(&self.database, sql, level).await;
        done.expect_err("a fault")
    }

    /// A write whose COMMIT stands and that failed behind it.
    async fn stands(&mut self, sql: &str, level: Durability) -> Error {
        let error = self.refused(sql, level).await;
        assert_eq!(error.code(), Code::OutcomeUnknown, "{error:?}");
        assert_eq!(error.members()["committed"], true, "{error:?}");
        self.rows += 1;
        error
    }

    async fn count(&self) -> i64 {
        rig::numbers(&self.database, "SELECT count(*) FROM t").await[0]
    }

    /// Stops the node as far as it can and starts it again on a sound disk.
    async fn restart(self) -> Self {
        let Self {
            folder,
            engine,
            database,
            rows,
            ..
        } = self;
        // A poisoned node says so when it stops.
        let _ = engine.shutdown().await;
        // Every handle of the old node goes before its folder is taken again.
        drop((engine, database));
        let disk = FaultDisk::default();
        let engine = Engine::start(settings(folder.path()), disk.parts()).await;
        let engine = engine.expect("start again");
        let database = rig::orders(&engine).await;
        Self {
            folder,
            disk,
            engine,
            database,
            rows,
        }
    }

    /// Writing goes on, and the bucket holds every row.
    async fn whole(mut self) {
        assert_eq!(self.count().await, self.rows);
        self.row(Durability::Remote).await;
        assert_eq!(self.count().await, self.rows);
        self.engine.shutdown().await.expect("shutdown");
        let bucket = rig::bucket(self.folder.path()).await;
        let bucket = bucket.expect("bucket");
        let named = bucket.find("acme", "orders").await.expect("find");
        let restored = rig::restored(&bucket, &named, At::Latest).await;
        let (_folder, restored) = restored.expect("restore");
        let rows: i64 = restored
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .expect("count");
        assert_eq!(rows, self.rows);
        rig::verify(&bucket).await;
    }
}

/// The journal cannot take the record of a commit that stands: it is cut back, the database opens anew and finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_append_behind_a_commit_is_told_and_recovered() {
    for (level, kind) in [
        (Durability::Memory, io::ErrorKind::Other),
        (Durability::Local, io::ErrorKind::StorageFull),
        (Durability::Remote, io::ErrorKind::Other),
    ] {
        let mut rig = Rig::new().await;
        rig.disk.fail(Call::Write, ".chunk", 1, kind);
        rig.stands(ROW, level).await;
        assert_eq!(rig.count().await, rig.rows, "{level}");
        rig.row(level).await;
        rig.whole().await;
    }
}

/// The same with the file of a large commit, at each of its steps.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_spool_behind_a_commit_is_told_and_recovered() {
    for call in [Call::Create, Call::Write, Call::Sync] {
        let mut rig = Rig::new().await;
        rig.disk.fail(call, ".spool", 1, io::ErrorKind::StorageFull);
        rig.stands(LARGE, Durability::Local).await;
        assert_eq!(rig.count().await, rig.rows, "{call:?}");
        rig.whole().await;
    }
}

/// The disk stays full for a while: reads of other databases go on, and the commit that stands is found again
/// when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_behind_which_the_disk_is_full_waits_for_room() {
    let mut rig = Rig::new().await;
    let kind = io::ErrorKind::StorageFull;
    rig.disk.fail(Call::Write, ".chunk", usize::MAX, kind);
    rig.stands(ROW, Durability::Local).await;
    let error = rig.refused(ROW, Durability::Local).await;
    assert_eq!(error.code(), Code::DiskFull, "{error:?}");
    rig.disk.heal();
    rig.row(Durability::Local).await;
    rig.whole().await;
}

/// Neither appended nor cut back: the journal may end in half a record, so the node acknowledges nothing until it
/// is started again, and recovers the whole prefix.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_be_cut_back_stops_the_node() {
    let mut rig = Rig::new().await;
    rig.disk.plan(|call, path| {
        let chunk = path.extension().is_some_and(|e| e == "chunk");
        (chunk && matches!(call, Call::Write | Call::Truncate)).then(|| io::Error::other("EIO"))
    });
    rig.stands(ROW, Durability::Memory).await;
    rig.disk.heal();
    for level in [Durability::Memory, Durability::Local, Durability::Remote] {
        rig.refused(ROW, level).await;
    }
    rig.restart().await.whole().await;
}

/// After a failed sync nothing is known of what is on the disk: no acknowledgement, restart, recovery.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_stops_the_node() {
    let mut rig = Rig::new().await;
    rig.disk.fail(Call::Sync, ".chunk", 1, io::ErrorKind::Other);
    let error = rig.refused(ROW, Durability::Local).await;
    assert_eq!(error.members()["committed"], true, "{error:?}");
    rig.rows += 1;
    for level in [Durability::Memory, Durability::Local, Durability::Remote] {
        rig.refused(ROW, level).await;
    }
    rig.restart().await.whole().await;
}

/// Less than the reserve is left: 507 before anything is written, reads go on, and so do writes once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_before_the_write() {
    let mut rig = Rig::new().await;
    let before = rig.database.bookmark().await.expect("bookmark").bookmark;
    *rig.disk.free.lock().expect("lock") = Some(1 << 20);
    rig::until("the disk to be asked again", || async {
        match rig::try_run(&rig.database, ROW, Durability::Local).await {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.code(), Code::DiskFull, "{error:?}");
                assert_eq!(error.members()["free"], 1 << 20);
                true
            }
        }
    })
    .await;
    let count = rig.count().await;
    let at = rig.database.bookmark().await.expect("bookmark").bookmark;
    rig.refused(ROW, Durability::Memory).await;
    assert_eq!(rig.count().await, count, "reads go on, nothing was written");
    let after = rig.database.bookmark().await.expect("bookmark").bookmark;
    assert_eq!(at, after);
    assert!(at.txid >= before.txid);
    rig.rows = count;
    *rig.disk.free.lock().expect("lock") = None;
    rig::until("room", || async {
        rig::try_run(&rig.database, ROW, Durability::Local)
            .await
            .is_ok()
    })
    .await;
    rig.rows += 1;
    rig.whole().await;
}

/// No room for the next chunk: what stands in this one is neither lost nor a reason to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_cannot_be_begun_is_begun_later() {
    for call in [Call::Create, Call::Write] {
        let mut rig = Rig::new().await;
        let failed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let seen = Arc::clone(&failed);
        rig.disk.plan(move |found, path| {
            use std::sync::atomic::Ordering;
            let chunk = path.extension().is_some_and(|e| e == "chunk");
            // Of a new chunk only the header is written before anything stands in it.
            let new = std::fs::metadata(path).is_ok_and(|meta| meta.len() == 0);
            let hit = chunk && found == call && (call == Call::Create || new);
            if !hit || seen.load(Ordering::SeqCst) >= 3 {
                return None;
            }
            seen.fetch_add(1, Ordering::SeqCst);
            Some(io::ErrorKind::StorageFull.into())
        });
        rig.row(Durability::Local).await;
        rig.row(Durability::Remote).await;
        rig::until("three failures", || async {
            failed.load(std::sync::atomic::Ordering::SeqCst) == 3
        })
        .await;
        rig.whole().await;
    }
}

/// A checkpoint that fails behind a COMMIT takes nothing back: the write is answered as what it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_does_not_fail_the_write() {
    let mut rig = Rig::with(|settings| Settings {
        wal_soft_bytes: 64 << 10,
        ..settings
    })
    .await;
    rig.disk
        .fail(Call::Replace, "state", 3, io::ErrorKind::StorageFull);
    for _ in 0..6 {
        rig::run(&rig.database, LARGE, Durability::Local).await;
        rig.rows += 1;
    }
    rig.whole().await;
}
