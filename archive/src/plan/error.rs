//! Why a state cannot be reached.

use tidelog_wal::{Position, Timestamp, TxId};

use super::read::ReadError;
use crate::ErrorKind;
use crate::manifest::{GapReason, PublishError};

/// Why a target is not usable. Each names the nearest one that is, if there is any.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The bookmark's term was never claimed: no process of this cluster made it.
    #[error("bookmark {position} is unknown: its term was never claimed")]
    Unknown {
        /// What was asked for.
        position: Position,
        /// The newest stored commit.
        head: Option<Position>,
    },
    /// The commit exists, and the bookmark is of another history.
    #[error("bookmark {position} is foreign: it is of another database or history")]
    Foreign {
        /// What was asked for.
        position: Position,
        /// The commit of that number here.
        nearest: Option<Position>,
    },
    /// The commit was made and lost with its machine before it was shipped.
    #[error("bookmark {position} is lost: it was never shipped")]
    Lost {
        /// What was asked for.
        position: Position,
        /// The last commit of its term that was not.
        nearest_earlier: Option<Position>,
    },
    /// The commit is not stored yet.
    #[error("bookmark {position} is in the future")]
    InFuture {
        /// What was asked for.
        position: Position,
        /// The newest stored commit.
        head: Option<Position>,
    },
    /// The state is older than what is kept.
    #[error("the state asked for is expired: history begins at txid {horizon}")]
    Expired {
        /// The oldest TxId that is kept.
        horizon: TxId,
        /// The oldest state that is kept.
        nearest: Option<Position>,
    },
    /// The state, or the way to it, lies in a gap.
    #[error("the state asked for lies in a gap from txid {after} to {resumes}: {reason:?}")]
    Gap {
        /// The last state before the gap.
        after: TxId,
        /// The first state behind it.
        resumes: TxId,
        /// Why there is one.
        reason: GapReason,
        /// The last usable bookmark before it.
        nearest_earlier: Option<Position>,
        /// The first usable bookmark behind it.
        nearest_later: Option<Position>,
    },
    /// The time is before the first commit.
    #[error("nothing was committed at or before {} us", time.micros())]
    BeforeHistory {
        /// What was asked for.
        time: Timestamp,
        /// The first commit.
        nearest: Option<Position>,
    },
    /// What is listed does not join: no path of objects leads there.
    #[error("no stored objects lead to txid {txid}")]
    NoPath {
        /// What was asked for.
        txid: TxId,
    },
    /// The database has a manifest or an index object that cannot be read.
    #[error("history cannot be read")]
    Manifest(#[from] PublishError),
    /// An object cannot be read.
    #[error("history cannot be read")]
    Read(#[from] ReadError),
}

impl PlanError {
    /// What it means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } | Self::Foreign { .. } | Self::InFuture { .. } => {
                ErrorKind::Invalid
            }
            Self::Lost { .. }
            | Self::Expired { .. }
            | Self::Gap { .. }
            | Self::BeforeHistory { .. } => ErrorKind::NotFound,
            Self::NoPath { .. } => ErrorKind::Corrupt,
            Self::Manifest(error) => error.kind(),
            Self::Read(error) => error.kind(),
        }
    }
}
