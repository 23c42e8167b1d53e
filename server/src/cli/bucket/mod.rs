//! The commands that read the bucket alone: no server, no data folder, nothing written to the store but by
//! `store check` and `token recover`. What a bucket holds is the engine's to find out ([`tidelog_engine::bucket`]).

pub(super) mod check;
pub(super) mod history;
pub(super) mod list;
pub(super) mod recover;
pub(super) mod restore;
pub(super) mod verify;

use tidelog_archive::ErrorKind;
use tidelog_archive::plan::PlanError;
use tidelog_archive::restore::RestoreError;
use tidelog_archive::store::StoreError;
use tidelog_engine::bucket;

use super::args::At;
use super::exit::{Exit, Failure};

/// A failure of something that answers `kind()`, with its causes.
fn failure(kind: ErrorKind, error: &dyn std::error::Error) -> Failure {
    let causes = crate::problem::causes(error);
    let message = if causes.is_empty() {
        error.to_string()
    } else {
        format!("{error}: {causes}")
    };
    Failure::new(Exit::of_kind(kind), message)
}

macro_rules! failures {
    ($($error:ty)*) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                failure(error.kind(), &error)
            }
        }
    )* };
}

failures! { StoreError PlanError RestoreError }

impl At {
    /// The point in time that is meant; the newest when none is given.
    fn target(&self) -> bucket::At {
        let time = self.at.map(bucket::At::Time);
        let snapshot = self.snapshot.clone().map(bucket::At::Snapshot);
        self.bookmark
            .map(bucket::At::Bookmark)
            .or(time)
            .or(snapshot)
            .unwrap_or(bucket::At::Latest)
    }
}
