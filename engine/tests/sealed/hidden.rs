//! Nothing that was written shows in what leaves the databases' own files: bucket, journal, spools, scratch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidelog_engine::bucket::At;
use tidelog_engine::operations::OperationState;
use tidelog_engine::travel::archives::{Format, NewArchive};
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::travel::verify::{Level, NewVerification};
use tidelog_engine::{Durability, Engine, MasterKeys, Parts, Settings};
use tidelog_testkit::faultstore::{Fault, Op, script};

use super::world::{
    PLANTED, count, execute, faulty, files, fill, find, make, masters, run, settings, settled,
    start, succeeded,
};

/// The files below `folder` that hold one of `texts`.
fn showing(folder: &Path, texts: &[&[u8]]) -> Vec<PathBuf> {
    let shows = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        texts
            .iter()
            .any(|text| bytes.windows(text.len()).any(|window| window == *text))
    };
    files(folder).into_iter().filter(shows).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_planted_shows_in_bucket_journal_and_spools() {
    // Goal: stolen bucket, journal and spools are worthless. Method: planted text in rows of small and spooled
    // commits, in names; every file of the bucket and of the data folder but SQLite's own is searched, first with
    // everything stored, then while a node ships nothing, so that a spool stands. Sealed, and, to see that the search
    // finds, plain. Key bytes are searched for too.
    let name = b"orders-of-acme";
    let is_spool = |path: &PathBuf| path.extension().is_some_and(|e| e == "spool");
    for keys in [masters(&[("k1", 1)]), MasterKeys::default()] {
        let folder = tempfile::tempdir().expect("tempdir");
        let engine = start(folder.path(), &keys).await;
        let database = make(&engine, "orders-of-acme").await;
        fill(&database).await;
        settled(folder.path()).await;
        // In the open chunk, not shipped.
        let sql = format!("INSERT INTO t(b) VALUES('{PLANTED}')");
        execute(&database, &sql, Durability::Local)
            .await
            .expect("local");
        let key: Vec<u8> = (1..=32).collect();
        let texts: [&[u8]; 3] = [&PLANTED.as_bytes()[..24], name, &key];
        let store = showing(&folder.path().join("store"), &texts);
        let journal = showing(&folder.path().join("data/journal"), &texts);
        if keys.is_empty() {
            assert!(!store.is_empty() && !journal.is_empty(), "the search finds");
        } else {
            assert_eq!((store, journal), (Vec::new(), Vec::new()));
        }
        engine.shutdown().await.expect("shutdown");
        drop((database, engine));

        let slow = Settings {
            ship_interval: Duration::from_hours(1),
            ..settings(folder.path(), &keys)
        };
        let engine = Engine::start(slow, Parts::production()).await;
        let engine = engine.expect("start");
        let database = find(&engine, "orders-of-acme").await.expect("there");
        let sql = format!(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < 60) \
             INSERT INTO t(b) SELECT hex(randomblob(2000)) || '{PLANTED}' FROM c"
        );
        execute(&database, &sql, Durability::Local)
            .await
            .expect("local");
        let spools = files(&folder.path().join("data/journal"));
        let spools: Vec<PathBuf> = spools.into_iter().filter(is_spool).collect();
        assert!(!spools.is_empty(), "a spool stands");
        let shown = outside_sqlite(folder.path(), &texts);
        if keys.is_empty() {
            let found = spools.iter().any(|spool| shown.contains(spool));
            assert!(found, "the search finds it: {shown:?}");
        } else {
            assert_eq!(shown, Vec::<PathBuf>::new());
        }
        engine.shutdown().await.expect("shutdown");
    }
}

/// The files of the data folder that hold one of `texts`, but for those of the databases.
fn outside_sqlite(folder: &Path, texts: &[&[u8]]) -> Vec<PathBuf> {
    let data = folder.join("data");
    let mut shown = showing(&data, texts);
    shown.retain(|path| !path.starts_with(data.join("databases")));
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_databases_the_scratch_copies_of_long_work_alone_show_text() {
    // Goal: docs/security.md names every place where plain copies stand. Method: the data folder is searched while the
    // PUT of an archive is held up, and again and again while it is verified and the database is restored in place.
    let folder = tempfile::tempdir().expect("tempdir");
    let (faults, store) = faulty(script(|call| {
        let archive = call.key.contains("/archives/");
        let writes = matches!(call.op, Op::Put | Op::Upload);
        if archive && writes {
            Fault::Hold
        } else {
            Fault::None
        }
    }));
    let keys = masters(&[("k1", 1)]);
    let started = Engine::start_on(settings(folder.path(), &keys), Parts::production(), store);
    let engine = started.await.expect("start");
    let database = make(&engine, "orders").await;
    let middle = run(&database, &format!("INSERT INTO t(b) VALUES('{PLANTED}')")).await;
    fill(&database).await;
    let texts: [&[u8]; 1] = [&PLANTED.as_bytes()[..24]];
    let (data, work) = (folder.path().join("data"), folder.path().join("data/work"));
    let allowed = |shown: &[PathBuf]| {
        let allowed = ["work", "scratch", "temp"].map(|name| data.join(name));
        let strange = shown
            .iter()
            .find(|path| !allowed.iter().any(|folder| path.starts_with(folder)));
        assert_eq!(strange, None);
    };

    let new = NewArchive::of(At::Latest, Format::Sqlite);
    let making = database.archive_create(new).await;
    let deadline = tokio::time::Instant::now() + Duration::from_mins(3);
    while !faults
        .calls()
        .iter()
        .any(|call| call.key.contains("/archives/") && matches!(call.op, Op::Put | Op::Upload))
    {
        assert!(tokio::time::Instant::now() < deadline, "no archive comes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shown = outside_sqlite(folder.path(), &texts);
    assert!(
        shown.iter().any(|path| path.starts_with(&work)),
        "the copy that is packed: {shown:?}"
    );
    allowed(&shown);
    faults.set_plan(script(|_| Fault::None));
    faults.let_go();
    let made = succeeded(making).await;
    let id = made["archive"]["id"].as_str().expect("an id").to_owned();
    for round in 0..3 {
        let begun = match round {
            0 => database.archive_verify(&id, None).await,
            1 => database.verify(NewVerification::of(Level::Full)).await,
            _ => {
                let target = RestoreTarget::At(At::Bookmark(middle));
                database.rewind(Rewind::to(target)).await
            }
        };
        let mut handle = begun.expect("begun");
        let ended = loop {
            allowed(&outside_sqlite(folder.path(), &texts));
            let soon = handle.wait(Duration::from_millis(1)).await;
            if soon.state.is_final() {
                break soon;
            }
        };
        assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    }
    assert_eq!(count(&database).await, 1);
    drop((database, engine.shutdown().await));
    assert_eq!(outside_sqlite(folder.path(), &texts), Vec::<PathBuf>::new());
}
