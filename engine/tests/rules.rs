//! Each rule of a change by raw pages (DESIGN 5.7) prevents something: a scenario passes while the rule holds and
//! fails as soon as it is switched off.
//!
//! Two rules have no switch. That the lock page is never written would need a database of more than 1 GiB. That
//! present pages are read through SQLite and not from the WAL by an index of ours is so because no such index exists.
//! `rewind.sound_source`, `rewind.true_records` and `rewind.sound_handle` are no rules but the damage that others are there
//! for.

mod rig;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use rig::{PATIENCE, numbers, run, try_run};
use tidelog_engine::bucket::At;
use tidelog_engine::operations::OperationState;
use tidelog_engine::rules::{RULES, switch_off};
use tidelog_engine::sql::connection::AutoVacuum;
use tidelog_engine::streams::{Results, Step, Stream};
use tidelog_engine::system::Page;
use tidelog_engine::travel::restores::Outcome;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Access, Database, Durability, Engine, Error, Limits, NewDatabase, Params, Parts, Statement,
};
use tidelog_wal::Position;

use Durability::Memory;

/// What one scenario found: nothing wrong, or what.
type Found = Result<(), String>;

async fn node(folder: &Path, auto_vacuum: AutoVacuum) -> (Engine, Database) {
    let engine = Engine::start(rig::settings(folder), Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("namespace");
    let new = NewDatabase {
        auto_vacuum,
        ..NewDatabase::named("orders")
    };
    let database = engine.database_create(namespace.id, new).await;
    (engine, database.expect("create"))
}

async fn rewind(database: &Database, at: Position) -> Found {
    let to = RestoreTarget::At(At::Bookmark(at));
    let handle = database.rewind(Rewind::to(to)).await;
    let ended = handle.expect("accepted").wait(PATIENCE).await;
    match ended.state {
        OperationState::Succeeded => Ok(()),
        _ => Err(format!("{:?}", ended.error)),
    }
}

fn equal(found: &[i64], wanted: &[i64], what: &str) -> Found {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, not {wanted:?}"))
}

/// The statement must fail for want of the table, and for nothing else.
async fn knows_no(database: &Database, sql: &str, table: &str) -> Found {
    is_gone(try_run(database, sql, Memory).await, sql, table)
}

fn is_gone<T>(found: Result<T, Error>, sql: &str, table: &str) -> Found {
    match found {
        Ok(_) => Err(format!("{sql} found a table that is gone")),
        Err(error)
            if error
                .to_string()
                .contains(&format!("no such table: {table}")) =>
        {
            Ok(())
        }
        Err(error) => Err(format!("{sql}: {error}")),
    }
}

/// Rows of a table come and go.
async fn any_rewind(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    run(&database, "CREATE TABLE t(a)", Memory).await;
    let one = run(&database, "INSERT INTO t VALUES(1)", Memory).await;
    run(&database, "INSERT INTO t VALUES(2)", Memory).await;
    rewind(&database, one).await?;
    equal(
        &numbers(&database, "SELECT sum(a) FROM t").await,
        &[1],
        "rows",
    )?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// A state with free pages that may stay comes over one that gives its free pages back with every commit.
async fn free_pages_stay(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::Full).await;
    run(&database, "CREATE TABLE t(a)", Memory).await;
    let file = folder.join("incremental.db");
    let plain = rusqlite::Connection::open(&file).expect("open");
    plain
        .execute_batch(
            "PRAGMA auto_vacuum=INCREMENTAL; VACUUM; CREATE TABLE u(x); \
             INSERT INTO u VALUES(zeroblob(40000)), (1); DELETE FROM u WHERE x <> 1; CREATE TABLE v(x)",
        )
        .expect("fill");
    let free: i64 = plain
        .query_row("PRAGMA freelist_count", [], |row| row.get(0))
        .expect("free pages");
    assert!(free > 4, "{free} free pages");
    drop(plain);
    let handle = database.replace(&file, None, None).await;
    let ended = handle.expect("accepted").wait(PATIENCE).await;
    if ended.state != OperationState::Succeeded {
        return Err(format!("{:?}", ended.error));
    }
    equal(&numbers(&database, "SELECT x FROM u").await, &[1], "rows")?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// The last page of a large zeroblob holds zeros only.
async fn grows_by_zeros(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    run(&database, "CREATE TABLE t(a)", Memory).await;
    let large = run(&database, "INSERT INTO t VALUES(zeroblob(20000))", Memory).await;
    run(&database, "DELETE FROM t", Memory).await;
    run(&database, "VACUUM", Memory).await;
    rewind(&database, large).await?;
    let length = numbers(&database, "SELECT length(a) FROM t").await;
    equal(&length, &[20000], "bytes")?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

async fn shrinks(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    let small = run(&database, "CREATE TABLE t(a)", Memory).await;
    run(
        &database,
        "INSERT INTO t VALUES(randomblob(200000))",
        Memory,
    )
    .await;
    rewind(&database, small).await?;
    equal(
        &numbers(&database, "SELECT count(*) FROM t").await,
        &[0],
        "rows",
    )?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// An idle connection knows a table; the table is taken back, and a DDL brings the cookie to where it was
/// (HAZARDS W0d).
async fn cookie_comes_again(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    let before = run(&database, "CREATE TABLE t(a)", Memory).await;
    run(&database, "CREATE TABLE u(x)", Memory).await;
    run(&database, "INSERT INTO u VALUES(1)", Memory).await;
    // The pooled reader and the writer have the schema now.
    equal(&numbers(&database, "SELECT x FROM u").await, &[1], "rows")?;
    rewind(&database, before).await?;
    // The writer makes another table; the reader sleeps, since no request is looked at first.
    let writer = database.writer().await.expect("a writer");
    let made = tokio::task::spawn_blocking(move || {
        writer.transaction(|connection| {
            connection.execute_batch("CREATE TABLE v(y); INSERT INTO v VALUES(7)")
        })
    });
    let made = made.await.expect("a thread");
    made.map_err(|error| error.to_string())?;
    knows_no(&database, "SELECT x FROM u", "u").await?;
    knows_no(&database, "INSERT INTO u VALUES(2)", "u").await?;
    equal(
        &numbers(&database, "SELECT count(*) FROM v").await,
        &[1],
        "rows",
    )?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// One statement of a stream, which keeps its connection.
async fn ask(stream: &Stream, database: &Database, sql: &str) -> Result<(), Error> {
    let (access, limits) = (Access::owner(), Limits::default());
    let turn = stream.enter(database.clone(), access, limits, Some(Memory));
    let mut turn = turn.await?;
    let step = Step {
        condition: None,
        statement: Statement {
            sql: sql.to_owned(),
            params: Params::None,
        },
        want_rows: true,
    };
    let sink = Results::of(1, limits, limits.result_bytes_max);
    let mut results = turn.program(vec![step], sink).await?;
    let result = results.steps.remove(0).expect("it ran");
    turn.finish().await?;
    turn.keep()?;
    result.map(drop)
}

/// The same with an idle stream, which looked at the table before.
async fn cookie_comes_again_to_a_stream(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    let before = run(&database, "CREATE TABLE t(a)", Memory).await;
    run(&database, "CREATE TABLE u(x)", Memory).await;
    let stream = database.stream([7; 16]).expect("a stream");
    let select = "SELECT x FROM u";
    ask(&stream, &database, select).await.expect("it is there");
    rewind(&database, before).await?;
    run(&database, "CREATE TABLE v(y)", Memory).await;
    is_gone(ask(&stream, &database, select).await, select, "u")?;
    let insert = "INSERT INTO u VALUES(2)";
    is_gone(ask(&stream, &database, insert).await, insert, "u")?;
    let rows = numbers(&database, "SELECT count(*) FROM v").await;
    equal(&rows, &[0], "rows")?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// A stream looked at a table that a rewind takes back, and sleeps; nothing else happens.
async fn cookie_stays_to_a_stream(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    let before = run(&database, "CREATE TABLE t(a)", Memory).await;
    run(&database, "CREATE TABLE u(x)", Memory).await;
    let stream = database.stream([7; 16]).expect("a stream");
    let select = "SELECT count(*) FROM u";
    ask(&stream, &database, select).await.expect("it is there");
    rewind(&database, before).await?;
    is_gone(ask(&stream, &database, select).await, select, "u")?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// An idle connection knows a table that a rewind takes back; nothing else happens.
async fn cookie_stays(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    let before = run(&database, "CREATE TABLE t(a)", Memory).await;
    run(&database, "CREATE TABLE u(x)", Memory).await;
    equal(
        &numbers(&database, "SELECT count(*) FROM u").await,
        &[0],
        "rows",
    )?;
    rewind(&database, before).await?;
    knows_no(&database, "SELECT x FROM u", "u").await?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// A log that is not what it says: it must change nothing, or all is lost.
async fn wrong_pages_change_nothing(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    run(&database, "CREATE TABLE t(a)", Memory).await;
    let one = run(&database, "INSERT INTO t VALUES(1)", Memory).await;
    let two = run(&database, "INSERT INTO t VALUES(2)", Memory).await;
    let off = switch_off(&["rewind.sound_source"]);
    let rewound = rewind(&database, one).await;
    drop(off);
    if rewound.is_ok() {
        return Err("wrong pages were written".to_owned());
    }
    let now = database
        .bookmark()
        .await
        .map_err(|error| error.to_string())?;
    if now.bookmark != two {
        return Err(format!("the database is at {}", now.bookmark));
    }
    try_run(&database, "INSERT INTO t VALUES(3)", Memory)
        .await
        .map_err(|error| error.to_string())?;
    let rows = numbers(&database, "SELECT count(*), sum(a) FROM t").await;
    equal(&rows, &[3, 6], "rows")?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// A writer stands behind a rewind that leads elsewhere than it was to: neither hears that all went well.
async fn nobody_builds_on_what_is_unproven(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    run(&database, "CREATE TABLE t(a)", Memory).await;
    let one = run(&database, "INSERT INTO t VALUES(1)", Memory).await;
    run(&database, "INSERT INTO t VALUES(2)", Memory).await;
    let held = rig::hold_gate(&database).await;
    let off = switch_off(&["rewind.sound_source", "rewind.base_proven"]);
    let to = Rewind::to(RestoreTarget::At(At::Bookmark(one)));
    let mut rewinding = database.rewind(to).await.expect("accepted");
    rig::at_gate(&engine, &rewinding).await;
    let writing = database.clone();
    let insert = "INSERT INTO t VALUES(3)";
    let writing = tokio::spawn(async move { try_run(&writing, insert, Memory).await });
    rig::queued(&engine, 2).await;
    drop(held);
    let rewound = rewinding.wait(PATIENCE).await;
    let wrote = writing.await.map_err(|error| error.to_string())?;
    drop(off);
    let said = format!("{:?}", rewound.error);
    if !said.contains("led to digest") {
        return Err(format!("pages went wrong, the rewind says {said}"));
    }
    if let Ok(at) = wrote {
        return Err(format!("a write behind it is acknowledged: {at}"));
    }
    try_run(&database, "INSERT INTO t VALUES(4)", Memory)
        .await
        .map_err(|error| error.to_string())?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

/// The database has to be opened anew right behind the change, which stands: so the restore does, with its snapshot, and
/// so does a replacement.
async fn a_change_stands_whatever_follows(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    run(&database, "CREATE TABLE t(a)", Memory).await;
    let one = run(&database, "INSERT INTO t VALUES(1)", Memory).await;
    let two = run(&database, "INSERT INTO t VALUES(2)", Memory).await;
    let off = switch_off(&["rewind.sound_handle"]);
    let to = Rewind {
        preserve_as: Some("before".to_owned()),
        ..Rewind::to(RestoreTarget::At(At::Bookmark(one)))
    };
    let handle = database.rewind(to).await;
    let ended = handle.expect("accepted").wait(PATIENCE).await;
    drop(off);
    let said = |error: Error| error.to_string();
    let rows = numbers(&database, "SELECT sum(a) FROM t").await;
    equal(&rows, &[1], "rows")?;
    if ended.state != OperationState::Succeeded {
        return Err(format!("it stands and is called {:?}", ended.error));
    }
    let restores = database.restores(Page::default()).await.map_err(said)?;
    let record = restores.items.first().expect("its record").clone();
    if record.outcome != Outcome::Succeeded || record.previous != two {
        return Err(format!("its record says {record:?}"));
    }
    let kept = database.snapshots(Page::default()).await.map_err(said)?;
    let kept: Vec<_> = kept.items.iter().map(|one| one.bookmark).collect();
    if kept != [two] {
        return Err(format!("kept is {kept:?}, not {two}"));
    }
    let undo = database.undo(&record.id, None, None).await.map_err(said)?;
    let undone = { undo }.wait(PATIENCE).await;
    if undone.state != OperationState::Succeeded {
        return Err(format!("the undo: {:?}", undone.error));
    }
    let rows = numbers(&database, "SELECT sum(a) FROM t").await;
    equal(&rows, &[3], "rows")?;

    let file = folder.join("other.db");
    let other = rusqlite::Connection::open(&file).expect("open");
    let filled = other.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(10)");
    filled.expect("fill");
    drop(other);
    let off = switch_off(&["rewind.sound_handle"]);
    let handle = database.replace(&file, None, None).await;
    let ended = handle.expect("accepted").wait(PATIENCE).await;
    drop(off);
    let rows = numbers(&database, "SELECT sum(a) FROM t").await;
    equal(&rows, &[10], "rows")?;
    let restores = database.restores(Page::default()).await.map_err(said)?;
    if ended.state != OperationState::Succeeded || restores.items.len() != 3 {
        return Err(format!("it replaced and is called {:?}", ended.error));
    }
    engine.shutdown().await.map_err(said)
}

/// Restores that did not do what their records say: the log alone is read.
async fn wrong_records_of_restores(folder: &Path) -> Found {
    let (engine, database) = node(folder, AutoVacuum::None).await;
    // So that the log since a state is less to read than what led to it.
    let ballast = "CREATE TABLE ballast AS SELECT randomblob(300000)";
    run(&database, ballast, Memory).await;
    let none = run(&database, "CREATE TABLE t(a)", Memory).await;
    let one = run(&database, "INSERT INTO t VALUES(1)", Memory).await;
    run(&database, "INSERT INTO t VALUES(2)", Memory).await;
    rewind(&database, one).await?;
    run(&database, "INSERT INTO t VALUES(3)", Memory).await;
    let off = switch_off(&["rewind.true_records"]);
    let rewound = rewind(&database, none).await;
    drop(off);
    rewound?;
    let rows = numbers(&database, "SELECT count(*) FROM t").await;
    equal(&rows, &[0], "rows")?;
    engine.shutdown().await.map_err(|error| error.to_string())
}

type Scenario = fn(std::path::PathBuf) -> Pin<Box<dyn Future<Output = Found>>>;

macro_rules! scenario {
    ($name:ident) => {
        (|folder| Box::pin(async move { $name(&folder).await })) as Scenario
    };
}

/// Rules, what happens without them all, and what they prevent together.
const TABLE: &[(&[&str], Scenario)] = &[
    (&["rewind.defensive_off"], scenario!(any_rewind)),
    (&["rewind.no_vacuum"], scenario!(free_pages_stay)),
    (&["rewind.grown_pages"], scenario!(grows_by_zeros)),
    (&["rewind.truncation_alone"], scenario!(shrinks)),
    (&["rewind.cookie_moves_on"], scenario!(cookie_stays)),
    (&["rewind.cookie_is_new"], scenario!(cookie_comes_again)),
    (&["rewind.present_cookie"], scenario!(cookie_comes_again)),
    (
        &["rewind.cookie_moves_on"],
        scenario!(cookie_stays_to_a_stream),
    ),
    (
        &["rewind.cookie_is_new"],
        scenario!(cookie_comes_again_to_a_stream),
    ),
    (
        &["rewind.present_cookie"],
        scenario!(cookie_comes_again_to_a_stream),
    ),
    (
        &["rewind.base_proven"],
        scenario!(wrong_pages_change_nothing),
    ),
    (
        &["rewind.base_proven", "rewind.state_proven"],
        scenario!(wrong_pages_change_nothing),
    ),
    (
        &["rewind.state_proven"],
        scenario!(nobody_builds_on_what_is_unproven),
    ),
    (
        &["rewind.history_decides"],
        scenario!(a_change_stands_whatever_follows),
    ),
    (&["rewind.whole_log"], scenario!(wrong_records_of_restores)),
];

/// One test and no more: a rule is switched off for the whole process.
#[tokio::test(flavor = "multi_thread")]
async fn every_rule_prevents_what_it_is_there_for() {
    let mut named = vec![
        "rewind.sound_source",
        "rewind.true_records",
        "rewind.sound_handle",
    ];
    for (rules, scenario) in TABLE {
        named.extend(*rules);
        let folder = tempfile::tempdir().expect("tempdir");
        let held = scenario(folder.path().to_owned()).await;
        assert_eq!(held, Ok(()), "{rules:?} hold");
        let folder = tempfile::tempdir().expect("tempdir");
        let off = switch_off(rules);
        let without = scenario(folder.path().to_owned()).await;
        drop(off);
        let seen = without.expect_err(&format!("nothing happens without {rules:?}"));
        println!("without {rules:?}: {seen}");
    }
    for rule in RULES {
        assert!(
            named.contains(rule),
            "{rule} is not switched off by any scenario"
        );
    }
}
