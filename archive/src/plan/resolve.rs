//! Which commit a request means.

use tidelog_wal::delta::PageDelta;
use tidelog_wal::{Digest, PageCount, Position, Term, Timestamp, TxId};

use super::error::PlanError;
use super::history::{History, ImageSource, Piece};
use super::read::scan_piece;
use crate::envelope::FormatError;
use crate::manifest::Gap;
use crate::records::{RecordHead, RecordVisitor};
use crate::store::Store;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Exactly this commit.
    Position(Position),
    /// The commit of this number.
    TxId(TxId),
    /// The last commit at or before this time.
    Time(Timestamp),
    /// The newest stored commit.
    Head,
}

/// What is known of the cluster's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The highest term ever claimed.
    pub highest_claimed: Term,
    /// The term that is running, if one is.
    pub present: Option<Term>,
}

/// A commit that exists, and the state after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Its Position.
    pub position: Position,
    /// Its ordered time.
    pub time: Timestamp,
    /// Pages after it.
    pub n: PageCount,
    /// Digest after it.
    pub digest: Digest,
}

/// Keeps the last record that satisfies a condition.
struct Latest<F> {
    wanted: F,
    seen: Option<Resolved>,
    found: Option<Resolved>,
}

impl<F: Fn(&Resolved) -> bool> RecordVisitor for Latest<F> {
    type Error = FormatError;

    fn begin(&mut self, head: &RecordHead) -> Result<(), FormatError> {
        let header = &head.header;
        self.seen = Some(Resolved {
            position: Position {
                term: header.term,
                txid: header.txid,
                chain: tidelog_wal::Chain::default(),
            },
            time: header.time,
            n: header.n_after,
            digest: header.digest,
        });
        Ok(())
    }

    fn page(&mut self, _page: &PageDelta<'_>) -> Result<(), FormatError> {
        Ok(())
    }

    fn end(&mut self, position: &Position) -> Result<(), FormatError> {
        let seen = self.seen.take().map(|seen| Resolved {
            position: *position,
            ..seen
        });
        if let Some(seen) = seen.filter(|seen| (self.wanted)(seen)) {
            self.found = Some(seen);
        }
        Ok(())
    }
}

impl Piece {
    /// The last of its commits, known without reading it.
    fn end(&self) -> Option<Resolved> {
        let run = &self.run;
        (self.last == run.last).then_some(Resolved {
            position: run.end(),
            time: run.last_time,
            n: run.n_after,
            digest: run.digest_after,
        })
    }
}

impl History {
    /// The commit that `target` means.
    pub async fn resolve(
        &mut self,
        store: &Store,
        target: Target,
        terms: Terms,
    ) -> Result<Resolved, PlanError> {
        match target {
            Target::Head => {
                let newest = self.images.last().map(|image| image.position.txid);
                match newest.max(self.pieces.last().map(|piece| piece.last)) {
                    Some(last) => self.existing(store, last).await,
                    None => Err(PlanError::NoPath { txid: TxId::ZERO }),
                }
            }
            Target::TxId(txid) => self.by_txid(store, txid, terms).await,
            Target::Time(time) => self.by_time(store, time).await,
            Target::Position(position) => self.by_position(store, position, terms).await,
        }
    }

    /// The commit `txid`, which is known to be stored.
    async fn existing(&mut self, store: &Store, txid: TxId) -> Result<Resolved, PlanError> {
        self.find(store, txid)
            .await?
            .ok_or(PlanError::NoPath { txid })
    }

    /// The state of the image of commit `txid`: where the records before it are gone, it alone tells.
    fn imaged(&self, wanted: impl Fn(&ImageSource) -> bool) -> Option<Resolved> {
        let image = self.images.iter().rev().find(|image| wanted(image))?;
        Some(Resolved {
            position: image.position,
            time: image.time,
            n: image.n,
            digest: image.digest,
        })
    }

    /// The commit `txid`, if it is stored and not expired.
    async fn find(&mut self, store: &Store, txid: TxId) -> Result<Option<Resolved>, PlanError> {
        // An image may stand before the first record of the index object that lists it.
        self.read_index(|_, entry| {
            entry.run.contains(txid) || entry.images > 0 && entry.run.first == txid.next()
        })
        .await?;
        if let Some(found) = self.imaged(|image| image.position.txid == txid) {
            return Ok(Some(found));
        }
        let holds = |piece: &&Piece| piece.first <= txid && txid <= piece.last;
        let Some(piece) = self.pieces.iter().find(holds) else {
            return Ok(None);
        };
        if let Some(end) = piece.end().filter(|end| end.position.txid == txid) {
            return Ok(Some(end));
        }
        let mut latest = Latest {
            wanted: |seen: &Resolved| seen.position.txid == txid,
            seen: None,
            found: None,
        };
        scan_piece(store, piece, (txid, txid), &mut latest).await?;
        Ok(latest.found)
    }

    /// Where a commit is that serves as a hint: an error must not hide the error it belongs to.
    async fn hint(&mut self, store: &Store, txid: Option<TxId>) -> Option<Position> {
        let found = self.find(store, txid?).await.ok()??;
        Some(found.position)
    }

    async fn gap_error(&mut self, store: &Store, gap: Gap) -> PlanError {
        PlanError::Gap {
            after: gap.after,
            resumes: gap.resumes,
            reason: gap.reason,
            nearest_earlier: self.hint(store, Some(gap.after)).await,
            nearest_later: self.hint(store, Some(gap.resumes)).await,
        }
    }

    async fn expired(&mut self, store: &Store) -> PlanError {
        let horizon = self.horizon;
        let nearest = self.hint(store, Some(horizon.max(TxId::FIRST))).await;
        PlanError::Expired { horizon, nearest }
    }

    /// Whether the state `txid` is older than what is kept.
    fn is_expired(&self, txid: TxId) -> bool {
        txid < self.horizon && self.pinned.iter().all(|pin| pin.txid != txid)
    }

    async fn by_txid(
        &mut self,
        store: &Store,
        txid: TxId,
        terms: Terms,
    ) -> Result<Resolved, PlanError> {
        if self.is_expired(txid) {
            return Err(self.expired(store).await);
        }
        let inside = |gap: &&Gap| gap.after < txid && txid < gap.resumes;
        if let Some(gap) = self.gaps.iter().find(inside).copied() {
            return Err(self.gap_error(store, gap).await);
        }
        if let Some(found) = self.find(store, txid).await? {
            Ok(found)
        } else {
            let head = self.head();
            let position = Position {
                term: terms.present.unwrap_or(terms.highest_claimed),
                txid,
                chain: tidelog_wal::Chain::default(),
            };
            if head.is_none_or(|head| txid > head.txid) {
                return Err(PlanError::InFuture { position, head });
            }
            Err(PlanError::NoPath { txid })
        }
    }

    async fn by_position(
        &mut self,
        store: &Store,
        position: Position,
        terms: Terms,
    ) -> Result<Resolved, PlanError> {
        let Position { term, txid, .. } = position;
        if term > terms.highest_claimed || term == Term::NONE {
            let head = self.head();
            return Err(PlanError::Unknown { position, head });
        }
        // A journal section may hold commits of several terms, those that went out again after a crash: where
        // each begins shows only in its records.
        let mixed = self.pieces.iter().any(|piece| {
            (piece.first..=piece.last).contains(&txid)
                && piece.run.first_term != piece.run.last_term
                && (piece.run.first_term..=piece.run.last_term).contains(&term)
        });
        if mixed {
            let found = self.by_txid(store, txid, terms).await?;
            if found.position == position {
                return Ok(found);
            }
        }
        let at = self.terms.iter().position(|start| start.term == term);
        let Some(at) = at else {
            if self.is_expired(txid) {
                return Err(self.expired(store).await);
            }
            // Claimed, and this database was not written in it as far as anything stored tells.
            let before = self.terms.partition_point(|start| start.term < term);
            let next = self.terms.get(before).map(|next| next.first);
            if terms.present == Some(term) {
                let head = self.head();
                return Err(PlanError::InFuture { position, head });
            }
            let nearest_earlier = match next {
                Some(next) => self.hint(store, next.prev()).await,
                None => self.head(),
            };
            return Err(PlanError::Lost {
                position,
                nearest_earlier,
            });
        };
        if self.is_expired(txid) {
            return Err(self.expired(store).await);
        }
        let next = self.terms.get(at + 1).map(|next| next.first);
        let past_end = next.is_some_and(|next| txid >= next);
        let head = self.head();
        if past_end || head.is_none_or(|head| txid > head.txid) {
            if !past_end && terms.present == Some(term) {
                return Err(PlanError::InFuture { position, head });
            }
            let nearest_earlier = match next {
                Some(next) => self.hint(store, next.prev()).await,
                None => head,
            };
            return Err(PlanError::Lost {
                position,
                nearest_earlier,
            });
        }
        let found = self.by_txid(store, txid, terms).await?;
        if found.position == position {
            return Ok(found);
        }
        Err(PlanError::Foreign {
            position,
            nearest: Some(found.position),
        })
    }

    async fn by_time(&mut self, store: &Store, time: Timestamp) -> Result<Resolved, PlanError> {
        let inside = |gap: &&Gap| gap.from < time && time < gap.to;
        if let Some(gap) = self.gaps.iter().find(inside).copied() {
            return Err(self.gap_error(store, gap).await);
        }
        self.read_index(|_, entry| entry.run.first_time <= time && time <= entry.run.last_time)
            .await?;
        // Between two index objects, the answer is the last commit of the earlier one.
        let known = |h: &Self| {
            let before = |piece: &&Piece| piece.run.first_time <= time;
            h.pieces.iter().rev().find(before).cloned()
        };
        let newest = known(self).map(|piece| piece.run.last);
        self.read_index(|_, entry| {
            entry.run.first_time <= time && newest.is_none_or(|newest| entry.run.last > newest)
        })
        .await?;
        // Records before the oldest kept image are gone; the image stands for its commit.
        let horizon = self.horizon;
        if known(self).is_none_or(|piece| piece.last < horizon) {
            self.read_index(|_, entry| entry.images > 0 && entry.run.first <= horizon.next())
                .await?;
        }
        let newest = known(self).map(|piece| piece.last);
        let image = self.imaged(|image| {
            image.time <= time && newest.is_none_or(|newest| image.position.txid > newest)
        });
        if let Some(found) = image {
            return self.kept(store, found).await;
        }
        let Some(piece) = known(self) else {
            if self.horizon > TxId::FIRST {
                return Err(self.expired(store).await);
            }
            let nearest = self.hint(store, Some(TxId::FIRST)).await;
            return Err(PlanError::BeforeHistory { time, nearest });
        };
        let end = piece.end().filter(|end| end.time <= time);
        let found = match end {
            Some(end) => end,
            None => self.last_before(store, &piece, time).await?,
        };
        self.kept(store, found).await
    }

    /// What was found by its time, unless commits may be missing behind it: below the horizon what is pinned
    /// stands alone, and is found by its bookmark only.
    async fn kept(&mut self, store: &Store, found: Resolved) -> Result<Resolved, PlanError> {
        if found.position.txid < self.horizon {
            return Err(self.expired(store).await);
        }
        Ok(found)
    }

    /// The last commit of `piece` at or before `time`.
    async fn last_before(
        &self,
        store: &Store,
        piece: &Piece,
        time: Timestamp,
    ) -> Result<Resolved, PlanError> {
        let (mut low, mut high) = (piece.first, piece.last);
        if let super::read::Opened::Segment(segment) = super::read::open_piece(store, piece).await?
            && let Some((first, last)) = segment.run_at(time)
        {
            // What counts of the piece may begin or end inside the block.
            low = low.max(first).min(high);
            high = high.min(last).max(low);
        }
        let mut latest = Latest {
            wanted: |seen: &Resolved| {
                let txid = seen.position.txid;
                seen.time <= time && piece.first <= txid && txid <= piece.last
            },
            seen: None,
            found: None,
        };
        scan_piece(store, piece, (low, high), &mut latest).await?;
        latest.found.ok_or(PlanError::NoPath { txid: piece.first })
    }
}
