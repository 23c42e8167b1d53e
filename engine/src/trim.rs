//! Trimming: journal objects whose sections are all settled are deleted, in order, once the term's state says
//! that they may be gone.
//!
//! `trimmed_below` moves first, the deletions follow; a life that dies in between leaves objects that the next
//! one deletes when it trims further. Inherited terms are trimmed up to their fence and then struck from what
//! this life must settle.

use std::collections::{BTreeMap, HashMap};

use tidelog_archive::key::Seq;
use tidelog_archive::term::{End, Terms};
use tidelog_wal::{DatabaseId, Term, TxId};

use crate::crash_point;
use crate::ship::ShippedSection;

/// Objects of the running term that are trimmed at once: each trim costs a conditional write.
const TRIM_BATCH: u64 = 64;

/// What one stored object still waits for.
type Waiting = HashMap<DatabaseId, TxId>;

/// Follows which stored journal objects are settled.
#[derive(Debug)]
pub(crate) struct Trimmer {
    terms: Terms,
    own: Term,
    objects: BTreeMap<(Term, u64), Waiting>,
    settled: HashMap<DatabaseId, TxId>,
    trimmed: HashMap<Term, u64>,
}

impl Trimmer {
    pub(crate) fn new(terms: Terms, own: Term) -> Self {
        Self {
            terms,
            own,
            objects: BTreeMap::new(),
            settled: HashMap::new(),
            trimmed: HashMap::new(),
        }
    }

    /// Notes stored sections that are to be settled.
    pub(crate) fn note(&mut self, sections: &[ShippedSection]) {
        for section in sections {
            let waiting = self.objects.entry(section.object).or_default();
            waiting.insert(section.meta.database, section.meta.last);
        }
    }

    /// Notes that a database is settled up to `txid`.
    pub(crate) fn settled(&mut self, id: DatabaseId, txid: TxId) {
        self.settled.insert(id, txid);
    }

    /// Trims what is settled. A failure is tried again after the next settle.
    pub(crate) async fn trim(&mut self) {
        let terms: Vec<Term> = {
            let mut terms: Vec<Term> = self.objects.keys().map(|(term, _)| *term).collect();
            terms.dedup();
            terms
        };
        for term in terms {
            if let Err(error) = self.trim_term(term).await {
                tracing::warn!(%term, %error, "journal not trimmed; it is tried again");
            }
        }
    }

    fn is_done(&self, waiting: &Waiting) -> bool {
        waiting
            .iter()
            .all(|(id, txid)| self.settled.get(id).is_some_and(|done| done >= txid))
    }

    async fn trim_term(&mut self, term: Term) -> Result<(), tidelog_archive::term::TermError> {
        let of_term = self.objects.range((term, 0)..=(term, u64::MAX));
        let done = of_term
            .take_while(|(_, waiting)| self.is_done(waiting))
            .map(|((_, seq), _)| *seq);
        let Some(last) = done.last() else {
            return Ok(());
        };
        let whole = self
            .objects
            .range((term, last + 1)..=(term, u64::MAX))
            .next()
            .is_none();
        let from = match self.trimmed.get(&term) {
            Some(from) => *from,
            None => self.terms.state(term).await?.trimmed_below.get(),
        };
        self.trimmed.insert(term, from);
        let inherited = term != self.own && whole;
        if !inherited && last + 1 - from < TRIM_BATCH {
            return Ok(());
        }
        let below = match self.terms.end(term).await? {
            End::Closed(fence) if inherited => fence.seq.get(),
            _ => last + 1,
        };
        crash_point!("trim.before_state");
        self.terms.trim(term, Seq::new(below)).await?;
        crash_point!("trim.before_delete");
        self.terms.delete_trimmed(term, Seq::new(from)).await?;
        crash_point!("trim.after_delete");
        self.trimmed.insert(term, below);
        self.objects
            .retain(|(of, seq), _| *of != term || *seq >= below);
        if inherited {
            self.terms.disinherit(self.own, term).await?;
            crash_point!("trim.after_disinherit");
        }
        Ok(())
    }
}
