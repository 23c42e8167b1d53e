//! Scrubbing: verifying a database from the bucket alone.
//!
//! | level | what is read | what is proven |
//! | --- | --- | --- |
//! | [`Level::Objects`] | every listed object, whole | length, BLAKE3, index: nothing is missing, flipped, cut or swapped |
//! | [`Level::Chain`] | the same | also that all records form one chain from object to object, and every block of every image opens |
//! | [`Level::Restore`] | the same, and each image against the log | also that states reached over different paths have the recorded digests |
//!
//! A finding names key, offset (where there is one) and what is wrong; the scrub goes on behind it. Findings
//! are data: an `Err` says only that the history itself could not be read. Memory is bounded by one object
//! of a fetch, not by the history.

mod check;
mod run;

use std::fmt;

use crate::ErrorKind;

pub use run::{scrub, scrub_some};

/// How much is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every object is there and intact.
    Objects,
    /// And all records form one chain.
    Chain,
    /// And images and log lead to the same states.
    Restore,
}

/// Something wrong with a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub key: String,
    /// Where in it, if that can be told.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What that means: damaged, gone, or not to be had now.
    pub kind: ErrorKind,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{} at offset {offset}: {}", self.key, self.what),
            None => write!(f, "{}: {}", self.key, self.what),
        }
    }
}

/// What a scrub covered, and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubReport {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Objects read.
    pub objects: u64,
    /// Objects that were not asked for.
    pub skipped: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Commit records proven by the chain.
    pub records: u64,
    /// States restored and compared with their digest.
    pub states: u64,
}

impl ScrubReport {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}
