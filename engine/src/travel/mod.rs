//! Time travel: everything an owner does with the past of a database.

pub mod archives;
pub mod branches;
pub(crate) mod calendar;
pub mod deletion;
pub mod detach;
mod diverged;
pub mod forks;
pub(crate) mod inspect;
pub mod labels;
mod namespaces;
mod old_versions;
pub mod replace;
pub mod restores;
pub mod retention;
pub mod rewind;
mod schema_only;
pub mod unnamed;
pub mod verify;
pub(crate) mod watched;
