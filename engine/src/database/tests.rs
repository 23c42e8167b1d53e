//! What no test from outside can hold still: files between two captures.

use super::*;
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
