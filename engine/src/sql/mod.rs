//! SQLite as tenants reach it: opening connections, judging statements, running them.

pub mod connection;
pub mod fold;
pub(crate) mod own;
pub mod policy;
pub mod run;
