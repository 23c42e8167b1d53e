//! The process dies at every step of making, deleting and restoring an archive, of replacing, rewinding, forking and
//! detaching a database, of purging a namespace and of rotating keys: what the next life finds is whole or not there at
//! all, and the operation and its record say which.
//!
//! Method: this test starts itself as a child that works on a folder until it reaches the named crash point and
//! aborts; then a node is started on the folder.

mod rig;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tidelog_archive::key::Key;
use tidelog_archive::seal::KeyStore;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::operations::{Operation, OperationFilter, OperationState};
use tidelog_engine::system::Page;
use tidelog_engine::travel::archives::{Format, NewArchive};
use tidelog_engine::travel::deletion::Purge;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::restores::Outcome;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Code, Database, Durability, Engine, Error, IdempotencyKey, MasterKey, MasterKeys, NewDatabase,
    Parts, Request, Response, Settings,
};
use tidelog_testkit::sealing::{master_bytes, masters, sealed, sealed_masters};
use tidelog_wal::{DatabaseId, NamespaceId, Position};

const WAIT: Duration = Duration::from_mins(3);
const FOLDER: &str = "TIDELOG_TEST_FOLDER";
const WORK: &str = "TIDELOG_TEST_WORK";

fn url(folder: &Path) -> String {
    format!("file://{}", folder.join("store").display())
}

fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: url(folder),
        ship_interval: Duration::from_millis(20),
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        ..Settings::default()
    }
}

async fn start(folder: &Path) -> (Engine, NamespaceId) {
    start_with(folder, &masters()).await
}

async fn start_with(folder: &Path, keys: &MasterKeys) -> (Engine, NamespaceId) {
    let settings = Settings {
        master_keys: keys.clone(),
        ..settings(folder)
    };
    let engine = Engine::start(settings, Parts::production()).await;
    let engine = engine.expect("start");
    let namespace = match engine.namespace_by_name("acme").await {
        Ok(found) => found.id,
        Err(_) => engine.namespace_create("acme").await.expect("namespace").id,
    };
    (engine, namespace)
}

fn request(sql: &str) -> Request {
    rig::request(&[sql], Durability::Local)
}

async fn sql(database: &Database, sql: &str) -> i64 {
    let response = database.execute(request(sql)).await;
    let response = response.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = response
        .results
        .into_iter()
        .next()
        .and_then(|r| r.rows.into_iter().next());
    match row.and_then(|row| row.into_iter().next()) {
        Some(tidelog_engine::Value::Integer(number)) => number,
        _ => 0,
    }
}

/// A write with an Idempotency-Key, whose answer is kept with its effect.
async fn keyed(database: &Database) -> Result<Response, Error> {
    let request = Request {
        idempotency: Some(IdempotencyKey {
            scope: "token route".to_owned(),
            key: "k1".to_owned(),
            fingerprint: [1; 32],
        }),
        ..request("INSERT INTO t VALUES(2)")
    };
    database.execute(request).await
}

/// A rewind that keeps the state before under a name.
fn preserving(at: Position) -> Rewind {
    Rewind {
        preserve_as: Some("before".to_owned()),
        ..Rewind::to(RestoreTarget::At(At::Bookmark(at)))
    }
}

fn archive() -> NewArchive {
    NewArchive::of(At::Latest, Format::Sqlite)
}

/// The file that replaces the database: two rows where the database has one.
fn replacement(folder: &Path) -> PathBuf {
    let file = folder.join("replacement.db");
    if !file.exists() {
        let plain = rusqlite::Connection::open(&file).expect("open");
        plain
            .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(7), (8)")
            .expect("fill");
    }
    file
}

/// What the child does until it dies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other tests as a process that dies"]
async fn child() {
    let folder = PathBuf::from(std::env::var(FOLDER).expect("a folder"));
    let work = std::env::var(WORK).expect("work");
    let (engine, namespace) = start(&folder).await;
    if work == "recover" {
        recovered(&engine, namespace).await;
        return;
    }
    let database = engine.database_create(namespace, NewDatabase::named("orders"));
    let database = database.await.expect("create");
    sql(&database, "CREATE TABLE t(a)").await;
    sql(&database, "INSERT INTO t VALUES(1)").await;
    if work == "rewind" || work == "keyed replace" {
        let at = database.bookmark().await.expect("where it stands").bookmark;
        keyed(&database).await.expect("the first call");
        let handle = match work.as_str() {
            "rewind" => database.rewind(preserving(at)).await,
            _ => database.replace(&replacement(&folder), None, None).await,
        };
        handle.expect("begin").wait(WAIT).await;
        return;
    }
    if work == "fork" || work == "schema" || work == "detach" {
        let fork = Fork {
            schema_only: work == "schema",
            ..Fork::named("copy")
        };
        database.fork(fork).await.expect("begin").wait(WAIT).await;
        if work == "detach" {
            let copy = engine.database(namespace, "copy").await.expect("the fork");
            sql(&copy, "INSERT INTO t VALUES(2)").await;
            copy.detach(None).await.expect("begin").wait(WAIT).await;
        }
        return;
    }
    if work == "replace" {
        let file = replacement(&folder);
        let mut handle = database.replace(&file, None, None).await.expect("begin");
        handle.wait(WAIT).await;
        return;
    }
    if work == "namespace" {
        let purge = engine.namespace_purge(namespace, None).await;
        purge.expect("begin").wait(WAIT).await;
        return;
    }
    let mut handle = database.archive_create(archive()).await.expect("begin");
    let made = handle.wait(WAIT).await;
    let id = made.result.expect("made")["archive"]["id"].clone();
    let id = id.as_str().expect("an id");
    match work.as_str() {
        "delete" => database.archive_delete(id).await.expect("delete"),
        "restore" => {
            let again = engine.database_from_archive(namespace, "again", id, None);
            again.await.expect("begin").wait(WAIT).await;
        }
        _ => {}
    }
}

/// What a child does to a sealed bucket until it dies.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the other tests as a process that dies"]
async fn sealed_child() {
    let folder = PathBuf::from(std::env::var(FOLDER).expect("a folder"));
    match std::env::var(WORK).expect("work").as_str() {
        "purge" => {
            let (engine, namespace) = start_with(&folder, &sealed_masters()).await;
            let orders = engine.database_create(namespace, NewDatabase::named("orders"));
            let orders = orders.await.expect("create");
            sql(&orders, "CREATE TABLE t(a)").await;
            sql(&orders, "INSERT INTO t VALUES(1)").await;
            let mut forking = orders.fork(Fork::named("copy")).await.expect("begin");
            let forked = forking.wait(WAIT).await;
            assert_eq!(forked.state, OperationState::Succeeded, "{forked:?}");
            let copy = engine.database(namespace, "copy").await.expect("the fork");
            let mut handle = copy.archive_create(archive()).await.expect("begin");
            let made = handle.wait(WAIT).await;
            assert_eq!(made.state, OperationState::Succeeded, "{made:?}");
            drop(copy);
            let purge = engine
                .database_purge(namespace, "copy", Purge::default())
                .await;
            purge.expect("begin").wait(WAIT).await;
        }
        "rewrap" => {
            let bucket = Bucket::open_with_keys(&url(&folder), &both()).await;
            bucket.expect("bucket").rewrap_keys().await.expect("rewrap");
        }
        "rotate" => rotate_all(&folder).await,
        _ => drop(start_with(&folder, &both()).await),
    }
}

/// The test's master key, and a newer one.
fn both() -> MasterKeys {
    let (one, two) = (master_bytes(), newer_bytes());
    let keys = [("k1", &one[..]), ("k2", &two[..])];
    let keys = keys.map(|(id, bytes)| MasterKey::parse(id, bytes).expect("32 bytes"));
    MasterKeys::new(keys.to_vec()).expect("two keys")
}

/// Thirty-two bytes of which none is like another.
fn newer_bytes() -> Vec<u8> {
    let mut bytes = master_bytes();
    bytes.reverse();
    bytes
}

/// The newer one alone.
fn newer() -> MasterKeys {
    let key = MasterKey::parse("k2", &newer_bytes()).expect("32 bytes");
    MasterKeys::new(vec![key]).expect("one key")
}

/// Gives every database a new data key.
async fn rotate_all(folder: &Path) {
    let bucket = Bucket::open_with_keys(&url(folder), &newer()).await;
    let bucket = bucket.expect("bucket");
    for database in bucket.databases().await.expect("the names") {
        bucket.rotate_data_key(&database).await.expect("rotate");
    }
}

/// Has a child die at a crash point; the folder it worked on.
fn died(point: &str, work: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("tempdir");
    dies(folder.path(), "child", point, work);
    folder
}

/// Has a child die at a crash point on a folder.
fn dies(folder: &Path, child: &str, point: &str, work: &str) {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", child, "--ignored", "--nocapture"])
        .env("TIDELOG_CRASH_AT", point)
        .env(FOLDER, folder)
        .env(WORK, work)
        .output()
        .expect("a child");
    let said = String::from_utf8_lossy(&child.stderr);
    assert_eq!(
        child.status.code(),
        None,
        "{point}: it did not die there: {said}"
    );
}

/// Waits until everything an earlier life left open has ended.
async fn recovered(engine: &Engine, namespace: NamespaceId) -> Vec<Operation> {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        let listed = engine.operations(namespace, OperationFilter::default(), Page::default());
        let listed = listed.await.expect("list").items;
        if listed.iter().all(|operation| operation.state.is_final()) {
            return listed;
        }
        assert!(tokio::time::Instant::now() < deadline, "{listed:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Stored objects of archives.
fn objects(folder: &Path) -> usize {
    let mut found = Vec::new();
    files(&folder.join("store"), &mut found);
    let archives = found.iter();
    archives
        .filter(|path| path.to_string_lossy().contains("/archives/"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_whole_or_leaves_nothing_wherever_the_process_dies() {
    for (point, work, archives) in [
        ("archive.after_row", "make", 0),
        ("archive.before_object", "make", 0),
        ("archive.after_object", "make", 0),
        ("archive.after_document", "make", 1),
        ("archive.after_hide", "delete", 0),
        ("archive.after_document_gone", "delete", 0),
    ] {
        let folder = died(point, work);
        let (engine, namespace) = start(folder.path()).await;
        let operations = recovered(&engine, namespace).await;
        let database = engine.database(namespace, "orders").await.expect("there");
        let deadline = tokio::time::Instant::now() + WAIT;
        while objects(folder.path()) != 2 * archives {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{point}: objects stay"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let listed = database
            .archives(Page::default())
            .await
            .expect("list")
            .items;
        assert_eq!(listed.len(), archives, "{point}");
        let made = operations.iter().map(|operation| operation.state);
        let made: Vec<OperationState> = made.collect();
        let expected = match (point, work) {
            ("archive.after_row", _) => vec![],
            (_, "delete") => vec![OperationState::Succeeded],
            _ if archives == 1 => vec![OperationState::Succeeded],
            _ => vec![OperationState::Failed],
        };
        assert_eq!(made, expected, "{point}");
        for failed in operations.iter().filter_map(|one| one.error.as_ref()) {
            assert_eq!(failed.code, "operation-interrupted", "{point}");
        }
        for one in &listed {
            let verified = database.archive_verify(&one.id.to_string(), None).await;
            let verified = verified.expect("begin").wait(WAIT).await;
            assert_eq!(verified.result.expect("a result")["outcome"], "verified");
        }
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_made_of_an_archive_is_whole_or_leaves_nothing() {
    for (point, made) in [
        ("archive_restore.before_import", false),
        ("import.before_image", false),
        ("import.after_image", false),
        ("import.before_row", true),
    ] {
        let folder = died(point, "restore");
        let (engine, namespace) = start(folder.path()).await;
        let operations = recovered(&engine, namespace).await;
        let restore = operations.first().expect("newest first");
        let state = if made {
            OperationState::Succeeded
        } else {
            OperationState::Failed
        };
        assert_eq!(restore.state, state, "{point}: {restore:?}");
        match engine.database(namespace, "again").await {
            Ok(again) if made => {
                assert_eq!(sql(&again, "SELECT count(*) FROM t").await, 1, "{point}");
                sql(&again, "INSERT INTO t VALUES(2)").await;
            }
            Err(error) if !made => assert_eq!(error.code(), Code::DatabaseNotFound),
            other => panic!("{point}: {other:?}"),
        }
        if !made {
            let id = restore.database.expect("a database").to_string();
            let mut left = Vec::new();
            files(folder.path(), &mut left);
            left.retain(|path| path.to_string_lossy().contains(&id));
            assert_eq!(left, Vec::<PathBuf>::new(), "{point}");
        }
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_database_is_the_old_one_or_the_new_one_and_the_operation_says_which() {
    for (point, replaced) in [
        ("replace.before_commit", false),
        ("raw.before_commit", false),
        ("raw.after_commit", true),
        ("replace.after_commit", true),
    ] {
        let folder = died(point, "replace");
        let (engine, namespace) = start(folder.path()).await;
        let operations = recovered(&engine, namespace).await;
        let database = engine.database(namespace, "orders").await.expect("there");
        let (state, sum) = if replaced {
            (OperationState::Succeeded, 15)
        } else {
            (OperationState::Failed, 1)
        };
        assert_eq!(operations[0].state, state, "{point}: {operations:?}");
        assert_eq!(sql(&database, "SELECT sum(a) FROM t").await, sum, "{point}");
        let restores = database
            .restores(Page::default())
            .await
            .expect("list")
            .items;
        assert_eq!(restores.len(), usize::from(replaced), "{point}");
        if let Some(record) = restores.first() {
            let undone = database.undo(&record.id, None, None).await;
            let undone = undone.expect("begin").wait(WAIT).await;
            assert_eq!(undone.state, OperationState::Succeeded, "{undone:?}");
            assert_eq!(sql(&database, "SELECT sum(a) FROM t").await, 1);
        }
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_whose_purge_began_is_gone_wherever_the_process_dies() {
    for point in ["namespace.after_closing", "namespace.before_forget"] {
        let folder = died(point, "namespace");
        let settings = Settings {
            master_keys: masters(),
            ..settings(folder.path())
        };
        let engine = Engine::start(settings, Parts::production()).await;
        let engine = engine.expect("start");
        let deadline = tokio::time::Instant::now() + WAIT;
        while let Ok(found) = engine.namespace_by_name("acme").await {
            let end = engine.namespace_end(found.id);
            assert!(end.is_none_or(|end| end.purging), "{point}: it is open");
            assert!(tokio::time::Instant::now() < deadline, "{point}: it stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Of two namespaces, the system's own is the one that has more than tombstones.
        let mut full = 0;
        for entry in std::fs::read_dir(folder.path().join("store/tenants")).expect("a folder") {
            let mut left = Vec::new();
            files(&entry.expect("an entry").path(), &mut left);
            full += usize::from(left.iter().any(|path| {
                let name = path.file_name().unwrap_or_default();
                name != "manifest" && name != "key" && !path.to_string_lossy().contains("/audit/")
            }));
        }
        assert!(full <= 1, "{point}: objects stay");
        let again = engine.namespace_create("acme").await.expect("free").id;
        let made = engine.database_create(again, NewDatabase::named("orders"));
        sql(&made.await.expect("create"), "CREATE TABLE t(a)").await;
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_died_behind_its_keys_is_ended_by_the_next_life() {
    // Goal: a fork whose keys are destroyed and whose objects still stand is gone after a restart, though its manifest
    // opens no more, and pins its parent no more. Method: death right after the keys, and behind the tombstone; the
    // parent can be purged then, which is refused while a fork reads through it.
    for point in ["purge.after_keys", "purge.before_objects"] {
        let folder = tempfile::tempdir().expect("tempdir");
        dies(folder.path(), "sealed_child", point, "purge");
        let keys = sealed_masters();
        let bucket = Bucket::open_with_keys(&url(folder.path()), &keys).await;
        let bucket = bucket.expect("bucket");
        let copy = bucket.find("acme", "copy").await.expect("its row");
        let (namespace, id): (NamespaceId, DatabaseId) = (copy.namespace_id, copy.id);
        let keys_of = KeyStore::new(bucket.store().clone(), namespace, id);
        let status = keys_of.status().await.expect("read");
        let status = status.expect("it was sealed");
        assert!(status.shredded.is_some(), "{point}: nothing opens any more");
        let left = || {
            let mut found = Vec::new();
            let prefix = Key::database_prefix(namespace, id);
            files(&folder.path().join("store").join(prefix), &mut found);
            found.len()
        };
        assert!(left() > 2, "{point}: objects still stand");
        drop(bucket);

        let (engine, namespace) = start_with(folder.path(), &keys).await;
        let deadline = tokio::time::Instant::now() + WAIT;
        while left() > 2 {
            assert!(tokio::time::Instant::now() < deadline, "{point}: they stay");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for operation in recovered(&engine, namespace).await {
            assert_eq!(operation.state, OperationState::Succeeded, "{point}");
        }
        let gone = engine.database(namespace, "copy").await;
        gone.expect_err("it is gone");
        let orders = engine.database(namespace, "orders").await.expect("there");
        assert_eq!(sql(&orders, "SELECT count(*) FROM t").await, 1);
        drop(orders);
        let purge = engine
            .database_purge(namespace, "orders", Purge::default())
            .await;
        let purged = purge.expect("begin").wait(WAIT).await;
        assert_eq!(
            purged.state,
            OperationState::Succeeded,
            "{point}: {purged:?}"
        );
        engine.shutdown().await.expect("shutdown");
    }
}

/// Goal: after a crash a rewind is as if it had not begun, or as if it had ended (API rule 5; DESIGN 5.7). Method: an
/// Idempotency-Key and a snapshot of the state before tell the two apart, beside rows, record and operation.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_is_undone_or_whole_with_its_record_its_snapshot_and_its_keys() {
    for (point, records, rewound) in [
        ("restore.before_record", 0, false),
        ("restore.after_record", 1, false),
        ("raw.before_commit", 1, false),
        ("raw.after_commit", 1, true),
        ("restore.after_commit", 1, true),
        ("restore.after_end", 1, true),
    ] {
        let folder = died(point, "rewind");
        let (engine, namespace) = start(folder.path()).await;
        let database = engine.database(namespace, "orders").await.expect("there");
        // At once: before it is known what was taken back, nothing is run again.
        match keyed(&database).await {
            Ok(response) => assert!(response.replayed && !rewound, "{point}"),
            Err(error) => assert!(
                rewound
                    && matches!(
                        error.code(),
                        Code::IdempotencyInProgress | Code::IdempotencyResultRolledBack
                    ),
                "{point}: {error:?}"
            ),
        }
        let operations = recovered(&engine, namespace).await;
        let (state, sum) = if rewound {
            (OperationState::Succeeded, 1)
        } else {
            (OperationState::Failed, 3)
        };
        assert_eq!(operations[0].state, state, "{point}: {operations:?}");
        assert_eq!(sql(&database, "SELECT sum(a) FROM t").await, sum, "{point}");
        let listed = database
            .restores(Page::default())
            .await
            .expect("list")
            .items;
        assert_eq!(listed.len(), records, "{point}");
        let kept = database
            .snapshots(Page::default())
            .await
            .expect("list")
            .items;
        if let Some(record) = listed.first().filter(|_| rewound) {
            assert_eq!(record.outcome, Outcome::Succeeded, "{point}");
            let kept: Vec<_> = kept
                .iter()
                .map(|one| (one.name.as_str(), one.bookmark, one.pinned))
                .collect();
            assert_eq!(kept, [("before", record.previous, true)], "{point}");
            let late = keyed(&database).await.expect_err("taken back");
            assert_eq!(late.code(), Code::IdempotencyResultRolledBack, "{point}");
            let undo = database.undo(&record.id, None, None).await;
            let undone = undo.expect("begin").wait(WAIT).await;
            assert_eq!(undone.state, OperationState::Succeeded, "{undone:?}");
        } else {
            let failed = listed.iter().all(|one| one.outcome == Outcome::Failed);
            assert!(failed, "{point}: {listed:?}");
            assert!(kept.is_empty(), "{point}: {kept:?}");
            // The name is free again.
            let at = database.history(None, None, Page::default()).await;
            let at = at.expect("history").items[2].position;
            let again = database.rewind(preserving(at)).await;
            let again = again.expect("begin").wait(WAIT).await;
            assert_eq!(again.state, OperationState::Succeeded, "{again:?}");
            let kept = database.snapshots(Page::default()).await.expect("list");
            assert_eq!(kept.items.len(), 1, "{point}");
            let newest = database.restores(Page::default()).await.expect("list");
            let undo = database.undo(&newest.items[0].id, None, None).await;
            let undone = undo.expect("begin").wait(WAIT).await;
            assert_eq!(undone.state, OperationState::Succeeded, "{undone:?}");
        }
        assert_eq!(sql(&database, "SELECT sum(a) FROM t").await, 3, "{point}");
        assert!(keyed(&database).await.expect("it is back").replayed);
        engine.shutdown().await.expect("shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_keys_that_died_is_run_again() {
    // Goal: a process that dies within a rotation of master key, data keys or the folder's own key leaves every database
    // readable, and the rotation is simply run again. Method: one folder on which a child dies at each point; then the
    // same is done to its end, and with the newest key alone everything is there.
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, namespace) = start_with(folder.path(), &sealed_masters()).await;
    for name in ["a", "b"] {
        let made = engine.database_create(namespace, NewDatabase::named(name));
        let made = made.await.expect("create");
        sql(&made, "CREATE TABLE t(a)").await;
        sql(&made, "INSERT INTO t VALUES(1)").await;
    }
    engine.shutdown().await.expect("shutdown");
    drop(engine);

    let masters_of = || async {
        let bucket = Bucket::open_with_keys(&url(folder.path()), &both()).await;
        let all = bucket.expect("both open it").key_status().await;
        let all = all.expect("status").into_iter();
        let all: Vec<Vec<String>> = all.map(|one| one.keys.expect("sealed").masters).collect();
        all
    };
    dies(folder.path(), "sealed_child", "keys.mid_rewrap", "rewrap");
    assert_eq!(
        masters_of().await,
        [["k2"], ["k1"], ["k1"]],
        "the first alone"
    );
    let bucket = Bucket::open_with_keys(&url(folder.path()), &both()).await;
    let bucket = bucket.expect("bucket");
    assert_eq!(bucket.rewrap_keys().await.expect("again"), 2);
    assert_eq!(masters_of().await, [["k2"], ["k2"], ["k2"]]);
    drop(bucket);

    // The folder's own key is wrapped by the old one still, then by the new: with both at hand it opens.
    for point in ["keys.before_local", "keys.after_local"] {
        dies(folder.path(), "sealed_child", point, "start");
    }
    let (engine, _) = start_with(folder.path(), &newer()).await;
    engine.shutdown().await.expect("shutdown");
    drop(engine);

    dies(folder.path(), "sealed_child", "keys.after_rotate", "rotate");
    let data_keys = || async {
        let bucket = Bucket::open_with_keys(&url(folder.path()), &newer()).await;
        let all = bucket.expect("bucket").key_status().await.expect("status");
        let all: Vec<usize> = all
            .into_iter()
            .skip(1)
            .map(|one| one.keys.expect("sealed").keys)
            .collect();
        all
    };
    assert_eq!(data_keys().await, [2, 1], "the first alone");
    rotate_all(folder.path()).await;
    assert_eq!(data_keys().await, [3, 2]);
    let (engine, namespace) = start_with(folder.path(), &newer()).await;
    for name in ["a", "b"] {
        let found = engine.database(namespace, name).await.expect("there");
        assert_eq!(sql(&found, "SELECT count(*) FROM t").await, 1);
        sql(&found, "INSERT INTO t VALUES(2)").await;
    }
    engine.shutdown().await.expect("shutdown");
}

/// Goal: the same of a replacement, whose keys are looked for by the next life.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_replacement_took_back_is_known_after_a_crash() {
    let folder = died("replace.after_commit", "keyed replace");
    let (engine, namespace) = start(folder.path()).await;
    recovered(&engine, namespace).await;
    let database = engine.database(namespace, "orders").await.expect("there");
    let late = keyed(&database).await.expect_err("taken back");
    assert_eq!(late.code(), Code::IdempotencyResultRolledBack);
    assert_eq!(sql(&database, "SELECT sum(a) FROM t").await, 15);
    engine.shutdown().await.expect("shutdown");
}

/// What is left of a database in folder and bucket, by name.
fn left_of(folder: &Path, id: &str) -> Vec<String> {
    let mut left = Vec::new();
    files(folder, &mut left);
    let named = |path: &PathBuf| path.to_string_lossy().contains(id);
    let names = left.iter().filter(|path| named(path));
    names
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect()
}

/// Goal: of a fork that did not come to its row nothing is left but a tombstone, and nothing of it holds its parent;
/// also where the life that clears it away dies, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_whole_or_leaves_nothing_and_lets_its_parent_go() {
    for (point, work, again) in [
        ("fork.after_manifest", "fork", None),
        ("fork.after_pin", "fork", None),
        ("fork.after_pin", "fork", Some("discard.after_tombstone")),
        ("schema.after_database", "schema", None),
        ("schema.before_row", "schema", None),
        (
            "schema.before_row",
            "schema",
            Some("discard.after_tombstone"),
        ),
        ("schema.before_row", "schema", Some("purge.after_keys")),
    ] {
        let folder = died(point, work);
        if let Some(again) = again {
            dies(folder.path(), "child", again, "recover");
        }
        let (engine, namespace) = start(folder.path()).await;
        let operations = recovered(&engine, namespace).await;
        assert_eq!(operations[0].state, OperationState::Failed, "{point}");
        let error = operations[0].error.as_ref().expect("it says why");
        assert_eq!(error.code, "operation-interrupted", "{point}");
        let none = engine.database(namespace, "copy").await;
        assert_eq!(none.expect_err("none").code(), Code::DatabaseNotFound);
        let id = operations[0].note["child"].as_str().expect("its id");
        let mut left = left_of(folder.path(), id);
        // Of a sealed one the place of its keys, which are destroyed.
        left.retain(|name| name != "key" || !sealed());
        assert_eq!(left, ["manifest"], "{point}, {again:?}");
        let database = engine.database(namespace, "orders").await.expect("there");
        assert_eq!(sql(&database, "SELECT sum(a) FROM t").await, 1, "{point}");
        let fork = Fork {
            schema_only: work == "schema",
            ..Fork::named("copy")
        };
        let made = database.fork(fork).await.expect("the name is free");
        assert_eq!(
            made.clone().wait(WAIT).await.state,
            OperationState::Succeeded
        );
        let copy = engine.database(namespace, "copy").await.expect("the fork");
        let rows = i64::from(work == "fork");
        assert_eq!(sql(&copy, "SELECT count(*) FROM t").await, rows, "{point}");
        for name in ["copy", "orders"] {
            let purge = engine
                .database_purge(namespace, name, Purge::default())
                .await;
            let purged = purge.expect("nothing holds it").wait(WAIT).await;
            assert_eq!(purged.state, OperationState::Succeeded, "{purged:?}");
        }
        engine.shutdown().await.expect("shutdown");
    }
}

/// Goal: a fork that came to its row stands, though the operation had not ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_has_a_row_stands() {
    let folder = died("fork.after_row", "fork");
    let (engine, namespace) = start(folder.path()).await;
    let operations = recovered(&engine, namespace).await;
    assert_eq!(operations[0].state, OperationState::Succeeded);
    let copy = engine.database(namespace, "copy").await.expect("the fork");
    assert_eq!(sql(&copy, "SELECT sum(a) FROM t").await, 1);
    sql(&copy, "INSERT INTO t VALUES(2)").await;
    for name in ["copy", "orders"] {
        let purge = engine
            .database_purge(namespace, name, Purge::default())
            .await;
        let purged = purge.expect("nothing holds it").wait(WAIT).await;
        assert_eq!(purged.state, OperationState::Succeeded, "{purged:?}");
    }
    engine.shutdown().await.expect("shutdown");
}

/// Goal: a fork whose detaching was cut off shares everything with its parent or nothing, and the operation says which.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_detached_or_it_is_not() {
    for (point, detached) in [
        ("detach.after_image", false),
        ("detach.after_manifest", true),
    ] {
        let folder = died(point, "detach");
        let (engine, namespace) = start(folder.path()).await;
        let operations = recovered(&engine, namespace).await;
        let state = if detached {
            OperationState::Succeeded
        } else {
            OperationState::Failed
        };
        assert_eq!(operations[0].state, state, "{point}: {operations:?}");
        let copy = engine.database(namespace, "copy").await.expect("the fork");
        assert_eq!(copy.row().parent.is_none(), detached, "{point}");
        assert_eq!(sql(&copy, "SELECT sum(a) FROM t").await, 3, "{point}");
        if !detached {
            let pinned = engine
                .database_purge(namespace, "orders", Purge::default())
                .await;
            let pinned = pinned.expect_err("a fork reads through it");
            assert_eq!(pinned.code(), Code::ForkParentPinned);
            let again = copy.detach(None).await.expect("begin").wait(WAIT).await;
            assert_eq!(again.state, OperationState::Succeeded, "{again:?}");
        }
        let purge = engine
            .database_purge(namespace, "orders", Purge::default())
            .await;
        let purged = purge.expect("nothing holds it").wait(WAIT).await;
        assert_eq!(purged.state, OperationState::Succeeded, "{purged:?}");
        assert_eq!(sql(&copy, "SELECT sum(a) FROM t").await, 3, "{point}");
        engine.shutdown().await.expect("shutdown");
    }
}
