//! Random SQL workloads for the oracle, each step a value that prints as one line.
//!
//! Ordinary tables, tables without rowid, full-text tables, indexes, large values on overflow pages,
//! savepoints, rollbacks, transactions that spill, VACUUM and incremental vacuum, every page size and
//! vacuum mode. No SQL text draws a random number: one seed makes the same database bytes each time, but
//! for the WAL's salts.
//!
//! The generator knows which tables exist, also after a rollback, so that every statement succeeds: an
//! error is the host's.

use std::collections::BTreeSet;
use std::fmt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;

/// How a database is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Bytes of a page, 512 to 65,536.
    pub page_size: u32,
    /// `PRAGMA auto_vacuum`: 0 none, 1 full, 2 incremental.
    pub auto_vacuum: u8,
    /// `PRAGMA cache_size` in pages; 1 makes almost every transaction spill.
    pub cache_size: u32,
}

impl Setup {
    /// The pragmas to run before anything is stored.
    pub fn pragmas(&self) -> String {
        let Self {
            page_size,
            auto_vacuum,
            cache_size,
        } = self;
        format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA cache_size={cache_size};"
        )
    }
}

/// What a history may contain.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// VACUUM.
    pub vacuum: bool,
    /// `PRAGMA incremental_vacuum`.
    pub incremental_vacuum: bool,
    /// Full-text tables.
    pub full_text: bool,
    /// Rows of the largest statement.
    pub rows_max: u32,
    /// Bytes of the largest value.
    pub value_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vacuum: true,
            incremental_vacuum: true,
            full_text: true,
            rows_max: 60,
            value_max: 40_000,
        }
    }
}

/// One step of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// One write transaction.
    Transaction {
        /// Its statements, savepoints among them.
        statements: Vec<String>,
        /// Whether it commits.
        commit: bool,
    },
    /// VACUUM, which runs in no transaction.
    Vacuum,
    /// A checkpoint of the host's kind.
    Checkpoint,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction { statements, commit } => {
                let end = if *commit { "COMMIT" } else { "ROLLBACK" };
                write!(f, "BEGIN; {}; {end}", statements.join("; "))
            }
            Self::Vacuum => f.write_str("VACUUM"),
            Self::Checkpoint => f.write_str("-- checkpoint"),
        }
    }
}

/// What runs steps: plain SQLite, or the product.
pub trait Host {
    /// Why a step failed.
    type Error;

    /// Runs the statements in one write transaction.
    fn transaction(&mut self, statements: &[String], commit: bool) -> Result<(), Self::Error>;

    /// Runs VACUUM.
    fn vacuum(&mut self) -> Result<(), Self::Error>;

    /// Copies what it may from the WAL into the file; may do nothing.
    fn checkpoint(&mut self) -> Result<(), Self::Error>;

    /// Runs a step.
    fn run(&mut self, step: &Step) -> Result<(), Self::Error> {
        match step {
            Step::Transaction { statements, commit } => self.transaction(statements, *commit),
            Step::Vacuum => self.vacuum(),
            Step::Checkpoint => self.checkpoint(),
        }
    }
}

impl Host for Connection {
    type Error = rusqlite::Error;

    fn transaction(&mut self, statements: &[String], commit: bool) -> rusqlite::Result<()> {
        drain(self, "BEGIN IMMEDIATE")?;
        for sql in statements {
            drain(self, sql)?;
        }
        drain(self, if commit { "COMMIT" } else { "ROLLBACK" })
    }

    fn vacuum(&mut self) -> rusqlite::Result<()> {
        drain(self, "VACUUM")
    }

    fn checkpoint(&mut self) -> rusqlite::Result<()> {
        drain(self, "PRAGMA wal_checkpoint(PASSIVE)")
    }
}

/// Steps a statement to its end: `execute_batch` stops an incremental vacuum after one page.
fn drain(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// The tables and indexes that exist.
#[derive(Debug, Clone, Default)]
struct Schema {
    rowid: BTreeSet<u32>,
    without_rowid: BTreeSet<u32>,
    full_text: BTreeSet<u32>,
    indexes: BTreeSet<u32>,
}

/// The tables of a history at one of its steps.
#[derive(Debug, Clone)]
pub struct Tables {
    schema: Schema,
    next_name: u32,
}

/// A seeded history without end.
#[derive(Debug)]
pub struct History {
    seed: u64,
    steps: u64,
    setup: Setup,
    options: Options,
    rng: StdRng,
    schema: Schema,
    next_name: u32,
}

impl History {
    /// The tables there are now.
    pub fn tables(&self) -> Tables {
        Tables {
            schema: self.schema.clone(),
            next_name: self.next_name,
        }
    }

    /// Goes on from the tables there were, for a host that was put back there. Names are used again.
    pub fn put_back_to(&mut self, earlier: &Tables) {
        self.schema = earlier.schema.clone();
        self.next_name = earlier.next_name;
    }

    /// The history of this seed.
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let setup = Setup {
            page_size: 512 << [0, 1, 2, 3, 3, 3, 3, 4, 5, 6, 7][rng.random_range(0..11)],
            auto_vacuum: rng.random_range(0..3),
            cache_size: [1, 5, 50, 2000][rng.random_range(0..4)],
        };
        Self {
            seed,
            steps: 0,
            setup,
            options,
            rng,
            schema: Schema::default(),
            next_name: 1,
        }
    }

    /// How its database is created.
    pub const fn setup(&self) -> Setup {
        self.setup
    }

    /// Where the history stands, for a message: what to run again.
    pub fn reproduction(&self) -> String {
        let Self {
            seed, steps, setup, ..
        } = self;
        format!("history seed {seed} step {steps} {setup:?}")
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        self.steps += 1;
        match self.rng.random_range(0..100) {
            0..3 if self.options.vacuum => Step::Vacuum,
            3..10 => Step::Checkpoint,
            _ => self.transaction(),
        }
    }

    fn transaction(&mut self) -> Step {
        let before = self.schema.clone();
        let commit = self.rng.random_bool(0.85);
        let mut savepoints = Vec::new();
        let mut statements = Vec::new();
        for _ in 0..self.rng.random_range(1..7) {
            let statement = self.statement();
            statements.push(statement);
            match self.rng.random_range(0..8) {
                0 => {
                    savepoints.push(self.schema.clone());
                    statements.push(format!("SAVEPOINT s{}", savepoints.len()));
                }
                1 => {
                    if let Some(schema) = savepoints.last() {
                        self.schema = schema.clone();
                        statements.push(format!("ROLLBACK TO s{}", savepoints.len()));
                    }
                }
                2 if !savepoints.is_empty() => {
                    statements.push(format!("RELEASE s{}", savepoints.len()));
                    savepoints.pop();
                }
                _ => {}
            }
        }
        if !commit {
            self.schema = before;
        }
        Step::Transaction { statements, commit }
    }

    fn pick(&mut self, from: fn(&Schema) -> &BTreeSet<u32>) -> Option<u32> {
        let set = from(&self.schema);
        if set.is_empty() {
            return None;
        }
        let at = self.rng.random_range(0..set.len());
        set.iter().nth(at).copied()
    }

    /// Names are never used twice, so that what a rollback undoes cannot be mistaken for anything else.
    fn name(&mut self) -> u32 {
        self.next_name += 1;
        self.next_name
    }

    /// A text expression of a random length: mostly short, at times many overflow pages.
    fn value(&mut self) -> String {
        let len = match self.rng.random_range(0..20) {
            0 => self.rng.random_range(0..=self.options.value_max),
            1..4 => self.rng.random_range(0..2_000),
            _ => self.rng.random_range(0..120),
        };
        let word: String = (0..self.rng.random_range(1..9))
            .map(|_| char::from(b'a' + self.rng.random_range(0..26)))
            .collect();
        let times = u64::from(len) / word.len() as u64;
        format!("replace(hex(zeroblob({times})),'00','{word}')")
    }

    fn statement(&mut self) -> String {
        if self.schema.rowid.is_empty() {
            return self.create_table();
        }
        match self.rng.random_range(0..100) {
            0..4 => self.create_table(),
            4..7 => self.create_without_rowid(),
            7..9 if self.options.full_text && self.schema.full_text.len() < 2 => {
                let name = self.name();
                self.schema.full_text.insert(name);
                format!("CREATE VIRTUAL TABLE f{name} USING fts5(body)")
            }
            9..12 => self.create_index(),
            12..14 => self.drop_index(),
            14..16 => self.drop_table(),
            16..18 => format!("PRAGMA user_version={}", self.rng.random_range(0..1000)),
            18..22 if self.options.incremental_vacuum => {
                format!(
                    "PRAGMA incremental_vacuum({})",
                    self.rng.random_range(0..40)
                )
            }
            22..24 => "REINDEX".to_owned(),
            24..34 => self.write_without_rowid(),
            34..42 => self.write_full_text(),
            42..64 => self.insert(),
            64..80 => self.update(),
            80..82 => self.no_change(),
            _ => self.delete(),
        }
    }

    fn create_table(&mut self) -> String {
        let name = self.name();
        self.schema.rowid.insert(name);
        format!("CREATE TABLE t{name}(id INTEGER PRIMARY KEY, a TEXT, b, n INT)")
    }

    fn create_without_rowid(&mut self) -> String {
        let name = self.name();
        self.schema.without_rowid.insert(name);
        format!("CREATE TABLE w{name}(k TEXT, n INT, v, PRIMARY KEY(k, n)) WITHOUT ROWID")
    }

    fn create_index(&mut self) -> String {
        let Some(table) = self.pick(|schema| &schema.rowid) else {
            return self.create_table();
        };
        let name = self.name();
        self.schema.indexes.insert(name);
        let columns = ["a", "n", "b, n", "n DESC, a"][self.rng.random_range(0..4)];
        format!("CREATE INDEX i{name} ON t{table}({columns})")
    }

    fn drop_index(&mut self) -> String {
        let Some(name) = self.pick(|schema| &schema.indexes) else {
            return self.create_index();
        };
        self.schema.indexes.remove(&name);
        // Its table may have been dropped, and the index with it.
        format!("DROP INDEX IF EXISTS i{name}")
    }

    fn drop_table(&mut self) -> String {
        let kind = self.rng.random_range(0..4);
        if kind == 0
            && let Some(name) = self.pick(|schema| &schema.full_text)
        {
            self.schema.full_text.remove(&name);
            return format!("DROP TABLE f{name}");
        }
        if kind == 1
            && let Some(name) = self.pick(|schema| &schema.without_rowid)
        {
            self.schema.without_rowid.remove(&name);
            return format!("DROP TABLE w{name}");
        }
        let name = self.pick(|schema| &schema.rowid).unwrap_or_default();
        self.schema.rowid.remove(&name);
        format!("DROP TABLE IF EXISTS t{name}")
    }

    /// A table, and a key in the range that all statements share.
    fn target(&mut self) -> (u32, u32) {
        let table = self.pick(|schema| &schema.rowid).unwrap_or_default();
        (table, self.rng.random_range(1..300))
    }

    fn insert(&mut self) -> String {
        let ((table, id), a, b) = (self.target(), self.value(), self.value());
        let rows = if self.rng.random_bool(0.2) {
            self.rng.random_range(1..=self.options.rows_max)
        } else {
            1
        };
        format!(
            "WITH RECURSIVE s(x) AS (SELECT {id} UNION ALL SELECT x+1 FROM s LIMIT {rows}) \
             INSERT OR REPLACE INTO t{table} SELECT x, substr({a},1,x), {b}, x*7%50 FROM s"
        )
    }

    fn update(&mut self) -> String {
        let ((table, id), value) = (self.target(), self.value());
        let to = id + self.rng.random_range(0..20);
        let column = ["a", "b"][self.rng.random_range(0..2)];
        format!("UPDATE t{table} SET {column}={value}, n=n+1 WHERE id BETWEEN {id} AND {to}")
    }

    fn no_change(&mut self) -> String {
        let (table, _) = self.target();
        format!("UPDATE t{table} SET n=n")
    }

    fn delete(&mut self) -> String {
        let (table, id) = self.target();
        match self.rng.random_range(0..10) {
            0 => format!("DELETE FROM t{table}"),
            1..3 => format!("DELETE FROM t{table} WHERE id>={id}"),
            _ => format!("DELETE FROM t{table} WHERE id BETWEEN {id} AND {}", id + 10),
        }
    }

    fn write_without_rowid(&mut self) -> String {
        let Some(table) = self.pick(|schema| &schema.without_rowid) else {
            return self.create_without_rowid();
        };
        let (key, n) = (self.value(), self.rng.random_range(0..50));
        match self.rng.random_range(0..3) {
            0 => format!("DELETE FROM w{table} WHERE n<{n}"),
            1 => format!("UPDATE w{table} SET v={key} WHERE n={n}"),
            _ => format!("INSERT OR REPLACE INTO w{table} VALUES(substr({key},1,600),{n},{key})"),
        }
    }

    fn write_full_text(&mut self) -> String {
        let Some(table) = self.pick(|schema| &schema.full_text) else {
            return self.insert();
        };
        let (body, id) = (self.value(), self.rng.random_range(1..100));
        match self.rng.random_range(0..4) {
            0 => format!("DELETE FROM f{table} WHERE rowid<{id}"),
            1 => format!("INSERT INTO f{table}(f{table}) VALUES('optimize')"),
            _ => format!(
                "INSERT OR REPLACE INTO f{table}(rowid, body) VALUES({id},'{id} and ' || {body})"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_many_histories_succeeds_and_prints_as_one_line() {
        let mut vacuums = 0;
        for seed in 0..30 {
            let mut history = History::new(seed, Options::default());
            let mut conn = Connection::open_in_memory().expect("open");
            conn.execute_batch(&history.setup().pragmas())
                .expect("setup");
            for _ in 0..40 {
                let step = history.step();
                vacuums += usize::from(step == Step::Vacuum);
                if let Err(error) = conn.run(&step) {
                    panic!("{}: {error}: {step}", history.reproduction());
                }
                assert!(!step.to_string().contains('\n'));
            }
        }
        assert!(vacuums > 0);
    }

    #[test]
    fn one_seed_makes_one_history() {
        let steps = |seed| -> Vec<Step> {
            let mut history = History::new(seed, Options::default());
            (0..50).map(|_| history.step()).collect()
        };
        assert_eq!(steps(3), steps(3));
        assert_ne!(steps(3), steps(4));
    }
}
