//! SQL: one statement, or a batch in one transaction.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_engine::{Durability, Limits as SqlLimits, Request, Response, Statement};

use super::shape;
use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::values::{Integers, params};

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
    let request = Request {
        statements,
        transaction,
        durability,
        access: call.sql_access()?,
        limits: SqlLimits {
            rows_max: limits.rows_max,
            result_bytes_max: limits.result_bytes_max,
            sql_len_max: limits.sql_bytes_max,
            params_max: limits.params_max,
            tables_max: limits.tables_max,
            deadline: limits.query_deadline,
        },
        idempotency: call.idempotency.take(),
    };
    let database = call.database().await?;
    let began = call.app.clock.monotonic_micros();
    let response = database.execute(request).await?;
    let micros = call.app.clock.monotonic_micros().saturating_sub(began);
    Ok((response, Duration::from_micros(micros)))
}

fn answer(mut document: Json, response: &Response, took: Duration) -> Answer {
    document["duration_ms"] = json!(shape::millis(took));
    document["bookmark"] = shape::position(Some(response.bookmark));
    document["durable_bookmark"] = shape::position(response.durable_bookmark);
    let answer = Answer::ok(document).at(Some(response.bookmark), response.durable_bookmark);
    if response.replayed {
        answer.replayed()
    } else {
        answer
    }
}

pub(super) async fn query(mut call: Call) -> Result<Answer, Problem> {
    let options = options(&mut call)?;
    let statement = statement(&mut call.body)?;
    let (mut response, took) = run(&mut call, vec![statement], true, options.durability).await?;
    let result = response
        .results
        .pop()
        .ok_or_else(|| Problem::new(Code::Internal, "a statement was run and left no result"))?;
    Ok(answer(
        shape::result(result, options.integers),
        &response,
        took,
    ))
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
    let (mut response, took) = run(&mut call, statements, transaction, options.durability).await?;
    let results = std::mem::take(&mut response.results);
    let results: Vec<Json> = results
        .into_iter()
        .map(|result| shape::result(result, options.integers))
        .collect();
    Ok(answer(json!({ "results": results }), &response, took))
}
