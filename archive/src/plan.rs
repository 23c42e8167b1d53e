//! Planning: which Position a request means, and the cheapest way to its state.
//!
//! Deltas form a group, so a state is reached from any image (or the empty state, or a file at a known
//! Position) in either direction: the plan is a start and the runs of records between, priced by the bytes
//! they cost to fetch. Preview and execution use the same [`Plan`] (I10).
//!
//! [`History`] is what manifests, index objects and unsettled journal sections say of a database: its own
//! history and, through forks, its parents'. Index objects are read as far as a target needs them.
//! [`History::resolve`] answers the five ways in which a bookmark may not be usable, each its own error that
//! names the nearest usable one.

mod choose;
mod error;
mod history;
mod legs;
mod list;
mod read;
mod resolve;

pub use choose::{Direction, Plan, Start, Step};
pub use error::PlanError;
pub use history::{History, ImageSource, Layer, Piece, PieceSource, TailSection};
pub use legs::{Leg, Same};
pub use list::CommitInfo;
pub use read::ReadError;
pub(crate) use read::{Opened, get_range, open_image, open_piece, open_segment};
pub use resolve::{Resolved, Target, Terms};
