//! Time travel: everything an owner does with the past of a database.

pub mod restores;
pub mod rewind;
