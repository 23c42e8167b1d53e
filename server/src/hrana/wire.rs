//! The JSON of Hrana 2 and 3. Fields that are not known here are ignored: later versions add some.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidelog_engine::streams::{Condition, Described};
use tidelog_engine::{Column, Params, Statement, StatementResult, Tally, Value};

use super::errors::plain;
use super::table::Texts;

/// How deep conditions may be nested.
const DEPTH_MAX: usize = 32;

/// A pipeline. The requests are read one by one, so that the stream is known when one of them is malformed.
#[derive(Debug, Deserialize)]
pub(crate) struct PipelineBody {
    #[serde(default)]
    pub(crate) baton: Option<String>,
    pub(crate) requests: Vec<Json>,
}

/// What a cursor runs.
#[derive(Debug, Deserialize)]
pub(crate) struct CursorBody {
    #[serde(default)]
    pub(crate) baton: Option<String>,
    pub(crate) batch: Json,
}

/// One request of a pipeline.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StreamRequest {
    Execute {
        stmt: Stmt,
    },
    Batch {
        batch: Batch,
    },
    Sequence {
        #[serde(default)]
        sql: Option<String>,
        #[serde(default)]
        sql_id: Option<i32>,
    },
    Describe {
        #[serde(default)]
        sql: Option<String>,
        #[serde(default)]
        sql_id: Option<i32>,
    },
    StoreSql {
        sql_id: i32,
        sql: String,
    },
    CloseSql {
        sql_id: i32,
    },
    GetAutocommit {},
    Close {},
}

/// A statement.
#[derive(Debug, Deserialize)]
pub(crate) struct Stmt {
    #[serde(default)]
    sql: Option<String>,
    #[serde(default)]
    sql_id: Option<i32>,
    #[serde(default)]
    args: Vec<WireValue>,
    #[serde(default)]
    named_args: Vec<NamedArg>,
    #[serde(default)]
    want_rows: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct NamedArg {
    name: String,
    value: WireValue,
}

/// A batch.
#[derive(Debug, Deserialize)]
pub(crate) struct Batch {
    pub(crate) steps: Vec<BatchStep>,
}

/// A step of a batch.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchStep {
    #[serde(default)]
    condition: Option<WireCondition>,
    stmt: Stmt,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireCondition {
    Ok { step: usize },
    Error { step: usize },
    Not { cond: Box<Self> },
    And { conds: Vec<Self> },
    Or { conds: Vec<Self> },
    IsAutocommit {},
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireValue {
    Null,
    Integer { value: String },
    Float { value: f64 },
    Text { value: String },
    Blob { base64: String },
}

/// A statement that is wrong before SQLite sees it: the error it is answered with.
pub(crate) type Wrong = Json;

impl Stmt {
    /// The text of a statement that names it itself.
    pub(crate) const fn is_whole(&self) -> bool {
        self.sql.is_some() && self.sql_id.is_none()
    }

    pub(crate) fn want_rows(&self) -> bool {
        self.want_rows.unwrap_or(true)
    }

    /// The statement, its text taken from the stored ones if it says so.
    pub(crate) fn statement(self, texts: &Texts) -> Result<Statement, Wrong> {
        let sql = text(self.sql, self.sql_id, texts)?;
        let params = match (self.args.is_empty(), self.named_args.is_empty()) {
            (true, true) => Params::None,
            (false, true) => {
                let values = self.args.into_iter().map(WireValue::value);
                Params::Positional(values.collect::<Result<_, _>>()?)
            }
            (true, false) => {
                let named = self.named_args.into_iter();
                let values = named.map(|arg| Ok((arg.name, arg.value.value()?)));
                Params::Named(values.collect::<Result<_, Wrong>>()?)
            }
            (false, false) => {
                let what = "a statement has positional or named arguments, not both";
                return Err(plain("ARGS_BOTH_POSITIONAL_AND_NAMED", what));
            }
        };
        Ok(Statement { sql, params })
    }
}

/// A text, given or stored.
pub(crate) fn text(
    sql: Option<String>,
    sql_id: Option<i32>,
    texts: &Texts,
) -> Result<String, Wrong> {
    match (sql, sql_id) {
        (Some(sql), None) => Ok(sql),
        (None, Some(id)) => texts.get(id).map(str::to_owned).ok_or_else(|| {
            plain(
                "SQL_NOT_STORED",
                &format!("no SQL text is stored with id {id}"),
            )
        }),
        _ => Err(plain(
            "SQL_INPUT_ERROR",
            "give exactly one of sql and sql_id",
        )),
    }
}

impl WireValue {
    fn value(self) -> Result<Value, Wrong> {
        let wrong = |what: &str| plain("ARGS_INVALID", what);
        Ok(match self {
            Self::Null => Value::Null,
            Self::Integer { value } => Value::Integer(
                value
                    .parse()
                    .map_err(|_| wrong("an integer is a decimal text of 64 bits"))?,
            ),
            Self::Float { value } => Value::Real(value),
            Self::Text { value } => Value::Text(value),
            Self::Blob { base64 } => Value::Blob(
                STANDARD
                    .decode(&base64)
                    .or_else(|_| STANDARD_NO_PAD.decode(&base64))
                    .map_err(|_| wrong("a blob is base64"))?,
            ),
        })
    }
}

impl BatchStep {
    /// Condition and statement; the error is the whole request's.
    pub(crate) fn split(self, index: usize) -> Result<(Option<Condition>, Stmt), String> {
        let condition = self
            .condition
            .map(|condition| condition.checked(index, DEPTH_MAX))
            .transpose()?;
        Ok((condition, self.stmt))
    }
}

impl WireCondition {
    fn checked(self, index: usize, depth: usize) -> Result<Condition, String> {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| format!("conditions are nested deeper than {DEPTH_MAX}"))?;
        let earlier = |step: usize| {
            if step < index {
                Ok(step)
            } else {
                Err(format!(
                    "the condition of step {index} asks for step {step}, which is not before it"
                ))
            }
        };
        let all = |conds: Vec<Self>| -> Result<Vec<Condition>, String> {
            conds
                .into_iter()
                .map(|one| one.checked(index, depth))
                .collect()
        };
        Ok(match self {
            Self::Ok { step } => Condition::Ok(earlier(step)?),
            Self::Error { step } => Condition::Error(earlier(step)?),
            Self::Not { cond } => Condition::Not(Box::new(cond.checked(index, depth)?)),
            Self::And { conds } => Condition::And(all(conds)?),
            Self::Or { conds } => Condition::Or(all(conds)?),
            Self::IsAutocommit {} => Condition::IsAutocommit,
        })
    }
}

/// A value as it leaves. An infinity has no JSON; it leaves as a float of null, as Turso's does.
pub(crate) fn value(value: &Value) -> Json {
    match value {
        Value::Null => json!({ "type": "null" }),
        Value::Integer(number) => json!({ "type": "integer", "value": number.to_string() }),
        Value::Real(number) => json!({ "type": "float", "value": number }),
        Value::Text(text) => json!({ "type": "text", "value": text }),
        Value::Blob(bytes) => json!({ "type": "blob", "base64": STANDARD_NO_PAD.encode(bytes) }),
    }
}

/// The columns as they leave.
pub(crate) fn columns(columns: &[Column]) -> Json {
    columns
        .iter()
        .map(|column| json!({ "name": column.name, "decltype": column.decltype }))
        .collect()
}

/// The result of a statement.
pub(crate) fn result(result: &StatementResult, duration_ms: f64) -> Json {
    let rows: Vec<Json> = result
        .rows
        .iter()
        .map(|row| row.iter().map(value).collect())
        .collect();
    json!({
        "cols": columns(&result.columns),
        "rows": rows,
        "affected_row_count": result.changes,
        "last_insert_rowid": rowid(result.last_insert_rowid),
        "rows_read": result.rows_read,
        "rows_written": result.rows_written,
        "query_duration_ms": duration_ms,
        "replication_index": null,
    })
}

/// A text, for it has 64 bits; clients need the member.
fn rowid(last: Option<i64>) -> Option<String> {
    last.map(|rowid| rowid.to_string())
}

/// What a statement would be.
pub(crate) fn described(described: &Described) -> Json {
    let params: Vec<Json> = described
        .params
        .iter()
        .map(|name| json!({ "name": name }))
        .collect();
    json!({
        "params": params,
        "cols": columns(&described.columns),
        "is_explain": described.is_explain,
        "is_readonly": described.is_readonly,
    })
}

/// Appends one line of a cursor.
pub(crate) fn line(to: &mut Vec<u8>, entry: &Json) {
    // Writing to memory does not fail.
    let _ = writeln!(to, "{entry}");
}

/// The end of the step that began last, for a cursor.
pub(crate) fn step_end(tally: &Tally) -> Json {
    json!({
        "type": "step_end",
        "affected_row_count": tally.changes,
        "last_insert_rowid": rowid(tally.last_insert_rowid),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stmt(json: Json) -> Stmt {
        serde_json::from_value(json).expect("a statement")
    }

    #[test]
    fn arguments_are_of_one_kind_and_exact() {
        let texts = Texts::default();
        let args = json!([{ "type": "integer", "value": "-9223372036854775808" }, { "type": "float", "value": 1 },
            { "type": "blob", "base64": "AP8" }, { "type": "blob", "base64": "AP8=" }, { "type": "null" }]);
        let statement = stmt(json!({ "sql": "x", "args": args })).statement(&texts);
        let expected = vec![
            Value::Integer(i64::MIN),
            Value::Real(1.0),
            Value::Blob(vec![0, 255]),
            Value::Blob(vec![0, 255]),
            Value::Null,
        ];
        assert_eq!(
            statement.expect("good").params,
            Params::Positional(expected)
        );
        let named = json!([{ "name": "a", "value": { "type": "text", "value": "b" } }]);
        let both = json!({ "sql": "x", "args": [{ "type": "null" }], "named_args": named });
        let wrong = stmt(both).statement(&texts).expect_err("both kinds");
        assert_eq!(wrong["code"], "ARGS_BOTH_POSITIONAL_AND_NAMED");
        for (bad, code) in [
            (
                json!({ "sql": "x", "args": [{ "type": "integer", "value": "1.5" }] }),
                "ARGS_INVALID",
            ),
            (
                json!({ "sql": "x", "args": [{ "type": "blob", "base64": "*" }] }),
                "ARGS_INVALID",
            ),
            (json!({}), "SQL_INPUT_ERROR"),
            (json!({ "sql": "x", "sql_id": 1 }), "SQL_INPUT_ERROR"),
            (json!({ "sql_id": 1 }), "SQL_NOT_STORED"),
        ] {
            assert_eq!(stmt(bad).statement(&texts).expect_err("bad")["code"], code);
        }
    }

    #[test]
    fn conditions_look_back_and_are_not_nested_for_ever() {
        let step = |condition: Json| -> BatchStep {
            serde_json::from_value(json!({ "condition": condition, "stmt": { "sql": "x" } }))
                .expect("a step")
        };
        assert!(step(json!({ "type": "ok", "step": 0 })).split(1).is_ok());
        assert!(step(json!({ "type": "ok", "step": 1 })).split(1).is_err());
        assert!(
            step(json!({ "type": "error", "step": 2 }))
                .split(1)
                .is_err()
        );
        let mut deep = json!({ "type": "is_autocommit" });
        for _ in 0..DEPTH_MAX {
            deep = json!({ "type": "not", "cond": deep });
        }
        assert!(step(deep).split(1).is_err());
        assert!(step(json!(null)).split(0).expect("none").0.is_none());
    }
}
