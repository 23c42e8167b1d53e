//! Results as bodies: rows become JSON piece by piece, as the client takes them.
//!
//! A result is as large as its limit allows, and turning it into text takes a processor for as long: done at once on
//! a thread that serves connections, it would stall everybody else's. So the document is made without its rows, and
//! they are put in where they belong while the body is read, a yield between two pieces, one piece at a
//! time of each tenant. What a client has not taken
//! yet counts against its tenant ([`Held`]): requests of one that lets large answers lie are refused, not the
//! server's memory used up.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::Value as Json;
use tidelog_engine::Value;
use tidelog_wal::NamespaceId;
use tokio::sync::Semaphore;

use crate::problem::{Code, Problem};
use crate::values::{Integers, to_json};

/// A piece ends at the first row that takes it to this many bytes.
const PIECE_BYTES: usize = 32 << 10;

/// How a result without rows begins them. Inside a JSON text its quotes would be escaped, so that it stands nowhere
/// but where [`crate::routes`] put it: once in each result.
const NO_ROWS: &str = "\"rows\":[]";

/// The rows of one statement.
type Table = Vec<Vec<Value>>;

/// A document whose rows are still values.
#[derive(Debug)]
pub(crate) struct Rows {
    /// The document's text, cut where rows belong: one more than there are results.
    frame: std::vec::IntoIter<String>,
    tables: std::vec::IntoIter<Table>,
    table: std::vec::IntoIter<Vec<Value>>,
    integers: Integers,
    /// Whether a row of the table has been written.
    begun: bool,
    held: Option<Arc<Held>>,
}

impl Rows {
    /// `document` holds a result for each of `tables`, in their order, each with no rows.
    pub(crate) fn new(document: &Json, tables: Vec<Table>, integers: Integers) -> Self {
        let text = document.to_string();
        let mut frame: Vec<String> = Vec::with_capacity(tables.len() + 1);
        for part in text.split(NO_ROWS) {
            // What was cut away, up to where the first row goes and from behind the last one.
            if let Some(before) = frame.last_mut() {
                before.push_str("\"rows\":[");
                frame.push(format!("]{part}"));
            } else {
                frame.push(part.to_owned());
            }
        }
        Self {
            frame: frame.into_iter(),
            tables: tables.into_iter(),
            table: Vec::new().into_iter(),
            integers,
            begun: false,
            held: None,
        }
    }

    /// The next piece, or nothing at the end.
    fn piece(&mut self) -> Option<Bytes> {
        let mut text = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
        while text.len() < PIECE_BYTES {
            if let Some(row) = self.table.next() {
                text.extend_from_slice(if self.begun { b",[" } else { b"[" });
                self.begun = true;
                for (at, value) in row.into_iter().enumerate() {
                    if at > 0 {
                        text.push(b',');
                    }
                    let value = to_json(value, self.integers);
                    // Into memory, and without a key that is no text: it cannot fail.
                    let _ = serde_json::to_writer(&mut text, &value);
                }
                text.push(b']');
                continue;
            }
            let Some(part) = self.frame.next() else { break };
            text.extend_from_slice(part.as_bytes());
            self.table = self.tables.next().unwrap_or_default().into_iter();
            self.begun = false;
        }
        if text.is_empty() {
            return None;
        }
        Some(match &self.held {
            None => Bytes::from(text),
            Some(held) => Bytes::from_owner(HeldPiece {
                text,
                _held: Arc::clone(held),
            }),
        })
    }

    /// The body, counted as the tenant's until it is written.
    pub(crate) fn into_body(mut self) -> Body {
        let Some(first) = self.piece() else {
            return Body::empty();
        };
        let Some(second) = self.piece() else {
            return Body::from(first);
        };
        let begin = stream::iter([first, second].map(Ok::<_, Infallible>));
        let rest = stream::unfold(self, |mut rows| async move {
            tokio::task::yield_now().await;
            let turn = rows.held.as_ref().map(|held| Arc::clone(&held.turn));
            // It is never closed. One piece at a time of a tenant, however many of its clients read.
            let turn = match &turn {
                Some(turn) => turn.acquire().await.ok(),
                None => None,
            };
            let piece = rows.piece()?;
            drop(turn);
            Some((Ok::<_, Infallible>(piece), rows))
        });
        Body::from_stream(futures::StreamExt::chain(begin, rest))
    }

    /// The same, counted as the tenant's until it is written.
    pub(crate) fn held(mut self, held: Held) -> Self {
        self.held = Some(Arc::new(held));
        self
    }
}

/// A piece on its way.
struct HeldPiece {
    text: Vec<u8>,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for HeldPiece {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// About how many bytes rows take.
pub(crate) fn weight(rows: &[Vec<Value>]) -> u64 {
    let of = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
        Value::Null | Value::Integer(_) | Value::Real(_) => 0,
    } + size_of::<Value>();
    let bytes: usize = rows.iter().flatten().map(of).sum();
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Bytes of answers that are not written yet, by tenant.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<HashMap<Option<NamespaceId>, Untaken>>);

/// What a tenant's clients have not read.
#[derive(Debug)]
struct Untaken {
    bytes: u64,
    /// Held while a piece is made.
    turn: Arc<Semaphore>,
}

/// An answer's bytes, counted until this goes.
#[derive(Debug)]
pub(crate) struct Held {
    all: Arc<Answers>,
    tenant: Option<NamespaceId>,
    bytes: u64,
    turn: Arc<Semaphore>,
}

impl Answers {
    /// Refuses a request of a tenant whose earlier answers lie about. `limit` is the tenant's; 0: none.
    pub(crate) fn admit(&self, tenant: Option<NamespaceId>, limit: u64) -> Result<(), Problem> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.get(&tenant).map_or(0, |own| own.bytes);
        if limit == 0 || own < limit {
            return Ok(());
        }
        let detail = format!(
            "{own} bytes of earlier answers to this namespace were not taken yet; read them first"
        );
        Err(Problem::new(Code::Overloaded, detail)
            .with("limit", limit)
            .with("retry_after", 1))
    }

    /// Counts an answer.
    pub(crate) fn hold(self: &Arc<Self>, tenant: Option<NamespaceId>, bytes: u64) -> Held {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.entry(tenant).or_insert_with(|| Untaken {
            bytes: 0,
            turn: Arc::new(Semaphore::new(1)),
        });
        own.bytes = own.bytes.saturating_add(bytes);
        Held {
            all: Arc::clone(self),
            tenant,
            bytes,
            turn: Arc::clone(&own.turn),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.tenant) {
            own.bytes = own.bytes.saturating_sub(self.bytes);
            if own.bytes == 0 {
                held.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(mut rows: Rows) -> (usize, Json) {
        let (mut all, mut pieces) = (Vec::new(), 0);
        while let Some(piece) = rows.piece() {
            all.extend_from_slice(&piece);
            pieces += 1;
        }
        (pieces, serde_json::from_slice(&all).expect("a JSON text"))
    }

    #[test]
    fn rows_stand_where_their_result_stands() {
        // A name that looks like the place where rows belong.
        let name = "x\"rows\":[]";
        let document = json!({ "results": [
            { "columns": [name], "rows": [], "rows_read": 1 },
            { "columns": [], "rows": [], "rows_read": 0 },
            { "columns": ["a", "b"], "rows": [], "rows_read": 2 },
        ], "bookmark": "\"rows\":[]" });
        let first = vec![vec![Value::Text("\"rows\":[]".to_owned())]];
        let row = |number| vec![Value::Integer(number), Value::Null];
        let tables = vec![first, Vec::new(), vec![row(1), row(2)]];
        let (pieces, got) = text(Rows::new(&document, tables, Integers::Number));
        assert_eq!(pieces, 1);
        assert_eq!(got["results"][0]["rows"], json!([["\"rows\":[]"]]));
        assert_eq!(got["results"][0]["columns"], json!([name]));
        assert_eq!(got["results"][1]["rows"], json!([]));
        assert_eq!(got["results"][2]["rows"], json!([[1, null], [2, null]]));
        assert_eq!(got["bookmark"], "\"rows\":[]");
    }

    #[test]
    fn a_large_result_comes_in_pieces_and_is_held_until_they_are_written() {
        let document = json!({ "columns": ["a"], "rows": [] });
        let table: Table = (0..1000)
            .map(|_| vec![Value::Text("x".repeat(1000))])
            .collect();
        let (answers, tenant) = (Arc::new(Answers::default()), None);
        let bytes = weight(&table);
        assert!(bytes > 1_000_000, "{bytes}");
        let held = answers.hold(tenant, bytes);
        let mut rows = Rows::new(&document, vec![table], Integers::Number).held(held);
        let first = rows.piece().expect("a piece");
        assert!((PIECE_BYTES..PIECE_BYTES + 2000).contains(&first.len()));
        let problem = answers
            .admit(tenant, 1_000_000)
            .expect_err("too much lies about");
        assert_eq!(problem.code(), "overloaded");
        assert!(answers.admit(tenant, 0).is_ok(), "no limit");
        drop(rows);
        assert!(
            answers.admit(tenant, 1_000_000).is_err(),
            "a piece is on its way"
        );
        drop(first);
        assert!(answers.admit(tenant, 1).is_ok());
        assert!(answers.0.lock().expect("no panic").is_empty());
    }
}
