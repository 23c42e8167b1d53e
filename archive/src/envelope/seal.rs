//! The one point every block passes on its way in and out of an object.
//!
//! This version writes plain objects and refuses sealed ones by name. What a cipher needs is at hand here:
//! a block is known by (object kind, database, object nonce, block number), so that sealing will change no
//! format, only these two functions.

use std::borrow::Cow;

use tidelog_wal::DatabaseId;

use super::error::FormatError;
use super::header::{KeyId, ObjectKind, ObjectNonce};

/// How blocks are sealed. Codes are kept stable; 1 is reserved for AES-256-GCM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// Not at all.
    #[default]
    Plain,
}

/// Which block of which object, bound into its sealing: a block moved elsewhere does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockContext {
    /// The kind of object.
    pub kind: ObjectKind,
    /// Whose block it is.
    pub database: DatabaseId,
    /// The object's nonce.
    pub nonce: ObjectNonce,
    /// The block's number in the object, from 0.
    pub block: u64,
}

impl Cipher {
    /// Its code in a header.
    pub const fn code(self) -> u8 {
        match self {
            Self::Plain => 0,
        }
    }

    /// The cipher of a code, if this program knows it.
    pub const fn from_code(code: u8, key_id: KeyId) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::Plain),
            cipher => Err(FormatError::Sealed { cipher, key_id }),
        }
    }

    /// Seals the compressed block that stands in `bytes` from `start` on, in place.
    pub fn seal(self, _context: BlockContext, _bytes: &mut Vec<u8>, _start: usize) {
        match self {
            Self::Plain => {}
        }
    }

    /// Opens a stored block into its compressed bytes.
    pub const fn open(
        self,
        _context: BlockContext,
        stored: &[u8],
    ) -> Result<Cow<'_, [u8]>, FormatError> {
        match self {
            Self::Plain => Ok(Cow::Borrowed(stored)),
        }
    }
}
