//! Our committed view of a WAL equals what SQLite recovers from it, page by page (RELIABILITY class 11).

mod wal_common;

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use tempfile::TempDir;
use tidelog_wal::PageSize;
use tidelog_wal::checksum::ByteOrder;
use tidelog_wal::cursor::PublishedCursor;
use tidelog_wal::frame::FrameNo;
use tidelog_wal::shm::{SHM_HEADER_LEN, WalIndexHeader};
use wal_common::{Pages, SMALL_WINDOW, apply, create, ours, recovered, reencoded, view};

struct Live {
    folder: TempDir,
    conn: Connection,
    size: PageSize,
}

impl Live {
    fn new(size: u32, auto_vacuum: u32, cache: u32) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let conn = create(
            &folder.path().join("live.db"),
            &format!(
                "PRAGMA page_size={size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA cache_size={cache};"
            ),
        );
        let size = PageSize::new(size).expect("valid");
        Self { folder, conn, size }
    }

    fn run(&self, sql: &str) {
        self.conn.execute_batch(sql).expect(sql);
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap_or_default()
    }

    fn files(&self) -> (Vec<u8>, Vec<u8>) {
        (self.file("live.db"), self.file("live.db-wal"))
    }

    fn header(&self) -> WalIndexHeader {
        let shm = self.file("live.db-shm");
        WalIndexHeader::decode(&shm[..SHM_HEADER_LEN]).expect("no writer runs")
    }
}

/// Both views of these files, cut short or changed.
fn assert_same_view(folder: &Path, db: &[u8], wal: &[u8], size: PageSize, what: &str) {
    match recovered(folder, db, wal) {
        Ok(sqlite) => assert!(sqlite == ours(db, wal, size), "{what}: views differ"),
        Err(error) => panic!("{what}: SQLite refuses: {error}"),
    }
}

/// Three small WALs: plain commits; spill with rollbacks and savepoints; a shrinking auto-vacuum.
fn small_wals() -> Vec<(Vec<u8>, Vec<u8>)> {
    let plain = Live::new(512, 0, 100);
    plain.run("CREATE TABLE t(a); INSERT INTO t VALUES('x'); INSERT INTO t VALUES(zeroblob(900))");

    let spill = Live::new(512, 0, 1);
    spill.run("CREATE TABLE t(a, b)");
    spill.run("BEGIN; INSERT INTO t VALUES(1, randomblob(2000)); ROLLBACK");
    spill.run(
        "BEGIN; INSERT INTO t VALUES(2, randomblob(1500)); SAVEPOINT s;
         UPDATE t SET b = randomblob(1200); ROLLBACK TO s; UPDATE t SET b = randomblob(700); COMMIT",
    );

    let shrink = Live::new(512, 1, 100);
    shrink.run("CREATE TABLE t(a); INSERT INTO t VALUES(randomblob(1800))");
    shrink.run("PRAGMA wal_checkpoint(TRUNCATE)");
    shrink.run("DELETE FROM t; INSERT INTO t VALUES('y'); INSERT INTO t VALUES(randomblob(800))");
    [plain, spill, shrink].iter().map(Live::files).collect()
}

#[test]
fn every_truncation_recovers_what_sqlite_recovers() {
    let folder = tempfile::tempdir().expect("folder");
    let size = PageSize::new(512).expect("512");
    for (n, (db, wal)) in small_wals().iter().enumerate() {
        for len in 0..=wal.len() {
            let what = format!("WAL {n} cut to {len}");
            assert_same_view(folder.path(), db, &wal[..len], size, &what);
        }
    }
}

#[test]
fn every_flipped_byte_recovers_what_sqlite_recovers() {
    let folder = tempfile::tempdir().expect("folder");
    let size = PageSize::new(512).expect("512");
    for (n, (db, wal)) in small_wals().iter().enumerate() {
        let mut bad = wal.clone();
        for at in 0..wal.len() {
            bad[at] ^= 1 << (at % 8);
            let what = format!("WAL {n} with byte {at} flipped");
            assert_same_view(folder.path(), db, &bad, size, &what);
            bad[at] = wal[at];
        }
    }
}

#[test]
fn an_unknown_version_is_refused_by_both() {
    let folder = tempfile::tempdir().expect("folder");
    let (db, mut wal) = small_wals().swap_remove(0);
    wal[7] ^= 1;
    let order = ByteOrder::Little;
    let sums = tidelog_wal::checksum::Checksum::ZERO.update(order, &wal[..24]);
    wal[24..32].copy_from_slice(&sums.to_be_bytes());
    assert!(recovered(folder.path(), &db, &wal).is_err());
    assert!(tidelog_wal::cursor::ProvenCursor::open(&wal, SMALL_WINDOW).is_err());
}

/// Follows a live database through the wal-index, as capture does.
struct Follower {
    cursor: PublishedCursor,
    state: Pages,
    header: WalIndexHeader,
    frame: FrameNo,
}

impl Follower {
    /// At the state the database file holds.
    fn new(live: &Live) -> Self {
        let header = live.header();
        assert_eq!(header.max_frame, FrameNo::ZERO);
        Self {
            cursor: PublishedCursor::new(SMALL_WINDOW),
            state: view(&live.conn).expect("view"),
            header,
            frame: FrameNo::ZERO,
        }
    }

    /// Applies what was committed since; what it cuts is what iChange counts.
    fn follow(&mut self, live: &Live) {
        let header = live.header();
        if header.salts != self.header.salts {
            self.frame = FrameNo::ZERO;
        }
        let wal = live.file("live.db-wal");
        self.cursor.begin(self.frame, &header).expect("same life");
        let mut commits = 0;
        while let Some(commit) = self.cursor.next_commit(&wal).expect("published") {
            assert_eq!(Some(commit.first), self.frame.next());
            assert!(
                commit.pages.is_sorted() && commit.pages.iter().all(|p| p.frame <= commit.last)
            );
            apply(&mut self.state, &commit, &wal, live.size);
            self.frame = commit.last;
            commits += 1;
        }
        assert_eq!(self.frame, header.max_frame);
        assert_eq!(commits, header.change.wrapping_sub(self.header.change));
        self.header = header;
    }
}

fn random_step(rng: &mut StdRng) -> String {
    let id = rng.random_range(1..40);
    let len = if rng.random_bool(0.1) {
        rng.random_range(0..60_000)
    } else {
        rng.random_range(0..300)
    };
    match rng.random_range(0..16) {
        0..6 => format!("INSERT OR REPLACE INTO t VALUES({id}, randomblob({len}), {len})"),
        6..9 => format!(
            "UPDATE t SET v = randomblob({len}) WHERE id BETWEEN {id} AND {}",
            id + 5
        ),
        9 => format!("DELETE FROM t WHERE id < {id}"),
        10 => "UPDATE t SET n = n".to_owned(),
        11 => format!(
            "CREATE TABLE IF NOT EXISTS u{id}(a UNIQUE); INSERT INTO u{id} VALUES({len}) ON CONFLICT DO NOTHING"
        ),
        12 => format!("DROP TABLE IF EXISTS u{id}"),
        13 => format!("PRAGMA incremental_vacuum({id})"),
        14 => "REINDEX".to_owned(),
        _ => format!(
            "INSERT INTO t SELECT id + 100, randomblob({len}), n FROM t WHERE id < 50 ON CONFLICT DO NOTHING"
        ),
    }
}

fn random_transaction(live: &Live, rng: &mut StdRng) {
    if rng.random_bool(0.04) {
        return live.run("VACUUM");
    }
    live.run("BEGIN IMMEDIATE");
    let mut depth = 0;
    for _ in 0..rng.random_range(1..6) {
        live.run(&random_step(rng));
        match rng.random_range(0..6) {
            0 => {
                depth += 1;
                live.run(&format!("SAVEPOINT s{depth}"));
            }
            1 if depth > 0 => live.run(&format!("ROLLBACK TO s{depth}")),
            2 if depth > 0 => {
                live.run(&format!("RELEASE s{depth}"));
                depth -= 1;
            }
            _ => {}
        }
    }
    live.run(if rng.random_bool(0.15) {
        "ROLLBACK"
    } else {
        "COMMIT"
    });
}

#[test]
fn random_workloads_are_followed_and_recovered_as_sqlite_does() {
    let folder = tempfile::tempdir().expect("folder");
    let mut life_changes = 0;
    for seed in 0..200 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let size = 512 << rng.random_range(0..8);
        let cache = [1, 1, 5, 1000][rng.random_range(0..4)];
        let live = Live::new(size, rng.random_range(0..3), cache);
        live.run(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB, n INT); CREATE INDEX i ON t(n, v)",
        );
        live.run("PRAGMA wal_checkpoint(TRUNCATE)");
        let mut follower = Follower::new(&live);
        for step in 0..12 {
            random_transaction(&live, rng);
            if rng.random_bool(0.6) {
                let old = follower.header.salts;
                follower.follow(&live);
                life_changes += usize::from(old != follower.header.salts);
                assert!(
                    follower.state == view(&live.conn).expect("view"),
                    "seed {seed} step {step}: published view differs"
                );
                if rng.random_bool(0.2) {
                    live.run("PRAGMA wal_checkpoint(PASSIVE)");
                }
            }
        }
        follower.follow(&live);
        let (db, wal) = live.files();
        let sqlite = recovered(folder.path(), &db, &wal).expect("recovers");
        assert!(
            sqlite == follower.state,
            "seed {seed}: published and recovered differ"
        );
        for order in [ByteOrder::Little, ByteOrder::Big] {
            if wal.is_empty() {
                continue;
            }
            let wal = reencoded(&wal, order);
            let what = format!("seed {seed} order {order:?}");
            assert_same_view(folder.path(), &db, &wal, live.size, &what);
            // Of a WAL already copied into the file no part alone is a state that SQLite could recover.
            if live.header().backfilled == FrameNo::ZERO {
                let cut = rng.random_range(0..=wal.len());
                let what = format!("{what} cut to {cut}");
                assert_same_view(folder.path(), &db, &wal[..cut], live.size, &what);
            }
            assert_eq!(ours(&db, &wal, live.size), sqlite, "{what}");
        }
    }
    assert!(
        life_changes > 20,
        "the workloads restart the WAL: {life_changes}"
    );
}

#[test]
fn frames_of_another_life_or_a_missing_end_are_a_discontinuity() {
    let live = Live::new(4096, 0, 100);
    live.run("CREATE TABLE t(a); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2)");
    let header = live.header();
    let wal = live.file("live.db-wal");
    let mut cursor = PublishedCursor::new(SMALL_WINDOW);
    let mut read = |header: &WalIndexHeader, wal: &[u8], from: u32| {
        cursor.begin(FrameNo::new(from), header)?;
        let mut commits = 0;
        while cursor.next_commit(wal)?.is_some() {
            commits += 1;
        }
        Ok::<_, tidelog_wal::cursor::WalError>(commits)
    };
    assert_eq!(read(&header, &wal, 0).expect("good"), 3);
    assert_eq!(read(&header, &wal, 4).expect("at the end"), 0);
    assert!(read(&header, &wal, 5).is_err(), "behind the end");
    assert!(
        read(&header, &wal[..wal.len() - 1], 0).is_err(),
        "short file"
    );
    let other = WalIndexHeader {
        salts: tidelog_wal::header::Salts::default(),
        ..header
    };
    assert!(read(&other, &wal, 0).is_err(), "salts");
    let other = WalIndexHeader {
        checksum: tidelog_wal::checksum::Checksum::ZERO,
        ..header
    };
    assert!(read(&other, &wal, 0).is_err(), "checksum");
    let other = WalIndexHeader {
        n_pages: tidelog_wal::PageCount::new(99),
        ..header
    };
    assert!(read(&other, &wal, 0).is_err(), "page count");
    let other = WalIndexHeader {
        max_frame: FrameNo::new(1),
        ..header
    };
    assert!(read(&other, &wal, 0).is_err(), "no commit frame");
}
