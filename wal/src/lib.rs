//! The bytes of Tidelog: SQLite's WAL as it lies on disk, and the reversible deltas made of it.
//!
//! This crate is pure and synchronous. It knows no runtime, no object store and no SQLite library; it
//! takes untrusted bytes and answers with typed values or a [`DecodeError`], and never panics on them.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`ids`] | terms, TxIds, chains, Positions, ids of tenants and databases |
//! | [`page`] | page sizes, numbers and counts, the lock page, the mask of page 1 |
//! | [`codec`] | varints and bounded reading, shared by every format |
//! | [`header`], [`frame`], [`checksum`], [`cursor`], [`shm`] | SQLite's WAL and wal-index |
//! | [`delta`] | reversible deltas: diff, merge, apply in either direction |
//! | [`merged`] | deltas of many commits, merged by page |
//! | [`digest`] | the state digest and its incremental change |
//! | [`record`] | the commit record, its canonical encoding |
//! | [`chain`] | the hash chain over commit records |
//! | [`block`] | compressed blocks of at most 256 KiB raw |
//! | [`parallel`] | two halves of one large piece of work at once |
#![forbid(unsafe_code)]

pub mod block;
pub mod chain;
pub mod checksum;
pub mod codec;
pub mod cursor;
pub mod delta;
pub mod digest;
pub mod frame;
pub mod header;
pub mod ids;
pub mod merged;
pub mod page;
pub mod parallel;
pub mod record;
pub mod shm;

pub use codec::DecodeError;
pub use delta::Delta;
pub use digest::{Digest, DigestSeed};
pub use ids::{Chain, ClusterId, DatabaseId, NamespaceId, NodeId, Position, Term, Timestamp, TxId};
pub use page::{PageCount, PageNo, PageSize};
pub use record::{CommitRecord, RecordKind};
