//! Answers of earlier calls, kept in the tenant's own database: an answer commits with its effect, so that a
//! crash cannot separate them.
//!
//! The table `_tidelog_requests` is made at the first keyed write and is closed to tenant SQL. A row names the
//! database it was made in: exports, forks and archives carry the table along, and rows of another database
//! are ignored and pruned. Rows live for 24 hours.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tidelog_wal::{DatabaseId, Timestamp};

use crate::error::{Code, Error};
use crate::request::IdempotencyKey;
use crate::sql::connection::Sqlite;
use crate::sql::own;
use crate::sql::run::{Column, StatementResult, Value, sql_error};

/// How long an answer is kept.
pub(crate) const KEEP_MICROS: u64 = 24 * 3600 * 1_000_000;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS _tidelog_requests(\
    key TEXT PRIMARY KEY, database BLOB NOT NULL, fingerprint BLOB NOT NULL, \
    at INTEGER NOT NULL, answer TEXT NOT NULL) WITHOUT ROWID";

pub(crate) fn row_key(key: &IdempotencyKey) -> String {
    format!("{}\u{0}{}", key.scope, key.key)
}

fn micros(at: Timestamp) -> i64 {
    i64::try_from(at.micros()).unwrap_or(i64::MAX)
}

/// The stored answer of an earlier call with this key, made in this database in the last 24 hours.
pub(crate) fn find(
    sqlite: &Sqlite,
    id: DatabaseId,
    key: &IdempotencyKey,
    now: Timestamp,
) -> Result<Option<Vec<StatementResult>>, Error> {
    let oldest = micros(now).saturating_sub_unsigned(KEEP_MICROS);
    let found = sqlite.as_engine(|connection| {
        connection.execute_batch(TABLE)?;
        let mut select = connection.prepare_cached(own::FIND_REQUEST)?;
        let mut rows = select.query(rusqlite::params![row_key(key), id.as_bytes(), oldest])?;
        rows.next()?
            .map(|row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?)))
            .transpose()
    });
    match found.map_err(|error| sql_error(sqlite, error))? {
        None => Ok(None),
        Some((fingerprint, _)) if fingerprint != key.fingerprint => Err(Error::new(
            Code::IdempotencyKeyReused,
            "the Idempotency-Key was used for another request in the last 24 hours",
        )),
        Some((_, answer)) => decode(&answer).map(Some),
    }
}

/// The keys of all answers that this database holds of its own.
pub(crate) fn request_keys(connection: &Connection, id: DatabaseId) -> Result<Vec<String>, Error> {
    let keys = (|| {
        let made: bool = connection.query_row(
            "SELECT EXISTS(SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_tidelog_requests')",
            [],
            |row| row.get(0),
        )?;
        if !made {
            return Ok(Vec::new());
        }
        let mut select =
            connection.prepare("SELECT key FROM _tidelog_requests WHERE database = ?1")?;
        select
            .query_map([id.as_bytes()], |row| row.get(0))?
            .collect()
    })();
    keys.map_err(|e| Error::new(Code::Internal, "read the Idempotency-Keys").caused_by(e))
}

/// Stores the answer, and prunes what is too old or was made elsewhere.
pub(crate) fn store(
    sqlite: &Sqlite,
    id: DatabaseId,
    key: &IdempotencyKey,
    now: Timestamp,
    results: &[StatementResult],
) -> Result<(), Error> {
    let answer = encode(results)?;
    let oldest = micros(now).saturating_sub_unsigned(KEEP_MICROS);
    let stored = sqlite.as_engine(|connection| {
        connection
            .prepare_cached(own::PRUNE_REQUESTS)?
            .execute(rusqlite::params![oldest, id.as_bytes()])?;
        connection
            .prepare_cached(own::STORE_REQUEST)?
            .execute(rusqlite::params![
                row_key(key),
                id.as_bytes(),
                key.fingerprint,
                micros(now),
                answer
            ])
    });
    stored.map(|_| ()).map_err(|error| sql_error(sqlite, error))
}

#[derive(Serialize, Deserialize)]
struct Answer {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    rows_read: u64,
    rows_written: u64,
    last_insert_rowid: Option<i64>,
    changes: u64,
}

#[derive(Serialize, Deserialize)]
enum Cell {
    #[serde(rename = "n")]
    Null,
    #[serde(rename = "i")]
    Integer(i64),
    /// The bits, so that every value comes back as it was.
    #[serde(rename = "r")]
    Real(u64),
    #[serde(rename = "t")]
    Text(String),
    #[serde(rename = "b")]
    Blob(Vec<u8>),
}

fn encode(results: &[StatementResult]) -> Result<String, Error> {
    let cell = |value: &Value| match value {
        Value::Null => Cell::Null,
        Value::Integer(i) => Cell::Integer(*i),
        Value::Real(r) => Cell::Real(r.to_bits()),
        Value::Text(text) => Cell::Text(text.clone()),
        Value::Blob(bytes) => Cell::Blob(bytes.clone()),
    };
    let answers: Vec<Answer> = results
        .iter()
        .map(|result| Answer {
            columns: result.columns.clone(),
            rows: result
                .rows
                .iter()
                .map(|row| row.iter().map(cell).collect())
                .collect(),
            rows_read: result.rows_read,
            rows_written: result.rows_written,
            last_insert_rowid: result.last_insert_rowid,
            changes: result.changes,
        })
        .collect();
    serde_json::to_string(&answers).map_err(|e| Error::internal("store an answer").caused_by(e))
}

fn decode(answer: &str) -> Result<Vec<StatementResult>, Error> {
    let answers: Vec<Answer> = serde_json::from_str(answer)
        .map_err(|e| Error::new(Code::DatabaseCorrupt, "read a stored answer").caused_by(e))?;
    let value = |cell| match cell {
        Cell::Null => Value::Null,
        Cell::Integer(i) => Value::Integer(i),
        Cell::Real(bits) => Value::Real(f64::from_bits(bits)),
        Cell::Text(text) => Value::Text(text),
        Cell::Blob(bytes) => Value::Blob(bytes),
    };
    Ok(answers
        .into_iter()
        .map(|answer| StatementResult {
            columns: answer.columns,
            rows: answer
                .rows
                .into_iter()
                .map(|r| r.into_iter().map(value).collect())
                .collect(),
            rows_read: answer.rows_read,
            rows_written: answer.rows_written,
            last_insert_rowid: answer.last_insert_rowid,
            changes: answer.changes,
        })
        .collect())
}
