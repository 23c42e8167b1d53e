//! Streams: transactions over several requests, on connections that clients have to themselves.

mod rig;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rig::{numbers, orders, run, settings, try_run, until, verify};
use tidelog_engine::operations::OperationState;
use tidelog_engine::streams::{Condition, Results, Step, Stream, Turn};
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Access, Code, Database, Durability, Engine, Error, Limits, NewDatabase, Params, Parts, Role,
    Settings, Statement, StatementResult, Value,
};

const CLIENT: [u8; 16] = [7; 16];
/// Transactions of each client.
const ROUNDS: usize = 8;

fn step(sql: &str) -> Step {
    Step {
        condition: None,
        statement: Statement {
            sql: sql.to_owned(),
            params: Params::None,
        },
        want_rows: true,
    }
}

async fn enter(stream: &Stream, database: &Database, access: Access) -> Result<Turn, Error> {
    let durability = Some(Durability::Memory);
    stream
        .enter(database.clone(), access, Limits::default(), durability)
        .await
}

async fn program(turn: &mut Turn, steps: Vec<Step>) -> Result<Results, Error> {
    let limits = Limits::default();
    let sink = Results::of(steps.len(), limits, limits.result_bytes_max);
    turn.program(steps, sink).await
}

/// One statement as one request.
async fn ask_as(
    stream: &Stream,
    database: &Database,
    access: Access,
    sql: &str,
) -> Result<StatementResult, Error> {
    let mut turn = enter(stream, database, access).await?;
    let mut results = program(&mut turn, vec![step(sql)]).await?;
    let result = results.steps.remove(0).expect("it ran");
    turn.finish().await?;
    turn.keep()?;
    result.map(|(result, _)| result)
}

async fn ask(stream: &Stream, database: &Database, sql: &str) -> Result<StatementResult, Error> {
    ask_as(stream, database, Access::owner(), sql).await
}

async fn must(stream: &Stream, database: &Database, sql: &str) -> StatementResult {
    let asked = ask(stream, database, sql).await;
    asked.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

fn number(result: &StatementResult) -> i64 {
    match result.rows[0][0] {
        Value::Integer(number) => number,
        ref other => panic!("{other:?}"),
    }
}

async fn node(folder: &Path, change: impl FnOnce(&mut Settings)) -> (Engine, Database) {
    let mut settings = settings(folder);
    change(&mut settings);
    let engine = Box::pin(Engine::start(settings, Parts::production()))
        .await
        .expect("starts");
    let database = orders(&engine).await;
    run(
        &database,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
        Durability::Memory,
    )
    .await;
    run(&database, "INSERT INTO t VALUES(1, 0)", Durability::Memory).await;
    (engine, database)
}

/// Reads the counter and adds one to it in a transaction of three requests.
async fn add_one(stream: &Stream, database: &Database, begin: &str) -> Result<(), Error> {
    ask(stream, database, begin).await?;
    let added = async {
        let seen = number(&ask(stream, database, "SELECT b FROM t WHERE a = 1").await?);
        tokio::task::yield_now().await;
        let sql = format!("UPDATE t SET b = {} WHERE a = 1", seen + 1);
        ask(stream, database, &sql).await?;
        ask(stream, database, "COMMIT").await
    };
    if let Err(error) = added.await {
        ask(stream, database, "ROLLBACK").await?;
        return Err(error);
    }
    Ok(())
}

/// Goal: no update is lost, no transaction meets another's, and every commit is in the log. Method: 20 clients,
/// each with a stream, add to one counter in transactions of several requests, both kinds of BEGIN, beside writers
/// without a stream; then the history is counted and restored from the bucket (I1, I2).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_clients_in_transactions_lose_no_update() {
    let folder = tempfile::tempdir().expect("tempdir");
    // Fewer workers than clients: those who wait for the gate must not keep its holder from going on.
    let (engine, database) = node(folder.path(), |settings| {
        settings.workers = 2;
        settings.workers_per_tenant = 2;
    })
    .await;
    let first = database.bookmark().await.expect("where it stands").bookmark;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..20 {
        let database = database.clone();
        clients.spawn(async move {
            let stream = database.stream(CLIENT).expect("a stream");
            let begin = if client % 2 == 0 {
                "BEGIN IMMEDIATE"
            } else {
                "BEGIN"
            };
            // A transaction that takes the gate late has to begin anew nearly every time.
            let rounds = if begin == "BEGIN" { 2 } else { ROUNDS };
            let mut done = 0;
            while done < rounds {
                match add_one(&stream, &database, begin).await {
                    Ok(()) => done += 1,
                    // Another wrote since the snapshot was taken.
                    Err(error) if error.code() == Code::DatabaseBusy && begin == "BEGIN" => {}
                    Err(error) => panic!("{client}: {error:?}"),
                }
            }
        });
    }
    for _ in 0..4 {
        let database = database.clone();
        clients.spawn(async move {
            for _ in 0..ROUNDS {
                run(
                    &database,
                    "INSERT INTO t(b) VALUES('x')",
                    Durability::Memory,
                )
                .await;
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client fails");
    }
    let expected = 10 * 8 + 10 * 2;
    assert_eq!(
        numbers(&database, "SELECT b FROM t WHERE a = 1").await,
        [expected]
    );
    assert_eq!(numbers(&database, "SELECT count(*) FROM t").await, [33]);
    let last = database.bookmark().await.expect("where it stands").bookmark;
    let commits = last.txid.since(first.txid);
    assert_eq!(commits, Some(100 + 4 * 8), "each transaction is one commit");
    run(
        &database,
        "INSERT INTO t(b) VALUES('y')",
        Durability::Remote,
    )
    .await;
    engine.shutdown().await.expect("stops");
    let bucket = rig::bucket(folder.path()).await;
    verify(&bucket.expect("a bucket")).await;
}

/// Goal: who vanishes inside a transaction leaves no lock behind, and what is left of it cannot run outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dawdles_with_the_gate_is_rolled_back() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |settings| {
        settings.stream_gate_idle = Duration::from_millis(100);
    })
    .await;
    let stream = database.stream(CLIENT).expect("a stream");
    must(&stream, &database, "BEGIN").await;
    must(&stream, &database, "INSERT INTO t VALUES(2, 'half')").await;
    // Waits for the gate, and gets it.
    run(
        &database,
        "INSERT INTO t VALUES(3, 'other')",
        Durability::Memory,
    )
    .await;
    for sql in [
        "INSERT INTO t VALUES(4, 'rest')",
        "SELECT 1",
        "COMMIT",
        "BEGIN",
    ] {
        let refused = ask(&stream, &database, sql).await.expect_err("lost");
        assert_eq!(refused.code(), Code::TransactionTimeout, "{sql}");
    }
    must(&stream, &database, "ROLLBACK").await;
    must(&stream, &database, "INSERT INTO t VALUES(5, 'anew')").await;
    assert_eq!(
        numbers(&database, "SELECT sum(a) FROM t").await,
        [1 + 3 + 5]
    );
    engine.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_stream_expires_and_a_dropped_turn_rolls_back() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |settings| {
        settings.stream_idle = Duration::from_millis(500);
    })
    .await;
    // Whoever is kept from asking for so long has another one.
    let stream = loop {
        let stream = database.stream(CLIENT).expect("a stream");
        let begun = ask(&stream, &database, "BEGIN").await;
        if begun.is_ok() && ask(&stream, &database, "SELECT * FROM t").await.is_ok() {
            break stream;
        }
    };
    until("the end of the stream", || async {
        stream.check().is_err()
    })
    .await;
    let expired = ask(&stream, &database, "SELECT 1").await.expect_err("over");
    assert_eq!(expired.code(), Code::StreamExpired);
    let (stream, mut turn) = loop {
        let stream = database.stream(CLIENT).expect("a stream");
        if let Ok(turn) = enter(&stream, &database, Access::owner()).await {
            break (stream, turn);
        }
    };
    let busy = enter(&stream, &database, Access::owner()).await;
    assert_eq!(busy.expect_err("one at a time").code(), Code::StreamBusy);
    let steps = vec![step("BEGIN IMMEDIATE"), step("INSERT INTO t VALUES(9, 9)")];
    program(&mut turn, steps).await.expect("ran");
    drop(turn);
    run(
        &database,
        "INSERT INTO t VALUES(10, 10)",
        Durability::Memory,
    )
    .await;
    assert_eq!(numbers(&database, "SELECT count(*) FROM t").await, [2]);
    assert!(stream.check().is_err());
    until("no stream is left", || async { engine.stream_count() == 0 }).await;
    engine.shutdown().await.expect("stops");
}

/// Goal: a stream goes on through a rewind between its transactions and never uses a stale schema (HAZARDS W0d).
/// Method: the schema cookie moves past what the stream has seen, back by a rewind, and forward again by another
/// DDL; with the restored cookie left as it was the stream would write to the wrong tree.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_lives_on_through_a_rewind() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |_| {}).await;
    let stream = database.stream(CLIENT).expect("a stream");
    must(&stream, &database, "INSERT INTO t VALUES(2, 'before')").await;
    let target = run(
        &database,
        "INSERT INTO t VALUES(3, 'kept')",
        Durability::Remote,
    )
    .await;
    run(&database, "CREATE TABLE u(x)", Durability::Memory).await;
    must(&stream, &database, "INSERT INTO u VALUES('seen')").await;
    let at = RestoreTarget::At(tidelog_engine::bucket::At::Bookmark(target));
    let mut handle = database.rewind(Rewind::to(at)).await.expect("accepted");
    let operation = handle.wait(rig::PATIENCE).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    run(&database, "CREATE TABLE v(x, y)", Durability::Memory).await;
    let gone = ask(&stream, &database, "INSERT INTO u VALUES('lost')").await;
    assert!(
        gone.expect_err("rolled back")
            .to_string()
            .contains("no such table: u")
    );
    must(&stream, &database, "BEGIN").await;
    must(&stream, &database, "INSERT INTO v VALUES(1, 2)").await;
    must(&stream, &database, "INSERT INTO t VALUES(4, 'after')").await;
    must(&stream, &database, "COMMIT").await;
    assert_eq!(
        numbers(&database, "SELECT count(*), sum(a) FROM t").await,
        [4, 10]
    );
    assert_eq!(numbers(&database, "SELECT x, y FROM v").await, [1, 2]);
    engine.shutdown().await.expect("stops");
}

/// Goal: who reads in a transaction while the database is put back reads on in the state before (DESIGN 5.7).
/// Method: values and schema of the snapshot are looked at before, behind and beside the rewind.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_transaction_keeps_its_snapshot_through_a_rewind() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |_| {}).await;
    let stream = database.stream(CLIENT).expect("a stream");
    let target = run(
        &database,
        "INSERT INTO t VALUES(2, 'kept')",
        Durability::Remote,
    )
    .await;
    for sql in [
        "INSERT INTO t VALUES(3, randomblob(50000))",
        "CREATE TABLE u(x)",
        "INSERT INTO u VALUES(7)",
    ] {
        run(&database, sql, Durability::Memory).await;
    }
    let sum = "SELECT sum(a) + (SELECT sum(x) FROM u) FROM t";
    must(&stream, &database, "BEGIN").await;
    assert_eq!(number(&must(&stream, &database, sum).await), 13);
    let at = RestoreTarget::At(tidelog_engine::bucket::At::Bookmark(target));
    let mut handle = database.rewind(Rewind::to(at)).await.expect("accepted");
    let operation = handle.wait(rig::PATIENCE).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(numbers(&database, "SELECT sum(a) FROM t").await, [3]);
    // Others write on, and it still sees nothing of it.
    run(&database, "INSERT INTO t VALUES(4, 0)", Durability::Memory).await;
    assert_eq!(number(&must(&stream, &database, sum).await), 13);
    must(&stream, &database, "COMMIT").await;
    let gone = ask(&stream, &database, sum).await.expect_err("put back");
    assert!(gone.to_string().contains("no such table: u"), "{gone}");
    let now = must(&stream, &database, "SELECT sum(a) FROM t").await;
    assert_eq!(number(&now), 7);
    engine.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_cannot_be_written_to_and_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().expect("tempdir");
    // A gate that was kept would not be given back in time.
    let (engine, database) = node(folder.path(), |_| {}).await;
    let stream = database.stream(CLIENT).expect("a stream");
    must(&stream, &database, "BEGIN").await;
    assert_eq!(
        number(&must(&stream, &database, "SELECT count(*) FROM t").await),
        1
    );
    run(&database, "INSERT INTO t VALUES(2, 0)", Durability::Memory).await;
    assert_eq!(
        number(&must(&stream, &database, "SELECT count(*) FROM t").await),
        1,
        "one snapshot"
    );
    let refused = ask(&stream, &database, "INSERT INTO t VALUES(3, 0)").await;
    assert_eq!(refused.expect_err("too old").code(), Code::DatabaseBusy);
    // The gate went back although the transaction is still open.
    run(&database, "INSERT INTO t VALUES(4, 0)", Durability::Memory).await;
    must(&stream, &database, "ROLLBACK").await;
    must(&stream, &database, "INSERT INTO t VALUES(5, 0)").await;
    assert_eq!(
        numbers(&database, "SELECT sum(a) FROM t").await,
        [1 + 2 + 4 + 5]
    );
    engine.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_open_streams_at_once() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |_| {}).await;
    let (writes, reads, idles) = (
        database.stream(CLIENT).expect("a stream"),
        database.stream(CLIENT).expect("a stream"),
        database.stream(CLIENT).expect("a stream"),
    );
    must(&reads, &database, "BEGIN").await;
    must(&reads, &database, "SELECT * FROM t").await;
    must(&idles, &database, "SELECT 1").await;
    must(&writes, &database, "BEGIN IMMEDIATE").await;
    must(&writes, &database, "INSERT INTO t VALUES(2, 'open')").await;
    // One that runs when the stop comes.
    let running = database.stream(CLIENT).expect("a stream");
    let (stream, busy) = (running.clone(), database.clone());
    let endless = tokio::spawn(async move {
        let sql =
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n";
        // Its own deadline does not end it before the stop has to.
        let limits = Limits {
            deadline: 4 * rig::PATIENCE,
            ..Limits::default()
        };
        let turn = stream.enter(busy, Access::owner(), limits, Some(Durability::Memory));
        let mut turn = turn.await?;
        let sink = Results::of(1, limits, limits.result_bytes_max);
        let mut results = turn.program(vec![step(sql)], sink).await?;
        results.steps.remove(0).expect("it ran").map(drop)
    });
    until("the statement runs", || async {
        match enter(&running, &database, Access::owner()).await {
            Ok(turn) => {
                turn.keep().expect("goes on");
                false
            }
            Err(error) => error.code() == Code::StreamBusy,
        }
    })
    .await;
    let stopped = tokio::time::timeout(rig::PATIENCE, engine.shutdown()).await;
    stopped.expect("no stream keeps the node").expect("stops");
    assert!(endless.await.expect("no panic").is_err());
    for stream in [&writes, &reads, &idles, &running] {
        assert!(stream.check().is_err());
    }
    let (engine, database) = {
        let engine = Engine::start(settings(folder.path()), Parts::production());
        let engine = Box::pin(engine).await.expect("starts");
        let database = orders(&engine).await;
        (engine, database)
    };
    assert_eq!(numbers(&database, "SELECT count(*) FROM t").await, [1]);
    engine.shutdown().await.expect("stops");
}

/// Goal: whatever a client sends inside a transaction, the database is not poisoned, and a text that was run
/// before is judged like one that was not (statements stay prepared).
#[tokio::test(flavor = "multi_thread")]
async fn odd_transaction_control_is_refused_and_harms_nobody() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |_| {}).await;
    let stream = database.stream(CLIENT).expect("a stream");
    for round in 0..3 {
        for begin in ["BEGIN IMMEDIATE", "SAVEPOINT one", "BEGIN"] {
            must(&stream, &database, begin).await;
            must(&stream, &database, "UPDATE t SET b = b + 1").await;
            must(&stream, &database, "EXPLAIN COMMIT").await;
            assert!(ask(&stream, &database, "RELEASE none").await.is_err());
            assert!(ask(&stream, &database, "VACUUM").await.is_err());
            assert!(ask(&stream, &database, "BEGIN").await.is_err());
            must(&stream, &database, "SAVEPOINT two").await;
            must(&stream, &database, "UPDATE t SET b = 1000").await;
            must(&stream, &database, "ROLLBACK TO two").await;
            must(&stream, &database, "RELEASE two").await;
            let end = if begin.starts_with("SAVEPOINT") {
                "RELEASE one"
            } else {
                "COMMIT"
            };
            must(&stream, &database, end).await;
            assert!(ask(&stream, &database, "COMMIT").await.is_err());
            // Nobody holds the gate.
            run(&database, "INSERT INTO t(b) VALUES(0)", Durability::Memory).await;
            run(&database, "DELETE FROM t WHERE a > 1", Durability::Memory).await;
        }
        assert_eq!(
            numbers(&database, "SELECT b FROM t").await,
            [3 * (round + 1)]
        );
    }
    must(&stream, &database, "VACUUM").await;
    must(&stream, &database, "PRAGMA foreign_keys=OFF").await;
    assert_eq!(
        number(&must(&stream, &database, "PRAGMA foreign_keys").await),
        0
    );
    must(&stream, &database, "PRAGMA foreign_keys=ON").await;
    must(&stream, &database, "PRAGMA foreign_keys=OFF").await;
    assert_eq!(
        number(&must(&stream, &database, "PRAGMA foreign_keys").await),
        0
    );
    must(&stream, &database, "CREATE TEMP TABLE own(x)").await;
    must(&stream, &database, "INSERT INTO own VALUES(5)").await;
    let other = database.stream(CLIENT).expect("a stream");
    assert!(ask(&other, &database, "SELECT * FROM own").await.is_err());
    assert_eq!(
        number(&must(&other, &database, "PRAGMA foreign_keys").await),
        1
    );
    for sql in [
        "PRAGMA journal_mode=DELETE",
        "ATTACH 'x' AS y",
        "PRAGMA schema_version=9",
    ] {
        assert!(ask(&stream, &database, sql).await.is_err(), "{sql}");
    }
    let reader = Access {
        role: Role::Analyst,
        ..Access::owner()
    };
    let refused = ask_as(&other, &database, reader.clone(), "BEGIN IMMEDIATE").await;
    assert_eq!(
        refused.expect_err("a reader").code(),
        Code::InsufficientPermissions
    );
    assert!(ask_as(&other, &database, reader, "BEGIN").await.is_ok());
    engine.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_follows_its_conditions_and_a_sequence_stops_at_the_first_error() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |_| {}).await;
    let stream = database.stream(CLIENT).expect("a stream");
    let mut turn = enter(&stream, &database, Access::owner())
        .await
        .expect("free");
    let when = |condition, sql: &str| Step {
        condition: Some(condition),
        ..step(sql)
    };
    let not = |condition| Condition::Not(Box::new(condition));
    let steps = vec![
        step("BEGIN"),
        when(Condition::Ok(0), "INSERT INTO t VALUES(2, 'x') RETURNING a"),
        when(Condition::Ok(1), "INSERT INTO t VALUES(2, 'twice')"),
        when(Condition::Ok(2), "COMMIT"),
        when(not(Condition::Ok(3)), "ROLLBACK"),
        when(Condition::IsAutocommit, "SELECT count(*) FROM t"),
    ];
    let results = program(&mut turn, steps).await.expect("ran").steps;
    let ok: Vec<Option<bool>> = results
        .iter()
        .map(|one| one.as_ref().map(Result::is_ok))
        .collect();
    let expected = [
        Some(true),
        Some(true),
        Some(false),
        None,
        Some(true),
        Some(true),
    ];
    assert_eq!(ok, expected);
    let count = results[5].as_ref().expect("ran").as_ref().expect("read");
    assert_eq!(number(&count.0), 1, "the insert was rolled back");
    let script =
        "CREATE TABLE u(x); CREATE TRIGGER r AFTER INSERT ON u BEGIN SELECT 1; DELETE FROM t; END;
        INSERT INTO u VALUES(1); INSERT INTO none VALUES(1); INSERT INTO u VALUES(2)";
    let stopped = turn.sequence(script).await.expect("ran");
    assert!(
        stopped
            .expect_err("the fourth")
            .to_string()
            .contains("none")
    );
    turn.sequence(" -- nothing\n;")
        .await
        .expect("ran")
        .expect("nothing to do");
    let described = turn
        .describe("INSERT INTO t VALUES(:a, ?) RETURNING b")
        .await;
    let described = described.expect("ran").expect("a statement");
    assert_eq!(described.params, [Some(":a".to_owned()), None]);
    assert!(!described.is_readonly && described.columns.len() == 1);
    assert!(turn.is_autocommit());
    let end = turn.finish().await.expect("ended");
    assert!(end.schema_changed);
    turn.keep().expect("goes on");
    assert_eq!(
        numbers(
            &database,
            "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)"
        )
        .await,
        [0, 1]
    );
    engine.shutdown().await.expect("stops");
}

/// Goal: size and table limits hold inside a client's transaction too.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_inside_a_transaction() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |_| {}).await;
    let stream = database.stream(CLIENT).expect("a stream");
    let limits = Limits {
        tables_max: Some(2),
        rows_max: 3,
        ..Limits::default()
    };
    let mut turn = stream
        .enter(database.clone(), Access::owner(), limits, None)
        .await
        .expect("free");
    let sql = [
        "BEGIN",
        "CREATE TABLE u(x)",
        "INSERT INTO u VALUES(1), (2), (3), (4) RETURNING x",
        "SELECT count(*) FROM u",
        "CREATE TABLE v(x)",
        "COMMIT",
        "DROP TABLE v",
        "COMMIT",
    ];
    let sink = Results::of(sql.len(), limits, 1 << 20);
    let ran = turn
        .program(sql.map(step).to_vec(), sink)
        .await
        .expect("ran");
    let codes: Vec<Option<Code>> = ran
        .steps
        .iter()
        .map(|one| {
            one.as_ref()
                .expect("no condition")
                .as_ref()
                .err()
                .map(Error::code)
        })
        .collect();
    assert_eq!(codes[2], Some(Code::ResultTooLarge));
    let count = ran.steps[3].as_ref().expect("ran").as_ref().expect("read");
    assert_eq!(
        number(&count.0),
        0,
        "a result over a limit undoes its statement"
    );
    assert_eq!(codes[5], Some(Code::QuotaExceeded));
    assert_eq!((codes[4], codes[6], codes[7]), (None, None, None));
    turn.keep().expect("goes on");
    engine.shutdown().await.expect("stops");
}

/// Goal: streams are bounded; at the bound one that holds nothing makes place, and never one that does.
#[tokio::test(flavor = "multi_thread")]
async fn the_idlest_clean_stream_makes_place() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) =
        node(folder.path(), |settings| settings.streams_per_principal = 2).await;
    let (holds, clean) = (
        database.stream(CLIENT).expect("a stream"),
        database.stream(CLIENT).expect("a stream"),
    );
    must(&holds, &database, "BEGIN").await;
    must(&clean, &database, "SELECT 1").await;
    let third = database
        .stream(CLIENT)
        .expect("takes the place of the clean one");
    assert!(clean.check().is_err() && holds.check().is_ok());
    must(&third, &database, "BEGIN").await;
    let refused = database.stream(CLIENT).expect_err("both hold something");
    assert_eq!(refused.code(), Code::Overloaded);
    assert!(database.stream([8; 16]).is_ok(), "another principal");
    engine.shutdown().await.expect("stops");
}

/// Goal: a tenant with many tokens and databases leaves streams for the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_so_many_streams_and_others_have_theirs() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |settings| settings.streams_per_tenant = 2).await;
    let other = engine.namespace_create("other").await.expect("made");
    let make = |namespace, name| {
        let new = NewDatabase::named(name);
        engine.database_create(namespace, new)
    };
    let second = make(database.row().namespace, "second")
        .await
        .expect("made");
    let theirs = make(other.id, "theirs").await.expect("made");
    let (first, next) = (
        database.stream(CLIENT).expect("a stream"),
        second.stream([8; 16]).expect("a stream"),
    );
    must(&first, &database, "BEGIN").await;
    must(&next, &second, "BEGIN").await;
    let refused = second.stream([9; 16]).expect_err("both hold something");
    assert_eq!(refused.code(), Code::Overloaded);
    assert!(theirs.stream(CLIENT).is_ok(), "another tenant");
    engine.shutdown().await.expect("stops");
}

/// Goal: a snapshot that nobody lets go does not keep the WAL growing for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_reader_ends_when_the_wal_is_long() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database) = node(folder.path(), |settings| {
        settings.reader_max_age = Duration::from_millis(50);
        settings.stream_gate_idle = Duration::from_millis(100);
        settings.wal_soft_bytes = 64 << 10;
        settings.wal_hard_bytes = 256 << 10;
    })
    .await;
    let stream = database.stream(CLIENT).expect("a stream");
    must(&stream, &database, "BEGIN").await;
    must(&stream, &database, "SELECT * FROM t").await;
    let database = Arc::new(database);
    until("the reader's end", || async {
        run(
            &database,
            "INSERT INTO t(b) VALUES(zeroblob(20000))",
            Durability::Memory,
        )
        .await;
        // It is used all the time, and still pins.
        stream.check().is_err() || ask(&stream, &database, "SELECT 1").await.is_err()
    })
    .await;
    let ended = ask(&stream, &database, "SELECT 1").await.expect_err("over");
    assert_eq!(ended.code(), Code::StreamExpired);
    assert!(
        try_run(&database, "INSERT INTO t(b) VALUES(1)", Durability::Local)
            .await
            .is_ok()
    );
    engine.shutdown().await.expect("stops");
}

/// A stream of `database` that was told `setup`.
async fn told(database: &Database, setup: &str) -> Stream {
    let stream = database.stream(CLIENT).expect("a stream");
    must(&stream, database, setup).await;
    stream
}

/// Goal: streams at rest keep no database of their tenant's from being opened and lose nothing by it; one that has
/// anything to lose keeps its connection. Method: a tenant that may have two databases open uses a third one while a
/// stream on each of the two rests, then while one of them has something: a transaction, a TEMP table, a setting, the id
/// of a row it inserted. On a new connection each of these would be answered otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_at_rest_makes_place_and_goes_on() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, orders) = node(folder.path(), |settings| {
        settings.open_databases_max = 4;
        settings.gate_timeout = Duration::from_secs(1);
        settings.stream_idle = Duration::from_mins(10);
        settings.stream_gate_idle = Duration::from_mins(10);
    })
    .await;
    let mut others = Vec::new();
    for name in ["a", "b"] {
        let new = NewDatabase::named(name);
        let made = engine.database_create(orders.row().namespace, new).await;
        others.push(made.expect("create"));
    }
    let (second, third) = (&others[0], &others[1]);
    let rests = told(&orders, "SELECT b FROM t").await;
    let other = told(second, "SELECT 1").await;
    run(third, "CREATE TABLE t(a)", Durability::Memory).await;
    let seen = must(&rests, &orders, "SELECT b FROM t WHERE a = 1").await;
    assert_eq!(number(&seen), 0, "it goes on");
    must(&other, second, "SELECT 1").await;
    assert_eq!(engine.stream_count(), 2);
    engine.end_stream(&other);

    let reads = told(second, "BEGIN").await;
    must(&reads, second, "SELECT count(*) FROM sqlite_schema").await;
    for (setup, question, answer) in [
        ("BEGIN IMMEDIATE", "SELECT count(*) FROM t", 1),
        (
            "CREATE TEMP TABLE own AS SELECT 5 AS a",
            "SELECT a FROM own",
            5,
        ),
        ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys", 0),
        (
            "INSERT INTO t VALUES(77, 0)",
            "SELECT last_insert_rowid()",
            77,
        ),
    ] {
        let keeps = told(&orders, setup).await;
        let refused = try_run(third, "INSERT INTO t VALUES(1)", Durability::Memory).await;
        let refused = refused.expect_err(setup);
        assert_eq!(refused.code(), Code::Overloaded, "{setup}");
        assert_eq!(
            number(&must(&keeps, &orders, question).await),
            answer,
            "{setup}"
        );
        if setup.starts_with("BEGIN") {
            must(&keeps, &orders, "COMMIT").await;
        }
        engine.end_stream(&keeps);
    }
    must(&reads, second, "COMMIT").await;
    // Now that nothing is to lose on it, this one makes place, too.
    run(third, "INSERT INTO t VALUES(1)", Durability::Memory).await;
    must(&reads, second, "SELECT 1").await;
    engine.end_stream(&reads);
    engine.end_stream(&rests);
    engine.shutdown().await.expect("shutdown");
}
