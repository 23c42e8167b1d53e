//! What a data folder holds beyond the store, whose term was closed by a life that it does not know, becomes forks
//! (I4, HAZARDS W21).
//!
//! The start has put files and journal of such a folder aside, in `fenced-{term}`. Its journal tells what was never
//! stored: of each database the commits behind the last one that both histories share. A fork of the database is
//! made there, named `{name}-diverged-{term}`, and all of them are applied to it as one commit, whose digest must be
//! the one that the last of them recorded. It is stored before the folder counts as reported.
//!
//! Beside serving, and again at the next start if it was not finished: a fork that is there already is gone on with.
//! What cannot be forked (the system database, a database that is gone, a history that does not join) is said in the
//! log, and stays in the folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;
use tidelog_archive::term::End;
use tidelog_wal::{Chain, DatabaseId, Digest, PageCount, Position, Term, TxId};

use crate::bucket::At;
use crate::capture::{CommitNote, Wanted};
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::journal::ChunkId;
use crate::journal::replay::{FoundRecord, Replay, replay};
use crate::journal::tail::pages_in;
use crate::node::inherit::unify;
use crate::node::terms::term_error;
use crate::operations::OperationState;
use crate::settings::Durability;
use crate::system::Page;
use crate::travel::forks::Fork;
use crate::travel::rewind::{PageXors, Source, Staged, put_in_place, raw_connection};

/// What folders that were put aside are called.
const ASIDE: &str = "fenced-";
/// Says in such a folder that everything of it was reported.
const REPORTED: &str = "reported.json";

/// The commits of one database that were never stored.
#[derive(Debug, Clone)]
struct Remainder {
    id: DatabaseId,
    /// The number of the commit before them, and the chain up to it.
    before: (TxId, Chain),
    commits: usize,
    /// The last of them.
    last: TxId,
    pages: PageCount,
    digest: Digest,
    /// Where they stand.
    chunks: Vec<(PathBuf, u64)>,
}

impl Engine {
    /// Makes forks of what folders that were put aside hold beyond the store.
    pub(crate) async fn fork_diverged(&self) -> Result<(), Error> {
        for (folder, term) in self.aside()? {
            let found = self.replay_aside(&folder).await?;
            let fences = self.fences(&found).await?;
            let mut reports = Vec::new();
            for remainder in remainders(&found, &fences)? {
                let (id, commits) = (remainder.id, remainder.commits);
                let made = self.fork_remainder(&folder, term, remainder).await;
                let report = match made {
                    Ok(name) => {
                        let forks = &self.inner.core.meters.diverged_forks;
                        forks.fetch_add(1, Ordering::Relaxed);
                        tracing::error!(
                            database = %id, commits, fork = name,
                            "another server closed the term of this folder: what it had not stored is in a fork"
                        );
                        json!({ "database": id.to_string(), "commits": commits, "fork": name })
                    }
                    Err(error) if error.code() == Code::StorageUnavailable => return Err(error),
                    Err(error) => {
                        tracing::error!(
                            database = %id, commits, folder = %folder.display(), %error,
                            "another server closed the term of this folder: what it had not stored stays in it"
                        );
                        json!({ "database": id.to_string(), "commits": commits, "error": error.to_string() })
                    }
                };
                reports.push(report);
            }
            let text = serde_json::to_vec_pretty(&reports)
                .map_err(|e| Error::internal("encode a report").caused_by(e))?;
            let disk = &self.inner.core.parts.disk;
            disk.write_atomic(&folder.join(REPORTED), &text)
                .map_err(|e| Error::io("write a report", e))?;
        }
        Ok(())
    }

    /// The folders that were put aside and are not reported yet, with the term of the life that did it.
    fn aside(&self) -> Result<Vec<(PathBuf, Term)>, Error> {
        let data = &self.inner.core.settings.data;
        let io = |e| Error::io("list the data folder", e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(data).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy());
            let term =
                name.and_then(|name| u32::from_str_radix(name.strip_prefix(ASIDE)?, 16).ok());
            if let Some(term) = term.filter(|_| !path.join(REPORTED).exists()) {
                found.push((path, Term::new(term)));
            }
        }
        found.sort();
        Ok(found)
    }

    async fn replay_aside(&self, folder: &Path) -> Result<Replay, Error> {
        let core = Arc::clone(&self.inner.core);
        let journal = folder.join("journal");
        blocking(self.inner.core.executor(), move || {
            replay(&core.parts.disk, &journal, core.journal.cluster())
        })
        .await
    }

    /// The first missing number of each term that has a chunk there.
    async fn fences(&self, found: &Replay) -> Result<HashMap<Term, u64>, Error> {
        let mut fences = HashMap::new();
        for term in found.chunks.iter().map(|chunk| chunk.id.0) {
            if fences.contains_key(&term) {
                continue;
            }
            let end = self.inner.terms.end(term).await;
            match end.map_err(|e| term_error("look at an earlier term", e))? {
                End::Closed(fence) => fences.insert(term, fence.seq.get()),
                End::Open(_) => {
                    let what = format!("term {term} of a folder that was put aside is open");
                    return Err(Error::internal(what));
                }
            };
        }
        Ok(fences)
    }

    /// Makes the fork of one database, or goes on with it; answers its name.
    async fn fork_remainder(
        &self,
        folder: &Path,
        term: Term,
        remainder: Remainder,
    ) -> Result<String, Error> {
        let system = &self.inner.system;
        if remainder.id == system.id {
            let what = "changes of namespaces, tokens and operations are not brought back";
            return Err(Error::new(Code::Refused, what));
        }
        let row = system.database_by_id(remainder.id).await?;
        let Some(row) = row.filter(|row| row.deleted_at.is_none() && !row.purging) else {
            let what = "the store knows no such database any more";
            return Err(Error::new(Code::DatabaseNotFound, what));
        };
        let name = format!("{}-diverged-{}", row.name, term.get());
        let namespace = row.namespace;
        let parent = Database {
            engine: self.clone(),
            row,
        };
        let at = common(&parent, &remainder).await?;
        let child = match self.database(namespace, &name).await {
            Ok(child) => child,
            Err(error) if error.code() == Code::DatabaseNotFound => {
                let fork = Fork {
                    at: At::Bookmark(at),
                    ..Fork::named(&name)
                };
                let operation = parent.fork(fork).await?.ended().await;
                if operation.state != OperationState::Succeeded {
                    let what = format!("operation {} did not make it", operation.id);
                    return Err(Error::new(Code::StorageUnavailable, what));
                }
                self.database(namespace, &name).await?
            }
            Err(error) => return Err(error),
        };
        apply(&child, folder, remainder).await?;
        Ok(name)
    }
}

/// The Position before what was never stored, if the store's history has it.
async fn common(parent: &Database, remainder: &Remainder) -> Result<Position, Error> {
    let (txid, chain) = remainder.before;
    let page = Page {
        limit: 1,
        cursor: None,
    };
    let found = parent.commits(Some(txid), Some(txid), page).await?;
    let found = found.items.first().map(|commit| commit.position);
    found.filter(|at| at.chain == chain).ok_or_else(|| {
        let what = format!("the store's history does not hold the commit {txid} that they follow");
        Error::new(Code::BookmarkForeign, what)
    })
}

/// Applies what was never stored to the fork, as one commit, and waits until that is stored.
async fn apply(child: &Database, folder: &Path, remainder: Remainder) -> Result<(), Error> {
    let lease = child.lease().await?;
    let wanted = Wanted {
        n: remainder.pages,
        digest: remainder.digest,
    };
    let head = lease.head();
    if (head.pages, head.digest) != (wanted.n, wanted.digest) {
        let gate = lease.gate().await?;
        let (database, journal) = (Arc::clone(&lease), folder.join("journal"));
        let ticket = blocking(lease.core.executor(), move || {
            let core = &database.core;
            let size = database.meta().page_size;
            let mut xors = PageXors::new(size, core.settings.data.join("scratch"));
            let (id, after) = (remainder.id, remainder.before.0);
            let disk = &core.parts.disk;
            let last = pages_in(
                (disk, journal.as_path()),
                &remainder.chunks,
                (id, size),
                (after, remainder.last),
                &mut |page| xors.add(page).map_err(|e| Error::io("merge a delta", e)),
            )?;
            if last != remainder.last {
                return Err(Error::internal("a journal that was put aside changed"));
            }
            let head = database.capture_now()?;
            let hold = core.journal.hold(database.meta().id, head.txid);
            let source = Source::Xors(xors, None);
            let staged = Staged::make(&database, source, wanted, hold, &|_, _| Ok(()))?;
            let note = CommitNote::default();
            let raw = raw_connection(&database, &staged)?;
            let done = put_in_place((gate, raw), head, staged, note, &|_, _| {})?;
            Ok(done.ticket)
        })
        .await?;
        ticket.wait(Durability::Memory).await?;
    }
    lease
        .wait_durable(lease.last_lsn(), Durability::Remote)
        .await
}

/// Of each database, the commits that stand in no stored chunk.
fn remainders(found: &Replay, fences: &HashMap<Term, u64>) -> Result<Vec<Remainder>, Error> {
    let stored = |(term, seq): ChunkId| fences.get(&term).is_some_and(|fence| seq < *fence);
    let mut remainders = Vec::new();
    for (id, records) in &found.records {
        let commits = unify(*id, records, stored)?;
        let known = found
            .databases
            .get(id)
            .map(|database| database.chain_before);
        let mut before = commits
            .first_key_value()
            .and_then(|(txid, _)| txid.prev())
            .zip(known);
        let mut lost: Vec<&FoundRecord> = Vec::new();
        for (record, is_stored) in commits.values() {
            if *is_stored {
                lost.clear();
                before = Some((record.txid, record.chain));
            } else {
                lost.push(record);
            }
        }
        let (Some(before), Some(last)) = (before, lost.last()) else {
            continue;
        };
        let holds =
            |heads: &HashMap<DatabaseId, TxId>| heads.get(id).is_some_and(|head| *head > before.0);
        let chunks = found.chunks.iter().filter(|chunk| holds(&chunk.heads));
        remainders.push(Remainder {
            id: *id,
            before,
            commits: lost.len(),
            last: last.txid,
            pages: last.pages,
            digest: last.digest,
            chunks: chunks
                .map(|chunk| (chunk.path.clone(), chunk.len))
                .collect(),
        });
    }
    remainders.sort_by_key(|remainder| remainder.id);
    Ok(remainders)
}
