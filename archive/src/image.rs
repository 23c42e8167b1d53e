//! Images: every page of one database at one Position.
//!
//! Body: blocks of whole pages, in ascending order, at most 256 KiB raw each. The lock page and pages that
//! are all zeros are left out; page 1 stands masked, as everywhere in the log. Blocks are independent: they
//! can be fetched and opened in any order. Index:
//!
//! | field | form |
//! | --- | --- |
//! | page size | u8, binary logarithm |
//! | digest seed | u64 |
//! | Position | term varint, TxId varint, chain (16) |
//! | time | varint: ordered time of that commit |
//! | page count, digest | varint, u64 |
//! | blocks | block table ([`crate::envelope::BlockTable`]) |
//! | page runs | one list a block, below |
//!
//! ```text
//! list := varint(runs) run*
//! run  := varint(pages left out since the run before, first since page 1) varint(pages)   pages >= 1
//! ```
//!
//! An image that an `image` record names is written before that record, and the record's bytes, which make
//! the chain, hold the image's BLAKE3: so its chain is zero, and its record proves it instead.
//!
//! The digest proves the state: the writer computes it from what it writes and refuses to end on another.

mod index;
mod writer;

pub use index::{Image, ImageBlock, ImageMeta, PageRun};
pub use writer::ImageWriter;
