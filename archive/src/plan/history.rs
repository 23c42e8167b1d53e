//! What is known of a database's history.

use tidelog_wal::chain;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::{
    DatabaseId, Digest, DigestSeed, NamespaceId, PageCount, PageSize, Position, Term, Timestamp,
    TxId,
};

use super::error::PlanError;
use crate::index::IndexObject;
use crate::journal::{JournalObject, Section, SectionMeta};
use crate::key::{Key, Seq};
use crate::manifest::{
    Gap, ImageEntry, IndexEntry, Manifest, ManifestStore, SegmentEntry, TermStart,
};
use crate::records::Run;

/// Where a run of records is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceSource {
    /// A segment.
    Segment(ObjectRef),
    /// A section of a journal object.
    Section {
        /// The journal object's key.
        key: String,
        /// Its term.
        term: Term,
        /// Its number.
        seq: Seq,
    },
}

impl PieceSource {
    /// The object's key.
    pub fn key(&self) -> &str {
        match self {
            Self::Segment(object) => &object.key,
            Self::Section { key, .. } => key,
        }
    }
}

/// A run of records in one object, and which of them count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Whose object it is: the database or one it was forked from.
    pub namespace: NamespaceId,
    /// Which database's.
    pub database: DatabaseId,
    /// The whole run.
    pub run: Run,
    /// The first record that counts.
    pub first: TxId,
    /// The last record that counts.
    pub last: TxId,
    /// Bytes of the whole run as stored.
    pub bytes: u64,
    /// Where it is.
    pub source: PieceSource,
}

impl Piece {
    /// Bytes that some of its records cost, by their share.
    pub(super) fn price(&self, first: TxId, last: TxId) -> u64 {
        let all = u128::from(self.run.last.since(self.run.first).unwrap_or(0)) + 1;
        let some = u128::from(last.since(first).unwrap_or(0)) + 1;
        u64::try_from(u128::from(self.bytes) * some / all).unwrap_or(self.bytes)
    }
}

/// An image that a plan may start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    /// Whose object it is.
    pub namespace: NamespaceId,
    /// Which database's.
    pub database: DatabaseId,
    /// Whose state it is.
    pub position: Position,
    /// Ordered time of that commit.
    pub time: Timestamp,
    /// Page count.
    pub n: PageCount,
    /// State digest.
    pub digest: Digest,
    /// The object.
    pub object: ObjectRef,
}

/// An unsettled section, found by walking the journals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailSection {
    /// The journal object's key.
    pub key: String,
    /// Its term.
    pub term: Term,
    /// Its number.
    pub seq: Seq,
    /// The section.
    pub meta: SectionMeta,
    /// Bytes of it as stored.
    pub bytes: u64,
}

impl TailSection {
    /// A section of the journal object `journal`.
    pub fn of(journal: &JournalObject, section: &Section) -> Self {
        let range = section.range();
        Self {
            key: Key::Journal(journal.term, journal.seq).to_string(),
            term: journal.term,
            seq: journal.seq,
            meta: section.meta,
            bytes: range.end - range.start,
        }
    }
}

/// One database's part of a history.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Where its index objects are read.
    pub manifests: ManifestStore,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its unsettled sections, in any order, stale and repeated ones among them.
    pub tail: Vec<TailSection>,
}

/// A layer, up to where the layer above forked off.
#[derive(Debug, Clone)]
struct Bounded {
    layer: Layer,
    upto: Option<Position>,
    /// Index objects not read yet, ascending.
    unread: Vec<IndexEntry>,
}

/// What is known of a database's history, its parents' included.
#[derive(Debug, Clone)]
pub struct History {
    /// Page size of all of it.
    pub page_size: PageSize,
    /// Seed of its digests.
    pub seed: DigestSeed,
    /// Runs of records, ascending. Where index objects were not read yet, some are missing.
    pub pieces: Vec<Piece>,
    /// Images, ascending.
    pub images: Vec<ImageSource>,
    /// Gaps, ascending.
    pub gaps: Vec<Gap>,
    /// Terms it was written in, ascending.
    pub terms: Vec<TermStart>,
    /// States before it are expired.
    pub horizon: TxId,
    /// Positions below the horizon that stay restorable.
    pub pinned: Vec<Position>,
    layers: Vec<Bounded>,
}

impl History {
    /// The history of the first of `layers`, which is followed by its parent, that one's parent and so on.
    pub fn new(layers: Vec<Layer>) -> Option<Self> {
        let top = &layers.first()?.manifest;
        let mut history = Self {
            page_size: top.page_size,
            seed: top.seed,
            pieces: Vec::new(),
            images: Vec::new(),
            gaps: Vec::new(),
            terms: Vec::new(),
            horizon: top.horizon,
            pinned: top.pins.iter().map(|pin| pin.position).collect(),
            layers: Vec::new(),
        };
        let mut upto = None;
        for layer in layers {
            let parent = layer.manifest.parent.map(|parent| parent.at);
            if let Some(at) = upto {
                history.bound(&layer.manifest, at);
            }
            history.add(layer, upto);
            match parent {
                Some(at) => upto = Some(at),
                None => break,
            }
        }
        history.sort();
        Some(history)
    }

    /// What has expired in a parent has expired for its forks, but for what is pinned there: each fork's own
    /// beginning is.
    fn bound(&mut self, parent: &Manifest, upto: Position) {
        self.horizon = self.horizon.max(parent.horizon.min(upto.txid));
        let shared = parent.pins.iter().map(|pin| pin.position);
        self.pinned.extend(shared.filter(|at| at.txid <= upto.txid));
    }

    fn add(&mut self, layer: Layer, upto: Option<Position>) {
        let manifest = layer.manifest.clone();
        let end = upto.map_or(TxId::new(u64::MAX), |at| at.txid);
        for entry in &manifest.segments {
            self.add_segment(&manifest, entry, end);
        }
        for entry in &manifest.images {
            self.add_image(&manifest, entry, end);
        }
        self.add_tail(&manifest, &layer.tail, end);
        let below = |gap: &&Gap| gap.resumes <= end;
        self.gaps.extend(manifest.gaps.iter().filter(below));
        let below = |term: &&TermStart| term.first <= end;
        self.terms.extend(manifest.terms.iter().filter(below));
        let mut unread = manifest.index;
        unread.retain(|entry| entry.run.first <= end);
        self.layers.push(Bounded {
            layer,
            upto,
            unread,
        });
    }

    fn add_segment(&mut self, manifest: &Manifest, entry: &SegmentEntry, end: TxId) {
        if entry.run.first <= end {
            self.pieces.push(Piece {
                namespace: manifest.namespace,
                database: manifest.database,
                run: entry.run,
                first: entry.run.first,
                last: entry.run.last.min(end),
                bytes: entry.len,
                source: PieceSource::Segment(entry.object(manifest.namespace, manifest.database)),
            });
        }
    }

    fn add_image(&mut self, manifest: &Manifest, entry: &ImageEntry, end: TxId) {
        if entry.position.txid <= end {
            self.images.push(ImageSource {
                namespace: manifest.namespace,
                database: manifest.database,
                position: entry.position,
                time: entry.time,
                n: entry.n,
                digest: entry.digest,
                object: entry.object(manifest.namespace, manifest.database),
            });
        }
    }

    /// Adds the sections that go on where settled history ends; each commit is taken from one of them.
    fn add_tail(&mut self, manifest: &Manifest, tail: &[TailSection], end: TxId) {
        let mut sections: Vec<&TailSection> = tail.iter().collect();
        sections.sort_by_key(|section| (section.meta.first, section.term, section.seq));
        let mut have = manifest
            .settled_position()
            .map_or(TxId::ZERO, |settled| settled.txid);
        for section in sections {
            let run = section.meta.run();
            let ours = section.meta.database == manifest.database;
            if !ours || run.last <= have || run.first > have.next() || have >= end {
                continue;
            }
            let (key, term, seq) = (section.key.clone(), section.term, section.seq);
            self.pieces.push(Piece {
                namespace: manifest.namespace,
                database: manifest.database,
                run,
                first: have.next(),
                last: run.last.min(end),
                bytes: section.bytes,
                source: PieceSource::Section { key, term, seq },
            });
            have = run.last;
        }
        self.add_unsettled_terms(manifest, tail, end);
    }

    /// Terms in which nothing was settled yet stand in the sections alone. Where a section holds commits of two terms,
    /// the later one begins at its last commit at the latest.
    fn add_unsettled_terms(&mut self, manifest: &Manifest, tail: &[TailSection], end: TxId) {
        let ours = tail
            .iter()
            .filter(|section| section.meta.database == manifest.database);
        let mut starts: Vec<TermStart> = ours
            .map(|section| section.meta.run())
            .flat_map(|run| [(run.first_term, run.first), (run.last_term, run.last)])
            .map(|(term, first)| TermStart { term, first })
            .filter(|start| start.first <= end)
            .collect();
        starts.sort_by_key(|start| (start.first, start.term));
        // Of this layer alone: what forked off may have been written in later terms.
        let mut newest = manifest.terms.last().map(|known| known.term);
        for start in starts {
            if newest.is_none_or(|known| known < start.term) {
                newest = Some(start.term);
                self.terms.push(start);
            }
        }
    }

    fn sort(&mut self) {
        self.pieces.sort_by_key(|piece| piece.first);
        self.images.sort_by_key(|image| image.position.txid);
        self.gaps.sort_by_key(|gap| gap.after);
        self.terms.sort_by_key(|term| (term.term, term.first));
        self.terms.dedup_by_key(|term| term.term);
    }

    /// The newest stored commit.
    pub fn head(&self) -> Option<Position> {
        let listed = self.pieces.last();
        let listed = listed.filter(|piece| piece.last == piece.run.last);
        let settled = self
            .layers
            .first()
            .and_then(|top| top.layer.manifest.settled_position());
        // Where its records have expired, the settled Position is an image's.
        match (listed.map(|piece| piece.run.end()), settled) {
            (Some(listed), Some(settled)) if settled.txid > listed.txid => Some(settled),
            (listed, settled) => listed.or(settled),
        }
    }

    /// Whether `next` goes on where `piece` ends, as far as their runs tell.
    pub(crate) fn joins(&self, piece: &Piece, next: &Piece) -> bool {
        if piece.last.get().checked_add(1) != Some(next.first.get()) {
            return false;
        }
        if piece.database != next.database {
            return self.layers.iter().any(|bounded| {
                let manifest = &bounded.layer.manifest;
                manifest.database == next.database
                    && manifest.parent.is_some_and(|parent| {
                        parent.database == piece.database
                            && parent.at.txid == piece.last
                            && next.run.chain_before == chain::fork(next.database, &parent.at)
                    })
            });
        }
        // Cut pieces are proven record by record when they are read.
        piece.last != piece.run.last
            || next.first != next.run.first
            || piece.run.chain_after == next.run.chain_before
    }

    /// Reads every index object.
    pub async fn read_all(&mut self) -> Result<(), PlanError> {
        self.read_index(|_, _| true).await
    }

    /// Reads the index objects that `wanted` says may matter, until none is left.
    pub(super) async fn read_index(
        &mut self,
        mut wanted: impl FnMut(&Self, &IndexEntry) -> bool,
    ) -> Result<(), PlanError> {
        loop {
            let found = self.layers.iter().enumerate().find_map(|(l, bounded)| {
                let at = bounded.unread.iter().rposition(|e| wanted(self, e))?;
                Some((l, at))
            });
            let Some((l, at)) = found else { return Ok(()) };
            let Some(bounded) = self.layers.get_mut(l) else {
                return Ok(());
            };
            let entry = bounded.unread.remove(at);
            let manifest = bounded.layer.manifest.clone();
            let end = bounded.upto.map_or(TxId::new(u64::MAX), |p| p.txid);
            let IndexObject {
                children,
                images,
                segments,
            } = bounded.layer.manifests.load_index(&entry).await?;
            bounded.unread.splice(at..at, children);
            for entry in &segments {
                self.add_segment(&manifest, entry, end);
            }
            for entry in &images {
                self.add_image(&manifest, entry, end);
            }
            self.sort();
        }
    }
}
