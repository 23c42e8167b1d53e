//! A term's journal objects in order, to its end.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tidelog_wal::Term;

use super::{End, ROUNDS_MAX, TermError, Terms, decode_fence};
use crate::envelope::ObjectKind;
use crate::journal::slot_kind;
use crate::key::{Key, Seq};
use crate::store::StoreError;

/// Objects that are fetched ahead of the one that is taken.
const AHEAD: usize = 4;

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// The journal object with this number, whole and unproven.
    Object(Seq, Bytes),
    /// Numbers below this one have been trimmed since: what they held is settled, see the manifests. The
    /// walk goes on from here.
    Trimmed(Seq),
    /// The end. The same answer from now on.
    End(End),
}

type Fetch = Pin<Box<dyn Future<Output = Result<Bytes, StoreError>> + Send>>;

/// A walk through the journal of one term.
pub struct JournalWalk {
    terms: Terms,
    term: Term,
    next: Seq,
    /// The fetches of `next` and the numbers after it.
    fetching: FuturesOrdered<Fetch>,
    end: Option<End>,
}

impl std::fmt::Debug for JournalWalk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalWalk")
            .field("term", &self.term)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Terms {
    /// The journal objects of `term` in this store, from the first that is not trimmed, or from `from` if that
    /// is later.
    pub async fn walk(&self, term: Term, from: Seq) -> Result<JournalWalk, TermError> {
        let next = self.state(term).await?.trimmed_below.max(from);
        Ok(JournalWalk {
            terms: self.clone(),
            term,
            next,
            fetching: FuturesOrdered::new(),
            end: None,
        })
    }
}

impl JournalWalk {
    /// The number of the next step: at the beginning, where the walk begins.
    pub fn at(&self) -> Seq {
        self.next
    }

    /// The next step. After an error the same step can be asked for again.
    ///
    /// [`TermError::Missing`] if an object is gone that was neither trimmed nor the last.
    pub async fn step(&mut self) -> Result<Step, TermError> {
        for _ in 0..ROUNDS_MAX {
            if let Some(end) = self.end {
                return Ok(Step::End(end));
            }
            let seq = self.next;
            match self.try_step(seq).await {
                Ok(Some(step @ Step::Object(..))) => return Ok(step),
                // Whatever was fetched beyond this number is fetched again.
                other => {
                    self.fetching = FuturesOrdered::new();
                    if let Some(step) = other? {
                        return Ok(step);
                    }
                }
            }
        }
        Err(TermError::Contended {
            action: "walk a journal",
            rounds: ROUNDS_MAX,
        })
    }

    /// The step at number `seq`, the next one, or `None` to look again.
    async fn try_step(&mut self, seq: Seq) -> Result<Option<Step>, TermError> {
        let key = Key::Journal(self.term, seq).to_string();
        let fence = match self.fetch().await {
            Ok(bytes) => {
                let kind = slot_kind(&bytes).map_err(|error| error.in_object(key))?;
                if kind != ObjectKind::Fence {
                    self.next = seq.next();
                    return Ok(Some(Step::Object(seq, bytes)));
                }
                Some(decode_fence(&bytes, self.term, seq)?)
            }
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(TermError::store("read a journal object", error)),
        };
        let trimmed = self.terms.state(self.term).await?.trimmed_below;
        if trimmed > seq {
            self.next = trimmed;
            return Ok(Some(Step::Trimmed(trimmed)));
        }
        let end = match fence {
            Some(fence) => End::Closed(fence),
            // Not there: the end, or an object that has been lost, which this tells apart.
            None => match self.terms.end(self.term).await? {
                end @ End::Open(at) if at == seq => end,
                // Written since.
                _ => return Ok(None),
            },
        };
        self.end = Some(end);
        Ok(Some(Step::End(end)))
    }

    /// The object at the next number, with those after it on their way.
    async fn fetch(&mut self) -> Result<Bytes, StoreError> {
        for ahead in self.fetching.len()..AHEAD {
            let seq = Seq::new(self.next.get().saturating_add(ahead as u64));
            let (store, key) = (
                self.terms.store.clone(),
                Key::Journal(self.term, seq).to_string(),
            );
            self.fetching
                .push_back(Box::pin(async move { store.get(&key).await }));
        }
        match self.fetching.next().await {
            Some(fetched) => fetched,
            None => unreachable!("it has just been filled"),
        }
    }
}
