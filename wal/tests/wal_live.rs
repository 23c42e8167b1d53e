//! The wal-index header may be read at any moment beside a running writer: what it publishes is whole and
//! committed, and every commit is seen once (DESIGN 5.2).

mod wal_common;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use tidelog_wal::PageSize;
use tidelog_wal::cursor::{PublishedCursor, ReadAt};
use tidelog_wal::frame::FrameNo;
use tidelog_wal::shm::{SHM_HEADER_LEN, ShmError, WalIndexHeader};
use wal_common::{Pages, create, view};

const COMMITS: u32 = 3_000;

/// Reads headers until one is stable.
fn published(shm: &File, torn: &mut u64) -> WalIndexHeader {
    loop {
        let mut bytes = [0; SHM_HEADER_LEN];
        shm.read_full_at(0, &mut bytes).expect("read");
        match WalIndexHeader::decode(&bytes) {
            Ok(header) => return header,
            Err(ShmError::Unstable { .. }) => *torn += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn every_commit_of_a_running_writer_is_seen_once_and_whole() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("live.db");
    let conn = create(&path, "PRAGMA page_size=512; PRAGMA cache_size=2;");
    conn.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); PRAGMA wal_checkpoint(TRUNCATE)",
    )
    .expect("create");
    let size = PageSize::new(512).expect("512");
    let mut state: Pages = view(&conn).expect("view");
    // Own descriptors, closed after the connection: closing one drops its locks (HAZARDS W0a).
    let shm = File::open(folder.path().join("live.db-shm")).expect("shm");
    let wal = File::open(folder.path().join("live.db-wal")).expect("wal");
    let (mut torn, mut seen, mut batches) = (0, 0, 0);
    let start = published(&shm, &mut torn);
    let done = AtomicBool::new(false);

    let conn = std::thread::scope(|scope| {
        let (looked, looks) = mpsc::channel();
        let done = &done;
        let writer = scope.spawn(move || {
            for i in 0..COMMITS {
                // Spills, then rolls back; the frames stay behind the published end (HAZARDS W4).
                conn.execute_batch(&format!(
                    "BEGIN; INSERT INTO t VALUES({i}, randomblob(3000)); ROLLBACK;
                     INSERT INTO t VALUES({i}, randomblob({}))",
                    i % 700
                ))
                .expect("write");
                // The reader looks at least once each time, however the threads are scheduled.
                if i % 100 == 0 {
                    let _ = looks.recv();
                }
            }
            done.store(true, Ordering::SeqCst);
            conn
        });
        let mut cursor = PublishedCursor::new(0);
        let mut scratch = vec![0; size.bytes()];
        let mut frame = FrameNo::ZERO;
        loop {
            let last = done.load(Ordering::SeqCst);
            let header = published(&shm, &mut torn);
            cursor.begin(frame, &header).expect("one life");
            while let Some(commit) = cursor
                .next_commit(&wal)
                .expect("published frames are whole")
            {
                state.resize(commit.n_after.get() as usize, vec![0; size.bytes()]);
                for entry in commit.pages {
                    let image = commit
                        .image(&wal, entry.frame, &mut scratch)
                        .expect("image");
                    state[entry.page.get() as usize - 1].copy_from_slice(image);
                }
                frame = commit.last;
                seen += 1;
            }
            batches += 1;
            let _ = looked.send(());
            assert_eq!(
                seen,
                header.change.wrapping_sub(start.change),
                "iChange counts commits"
            );
            if last {
                break;
            }
        }
        writer.join().expect("writer")
    });
    assert_eq!(seen, COMMITS);
    assert!(
        batches > 30,
        "reader and writer ran side by side: {batches} batches, {torn} torn reads"
    );
    assert!(
        state == view(&conn).expect("view"),
        "the followed state is the writer's"
    );
}
