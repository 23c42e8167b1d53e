//! Streams of commit records: how journal sections and segments hold them.
//!
//! ```text
//! stream := record*
//! record := varint(length) canonical record bytes
//! ```
//!
//! The stream is cut into blocks of 256 KiB raw (the last one shorter) without regard to records: a record
//! may span any number of blocks. TxIds are dense, and the chain runs from the one before the first record
//! to the one after the last; readers prove both as they go ([`ChainWalk`]).

mod cut;
mod run;
mod scan;
mod walk;

pub use cut::RecordCutter;
pub(crate) use run::RUN_LEN_MIN;
pub use run::Run;
pub use scan::{BodyHead, ChainList, KnownChains, RecordHead, RecordScanner, RecordVisitor};
pub use walk::{ChainWalk, RawRecord, RecordReader};

/// The longest record that is handled in one piece. Longer ones are streamed.
pub const RECORD_WHOLE_MAX: usize = 2 << 20;
/// The longest record there is.
pub const RECORD_LEN_MAX: u64 = 1 << 40;
