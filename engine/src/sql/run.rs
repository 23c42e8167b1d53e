//! Running tenant statements on a connection and collecting what they answer.
//!
//! A statement is prepared under the caller's permission, bound strictly (counts and names must match), run
//! to its end, and its rows are handed out only then: a result over a limit is an error, never a prefix.

use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Statement as Prepared, StatementStatus};

use super::connection::{RowShare, Sqlite};
use super::own::tenant_text;
use super::policy::Refusal;
use crate::error::{Code, Error};

pub use rusqlite::types::Value;

/// The most bytes of one row that are handed out, whatever its receiver takes.
const ROW_BYTES_MAX: usize = 64 << 20;

/// A statement with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// One SQL statement.
    pub sql: String,
    /// Its parameters.
    pub params: Params,
}

/// The parameters of a statement.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Params {
    /// None.
    #[default]
    None,
    /// For `?`, in order.
    Positional(Vec<Value>),
    /// For `:name`, `@name`, `$name`; the prefix may be left out.
    Named(Vec<(String, Value)>),
}

/// Bounds of one request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of one result.
    pub rows_max: usize,
    /// Bytes of all values of one request.
    pub result_bytes_max: usize,
    /// Bytes of one SQL text.
    pub sql_len_max: usize,
    /// Parameters of one statement.
    pub params_max: usize,
    /// Tables a database may have; `None`: as many as it likes.
    pub tables_max: Option<u32>,
    /// How long the request's statements may run.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows_max: 100_000,
            result_bytes_max: 64 << 20,
            sql_len_max: 1 << 20,
            params_max: 1000,
            tables_max: None,
            deadline: Duration::from_secs(30),
        }
    }
}

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The type its column was declared with, if it is one.
    pub decltype: Option<String>,
}

/// What a statement answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StatementResult {
    /// The columns, empty for statements without a result.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
    /// Rows returned plus steps of full scans: a lower bound of what was read.
    pub rows_read: u64,
    /// Rows inserted, updated or deleted, by triggers and cascades too.
    pub rows_written: u64,
    /// The rowid of what the statement inserted last; none if it inserted nothing.
    pub last_insert_rowid: Option<i64>,
    /// Rows changed by the statement itself.
    pub changes: u64,
}

/// Refuses what is over a limit before SQLite sees it.
pub fn check(statement: &Statement, limits: &Limits) -> Result<(), Error> {
    if statement.sql.len() > limits.sql_len_max {
        let (have, limit) = (statement.sql.len(), limits.sql_len_max);
        let what = format!("the SQL text has {have} bytes, the limit is {limit}");
        return Err(Error::new(Code::SqlTooLong, what).with("limit", limit));
    }
    let params = match &statement.params {
        Params::None => 0,
        Params::Positional(values) => values.len(),
        Params::Named(values) => values.len(),
    };
    if params > limits.params_max {
        let limit = limits.params_max;
        let what = format!("the statement has {params} parameters, the limit is {limit}");
        return Err(Error::new(Code::TooManyParameters, what).with("limit", limit));
    }
    Ok(())
}

/// Takes what a statement answers, row by row. An error ends the statement.
pub(crate) trait Rows {
    /// The columns, before the first row; once for every statement.
    fn columns(&mut self, columns: Vec<Column>) -> Result<(), Error>;
    /// One row.
    fn row(&mut self, values: Vec<Value>) -> Result<(), Error>;
    /// Bytes of rows that it may still take; nothing if it wants none.
    fn left(&self) -> Option<usize>;
}

/// What a statement did, beside its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// As in [`StatementResult`].
    pub rows_read: u64,
    /// As in [`StatementResult`].
    pub rows_written: u64,
    /// As in [`StatementResult`].
    pub last_insert_rowid: Option<i64>,
    /// As in [`StatementResult`].
    pub changes: u64,
}

/// Rows, collected within bounds.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Vec<Value>>,
    pub(crate) rows_max: usize,
    /// Bytes of values that may still be collected, of `limit`.
    pub(crate) budget: usize,
    pub(crate) limit: usize,
}

impl Collected {
    /// Nothing yet; `budget` is what is left of the limit.
    pub(crate) fn within(limits: &Limits, budget: usize) -> Self {
        Self {
            rows_max: limits.rows_max,
            budget,
            limit: limits.result_bytes_max,
            ..Self::default()
        }
    }

    /// The result with what the statement did.
    pub(crate) fn result(self, tally: Tally) -> StatementResult {
        StatementResult {
            columns: self.columns,
            rows: self.rows,
            rows_read: tally.rows_read,
            rows_written: tally.rows_written,
            last_insert_rowid: tally.last_insert_rowid,
            changes: tally.changes,
        }
    }
}

impl Rows for Collected {
    fn columns(&mut self, columns: Vec<Column>) -> Result<(), Error> {
        self.columns = columns;
        Ok(())
    }

    fn row(&mut self, values: Vec<Value>) -> Result<(), Error> {
        if self.rows.len() == self.rows_max {
            let what = format!("rows; the limit is {}", self.rows_max);
            return Err(over(&what, self.rows_max));
        }
        let bytes = values.iter().map(weight).sum();
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| {
            let what = format!("bytes; the limit is {}", self.limit);
            over(&what, self.limit)
        })?;
        self.rows.push(values);
        Ok(())
    }

    fn left(&self) -> Option<usize> {
        Some(self.budget)
    }
}

/// What a value counts as.
fn weight(value: &Value) -> usize {
    match value {
        Value::Null | Value::Integer(_) | Value::Real(_) => 8,
        Value::Text(text) => text.len() + 8,
        Value::Blob(bytes) => bytes.len() + 8,
    }
}

/// Prepares and runs `statement`; `budget` is how many bytes of values may still be collected.
pub fn run(
    sqlite: &Sqlite,
    statement: &Statement,
    limits: &Limits,
    budget: &mut usize,
) -> Result<StatementResult, Error> {
    let mut collected = Collected::within(limits, *budget);
    let tally = run_into(sqlite, statement, &mut collected)?;
    *budget = collected.budget;
    Ok(collected.result(tally))
}

/// Prepares and runs `statement`, handing out its rows as they come.
pub(crate) fn run_into(
    sqlite: &Sqlite,
    statement: &Statement,
    receiver: &mut dyn Rows,
) -> Result<Tally, Error> {
    let mut prepared = sqlite
        .raw()
        .prepare_cached(tenant_text(&statement.sql))
        .map_err(|error| sql_error(sqlite, error))?;
    run_prepared(sqlite, &mut prepared, statement, receiver)
}

/// The same, and the statement does not stay prepared.
pub(crate) fn run_anew(
    sqlite: &Sqlite,
    statement: &Statement,
    receiver: &mut dyn Rows,
) -> Result<Tally, Error> {
    let mut prepared = sqlite
        .raw()
        .prepare(tenant_text(&statement.sql))
        .map_err(|error| sql_error(sqlite, error))?;
    run_prepared(sqlite, &mut prepared, statement, receiver)
}

fn run_prepared(
    sqlite: &Sqlite,
    prepared: &mut Prepared<'_>,
    statement: &Statement,
    receiver: &mut dyn Rows,
) -> Result<Tally, Error> {
    let connection = sqlite.raw();
    if is_blank(prepared) {
        return Err(no_statement());
    }
    bind(prepared, &statement.params)?;
    let (total_before, rowid_before) = (connection.total_changes(), connection.last_insert_rowid());
    prepared.reset_status(StatementStatus::FullscanStep);
    let share = sqlite.share_row(prepared.column_count());
    let outcome = pass_on(prepared, receiver);
    let scanned = prepared.get_status(StatementStatus::FullscanStep);
    let answers = prepared.column_count() > 0;
    prepared.clear_bindings();
    let rows = match outcome {
        Ok(rows) => rows,
        Err(Stop::Sqlite(error)) if answers && is_too_big(&error) => {
            return Err(value_too_large(&share));
        }
        Err(Stop::Sqlite(error)) => return Err(sql_error(sqlite, error)),
        Err(Stop::Receiver(error)) => return Err(*error),
    };
    let rows_written = connection.total_changes() - total_before;
    let rowid = connection.last_insert_rowid();
    // SQLite keeps both numbers of whoever wrote last on the connection, which others use as well. An INSERT may
    // give the same rowid in another table.
    let inserted = rows_written > 0 && (rowid != rowid_before || begins_as_insert(&statement.sql));
    Ok(Tally {
        rows_read: rows + u64::try_from(scanned).unwrap_or(0),
        rows_written,
        last_insert_rowid: inserted.then_some(rowid),
        changes: match rows_written {
            0 => 0,
            _ => connection.changes(),
        },
    })
}

/// Whether a text begins as an INSERT does. For telling of what ran: what a statement may do is SQLite's to say.
fn begins_as_insert(sql: &str) -> bool {
    let mut rest = sql;
    loop {
        rest =
            rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\u{b}' || c == ';');
        let comment = match rest.get(..2) {
            Some("--") => rest.split_once('\n'),
            Some("/*") => rest.split_once("*/"),
            _ => break,
        };
        rest = comment.map_or("", |(_, after)| after);
    }
    let mut words = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let inserts = |word: &str| {
        let verbs = ["insert", "replace"];
        verbs.iter().any(|verb| word.eq_ignore_ascii_case(verb))
    };
    match words.next() {
        Some(word) if word.eq_ignore_ascii_case("with") => words.any(inserts),
        word => word.is_some_and(inserts),
    }
}

fn is_too_big(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::TooBig)
}

fn value_too_large(share: &RowShare<'_>) -> Error {
    let limit = share.value_bytes();
    let what = format!(
        "a value or row has more than {limit} bytes, the most for so many columns; ask for fewer columns, \
         or for parts of the value"
    );
    Error::new(Code::ResultTooLarge, what).with("limit", limit)
}

/// Blanks and comments prepare to nothing, which has no counters to ask.
pub(crate) fn is_blank(prepared: &Prepared<'_>) -> bool {
    prepared.column_count() == 0 && prepared.readonly() && prepared.expanded_sql().is_none()
}

/// What a text without a statement is answered.
pub(crate) fn no_statement() -> Error {
    Error::new(Code::SqlError, "the SQL text holds no statement").with("reason", "no-statement")
}

pub(crate) fn columns(prepared: &Prepared<'_>) -> Vec<Column> {
    prepared
        .columns()
        .map(|column| Column {
            name: column.name().to_owned(),
            decltype: column.decl_type().map(str::to_owned),
        })
        .collect()
}

enum Stop {
    Sqlite(rusqlite::Error),
    Receiver(Box<Error>),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Receiver(Box::new(error))
    }
}

/// Steps through the rows; answers how many there were.
fn pass_on(prepared: &mut Prepared<'_>, receiver: &mut dyn Rows) -> Result<u64, Stop> {
    let mut count = 0;
    let mut rows = prepared.raw_query();
    while let Some(row) = rows.next()? {
        if count == 0 {
            // Not before: the first step prepares the statement anew if the schema has changed since.
            receiver.columns(columns(row.as_ref()))?;
        }
        count += 1;
        let Some(left) = receiver.left() else {
            continue;
        };
        let width = row.as_ref().column_count();
        let mut values = Vec::with_capacity(width);
        let mut bytes = 0;
        for i in 0..width {
            let value = owned(row.get_ref(i)?);
            bytes += weight(&value);
            values.push(value);
            if bytes > ROW_BYTES_MAX {
                let what = format!("bytes in one row; the limit is {ROW_BYTES_MAX}");
                return Err(over(&what, ROW_BYTES_MAX).into());
            }
            if bytes > left {
                // Enough for the receiver to refuse the row.
                break;
            }
        }
        receiver.row(values)?;
    }
    drop(rows);
    if count == 0 {
        receiver.columns(columns(prepared))?;
    }
    Ok(count)
}

/// Text that is not UTF-8 (SQLite stores what it is given) comes out as a blob.
fn owned(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(r) => Value::Real(r),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Blob(bytes.to_vec()),
        },
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

fn over(what: &str, limit: usize) -> Error {
    let what = format!("the result has more {what}; ask for less, or page through it");
    Error::new(Code::ResultTooLarge, what).with("limit", limit)
}

fn bind(prepared: &mut Prepared<'_>, params: &Params) -> Result<(), Error> {
    let wanted = prepared.parameter_count();
    let given = match params {
        Params::None => 0,
        Params::Positional(values) => values.len(),
        Params::Named(values) => values.len(),
    };
    if wanted != given {
        let what = format!("the statement has {wanted} parameters, {given} were given");
        return Err(Error::new(Code::InvalidRequest, what));
    }
    let bound = |error| Error::new(Code::InvalidRequest, "bind a parameter").caused_by(error);
    match params {
        Params::None => {}
        Params::Positional(values) => {
            for (i, value) in values.iter().enumerate() {
                prepared.raw_bind_parameter(i + 1, value).map_err(bound)?;
            }
        }
        Params::Named(values) => {
            let mut seen = vec![false; wanted + 1];
            for (name, value) in values {
                let index = parameter(prepared, name)?;
                if std::mem::replace(&mut seen[index], true) {
                    let what = format!("parameter {name} is given twice");
                    return Err(Error::new(Code::InvalidRequest, what));
                }
                prepared.raw_bind_parameter(index, value).map_err(bound)?;
            }
        }
    }
    Ok(())
}

fn parameter(prepared: &Prepared<'_>, name: &str) -> Result<usize, Error> {
    let find = |name: &str| prepared.parameter_index(name).ok().flatten();
    [":", "@", "$"]
        .iter()
        .find_map(|prefix| find(&format!("{prefix}{name}")))
        .or_else(|| find(name))
        .ok_or_else(|| {
            Error::new(
                Code::InvalidRequest,
                format!("the statement has no parameter {name}"),
            )
        })
}

/// Turns what SQLite said, or the policy's reason, into a typed error.
pub fn sql_error(sqlite: &Sqlite, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as C;
    if let Some(refusal) = sqlite.policy().take_refusal() {
        return match refusal {
            Refusal::TransactionControl => Error::new(
                Code::TransactionControl,
                "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are the server's here; \
                 send the statements as one batch",
            ),
            Refusal::Write => Error::new(Code::InsufficientPermissions, "the token may not write")
                .with("required", "operator"),
            Refusal::Ddl => Error::new(
                Code::InsufficientPermissions,
                "the token may not change the schema",
            )
            .with("required", "allow_ddl"),
            Refusal::Forbidden(what) => Error::new(
                Code::SqlError,
                format!("not authorized: {what} is not available here"),
            )
            .with("sqlite_code", "SQLITE_AUTH"),
        };
    }
    match &error {
        rusqlite::Error::MultipleStatement => Error::new(
            Code::SqlError,
            "the text holds more than one statement; send them as a batch",
        )
        .with("reason", "many-statements"),
        rusqlite::Error::SqliteFailure(failure, message) => {
            let text = message.clone().unwrap_or_else(|| failure.to_string());
            let code = match failure.code {
                C::OperationInterrupted => Code::QueryTimeout,
                C::DatabaseBusy | C::DatabaseLocked => Code::DatabaseBusy,
                C::DiskFull => Code::DiskFull,
                C::DatabaseCorrupt | C::NotADatabase => Code::DatabaseCorrupt,
                C::SystemIoFailure | C::CannotOpen => Code::Internal,
                _ => Code::SqlError,
            };
            Error::new(code, text)
                .with("sqlite_code", failure.extended_code)
                .caused_by(error)
        }
        rusqlite::Error::SqlInputError {
            error: failure,
            msg,
            offset,
            ..
        } => Error::new(Code::SqlError, msg.clone())
            .with("sqlite_code", failure.extended_code)
            .with("offset", *offset),
        _ => Error::new(Code::SqlError, error.to_string()).caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_insert_is_told_by_its_first_word() {
        for sql in [
            "insert into t values(1)",
            " ;\n-- update\n/* delete */ REPLACE INTO t VALUES(1)",
            "With c as (select 1) insert into t select * from c",
        ] {
            assert!(begins_as_insert(sql), "{sql}");
        }
        for sql in [
            "update t set a = 1 -- insert",
            "/* insert",
            "-- insert",
            "inserted",
            "with c as (select 1) update t set a = 1",
            "",
            "\u{e9}",
        ] {
            assert!(!begins_as_insert(sql), "{sql}");
        }
    }
}
