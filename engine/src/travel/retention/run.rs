//! Carrying a plan out, step by step, each of which may be the last: a crash or an outage between two leaves
//! what the next look finds and goes on with.
//!
//! 1. The manifest is written, changed or not: its `last_modified` is the store's time. From here on *now* is the
//!    earlier of our time and the store's.
//! 2. The horizon is proven: the object whose end it is must be as old as the window by the store's time, too.
//! 3. Labels whose time is over go, with their pins.
//! 4. An image is written, if the base is too old; more can be marked with it.
//! 5. Index objects that hold both, expired and needed entries, are written anew without the former.
//! 6. Marks are published together with the horizon, on a manifest with the very pins that the plan knew.
//! 7. Marked objects whose grace is over are deleted, then their marks. What the store refuses to delete keeps its
//!    mark and stands in nobody's way; the next look tries it again, and this one ends with the refusal.
//! 8. Garbage of lives that are over is deleted.

use std::collections::HashSet;
use std::sync::Arc;

use tidelog_archive::index::IndexObject;
use tidelog_archive::key::{DatabaseObject, Key};
use tidelog_archive::manifest::{
    ImageEntry, IndexEntry, Loaded, Manifest, ManifestStore, Marked, PublishError, SegmentEntry,
    State,
};
use tidelog_archive::store::StoreError;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp, TxId};

use super::catalog::{Catalog, Node};
use super::plan::{self, Keep, RetentionPlan};
use super::{garbage, image};
use crate::core::Core;
use crate::crash_point;
use crate::error::{Code, Error};
use crate::node::start::store_error;
use crate::remote::publish_error;
use crate::travel::labels;

/// Attempts to publish marks on a manifest whose pins keep changing.
const ATTEMPTS_MAX: u32 = 4;
/// Runs that are tried as the horizon, newest first, until the store agrees on the age of one.
const HORIZONS_MAX: usize = 8;

/// An object that is to go or has gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectGone {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
}

/// What one look at a database found, and, if it was applied, did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionReport {
    /// Which database.
    pub database: DatabaseId,
    /// Whether it was done or only planned.
    pub applied: bool,
    /// Something reads the database for long: nothing was marked.
    pub held: bool,
    /// States before it are expired.
    pub horizon: TxId,
    /// The state that an image is written of, if one is.
    pub image_at: Option<TxId>,
    /// Objects that no longer exist for readers; an index object stands for all below it.
    pub marked: Vec<ObjectGone>,
    /// Objects that are deleted.
    pub deleted: Vec<ObjectGone>,
    /// Labels whose own time is over.
    pub labels: Vec<String>,
    /// When it is looked at again.
    pub next: Option<Timestamp>,
}

impl RetentionReport {
    fn new(database: DatabaseId, applied: bool) -> Self {
        Self {
            database,
            applied,
            held: false,
            horizon: TxId::ZERO,
            image_at: None,
            marked: Vec::new(),
            deleted: Vec::new(),
            labels: Vec::new(),
            next: None,
        }
    }
}

/// Turns a failure to read a listed object into the engine's.
pub(super) fn read_error(error: PublishError) -> Error {
    publish_error("read what a manifest lists", error)
}

/// Looks at one database.
pub(crate) async fn run(
    core: &Arc<Core>,
    namespace: NamespaceId,
    id: DatabaseId,
    apply: bool,
) -> Result<RetentionReport, Error> {
    let mut report = RetentionReport::new(id, apply);
    let loaded = core.remote.owned_manifest(namespace, id).await?;
    if !matches!(loaded.manifest.state, State::Active(_) | State::Deleted(_)) {
        return Ok(report);
    }
    let run = Run {
        core,
        manifests: core.remote.manifests(namespace, id),
        namespace,
        id,
    };
    let ours = core.parts.clock.wall();
    let catalog = run.catalog(&loaded.manifest, ours).await?;
    let rough = plan::plan(
        &catalog,
        ours,
        catalog.end_before(cutoff(&loaded.manifest, ours)),
    );
    report.held = core.holds.is_held(id);
    if !apply {
        run.tell(&rough, &loaded.manifest, &mut report);
        report
            .deleted
            .extend(garbage::find(core, namespace, id, ours).await?);
        report.next = plan::next_look(&catalog, ours);
        return Ok(report);
    }
    if rough.is_empty() && rough.horizon <= loaded.manifest.horizon {
        report.horizon = loaded.manifest.horizon;
        report.next = plan::next_look(&catalog, ours);
        return Ok(report);
    }
    let (mut loaded, now, latest) = run.touch(ours).await?;
    run.apply_labels(&mut loaded, &rough, now, &mut report)
        .await?;
    if !report.held {
        run.apply_image(&mut loaded, now, &mut report).await?;
        // Whoever comes to hold it from here on reads the manifest after the marks.
        let marking = core.holds.marking(id);
        report.held = marking.is_none();
        if !report.held {
            run.apply_splits(&mut loaded, now, latest).await?;
            run.apply_marks(&mut loaded, now, latest, &mut report)
                .await?;
        }
    }
    let mut refused = None;
    run.apply_sweep(&mut loaded, now, &mut report, &mut refused)
        .await?;
    for gone in garbage::find(core, namespace, id, now).await? {
        let key = std::slice::from_ref(&gone.key);
        if run.delete(key, &mut refused).await? {
            report.deleted.push(gone);
        }
    }
    if let Some(refused) = refused {
        return Err(refused);
    }
    report.horizon = loaded.manifest.horizon;
    let catalog = run.catalog(&loaded.manifest, now).await?;
    report.next = plan::next_look(&catalog, now);
    if let Some(position) = plan::keep(&catalog, loaded.manifest.horizon).broken() {
        tracing::error!(database = %id, txid = %position, "nothing stored leads to a pinned state; nothing is marked");
    }
    Ok(report)
}

/// The earlier of our time and the store's, for what ends by time.
pub(crate) async fn trusted(
    core: &Arc<Core>,
    namespace: NamespaceId,
    id: DatabaseId,
) -> Result<Timestamp, Error> {
    let run = Run {
        core,
        manifests: core.remote.manifests(namespace, id),
        namespace,
        id,
    };
    let (_, now, _) = run.touch(core.parts.clock.wall()).await?;
    Ok(now)
}

fn cutoff(manifest: &Manifest, now: Timestamp) -> Timestamp {
    Timestamp::from_micros(now.micros().saturating_sub(manifest.retention_micros))
}

struct Run<'a> {
    core: &'a Arc<Core>,
    manifests: ManifestStore,
    namespace: NamespaceId,
    id: DatabaseId,
}

impl Run<'_> {
    async fn catalog(&self, manifest: &Manifest, now: Timestamp) -> Result<Catalog, Error> {
        let cutoff = cutoff(manifest, now);
        let catalog = Catalog::load(&self.manifests, manifest, cutoff).await;
        catalog.map_err(read_error)
    }

    fn key(&self, object: DatabaseObject) -> String {
        Key::Database(self.namespace, self.id, object).to_string()
    }

    fn gone(&self, marked: &Marked) -> ObjectGone {
        ObjectGone {
            key: self.key(marked.object),
            bytes: marked.len,
        }
    }

    /// What a plan would do, for a dry run.
    fn tell(&self, plan: &RetentionPlan, manifest: &Manifest, report: &mut RetentionReport) {
        report.horizon = plan.horizon;
        report.image_at = plan.image_at.filter(|_| !report.held);
        report.labels.clone_from(&plan.labels);
        report.deleted = plan.sweep.iter().map(|m| self.gone(m)).collect();
        if !report.held {
            report.marked = plan.mark.iter().map(|m| self.gone(m)).collect();
            let split = plan
                .split
                .iter()
                .map(|entry| Marked::index(entry, manifest.created));
            report.marked.extend(split.map(|m| self.gone(&m)));
        }
    }

    /// Writes the manifest and reads when the store says that this was: the earliest and the latest of its time
    /// and ours before and after. Clocks that are set one after the other are then never both wrong for one look.
    async fn touch(&self, ours: Timestamp) -> Result<(Loaded, Timestamp, Timestamp), Error> {
        let remote = &self.core.remote;
        let touched = remote
            .change_of(self.namespace, self.id, "touch a manifest", |_| Ok(()))
            .await?;
        let theirs = self.written_at(&self.key(DatabaseObject::Manifest)).await?;
        let after = self.core.parts.clock.wall();
        let (earliest, latest) = (ours.min(after), ours.max(after));
        Ok((touched, earliest.min(theirs), latest.max(theirs)))
    }

    async fn written_at(&self, key: &str) -> Result<Timestamp, Error> {
        let head = self.core.remote.store.head(key).await;
        let head = head.map_err(|e| store_error("ask for the age of an object", e))?;
        Ok(head.last_modified)
    }

    /// The newest run whose end is older than the window by its own time and by the store's. A clock that was
    /// slow when commits were made, or that has been set forward since, moves it no further.
    async fn horizon(&self, catalog: &Catalog, now: Timestamp) -> Result<TxId, Error> {
        let manifest = &catalog.manifest;
        let cutoff = cutoff(manifest, now);
        let (segments, _) = catalog.entries();
        let old = |entry: &&SegmentEntry| {
            entry.run.last_time <= cutoff && entry.run.last > manifest.horizon
        };
        let old: Vec<&SegmentEntry> = segments.iter().filter(old).collect();
        let (mut at, mut step) = (old.len(), 1);
        for _ in 0..HORIZONS_MAX {
            let Some(entry) = at.checked_sub(1).and_then(|last| old.get(last)) else {
                break;
            };
            let key = entry.key(self.namespace, self.id).to_string();
            if self.written_at(&key).await? <= cutoff {
                return Ok(entry.run.last);
            }
            at = at.saturating_sub(step);
            step *= 2;
        }
        Ok(manifest.horizon)
    }

    async fn plan(
        &self,
        manifest: &Manifest,
        now: Timestamp,
    ) -> Result<(Catalog, RetentionPlan), Error> {
        let catalog = self.catalog(manifest, now).await?;
        let horizon = self.horizon(&catalog, now).await?;
        let plan = plan::plan(&catalog, now, horizon);
        Ok((catalog, plan))
    }

    async fn change(
        &self,
        what: &str,
        change: impl FnMut(&mut Manifest) -> Result<(), Error>,
    ) -> Result<Loaded, Error> {
        let remote = &self.core.remote;
        remote
            .change_of(self.namespace, self.id, what, change)
            .await
    }

    /// Removes labels whose own time is over, with their pins.
    async fn apply_labels(
        &self,
        loaded: &mut Loaded,
        rough: &RetentionPlan,
        now: Timestamp,
        report: &mut RetentionReport,
    ) -> Result<(), Error> {
        if rough.labels.is_empty() {
            return Ok(());
        }
        let mut removed = Vec::new();
        *loaded = self
            .change("remove labels", |manifest| {
                removed = labels::remove_expired(manifest, now);
                Ok(())
            })
            .await?;
        report.labels = removed;
        Ok(())
    }

    /// Writes an image at the horizon, if the base is too old.
    async fn apply_image(
        &self,
        loaded: &mut Loaded,
        now: Timestamp,
        report: &mut RetentionReport,
    ) -> Result<(), Error> {
        let (_, plan) = self.plan(&loaded.manifest, now).await?;
        let Some(txid) = plan.image_at else {
            return Ok(());
        };
        let entry = image::write_at(self.core, loaded, txid).await?;
        *loaded = self
            .change("list an image", |manifest| {
                manifest.add_image(entry);
                Ok(())
            })
            .await?;
        report.image_at = Some(txid);
        Ok(())
    }

    /// Writes index objects anew without what expired in them; the old ones are marked.
    async fn apply_splits(
        &self,
        loaded: &mut Loaded,
        now: Timestamp,
        latest: Timestamp,
    ) -> Result<(), Error> {
        let (catalog, plan) = self.plan(&loaded.manifest, now).await?;
        let keep = plan::keep(&catalog, plan.horizon);
        for entry in plan.split {
            let Some(node) = catalog.nodes.iter().find(|node| node.entry == entry) else {
                continue;
            };
            let mut images = Vec::new();
            let kept = self.without_expired(node, &keep, &mut images).await?;
            let pins = catalog.manifest.pins.clone();
            let changed = self
                .change("replace an index object", |manifest| {
                    let at = manifest.index.iter().position(|known| *known == entry);
                    let Some(at) = at.filter(|_| manifest.pins == pins) else {
                        return Err(moved());
                    };
                    manifest.horizon = manifest.horizon.max(plan.horizon);
                    manifest.index.splice(at..=at, kept);
                    manifest.marked.push(Marked::index(&entry, latest));
                    for image in &images {
                        manifest.add_image(*image);
                    }
                    Ok(())
                })
                .await;
            match changed {
                Ok(changed) => *loaded = changed,
                // The new index object is garbage then; the next look tries again.
                Err(error) if error.code() == Code::DatabaseMoved => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Stores what is kept of an index object; images go to the root. `None` if nothing else is kept.
    async fn without_expired(
        &self,
        node: &Node,
        keep: &Keep,
        images: &mut Vec<ImageEntry>,
    ) -> Result<Option<IndexEntry>, Error> {
        images.extend(node.images.iter().filter(|entry| keep.image(entry)));
        let mut children = Vec::new();
        for child in &node.children {
            if keep.whole(child) {
                children.push(child.entry);
            } else {
                let kept = Box::pin(self.without_expired(child, keep, images)).await?;
                children.extend(kept);
            }
        }
        let segments = node.segments.iter().filter(|entry| keep.segment(entry));
        let object = IndexObject {
            children,
            images: Vec::new(),
            segments: segments.copied().collect(),
        };
        let Some(run) = object.run() else {
            return Ok(None);
        };
        let level = node.entry.level;
        let stamp = self.core.remote.stamp(self.namespace, self.id)?;
        let finished = object
            .encode(self.namespace, self.id, level, stamp)
            .map_err(|e| Error::internal("write an index object").caused_by(e))?;
        let nonce = self.core.remote.nonces.next();
        let entry = object.entry(run, level, nonce, &finished);
        let key = entry.key(self.namespace, self.id).to_string();
        self.core.remote.create(&key, finished.bytes).await?;
        Ok(Some(entry))
    }

    /// Publishes marks and horizon.
    async fn apply_marks(
        &self,
        loaded: &mut Loaded,
        now: Timestamp,
        latest: Timestamp,
        report: &mut RetentionReport,
    ) -> Result<(), Error> {
        for _ in 0..ATTEMPTS_MAX {
            let (catalog, plan) = self.plan(&loaded.manifest, now).await?;
            let heals = catalog.manifest.marked.iter().any(|mark| mark.at > latest);
            if plan.mark.is_empty() && plan.horizon <= catalog.manifest.horizon && !heals {
                return Ok(());
            }
            let mut marked = Vec::new();
            crash_point!("retention.before_mark");
            let changed = self
                .change("mark what expired", |manifest| {
                    // A pin that came or went since would want another plan.
                    if manifest.pins != catalog.manifest.pins {
                        return Err(moved());
                    }
                    manifest.horizon = manifest.horizon.max(plan.horizon);
                    for mark in &mut manifest.marked {
                        // Written under a clock that ran ahead.
                        mark.at = mark.at.min(latest);
                    }
                    let wanted = plan.mark.iter();
                    marked = wanted
                        .filter(|mark| unlist(manifest, mark))
                        .copied()
                        .collect();
                    let dated = marked.iter().map(|mark| Marked {
                        at: latest,
                        ..*mark
                    });
                    manifest.marked.extend(dated);
                    Ok(())
                })
                .await;
            match changed {
                Ok(changed) => {
                    crash_point!("retention.after_mark");
                    *loaded = changed;
                    report.marked = marked.iter().map(|mark| self.gone(mark)).collect();
                    return Ok(());
                }
                Err(error) if error.code() == Code::DatabaseMoved => {
                    let remote = &self.core.remote;
                    *loaded = remote.owned_manifest(self.namespace, self.id).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes what was marked long enough ago, then its marks. What the store refuses to delete keeps its mark.
    async fn apply_sweep(
        &self,
        loaded: &mut Loaded,
        now: Timestamp,
        report: &mut RetentionReport,
        refused: &mut Option<Error>,
    ) -> Result<(), Error> {
        let over =
            |mark: &&Marked| mark.at.micros().saturating_add(super::GRACE_MICROS) <= now.micros();
        let due: Vec<Marked> = loaded
            .manifest
            .marked
            .iter()
            .filter(over)
            .copied()
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let of = (self.namespace, self.id);
        let mut swept = HashSet::new();
        for mark in &due {
            crash_point!("retention.before_sweep");
            let mut below = garbage::keys_under(&self.manifests, of, mark).await?;
            if !below.is_empty() {
                // What an index object that was written anew goes on listing is alive.
                let live = self.live(&loaded.manifest, mark, &due).await?;
                below.retain(|key| !live.contains(key));
            }
            if !self.delete(&below, refused).await? {
                continue;
            }
            report
                .deleted
                .extend(below.into_iter().map(|key| ObjectGone { key, bytes: 0 }));
            crash_point!("retention.mid_sweep");
            if self.delete(&[self.key(mark.object)], refused).await? {
                report.deleted.push(self.gone(mark));
                swept.insert(mark.object);
            }
        }
        crash_point!("retention.after_sweep");
        if swept.is_empty() {
            return Ok(());
        }
        *loaded = self
            .change("forget what was deleted", |manifest| {
                manifest.marked.retain(|mark| !swept.contains(&mark.object));
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// The keys that are reachable from index objects which overlap a marked one, and from those whose own
    /// grace is not over.
    async fn live(
        &self,
        manifest: &Manifest,
        mark: &Marked,
        due: &[Marked],
    ) -> Result<HashSet<String>, Error> {
        let DatabaseObject::Index { first, last, .. } = mark.object else {
            return Ok(HashSet::new());
        };
        let overlaps = |entry: &IndexEntry| entry.run.first <= last && first <= entry.run.last;
        let mut live = garbage::keys_below(&self.manifests, manifest, overlaps).await?;
        let of = (self.namespace, self.id);
        for other in manifest.marked.iter().filter(|other| !due.contains(other)) {
            live.extend(garbage::keys_under(&self.manifests, of, other).await?);
        }
        Ok(live)
    }

    /// Deletes the objects at `keys`; `false` if the store does not permit it, of which the first error is noted.
    async fn delete(&self, keys: &[String], refused: &mut Option<Error>) -> Result<bool, Error> {
        let failed = |e| store_error("delete what expired", e);
        match self.core.remote.store.delete_all(keys).await {
            Ok(()) => Ok(true),
            Err(error @ StoreError::Denied { .. }) => {
                refused.get_or_insert_with(|| failed(error));
                Ok(false)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

fn moved() -> Error {
    Error::new(Code::DatabaseMoved, "the manifest changed under a plan")
}

/// Takes a marked object off the root's lists; `false` if it does not stand there (any more).
fn unlist(manifest: &mut Manifest, mark: &Marked) -> bool {
    let at = Timestamp::ZERO;
    let before = manifest.segments.len() + manifest.images.len() + manifest.index.len();
    let object = mark.object;
    manifest
        .segments
        .retain(|entry| Marked::segment(entry, at).object != object);
    manifest
        .images
        .retain(|entry| Marked::image(entry, at).object != object);
    manifest
        .index
        .retain(|entry| Marked::index(entry, at).object != object);
    manifest.segments.len() + manifest.images.len() + manifest.index.len() < before
}
