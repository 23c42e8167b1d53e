//! Closing a term: inherit, look whether we are still open ourselves, fence, look whether the fence is void.
//!
//! The order is the proof of T4. Say life B closes life A while A closes C. A writes "I inherit C" (1), sees that
//! A is open (2), fences C (3). B writes "I inherit A", fences A (4), reads what A inherits (5). If (4) came
//! before (2), A stops and C stays open. If (4) came after (2), then (1) came before (5), and B learns of C.

use std::collections::BTreeSet;

use tidelog_wal::Term;

use super::{End, ROUNDS_MAX, TermError, Terms, encoded};
use crate::journal::{Fence, Inherited};
use crate::key::{Key, Seq};
use crate::store::StoreError;

/// A closed term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// Its fence. Whoever it names closed the term; if that is not the caller's term, it was closed before.
    pub fence: Fence,
    /// Terms that it had inherited and not settled: the caller's term inherits them now. Their fences may be
    /// missing: close them too.
    pub inherited: Vec<Inherited>,
}

impl Terms {
    /// Closes `target` for `own`, the caller's open term, which inherits `target` and what that had inherited.
    /// Closing a closed term changes nothing but that. This is for the default store, where claims and
    /// states stand; [`fence`](Self::fence) does the same in another store.
    ///
    /// After an error with kind `OutcomeUnknown` or `Unavailable` call it again.
    pub async fn close(&self, own: Term, target: Term) -> Result<Closure, TermError> {
        if self.read_claim(target).await?.is_none() {
            return Err(TermError::Unclaimed { term: target });
        }
        self.inherit(own, target, None).await?;
        if let End::Closed(by) = self.end(own).await? {
            return Err(TermError::Fenced { term: own, by });
        }
        let fence = self.fence(own, target).await?;
        self.inherit(own, target, Some(fence.seq)).await?;
        let inherited = self.state(target).await?.inherited;
        for inherited in inherited.iter().filter(|inherited| inherited.term != own) {
            self.inherit(own, inherited.term, inherited.fence).await?;
        }
        Ok(Closure { fence, inherited })
    }

    /// Closes `targets`, and what they had inherited, and so on: all that a life must close at start, or takes
    /// over. In the order in which they were closed.
    pub async fn close_all(&self, own: Term, targets: &[Term]) -> Result<Vec<Closure>, TermError> {
        let mut waiting: BTreeSet<Term> = targets.iter().copied().collect();
        let mut seen = BTreeSet::from([own]);
        let mut closed = Vec::new();
        while let Some(target) = waiting.pop_first() {
            if !seen.insert(target) {
                continue;
            }
            let closure = self.close(own, target).await?;
            waiting.extend(closure.inherited.iter().map(|inherited| inherited.term));
            closed.push(closure);
        }
        Ok(closed)
    }

    /// Creates a fence at the first missing number of `target` in this store, or finds the one that is there.
    /// The caller has inherited `target` before.
    pub async fn fence(&self, own: Term, target: Term) -> Result<Fence, TermError> {
        for _ in 0..ROUNDS_MAX {
            let seq = match self.end(target).await? {
                End::Closed(fence) => return Ok(fence),
                End::Open(seq) => seq,
            };
            if let Some(fence) = self.try_fence(own, target, seq).await? {
                // Void if the number had been an object's that was trimmed before the fence landed.
                if self.state(target).await?.trimmed_below <= fence.seq {
                    return Ok(fence);
                }
            }
        }
        Err(TermError::Contended {
            action: "fence a term",
            rounds: ROUNDS_MAX,
        })
    }

    /// A fence at `seq`, or `None` if another object got there first.
    async fn try_fence(
        &self,
        own: Term,
        target: Term,
        seq: Seq,
    ) -> Result<Option<Fence>, TermError> {
        let fence = Fence {
            term: target,
            seq,
            by_term: own,
            by_node: self.node,
            wall: self.clock.wall(),
        };
        let bytes = encoded(fence.encode(self.write_id()))?;
        match self
            .store
            .create(&Key::Journal(target, seq).to_string(), bytes)
            .await
        {
            Ok(_) => Ok(Some(fence)),
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(TermError::store("fence a term", error)),
        }
    }
}
