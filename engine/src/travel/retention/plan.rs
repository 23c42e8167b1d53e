//! What is to be kept, and what goes: a pure function of a catalog and a time.
//!
//! The *horizon* is the newest commit at or before now less the window at which an object ends; every state from
//! it on is promised. The *base* is the newest image at or before the horizon: what lies wholly before it is
//! needed by protectors alone. A protector is a Position below the base that a pin keeps: the cheapest path to
//! it, forward from an image at or before it or backward from one behind it, is kept whole, the record of its own
//! commit with it (I5).

use std::collections::BTreeSet;

use tidelog_archive::manifest::{ImageEntry, IndexEntry, Manifest, Marked, SegmentEntry};
use tidelog_wal::{Timestamp, TxId};

use super::catalog::{Catalog, Node};
use super::{BASE_SHARE, GRACE_MICROS, MARKS_MAX};

/// The earliest time that a database is looked at again, after the last look.
const PAUSE_MICROS: u64 = 3600 * 1_000_000;

/// What one look at a database finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RetentionPlan {
    /// States before it expire.
    pub(crate) horizon: TxId,
    /// The state that an image is to be written of, so that more can go.
    pub(crate) image_at: Option<TxId>,
    /// What is marked, oldest first.
    pub(crate) mark: Vec<Marked>,
    /// Index objects to be written anew without what expired in them.
    pub(crate) split: Vec<IndexEntry>,
    /// Marked objects whose grace is over.
    pub(crate) sweep: Vec<Marked>,
    /// Labels whose own time is over.
    pub(crate) labels: Vec<String>,
    /// A pinned Position that nothing stored leads to: nothing is marked then.
    pub(crate) broken: Option<TxId>,
}

impl RetentionPlan {
    /// Whether anything is to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.mark.is_empty()
            && self.sweep.is_empty()
            && self.split.is_empty()
            && self.labels.is_empty()
            && self.image_at.is_none()
    }
}

/// Which objects of a catalog are needed.
#[derive(Debug)]
pub(crate) struct Keep {
    /// Everything behind it is kept.
    base: TxId,
    /// Runs of records below the base that are kept: behind the first, up to the second.
    islands: Vec<(TxId, TxId)>,
    /// Images below the base that are kept.
    images: BTreeSet<TxId>,
    broken: Option<TxId>,
}

impl Keep {
    pub(crate) fn segment(&self, entry: &SegmentEntry) -> bool {
        let run = &entry.run;
        let inside = |(from, to): &(TxId, TxId)| run.last > *from && run.first <= *to;
        run.last > self.base || self.islands.iter().any(inside)
    }

    pub(crate) fn image(&self, entry: &ImageEntry) -> bool {
        let txid = entry.position.txid;
        txid >= self.base || self.images.contains(&txid)
    }

    /// A pinned Position that nothing leads to.
    pub(crate) const fn broken(&self) -> Option<TxId> {
        self.broken
    }

    /// Whether everything below an index object is needed.
    pub(crate) fn whole(&self, node: &Node) -> bool {
        let (mut one, mut other) = (true, true);
        node.visit(&mut |entry| one &= self.segment(entry), &mut |entry| {
            other &= self.image(entry);
        });
        one && other
    }

    /// Whether anything below an index object is needed.
    fn node(&self, node: &Node) -> bool {
        let (mut one, mut other) = (false, false);
        node.visit(&mut |entry| one |= self.segment(entry), &mut |entry| {
            other |= self.image(entry);
        });
        one || other
    }
}

/// A state that a path may begin with, and what keeping it costs.
#[derive(Clone, Copy)]
struct Start {
    txid: TxId,
    cost: u64,
    image: bool,
}

/// What `manifest` keeps when everything from `horizon` on is promised.
pub(crate) fn keep(catalog: &Catalog, horizon: TxId) -> Keep {
    let (segments, images) = catalog.entries();
    let manifest = &catalog.manifest;
    let newest = images.iter().rev().find(|e| e.position.txid <= horizon);
    let mut keep = Keep {
        base: newest.map_or(TxId::ZERO, |image| image.position.txid),
        islands: Vec::new(),
        images: BTreeSet::new(),
        broken: None,
    };
    let own = manifest.parent.map_or(TxId::ZERO, |parent| parent.at.txid);
    let mut protectors: Vec<TxId> = manifest.pins.iter().map(|pin| pin.position.txid).collect();
    protectors.retain(|txid| *txid < keep.base && *txid > own);
    protectors.sort_unstable();
    protectors.dedup();
    for txid in protectors {
        let starts = images.iter().map(|image| {
            let txid = image.position.txid;
            let cost = if keep.image(image) { 0 } else { image.len };
            Start {
                txid,
                cost,
                image: true,
            }
        });
        // The empty state, or that of the parent: there without cost.
        let free = Start {
            txid: own,
            cost: 0,
            image: false,
        };
        // Backward, too, the record of the state itself is kept: it says what has to come out, and without it the
        // bookmark names nothing.
        let first = |start: TxId| match txid.prev() {
            Some(before) if start > txid => before,
            _ => txid,
        };
        let paths = starts.chain([free]).filter_map(|start| {
            let cost = between(&segments, &keep, manifest, start.txid, first(start.txid))?;
            Some((cost.saturating_add(start.cost), start))
        });
        match paths.min_by_key(|(cost, _)| *cost) {
            Some((_, start)) => {
                if start.image {
                    keep.images.insert(start.txid);
                }
                let low = start.txid.min(first(start.txid));
                keep.islands.push((low, start.txid.max(txid)));
            }
            None => {
                keep.broken = Some(txid);
                keep.base = TxId::ZERO;
                break;
            }
        }
    }
    keep
}

/// The bytes that would be kept for a path between two states and are not kept otherwise; `None` if there is
/// no path.
fn between(
    segments: &[SegmentEntry],
    keep: &Keep,
    manifest: &Manifest,
    a: TxId,
    b: TxId,
) -> Option<u64> {
    let (low, high) = (a.min(b), a.max(b));
    let crossed = |gap: &tidelog_archive::manifest::Gap| low < gap.resumes && high > gap.after;
    if low != high && manifest.gaps.iter().any(crossed) {
        return None;
    }
    let (mut at, mut cost) = (low, 0_u64);
    let from = segments.partition_point(|entry| entry.run.last <= low);
    for entry in segments.get(from..).unwrap_or_default() {
        if at >= high {
            break;
        }
        if entry.run.first > at.next() {
            return None;
        }
        if !keep.segment(entry) {
            cost = cost.saturating_add(entry.len);
        }
        at = entry.run.last;
    }
    (at >= high).then_some(cost)
}

/// What is to be done at `now`, if `horizon` is what time and store agree on.
pub(crate) fn plan(catalog: &Catalog, now: Timestamp, horizon: TxId) -> RetentionPlan {
    let manifest = &catalog.manifest;
    let horizon = horizon.max(manifest.horizon);
    let mut plan = RetentionPlan {
        horizon,
        ..RetentionPlan::default()
    };
    let over = |at: Timestamp| at.micros().saturating_add(GRACE_MICROS) <= now.micros();
    plan.sweep = manifest
        .marked
        .iter()
        .filter(|m| over(m.at))
        .copied()
        .collect();
    let gone = |expires: Option<Timestamp>| expires.is_some_and(|at| at <= now);
    let labels = manifest.labels.iter().filter(|label| gone(label.expires));
    plan.labels = labels.map(|label| label.name.clone()).collect();
    let keep = keep(catalog, horizon);
    plan.broken = keep.broken;
    let own = manifest.parent.map_or(TxId::ZERO, |parent| parent.at.txid);
    let overdue = overdue_before(manifest, now);
    if horizon > keep.base.max(own) && base_time(catalog, keep.base) < overdue {
        plan.image_at = Some(horizon);
    }
    mark(catalog, &keep, now, &mut plan);
    plan
}

/// What ended before it should be gone by now: the horizon by time, less the share of the window.
fn overdue_before(manifest: &Manifest, now: Timestamp) -> Timestamp {
    let window = manifest.retention_micros;
    let late = window.saturating_add(window / BASE_SHARE);
    Timestamp::from_micros(now.micros().saturating_sub(late))
}

/// The time of the base; where there is none, of the beginning.
fn base_time(catalog: &Catalog, base: TxId) -> Timestamp {
    let (segments, images) = catalog.entries();
    let image = images.iter().find(|image| image.position.txid == base);
    let first = segments.first().map(|entry| entry.run.first_time);
    let begun = first.unwrap_or(catalog.manifest.created);
    image.map_or(begun, |image| image.time)
}

/// Marks what is not kept, as much as a manifest may carry.
fn mark(catalog: &Catalog, keep: &Keep, now: Timestamp, plan: &mut RetentionPlan) {
    let manifest = &catalog.manifest;
    let room = MARKS_MAX.saturating_sub(manifest.marked.len());
    let overdue = overdue_before(manifest, now);
    for node in &catalog.nodes {
        if !keep.node(node) {
            plan.mark.push(Marked::index(&node.entry, now));
        } else if has_overdue(node, keep, overdue) {
            plan.split.push(node.entry);
        }
    }
    let segments = manifest
        .segments
        .iter()
        .filter(|entry| !keep.segment(entry));
    plan.mark
        .extend(segments.map(|entry| Marked::segment(entry, now)));
    let images = manifest.images.iter().filter(|entry| !keep.image(entry));
    plan.mark
        .extend(images.map(|entry| Marked::image(entry, now)));
    plan.mark.truncate(room);
    plan.split.truncate(room.saturating_sub(plan.mark.len()));
}

/// Whether an index object that is needed holds what should be gone by now.
fn has_overdue(node: &Node, keep: &Keep, overdue: Timestamp) -> bool {
    let (mut one, mut other) = (false, false);
    node.visit(
        &mut |entry| one |= !keep.segment(entry) && entry.run.first_time < overdue,
        &mut |entry| other |= !keep.image(entry) && entry.time < overdue,
    );
    one || other
}

/// The time of the first commit behind `base`, or of one a little before it.
fn first_behind(catalog: &Catalog, base: TxId) -> Timestamp {
    let (segments, _) = catalog.entries();
    let known = segments.iter().find(|entry| entry.run.last > base);
    let unread = catalog.manifest.index.get(catalog.nodes.len());
    let known = known.map(|entry| entry.run.last_time);
    known
        .or(unread.map(|entry| entry.run.first_time))
        .unwrap_or(Timestamp::ZERO)
}

/// When the database is to be looked at again; `None` if nothing of it will ever expire as it stands.
pub(crate) fn next_look(catalog: &Catalog, now: Timestamp) -> Option<Timestamp> {
    let manifest = &catalog.manifest;
    let window = manifest.retention_micros;
    let mut due: Option<u64> = None;
    let mut note = |at: u64| due = Some(due.map_or(at, |known| known.min(at)));
    for marked in &manifest.marked {
        note(marked.at.micros().saturating_add(GRACE_MICROS));
    }
    for expires in manifest.labels.iter().filter_map(|label| label.expires) {
        note(expires.micros());
    }
    let (_, images) = catalog.entries();
    let base = keep(catalog, manifest.horizon).base;
    let own = manifest.parent.map_or(TxId::ZERO, |parent| parent.at.txid);
    let settled = manifest
        .settled
        .map_or(TxId::ZERO, |settled| settled.position.txid);
    if settled > base.max(own) {
        // An image is wanted once the base is too old and a commit behind it has expired.
        let written = base_time(catalog, base).micros();
        let late = window.saturating_add(window / BASE_SHARE);
        let behind = first_behind(catalog, base.max(own)).micros();
        note((written.saturating_add(late)).max(behind.saturating_add(window)));
        let later = images.iter().filter(|image| image.position.txid > base);
        if let Some(image) = later.min_by_key(|image| image.time) {
            note(image.time.micros().saturating_add(window));
        }
    }
    let soonest = now.micros().saturating_add(PAUSE_MICROS);
    due.map(|at| Timestamp::from_micros(at.max(soonest)))
}
