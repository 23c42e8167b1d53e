//! Segments: a contiguous run of commit records of one database, each still separate.
//!
//! Body: the blocks of one record stream ([`crate::records`]). Index:
//!
//! | field | form |
//! | --- | --- |
//! | page size | u8, binary logarithm |
//! | digest seed | u64 |
//! | run | [`crate::records::Run`] |
//! | raw length of the stream | varint |
//! | blocks | block table ([`crate::envelope::BlockTable`]) |
//! | marks | one a block, below |
//!
//! ```text
//! mark := varint(records that start in the block), and if there are any, of the first of them:
//!         varint(raw offset in the block) varint(time since the mark before) chain before it (16)
//! ```
//!
//! A mark is where reading can begin: its chain proves the records from it on. So a TxId or a time is found
//! by two ranged GETs, the tail of the object and a few blocks, and what is read is proven up to the next
//! mark. Records of any size are written in the memory of a few blocks, and read in that of a block and a page.
//!
//! A *part* is a segment with one record that was too large for the journal. Segments hold no `reference`
//! records: the part itself stands in the list of segments.

mod index;
mod span;
mod writer;

pub use index::{Mark, Segment, SegmentMeta};
pub use span::SegmentSpan;
pub use writer::SegmentWriter;
