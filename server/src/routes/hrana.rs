//! Hrana over HTTP: pipelines of requests on a stream, and cursors.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tidelog_engine::streams::{Results, Step, Turn, TurnEnd};
use tidelog_engine::{Code as EngineCode, Database, Durability, Limits, Request, Statement};
use tokio::sync::mpsc;

use super::query::{self, Cost};
use super::shape;
use crate::hrana::account::Account;
use crate::hrana::baton::Owner;
use crate::hrana::cursor::{Lines, PIECES, Piece};
use crate::hrana::errors::{of_statement, plain};
use crate::hrana::table::{Held, NotStored, Texts};
use crate::hrana::wire::{self, BatchStep, CursorBody, PipelineBody, Stmt, StreamRequest, Wrong};
use crate::http::answer::Content;
use crate::http::caller::caller;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// The header that says how durable a commit must be to be answered.
const DURABILITY: &str = "db-durability";

/// `GET v2` and `GET v3`: whether the version is spoken.
pub(super) async fn version(_: Call) -> Result<Answer, Problem> {
    Ok(Answer::ok(json!({ "hrana": true })))
}

fn malformed(what: impl std::fmt::Display) -> Problem {
    Problem::new(
        Code::InvalidRequest,
        format!("this is no Hrana request: {what}"),
    )
}

fn body<T: DeserializeOwned>(call: &Call) -> Result<T, Problem> {
    serde_json::from_slice(&call.raw).map_err(malformed)
}

/// The database, whose name the layer has found if there is any.
async fn database(call: &Call) -> Result<Database, Problem> {
    if !call.names.contains_key("db") {
        let detail = "no database is named: use http://HOST/NAMESPACE/DATABASE/ as the address, with its last slash";
        return Err(Problem::new(Code::NotFound, detail));
    }
    call.database().await
}

fn durability(call: &Call) -> Result<Option<Durability>, Problem> {
    let Some(value) = call.headers.get(DURABILITY) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let parsed: Result<Durability, String> = text.parse();
    parsed
        .map(Some)
        .map_err(|error| Problem::new(Code::InvalidRequest, error))
}

fn owner(call: &Call, database: &Database) -> Result<Owner, Problem> {
    let row = database.row();
    Ok(Owner {
        namespace: *row.namespace.as_bytes(),
        database: *row.id.as_bytes(),
        principal: call.principal()?.token.id,
    })
}

/// The stream of a request, held: the one of its baton or a new one.
fn held(call: &Call, database: &Database, baton: Option<&str>) -> Result<Held, Problem> {
    let owner = owner(call, database)?;
    match baton {
        Some(baton) => call.app.hrana.take(baton, &owner),
        None => {
            let caller = caller(&call.principal()?.token);
            Ok(call.app.hrana.add(database.stream(caller)?))
        }
    }
}

/// One request's use of a stream: what is not kept is forgotten and rolled back, however far the request came.
struct Use<'a> {
    call: &'a Call,
    held: Option<Held>,
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            self.call.app.hrana.forget(held.stream.id());
            self.call.app.engine.end_stream(&held.stream);
        }
    }
}

impl Use<'_> {
    fn held(&mut self) -> Result<&mut Held, Problem> {
        let lost = || Problem::new(Code::Internal, "a stream was used after its end");
        self.held.as_mut().ok_or_else(lost)
    }
}

/// What a request asks for beside its body. It is judged with the stream in hand: what is wrong with it ends that.
fn asked(call: &mut Call) -> Result<Option<Durability>, Problem> {
    call.finish()?;
    durability(call)
}

pub(super) async fn pipeline(mut call: Call) -> Result<Answer, Problem> {
    let asked = asked(&mut call);
    let database = database(&call).await?;
    let PipelineBody { baton, requests } = body(&call)?;
    let parsed: Result<Vec<StreamRequest>, _> =
        requests.into_iter().map(serde_json::from_value).collect();
    let parsed = parsed.map_err(malformed);
    let began = call.app.clock.monotonic_micros();
    if baton.is_none() && parsed.as_ref().is_ok_and(|requests| is_single(requests)) {
        return single(call, database, parsed?, asked?, began).await;
    }
    let stream = held(&call, &database, baton.as_deref())?;
    let requests = parsed.map(|requests| requests.into_iter().map(Ready::Request).collect());
    run(call, database, stream, requests, asked, began).await
}

/// Whether a pipeline is one statement on a stream that ends with it.
fn is_single(requests: &[StreamRequest]) -> bool {
    matches!(requests, [StreamRequest::Execute { stmt }, StreamRequest::Close {}] if stmt.is_whole())
}

/// One statement without a stream: on the path of `/query`, unless it needs a connection to itself.
async fn single(
    call: Call,
    database: Database,
    mut requests: Vec<StreamRequest>,
    durability: Option<Durability>,
    began: u64,
) -> Result<Answer, Problem> {
    let closed = json!({ "type": "ok", "response": { "type": "close" } });
    requests.truncate(1);
    let Some(StreamRequest::Execute { stmt }) = requests.pop() else {
        return Err(malformed("nothing to run"));
    };
    let want_rows = stmt.want_rows();
    let mut account = Account::of(began);
    let outcome = match stmt.statement(&Texts::default()) {
        Err(wrong) => {
            account.failures.add_wrong();
            Err(wrong)
        }
        Ok(statement) => {
            account.texts.push(statement.sql.clone());
            let request = Request {
                statements: vec![statement.clone()],
                transaction: true,
                durability,
                access: call.sql_access()?,
                limits: query::sql_limits(&call.app.limits),
                idempotency: None,
            };
            match database.execute(request).await {
                Err(error) if needs_stream(&error) => {
                    let stream = held(&call, &database, None)?;
                    let stmt = Ready::Statement(statement, want_rows);
                    let requests = Ok(vec![stmt, Ready::Request(StreamRequest::Close {})]);
                    return run(call, database, stream, requests, Ok(durability), began).await;
                }
                Err(error) if is_fatal(&error) => return Err(error.into()),
                Err(error) => {
                    account.failures.add(&error);
                    Err(of_statement(&error))
                }
                Ok(response) => Ok(response),
            }
        }
    };
    let (results, mut answer) = match outcome {
        Err(wrong) => {
            let failed = json!([{ "type": "error", "error": wrong }, closed]);
            let at = database.bookmark().await?;
            let at = Answer::nothing().at(Some(at.bookmark), at.durable_bookmark);
            (failed, at)
        }
        Ok(mut response) => {
            let mut result = response.results.pop().unwrap_or_default();
            if !want_rows {
                result.rows.clear();
            }
            account.cost = Cost {
                read: result.rows_read,
                written: result.rows_written,
            };
            let result = wire::result(&result, shape::millis(account.took(&call)));
            let done = json!([{ "type": "ok", "response": { "type": "execute", "result": result } }, closed]);
            let mut at = Answer::nothing().at(Some(response.bookmark), response.durable_bookmark);
            at.schema_changed = response.schema_changed;
            (done, at)
        }
    };
    account.close(&call, &database, None, true)?;
    let document = json!({ "baton": null, "base_url": null, "results": results });
    answer.status = StatusCode::OK;
    answer.content = Content::Json(document);
    Ok(answer)
}

/// Whether the engine has refused a statement only because it was not on a stream. Nothing has run then.
fn needs_stream(error: &tidelog_engine::Error) -> bool {
    let denied = error.members().get("sqlite_code").and_then(Json::as_str) == Some("SQLITE_AUTH");
    error.code() == EngineCode::TransactionControl || denied
}

/// Whether an error is the server's, not the statement's.
fn is_fatal(error: &tidelog_engine::Error) -> bool {
    use EngineCode as C;
    !matches!(
        error.code(),
        C::SqlError
            | C::InvalidRequest
            | C::TooManyParameters
            | C::SqlTooLong
            | C::ResultTooLarge
            | C::DatabaseBusy
            | C::DatabaseReadOnly
            | C::Maintenance
            | C::InsufficientPermissions
            | C::QueryTimeout
            | C::QuotaExceeded
    )
}

const fn step(
    condition: Option<tidelog_engine::streams::Condition>,
    statement: Statement,
    want_rows: bool,
) -> Step {
    Step {
        condition,
        statement,
        want_rows,
    }
}

fn answered(document: Json, end: TurnEnd) -> Answer {
    let mut answer = Answer::ok(document).at(Some(end.bookmark), end.durable_bookmark);
    answer.schema_changed = end.schema_changed;
    answer
}

type Ran = Result<(tidelog_engine::StatementResult, Duration), tidelog_engine::Error>;

/// What a statement answered, taken into account.
fn result(ran: &Ran, account: &mut Account) -> Result<Json, Json> {
    match ran {
        Ok((result, took)) => {
            account.cost.read += result.rows_read;
            account.cost.written += result.rows_written;
            Ok(wire::result(result, shape::millis(*took)))
        }
        Err(error) => Err(failure(error, account)),
    }
}

/// The answer to one request of a pipeline.
fn response(kind: &str, outcome: Result<Json, Json>) -> Json {
    match outcome {
        Ok(mut body) => {
            body["type"] = json!(kind);
            json!({ "type": "ok", "response": body })
        }
        Err(error) => json!({ "type": "error", "error": error }),
    }
}

/// A request of a pipeline.
enum Ready {
    /// As it came.
    Request(StreamRequest),
    /// A statement that was read already, and whether its rows are wanted.
    Statement(Statement, bool),
}

/// Runs a pipeline on its stream. An error ends the stream.
async fn run(
    call: Call,
    database: Database,
    stream: Held,
    requests: Result<Vec<Ready>, Problem>,
    asked: Result<Option<Durability>, Problem>,
    began: u64,
) -> Result<Answer, Problem> {
    let mut account = Account::of(began);
    let ran = run_all(&call, &database, stream, requests, asked, &mut account);
    let answered = ran.await;
    // What ran before a request failed whole stands, and is on record.
    let failed = answered.as_ref().err();
    account.close(&call, &database, failed, failed.is_none())?;
    answered
}

async fn run_all(
    call: &Call,
    database: &Database,
    stream: Held,
    requests: Result<Vec<Ready>, Problem>,
    asked: Result<Option<Durability>, Problem>,
    account: &mut Account,
) -> Result<Answer, Problem> {
    let mut using = Use {
        call,
        held: Some(stream),
    };
    let limits = query::sql_limits(&call.app.limits);
    let stream = using.held()?.stream.clone();
    let access = call.sql_access()?;
    let mut turn = stream
        .enter(database.clone(), access, limits, asked?)
        .await?;
    let requests = requests?;
    let close = requests
        .iter()
        .position(|one| matches!(one, Ready::Request(StreamRequest::Close {})));
    if close.is_some_and(|at| at + 1 != requests.len()) {
        return Err(malformed("close is the last request of its stream"));
    }
    let mut budget = limits.result_bytes_max;
    let mut results = Vec::with_capacity(requests.len());
    for request in requests {
        let held = using.held()?;
        let one = answer_one(&mut turn, held, request, &limits, &mut budget, account).await;
        account.schema_changed = turn.schema_changed();
        results.push(one?);
    }
    let end = turn.finish().await?;
    let baton = if close.is_some() {
        drop(turn);
        None
    } else {
        turn.keep()?;
        match using.held.take() {
            None => None,
            Some(held) => {
                let baton = call.app.hrana.baton(&held, &owner(call, database)?);
                call.app.hrana.keep(held);
                Some(baton)
            }
        }
    };
    drop(using);
    Ok(answered(
        json!({ "baton": baton, "base_url": null, "results": results }),
        end,
    ))
}

/// Runs one statement on a stream.
async fn execute(
    turn: &mut Turn,
    statement: Statement,
    want_rows: bool,
    limits: &Limits,
    budget: &mut usize,
    account: &mut Account,
) -> Result<Json, Problem> {
    account.texts.push(statement.sql.clone());
    let sink = Results::of(1, *limits, *budget);
    let steps = vec![step(None, statement, want_rows)];
    let ran = turn.program(steps, sink).await?;
    *budget = ran.budget;
    match ran.steps.first() {
        Some(Some(one)) => {
            let result = result(one, account).map(|result| json!({ "result": result }));
            Ok(response("execute", result))
        }
        _ => Err(Problem::new(Code::Internal, "a statement left no result")),
    }
}

/// Runs one request of a pipeline. An error is the whole pipeline's.
async fn answer_one(
    turn: &mut Turn,
    held: &mut Held,
    request: Ready,
    limits: &Limits,
    budget: &mut usize,
    account: &mut Account,
) -> Result<Json, Problem> {
    let request = match request {
        Ready::Request(request) => request,
        Ready::Statement(statement, want_rows) => {
            return execute(turn, statement, want_rows, limits, budget, account).await;
        }
    };
    Ok(match request {
        StreamRequest::Execute { stmt } => {
            let want_rows = stmt.want_rows();
            match stmt.statement(&held.texts) {
                Err(wrong) => {
                    account.failures.add_wrong();
                    response("execute", Err(wrong))
                }
                Ok(statement) => {
                    execute(turn, statement, want_rows, limits, budget, account).await?
                }
            }
        }
        StreamRequest::Batch { batch } => {
            let (steps, wrong) = steps(batch.steps, held)?;
            account
                .texts
                .extend(steps.iter().map(|step| step.statement.sql.clone()));
            let sink = Results::of(steps.len(), *limits, *budget);
            let ran = turn.program(steps, sink).await?;
            *budget = ran.budget;
            response(
                "batch",
                Ok(json!({ "result": batched(&ran, wrong, account) })),
            )
        }
        StreamRequest::Sequence { sql, sql_id } => {
            let outcome = match wire::text(sql, sql_id, &held.texts) {
                Err(wrong) => Err(wrong),
                Ok(sql) => {
                    let ran = turn.sequence(&sql).await?;
                    account.texts.push(sql);
                    ran.map_err(|error| failure(&error, account))
                }
            };
            response("sequence", outcome.map(|()| json!({})))
        }
        StreamRequest::Describe { sql, sql_id } => {
            let outcome = match wire::text(sql, sql_id, &held.texts) {
                Err(wrong) => Err(wrong),
                Ok(sql) => {
                    let described = turn.describe(&sql).await?;
                    described
                        .map(|one| json!({ "result": wire::described(&one) }))
                        .map_err(|error| failure(&error, account))
                }
            };
            response("describe", outcome)
        }
        StreamRequest::StoreSql { sql_id, sql } => {
            let stored = held.texts.store(sql_id, sql).map_err(|why| match why {
                NotStored::TooMany => {
                    plain("SQL_STORE_TOO_MANY", "a stream stores at most 50 SQL texts")
                }
                NotStored::TooLarge => plain(
                    "SQL_STORE_TOO_LARGE",
                    "a stored SQL text has at most 5000 bytes",
                ),
            });
            response("store_sql", stored.map(|()| json!({})))
        }
        StreamRequest::CloseSql { sql_id } => {
            held.texts.close(sql_id);
            response("close_sql", Ok(json!({})))
        }
        StreamRequest::GetAutocommit {} => {
            let body = json!({ "is_autocommit": turn.is_autocommit() });
            response("get_autocommit", Ok(body))
        }
        StreamRequest::Close {} => response("close", Ok(json!({}))),
    })
}

/// The steps of a batch as the engine runs them, and the errors of those that are wrong already. Such a step runs
/// an empty text, which fails too, so that what depends on it sees a failed step.
fn steps(batch: Vec<BatchStep>, held: &Held) -> Result<(Vec<Step>, Vec<Option<Wrong>>), Problem> {
    let (mut steps, mut wrongs) = (
        Vec::with_capacity(batch.len()),
        Vec::with_capacity(batch.len()),
    );
    for (index, one) in batch.into_iter().enumerate() {
        let (condition, stmt): (_, Stmt) = one.split(index).map_err(malformed)?;
        let want_rows = stmt.want_rows();
        let (statement, wrong) = match stmt.statement(&held.texts) {
            Ok(statement) => (statement, None),
            Err(wrong) => {
                let nothing = Statement {
                    sql: String::new(),
                    params: tidelog_engine::Params::None,
                };
                (nothing, Some(wrong))
            }
        };
        steps.push(step(condition, statement, want_rows));
        wrongs.push(wrong);
    }
    Ok((steps, wrongs))
}

/// A statement's error, taken into account.
fn failure(error: &tidelog_engine::Error, account: &mut Account) -> Json {
    account.failures.add(error);
    of_statement(error)
}

fn batched(ran: &Results, wrongs: Vec<Option<Wrong>>, account: &mut Account) -> Json {
    let (mut results, mut failures) = (Vec::new(), Vec::new());
    for (one, wrong) in ran.steps.iter().zip(wrongs) {
        let (result, error) = match one.as_ref().map(|ran| result(ran, account)) {
            None => (Json::Null, Json::Null),
            Some(Ok(result)) => (result, Json::Null),
            Some(Err(error)) => (Json::Null, wrong.unwrap_or(error)),
        };
        results.push(result);
        failures.push(error);
    }
    json!({ "step_results": results, "step_errors": failures, "replication_index": null })
}

pub(super) async fn cursor(mut call: Call) -> Result<Answer, Problem> {
    let asked = asked(&mut call);
    let database = database(&call).await?;
    let CursorBody { baton, batch } = body(&call)?;
    let stream = held(&call, &database, baton.as_deref())?;
    let owner = owner(&call, &database)?;
    let began = call.app.clock.monotonic_micros();
    let mut using = Use {
        call: &call,
        held: Some(stream),
    };
    let limits = query::sql_limits(&call.app.limits);
    let stream = using.held()?.stream.clone();
    let access = call.sql_access()?;
    let turn = stream
        .enter(database.clone(), access, limits, asked?)
        .await?;
    let batch: wire::Batch = serde_json::from_value(batch).map_err(malformed)?;
    let (steps, wrongs) = steps(batch.steps, using.held()?)?;
    // The lines have no room for an error before a step begins: a wrong argument refuses the cursor whole.
    if let Some(wrong) = wrongs.into_iter().flatten().next() {
        return Err(malformed(wrong["message"].as_str().unwrap_or_default()));
    }
    let at = database.bookmark().await?;
    let lost = || Problem::new(Code::Internal, "a stream was used after its end");
    let held = using.held.take().ok_or_else(lost)?;
    drop(using);
    let (to, pieces) = mpsc::channel::<Piece>(PIECES);
    let first = json!({ "baton": call.app.hrana.baton(&held, &owner), "base_url": null });
    let mut line = Vec::new();
    wire::line(&mut line, &first);
    // There is room for the first of several.
    let _ = to.try_send(Ok(line.into()));
    tokio::spawn(produce(call, database, (turn, held), steps, to, began));
    let body = Body::from_stream(futures::stream::unfold(pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (piece, pieces))
    }));
    Ok(Answer::other("application/x-ndjson", body).at(Some(at.bookmark), at.durable_bookmark))
}

/// Runs the steps of a cursor while its lines are read.
async fn produce(
    call: Call,
    database: Database,
    (mut turn, held): (Turn, Held),
    steps: Vec<Step>,
    to: mpsc::Sender<Piece>,
    began: u64,
) {
    let mut using = Use {
        call: &call,
        held: Some(held),
    };
    let texts = steps
        .iter()
        .map(|step| step.statement.sql.clone())
        .collect();
    let mut account = Account::of(began);
    account.texts = texts;
    let lines = || {
        let clock = Arc::clone(&call.app.clock);
        Lines::new(to.clone(), call.app.limits.cursor_pause, clock)
    };
    let ran = turn.program(steps, lines()).await;
    account.schema_changed = turn.schema_changed();
    let ended = match ran {
        Err(error) => {
            drop(turn);
            account.failures.add(&error);
            Err((None, error))
        }
        Ok(mut lines) => {
            account.failures = std::mem::take(&mut lines.failures);
            account.cost = Cost {
                read: lines.read,
                written: lines.written,
            };
            // The stream is free before the client knows that its answer is whole.
            match turn.keep() {
                Ok(()) => {
                    if let Some(held) = using.held.take() {
                        call.app.hrana.keep(held);
                    }
                    Ok(lines)
                }
                Err(error) => Err((Some(lines), error)),
            }
        }
    };
    drop(using);
    // On record before the client knows that its answer is whole.
    if let Err(problem) = account.close(&call, &database, None, false) {
        tracing::debug!(code = problem.code(), "a cursor was not counted");
    }
    // A client that reads no more has its stream closed by what was dropped; there is nobody to tell.
    let _ = match ended {
        Ok(lines) => {
            let last = json!({ "type": "replication_index", "replication_index": null });
            lines.last(&last).await
        }
        Err((last_lines, error)) => {
            let last = json!({ "type": "error", "error": of_statement(&error) });
            last_lines.unwrap_or_else(lines).last(&last).await
        }
    };
}
