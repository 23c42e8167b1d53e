//! A term's state, changed by compare-and-swap.
//!
//! Every change is a statement that stays true once it is (a term is inherited, numbers below this one are
//! trimmed), so a change whose outcome is unclear is judged by reading the state again: if it says so, it is
//! done, whoever wrote it.

use tidelog_wal::Term;

use super::{ROUNDS_MAX, TermError, Terms, encoded};
use crate::ErrorKind;
use crate::journal::{Inherited, TermState};
use crate::key::{Key, Seq};
use crate::store::{StoreError, Version};

/// Unclear outcomes in a row before the change is given up.
const UNCLEAR_MAX: u32 = 3;

impl Terms {
    /// The state of `term`; a term without one has trimmed and inherited nothing.
    pub async fn state(&self, term: Term) -> Result<TermState, TermError> {
        Ok(self.load_state(term).await?.0)
    }

    async fn load_state(&self, term: Term) -> Result<(TermState, Option<Version>), TermError> {
        let key = Key::TermState(term).to_string();
        match self.store.get_versioned(&key).await {
            Ok((bytes, version)) => {
                let (state, _) =
                    TermState::decode(&bytes, term).map_err(|error| error.in_object(key))?;
                Ok((state, Some(version)))
            }
            Err(StoreError::NotFound { .. }) => Ok((TermState::new(term), None)),
            Err(error) => Err(TermError::store("read a term's state", error)),
        }
    }

    /// Makes `change` true of the state of `term`. `change` answers whether it had to change anything.
    async fn change_state(
        &self,
        term: Term,
        change: impl Fn(&mut TermState) -> bool,
    ) -> Result<TermState, TermError> {
        let key = Key::TermState(term).to_string();
        let mut unclear = 0;
        for _ in 0..ROUNDS_MAX {
            let (mut state, version) = self.load_state(term).await?;
            if !change(&mut state) {
                return Ok(state);
            }
            let bytes = encoded(state.encode(self.write_id()))?;
            let written = match &version {
                None => self.store.create(&key, bytes).await,
                Some(version) => self.store.replace(&key, bytes, version).await,
            };
            match written {
                Ok(_) => return Ok(state),
                Err(error) => match error.kind() {
                    ErrorKind::Conflict => {}
                    // Reading again decides.
                    ErrorKind::OutcomeUnknown if unclear < UNCLEAR_MAX => unclear += 1,
                    _ => return Err(TermError::store("change a term's state", error)),
                },
            }
        }
        Err(TermError::Contended {
            action: "change a term's state",
            rounds: ROUNDS_MAX,
        })
    }

    /// Writes down that `own` inherits `target`, and where its fence stands once that is known.
    pub(super) async fn inherit(
        &self,
        own: Term,
        target: Term,
        fence: Option<Seq>,
    ) -> Result<(), TermError> {
        let change = |state: &mut TermState| match state
            .inherited
            .binary_search_by_key(&target, |known| known.term)
        {
            Err(at) => {
                let term = target;
                state.inherited.insert(at, Inherited { term, fence });
                true
            }
            Ok(at) => match state.inherited.get_mut(at) {
                Some(known) if fence.is_some() && known.fence != fence => {
                    known.fence = fence;
                    true
                }
                _ => false,
            },
        };
        self.change_state(own, change).await.map(drop)
    }

    /// Strikes `target` from what `own` has inherited: its tail is settled, or another term inherits it.
    pub async fn disinherit(&self, own: Term, target: Term) -> Result<(), TermError> {
        let change = |state: &mut TermState| {
            let before = state.inherited.len();
            state.inherited.retain(|known| known.term != target);
            state.inherited.len() != before
        };
        self.change_state(own, change).await.map(drop)
    }

    /// Says that the journal objects of `term` below `below` are settled and may be gone. Never lowers what
    /// was said before. Only numbers that are proven to hold journal objects of the term may be covered, so
    /// `below` is at most the number of the fence.
    pub async fn trim(&self, term: Term, below: Seq) -> Result<(), TermError> {
        let change = |state: &mut TermState| {
            let raised = state.trimmed_below < below;
            state.trimmed_below = state.trimmed_below.max(below);
            raised
        };
        self.change_state(term, change).await.map(drop)
    }

    /// Deletes the journal objects of `term` from `from` up to what its state says is trimmed. A valid fence
    /// stands at or above that; void ones are kept too, since nothing that was ever a fence is deleted.
    pub async fn delete_trimmed(&self, term: Term, from: Seq) -> Result<u64, TermError> {
        let below = self.state(term).await?.trimmed_below;
        let mut deleted = 0;
        let mut seq = from.max(Seq::FIRST);
        while seq < below {
            if self.slot(term, seq).await? == Some(crate::envelope::ObjectKind::Journal) {
                let key = Key::Journal(term, seq).to_string();
                self.store
                    .delete(&key)
                    .await
                    .map_err(|error| TermError::store("delete a journal object", error))?;
                deleted += 1;
            }
            seq = seq.next();
        }
        Ok(deleted)
    }
}
