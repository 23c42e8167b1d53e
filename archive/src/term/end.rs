//! Where a term ends, and whether it is closed.
//!
//! A listing tells where to look; what it says is then proven. An object that a listing shows at or above
//! `trimmed_below` exists, since objects there are not deleted. That the next one does *not* exist is never
//! taken from a listing but from a read, and in the end from the fence that could be created there.

use futures::future::try_join_all;
use tidelog_wal::Term;

use super::{IN_FLIGHT_MAX, ROUNDS_MAX, TermError, Terms};
use crate::envelope::ObjectKind;
use crate::journal::Fence;
use crate::key::{Key, Seq};

/// The end of a term's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is closed; its objects stand below [`Fence::seq`].
    Closed(Fence),
    /// It is open; this was the first missing number when it was looked at.
    Open(Seq),
}

impl Terms {
    /// Where `term` ends in this store.
    ///
    /// [`TermError::Missing`] if an object below its fence is gone.
    pub async fn end(&self, term: Term) -> Result<End, TermError> {
        for _ in 0..ROUNDS_MAX {
            let trimmed = self.state(term).await?.trimmed_below;
            match self.end_from(term, trimmed).await? {
                // The state after the fence decides whether it is void.
                End::Closed(fence) => {
                    if self.state(term).await?.trimmed_below <= fence.seq {
                        return Ok(End::Closed(fence));
                    }
                }
                End::Open(seq) => {
                    // Trimmed meanwhile: then the number may be missing because it was deleted.
                    if self.state(term).await?.trimmed_below <= seq {
                        return Ok(End::Open(seq));
                    }
                }
            }
        }
        Err(TermError::Contended {
            action: "find the end of a term",
            rounds: ROUNDS_MAX,
        })
    }

    async fn end_from(&self, term: Term, trimmed: Seq) -> Result<End, TermError> {
        let listed = self.listed(term, trimmed).await?;
        let run = listed
            .iter()
            .zip(trimmed.get()..)
            .take_while(|(seq, expected)| seq.get() == *expected)
            .count();
        let (run, above) = listed.split_at(run);

        // A fence can be followed by what was in flight when it landed, and by nothing else.
        let tail = run
            .get(run.len().saturating_sub(IN_FLIGHT_MAX)..)
            .unwrap_or_default();
        if let Some(fence) = self.first_fence(term, tail).await? {
            return Ok(End::Closed(fence));
        }
        let mut seq = run.last().map_or(trimmed, |last| last.next());
        loop {
            match self.slot(term, seq).await? {
                Some(ObjectKind::Fence) => {
                    return Ok(End::Closed(self.fence_at(term, seq).await?));
                }
                Some(_) => seq = seq.next(),
                None => break,
            }
        }
        // A fence above a missing number: fences are created at the first one, so this one was lost since.
        let above: Vec<Seq> = above.iter().copied().filter(|other| *other > seq).collect();
        let near = above
            .get(above.len().saturating_sub(IN_FLIGHT_MAX)..)
            .unwrap_or_default();
        let lost = self.first_fence(term, near).await?.is_some();
        // Unless it was trimmed in between, which the caller's second look at the state tells.
        if lost && self.state(term).await?.trimmed_below <= seq {
            let key = Key::Journal(term, seq).to_string();
            return Err(TermError::Missing { key });
        }
        Ok(End::Open(seq))
    }

    /// The lowest fence among `seqs`.
    async fn first_fence(&self, term: Term, seqs: &[Seq]) -> Result<Option<Fence>, TermError> {
        let kinds = try_join_all(seqs.iter().map(|seq| self.slot(term, *seq))).await?;
        let found = kinds
            .iter()
            .zip(seqs)
            .find(|(kind, _)| **kind == Some(ObjectKind::Fence));
        match found {
            Some((_, seq)) => Ok(Some(self.fence_at(term, *seq).await?)),
            None => Ok(None),
        }
    }

    /// The numbers at or above `from` that a listing shows, sorted.
    async fn listed(&self, term: Term, from: Seq) -> Result<Vec<Seq>, TermError> {
        let entries = self
            .store
            .list(&Key::journal_prefix(term))
            .await
            .map_err(|error| TermError::store("list a journal", error))?;
        Ok(entries
            .iter()
            .filter_map(|entry| match Key::parse(&entry.key) {
                Some(Key::Journal(found, seq)) if found == term && seq >= from => Some(seq),
                _ => None,
            })
            .collect())
    }
}
