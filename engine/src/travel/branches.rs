//! Branches: forks that are found by the database they were made of and a ref, made or made anew by one call.
//!
//! A branch at a state that its source inherited hangs on the database that wrote that state, and is the source's
//! branch all the same; so is one that was detached.

use std::time::Duration;

use tidelog_wal::Position;

use super::forks::Fork;
use crate::boxed;
use crate::bucket::At;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::operations::Handle;
use crate::system::databases::DatabaseRow;
use crate::system::names::check_name;

/// The longest ref.
const REF_LEN_MAX: usize = 64;

/// What a call for a branch came to.
#[derive(Debug)]
pub enum Branched {
    /// It is there, at that state already: nothing was done.
    Stands(Box<DatabaseRow>),
    /// It is being made, or made anew.
    Begun(Handle),
}

impl Database {
    /// Makes the branch `name` at a state, or puts it there anew: what stood there is deleted once the new one is
    /// there, and can be brought back under its database name for seven days. The same call again changes nothing while nobody wrote to it.
    #[boxed]
    pub async fn branch_put(
        &self,
        name: &str,
        at: At,
        lives: Option<Duration>,
        token: Option<String>,
    ) -> Result<Branched, Error> {
        let database = self.branch_database(name)?;
        let target = self.resolve(at).await?.2.position;
        let stands = self.branch_row(name).await?;
        if let Some(row) = &stands {
            if self.is_untouched(row, target).await? {
                return Ok(Branched::Stands(Box::new(row.clone())));
            }
            self.engine().check_deletable(row)?;
        }
        let fork = Fork {
            at: At::Bookmark(target),
            lives,
            branch: Some(name.to_owned()),
            token,
            ..Fork::named(database)
        };
        let begun = match stands {
            None => self.fork(fork).await?,
            Some(old) => self.fork_instead(fork, Some(old)).await?,
        };
        Ok(Branched::Begun(begun))
    }

    /// The live branches of this database, by name.
    #[boxed]
    pub async fn branches(&self) -> Result<Vec<DatabaseRow>, Error> {
        let system = &self.engine().inner.system;
        system.databases_branched(self.row().id, None).await
    }

    /// The branch `name` of this database.
    #[boxed]
    pub async fn branch(&self, name: &str) -> Result<DatabaseRow, Error> {
        self.branch_row(name).await?.ok_or_else(|| {
            let what = format!("database {:?} has no branch {name:?}", self.row().name);
            Error::new(Code::DatabaseNotFound, what)
        })
    }

    /// Deletes the branch `name`.
    #[boxed]
    pub async fn branch_delete(&self, name: &str) -> Result<DatabaseRow, Error> {
        let row = self.branch(name).await?;
        self.engine()
            .database_delete(row.namespace, &row.name)
            .await
    }

    async fn branch_row(&self, name: &str) -> Result<Option<DatabaseRow>, Error> {
        let system = &self.engine().inner.system;
        let found = system
            .databases_branched(self.row().id, Some(name.to_owned()))
            .await?;
        Ok(found.into_iter().next())
    }

    /// Whether a branch stands at `at` as it was made.
    async fn is_untouched(&self, branch: &DatabaseRow, at: Position) -> Result<bool, Error> {
        if branch.parent.is_none_or(|parent| parent.at != at) {
            return Ok(false);
        }
        let engine = self.engine();
        let database = engine.database(branch.namespace, &branch.name).await?;
        let now = database.bookmark().await?.bookmark;
        // Its first commit says that it is a fork and changes nothing.
        Ok(now.txid <= at.txid.next())
    }

    /// The name of the database that a branch is.
    fn branch_database(&self, name: &str) -> Result<String, Error> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        if name.is_empty() || name.len() > REF_LEN_MAX || !name.chars().all(plain) {
            let what = format!(
                "a branch name has 1 to {REF_LEN_MAX} characters of letters, digits and ._/-, not {name:?}"
            );
            return Err(Error::new(Code::NameInvalid, what));
        }
        // Readable where it fits, and apart from every other by its hash where letters were replaced or cut.
        let own = self.row();
        let hash = blake3::hash(format!("{} {name}", own.id).as_bytes()).to_hex();
        let plain: String = format!("{}--{}", own.name, name.to_ascii_lowercase())
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                    c
                } else {
                    '-'
                }
            })
            .take(50)
            .collect();
        let made = format!("{plain}-{}", &hash[..8]);
        check_name("database", &made)?;
        Ok(made)
    }
}
