//! Trimming: journal objects whose sections are all settled are deleted, in order, once the term's state says
//! that they may be gone.
//!
//! `trimmed_below` moves first, the deletions follow; a life that dies in between leaves objects that the next
//! one deletes when it trims further. Inherited terms are trimmed up to their fence and then struck from what
//! this life must settle.
//!
//! Each trim costs a conditional write, so that objects of the running term wait for others; but for no longer than a
//! day: what a tenant deleted, or a whole tenant, must not stay in the journal of a node that writes little.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidelog_archive::env::Clock;
use tidelog_archive::key::Seq;
use tidelog_archive::term::{End, Terms};
use tidelog_wal::{DatabaseId, Term, TxId};

use crate::crash_point;
use crate::ship::ShippedSection;

/// Objects of the running term that are trimmed at once.
const TRIM_BATCH: u64 = 64;
/// Fewer are trimmed when the first of them has waited so long, by our clock.
const TRIM_AGE_MICROS: u64 = 24 * 3600 * 1_000_000;

/// What one stored object still waits for.
#[derive(Debug)]
struct Waiting {
    /// When it was noted, by the monotonic clock.
    since: u64,
    /// Up to where each database has to be settled.
    sections: HashMap<DatabaseId, TxId>,
}

/// Follows which stored journal objects are settled.
#[derive(Debug)]
pub(crate) struct Trimmer {
    terms: Terms,
    own: Term,
    clock: Arc<dyn Clock>,
    objects: BTreeMap<(Term, u64), Waiting>,
    settled: HashMap<DatabaseId, TxId>,
    trimmed: HashMap<Term, u64>,
}

impl Trimmer {
    pub(crate) fn new(terms: Terms, own: Term, clock: Arc<dyn Clock>) -> Self {
        Self {
            terms,
            own,
            clock,
            objects: BTreeMap::new(),
            settled: HashMap::new(),
            trimmed: HashMap::new(),
        }
    }

    /// Notes stored sections that are to be settled.
    pub(crate) fn note(&mut self, sections: &[ShippedSection]) {
        let since = self.clock.monotonic_micros();
        for section in sections {
            let waiting = self.objects.entry(section.object);
            let waiting = waiting.or_insert_with(|| Waiting {
                since,
                sections: HashMap::new(),
            });
            let (id, last) = (section.meta.database, section.meta.last);
            waiting.sections.insert(id, last);
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
            .sections
            .iter()
            .all(|(id, txid)| self.settled.get(id).is_some_and(|done| done >= txid))
    }

    async fn trim_term(&mut self, term: Term) -> Result<(), tidelog_archive::term::TermError> {
        let of_term = self.objects.range((term, 0)..=(term, u64::MAX));
        let done = of_term
            .take_while(|(_, waiting)| self.is_done(waiting))
            .map(|((_, seq), waiting)| (*seq, waiting.since));
        let mut oldest = u64::MAX;
        let Some(last) = done
            .inspect(|(_, since)| oldest = oldest.min(*since))
            .last()
            .map(|(seq, _)| seq)
        else {
            return Ok(());
        };
        let now = self.clock.monotonic_micros();
        let aged = now.saturating_sub(oldest) >= TRIM_AGE_MICROS;
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
        if !inherited && !aged && last + 1 - from < TRIM_BATCH {
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
