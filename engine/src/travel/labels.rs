//! Labels, which the API calls snapshots: names for Positions, kept in the manifest, so that they outlive the
//! machine and the bucket alone tells them.
//!
//! A label keeps nothing: when its Position leaves the retention window it is there by name only, `expired`. A
//! label with a pin keeps its Position restorable beyond the window; the pin's id follows from the name, so
//! that the two need no other link. Removing a label with a pin has to be asked for as such.
//!
//! The root of a database's history is small, so labels are bounded by number and by bytes.

use tidelog_archive::manifest::{Label, Manifest, Pin};
use tidelog_wal::{PageCount, Position, Timestamp};

use crate::boxed;
use crate::bucket::At;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::rebuild::Unsettled;
use crate::system::{Page, PageOf};

/// Labels of one database.
pub const LABELS_MAX: usize = 128;
/// Bytes that all labels of a database and their pins may take in its manifest.
pub const LABEL_BYTES_MAX: usize = 24 << 10;
/// The longest name in characters.
const NAME_MAX: usize = 80;
/// The longest note in bytes.
const NOTE_MAX: usize = 512;
/// What a label takes beside its texts, and what its pin takes, at most.
const LABEL_BYTES: usize = 80;
const PIN_BYTES: usize = 64;

/// A label to be made.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Unique in the database, 1 to 80 characters.
    pub name: String,
    /// Free text.
    pub note: String,
    /// What it names; the newest commit by default.
    pub at: At,
    /// Keep that state beyond the retention window.
    pub pin: bool,
    /// Remove the label then, and its pin with it.
    pub expires_at: Option<Timestamp>,
}

/// What a label is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SnapshotState {
    /// The state can be restored from the store.
    Restorable,
    /// The commit is not in the store yet.
    PendingDurable,
    /// The state has left the retention window.
    Expired,
    /// The commit was never stored, and its machine is gone.
    Lost,
}

impl SnapshotState {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restorable => "restorable",
            Self::PendingDurable => "pending_durable",
            Self::Expired => "expired",
            Self::Lost => "lost",
        }
    }
}

/// A label as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Free text.
    pub note: String,
    /// The commit it names.
    pub bookmark: Position,
    /// When that was committed.
    pub committed_at: Timestamp,
    /// When the label was made.
    pub created_at: Timestamp,
    /// Whether it keeps its state beyond the window.
    pub pinned: bool,
    /// What it is good for now.
    pub state: SnapshotState,
    /// The state is kept at least until then; `None`: as long as the label stands.
    pub expires_at: Option<Timestamp>,
    /// Bytes of the database in that state, where they were looked up.
    pub database_bytes: Option<u64>,
}

/// The id of the pin that belongs to a label.
pub(crate) fn pin_id(name: &str) -> [u8; 16] {
    let hash = blake3::derive_key("tidelog 1 pin of a label", name.as_bytes());
    let (id, _) = hash
        .split_first_chunk::<16>()
        .expect("a BLAKE3 hash has 32 bytes");
    *id
}

/// Refuses what is no name of a label.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let refuse = |why: &str| {
        let what = format!("snapshot name {why}");
        Err(Error::new(Code::NameInvalid, what))
    };
    let length = name.chars().count();
    if length == 0 || length > NAME_MAX {
        return refuse("must have 1 to 80 characters");
    }
    if name.chars().any(|c| c.is_control() || c == '/') {
        return refuse("must not hold control characters or `/`");
    }
    if name.trim() != name || name == "." || name == ".." {
        return refuse("must not begin or end with blanks, nor be `.` or `..`");
    }
    Ok(())
}

/// What a label takes in the manifest, at most.
fn cost(label: &Label, pinned: bool) -> usize {
    label.name.len() + label.note.len() + LABEL_BYTES + if pinned { PIN_BYTES } else { 0 }
}

fn is_pinned(manifest: &Manifest, label: &Label) -> bool {
    let id = pin_id(&label.name);
    manifest.pins.iter().any(|pin| pin.id == id)
}

/// Adds a label, if its name is free and there is room.
pub(crate) fn add(manifest: &mut Manifest, label: Label, pin: bool) -> Result<(), Error> {
    if manifest.labels.iter().any(|known| known.name == label.name) {
        let what = format!("there is a snapshot {:?} already", label.name);
        return Err(Error::new(Code::NameTaken, what));
    }
    if manifest.labels.len() >= LABELS_MAX {
        let what = format!(
            "the database has {LABELS_MAX} snapshots, which is the limit; delete one that is not needed"
        );
        return Err(Error::new(Code::QuotaExceeded, what)
            .with("limit", LABELS_MAX as u64)
            .with("used", manifest.labels.len() as u64));
    }
    let all = manifest.labels.iter();
    let used: usize = all
        .map(|known| cost(known, is_pinned(manifest, known)))
        .sum();
    if used + cost(&label, pin) > LABEL_BYTES_MAX {
        let what = format!(
            "names and notes of this database's snapshots may take {LABEL_BYTES_MAX} bytes; delete one \
             or write shorter notes"
        );
        return Err(Error::new(Code::QuotaExceeded, what)
            .with("limit", LABEL_BYTES_MAX as u64)
            .with("used", used as u64));
    }
    let kept = label.position.txid >= manifest.horizon
        || manifest
            .pins
            .iter()
            .any(|pin| pin.position == label.position);
    if !kept {
        let what = format!("bookmark {} has left the retention window", label.position);
        return Err(Error::new(Code::BookmarkExpired, what));
    }
    // A pin holds back the retention of its own database alone; the fork's own beginning is pinned in the parent.
    let inherited = manifest
        .parent
        .filter(|parent| label.position.txid < parent.at.txid);
    if pin && let Some(parent) = inherited {
        let what = format!(
            "bookmark {} is older than this fork: a pin keeps what the database wrote itself; pin it in the \
             database it was forked from, or fork that state",
            label.position
        );
        let refused = Error::new(Code::Refused, what);
        return Err(refused.with("parent", parent.database.to_string()));
    }
    if pin {
        manifest.pins.push(Pin {
            id: pin_id(&label.name),
            position: label.position,
            created: label.created,
            child: None,
        });
    }
    manifest.labels.push(label);
    Ok(())
}

/// Removes a label, and its pin if that is asked for.
pub(crate) fn remove(manifest: &mut Manifest, name: &str, unpin: bool) -> Result<(), Error> {
    let pinned = is_pinned(manifest, find(manifest, name)?);
    if pinned && !unpin {
        let what = format!(
            "snapshot {name:?} is pinned: what it keeps would expire; delete it with unpin=true"
        );
        return Err(Error::new(Code::SnapshotPinned, what));
    }
    let id = pin_id(name);
    manifest.labels.retain(|label| label.name != name);
    manifest.pins.retain(|pin| pin.id != id);
    Ok(())
}

/// Removes labels whose own time is over, and their pins; answers their names.
pub(crate) fn remove_expired(manifest: &mut Manifest, now: Timestamp) -> Vec<String> {
    let over = |label: &&Label| label.expires.is_some_and(|at| at <= now);
    let gone: Vec<String> = manifest
        .labels
        .iter()
        .filter(over)
        .map(|label| label.name.clone())
        .collect();
    for name in &gone {
        let id = pin_id(name);
        manifest.labels.retain(|label| label.name != *name);
        manifest.pins.retain(|pin| pin.id != id);
    }
    gone
}

/// The label of this name.
pub(crate) fn find<'a>(manifest: &'a Manifest, name: &str) -> Result<&'a Label, Error> {
    let found = manifest.labels.iter().find(|label| label.name == name);
    found.ok_or_else(|| {
        let what = format!("there is no snapshot {name:?}");
        Error::new(Code::SnapshotNotFound, what)
    })
}

/// What a failure to reach the state of a label is: an expired bookmark is an expired label.
pub(crate) fn unreachable(at: &At, error: Error) -> Error {
    let At::Snapshot(name) = at else { return error };
    if error.code() != Code::BookmarkExpired {
        return error;
    }
    let what = format!("snapshot {name:?} has left the retention window");
    let members = error.members().clone();
    let expired = Error::new(Code::SnapshotExpired, what);
    members
        .into_iter()
        .fold(expired, |made, (name, value)| made.with(&name, value))
        .caused_by(error)
}

/// A label as it is shown, where everything up to `durable` is stored and `now` is the time.
pub(crate) fn shown(
    manifest: &Manifest,
    label: &Label,
    durable: Option<Position>,
    now: Timestamp,
) -> Snapshot {
    let pinned = is_pinned(manifest, label);
    let window = label
        .time
        .micros()
        .saturating_add(manifest.retention_micros);
    let leaves = Some(Timestamp::from_micros(window)).filter(|_| !pinned);
    Snapshot {
        name: label.name.clone(),
        note: label.note.clone(),
        bookmark: label.position,
        committed_at: label.time,
        created_at: label.created,
        pinned,
        state: state(manifest, label, durable, now),
        expires_at: match (label.expires, leaves) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        },
        database_bytes: None,
    }
}

fn state(
    manifest: &Manifest,
    label: &Label,
    durable: Option<Position>,
    now: Timestamp,
) -> SnapshotState {
    let Position { term, txid, .. } = label.position;
    let kept = manifest
        .pins
        .iter()
        .any(|pin| pin.position == label.position);
    let gone = label.expires.is_some_and(|expires| expires <= now);
    if gone || txid < manifest.horizon && !kept {
        return SnapshotState::Expired;
    }
    // A later term went on below it: its term ended before this commit was stored.
    let next = manifest.terms.iter().find(|start| start.term > term);
    let overtaken = next.is_some_and(|next| next.first <= txid);
    let foreign = durable.is_some_and(|at| at.txid == txid && at.chain != label.position.chain);
    if overtaken || foreign {
        return SnapshotState::Lost;
    }
    match durable {
        Some(durable) if txid <= durable.txid => SnapshotState::Restorable,
        _ => SnapshotState::PendingDurable,
    }
}

/// A commit, its time and its pages.
pub(crate) type State = (Position, Timestamp, PageCount);

impl Database {
    /// What is stored and not settled; looked at before the manifest.
    fn unsettled(&self) -> Unsettled {
        Unsettled::of(&self.engine.inner.core, self.row.id)
    }

    /// Names a commit.
    #[boxed]
    pub async fn snapshot_create(&self, new: NewSnapshot) -> Result<Snapshot, Error> {
        check_name(&new.name)?;
        if new.note.len() > NOTE_MAX {
            let what = format!("the note of a snapshot has at most {NOTE_MAX} bytes");
            return Err(Error::new(Code::InvalidRequest, what));
        }
        let now = self.engine.now();
        if new.expires_at.is_some_and(|at| at <= now) {
            let what = "expires_at lies in the past";
            return Err(Error::new(Code::InvalidRequest, what));
        }
        let state = self.named(&new.at).await?;
        self.snapshot_of(new, state).await
    }

    /// The same of a state that the caller knows, who may hold the database.
    pub(crate) async fn snapshot_of(
        &self,
        new: NewSnapshot,
        (position, time, pages): State,
    ) -> Result<Snapshot, Error> {
        let now = self.engine.now();
        let label = Label {
            name: new.name.clone(),
            note: new.note,
            position,
            time,
            created: now,
            expires: new.expires_at,
        };
        let remote = &self.engine.inner.core.remote;
        let unsettled = self.unsettled();
        let loaded = remote
            .change_of(
                self.row.namespace,
                self.row.id,
                "make a snapshot",
                |manifest| add(manifest, label.clone(), new.pin),
            )
            .await?;
        if let Some(at) = new.expires_at {
            self.engine.due_not_later(self.row.id, at).await?;
        }
        let manifest = &loaded.manifest;
        let durable = unsettled.stored(manifest);
        let mut made = shown(manifest, &label, durable, now);
        made.database_bytes = Some(pages.bytes(manifest.page_size));
        Ok(made)
    }

    /// The commit that is meant, its time and its pages. The newest one need not be stored for that.
    pub(crate) async fn named(&self, at: &At) -> Result<State, Error> {
        let lease = self.lease().await?;
        let capturing = std::sync::Arc::clone(&lease);
        let head =
            crate::executor::blocking(lease.core.executor(), move || capturing.capture_now())
                .await?;
        if *at == At::Latest || *at == At::Bookmark(head.position()) {
            return Ok((head.position(), head.time, head.pages));
        }
        // Whoever waits for a lease of a database that is to be opened anew must hold none.
        drop(lease);
        let found = self.state_at(at.clone()).await?;
        Ok((found.position, found.time, found.n))
    }

    /// The label of a name, with the size of its state if that can be read.
    #[boxed]
    pub async fn snapshot(&self, name: &str) -> Result<Snapshot, Error> {
        let unsettled = self.unsettled();
        let loaded = self.manifest().await?;
        let manifest = &loaded.manifest;
        let durable = unsettled.stored(manifest);
        let mut found = shown(manifest, find(manifest, name)?, durable, self.engine.now());
        if found.state == SnapshotState::Restorable {
            let resolved = self.state_at(At::Bookmark(found.bookmark)).await?;
            found.database_bytes = Some(resolved.n.bytes(manifest.page_size));
        }
        Ok(found)
    }

    /// The labels of the database by name.
    #[boxed]
    pub async fn snapshots(&self, page: Page) -> Result<PageOf<Snapshot>, Error> {
        let unsettled = self.unsettled();
        let loaded = self.manifest().await?;
        let manifest = &loaded.manifest;
        let (durable, now) = (unsettled.stored(manifest), self.engine.now());
        let limit = page.limit();
        let after = page.cursor.unwrap_or_default();
        let labels = manifest.labels.iter().filter(|label| label.name > after);
        let mut items: Vec<Snapshot> = labels
            .map(|label| shown(manifest, label, durable, now))
            .collect();
        items.sort_by(|a, b| a.name.cmp(&b.name));
        items.truncate(limit + 1);
        Ok(PageOf::cut(items, limit, |snapshot| snapshot.name.clone()))
    }

    /// Removes a label. What it names stays as long as the window, or another pin, keeps it.
    #[boxed]
    pub async fn snapshot_delete(&self, name: &str, unpin: bool) -> Result<(), Error> {
        let core = &self.engine.inner.core;
        let (namespace, id) = (self.row.namespace, self.row.id);
        core.remote
            .change_of(namespace, id, "delete a snapshot", |manifest| {
                remove(manifest, name, unpin)
            })
            .await?;
        if unpin {
            // What the pin kept beyond the window goes.
            self.engine.due_not_later(id, self.engine.now()).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidelog_archive::manifest::TermStart;
    use tidelog_wal::{Chain, Term, TxId};

    use super::*;

    #[test]
    fn names_are_short_visible_and_no_paths() {
        for bad in ["", " a", "a ", "a/b", "a\nb", ".", "..", &"x".repeat(81)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in [
            "a",
            "before the fix",
            "2026-01-01",
            "\u{fc}ber",
            &"\u{fc}".repeat(80),
        ] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    /// Goal: a label whose commit never came to the store is lost, whichever of the two facts tells it; one that is
    /// stored, or still may be, is not.
    #[test]
    fn a_label_of_a_commit_that_another_term_wrote_over_is_lost() {
        let (old, new) = (Term::new(1), Term::new(2));
        let position = |term, txid, chain: u8| Position {
            term,
            txid: TxId::new(txid),
            chain: Chain::from_bytes([chain; 16]),
        };
        let label = Label {
            name: "a".to_owned(),
            note: String::new(),
            position: position(old, 7, 1),
            time: Timestamp::from_micros(1),
            created: Timestamp::from_micros(1),
            expires: None,
        };
        let mut manifest = crate::travel::retention::tests::manifest();
        manifest.terms = vec![TermStart {
            term: old,
            first: TxId::FIRST,
        }];
        let now = Timestamp::from_micros(2);
        let at = |manifest: &Manifest, durable| state(manifest, &label, Some(durable), now);
        let pending = SnapshotState::PendingDurable;
        assert_eq!(at(&manifest, position(old, 6, 1)), pending);
        let restorable = SnapshotState::Restorable;
        assert_eq!(at(&manifest, position(old, 7, 1)), restorable);
        assert_eq!(at(&manifest, position(old, 7, 2)), SnapshotState::Lost);
        for (first, found) in [(7, SnapshotState::Lost), (8, restorable)] {
            let mut manifest = manifest.clone();
            manifest.terms.push(TermStart {
                term: new,
                first: TxId::new(first),
            });
            let durable = position(new, 9, 3);
            assert_eq!(
                at(&manifest, durable),
                found,
                "its term ended before {first}"
            );
        }
        manifest.horizon = TxId::new(8);
        let expired = SnapshotState::Expired;
        assert_eq!(at(&manifest, position(old, 9, 1)), expired);
    }

    #[test]
    fn pins_of_two_names_differ() {
        assert_ne!(pin_id("a"), pin_id("b"));
        assert_eq!(pin_id("a"), pin_id("a"));
    }
}
