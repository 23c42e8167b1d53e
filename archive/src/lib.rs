//! What Tidelog stores remotely, and how: object formats, the store behind them, and the protocol of
//! terms and fences that keeps a dead writer dead.
//!
//! This crate knows bytes, keys and object stores. It never names SQLite's library: it moves commit
//! records and pages as [`tidelog_wal`] defines them.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`env`] | time and chance as parameters |
//! | [`error`] | the kinds of error that callers tell apart |
//! | [`store`] | one bucket prefix: conditional writes, their ambiguous outcomes, retries, metering, the probe |
//! | [`term`] | claiming, closing and inheriting terms; walking a term's journal |
//! | [`envelope`] | the header and trailer of every stored object |
//! | [`key`] | the names of objects |
//! | [`plan`] | which objects lead to a Position, and at what price; which Position a request means |
//! | [`restore`] | executing a plan: a new file, proven |
//! | [`scrub`] | verifying a database from the bucket alone |
//! | [`records`] | streams of commit records, as journal sections and segments hold them |
//! | [`seal`] | encryption: data keys, master keys, sealed blocks |
//! | [`audit`] | audit lines as objects |
//! | [`export`] | the sealed form of archives |
//! | [`root`], [`journal`], [`manifest`], [`index`], [`segment`], [`image`] | the objects themselves |
#![forbid(unsafe_code)]

pub mod audit;
pub mod env;
pub mod envelope;
pub mod error;
pub mod export;
pub mod image;
pub mod index;
pub mod journal;
pub mod key;
pub mod manifest;
pub mod plan;
pub mod records;
pub mod restore;
pub mod root;
pub mod scrub;
pub mod seal;
pub mod segment;
pub mod store;
pub mod term;

pub use env::{Clock, Entropy, SystemClock, SystemEntropy};
pub use error::ErrorKind;
