//! Time travel: everything an owner does with the past of a database.

pub mod branches;
pub(crate) mod calendar;
mod deletion;
pub mod detach;
pub mod forks;
pub mod labels;
pub mod restores;
pub mod retention;
pub mod rewind;
mod schema_only;
