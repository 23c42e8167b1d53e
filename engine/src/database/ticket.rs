//! Tickets: what a commit returns at once, and what it becomes when it is captured.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tidelog_wal::{Position, TxId};

use super::OpenDb;
use crate::boxed;
use crate::capture::{Captured, CommitNote, Notes};
use crate::error::Error;
use crate::settings::Durability;

/// A captured commit: its name, and its number in the local journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) position: Position,
    pub(crate) lsn: u64,
}

/// A commit that SQLite has made and that may not be captured yet.
#[derive(Debug, Clone)]
pub struct Ticket {
    database: Arc<OpenDb>,
    txid: TxId,
    cell: Arc<OnceLock<Resolved>>,
}

impl Ticket {
    /// The commit's number.
    pub const fn txid(&self) -> TxId {
        self.txid
    }

    /// Waits until the commit is written to the journal, then for `durability`, and answers its Position.
    #[boxed]
    pub async fn wait(&self, durability: Durability) -> Result<Position, Error> {
        let resolved = self.resolve().await?;
        self.database.wait_durable(resolved.lsn, durability).await?;
        Ok(resolved.position)
    }

    pub(crate) async fn resolve(&self) -> Result<Resolved, Error> {
        if self.cell.get().is_none() {
            self.database.wait_captured(self.txid).await?;
        }
        self.cell
            .get()
            .copied()
            .ok_or_else(|| self.database.lost_ticket(self.txid))
    }
}

/// Commits that wait to be captured: their tickets and notes.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    tickets: VecDeque<(TxId, Arc<OnceLock<Resolved>>)>,
    notes: Notes,
}

impl Pending {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues the ticket of the commit to come. Called behind the write gate, before COMMIT, since capture may
    /// run at once. If nothing is committed the ticket is dropped; the number belongs to the next commit.
    pub(crate) fn issue(&self, database: &Arc<OpenDb>, txid: TxId) -> Ticket {
        let cell = Arc::new(OnceLock::new());
        self.lock().tickets.push_back((txid, Arc::clone(&cell)));
        Ticket {
            database: Arc::clone(database),
            txid,
            cell,
        }
    }

    /// Says what the commit to come carries. Called behind the write gate, before COMMIT.
    pub(crate) fn note(&self, txid: TxId, note: CommitNote) {
        let mut queue = self.lock();
        // A transaction that was noted and rolled back left a stale entry for this number.
        queue.notes.retain(|(at, _)| *at != txid);
        if note != CommitNote::default() {
            queue.notes.push_back((txid, note));
        }
    }

    /// Takes the notes of commits that were made, up to `made`. Those of commits to come stay, for whoever is about to make
    /// one may have to take its note back.
    pub(crate) fn take_notes(&self, made: TxId) -> Notes {
        let mut queue = self.lock();
        let of_made = queue.notes.partition_point(|(at, _)| *at <= made);
        let to_come = queue.notes.split_off(of_made);
        std::mem::replace(&mut queue.notes, to_come)
    }

    /// Resolves the tickets of these commits, whose last has local number `last_lsn`.
    pub(crate) fn resolve(&self, commits: &[Captured], last_lsn: u64) {
        let mut queue = self.lock();
        let first_lsn = last_lsn + 1 - commits.len() as u64;
        for (lsn, commit) in (first_lsn..).zip(commits) {
            let txid = commit.head.txid;
            let resolved = Resolved {
                position: commit.head.position(),
                lsn,
            };
            while let Some((at, cell)) = queue.tickets.pop_front() {
                if at > txid {
                    queue.tickets.push_front((at, cell));
                    break;
                }
                if at == txid {
                    // A dropped ticket of the same number may stand beside the one that was handed out.
                    cell.get_or_init(|| resolved);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidelog_wal::record::Annotation;

    use super::*;

    /// Goal: a commit carries its own note. Method: a pass takes notes while the next commit is noted, rolled back, and
    /// noted by somebody else.
    #[test]
    fn a_note_of_a_commit_to_come_is_nobody_elses() {
        let noted = |value: u8| {
            CommitNote::from(vec![Annotation {
                tag: 1,
                value: vec![value],
            }])
        };
        let (pending, made, next) = (Pending::default(), TxId::new(5), TxId::new(6));
        pending.note(made, noted(1));
        pending.note(next, noted(2));
        assert_eq!(pending.take_notes(made), [(made, noted(1))]);
        pending.note(next, noted(3));
        assert_eq!(pending.take_notes(next), [(next, noted(3))]);
        assert!(pending.take_notes(next).is_empty());
    }
}
