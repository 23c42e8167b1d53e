//! The smallest, the usual and the largest page: whatever a tenant does to its pages, every bookmark restores, from
//! the bucket alone, to what a plain SQLite twin held at that commit (I2, I3; HAZARDS W4, W16, W17, W20, W30).

mod rig;
#[allow(dead_code, reason = "the dump is all that is needed of it")]
mod twin;

use rusqlite::Connection;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::sql::connection::AutoVacuum;
use tidelog_engine::{Code, Durability, Engine, NewDatabase, Parts, Settings, TakeOver};
use tidelog_wal::{PageSize, Position};

/// Rows numbered from `first`, of a few hundred bytes each, the same in both databases.
fn rows(first: u32, count: u32) -> String {
    format!(
        "WITH RECURSIVE c(x) AS (SELECT {first} UNION ALL SELECT x+1 FROM c WHERE x < {first}+{count}-1) \
         INSERT INTO t(a, b) SELECT x, x || '-' || hex(x*2654435761) || substr(hex(zeroblob(400)), 1, 200 + x%500) || x*7919 FROM c"
    )
}

/// Transactions, in order; a page cache is 256 KiB, and the large ones exceed it several times.
fn transactions() -> Vec<Vec<String>> {
    let one = |sql: &str| vec![sql.to_owned()];
    let mut all = vec![
        one("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c)"),
        vec![rows(1, 3000)],
        one("CREATE INDEX t_b ON t(b)"),
        one("CREATE TABLE w(k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID"),
        one("INSERT INTO w SELECT b, zeroblob(a % 3000) FROM t WHERE a <= 400"),
        one("CREATE VIRTUAL TABLE f USING fts5(body)"),
        one(
            "INSERT INTO f SELECT 'number ' || a || ' of ' || substr(b, 1, 9) FROM t WHERE a <= 500",
        ),
        // Every page again, and some of them twice in one transaction.
        vec![
            "UPDATE t SET b = b || a".to_owned(),
            "UPDATE t SET b = substr(b, 2) WHERE a % 3 = 0".to_owned(),
        ],
        vec![
            "ALTER TABLE t ADD COLUMN d DEFAULT 5".to_owned(),
            "ALTER TABLE t RENAME COLUMN d TO e".to_owned(),
            "ALTER TABLE w RENAME TO wide".to_owned(),
        ],
        one("ALTER TABLE t DROP COLUMN c"),
        one("UPDATE f SET body = body || ' again' WHERE rowid % 5 = 0"),
        // Shrinks and grows again: what lay there before must not come back.
        one("DELETE FROM t WHERE a > 300"),
        one("PRAGMA incremental_vacuum(40)"),
        vec![rows(4000, 1500)],
        one("VACUUM"),
        one("DROP TABLE wide"),
        one("PRAGMA incremental_vacuum"),
        // Beyond the end that the transaction leaves: frames of pages that it gives back itself.
        vec![
            rows(10_000, 2000),
            "DELETE FROM t WHERE a >= 10000 AND a % 50 <> 0".to_owned(),
            "INSERT INTO f VALUES('the end of a large transaction')".to_owned(),
        ],
        vec![rows(20_000, 700)],
        one("DELETE FROM f"),
        one("DROP TABLE f"),
        one("VACUUM"),
    ];
    for i in 0..40 {
        all.push(vec![format!("UPDATE t SET e = e + {i} WHERE a % 41 = {i}")]);
        all.push(vec![format!(
            "INSERT INTO t(b, e) VALUES(hex(zeroblob({})), {i})",
            i * 37
        )]);
    }
    all
}

async fn check(bucket: &Bucket, promises: &[(Position, blake3::Hash)]) {
    let found = bucket.find("acme", "orders").await.expect("find");
    for (bookmark, dump) in promises {
        let restored = rig::restored(bucket, &found, At::Bookmark(*bookmark)).await;
        let (_folder, restored) = restored.unwrap_or_else(|e| panic!("{bookmark}: {e:?}"));
        assert_eq!(twin::dump(&restored), *dump, "{bookmark}");
    }
}

async fn every_bookmark_restores(page_size: u32, auto_vacuum: AutoVacuum) {
    let folder = tempfile::tempdir().expect("tempdir");
    let settings = Settings {
        spool_bytes: 100 << 10,
        wal_backfill_bytes: 32 << 10,
        wal_soft_bytes: 256 << 10,
        ..rig::settings(folder.path())
    };
    let plain = Connection::open_in_memory().expect("twin");
    let mode = match auto_vacuum {
        AutoVacuum::None => 0,
        AutoVacuum::Full => 1,
        AutoVacuum::Incremental => 2,
    };
    plain
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={mode}"
        ))
        .expect("setup");
    let engine = Engine::start(settings.clone(), Parts::production());
    let engine = engine.await.expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase {
        page_size: PageSize::new(page_size).expect("a page size"),
        auto_vacuum,
        ..NewDatabase::named("orders")
    };
    let database = engine.database_create(namespace.id, new).await;
    let database = database.expect("create");
    let mut promises = Vec::new();
    for statements in transactions() {
        let texts: Vec<&str> = statements.iter().map(String::as_str).collect();
        let level = match promises.len() % 3 {
            0 => Durability::Local,
            _ => Durability::Memory,
        };
        let done = database.execute(rig::request(&texts, level)).await;
        let done = done.unwrap_or_else(|e| panic!("{texts:?}: {e:?}"));
        for sql in &texts {
            let mut statement = plain.prepare(sql).expect(sql);
            let mut rows = statement.query([]).expect(sql);
            while rows.next().expect(sql).is_some() {}
        }
        promises.push((done.bookmark, twin::dump(&plain)));
    }
    // What is rolled back leaves no commit, though it spilled frames.
    let undone = [
        rows(50_000, 2000),
        "INSERT INTO t(a) VALUES(50000)".to_owned(),
    ];
    let undone = [undone[0].as_str(), undone[1].as_str()];
    let refused = database
        .execute(rig::request(&undone, Durability::Local))
        .await;
    assert_eq!(refused.expect_err("a key twice").code(), Code::SqlError);
    let last = "UPDATE t SET e = 0 WHERE a < 100";
    let bookmark = rig::run(&database, last, Durability::Remote).await;
    plain.execute_batch(last).expect("twin");
    promises.push((bookmark, twin::dump(&plain)));

    let bucket = rig::bucket(folder.path()).await.expect("bucket");
    check(&bucket, &promises).await;
    engine.shutdown().await.expect("shutdown");
    drop((engine, database));
    let bucket = rig::bucket(folder.path()).await.expect("bucket");
    rig::verify(&bucket).await;

    std::fs::remove_dir_all(&settings.data).expect("lose the machine");
    let taking = Settings {
        take_over: TakeOver::All,
        ..settings
    };
    let engine = Engine::start(taking.clone(), Parts::production()).await;
    let engine = engine.expect("take over");
    let database = rig::orders(&engine).await;
    let sql = rows(60_000, 300);
    let bookmark = rig::run(&database, &sql, Durability::Remote).await;
    plain.execute_batch(&sql).expect("twin");
    promises.push((bookmark, twin::dump(&plain)));
    let bucket = rig::bucket(folder.path()).await.expect("bucket");
    check(
        &bucket,
        promises.get(promises.len() - 3..).unwrap_or_default(),
    )
    .await;
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_512_bytes_that_vacuum_themselves() {
    every_bookmark_restores(512, AutoVacuum::Full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_4096_bytes_that_vacuum_when_told() {
    every_bookmark_restores(4096, AutoVacuum::Incremental).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_65536_bytes_that_vacuum_themselves() {
    every_bookmark_restores(65_536, AutoVacuum::Full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_65536_bytes_that_stay() {
    every_bookmark_restores(65_536, AutoVacuum::None).await;
}
