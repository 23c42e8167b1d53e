//! Answers of earlier calls that changed the system database: an answer commits with its effect, so that a
//! crash cannot separate them, and a repeated call is answered from it for 24 hours.
//!
//! Calls whose effect is in a tenant's database keep theirs there ([`crate::database`]). A record holds no
//! secret: what is shown once is not kept to be shown again.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, params};
use tidelog_wal::Timestamp;

use super::{Noted, System, micros};
use crate::error::{Code, Error};
use crate::request::IdempotencyKey;

/// How long an answer is kept.
const KEEP_MICROS: u64 = 24 * 3600 * 1_000_000;

/// An answer to keep under a caller's key. What the text means is the caller's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key with its scope and the fingerprint of the request.
    pub key: IdempotencyKey,
    /// The answer.
    pub answer: String,
}

tokio::task_local! {
    /// The key of the call that this task answers, until an operation takes it.
    static CALL: Mutex<Option<IdempotencyKey>>;
}

/// Runs `work` as the call with this key: an operation that it begins is noted under the key in the same
/// transaction, so that a crash leaves both or neither.
pub async fn keyed<F: Future>(key: IdempotencyKey, work: F) -> F::Output {
    CALL.scope(Mutex::new(Some(key)), work).await
}

/// The record that belongs to an operation which begins now, if its call has a key.
pub(crate) fn of_operation(id: &str) -> Option<Record> {
    let key = CALL.try_with(|call| call.lock().unwrap_or_else(PoisonError::into_inner).take());
    Some(Record {
        key: key.ok().flatten()?,
        answer: serde_json::json!({ "operation": id }).to_string(),
    })
}

fn row_key(key: &IdempotencyKey) -> String {
    format!("{}\u{0}{}", key.scope, key.key)
}

fn oldest(now: Timestamp) -> i64 {
    micros(now).saturating_sub_unsigned(KEEP_MICROS)
}

/// Keeps a record and prunes those that are too old; to be called inside the transaction of the effect.
pub(crate) fn put(
    connection: &Connection,
    record: &Record,
    now: Timestamp,
) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM requests WHERE at < ?1", [oldest(now)])?;
    connection.execute(
        "INSERT OR REPLACE INTO requests(key, fingerprint, at, answer) VALUES(?1, ?2, ?3, ?4)",
        params![
            row_key(&record.key),
            record.key.fingerprint,
            micros(now),
            record.answer
        ],
    )?;
    Ok(())
}

impl System {
    /// The answer kept under a key in the last 24 hours; another request's fingerprint is refused.
    pub(crate) async fn request_find(&self, key: &IdempotencyKey) -> Result<Option<String>, Error> {
        let (wanted, oldest) = (row_key(key), oldest(self.core.parts.clock.wall()));
        let found: Option<(Vec<u8>, String)> = self
            .read(move |c| {
                c.query_row(
                    "SELECT fingerprint, answer FROM requests WHERE key = ?1 AND at >= ?2",
                    params![wanted, oldest],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()
            })
            .await?;
        match found {
            Some((fingerprint, _)) if fingerprint != key.fingerprint => Err(Error::new(
                Code::IdempotencyKeyReused,
                "the Idempotency-Key was used for another request in the last 24 hours",
            )),
            found => Ok(found.map(|(_, answer)| answer)),
        }
    }

    /// Runs `work` in one transaction with the record of its answer, if there is one to keep.
    pub(crate) async fn write_recorded<T, F>(
        &self,
        record: Option<Record>,
        work: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (value, noted) = self.commit_recorded(record, work).await?;
        noted.stored().await?;
        Ok(value)
    }

    /// The same, and leaves it to the caller to wait until it is stored.
    pub(crate) async fn commit_recorded<T, F>(
        &self,
        record: Option<Record>,
        work: F,
    ) -> Result<(T, Noted), Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let now = self.core.parts.clock.wall();
        self.commit(move |c| {
            let value = work(c)?;
            if let Some(record) = &record {
                put(c, record, now)?;
            }
            Ok(value)
        })
        .await
    }
}
