//! The OLTP mix of the benches: schema, words, distributions and transaction of the Litestream baseline.
//!
//! A table of orders with two indexes and one of events with one. A transaction marks a uniformly chosen
//! order as paid, which moves an entry of the index over (customer, updated), and appends an event of 40 to
//! 200 characters.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::{Connection, params};

/// Rows of `orders` in the published figures.
pub const ROWS: u32 = 300_000;

/// The tables and indexes.
pub const SCHEMA: &str = "
    create table orders(id integer primary key, customer text, email text, status text, note text, total int, updated int);
    create index o_email on orders(email);
    create index o_cust on orders(customer,updated);
    create table events(id integer primary key, order_id int, kind text, body text, at int);
    create index e_o on events(order_id);";
/// Loads one row: customer, email, status, note, total, updated.
pub const INSERT_ORDER: &str =
    "insert into orders(customer,email,status,note,total,updated) values(?,?,?,?,?,?)";
/// First half of the transaction: status, updated, id.
pub const UPDATE_ORDER: &str = "update orders set status=?,total=total+1,updated=? where id=?";
/// Second half of the transaction: order id, kind, body, at.
pub const INSERT_EVENT: &str = "insert into events(order_id,kind,body,at) values(?,?,?,?)";

const WORDS: [&str; 24] = [
    "order", "ship", "blue", "green", "paid", "pending", "customer", "express", "north", "south",
    "alpha", "beta", "street", "avenue", "note", "gift", "return", "refund", "large", "small",
    "medium", "priority", "standard", "hold",
];

/// What one transaction writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// The order that is paid.
    pub order: i64,
    /// The event's text.
    pub body: String,
}

/// The mix, seeded.
#[derive(Debug)]
pub struct Oltp {
    rng: StdRng,
    rows: u32,
}

impl Oltp {
    /// The mix over `rows` orders.
    pub fn new(seed: u64, rows: u32) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            rows,
        }
    }

    fn text(&mut self, len: usize) -> String {
        let mut text = String::with_capacity(len + 16);
        for word in 0..=len / 6 {
            if word > 0 {
                text.push(' ');
            }
            text.push_str(WORDS[self.rng.random_range(0..WORDS.len())]);
        }
        text.truncate(len);
        text
    }

    /// Creates the schema and loads the orders, in one transaction for the rows.
    pub fn load(&mut self, conn: &Connection) -> rusqlite::Result<()> {
        conn.execute_batch(SCHEMA)?;
        conn.execute_batch("begin")?;
        self.load_rows(conn, 0..self.rows)?;
        conn.execute_batch("commit")
    }

    /// Loads some of the orders, in a transaction of the caller's, after [`SCHEMA`].
    pub fn load_rows(&mut self, conn: &Connection, rows: Range<u32>) -> rusqlite::Result<()> {
        let mut insert = conn.prepare_cached(INSERT_ORDER)?;
        for row in rows {
            let customer = format!("cust{}", self.rng.random_range(0..50_000));
            let email = format!("user{}@example.com", self.rng.random_range(0..1_u64 << 40));
            let note = self.text(160);
            let total = self.rng.random_range(0..100_000);
            insert.execute(params![customer, email, "pending", note, total, row])?;
        }
        Ok(())
    }

    /// What the next transaction writes.
    pub fn payment(&mut self) -> Payment {
        let order = self.rng.random_range(1..=i64::from(self.rows));
        let len = self.rng.random_range(40..=200);
        Payment {
            order,
            body: self.text(len),
        }
    }

    /// Runs transaction `i`.
    pub fn transaction(&mut self, conn: &Connection, i: u64) -> rusqlite::Result<()> {
        conn.prepare_cached("begin immediate")?.execute([])?;
        self.apply(conn, i)?;
        conn.prepare_cached("commit")?.execute([])?;
        Ok(())
    }

    /// The statements of transaction `i`, in a transaction of the caller's.
    pub fn apply(&mut self, conn: &Connection, i: u64) -> rusqlite::Result<()> {
        let Payment { order, body } = self.payment();
        let at = i64::try_from(i).expect("fewer than 2^63 transactions");
        conn.prepare_cached(UPDATE_ORDER)?
            .execute(params!["paid", at, order])?;
        conn.prepare_cached(INSERT_EVENT)?
            .execute(params![order, "paid", body, at])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_makes_one_database() {
        let dump = |seed| {
            let conn = Connection::open_in_memory().expect("open");
            let mut mix = Oltp::new(seed, 50);
            mix.load(&conn).expect("load");
            for i in 0..20 {
                mix.transaction(&conn, i).expect("transaction");
            }
            let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0));
            assert_eq!(count("select count(*) from orders"), Ok(50));
            assert_eq!(count("select count(*) from events"), Ok(20));
            assert_eq!(count("select max(length(note)) from orders"), Ok(160));
            conn.query_row(
                "select group_concat(body || order_id) from events",
                [],
                |row| row.get::<_, String>(0),
            )
            .expect("dump")
        };
        assert_eq!(dump(1), dump(1));
        assert_ne!(dump(1), dump(2));
    }
}
