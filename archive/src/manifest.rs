//! The manifest: the root of a database's history. What neither it nor an index object it names lists does
//! not exist.
//!
//! It is rewritten by compare-and-swap at `tenants/{namespace}/{database}/manifest`; namespace and database
//! stand in the header, as in every object. It stays at or below 64 KiB ([`MANIFEST_LEN_MAX`]):
//! [`Manifest::fold`] moves the oldest entries into index objects ([`crate::index`]).
//!
//! # Payload
//!
//! | field | form |
//! | --- | --- |
//! | version | varint: 1 at creation, one more at each write |
//! | owner | term varint, node id (16) |
//! | state | u8: 0 creating, 1 active, 2 deleted, 3 purged; then since when, varint |
//! | name hint | varint length, UTF-8, at most 256 bytes; for listing a bucket alone, never an identity |
//! | page size, digest seed | u8 binary logarithm, u64 |
//! | created | varint |
//! | retention window, horizon | varint microseconds, varint TxId: states before it are expired |
//! | key ids | varint count, 16 each |
//! | parent | u8: 0 none, 1: namespace (16), database (16), Position, pin id (16) |
//! | settled | u8: 0 nothing yet, 1: Position, time varint, page count varint, digest u64 |
//! | terms | varint count, (term varint, first TxId varint)*, both ascending |
//! | labels | varint count, (name, note, Position, time, created, expires or 0)* |
//! | pins | varint count, (id 16, Position, created, u8 and child 16)* |
//! | gaps | varint count, (after, resumes TxId; from, to time; u8 reason)*, ascending |
//! | index | varint count, [`IndexEntry`]*, ascending |
//! | images | varint count, [`ImageEntry`]*, ascending |
//! | segments | varint count, [`SegmentEntry`]*, ascending |
//! | marked | varint count, [`Marked`]* |
//!
//! A Position is term varint, TxId varint, chain (16). Entries name their objects by nonce, length and
//! BLAKE3: keys follow from the grammar ([`crate::key`]). A database lists its own objects alone: a fork
//! reads what it shares through its parent's manifest.
//!
//! # Invariants
//!
//! [`Manifest::check_self`] and [`Manifest::check_follows`] guard every publish and every load; each rule
//! stands at its check. A mark is final: an object marked for deletion never comes back (I5).

mod codec;
mod entry;
mod fold;
mod invariants;
mod model;
mod publish;

pub use entry::{ImageEntry, IndexEntry, Marked, SegmentEntry};
pub(crate) use entry::{put_list, read_list};
pub(crate) use fold::spanning;
pub use fold::{NewIndexObject, SEGMENTS_MAX};
pub use invariants::ManifestError;
pub use model::{Gap, GapReason, Label, Manifest, Owner, Parent, Pin, Settled, State, TermStart};
pub use publish::{Loaded, ManifestStore, PublishError};

/// The most bytes of an encoded manifest.
pub const MANIFEST_LEN_MAX: usize = 64 << 10;
