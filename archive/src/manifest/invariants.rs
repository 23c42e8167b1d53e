//! What every manifest must satisfy, alone and after its predecessor.

use tidelog_wal::TxId;

use super::MANIFEST_LEN_MAX;
use super::codec::text_fits;
use super::entry::Marked;
use super::model::{Manifest, State};
use crate::ErrorKind;
use crate::envelope::FormatError;
use crate::key::DatabaseObject;
use crate::records::Run;

/// The longest name hint in bytes.
const NAME_HINT_MAX: usize = 256;
/// The longest name of a label in bytes: 80 characters of up to four.
const LABEL_NAME_MAX: usize = 320;
/// The longest note of a label in bytes.
const LABEL_NOTE_MAX: usize = 512;

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Its bytes are.
    #[error(transparent)]
    Format(FormatError),
    /// It would not fit.
    #[error("manifest of {len} bytes exceeds {MANIFEST_LEN_MAX}")]
    TooLarge {
        /// Its bytes.
        len: usize,
    },
    /// It contradicts itself.
    #[error("manifest contradicts itself: {what}, at txid {at}")]
    Unsound {
        /// The rule that is broken.
        what: &'static str,
        /// Where.
        at: TxId,
    },
    /// It does not go on from the one before.
    #[error("manifest does not follow its predecessor: {what}, at txid {at}")]
    NotFollowing {
        /// The rule that is broken.
        what: &'static str,
        /// Where.
        at: TxId,
    },
}

impl ManifestError {
    /// What it means for the caller.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Format(error) => error.kind(),
            Self::TooLarge { .. } => ErrorKind::Exhausted,
            Self::Unsound { .. } => ErrorKind::Corrupt,
            Self::NotFollowing { .. } => ErrorKind::Internal,
        }
    }
}

type Check = Result<(), ManifestError>;

fn sound(holds: bool, what: &'static str, at: TxId) -> Check {
    if holds {
        Ok(())
    } else {
        Err(ManifestError::Unsound { what, at })
    }
}

fn follows(holds: bool, what: &'static str, at: TxId) -> Check {
    if holds {
        Ok(())
    } else {
        Err(ManifestError::NotFollowing { what, at })
    }
}

impl Manifest {
    /// The runs of index objects and segments, in the order of history.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        let index = self.index.iter().map(|entry| &entry.run);
        index.chain(self.segments.iter().map(|entry| &entry.run))
    }

    /// What must hold of every manifest. Guards publishing and loading.
    pub fn check_self(&self) -> Check {
        self.check_names()?;
        self.check_terms()?;
        self.check_runs()?;
        self.check_images()?;
        self.check_gaps()?;
        self.check_marked()
    }

    /// Texts are short, labels and pins unique.
    fn check_names(&self) -> Check {
        sound(self.version > 0, "versions begin at 1", TxId::ZERO)?;
        let fits = text_fits(&self.name_hint, NAME_HINT_MAX);
        sound(fits, "the name hint is too long", TxId::ZERO)?;
        for (i, label) in self.labels.iter().enumerate() {
            let at = label.position.txid;
            let fits =
                text_fits(&label.name, LABEL_NAME_MAX) && text_fits(&label.note, LABEL_NOTE_MAX);
            sound(fits && !label.name.is_empty(), "text of a label", at)?;
            let before = self.labels.get(..i).unwrap_or_default();
            let unique = before.iter().all(|other| other.name != label.name);
            sound(unique, "two labels have one name", at)?;
        }
        for (i, pin) in self.pins.iter().enumerate() {
            let before = self.pins.get(..i).unwrap_or_default();
            let unique = before.iter().all(|other| other.id != pin.id);
            sound(unique, "two pins have one id", pin.position.txid)?;
        }
        Ok(())
    }

    /// Terms ascend with their first commits, and the owner's is none below them.
    fn check_terms(&self) -> Check {
        for pair in self.terms.windows(2) {
            if let [a, b] = pair {
                let ascend = a.term < b.term && a.first < b.first;
                sound(ascend, "terms do not ascend", b.first)?;
            }
        }
        let owned = self
            .terms
            .last()
            .is_none_or(|last| last.term <= self.owner.term);
        let at = self.terms.last().map_or(TxId::ZERO, |last| last.first);
        sound(owned, "a term above the owner's", at)
    }

    /// History is one chain without holes, but for what expired; it begins at the first commit, or below
    /// the horizon; it ends where it is settled.
    fn check_runs(&self) -> Check {
        let expired_before = self.horizon.get().saturating_add(1);
        let mut last: Option<&Run> = None;
        for run in self.runs() {
            let expired = run.first.get() <= expired_before;
            let joined = match (last, &self.parent) {
                (Some(last), _) => last.is_followed_by(run),
                (None, Some(parent)) => {
                    parent.at.txid.get().checked_add(1) == Some(run.first.get())
                }
                (None, None) => run.first == TxId::FIRST,
            };
            let ordered = last.is_none_or(|last| last.last < run.first);
            sound(
                ordered && (joined || expired),
                "history has a hole",
                run.first,
            )?;
            sound(
                run.first <= run.last,
                "a run ends before it begins",
                run.first,
            )?;
            last = Some(run);
        }
        for pair in self.index.windows(2) {
            if let [a, b] = pair {
                sound(a.level >= b.level, "levels of index objects", b.run.first)?;
            }
        }
        let Some(last) = last else { return Ok(()) };
        let settled = self.settled.is_some_and(|settled| {
            // What is listed may end before it where the rest has expired: an image stands for the end then.
            settled.position.txid > last.last && settled.position.txid <= self.horizon
                || settled.position == last.end()
                    && settled.time == last.last_time
                    && settled.n == last.n_after
                    && settled.digest == last.digest_after
        });
        sound(settled, "the settled Position is not the end", last.last)
    }

    /// Images ascend, lie in settled history, and agree with the runs that end at them.
    fn check_images(&self) -> Check {
        for pair in self.images.windows(2) {
            if let [a, b] = pair {
                let ascend = a.position.txid < b.position.txid;
                sound(ascend, "images do not ascend", b.position.txid)?;
            }
        }
        let settled = self.settled_position().map_or(TxId::ZERO, |p| p.txid);
        for image in &self.images {
            let at = image.position.txid;
            sound(at <= settled, "an image beyond settled history", at)?;
            let agrees = self.runs().all(|run| {
                run.last != at
                    || run.end() == image.position
                        && run.n_after == image.n
                        && run.digest_after == image.digest
            });
            sound(agrees, "an image of another state than history's", at)?;
        }
        Ok(())
    }

    fn check_gaps(&self) -> Check {
        for gap in &self.gaps {
            let forward = gap.after < gap.resumes && gap.from <= gap.to;
            sound(forward, "a gap ends before it begins", gap.after)?;
        }
        for pair in self.gaps.windows(2) {
            if let [a, b] = pair {
                sound(a.resumes <= b.after, "gaps overlap", b.after)?;
            }
        }
        Ok(())
    }

    /// Nothing marked is listed.
    fn check_marked(&self) -> Check {
        for mark in &self.marked {
            let at = marked_at(mark);
            let kind = matches!(
                mark.object,
                DatabaseObject::Segment { .. }
                    | DatabaseObject::Image { .. }
                    | DatabaseObject::Index { .. }
            );
            sound(kind, "a mark on what is never deleted so", at)?;
            sound(!self.lists(&mark.object), "a marked object is listed", at)?;
        }
        Ok(())
    }

    /// Whether the root itself lists an object.
    fn lists(&self, object: &DatabaseObject) -> bool {
        match *object {
            DatabaseObject::Segment { first, last, nonce } => self.segments.iter().any(|entry| {
                (entry.run.first, entry.run.last, entry.nonce) == (first, last, nonce)
            }),
            DatabaseObject::Image { txid, nonce } => self
                .images
                .iter()
                .any(|entry| (entry.position.txid, entry.nonce) == (txid, nonce)),
            DatabaseObject::Index { first, last, nonce } => self.index.iter().any(|entry| {
                (entry.run.first, entry.run.last, entry.nonce) == (first, last, nonce)
            }),
            DatabaseObject::Manifest
            | DatabaseObject::Key
            | DatabaseObject::Archive(_)
            | DatabaseObject::ArchiveText(_)
            | DatabaseObject::ArchiveMetadata(_) => false,
        }
    }

    /// What must hold between a manifest and the one it replaces.
    pub fn check_follows(&self, previous: &Self) -> Check {
        let zero = TxId::ZERO;
        let same = self.namespace == previous.namespace
            && self.database == previous.database
            && self.page_size == previous.page_size
            && self.seed == previous.seed
            && self.created == previous.created;
        follows(same, "it is another database's", zero)?;
        let next = previous.version.checked_add(1) == Some(self.version);
        follows(next, "the version is not the next", zero)?;
        let owner = self.owner == previous.owner || self.owner.term > previous.owner.term;
        follows(owner, "the owner's term is not newer", zero)?;
        follows(
            self.parent == previous.parent || self.parent.is_none(),
            "another parent",
            zero,
        )?;
        follows(state_follows(previous.state, self.state), "the state", zero)?;
        follows(
            self.horizon >= previous.horizon,
            "the horizon went back",
            self.horizon,
        )?;
        self.check_settled_follows(previous)?;
        if let State::Purged(_) = self.state {
            // A tombstone names what is deleted with it, or nothing any more.
            return Ok(());
        }
        for term in &previous.terms {
            let kept = self.terms.contains(term) || term.first < self.horizon;
            follows(kept, "a term is gone", term.first)?;
        }
        self.check_nothing_lost(previous)?;
        for mark in &previous.marked {
            let back = self.lists(&mark.object);
            follows(!back, "a marked object came back", marked_at(mark))?;
        }
        Ok(())
    }

    /// Settled history only grows.
    fn check_settled_follows(&self, previous: &Self) -> Check {
        // A tombstone has no history.
        if matches!(self.state, State::Purged(_)) {
            return Ok(());
        }
        let Some(before) = previous.settled_position() else {
            return Ok(());
        };
        let holds = self.settled_position().is_some_and(|now| {
            now.txid > before.txid || now.txid == before.txid && now.chain == before.chain
        });
        follows(holds, "settled history went back", before.txid)
    }

    /// What was listed is listed, stands in a new index object, or is marked.
    fn check_nothing_lost(&self, previous: &Self) -> Check {
        let new_index = || self.index.iter().filter(|e| !previous.index.contains(e));
        let folded = |run: &Run| {
            new_index().any(|entry| entry.run.first <= run.first && run.last <= entry.run.last)
        };
        let marked = |object: DatabaseObject| self.marked.iter().any(|mark| mark.object == object);
        for entry in &previous.segments {
            let mark = Marked::segment(entry, previous.created).object;
            let kept = self.segments.contains(entry) || folded(&entry.run) || marked(mark);
            follows(kept, "a segment is gone", entry.run.first)?;
        }
        for entry in &previous.index {
            let mark = Marked::index(entry, previous.created).object;
            let kept = self.index.contains(entry) || folded(&entry.run) || marked(mark);
            follows(kept, "an index object is gone", entry.run.first)?;
        }
        for entry in &previous.images {
            let mark = Marked::image(entry, previous.created).object;
            let at = entry.position.txid;
            let kept = self.images.contains(entry)
                || new_index().any(|index| index.images > 0 && at <= index.run.last)
                || marked(mark);
            follows(kept, "an image is gone", at)?;
        }
        Ok(())
    }
}

const fn state_follows(before: State, after: State) -> bool {
    match (before, after) {
        (State::Creating(_) | State::Purged(_), State::Purged(_))
        | (State::Creating(_), _)
        | (
            State::Active(_) | State::Deleted(_),
            State::Active(_) | State::Deleted(_) | State::Purged(_),
        ) => true,
        (State::Purged(_) | State::Active(_) | State::Deleted(_), _) => false,
    }
}

const fn marked_at(mark: &Marked) -> TxId {
    match mark.object {
        DatabaseObject::Segment { first, .. } | DatabaseObject::Index { first, .. } => first,
        DatabaseObject::Image { txid, .. } => txid,
        DatabaseObject::Manifest
        | DatabaseObject::Key
        | DatabaseObject::Archive(_)
        | DatabaseObject::ArchiveText(_)
        | DatabaseObject::ArchiveMetadata(_) => TxId::ZERO,
    }
}
