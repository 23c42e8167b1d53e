//! Why stored bytes are refused.

use tidelog_wal::{Chain, DecodeError, TxId};

use super::header::KeyId;
use crate::ErrorKind;

/// Why the bytes of an object are refused. Offsets count from the start of the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The bytes are not of this format, damaged, or newer than this program.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The object is sealed in a way this program does not know.
    #[error("sealed with cipher {cipher}, which this program does not know")]
    Cipher {
        /// The cipher's number.
        cipher: u8,
    },
    /// The object is sealed, and its key is not at hand.
    #[error("sealed with data key {key_id}, which is not at hand")]
    KeyUnavailable {
        /// Which key sealed it.
        key_id: KeyId,
    },
    /// A sealed block is not what was sealed in this place of this object.
    #[error("{what} from offset {offset} does not open with its key: changed, or of another place")]
    Unauthentic {
        /// Where it begins in the object.
        offset: u64,
        /// What does not open.
        what: &'static str,
    },
    /// A plain object stands where only sealed ones were written.
    #[error("the object is not sealed, and everything of this database is")]
    NotSealed,
    /// The object is intact but is another one than was asked for.
    #[error("{what} is {found}, expected {expected}")]
    Foreign {
        /// What tells the two apart.
        what: &'static str,
        /// What stands in the object.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The hash chain over the records does not lead where it should.
    #[error(
        "chain after txid {txid} is {found}, expected {expected}, records from offset {offset}"
    )]
    Chain {
        /// Where the records begin in the object.
        offset: u64,
        /// The last record that was hashed.
        txid: TxId,
        /// What was computed.
        found: Chain,
        /// What was promised.
        expected: Chain,
    },
    /// A writer was handed something the format cannot hold.
    #[error("cannot write an object: {what}")]
    Unwritable {
        /// What is wrong with it.
        what: &'static str,
    },
}

impl FormatError {
    /// What it means for the caller.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Decode(DecodeError::Version { .. })
            | Self::Cipher { .. }
            | Self::Unwritable { .. } => ErrorKind::Invalid,
            Self::KeyUnavailable { .. } => ErrorKind::KeyUnavailable,
            Self::Decode(_)
            | Self::Foreign { .. }
            | Self::Chain { .. }
            | Self::Unauthentic { .. }
            | Self::NotSealed => ErrorKind::Corrupt,
        }
    }

    /// The same error, naming the object.
    pub fn in_object(self, key: impl Into<String>) -> CorruptObject {
        CorruptObject {
            key: key.into(),
            error: self,
        }
    }

    /// An invalid `what` at `offset`.
    pub(crate) const fn invalid(offset: usize, what: &'static str) -> Self {
        Self::Decode(DecodeError::Invalid { offset, what })
    }

    /// The same error of bytes that begin `base` bytes into the object.
    #[must_use]
    pub(crate) fn shifted(self, base: u64) -> Self {
        let base = usize::try_from(base).unwrap_or(usize::MAX);
        let Self::Decode(mut error) = self else {
            return self;
        };
        match &mut error {
            DecodeError::Short { offset, .. }
            | DecodeError::Magic { offset, .. }
            | DecodeError::Invalid { offset, .. }
            | DecodeError::TooLarge { offset, .. }
            | DecodeError::Checksum { offset, .. }
            | DecodeError::Trailing { offset, .. } => *offset = offset.saturating_add(base),
            DecodeError::Version { .. } => {}
        }
        Self::Decode(error)
    }
}

/// Shifts decode errors of bytes that begin `base` bytes into their object.
pub(crate) fn at<T>(base: u64, result: Result<T, DecodeError>) -> Result<T, FormatError> {
    result.map_err(|error| FormatError::from(error).shifted(base))
}

/// A refused object, by its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("object {key} is refused: {error}")]
pub struct CorruptObject {
    /// Its key.
    pub key: String,
    /// Why, and at which offset.
    pub error: FormatError,
}

impl CorruptObject {
    /// What it means for the caller.
    pub const fn kind(&self) -> ErrorKind {
        self.error.kind()
    }
}
