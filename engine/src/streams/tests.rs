//! Streams take turns with the statements of other tenants: what no test from outside can hold still.

use std::path::Path;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::{Results, Sink, Step, StepEnd, Stream};
use crate::core::Parts;
use crate::engine::{Database, Engine, NewDatabase};
use crate::error::{Code, Error};
use crate::request::{Access, Request};
use crate::rig;
use crate::settings::{Durability, Settings};
use crate::sql::run::{Column, Limits, Params, Statement, Value};
use crate::turns::Pace;

/// More steps than SQLite makes between two looks at the clock, and a moment's work.
const SOME: &str = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 20000) \
                    SELECT count(*) FROM n";
const MANY: &str = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 20000) \
                    SELECT x FROM n";
const WRITE: &str = "INSERT INTO t WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 5000) \
                     SELECT x FROM n";
/// What a statement that gets no turn waits for one.
const SHORT: Duration = Duration::from_millis(400);
/// What a statement may take whose turn is free, on a machine that is busy.
const PATIENT: Duration = Duration::from_mins(1);

fn statement(sql: &str) -> Statement {
    Statement {
        sql: sql.to_owned(),
        params: Params::None,
    }
}

fn step(sql: &str) -> Step {
    Step {
        condition: None,
        statement: statement(sql),
        want_rows: true,
    }
}

fn within(deadline: Duration) -> Limits {
    Limits {
        deadline,
        ..Limits::default()
    }
}

/// A node that lets one statement of a tenant run at once, and a database of its first tenant. The second tenant is
/// there as long as the pace is.
async fn node(folder: &Path) -> (Engine, Database, Pace) {
    let settings = Settings {
        turns_at_once: 1,
        stream_gate_idle: 2 * PATIENT,
        ..rig::settings(folder)
    };
    let engine = Box::pin(Engine::start(settings, Parts::production())).await;
    let engine = engine.expect("starts");
    let loud = engine.namespace_create("loud").await.expect("made");
    let quiet = engine.namespace_create("quiet").await.expect("made");
    let database = engine
        .database_create(loud.id, NewDatabase::named("orders"))
        .await
        .expect("made");
    let turns = &engine.inner.core.turns;
    turns.asked(quiet.id);
    let other = turns.begin(quiet.id, u64::MAX);
    let stream = database.stream([1; 16]).expect("a stream");
    for sql in ["CREATE TABLE t(a)", WRITE] {
        run(&stream, &database, PATIENT, sql).await.expect("ran");
    }
    (engine, database, other)
}

/// Runs one statement as one request and keeps the stream.
async fn run(
    stream: &Stream,
    database: &Database,
    deadline: Duration,
    sql: &str,
) -> Result<(), Error> {
    let limits = within(deadline);
    let durability = Some(Durability::Memory);
    let mut turn = stream
        .enter(database.clone(), Access::owner(), limits, durability)
        .await?;
    let ran = turn
        .program(vec![step(sql)], Results::of(1, limits, 64 << 20))
        .await;
    turn.finish().await?;
    turn.keep()?;
    ran?.steps.remove(0).expect("it ran").map(|_| ())
}

/// Goal: I7: what one tenant runs on streams takes its turns like everything else. Method: the only turn of the
/// tenant is held; reads and writes inside a transaction get no further than their deadline until it is free.
#[tokio::test(flavor = "multi_thread")]
async fn statements_of_a_stream_wait_for_their_tenants_turn() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database, other) = node(folder.path()).await;
    let stream = database.stream([1; 16]).expect("a stream");
    run(&stream, &database, PATIENT, "BEGIN")
        .await
        .expect("ran");
    for sql in [SOME, WRITE] {
        let held = engine
            .inner
            .core
            .turns
            .begin(database.row().namespace, u64::MAX);
        let waited = run(&stream, &database, SHORT, sql).await;
        assert_eq!(
            waited.expect_err("no turn").code(),
            Code::QueryTimeout,
            "{sql}"
        );
        drop(held);
        run(&stream, &database, PATIENT, sql)
            .await
            .expect("its turn");
    }
    drop(other);
    engine.shutdown().await.expect("stops");
}

/// Takes rows until it is told to wait for a reader who never reads, once.
struct Stuck {
    stalled: Option<oneshot::Sender<()>>,
    reads: Option<oneshot::Receiver<()>>,
    rows: usize,
}

impl Sink for Stuck {
    fn begin(&mut self, _: usize, _: Vec<Column>) -> Result<(), Error> {
        Ok(())
    }
    fn row(&mut self, _: Vec<Value>) -> Result<(), Error> {
        self.rows += 1;
        Ok(())
    }
    fn end(&mut self, _: usize, _: StepEnd) -> Result<(), Error> {
        Ok(())
    }
    fn failed(&mut self, _: usize, error: Error) -> Result<(), Error> {
        Err(error)
    }
    fn stall(&mut self) -> Option<BoxFuture<'static, Result<(), Error>>> {
        let reads = self.reads.take()?;
        self.stalled.take()?.send(()).ok()?;
        Some(reads.map(|_| Ok(())).boxed())
    }
    fn waits(&self) -> bool {
        true
    }
}

/// Goal: a client that reads nothing holds up nobody of its tenant. Method: a cursor stalls while it has the only
/// turn; another statement of the tenant runs all the same, and the cursor to its end once its client reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_waits_for_its_reader_holds_no_turn() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (engine, database, other) = node(folder.path()).await;
    let stream = database.stream([1; 16]).expect("a stream");
    let (stalled, stalls) = oneshot::channel();
    let (read, reads) = oneshot::channel();
    let cursor = tokio::spawn({
        let database = database.clone();
        async move {
            let sink = Stuck {
                stalled: Some(stalled),
                reads: Some(reads),
                rows: 0,
            };
            // It has not ended for its own deadline when the other one gives up.
            let limits = within(2 * PATIENT);
            let entered = stream.enter(database, Access::owner(), limits, None).await;
            let mut turn = entered.expect("free");
            let ran = turn.program(vec![step(MANY)], sink).await;
            ran.expect("to its end").rows
        }
    });
    stalls.await.expect("it stalls");
    let request = Request {
        limits: within(PATIENT),
        ..rig::request(&[SOME], Durability::Memory)
    };
    database.execute(request).await.expect("the turn is free");
    read.send(()).expect("the cursor waits");
    assert_eq!(cursor.await.expect("no panic"), 20_000);
    drop(other);
    engine.shutdown().await.expect("stops");
}
