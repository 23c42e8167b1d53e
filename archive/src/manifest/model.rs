//! What a manifest says.

use tidelog_wal::{
    DatabaseId, Digest, DigestSeed, NamespaceId, NodeId, PageCount, PageSize, Position, Term,
    Timestamp, TxId,
};

use super::entry::{ImageEntry, IndexEntry, Marked, SegmentEntry};
use crate::envelope::KeyId;
use crate::key::Key;

/// Who may write: the process life that last made itself owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Its term.
    pub term: Term,
    /// Its node.
    pub node: NodeId,
}

/// Where in its life a database is, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being made: not to be served yet.
    Creating(Timestamp),
    /// In use.
    Active(Timestamp),
    /// Deleted, and still recoverable.
    Deleted(Timestamp),
    /// A tombstone: its objects are gone or going.
    Purged(Timestamp),
}

/// What a fork begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The parent's namespace.
    pub namespace: NamespaceId,
    /// The parent.
    pub database: DatabaseId,
    /// Where the fork begins.
    pub at: Position,
    /// The pin in the parent's manifest that keeps that Position.
    pub pin: [u8; 16],
}

/// The newest commit that stands in a listed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Its Position.
    pub position: Position,
    /// Its ordered time.
    pub time: Timestamp,
    /// Pages after it.
    pub n: PageCount,
    /// Digest after it.
    pub digest: Digest,
}

/// A term this database was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TermStart {
    /// The term.
    pub term: Term,
    /// Its first commit.
    pub first: TxId,
}

/// A name for a Position. Costs nothing and keeps nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Unique in the database.
    pub name: String,
    /// Free text.
    pub note: String,
    /// What it names.
    pub position: Position,
    /// Ordered time of that commit.
    pub time: Timestamp,
    /// When the label was made.
    pub created: Timestamp,
    /// When the label goes.
    pub expires: Option<Timestamp>,
}

/// Keeps history past the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Its id.
    pub id: [u8; 16],
    /// What stays restorable.
    pub position: Position,
    /// When it was made.
    pub created: Timestamp,
    /// The fork that needs it, if one does.
    pub child: Option<DatabaseId>,
}

/// Why commits are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// Capture lost the thread: the file changed in a way no commit record tells.
    Discontinuity,
    /// An object is gone from the store.
    Lost,
    /// An object is damaged.
    Damaged,
}

/// Commits that cannot be restored, and that no path of deltas crosses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last state before it.
    pub after: TxId,
    /// The first state behind it.
    pub resumes: TxId,
    /// Time of the former.
    pub from: Timestamp,
    /// Time of the latter.
    pub to: Timestamp,
    /// Why.
    pub reason: GapReason,
}

/// The root of a database's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose database it is.
    pub namespace: NamespaceId,
    /// Which database.
    pub database: DatabaseId,
    /// Counts the writes.
    pub version: u64,
    /// Who may write.
    pub owner: Owner,
    /// Where in its life the database is.
    pub state: State,
    /// A name for people who have only the bucket; names live in the system database.
    pub name_hint: String,
    /// Its page size.
    pub page_size: PageSize,
    /// The seed of its digests.
    pub seed: DigestSeed,
    /// When it was made.
    pub created: Timestamp,
    /// How long every commit is kept, in microseconds.
    pub retention_micros: u64,
    /// States before it are expired, unless pinned.
    pub horizon: TxId,
    /// The keys its objects are sealed with.
    pub key_ids: Vec<KeyId>,
    /// What it is a fork of.
    pub parent: Option<Parent>,
    /// The newest settled commit.
    pub settled: Option<Settled>,
    /// Terms it was written in, ascending.
    pub terms: Vec<TermStart>,
    /// Labels.
    pub labels: Vec<Label>,
    /// Pins.
    pub pins: Vec<Pin>,
    /// Gaps, ascending.
    pub gaps: Vec<Gap>,
    /// Index objects with older entries, ascending.
    pub index: Vec<IndexEntry>,
    /// Images not in an index object, ascending.
    pub images: Vec<ImageEntry>,
    /// Segments not in an index object, ascending.
    pub segments: Vec<SegmentEntry>,
    /// Objects that no longer exist for any reader.
    pub marked: Vec<Marked>,
}

impl Manifest {
    /// Bytes of every object that it lists, itself left out: what its history takes in the store. What is marked for
    /// deletion counts no more.
    pub fn listed_bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| segment.len);
        let images = self.images.iter().map(|image| image.len);
        let index = self
            .index
            .iter()
            .map(|index| index.bytes.saturating_add(index.len));
        segments
            .chain(images)
            .chain(index)
            .fold(0, u64::saturating_add)
    }

    /// Its key.
    pub const fn key(&self) -> Key {
        Key::manifest(self.namespace, self.database)
    }

    /// The Position up to which history is settled: of a fork without own segments, where it begins.
    pub fn settled_position(&self) -> Option<Position> {
        let parent = self.parent.map(|parent| parent.at);
        self.settled.map(|settled| settled.position).or(parent)
    }

    /// Adds a segment that follows, and moves the settled Position to its end.
    pub fn append_segment(&mut self, entry: SegmentEntry) {
        let run = &entry.run;
        self.settled = Some(Settled {
            position: run.end(),
            time: run.last_time,
            n: run.n_after,
            digest: run.digest_after,
        });
        self.segments.push(entry);
    }

    /// Adds an image, keeping the order.
    pub fn add_image(&mut self, entry: ImageEntry) {
        let at = self
            .images
            .partition_point(|image| image.position.txid <= entry.position.txid);
        self.images.insert(at, entry);
    }

    /// Notes that `term`'s first commit is `first`, if the term is new here.
    pub fn note_term(&mut self, term: Term, first: TxId) {
        if self.terms.last().is_none_or(|last| last.term < term) {
            self.terms.push(TermStart { term, first });
        }
    }
}
