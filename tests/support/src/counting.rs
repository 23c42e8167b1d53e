//! A client whose rows say whether any is missing: one writer a database, rows numbered 1, 2, 3, ...
//!
//! Row `n` of a database is its `n`-th write, so what survives a crash is a prefix of the commit order exactly
//! when the numbers have no gap. A trigger repeats the number in a second table: both are of one commit.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::StatusCode;
use serde_json::json;

use crate::server::Address;

/// The tables a [`Counting`] writer needs.
const SCHEMA: [&str; 4] = [
    "create table t(n integer primary key, level text, x blob)",
    "create table head(n integer)",
    "insert into head values(0)",
    "create trigger moved after insert on t begin update head set n = new.n; end",
];

/// What [`Found`] is read by.
pub const FOUND: &str = "select count(*), coalesce(max(n), 0), (select n from head) from t";

/// What a reader finds: how many rows, the highest number, the number the trigger wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found(pub i64, pub i64, pub i64);

impl Found {
    /// Rows 1 to `n`, nothing else.
    pub const fn prefix(n: i64) -> Self {
        Self(n, n, n)
    }
}

/// A row that was acknowledged.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// Its number.
    pub row: i64,
    /// The level it was acknowledged at.
    pub level: &'static str,
    /// Where its database stood after it.
    pub bookmark: String,
}

/// The one writer of a database.
#[derive(Debug, Clone)]
pub struct Counting {
    /// The database.
    pub database: &'static str,
    /// Row `n` is written at level `n` modulo their number.
    levels: &'static [&'static str],
    /// Every hundredth row is so large; the others are small.
    large: usize,
    /// The number of the next row.
    next: i64,
    /// The highest number that was sent.
    sent: i64,
    /// What was acknowledged and has not been lost, in order.
    pub acknowledged: Vec<Acknowledged>,
}

impl Counting {
    /// Makes a database and its tables.
    pub async fn create(
        server: &Address,
        database: &'static str,
        levels: &'static [&'static str],
        large: usize,
    ) -> Self {
        let made = server.post("databases", &json!({ "name": database })).await;
        let (status, answer) = made.expect("a server that runs answers");
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        let statements: Vec<_> = SCHEMA.iter().map(|sql| json!({ "sql": sql })).collect();
        let body = json!({ "statements": statements, "durability": "remote" });
        let made = server
            .post(&format!("databases/{database}/batch"), &body)
            .await;
        let (status, answer) = made.expect("a server that runs answers");
        assert_eq!(status, StatusCode::OK, "{answer}");
        Self {
            database,
            levels,
            large,
            next: 1,
            sent: 0,
            acknowledged: Vec::new(),
        }
    }

    /// Writes the next row; `None` when no whole answer came.
    pub async fn write(&mut self, server: &Address, level: &'static str) -> Option<StatusCode> {
        let row = self.next;
        let bytes = match row % 100 {
            57 => self.large,
            _ => usize::try_from(row % 7).unwrap_or(0) * 60,
        };
        let body = json!({
            "sql": "insert into t values(?, ?, randomblob(?))",
            "params": [row, level, bytes],
            "durability": level,
        });
        self.sent = row;
        let path = format!("databases/{}/query", self.database);
        let (status, answer) = server.post(&path, &body).await?;
        if status == StatusCode::OK {
            let bookmark = answer["bookmark"].as_str().unwrap_or_default().to_owned();
            self.acknowledged.push(Acknowledged {
                row,
                level,
                bookmark,
            });
            self.next += 1;
        } else if answer["committed"] == true {
            self.next += 1;
        }
        Some(status)
    }

    /// Writes until no answer comes, counting what is acknowledged by all.
    pub async fn write_until_it_dies(&mut self, server: &Address, all: &AtomicUsize) {
        loop {
            let level = self.levels[usize::try_from(self.next).unwrap_or(0) % self.levels.len()];
            match self.write(server, level).await {
                Some(StatusCode::OK) => {
                    all.fetch_add(1, Ordering::Relaxed);
                }
                Some(StatusCode::GATEWAY_TIMEOUT) => {}
                Some(status) => panic!("{}: row {}: {status}", self.database, self.next),
                None => return,
            }
        }
    }

    /// The last row acknowledged at one of these levels, 0 if there is none.
    pub fn last(&self, levels: &[&str]) -> i64 {
        let mut rows = self.acknowledged.iter().rev();
        rows.find(|row| levels.contains(&row.level))
            .map_or(0, |row| row.row)
    }

    /// Reads the database and proves: a prefix, with everything up to `least`, of what was sent; sound.
    /// Goes on after it; returns what was acknowledged and is gone.
    pub async fn check(&mut self, server: &Address, least: i64, when: &str) -> Vec<Acknowledged> {
        let name = self.database;
        let rows = server.rows(name, FOUND).await;
        let number = |column: usize| rows[0][column].as_i64().unwrap_or(-1);
        let found = Found(number(0), number(1), number(2));
        assert_eq!(
            found,
            Found::prefix(found.1),
            "{when}: {name}: not a prefix of the commit order"
        );
        assert!(
            (least..=self.sent).contains(&found.1),
            "{when}: {name}: rows 1 to {} are there; 1 to {least} were promised, 1 to {} were sent",
            found.1,
            self.sent
        );
        let check = server.rows(name, "pragma integrity_check").await;
        assert_eq!(check, json!([["ok"]]), "{when}: {name}");
        self.next = found.1 + 1;
        let kept = self.acknowledged.partition_point(|row| row.row <= found.1);
        self.acknowledged.split_off(kept)
    }
}
