//! A disk that is really full (RELIABILITY 7; I8): a small filesystem in memory holds the data folder. What the
//! caller hears is true, reads go on, nothing acknowledged is lost, and writes go on once there is room.
//!
//! Mounting needs root; elsewhere a line says that this was not run.

mod rig;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidelog_engine::bucket::At;
use tidelog_engine::{Code, Database, Durability, Engine, Parts, Settings};

const DISK: u64 = 12 << 20;
/// What is taken away once it is full.
const FILLER: u64 = 4 << 20;

/// A mounted filesystem; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "tmpfs"])
            .arg(at)
            .output();
        if mounted.is_ok_and(|done| done.status.success()) {
            return Some(Self(at.to_owned()));
        }
        let line = "disk_full not run: a small filesystem cannot be mounted (needs root)\n";
        // The handle, not the macro: the harness captures only the macro.
        let _ = std::io::stderr().write_all(line.as_bytes());
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes until the disk is full; rows that stand, and rows that may.
async fn fill(database: &Database, from: i64, bytes: u32) -> (Vec<i64>, Option<i64>) {
    let mut standing = Vec::new();
    for row in from.. {
        let level = [Durability::Local, Durability::Memory][usize::from(row % 2 == 0)];
        let sql = format!("INSERT INTO t VALUES({row}, randomblob({bytes}))");
        match rig::try_run(database, &sql, level).await {
            Ok(_) => standing.push(row),
            Err(error) if error.code() == Code::DiskFull => return (standing, None),
            Err(error) if error.code() == Code::OutcomeUnknown => {
                assert_eq!(error.members()["committed"], true, "{error:?}");
                return (standing, Some(row));
            }
            Err(error) => panic!("row {row}: {error:?}"),
        }
        assert!(row - from < 100_000, "the disk never fills");
    }
    unreachable!("rows do not end")
}

async fn full_disk(reserve: u64, bytes: u32) {
    let folder = tempfile::tempdir().expect("tempdir");
    let Some(mounted) = Mounted::new(&folder.path().join("small")) else {
        return;
    };
    let settings = Settings {
        data: mounted.0.join("data"),
        disk_reserve_bytes: reserve,
        wal_soft_bytes: 512 << 10,
        spool_bytes: 64 << 10,
        chunk_bytes: 256 << 10,
        idle_sweep: std::time::Duration::from_millis(50),
        ..rig::settings(folder.path())
    };
    let filler = mounted.0.join("filler");
    let engine = Engine::start(settings, Parts::production()).await;
    let engine = engine.expect("start");
    let database = rig::orders(&engine).await;
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(&database, create, Durability::Remote).await;
    let block = vec![1; usize::try_from(FILLER).expect("small")];
    std::fs::write(&filler, &block).expect("room for the filler");

    let (mut standing, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    let (rows, last) = fill(&database, 1, bytes).await;
    assert!(!rows.is_empty(), "a few rows fit");
    standing.extend(rows);
    unknown.extend(last);
    if reserve > 0 {
        assert_eq!(last, None, "refused before it began");
        // Reads need no room.
        let count = rig::numbers(&database, "SELECT count(*) FROM t").await;
        assert_eq!(count, [i64::try_from(standing.len()).expect("few")]);
    }
    std::fs::remove_file(&filler).expect("make room");
    let next = 1_000_000;
    let insert = format!("INSERT INTO t VALUES({next}, x'00')");
    rig::until("a write after there is room", || async {
        match rig::try_run(&database, &insert, Durability::Remote).await {
            Ok(_) => true,
            Err(error) if error.code() == Code::DiskFull => false,
            Err(error) => panic!("{error:?}"),
        }
    })
    .await;
    standing.insert(next);
    engine.shutdown().await.expect("shutdown");

    let bucket = rig::bucket(folder.path()).await.expect("bucket");
    let named = bucket.find("acme", "orders").await.expect("find");
    let restored = rig::restored(&bucket, &named, At::Latest).await;
    let (_folder, restored) = restored.expect("restore");
    let mut select = restored.prepare("SELECT a FROM t").expect("prepare");
    let found: BTreeSet<i64> = select
        .query_map([], |row| row.get(0))
        .and_then(Iterator::collect)
        .expect("rows");
    let missing: Vec<&i64> = standing.difference(&found).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    let invented: Vec<&i64> = found
        .difference(&standing)
        .filter(|row| !unknown.contains(row))
        .collect();
    assert!(invented.is_empty(), "invented: {invented:?}");
    assert!(unknown.is_subset(&found), "committed: true, and gone");
    rig::verify(&bucket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reserve_refuses_writes_before_anything_fails() {
    full_disk(2 << 20, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_small_commits() {
    full_disk(0, 3_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_under_large_commits() {
    full_disk(0, 300_000).await;
}
