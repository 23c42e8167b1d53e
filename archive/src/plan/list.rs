//! Listing commits: what history knows of each, without its pages.

use tidelog_wal::delta::PageDelta;
use tidelog_wal::record::{RecordKind, TimeFlag};
use tidelog_wal::{Digest, PageCount, Position, Timestamp, TxId};

use super::error::PlanError;
use super::history::{History, Piece};
use super::read::scan_piece;
use crate::envelope::FormatError;
use crate::records::{BodyHead, RecordHead, RecordVisitor};
use crate::store::Store;

/// A commit as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its Position.
    pub position: Position,
    /// Its ordered time.
    pub time: Timestamp,
    /// What kind of record it is.
    pub kind: RecordKind,
    /// Pages of the database after it.
    pub n: PageCount,
    /// Digest of the database after it.
    pub digest: Digest,
    /// It was captured when the database was opened again, not when it was made.
    pub recovered: bool,
    /// Pages it changed, where they stand in its record.
    pub pages_changed: u64,
    /// Tagged values it carries.
    pub annotations: Vec<tidelog_wal::record::Annotation>,
}

struct Collect {
    seen: Option<CommitInfo>,
    found: Vec<CommitInfo>,
    first: TxId,
    last: TxId,
}

impl RecordVisitor for Collect {
    type Error = FormatError;

    fn begin(&mut self, head: &RecordHead) -> Result<(), FormatError> {
        let header = &head.header;
        self.seen = Some(CommitInfo {
            position: Position {
                term: header.term,
                txid: header.txid,
                chain: tidelog_wal::Chain::default(),
            },
            time: header.time,
            kind: match head.body {
                BodyHead::Delta => RecordKind::Delta,
                BodyHead::Image(_) => RecordKind::Image,
                BodyHead::Fork { .. } => RecordKind::Fork,
                BodyHead::Restore { .. } => RecordKind::Restore,
                BodyHead::Reference { .. } => RecordKind::Reference,
            },
            n: header.n_after,
            digest: header.digest,
            recovered: header.flag == TimeFlag::Recovered,
            pages_changed: 0,
            annotations: header.annotations.clone(),
        });
        Ok(())
    }

    fn page(&mut self, _page: &PageDelta<'_>) -> Result<(), FormatError> {
        if let Some(seen) = &mut self.seen {
            seen.pages_changed += 1;
        }
        Ok(())
    }

    fn end(&mut self, position: &Position) -> Result<(), FormatError> {
        if let Some(mut seen) = self.seen.take()
            && self.first <= position.txid
            && position.txid <= self.last
        {
            seen.position = *position;
            self.found.push(seen);
        }
        Ok(())
    }
}

impl History {
    /// The stored commits from `first` to `last`, ascending. Reads the objects that hold them: callers bound
    /// the span.
    pub async fn commits(
        &mut self,
        store: &Store,
        first: TxId,
        last: TxId,
    ) -> Result<Vec<CommitInfo>, PlanError> {
        self.read_index(|_, entry| entry.run.first <= last && first <= entry.run.last)
            .await?;
        let mut collect = Collect {
            seen: None,
            found: Vec::new(),
            first,
            last,
        };
        let wanted: Vec<Piece> = self
            .pieces
            .iter()
            .filter(|piece| piece.first <= last && first <= piece.last)
            .cloned()
            .collect();
        for piece in &wanted {
            let span = (piece.first.max(first), piece.last.min(last));
            scan_piece(store, piece, span, &mut collect).await?;
        }
        Ok(collect.found)
    }
}
