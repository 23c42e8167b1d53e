//! What a database holds, as the oracle keeps it: rows of a few tables, told by small numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::Connection;

/// Tables that a database can have.
const TABLES: u8 = 3;
/// Keys of a table.
const KEYS: i64 = 40;
/// Bytes of a value, at most: some fill pages of their own.
const VALUE_MAX: u32 = 9_000;

/// A row's value: so many bytes, made of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    bytes: u32,
    seed: u32,
}

impl Value {
    /// As SQL makes it and a reader compares it: the seed's digits, and zeros to its length.
    fn sql(self) -> String {
        format!("printf('%u:%0*d', {}, {}, 0)", self.seed, self.bytes)
    }

    fn text(self) -> String {
        format!("{}:{:0width$}", self.seed, 0, width = self.bytes as usize)
    }
}

/// Every table that exists, with its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rows(BTreeMap<u8, BTreeMap<i64, Value>>);

impl Rows {
    /// One random transaction: its statements; the rows are what they leave.
    pub(crate) fn change(&mut self, rng: &mut StdRng) -> Vec<String> {
        let mut statements = Vec::new();
        for _ in 0..rng.random_range(1..4) {
            let table = rng.random_range(0..TABLES);
            statements.push(self.statement(table, rng));
        }
        statements
    }

    fn statement(&mut self, table: u8, rng: &mut StdRng) -> String {
        let Some(rows) = self.0.get_mut(&table) else {
            self.0.insert(table, BTreeMap::new());
            return format!("CREATE TABLE t{table}(k INTEGER PRIMARY KEY, v TEXT)");
        };
        match rng.random_range(0..20) {
            0 => {
                self.0.remove(&table);
                format!("DROP TABLE t{table}")
            }
            1..4 => {
                let from = rng.random_range(0..KEYS);
                rows.retain(|key, _| *key < from || *key > from + 8);
                let to = from + 8;
                format!("DELETE FROM t{table} WHERE k BETWEEN {from} AND {to}")
            }
            _ => {
                let mut sql = format!("INSERT OR REPLACE INTO t{table} VALUES");
                for at in 0..rng.random_range(1..6) {
                    let key = rng.random_range(0..KEYS);
                    let value = Value {
                        bytes: rng.random_range(1..VALUE_MAX) / rng.random_range(1..100),
                        seed: rng.random(),
                    };
                    rows.insert(key, value);
                    let comma = if at == 0 { "" } else { "," };
                    let _ = write!(sql, "{comma}({key}, {})", value.sql());
                }
                sql
            }
        }
    }

    /// The same tables without their rows.
    pub(crate) fn emptied(&self) -> Self {
        let tables = self.0.keys();
        Self(tables.map(|table| (*table, BTreeMap::new())).collect())
    }

    /// Says where a database differs from these rows.
    pub(crate) fn compare(&self, connection: &Connection) -> Result<(), String> {
        let failed = |e: rusqlite::Error| e.to_string();
        let mut tables = connection
            .prepare("SELECT name FROM sqlite_schema WHERE name LIKE 't_' ORDER BY name")
            .map_err(failed)?;
        let names = tables
            .query_map([], |row| row.get(0))
            .and_then(Iterator::collect::<rusqlite::Result<Vec<String>>>)
            .map_err(failed)?;
        let wanted: Vec<_> = self.0.keys().map(|table| format!("t{table}")).collect();
        if names != wanted {
            return Err(format!("tables {names:?} instead of {wanted:?}"));
        }
        for (table, rows) in &self.0 {
            let sql = format!("SELECT k, v FROM t{table} ORDER BY k");
            let mut select = connection.prepare(&sql).map_err(failed)?;
            let found = select
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                .and_then(Iterator::collect::<rusqlite::Result<Vec<(i64, String)>>>)
                .map_err(failed)?;
            let same = found.len() == rows.len()
                && rows
                    .iter()
                    .zip(&found)
                    .all(|((key, value), (k, v))| key == k && value.text() == *v);
            if !same {
                let (have, want) = (found.len(), rows.len());
                return Err(format!("t{table} differs: {have} rows, {want} expected"));
            }
        }
        Ok(())
    }
}
