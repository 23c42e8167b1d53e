//! The retention window: every commit inside it stays restorable, what only older states need goes.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`plan`] | pure: what a manifest and a time say is to be kept, marked, swept, written |
//! | [`catalog`] | every listed entry as far as it may expire, index objects read |
//! | [`run`] | carrying a plan out: touch, image, split, mark, sweep |
//! | [`image`] | an image of a state that only the store holds |
//! | [`garbage`] | unlisted objects of process lives that are over |
//! | [`hold`] | databases that a running restore, fork or archive reads: nothing of theirs is marked |
//!
//! A mark is final: from the manifest version that carries it the object does not exist for readers, planners
//! and protectors. It is deleted after [`GRACE_MICROS`] by two clocks, ours and the store's, which the
//! manifest that was just written tells. Time is the earlier of the two wherever something ends by it: a clock
//! set forward expires nothing early (HAZARDS S39). Nothing is judged by a listing alone (S37).

pub(crate) mod catalog;
pub(crate) mod garbage;
pub(crate) mod hold;
pub(crate) mod image;
pub(crate) mod plan;
pub(crate) mod run;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use garbage::find as unlisted;
pub use run::{ObjectGone, RetentionReport};

/// Between mark and deletion: longer than any restore.
pub const GRACE_MICROS: u64 = 24 * 3600 * 1_000_000;
/// The window of a database that names none.
pub const WINDOW_MICROS: u64 = 30 * DAY_MICROS;
/// A day.
pub const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;
/// The shortest and longest window in days.
pub const WINDOW_DAYS: (u64, u64) = (1, 3650);
/// The base may be older than the horizon by this share of the window before a new image is written.
const BASE_SHARE: u64 = 10;
/// Marks one manifest carries at once: an index object is one mark for all below it.
const MARKS_MAX: usize = 128;
