//! Sealing: what stands in a bucket is worthless without the keys.
//!
//! # Keys
//!
//! | key | made by | where it is | what it does |
//! | --- | --- | --- | --- |
//! | master key | the operator: 32 random bytes with an id, several at a time, the newest last | never in a bucket or data folder | wraps data keys |
//! | data key | this program: 32 random bytes with a random 128-bit id, at least one a database | wrapped, in the database's `key` object ([`KeyObject`]) | object keys are derived from it |
//! | object key | derived: BLAKE3 `derive_key` over data key and object nonce | nowhere | seals the blocks of one encoding of one object |
//!
//! A data key's id stands in the header of every object it seals, and in every section of a journal object: a
//! section is sealed with its own database's key, so that a shared object opens database by database. The
//! index of a journal object, which tells of all of them, is sealed with the system database's key, and so are audit
//! lines.
//!
//! # Blocks
//!
//! Each block, after compression, is sealed with AES-256-GCM, 16 bytes longer than before:
//!
//! - key: `BLAKE3.derive_key("tidelog 2026 object key v1", data key || object nonce)`. BLAKE3 rather than HKDF:
//!   the data key is uniformly random, so that nothing has to be extracted; the function is in the product
//!   already, domain-separated by its context string, and takes one compression an object.
//! - nonce: four zero bytes, then the block's number in the object (u64, little-endian). The index counts as
//!   block 2^64 - 1. An object nonce is drawn anew, 128 random bits, for every encoding ([`Stamp`] is used up
//!   by it), so that no (key, nonce) pair comes twice.
//! - additional data: format version (u16), object kind, cipher id, object nonce (16), namespace (16), database
//!   (16), block number (u64), in this order, little-endian. A block that is moved to another place, object,
//!   kind or database does not open.
//!
//! CRC-32 and BLAKE3 cover the stored, sealed bytes: damage is found, and repaired from a copy, without keys.
//!
//! # Wrapping
//!
//! A wrapped data key is 16 random bytes, then the key sealed with AES-256-GCM under
//! `BLAKE3.derive_key("tidelog 2026 wrap key v1", master key || those bytes)` and nonce zero; its additional data is
//! format version (u16), namespace, database, key id, time of making (u64), whether the database was plain before
//! (u8), and the master key's id. So a wrapped key opens only for the database it was made for.
//!
//! # What a missing key means
//!
//! An object whose key is not at hand is refused with [`crate::ErrorKind::KeyUnavailable`], naming object and key.
//! Nothing is guessed, and nothing is served as empty. A ring without master keys ([`Keyring::off`]) reads and
//! writes plain objects and refuses sealed ones.

mod access;
mod cipher;
mod error;
mod file;
mod keys;
mod master;
mod object;
mod ring;

pub use access::{KeyStatus, KeyStore};
pub use cipher::{BlockSealer, INDEX_BLOCK, SEAL_OVERHEAD};
pub use error::KeyError;
pub use file::FileSealer;
pub use keys::{DataKey, SealKey, Stamp};
pub use master::{MASTER_ID_LEN_MAX, MasterKey, MasterKeyError, MasterKeys};
pub use object::{KEYS_MAX, KeyObject, WrappedKey};
pub use ring::{Keyring, Known};
