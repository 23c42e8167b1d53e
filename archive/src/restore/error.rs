//! Why a restore failed.

use tidelog_wal::{Digest, TxId};

use crate::ErrorKind;
use crate::envelope::FormatError;
use crate::plan::ReadError;

/// Why a plan could not be executed. The file it would have made does not exist.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// An object is missing or damaged.
    #[error("an object of the plan cannot be read")]
    Read(#[from] ReadError),
    /// Bytes are refused; becomes [`RestoreError::Read`] where the key is known.
    #[error("bytes of an object are refused")]
    Format(#[from] FormatError),
    /// The file could not be written.
    #[error("writing the restored file failed")]
    Io(#[from] std::io::Error),
    /// Records do not lead from the start to the target.
    #[error("{what}, at txid {txid} of {key}")]
    Broken {
        /// What does not join.
        what: &'static str,
        /// Where.
        txid: TxId,
        /// In which object.
        key: String,
    },
    /// The pages written are not the state that was recorded.
    #[error("the restored state of txid {txid} has digest {found}, recorded is {expected}")]
    Digest {
        /// Which state.
        txid: TxId,
        /// What was written.
        found: Digest,
        /// What was recorded.
        expected: Digest,
    },
    /// A task of the restore ended without an answer.
    #[error("a task of the restore was stopped")]
    Stopped,
}

impl RestoreError {
    /// What it means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(error) => error.kind(),
            Self::Format(error) => error.kind(),
            Self::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                ErrorKind::Exhausted
            }
            Self::Io(_) | Self::Stopped => ErrorKind::Unavailable,
            Self::Broken { .. } | Self::Digest { .. } => ErrorKind::Corrupt,
        }
    }

    /// The same error, naming the object whose bytes are refused.
    pub(super) fn in_object(self, key: &str) -> Self {
        match self {
            Self::Format(error) => Self::Read(error.in_object(key).into()),
            other => other,
        }
    }
}
