//! What can go wrong in the protocol of terms.

use tidelog_wal::Term;

use crate::ErrorKind;
use crate::envelope::{CorruptObject, FormatError};
use crate::journal::Fence;
use crate::seal::KeyError;
use crate::store::StoreError;

/// Why a step of the protocol did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TermError {
    /// The store failed.
    #[error("cannot {action}")]
    Store {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: StoreError,
    },
    /// A stored object is damaged, foreign, or newer than this program.
    #[error(transparent)]
    Corrupt(#[from] CorruptObject),
    /// The key of a journal object is not at hand.
    #[error("the key of a journal object is not at hand")]
    Key(#[source] KeyError),
    /// Another life has closed this term: never write under it again.
    #[error("term {term} has been closed by term {}", by.by_term)]
    Fenced {
        /// The closed term.
        term: Term,
        /// What closes it.
        by: Fence,
    },
    /// An object that must exist does not.
    #[error("{key} is missing and must exist")]
    Missing {
        /// Its key.
        key: String,
    },
    /// Nobody has claimed this term.
    #[error("nobody has claimed term {term}")]
    Unclaimed {
        /// The term.
        term: Term,
    },
    /// Others kept getting in first.
    #[error("cannot {action}: others were first {rounds} times")]
    Contended {
        /// What was attempted.
        action: &'static str,
        /// How often.
        rounds: u32,
    },
    /// All four billion terms are used.
    #[error("no term is left in this bucket")]
    NoTermLeft,
    /// The bucket has no root: nothing has been set up here.
    #[error("the bucket has no root")]
    NoRoot,
    /// The bucket already has a root.
    #[error("the bucket already has a root")]
    RootExists,
    /// An object of ours could not be encoded.
    #[error("cannot encode an object")]
    Unwritable(#[source] FormatError),
}

impl TermError {
    pub(super) fn store(action: &'static str, source: StoreError) -> Self {
        Self::Store { action, source }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { source, .. } => source.kind(),
            Self::Corrupt(error) => error.kind(),
            Self::Key(error) => error.kind(),
            Self::Fenced { .. } => ErrorKind::Fenced,
            Self::Missing { .. } => ErrorKind::Corrupt,
            Self::Unclaimed { .. } | Self::NoRoot => ErrorKind::NotFound,
            Self::Contended { .. } | Self::RootExists => ErrorKind::Conflict,
            Self::NoTermLeft => ErrorKind::Exhausted,
            Self::Unwritable(_) => ErrorKind::Internal,
        }
    }
}
