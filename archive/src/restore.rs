//! Restoring: executing a plan into a new file, proven.
//!
//! Every record of the plan is read, in the order of history whichever way the state lies, and the XOR of all their
//! deltas is gathered by page, in bounded memory: what does not fit is applied to the [`PageSink`] early, which changes
//! nothing, for XOR commutes. An image that the plan starts with comes last: its pages are led to the target as they
//! come. Where all deltas fit, each of them is written once, from the start of the file to its end, and is on its way to
//! the disk meanwhile ([`FileSink`]). Objects are fetched and opened ahead by several tasks; one thread hashes the chain,
//! one compares it and applies.
//!
//! What is proven before a file gets its name: the chain over every record read, and that it joins start and
//! target; the length; the digest of every page as it stands in the file. Then page 1 is unmasked, the file
//! synced, renamed, and its folder synced. A missing or damaged object is an error with key and offset.

mod apply;
mod chains;
mod error;
mod fetch;
mod run;
mod sink;

pub use error::RestoreError;
pub use run::{Report, RestoreSettings, execute, merge, merge_watched};
pub use sink::{FileSink, MemorySink, PageSink, fill_from};
