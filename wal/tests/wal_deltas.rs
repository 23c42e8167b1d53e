//! Deltas made from the WAL of random histories lead to what SQLite sees, forward and backward.

mod wal_common;

use rusqlite::Connection;
use tidelog_testkit::history::{History, Host, Options};
use tidelog_testkit::oracle::Oracle;
use tidelog_testkit::recorder::{Recorded, Recorder};
use tidelog_wal::page::unmask_page1;
use tidelog_wal::{Digest, DigestSeed, PageCount, PageSize, TxId};
use wal_common::{create, view};

const SEED: DigestSeed = DigestSeed::new(0x5eed);

/// The digest after a commit, from its pages alone.
fn moved(digest: Digest, commit: &Recorded, size: PageSize) -> Digest {
    let (before, after) = (commit.n_before, commit.n_after);
    let start = digest.resize(before, after, size);
    commit.pages.iter().fold(start, |digest, pair| {
        let hash = |n: PageCount, image: &[u8]| {
            if n.contains(pair.page) {
                SEED.page(pair.page, image)
            } else {
                tidelog_wal::digest::PageHash::ABSENT
            }
        };
        digest.replace(hash(before, &pair.old), hash(after, &pair.new))
    })
}

struct Followed {
    conn: Connection,
    recorder: Recorder,
    oracle: Oracle,
    digest: Digest,
    size: PageSize,
}

impl Followed {
    fn take(&mut self, commits: &[Recorded], context: &str) {
        for commit in commits {
            self.digest = moved(self.digest, commit, self.size);
            self.oracle
                .apply(commit.n_before, commit.n_after, &commit.delta(self.size))
                .unwrap_or_else(|error| panic!("{context}: {error}"));
        }
    }
}

#[test]
fn deltas_of_random_histories_lead_to_what_sqlite_sees_and_back_to_nothing() {
    for seed in 0..60 {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("live.db");
        let mut history = History::new(seed, Options::default());
        let conn = create(&path, &history.setup().pragmas());
        view(&conn).expect("opens the wal-index");
        let size = PageSize::new(history.setup().page_size).expect("valid");
        // `journal_mode=WAL` writes page 1 past the WAL: the recorder starts behind that.
        conn.execute_batch("CREATE TABLE first(a)").expect("create");
        let (recorder, import) = Recorder::start(&path, size).expect("start");
        let mut followed = Followed {
            conn,
            recorder,
            oracle: Oracle::new(size),
            digest: Digest::empty(size),
            size,
        };
        followed.take(&[import], "import");
        for _ in 0..40 {
            let step = history.step();
            let context = format!("{}: {step}", history.reproduction());
            if let Err(error) = followed.conn.run(&step) {
                panic!("{context}: {error}");
            }
            let commits = followed.recorder.record();
            let commits = commits.unwrap_or_else(|error| panic!("{context}: {error}"));
            followed.take(&commits, &context);
            if let Err(error) = followed.oracle.check_live(&followed.conn) {
                panic!("{context}: {error}");
            }
            assert_eq!(followed.digest, followed.oracle.digest(SEED), "{context}");
        }
        let states = followed.oracle.replay_backward();
        let states = states.unwrap_or_else(|error| panic!("{}: {error}", history.reproduction()));
        assert_eq!(states as u64, followed.oracle.head().get());
    }
}

#[test]
fn the_oracle_finds_a_changed_page_a_lost_commit_and_a_wrong_file() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("live.db");
    let conn = create(&path, "PRAGMA page_size=1024;");
    conn.execute_batch("CREATE TABLE t(a)").expect("create");
    let size = PageSize::new(1024).expect("1024");
    let (mut recorder, import) = Recorder::start(&path, size).expect("start");
    let mut oracle = Oracle::new(size);
    let apply = |oracle: &mut Oracle, commit: &Recorded| {
        oracle.apply(commit.n_before, commit.n_after, &commit.delta(size))
    };
    apply(&mut oracle, &import).expect("import");
    conn.execute_batch("INSERT INTO t VALUES(1); INSERT INTO t VALUES(randomblob(3000))")
        .expect("insert");
    assert!(oracle.check_live(&conn).is_err(), "two commits behind");
    let commits = recorder.record().expect("record");
    assert!(
        apply(&mut oracle.clone(), &commits[1]).is_ok(),
        "page counts happen to follow"
    );
    let mut skipped = oracle.clone();
    apply(&mut skipped, &commits[1]).expect("follows by size");
    assert!(skipped.check_live(&conn).is_err(), "a commit was lost");
    for commit in &commits {
        apply(&mut oracle, commit).expect("follows");
    }
    oracle.check_live(&conn).expect("equal");
    assert!(apply(&mut oracle, &import).is_err(), "starts elsewhere");
    assert_eq!(oracle.replay_backward().expect("back to nothing"), 3);
    assert!(
        !oracle
            .same_state(TxId::new(2), TxId::new(3))
            .expect("known")
    );
    assert!(
        oracle
            .same_state(TxId::new(2), TxId::new(2))
            .expect("known")
    );

    let pages = view(&conn).expect("view");
    let mut file = pages.concat();
    unmask_page1(&mut file[..1024], TxId::new(3));
    let restored = folder.path().join("restored.db");
    std::fs::write(&restored, &file).expect("write");
    oracle.check_file(TxId::new(3), &restored).expect("equal");
    assert!(oracle.check_file(TxId::new(2), &restored).is_err());
    file[2000] ^= 1;
    std::fs::write(&restored, &file).expect("write");
    let error = oracle
        .check_file(TxId::new(3), &restored)
        .expect_err("flipped");
    assert_eq!(
        error.to_string(),
        "0000000000000003: page 2 differs in the file"
    );
}
