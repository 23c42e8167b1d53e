//! What no test from outside can hold still: files between two captures.

use super::*;
use crate::capture::{CommitNote, Wanted};
use crate::sql::policy::Permission;
use crate::system::Page;
use crate::{Engine, Parts, Settings, rig};

/// Goal: once everything is in the file, pages are read from the file alone, though capture still knows which frames
/// of the WAL they were in (DESIGN 5.7). Method: a transaction that is larger than its cache begins the WAL anew and
/// writes over those frames, before anybody captures again.
#[tokio::test(flavor = "multi_thread")]
async fn pages_are_not_read_from_a_wal_that_may_begin_anew() {
    let folder = tempfile::tempdir().expect("tempdir");
    // Nothing is settled, so that nobody else reads the files.
    let settings = Settings {
        settle_bytes: 1 << 30,
        ..rig::settings(folder.path())
    };
    let engine = Box::pin(Engine::start(settings, Parts::production())).await;
    let engine = engine.expect("starts");
    let database = rig::orders(&engine).await;
    rig::run(&database, "CREATE TABLE t(b)", Durability::Memory).await;
    for _ in 0..40 {
        let insert = "INSERT INTO t VALUES(randomblob(20000))";
        rig::run(&database, insert, Durability::Memory).await;
    }
    let lease = database.lease().await.expect("open");
    let open = Arc::clone(&lease);
    let writer = database.writer().await.expect("a writer");
    let checked = tokio::task::spawn_blocking(move || {
        open.backfill(&mut Scratch::default()).expect("backfilled");
        let header = open.header().expect("a header");
        assert_eq!(header.backfilled, header.max_frame, "all is in the file");
        let bytes = open.head().pages.get() as usize * open.meta().page_size.bytes();
        let (mut before, mut after) = (vec![0; bytes], vec![0; bytes]);
        open.read_run(PageNo::ONE, &mut before).expect("read");
        let written = writer.transaction(|connection| {
            // Nobody captures meanwhile.
            let slot = open.lock_capture();
            connection.execute_batch("UPDATE t SET b = randomblob(20000)")?;
            let now = open.header().expect("a header");
            assert_ne!(now.salts, header.salts, "the WAL began anew");
            let io = |e| Error::io("read", e);
            let read = open.with_files(|files| {
                let capture = &slot.capture;
                capture.present(files, PageNo::ONE, &mut after).map_err(io)
            });
            read.expect("read");
            Ok(())
        });
        written.expect("written");
        assert!(before == after, "pages of the state before");
    });
    checked.await.expect("no panic");
    drop(lease);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: what a commit is to lead to is proven before anything of it, or behind it, is recorded or acknowledged; and
/// opening anew finds what SQLite holds. Method: one that leads elsewhere, and one behind it, before anybody captures.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recorded_from_an_unproven_commit_on() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = Engine::start(rig::settings(folder.path()), Parts::production());
    let engine = Box::pin(engine).await.expect("starts");
    let database = rig::orders(&engine).await;
    rig::run(&database, "CREATE TABLE t(a)", Durability::Memory).await;
    let one = rig::run(&database, "INSERT INTO t VALUES(1)", Durability::Memory).await;
    let lease = database.lease().await.expect("open");
    let mut gate = lease.gate().await.expect("the gate");
    let open = Arc::clone(&lease);
    let written = tokio::task::spawn_blocking(move || {
        let owed = gate.owing();
        let head = open.capture_now().expect("captured");
        let note = CommitNote {
            leads_to: Some(Wanted {
                n: head.pages,
                digest: head.digest,
            }),
            ..CommitNote::default()
        };
        let insert = |connection: &rusqlite::Connection, row: u32| {
            let inserted = connection.execute("INSERT INTO t VALUES(?1)", [row]);
            inserted.map_err(|error| Error::internal(error.to_string()))
        };
        let raw = open.raw_connection().expect("a connection");
        let elsewhere = gate.raw_transaction(&raw, note, |c| insert(c, 2));
        let behind = gate.transaction(Permission::ENGINE, None, Vec::new(), |sqlite| {
            sqlite.as_engine(|c| insert(c, 3))
        });
        drop(gate);
        let unproven = owed.pay().expect_err("it leads elsewhere").to_string();
        assert!(unproven.contains("led to digest"), "{unproven}");
        assert_eq!(open.head().position(), one, "nothing is recorded");
        [elsewhere, behind].map(|written| written.expect("made").ticket.expect("a change"))
    });
    for ticket in written.await.expect("no panic") {
        let told = ticket.wait(Durability::Memory).await;
        assert!(told.is_err(), "{told:?}");
    }
    drop(lease);
    let rows = rig::numbers(&database, "SELECT count(*), sum(a) FROM t").await;
    assert_eq!(rows, [3, 6]);
    let from = Some(one.txid.next());
    let commits = database.commits(from, None, Page::default()).await;
    let recovered: Vec<bool> = commits
        .expect("history")
        .items
        .iter()
        .map(|commit| commit.recovered)
        .collect();
    assert_eq!(recovered, [true, true]);
    engine.shutdown().await.expect("shutdown");
}
