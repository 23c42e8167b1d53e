//! Claiming the next free term.
//!
//! A claim is created if absent at the highest claimed number plus one. A claim whose outcome is unknown is
//! given up: whoever tries next finds it, and takes the number after it, or finds nothing and takes that very
//! number, where a late request of the first try is then refused. Either way no number is left out. (The
//! given-up claim is an earlier term of this node without a journal: it is closed like any other.)

use tidelog_wal::Term;

use super::{ROUNDS_MAX, TermError, Terms, encoded};
use crate::journal::Claim;
use crate::key::Key;
use crate::store::StoreError;

impl Terms {
    /// Claims the next free term. `hint` is the highest term known, from the root, or [`Term::NONE`];
    /// `previous` the last term of this node's folder.
    pub async fn claim(&self, previous: Option<Term>, hint: Term) -> Result<Claim, TermError> {
        let mut highest = self.highest(hint).await?;
        for _ in 0..ROUNDS_MAX {
            let claim = Claim {
                term: highest.next().ok_or(TermError::NoTermLeft)?,
                previous,
                node: self.node,
                cluster: self.cluster,
                wall: self.clock.wall(),
            };
            let bytes = encoded(claim.encode(self.write_id()))?;
            match self
                .store
                .create(&Key::Claim(claim.term).to_string(), bytes)
                .await
            {
                Ok(_) => return Ok(claim),
                Err(StoreError::Conflict { .. }) => highest = claim.term,
                Err(error) => return Err(TermError::store("claim a term", error)),
            }
        }
        Err(TermError::Contended {
            action: "claim a term",
            rounds: ROUNDS_MAX,
        })
    }

    /// The highest claimed term, [`Term::NONE`] if there is none. Terms have no gaps, so it is found by
    /// doubling steps from `hint` and halving them again; two requests when the hint is right.
    ///
    /// [`TermError::Missing`] if the hinted term has no claim: claims are never deleted, so numbers could be
    /// given out twice here.
    pub async fn highest(&self, hint: Term) -> Result<Term, TermError> {
        if hint != Term::NONE && !self.is_claimed(hint).await? {
            return Err(TermError::Missing {
                key: Key::Claim(hint).to_string(),
            });
        }
        let mut known = hint.get();
        let mut step = 1_u32;
        let mut free = loop {
            let Some(next) = known.checked_add(step) else {
                break u32::MAX;
            };
            if !self.is_claimed(Term::new(next)).await? {
                break next;
            }
            known = next;
            step = step.saturating_mul(2);
        };
        while free - known > 1 {
            let middle = known + (free - known) / 2;
            if self.is_claimed(Term::new(middle)).await? {
                known = middle;
            } else {
                free = middle;
            }
        }
        Ok(Term::new(known))
    }

    /// The claims of all terms above `after` up to `upto`, in order.
    pub async fn claims(&self, after: Term, upto: Term) -> Result<Vec<Claim>, TermError> {
        let mut claims = Vec::new();
        let mut term = after;
        while let Some(next) = term.next().filter(|next| *next <= upto) {
            let claim = self.read_claim(next).await?;
            claims.push(claim.ok_or_else(|| TermError::Missing {
                key: Key::Claim(next).to_string(),
            })?);
            term = next;
        }
        Ok(claims)
    }

    async fn is_claimed(&self, term: Term) -> Result<bool, TermError> {
        match self.store.head(&Key::Claim(term).to_string()).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(TermError::store("look for the claim of a term", error)),
        }
    }
}
