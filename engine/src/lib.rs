//! The storage engine of Tidelog: runs tenants' SQLite databases, captures every commit as a reversible
//! delta, journals, ships and settles them, and puts databases back.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`settings`] | every bound, with what changing it costs |
//! | [`executor`] | where blocking work runs |
//! | [`disk`] | the local disk as the engine's own files see it |
//! | [`files`] | the engine's own descriptors of database files |
//! | [`capture`] | committed WAL frames become commit records |
//! | [`sql`] | opening connections, judging and running tenant SQL |
//! | [`streams`] | connections that clients have to themselves |
//! | [`journal`] | the local log of commit records and its watermarks |
//! | [`operations`] | long work as a resource |
//! | [`operator`] | what is asked of a whole node |
//! | [`travel`] | labels, rewind, retention, and what else an owner does with the past |
//! | [`crash`] | named crash points |
//! | [`rules`] | rules that tests switch off |
#![forbid(unsafe_code)]

mod admin;
pub mod bucket;
pub mod capture;
mod copy;
mod core;
pub mod crash;
pub mod database;
pub mod disk;
pub mod engine;
pub mod error;
pub mod executor;
pub mod files;
mod gap;
mod image;
mod import;
mod jobs;
pub mod journal;
mod keeper;
pub mod keys;
pub mod meters;
pub mod node;
pub mod operations;
pub mod operator;
mod part;
mod places;
mod pump;
mod rebuild;
mod registry;
mod remote;
pub mod request;
pub mod rules;
mod scratch;
mod sealed;
mod sealing;
pub mod settings;
mod settle;
mod ship;
pub mod spool;
pub mod sql;
pub mod streams;
pub mod system;
pub mod timeline;
pub mod travel;
mod trim;
mod turns;
mod upload;

/// Gives an `async fn` a boxed future, so that it is compiled here, once. The body of a plain one is compiled anew in
/// every crate that awaits it, with all that it awaits; the public surface is awaited by the server and by every test.
pub(crate) use async_recursion::async_recursion as boxed;

// The rig of the tests beside this crate, for those within it: to it this crate is `tidelog_engine`.
#[cfg(test)]
extern crate self as tidelog_engine;
#[cfg(test)]
#[path = "../tests/rig/mod.rs"]
mod rig;

pub use core::Parts;
pub use engine::{Database, Draft, Engine, NewDatabase, Writer};
pub use error::{Code, Error};
pub use request::{Access, BookmarkInfo, IdempotencyKey, Request, Response, Role};
pub use settings::{Durability, Settings, TakeOver};
pub use sql::run::{Column, Limits, Params, Statement, StatementResult, Tally, Value, check};
pub use tidelog_archive::seal::{MasterKey, MasterKeys};
