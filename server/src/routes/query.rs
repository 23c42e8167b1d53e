//! SQL: one statement, or a batch in one transaction.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_engine::system::insights::QueryNote;
use tidelog_engine::system::tokens::token_id_text;
use tidelog_engine::{
    Database, Durability, Limits as SqlLimits, Request, Response, Statement, StatementResult,
};

use super::shape;
use crate::fields::Fields;
use crate::http::rows::{Rows, weight};
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::redact::{SQL_BYTES_MAX, sql_shape};
use crate::settings::Limits;
use crate::values::{Integers, params};

/// Answers below this are not counted while they are written: there are more of them than they weigh.
const HELD_BYTES_MIN: u64 = 64 << 10;

/// What query and batch share beside their statements.
struct Options {
    durability: Option<Durability>,
    integers: Integers,
}

fn options(call: &mut Call) -> Result<Options, Problem> {
    let durability = call.body.word("durability", str::parse::<Durability>)?;
    let integers = call.body.word("integers", |word| match word {
        "number" => Ok(Integers::Number),
        "string" => Ok(Integers::String),
        _ => Err(format!("integers is number or string, not {word:?}")),
    })?;
    Ok(Options {
        durability,
        integers: integers.unwrap_or_default(),
    })
}

fn statement(fields: &mut Fields) -> Result<Statement, Problem> {
    let sql = fields.required_text("sql")?;
    let at = fields.at("params");
    let params = params(fields.take("params"), &at)?;
    Ok(Statement { sql, params })
}

async fn run(
    call: &mut Call,
    statements: Vec<Statement>,
    transaction: bool,
    durability: Option<Durability>,
) -> Result<(Response, Duration), Problem> {
    call.finish()?;
    let limits = &call.app.limits;
    let tenant = call.principal()?.token.namespace;
    let answers = &call.app.guards.answers;
    answers.admit(tenant, limits.untaken_bytes_per_namespace)?;
    let request = Request {
        statements,
        transaction,
        durability,
        access: call.sql_access()?,
        limits: sql_limits(&call.app.limits),
        idempotency: call.idempotency.take(),
    };
    let database = call.database().await?;
    let texts: Vec<String> = request
        .statements
        .iter()
        .map(|one| one.sql.clone())
        .collect();
    let began = call.app.clock.monotonic_micros();
    let outcome = database.execute(request).await.map_err(Problem::from);
    let micros = call.app.clock.monotonic_micros().saturating_sub(began);
    let took = Duration::from_micros(micros);
    let (status, cost) = match &outcome {
        Err(problem) => (problem.status().as_u16(), Cost::default()),
        Ok(response) => (200, Cost::of(&response.results)),
    };
    note(call, &database, status, cost, took)?;
    slow(call, &database, &texts, took)?;
    Ok((outcome?, took))
}

/// The limits of SQL, for whoever runs some.
pub(super) fn sql_limits(limits: &Limits) -> SqlLimits {
    SqlLimits {
        rows_max: limits.rows_max,
        result_bytes_max: limits.result_bytes_max,
        sql_len_max: limits.sql_bytes_max,
        params_max: limits.params_max,
        tables_max: limits.tables_max,
        deadline: limits.query_deadline,
    }
}

/// What statements read and wrote.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

impl Cost {
    fn of(results: &[StatementResult]) -> Self {
        Self {
            read: results.iter().map(|result| result.rows_read).sum(),
            written: results.iter().map(|result| result.rows_written).sum(),
        }
    }
}

/// Counts the query for the insights of its database.
pub(crate) fn note(
    call: &Call,
    database: &Database,
    status: u16,
    cost: Cost,
    took: Duration,
) -> Result<(), Problem> {
    call.app.engine.note_query(&QueryNote {
        database: database.row().id,
        token: call.principal()?.token.id,
        status,
        rows_read: cost.read,
        rows_written: cost.written,
        took,
    });
    Ok(())
}

/// Keeps a query if it was slow: its text without literals, never its parameters.
pub(crate) fn slow(
    call: &Call,
    database: &Database,
    texts: &[String],
    took: Duration,
) -> Result<(), Problem> {
    if took < call.app.limits.slow_query {
        return Ok(());
    }
    let meters = &call.app.guards.meters;
    meters.slow_queries.fetch_add(1, Ordering::Relaxed);
    let mut sql = String::new();
    for text in texts {
        if sql.len() >= SQL_BYTES_MAX {
            break;
        }
        if !sql.is_empty() {
            sql.push_str("; ");
        }
        sql.push_str(&sql_shape(text));
    }
    let line = json!({
        "sql": sql.chars().take(SQL_BYTES_MAX).collect::<String>(),
        "statements": texts.len(),
        "duration_ms": shape::millis(took),
        "token": token_id_text(&call.principal()?.token.id),
        "request_id": call.request_id,
    });
    call.app.engine.note_slow(database.row().id, line);
    Ok(())
}

/// The answer: `document` holds the results without their rows, in the order of `response`.
fn answer(
    call: &Call,
    mut document: Json,
    mut response: Response,
    integers: Integers,
    took: Duration,
) -> Result<Answer, Problem> {
    document["duration_ms"] = json!(shape::millis(took));
    document["bookmark"] = shape::position(Some(response.bookmark));
    document["durable_bookmark"] = shape::position(response.durable_bookmark);
    let results = std::mem::take(&mut response.results);
    let tables: Vec<_> = results.into_iter().map(|result| result.rows).collect();
    let bytes: u64 = tables.iter().map(|table| weight(table)).sum();
    let mut rows = Rows::new(&document, tables, integers);
    if bytes >= HELD_BYTES_MIN {
        let tenant = call.principal()?.token.namespace;
        rows = rows.held(call.app.guards.answers.hold(tenant, bytes));
    }
    let mut answer = Answer::rows(rows).at(Some(response.bookmark), response.durable_bookmark);
    answer.schema_changed = response.schema_changed;
    Ok(if response.replayed {
        answer.replayed()
    } else {
        answer
    })
}

pub(super) async fn query(mut call: Call) -> Result<Answer, Problem> {
    let options = options(&mut call)?;
    let statement = statement(&mut call.body)?;
    let (response, took) = run(&mut call, vec![statement], true, options.durability).await?;
    let [result] = &response.results[..] else {
        let detail = "a statement was run and left no result";
        return Err(Problem::new(Code::Internal, detail));
    };
    let document = shape::result(result, options.integers);
    answer(&call, document, response, options.integers, took)
}

pub(super) async fn batch(mut call: Call) -> Result<Answer, Problem> {
    let options = options(&mut call)?;
    let transaction = call.body.boolean("transaction")?.unwrap_or(true);
    let Some(Json::Array(listed)) = call.body.take("statements") else {
        let detail = "statements is required: an array of objects with sql and params";
        return Err(Problem::invalid(
            Code::InvalidRequest,
            "/statements",
            detail,
        ));
    };
    let max = call.app.limits.batch_max;
    if listed.is_empty() || listed.len() > max {
        let detail = format!("a batch has 1 to {max} statements");
        let problem = Problem::invalid(Code::InvalidRequest, "/statements", detail);
        return Err(problem.with("limit", max));
    }
    let mut statements = Vec::with_capacity(listed.len());
    for (index, value) in listed.into_iter().enumerate() {
        let mut fields = Fields::of_value(value, &format!("/statements/{index}"))?;
        statements.push(statement(&mut fields)?);
        fields.finish()?;
    }
    let (response, took) = run(&mut call, statements, transaction, options.durability).await?;
    let results = response.results.iter();
    let results: Vec<Json> = results
        .map(|result| shape::result(result, options.integers))
        .collect();
    let document = json!({ "results": results });
    answer(&call, document, response, options.integers, took)
}
