//! The envelope: the header and trailer of every stored object, and how one is written and proven.
//!
//! # Layout, version 1, little-endian
//!
//! ```text
//! header (96) | body: stored blocks | index | trailer (64)
//! ```
//!
//! Header:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `TIDELOG\0` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 1 | object kind ([`ObjectKind`]) |
//! | 11 | 1 | cipher id: 0 plain, 1 AES-256-GCM ([`crate::seal`]) |
//! | 12 | 4 | zero |
//! | 16 | 16 | write id: random for every PUT of a create or if-match, so that bytes never repeat and an ambiguous PUT is resolved by reading it back |
//! | 32 | 16 | key id: what seals index and blocks; zero when plain, or when a journal object's sections alone are sealed |
//! | 48 | 16 | object nonce, zero when plain |
//! | 64 | 16 | namespace id, zero for objects of the node |
//! | 80 | 16 | database id, zero for objects of the node |
//!
//! Trailer:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | index offset from the start of the object |
//! | 8 | 4 | index length |
//! | 12 | 4 | CRC-32 of the index |
//! | 16 | 32 | BLAKE3 of every byte before the trailer |
//! | 48 | 8 | object length, trailer included |
//! | 56 | 8 | magic `\0GOLEDIT` |
//!
//! # What proves what
//!
//! The trailer's BLAKE3 names the object: manifest entries, index entries and reference records carry it
//! with the length. A reader that holds the whole object ([`Object::open`]) proves all of it. A reader that
//! fetches ranges ([`Object::open_tail`]) compares the trailer's BLAKE3 with the one that named the object,
//! proves the index by its CRC-32 and each block by its own; records are then proven by the chain, and
//! states by the digest. Which object it is (kind, namespace, database) is part of what a reader expects:
//! swapped objects are refused ([`Expect`]).
//!
//! Blocks and the index may be sealed; CRC-32 and BLAKE3 cover them as stored.
//!
//! Objects that are rewritten (root, manifest, term state) and small ones (claim, fence, index) carry one
//! block, their payload, as body, and an empty index ([`encode_payload`]).

mod block;
mod error;
mod header;
mod object;
mod trailer;
mod writer;

pub use block::{BlockEntry, BlockTable, BlockWriter};
pub use error::{CorruptObject, FormatError};
pub use header::{
    Cipher, Expect, HEADER_LEN, Header, KeyId, MAGIC, ObjectKind, ObjectNonce, VERSION, WriteId,
};
pub use object::{Object, TAIL_GUESS, TailRange, decode_payload, encode_payload};
pub use trailer::{END_MAGIC, INDEX_LEN_MAX, TRAILER_LEN, Trailer};
pub use writer::{Finished, ObjectWriter};
