//! What the WAL tests share: SQLite's view of a database, ours, and WALs in the other byte order.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tidelog_wal::checksum::ByteOrder;
use tidelog_wal::cursor::{Commit, ProvenCursor};
use tidelog_wal::frame::{FRAME_HEADER_LEN, FrameHeader, frame_len};
use tidelog_wal::header::{WAL_HEADER_LEN, WalHeader};
use tidelog_wal::{PageNo, PageSize};

/// The pages of a state, as they are.
pub(crate) type Pages = Vec<Vec<u8>>;

/// A window so small that transactions of the tests cross it: one frame of the largest pages.
pub(crate) const SMALL_WINDOW: usize = 0;

/// Opens a database as the engine does: no checkpoint but ours.
pub(crate) fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).expect("open");
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .expect("config");
    conn
}

/// A new database in WAL mode with these pragmas run before anything is stored.
pub(crate) fn create(path: &Path, pragmas: &str) -> Connection {
    let conn = open(path);
    conn.execute_batch(&format!(
        "{pragmas} PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=NORMAL;"
    ))
    .expect("pragmas");
    conn
}

/// Every page as a connection sees it.
pub(crate) fn view(conn: &Connection) -> rusqlite::Result<Pages> {
    conn.prepare_cached("SELECT data FROM sqlite_dbpage ORDER BY pgno")?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// What SQLite recovers from these two files; an error is SQLite's refusal.
pub(crate) fn recovered(folder: &Path, db: &[u8], wal: &[u8]) -> rusqlite::Result<Pages> {
    let path = folder.join("recovered.db");
    fs::write(&path, db).expect("write database");
    fs::write(folder.join("recovered.db-wal"), wal).expect("write WAL");
    let _ = fs::remove_file(folder.join("recovered.db-shm"));
    view(&open(&path))
}

/// Applies a commit to pages: resized first, for a later growth must not show what was cut (HAZARDS W17).
pub(crate) fn apply(state: &mut Pages, commit: &Commit<'_>, wal: &[u8], size: PageSize) {
    state.resize(commit.n_after.get() as usize, vec![0; size.bytes()]);
    let mut scratch = vec![0; size.bytes()];
    for entry in commit.pages {
        let image = commit
            .image(wal, entry.frame, &mut scratch)
            .expect("frame of the commit");
        state[entry.page.get() as usize - 1].copy_from_slice(image);
    }
}

/// Our recovered view of the same two files.
pub(crate) fn ours(db: &[u8], wal: &[u8], size: PageSize) -> Pages {
    let mut state: Pages = db.chunks(size.bytes()).map(<[u8]>::to_vec).collect();
    if let Some(mut cursor) = ProvenCursor::open(wal, SMALL_WINDOW).expect("known version") {
        while let Some(commit) = cursor.next_commit(wal).expect("reading memory") {
            apply(&mut state, &commit, wal, size);
        }
    }
    state
}

/// The same WAL with checksums over words of `order`, stale frames behind its end left out.
pub(crate) fn reencoded(wal: &[u8], order: ByteOrder) -> Vec<u8> {
    let old = WalHeader::decode(wal).expect("good header");
    let new = WalHeader::new(order, old.page_size, old.sequence, old.salts);
    let mut out = new.encode().to_vec();
    let (mut old_chain, mut chain) = (old.checksum, new.checksum);
    for frame in wal[WAL_HEADER_LEN..].chunks_exact(frame_len(old.page_size)) {
        let (head, image) = frame.split_at(FRAME_HEADER_LEN);
        let Ok(head) = FrameHeader::decode(head) else {
            break;
        };
        if head.salts != old.salts || !head.continues(image, old.order, old_chain) {
            break;
        }
        old_chain = head.checksum;
        let head = FrameHeader::chained(head.page, head.commit, head.salts, image, (order, chain));
        chain = head.checksum;
        out.extend(head.encode());
        out.extend(image);
    }
    out
}

/// A page number in tests.
pub(crate) fn page(number: u32) -> PageNo {
    PageNo::new(number).expect("from 1")
}
