//! Crashes without processes: the folders of a running node are copied, what a crash may lose is cut off the
//! copy, and a second node opens it with a copy of the store.
//!
//! What opens is a prefix of the commit order that holds everything acknowledged (I1, I2), restores from the
//! bucket to what a plain SQLite twin held (I3), and takes writes. `TIDELOG_SEED` and `TIDELOG_CRASHES` choose
//! what runs; a failure names its seed.

mod rig;
mod twin;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tidelog_engine::bucket::{At, Bucket, BucketDatabase};
use tidelog_engine::{Database, Durability, Engine, NewDatabase, Parts, Settings};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{PageSize, Position, TxId};

const PAGE: u64 = 1024;
const ROUNDS: u64 = 3;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Nothing is shipped but what a `remote` writer waits for: copies of folder and store then fit each other.
fn settings(folder: &Path, rng: &mut StdRng) -> Settings {
    let mut pick = |from: &[u64]| from[rng.random_range(0..from.len())];
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_hours(1),
        ship_linger: Duration::from_millis(1),
        settle_bytes: 1 << 40,
        // A copy of a folder must not meet one that runs.
        wal_backfill_bytes: 1 << 40,
        idle_close: Duration::from_hours(1),
        idle_sweep: Duration::from_hours(1),
        wal_soft_bytes: pick(&[16 << 10, 64 << 10, 1 << 30]),
        spool_bytes: pick(&[4 << 10, 1 << 20]),
        // A machine that is busy with something else makes no write fail.
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        master_keys: masters(),
        ..Settings::default()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create");
    // Not in this process: closing a descriptor of a database drops its locks (HAZARDS W0a).
    for name in ["data", "store"] {
        let status = Command::new("cp")
            .args(["-a", "-T"])
            .args([from.join(name), to.join(name)])
            .status();
        assert!(status.expect("cp").success());
    }
}

struct Node {
    folder: PathBuf,
    engine: Engine,
    database: Database,
    twin: Connection,
    /// What the twin held after each commit, and the newest bookmark answered for it.
    known: BTreeMap<TxId, (blake3::Hash, Position)>,
}

impl Node {
    async fn start(folder: &Path, rng: &mut StdRng, twin: Connection) -> Self {
        let engine = Engine::start(settings(folder, rng), Parts::production());
        let engine = engine.await.expect("start");
        let namespace = match engine.namespace_by_name("acme").await {
            Ok(found) => found,
            Err(_) => engine.namespace_create("acme").await.expect("namespace"),
        };
        let database = if let Ok(found) = engine.database(namespace.id, "orders").await {
            found
        } else {
            let new = NewDatabase {
                page_size: PageSize::new(1024).expect("1024"),
                ..NewDatabase::named("orders")
            };
            let made = engine.database_create(namespace.id, new).await;
            made.expect("create")
        };
        Self {
            folder: folder.to_owned(),
            engine,
            database,
            twin,
            known: BTreeMap::new(),
        }
    }

    async fn run(&mut self, sql: &str, durability: Durability) -> Position {
        self.twin.execute_batch(sql).expect(sql);
        let request = rig::request(&[sql], durability);
        let response = self.database.execute(request).await;
        let bookmark = response.unwrap_or_else(|e| panic!("{sql}: {e:?}")).bookmark;
        let dump = twin::dump(&self.twin);
        self.known.insert(bookmark.txid, (dump, bookmark));
        bookmark
    }

    async fn write(&mut self, rng: &mut StdRng, durability: Durability) -> Position {
        let (id, len) = (rng.random_range(1..60), rng.random_range(0..3_000));
        let rows = [1, 1, 1, 30][rng.random_range(0..4)];
        let sql = match rng.random_range(0..8) {
            0 => format!("DELETE FROM t WHERE a BETWEEN {id} AND {}", id + 9),
            1 => format!("UPDATE t SET b = b || 'x' WHERE a > {id}"),
            _ => format!(
                "WITH RECURSIVE s(x) AS (SELECT {id} UNION ALL SELECT x+1 FROM s LIMIT {rows}) \
                 INSERT OR REPLACE INTO t SELECT x, replace(hex(zeroblob({len})), '00', x) FROM s"
            ),
        };
        self.run(&sql, durability).await
    }

    /// The folder of the database's current files, below `root`.
    fn files(&self, root: &Path) -> PathBuf {
        let id = self.database.row().id.to_string();
        let state = root.join("data/databases").join(id);
        let text = fs::read_to_string(state.join("state")).expect("state");
        let json: serde_json::Value = serde_json::from_str(&text).expect("json");
        state.join(json["incarnation"].as_str().expect("incarnation"))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let found = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u64::from(u32::from_le_bytes(found)))
}

/// Cuts the WAL anywhere behind the frames that were backfilled: those were synced.
fn cut_wal(files: &Path, rng: &mut StdRng) {
    let (wal, shm) = (files.join("db.sqlite-wal"), files.join("db.sqlite-shm"));
    let bytes = fs::read(&wal).unwrap_or_default();
    let index = fs::read(&shm).unwrap_or_default();
    let same_life = bytes.len() >= 32 && index.get(32..40) == bytes.get(16..24);
    let kept = if same_life {
        word(&index, 96).unwrap_or(0)
    } else {
        0
    };
    let frame = PAGE + 24;
    let first = if kept == 0 { 0 } else { 32 + kept * frame };
    let len = bytes.len() as u64;
    if first < len {
        let mut cut = rng.random_range(first..len);
        if rng.random_bool(0.5) && cut > 32 {
            cut -= (cut - 32) % frame;
        }
        let file = fs::OpenOptions::new().write(true).open(&wal);
        file.expect("wal").set_len(cut.max(first)).expect("cut");
    }
}

/// Cuts the newest chunk anywhere behind what `synced` holds of it.
fn cut_journal(journal: &Path, synced: &Path, rng: &mut StdRng) {
    let mut chunks: Vec<PathBuf> = fs::read_dir(journal)
        .expect("journal")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "chunk"))
        .collect();
    chunks.sort();
    let last = chunks.last().expect("a chunk");
    let len = fs::metadata(last).expect("chunk").len();
    let name = last.file_name().expect("a name");
    let kept = fs::metadata(synced.join(name)).map_or(0, |meta| meta.len());
    if kept < len {
        let file = fs::OpenOptions::new().write(true).open(last);
        let cut = rng.random_range(kept..=len);
        file.expect("chunk").set_len(cut).expect("cut");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// kill -9: nothing.
    Nothing,
    /// The WAL's tail; the journal has it.
    Wal,
    /// The commits were never captured.
    Uncaptured,
    /// Power: the tails of WAL and journal.
    Both,
}

/// One crash of `node` and the node that comes after it.
async fn crash(mut node: Node, rng: &mut StdRng, next: &Path) -> Node {
    for _ in 0..rng.random_range(0..12) {
        let durability = [Durability::Local, Durability::Remote][rng.random_range(0..2)];
        node.write(rng, durability).await;
    }
    let acknowledged = node.write(rng, Durability::Local).await.txid;
    let synced = next.join("synced");
    copy(&node.folder, &synced);
    for _ in 0..rng.random_range(1..20) {
        node.write(rng, Durability::Memory).await;
    }
    copy(&node.folder, next);
    node.engine.shutdown().await.expect("shutdown");

    let (before, after) = (node.files(&synced), node.files(next));
    let read = |files: &Path, name: &str| fs::read(files.join(name)).unwrap_or_default();
    let life = |files: &Path| read(files, "db.sqlite-wal").get(..32).map(<[u8]>::to_vec);
    let untouched = read(&before, "db.sqlite") == read(&after, "db.sqlite")
        && life(&before).is_some()
        && life(&before) == life(&after);
    let loss = match rng.random_range(0..4) {
        0 => Loss::Nothing,
        1 if untouched => Loss::Uncaptured,
        2 if untouched => Loss::Both,
        _ => Loss::Wal,
    };
    let journals = (next.join("data/journal"), synced.join("data/journal"));
    match loss {
        Loss::Nothing => {}
        Loss::Wal => cut_wal(&after, rng),
        Loss::Uncaptured => {
            fs::remove_dir_all(&journals.0).expect("remove");
            fs::rename(&journals.1, &journals.0).expect("rename");
        }
        Loss::Both => {
            cut_wal(&after, rng);
            cut_journal(&journals.0, &journals.1, rng);
        }
    }
    let _ = fs::remove_file(after.join("db.sqlite-shm"));
    let Node {
        mut known, twin, ..
    } = node;
    drop((node.engine, node.database));

    let mut opened = Node::start(next, rng, twin).await;
    let head = opened.database.bookmark().await.expect("open").bookmark;
    let newest = *known.last_key_value().expect("commits").0;
    assert!(head.txid >= acknowledged, "{loss:?}: {head} lost commits");
    assert!(head.txid <= newest, "{loss:?}: {head} was never committed");
    if loss != Loss::Both {
        assert_eq!(head.txid, newest, "{loss:?}: nothing was lost");
    }
    // What was recovered from the WAL alone has new bookmarks; all others are what they were.
    let kept_names = matches!(loss, Loss::Nothing | Loss::Wal);
    known.retain(|txid, _| *txid <= head.txid);
    let old: Vec<(TxId, (blake3::Hash, Position))> =
        known.iter().map(|(txid, found)| (*txid, *found)).collect();
    if let Some((dump, name)) = known.get_mut(&head.txid) {
        assert!(!kept_names || *name == head, "{loss:?}: {head} is {name}");
        *name = head;
        // The twin goes back to what survived.
        let stored = opened.flush(head).await;
        assert_eq!(twin::dump(&stored), *dump, "{loss:?}: {head}");
        opened.twin = stored;
    }
    let bucket = opened.bucket().await;
    let mut sure = BTreeMap::new();
    for (txid, (dump, name)) in old {
        match opened.restore(&bucket, name, "at").await {
            Ok(restored) => {
                assert_eq!(twin::dump(&restored), dump, "{loss:?}: {name}");
                sure.insert(txid, (dump, name));
            }
            Err(error) => assert!(
                !kept_names && txid > acknowledged,
                "{loss:?}: {name}: {error}"
            ),
        }
    }
    opened.known = sure;
    opened
}

impl Node {
    async fn bucket(&self) -> (Bucket, BucketDatabase) {
        let url = format!("file://{}", self.folder.join("store").display());
        let bucket = Bucket::open_with_keys(&url, &masters())
            .await
            .expect("bucket");
        let found = bucket.find("acme", "orders").await.expect("find");
        (bucket, found)
    }

    async fn restore(
        &self,
        (bucket, found): &(Bucket, BucketDatabase),
        at: Position,
        what: &str,
    ) -> Result<Connection, String> {
        let out = self.folder.join(format!("{what}-{}.db", at.txid));
        let restored = bucket.restore(found, At::Bookmark(at), &out, false).await;
        restored.map_err(|e| e.to_string())?;
        twin::open_restored(&out)
    }

    /// Has everything stored, by a commit that changes no row, and restores `at`.
    async fn flush(&self, at: Position) -> Connection {
        let request = rig::request(&["PRAGMA application_id = 7"], Durability::Remote);
        let flushed = self.database.execute(request).await.expect("flush");
        assert!(flushed.bookmark.txid > at.txid, "writing goes on");
        let bucket = self.bucket().await;
        self.restore(&bucket, at, "twin")
            .await
            .expect("restore the head")
    }
}

async fn crashes(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("tempdir");
    let twin = Connection::open_in_memory().expect("twin");
    let mut node = Node::start(&folder.path().join("0"), &mut rng, twin).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    node.run(create, Durability::Remote).await;
    for round in 1..=ROUNDS {
        let next = folder.path().join(round.to_string());
        node = Box::pin(crash(node, &mut rng, &next)).await;
    }
    node.engine.shutdown().await.expect("shutdown");
}

#[test]
fn what_opens_after_a_crash_is_a_prefix_that_holds_every_acknowledged_commit() {
    let (first, count) = (env("TIDELOG_SEED", 0), env("TIDELOG_CRASHES", 5));
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let mut failed = Vec::new();
    for seed in first..first + count {
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(crashes(seed)));
        if std::panic::catch_unwind(run).is_err() {
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?} failed, see above");
}
