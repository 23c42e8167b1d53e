//! Files that somebody changed behind the engine's back (DESIGN 5.2 and 5.6, HAZARDS W14 and W21): nothing that was
//! acknowledged is lost, bookmarks on both sides restore exactly (I3), no path leads over the gap.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::operations::OperationState;
use tidelog_engine::system::Page;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind, Way};
use tidelog_engine::{Code, Database, Durability, Engine, Parts, Settings};
use tidelog_wal::record::RecordKind;
use tidelog_wal::{Position, Timestamp, TxId};

use crate::rig;

const COUNT: &str = "SELECT count(*) FROM t";

/// Runs SQL on the file as a stranger does; nothing unless it was called as one. Not in the engine's process: closing
/// a descriptor of a database drops its locks (HAZARDS W0a).
#[test]
fn a_stranger() {
    let (Some(file), Ok(sql)) = (
        std::env::var_os("TIDELOG_STRANGER_FILE"),
        std::env::var("TIDELOG_STRANGER_SQL"),
    ) else {
        return;
    };
    let connection = rusqlite::Connection::open(file).expect("open");
    connection.execute_batch(&sql).expect("run");
    if std::env::var_os("TIDELOG_STRANGER_DIES").is_some() {
        // Without its last checkpoint.
        std::process::abort();
    }
}

fn stranger(file: &Path, sql: &str, dies: bool) {
    let mut command = Command::new(std::env::current_exe().expect("this executable"));
    command
        .args(["gaps::a_stranger", "--exact", "--test-threads=1"])
        .env("TIDELOG_STRANGER_FILE", file)
        .env("TIDELOG_STRANGER_SQL", sql);
    if dies {
        command.env("TIDELOG_STRANGER_DIES", "1");
    }
    let ended = command.output().expect("a stranger runs");
    assert!(
        dies || ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stdout)
    );
}

/// Settles everything at once, or nothing.
fn settings(folder: &Path, settles: bool) -> Settings {
    Settings {
        settle_bytes: if settles { 1 } else { 1 << 40 },
        settle_age: Duration::from_hours(1),
        restores_max: usize::MAX,
        ..rig::settings(folder)
    }
}

async fn start(folder: &Path, settles: bool) -> (Engine, Database) {
    start_with(folder, settles, Parts::production()).await
}

async fn start_with(folder: &Path, settles: bool, parts: Parts) -> (Engine, Database) {
    let engine = Engine::start(settings(folder, settles), parts).await;
    let engine = engine.expect("start");
    let database = rig::orders(&engine).await;
    (engine, database)
}

/// The database's folder, and that of its current files.
fn files(folder: &Path, database: &Database) -> (PathBuf, PathBuf) {
    let id = database.row().id.to_string();
    let all = folder.join("data/databases").join(id);
    let text = std::fs::read_to_string(all.join("state")).expect("state");
    let state: serde_json::Value = serde_json::from_str(&text).expect("json");
    let current = all.join(state["incarnation"].as_str().expect("incarnation"));
    (all, current)
}

/// Whether every file was there as long as it took to copy it: a node that runs may remove some.
fn try_copy(from: &Path, to: &Path) -> bool {
    let status = Command::new("cp")
        .args(["-a", "-T"])
        .args([from, to])
        .status();
    status.expect("cp").success()
}

fn copy(from: &Path, to: &Path) {
    assert!(try_copy(from, to), "{}", from.display());
}

/// Every file below a folder with its length and time, but for the shared memory of databases.
fn stamps(folder: &Path, found: &mut BTreeMap<PathBuf, (u64, SystemTime)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            stamps(&path, found);
        } else if !path.to_string_lossy().ends_with("-shm") {
            let stamp = (meta.len(), meta.modified().expect("a time"));
            found.insert(path, stamp);
        }
    }
}

async fn head(database: &Database) -> Position {
    database.bookmark().await.expect("bookmark").bookmark
}

async fn gaps(database: &Database) -> Vec<(TxId, TxId)> {
    database.recovery_window().await.expect("a window").gaps
}

async fn discontinuities(engine: &Engine) -> u64 {
    engine.status().await.discontinuities
}

/// What the bucket alone restores at a bookmark: the rows.
async fn rows_at(bucket: &Bucket, at: At) -> i64 {
    let named = bucket.find("acme", "orders").await.expect("find");
    let (_folder, restored) = rig::restored(bucket, &named, at).await.expect("restore");
    restored
        .query_row(COUNT, [], |row| row.get(0))
        .expect("count")
}

async fn make(database: &Database) -> Position {
    let create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    rig::run(database, create, Durability::Local).await;
    for _ in 0..3 {
        let insert = "INSERT INTO t(b) VALUES(randomblob(3000))";
        rig::run(database, insert, Durability::Remote).await;
    }
    head(database).await
}

async fn rewind(database: &Database, at: Position) {
    let to = RestoreTarget::At(At::Bookmark(at));
    let plan = database.preview(&to).await.expect("a preview");
    assert_eq!(plan.way(), Way::Image, "no log leads over the gap");
    let mut handle = database.rewind(Rewind::to(to)).await.expect("accepted");
    let operation = handle.wait(rig::PATIENCE).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
}

/// A shell writes to the files of a node that has stopped: what it wrote is there, behind a gap.
async fn written_while_stopped(settles: bool) {
    let folder = tempfile::tempdir().expect("tempdir");
    let folder = folder.path();
    let (engine, database) = start(folder, settles).await;
    let before = make(&database).await;
    engine.shutdown().await.expect("shutdown");
    let (_, current) = files(folder, &database);
    let insert = "INSERT INTO t(b) VALUES(randomblob(100)), (randomblob(100))";
    stranger(&current.join("db.sqlite"), insert, false);
    assert!(
        !current.join("db.sqlite-wal").exists(),
        "moved into the file"
    );

    let (engine, database) = start(folder, settles).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [5]);
    let after = head(&database).await;
    assert_eq!(after.txid, before.txid.next());
    assert_eq!(discontinuities(&engine).await, 1);
    assert_eq!(gaps(&database).await, [(before.txid, after.txid)]);
    let page = Page {
        limit: 10,
        cursor: None,
    };
    let commits = database.history(Some(after), None, page).await;
    assert_eq!(commits.expect("history").items[0].kind, RecordKind::Image);
    let insert = "INSERT INTO t(b) VALUES(1)";
    let later = rig::run(&database, insert, Durability::Remote).await;
    let bucket = rig::bucket(folder).await.expect("bucket");
    if settles {
        rig::until("a settled gap", || async {
            let named = bucket.find("acme", "orders").await.expect("find");
            let history = bucket.history(&named).await.expect("history");
            history.gaps.len() == 1 && history.images.len() == 1
        })
        .await;
    }
    for (at, rows) in [(before, 3), (after, 5), (later, 6)] {
        assert_eq!(rows_at(&bucket, At::Bookmark(at)).await, rows, "{at}");
    }
    assert_eq!(rows_at(&bucket, At::Latest).await, 6);
    // No commit of ours is from a time inside it: what was there then is not guessed.
    let page = Page {
        limit: 2,
        cursor: None,
    };
    let around = database.history(Some(before), None, page).await;
    let around = around.expect("history").items;
    let [from, to] = [&around[0], &around[1]].map(|commit| commit.time.micros());
    let inside = Timestamp::from_micros(from.midpoint(to));
    let to = RestoreTarget::At(At::Time(inside));
    let refused = database.preview(&to).await.expect_err("inside the gap");
    assert_eq!(refused.code(), Code::RecoveryGap, "{refused:?}");
    let members = refused.members();
    assert_eq!(members["nearest_earlier"], before.to_string());
    assert_eq!(members["nearest_later"], after.to_string());
    rig::verify(&bucket).await;
    rewind(&database, before).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [3]);
    rewind_over_log(&database, before).await;
    engine.shutdown().await.expect("shutdown");

    // Once is enough.
    let (engine, database) = start(folder, settles).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [3]);
    assert_eq!(discontinuities(&engine).await, 0);
    assert_eq!(gaps(&database).await, [(before.txid, after.txid)]);
    rewind(&database, before).await;
    rig::verify(&bucket).await;
    engine.shutdown().await.expect("shutdown");
}

/// Commits behind the gap are taken back over the log, as ever.
async fn rewind_over_log(database: &Database, before: Position) {
    let now = head(database).await;
    rig::run(database, "DELETE FROM t", Durability::Local).await;
    let to = RestoreTarget::At(At::Bookmark(now));
    let plan = database.preview(&to).await.expect("a preview");
    assert_eq!(plan.way(), Way::Log);
    let mut handle = database.rewind(Rewind::to(to)).await.expect("accepted");
    let operation = handle.wait(rig::PATIENCE).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(rig::numbers(database, COUNT).await, [3], "{before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_wrote_while_the_node_was_down_comes_behind_a_gap() {
    written_while_stopped(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_is_not_settled_yet_is_a_gap_all_the_same() {
    written_while_stopped(false).await;
}

/// What a stranger left in the WAL is commits like any other: there is no gap where none is needed.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_a_stranger_left_in_the_wal_are_captured() {
    let folder = tempfile::tempdir().expect("tempdir");
    let folder = folder.path();
    let (engine, database) = start(folder, true).await;
    let before = make(&database).await;
    engine.shutdown().await.expect("shutdown");
    let (_, current) = files(folder, &database);
    let insert = "INSERT INTO t(b) VALUES(1); INSERT INTO t(b) VALUES(2)";
    stranger(&current.join("db.sqlite"), insert, true);

    let (engine, database) = start(folder, true).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [5]);
    assert_eq!(head(&database).await.txid, before.txid.plus(2));
    assert_eq!(gaps(&database).await, []);
    assert_eq!(discontinuities(&engine).await, 0);
    engine.shutdown().await.expect("shutdown");
}

/// A stranger checkpoints and restarts the WAL of a running node: a life of the WAL that nobody captured.
#[tokio::test(flavor = "multi_thread")]
async fn a_life_of_the_wal_that_nobody_captured_is_a_gap() {
    let folder = tempfile::tempdir().expect("tempdir");
    let folder = folder.path();
    let (engine, database) = start(folder, true).await;
    let before = make(&database).await;
    let (_, current) = files(folder, &database);
    let sql = "INSERT INTO t(b) VALUES(randomblob(5000)); PRAGMA wal_checkpoint(TRUNCATE);
               INSERT INTO t(b) VALUES(2)";
    stranger(&current.join("db.sqlite"), sql, true);

    let insert = "INSERT INTO t(b) VALUES(3)";
    rig::until("a write", || async {
        match rig::try_run(&database, insert, Durability::Remote).await {
            Ok(_) => true,
            Err(error) => {
                assert!(
                    matches!(error.code(), Code::OutcomeUnknown | Code::DatabaseCorrupt),
                    "{error:?}"
                );
                false
            }
        }
    })
    .await;
    let rows = rig::numbers(&database, COUNT).await[0];
    assert!(rows >= 6, "{rows} rows, six stand for sure");
    assert_eq!(discontinuities(&engine).await, 1);
    let found = gaps(&database).await;
    assert_eq!(found.len(), 1);
    assert!(found[0].0 >= before.txid, "{found:?}");
    let bucket = rig::bucket(folder).await.expect("bucket");
    assert_eq!(rows_at(&bucket, At::Bookmark(before)).await, 3);
    assert_eq!(rows_at(&bucket, At::Latest).await, rows);
    engine.shutdown().await.expect("shutdown");
    rig::verify(&bucket).await;
}

/// The node dies between the image record and the state file: the next one finds the record, and no second gap.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_behind_the_image_record_goes_on_from_it() {
    let folder = tempfile::tempdir().expect("tempdir");
    let folder = folder.path();
    let (engine, database) = start(folder, false).await;
    let before = make(&database).await;
    engine.shutdown().await.expect("shutdown");
    let (all, current) = files(folder, &database);
    stranger(
        &current.join("db.sqlite"),
        "DELETE FROM t WHERE a = 1",
        false,
    );
    let old = folder.join("old");
    copy(&all, &old);

    let (engine, database) = start(folder, false).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [2]);
    let after = head(&database).await;
    assert_eq!(after.txid, before.txid.next());
    engine.shutdown().await.expect("shutdown");
    std::fs::remove_dir_all(&all).expect("remove");
    copy(&old, &all);

    let (engine, database) = start(folder, false).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [2]);
    assert_eq!(head(&database).await, after);
    assert_eq!(gaps(&database).await, [(before.txid, after.txid)]);
    assert_eq!(discontinuities(&engine).await, 0);
    rewind(&database, before).await;
    let bucket = rig::bucket(folder).await.expect("bucket");
    assert_eq!(rows_at(&bucket, At::Bookmark(after)).await, 2);
    rig::verify(&bucket).await;
    engine.shutdown().await.expect("shutdown");
}

/// Files that cannot be shown to hold what was acknowledged: the store wins, and they are set aside.
async fn store_wins(damage: impl Fn(&Path, &Path), parts: Parts) {
    let folder = tempfile::tempdir().expect("tempdir");
    let (first, next) = (folder.path().join("first"), folder.path().join("next"));
    std::fs::create_dir_all(&first).expect("create");
    let (engine, database) = start(&first, true).await;
    let clean = make(&database).await;
    engine.shutdown().await.expect("shutdown");
    let (engine, database) = start(&first, true).await;
    // The file holds these, the WAL the last one alone.
    let large = "INSERT INTO t(b) VALUES(randomblob(40000))";
    rig::run(&database, large, Durability::Remote).await;
    let newest = rig::run(
        &database,
        "UPDATE t SET b = 1 WHERE a = 1",
        Durability::Remote,
    )
    .await;
    assert!(newest.txid > clean.txid);
    // As a crash would leave it: a file from before a checkpoint beside a WAL from behind it is what no crash leaves, nor
    // a manifest from before a settle beside the journal from behind it.
    rig::until("a copy that nothing moved under", || async {
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        let _ = std::fs::remove_dir_all(&next);
        stamps(&first, &mut before);
        let copied = try_copy(&first, &next);
        stamps(&first, &mut after);
        copied && before == after
    })
    .await;
    engine.shutdown().await.expect("shutdown");
    let (all, current) = files(&next, &database);
    damage(&all, &current);

    let (engine, database) = start_with(&next, true, parts).await;
    assert_eq!(rig::numbers(&database, COUNT).await, [4]);
    assert_eq!(head(&database).await, newest);
    assert_eq!(gaps(&database).await, []);
    assert_eq!(discontinuities(&engine).await, 1);
    let aside = std::fs::read_dir(&all).expect("list").flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("unproven-"));
    assert_eq!(aside.count(), 1, "the files are kept for people to look at");
    rig::run(&database, large, Durability::Remote).await;
    let bucket = rig::bucket(&next).await.expect("bucket");
    assert_eq!(rows_at(&bucket, At::Bookmark(newest)).await, 4);
    rig::verify(&bucket).await;
    engine.shutdown().await.expect("shutdown");
}

/// Changes a byte of the SQLite file in a page that the WAL does not hold.
fn flip(current: &Path) {
    use std::os::unix::fs::FileExt as _;
    const PAGE: usize = 4096;
    let wal = std::fs::read(current.join("db.sqlite-wal")).unwrap_or_default();
    let frames = wal.get(32..).unwrap_or_default().chunks(PAGE + 24);
    let pages: Vec<u64> = frames
        .map(|frame| u64::from(u32::from_be_bytes(frame[..4].try_into().expect("four"))))
        .collect();
    let path = current.join("db.sqlite");
    let file = std::fs::File::options().read(true).write(true).open(path);
    let file = file.expect("open");
    let last = file.metadata().expect("metadata").len() / PAGE as u64;
    let page = (2..=last).rev().find(|page| !pages.contains(page));
    let at = (page.expect("a page below the WAL") - 1) * PAGE as u64 + 3_000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_below_a_sound_wal_is_restored_from_the_store() {
    store_wins(|_, current| flip(current), Parts::production()).await;
}

/// After power loss nothing shows that files at no known commit hold what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn files_at_no_known_commit_after_power_loss_are_restored_from_the_store() {
    let lose = |_: &Path, current: &Path| {
        std::fs::remove_file(current.join("db.sqlite-wal")).expect("remove");
        let _ = std::fs::remove_file(current.join("db.sqlite-shm"));
        flip(current);
    };
    let parts = Parts {
        boot: Some("another".to_owned()),
        ..Parts::production()
    };
    store_wins(lose, parts).await;
}
