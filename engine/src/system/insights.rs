//! Insights: what queries cost, by database, hour, token and status, without a word of their SQL; and the slow
//! ones, whose text is kept cut and with its literals taken out.
//!
//! Counts collect in memory and are added to their rows once a minute.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::params;
use serde_json::Value as Json;
use tidelog_wal::{DatabaseId, Timestamp};

use super::{Page, PageOf, System, id16, micros, timestamp};
use crate::error::Error;

/// How long counts collect.
pub(crate) const FLUSH_EVERY: Duration = Duration::from_mins(1);
/// How long counts and slow queries are kept.
const KEEP_HOURS: u64 = 168;
const HOUR_MICROS: u64 = 3600 * 1_000_000;
/// Distinct rows that collect in memory at most; what is more is not counted.
const WAITING_MAX: usize = 50_000;
/// Slow queries that wait at most, and that a database keeps.
const SLOW_WAITING_MAX: usize = 1_000;
const SLOW_KEPT: i64 = 1_000;

/// One query that has ended.
#[derive(Debug, Clone, Copy)]
pub struct QueryNote {
    /// Which database.
    pub database: DatabaseId,
    /// Whose token.
    pub token: [u8; 16],
    /// The HTTP status.
    pub status: u16,
    /// Rows read, a lower bound.
    pub rows_read: u64,
    /// Rows written.
    pub rows_written: u64,
    /// How long it took.
    pub took: Duration,
}

/// The queries of an hour with one token and one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insight {
    /// The beginning of the hour.
    pub hour: Timestamp,
    /// The token.
    pub token: [u8; 16],
    /// The HTTP status.
    pub status: u16,
    /// How many.
    pub requests: u64,
    /// Rows read, a lower bound.
    pub rows_read: u64,
    /// Rows written.
    pub rows_written: u64,
    /// Time of all of them.
    pub total: Duration,
    /// Time of the longest.
    pub longest: Duration,
}

type RowKey = (DatabaseId, u64, [u8; 16], u16);

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    requests: u64,
    rows_read: u64,
    rows_written: u64,
    micros: u64,
    micros_max: u64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.rows_read = self.rows_read.saturating_add(other.rows_read);
        self.rows_written = self.rows_written.saturating_add(other.rows_written);
        self.micros = self.micros.saturating_add(other.micros);
        self.micros_max = self.micros_max.max(other.micros_max);
    }
}

#[derive(Debug, Clone)]
struct Slow {
    database: DatabaseId,
    id: String,
    at: Timestamp,
    line: String,
}

/// Counts on their way to the system database.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    sums: Mutex<HashMap<RowKey, Sums>>,
    slow: Mutex<Vec<Slow>>,
    /// Held while counts are added to their rows: whoever reads these meanwhile waits for what is in neither.
    flushing: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl System {
    /// Counts a query.
    pub(crate) fn note_query(&self, note: &QueryNote) {
        let hour = self.core.parts.clock.wall().micros() / HOUR_MICROS;
        let key = (note.database, hour, note.token, note.status);
        let took = u64::try_from(note.took.as_micros()).unwrap_or(u64::MAX);
        let one = Sums {
            requests: 1,
            rows_read: note.rows_read,
            rows_written: note.rows_written,
            micros: took,
            micros_max: took,
        };
        let mut sums = lock(&self.insights.sums);
        let room = sums.len() < WAITING_MAX;
        match sums.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().add(&one),
            Entry::Vacant(new) if room => {
                new.insert(one);
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Keeps a slow query; `line` is what is to be shown of it.
    pub(crate) fn note_slow(&self, database: DatabaseId, mut line: Json) {
        let parts = &self.core.parts;
        let at = parts.clock.wall();
        let chance = u128::from_be_bytes(parts.entropy.bytes16()) >> 64;
        let id = format!("slow_{:016x}{chance:016x}", at.micros());
        line["id"] = Json::from(id.clone());
        line["at_micros"] = Json::from(at.micros());
        let mut slow = lock(&self.insights.slow);
        if slow.len() < SLOW_WAITING_MAX {
            let line = line.to_string();
            slow.push(Slow {
                database,
                id,
                at,
                line,
            });
        }
    }

    /// Whether anything waits to be written.
    pub(super) fn has_insights(&self) -> bool {
        let waits = &self.insights;
        !lock(&waits.sums).is_empty()
            || !lock(&waits.slow).is_empty()
            || waits.flushing.try_lock().is_err()
    }

    /// Adds what was counted to its rows, with the times tokens were last used. What cannot be written is
    /// counted no more: it is worth less than the memory it would fill.
    pub(crate) async fn flush_insights(&self) -> Result<(), Error> {
        let _flushing = self.insights.flushing.lock().await;
        let sums = std::mem::take(&mut *lock(&self.insights.sums));
        let slow = std::mem::take(&mut *lock(&self.insights.slow));
        let uses = self.tokens.take_uses();
        if sums.is_empty() && slow.is_empty() && uses.is_empty() {
            return Ok(());
        }
        let now = self.core.parts.clock.wall();
        let oldest_hour = (now.micros() / HOUR_MICROS).saturating_sub(KEEP_HOURS);
        self.write(move |c| {
            let mut add = c.prepare_cached(
                "INSERT INTO insights VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9) \
                 ON CONFLICT(database, hour, token, status) DO UPDATE SET \
                 requests = requests + ?5, rows_read = rows_read + ?6, rows_written = rows_written + ?7, \
                 micros = micros + ?8, micros_max = max(micros_max, ?9)",
            )?;
            for ((database, hour, token, status), sums) in &sums {
                add.execute(params![
                    database.as_bytes(),
                    signed(*hour),
                    token,
                    status,
                    signed(sums.requests),
                    signed(sums.rows_read),
                    signed(sums.rows_written),
                    signed(sums.micros),
                    signed(sums.micros_max)
                ])?;
            }
            for one in &slow {
                c.execute(
                    "INSERT OR IGNORE INTO slow_queries VALUES(?1, ?2, ?3, ?4)",
                    params![one.database.as_bytes(), one.id, micros(one.at), one.line],
                )?;
                c.execute(
                    "DELETE FROM slow_queries WHERE database = ?1 AND id <= (SELECT id FROM slow_queries \
                     WHERE database = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                    params![one.database.as_bytes(), SLOW_KEPT],
                )?;
            }
            for (token, at) in &uses {
                // A signed statement's id is no row's: nothing is kept of it.
                c.execute(
                    "INSERT OR REPLACE INTO token_uses SELECT id, ?2 FROM tokens WHERE id = ?1",
                    params![token, micros(*at)],
                )?;
            }
            c.execute("DELETE FROM insights WHERE hour < ?1", [signed(oldest_hour)])?;
            c.execute(
                "DELETE FROM slow_queries WHERE at < ?1",
                [signed(oldest_hour.saturating_mul(HOUR_MICROS))],
            )
        })
        .await?;
        Ok(())
    }

    /// The counts of a database in the last hours, newest hour first.
    pub(crate) async fn insights(
        &self,
        database: DatabaseId,
        hours: u64,
    ) -> Result<Vec<Insight>, Error> {
        self.flush_insights().await?;
        let now = self.core.parts.clock.wall().micros() / HOUR_MICROS;
        let from = signed((now + 1).saturating_sub(hours));
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        self.read(move |c| {
            let mut select = c.prepare(
                "SELECT hour, token, status, requests, rows_read, rows_written, micros, micros_max \
                 FROM insights WHERE database = ?1 AND hour >= ?2 ORDER BY hour DESC, token, status",
            )?;
            let rows = select.query_map(params![database.as_bytes(), from], |row| {
                Ok(Insight {
                    hour: timestamp(row.get::<_, i64>(0)?.saturating_mul(signed(HOUR_MICROS))),
                    token: id16(&row.get::<_, Vec<u8>>(1)?)?,
                    status: row.get(2)?,
                    requests: number(row.get(3)?),
                    rows_read: number(row.get(4)?),
                    rows_written: number(row.get(5)?),
                    total: Duration::from_micros(number(row.get(6)?)),
                    longest: Duration::from_micros(number(row.get(7)?)),
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// The slow queries of a database, newest first.
    pub(crate) async fn slow_queries(
        &self,
        database: DatabaseId,
        page: Page,
    ) -> Result<PageOf<Json>, Error> {
        self.flush_insights().await?;
        let limit = page.limit();
        let before = page.cursor.unwrap_or_else(|| "t".to_owned());
        let select = "SELECT line FROM slow_queries WHERE database = ?1 AND id < ?2 \
                      ORDER BY id DESC LIMIT ?3";
        let given = vec![database.as_bytes().to_vec().into(), before.into()];
        self.page_of_lines(select, given, limit, "read a slow query")
            .await
    }
}
