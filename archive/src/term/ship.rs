//! Shipping one journal object.

use bytes::Bytes;
use tidelog_wal::Term;

use super::{TermError, Terms, decode_fence};
use crate::envelope::ObjectKind;
use crate::journal::{JournalObject, slot_kind};
use crate::key::{Key, Seq};
use crate::store::StoreError;

/// What became of a journal object.
#[derive(Debug)]
pub enum Shipped {
    /// It is stored.
    Stored,
    /// A journal object with this number was stored before, by another PUT: the caller compares identities
    /// (term, number, first and last local record), since it may have been its own before a restart.
    Before(Box<JournalObject>),
}

impl Terms {
    /// Stores `object`, the encoded journal object `seq` of the caller's term. What is shipped may be
    /// acknowledged only when all numbers before it are shipped too.
    ///
    /// [`TermError::Fenced`] (T3): the term is closed at or below this number, poison everything.
    /// Kind `OutcomeUnknown` or `Unavailable`: call again *with the same bytes*; until then it is neither
    /// shipped nor not shipped.
    pub async fn ship(&self, term: Term, seq: Seq, object: Bytes) -> Result<Shipped, TermError> {
        let key = Key::Journal(term, seq).to_string();
        match self.store.create(&key, object).await {
            Ok(_) => return Ok(Shipped::Stored),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(TermError::store("ship a journal object", error)),
        }
        let found = self
            .store
            .get(&key)
            .await
            .map_err(|error| TermError::store("see what stands in the way", error))?;
        let kind = slot_kind(&found).map_err(|error| error.in_object(key.as_str()))?;
        if kind == ObjectKind::Fence {
            // At a number that we never shipped it is valid: trimmed-below covers shipped ones only.
            let by = decode_fence(&found, term, seq)?;
            return Err(TermError::Fenced { term, by });
        }
        let unlocked = self.store.unlock_head(&found).await;
        unlocked.map_err(TermError::Key)?;
        let object = JournalObject::decode(&found, term, seq, self.store.keys());
        Ok(Shipped::Before(Box::new(
            object.map_err(|error| error.in_object(key))?,
        )))
    }
}
