//! A node: its identity, its start, its threads and tasks.

pub mod detached;
pub mod identity;
pub(crate) mod inherit;
pub(crate) mod keys;
pub mod life;
pub(crate) mod start;
pub(crate) mod tail;
pub(crate) mod terms;
