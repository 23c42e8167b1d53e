//! The plan against an oracle that knows nothing of it: after every round, every promised and every pinned
//! state is reachable over what is still listed (I5), and what nothing needs is gone.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tidelog_archive::index::IndexObject;
use tidelog_archive::key::KeyNonce;
use tidelog_archive::manifest::{
    ImageEntry, IndexEntry, Label, Manifest, Marked, Owner, Pin, SegmentEntry, State,
};
use tidelog_archive::records::Run;
use tidelog_wal::{
    Chain, DatabaseId, Digest, DigestSeed, NamespaceId, NodeId, PageCount, PageSize, Position,
    Term, Timestamp, TxId,
};

use super::catalog::{Catalog, Node};
use super::plan::{Keep, keep, next_look, plan};
use super::{DAY_MICROS, GRACE_MICROS, MARKS_MAX};

const WINDOW_DAYS: u64 = 10;
const TERM: Term = Term::new(1);

fn day(day: u64) -> Timestamp {
    Timestamp::from_micros((100 + day) * DAY_MICROS)
}

fn chain(txid: TxId) -> Chain {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&txid.get().to_be_bytes());
    Chain::from_bytes(bytes)
}

fn position(txid: TxId) -> Position {
    Position {
        term: TERM,
        txid,
        chain: chain(txid),
    }
}

/// A manifest that lists nothing.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        namespace: NamespaceId::from_bytes([1; 16]),
        database: DatabaseId::from_bytes([2; 16]),
        version: 1,
        owner: Owner {
            term: TERM,
            node: NodeId::from_bytes([3; 16]),
        },
        state: State::Active(day(0)),
        name_hint: "orders".to_owned(),
        page_size: PageSize::DEFAULT,
        seed: DigestSeed::new(1),
        created: day(0),
        retention_micros: WINDOW_DAYS * DAY_MICROS,
        horizon: TxId::ZERO,
        key_ids: Vec::new(),
        parent: None,
        settled: None,
        terms: Vec::new(),
        labels: Vec::new(),
        pins: Vec::new(),
        gaps: Vec::new(),
        index: Vec::new(),
        images: Vec::new(),
        segments: Vec::new(),
        marked: Vec::new(),
    }
}

/// A database whose objects are entries alone.
struct World {
    catalog: Catalog,
    next: u64,
    counter: u64,
    /// Times of commits, by TxId less one.
    times: Vec<Timestamp>,
}

impl World {
    fn new() -> Self {
        Self {
            catalog: Catalog {
                manifest: manifest(),
                nodes: Vec::new(),
            },
            next: 1,
            counter: 0,
            times: Vec::new(),
        }
    }

    fn nonce(&mut self) -> KeyNonce {
        self.counter += 1;
        KeyNonce {
            term: TERM,
            counter: self.counter,
        }
    }

    fn check(&self, before: &Manifest) {
        self.catalog.manifest.check_self().expect("sound");
        let mut next = self.catalog.manifest.clone();
        next.version = before.version + 1;
        next.check_follows(before).expect("it follows");
    }

    fn segment(&mut self, commits: u64, at: Timestamp, len: u64) {
        let (first, last) = (TxId::new(self.next), TxId::new(self.next + commits - 1));
        self.next += commits;
        self.times.extend((0..commits).map(|_| at));
        let entry = SegmentEntry {
            run: Run {
                first,
                last,
                first_term: TERM,
                last_term: TERM,
                first_time: at,
                last_time: at,
                chain_before: chain(TxId::new(first.get() - 1)),
                chain_after: chain(last),
                digest_after: Digest::from_u64(last.get()),
                n_before: PageCount::new(1),
                n_after: PageCount::new(1),
            },
            nonce: self.nonce(),
            len,
            blake3: [0; 32],
        };
        self.catalog.manifest.append_segment(entry);
    }

    fn image(&mut self, txid: TxId, len: u64) {
        let nonce = self.nonce();
        let at = usize::try_from(txid.get() - 1).expect("small");
        self.catalog.manifest.add_image(ImageEntry {
            position: position(txid),
            time: self.times[at],
            n: PageCount::new(1),
            digest: Digest::from_u64(txid.get()),
            nonce,
            len,
            blake3: [0; 32],
        });
    }

    fn pin(&mut self, number: u8, txid: TxId) {
        self.catalog.manifest.pins.push(Pin {
            id: [number; 16],
            position: position(txid),
            created: day(0),
            child: None,
        });
    }

    fn entry_of(&mut self, level: u8, object: &IndexObject) -> Option<IndexEntry> {
        let run = object.run()?;
        let (segments, images, bytes) = object.totals();
        Some(IndexEntry {
            level,
            run,
            segments,
            images,
            bytes,
            nonce: self.nonce(),
            len: 1,
            blake3: [0; 32],
        })
    }

    /// Moves the `count` oldest segments of the root, and the images in them, into an index object.
    fn fold(&mut self, count: usize) {
        let manifest = &mut self.catalog.manifest;
        let segments: Vec<_> = manifest.segments.drain(..count).collect();
        let last = segments.last().expect("some").run.last;
        let split = manifest.images.partition_point(|i| i.position.txid <= last);
        let images: Vec<_> = manifest.images.drain(..split).collect();
        let object = IndexObject {
            children: Vec::new(),
            images: images.clone(),
            segments: segments.clone(),
        };
        let entry = self.entry_of(0, &object).expect("segments");
        self.catalog.manifest.index.push(entry);
        self.catalog.nodes.push(Node {
            entry,
            images,
            segments,
            children: Vec::new(),
        });
    }

    /// Moves all index objects into one of the next level.
    fn fold_index(&mut self) {
        let children = std::mem::take(&mut self.catalog.nodes);
        let object = IndexObject {
            children: children.iter().map(|node| node.entry).collect(),
            images: Vec::new(),
            segments: Vec::new(),
        };
        let level = children
            .iter()
            .map(|node| node.entry.level)
            .max()
            .unwrap_or(0)
            + 1;
        let entry = self.entry_of(level, &object).expect("children");
        self.catalog.manifest.index = vec![entry];
        self.catalog.nodes = vec![Node {
            entry,
            images: Vec::new(),
            segments: Vec::new(),
            children,
        }];
    }

    /// What [`super::run`] does to an index object, without a store.
    fn without_expired(
        &mut self,
        node: &Node,
        keep: &Keep,
        images: &mut Vec<ImageEntry>,
    ) -> Option<Node> {
        images.extend(node.images.iter().filter(|entry| keep.image(entry)));
        let mut children = Vec::new();
        for child in &node.children {
            if keep.whole(child) {
                children.push(child.clone());
            } else {
                children.extend(self.without_expired(child, keep, images));
            }
        }
        let segments = node.segments.iter().filter(|entry| keep.segment(entry));
        let segments: Vec<_> = segments.copied().collect();
        let object = IndexObject {
            children: children.iter().map(|child| child.entry).collect(),
            images: Vec::new(),
            segments: segments.clone(),
        };
        let entry = self.entry_of(node.entry.level, &object)?;
        Some(Node {
            entry,
            images: Vec::new(),
            segments,
            children,
        })
    }

    /// One look at `now`; answers what was marked.
    fn look(&mut self, now: Timestamp) -> usize {
        let cutoff = now.micros() - WINDOW_DAYS * DAY_MICROS;
        let horizon = self.catalog.end_before(Timestamp::from_micros(cutoff));
        let found = plan(&self.catalog, now, horizon);
        assert_eq!(found.broken, None);
        if let Some(txid) = found.image_at {
            assert!(self.reaches(txid), "an image of {txid}");
            self.image(txid, 10);
        }
        let found = plan(&self.catalog, now, horizon);
        let kept = keep(&self.catalog, found.horizon);
        for entry in &found.split {
            let before = self.catalog.manifest.clone();
            let nodes = self.catalog.nodes.clone();
            let at = nodes.iter().position(|node| node.entry == *entry);
            let at = at.expect("it is listed");
            let mut images = Vec::new();
            let new = self.without_expired(&nodes[at], &kept, &mut images);
            let entries = new.iter().map(|node| node.entry);
            self.catalog.manifest.index.splice(at..=at, entries);
            self.catalog.nodes.splice(at..=at, new);
            for image in images {
                self.catalog.manifest.add_image(image);
            }
            self.catalog.manifest.horizon = found.horizon;
            self.catalog.manifest.marked.push(Marked::index(entry, now));
            self.check(&before);
        }
        let before = self.catalog.manifest.clone();
        let found = plan(&self.catalog, now, horizon);
        let manifest = &mut self.catalog.manifest;
        manifest.horizon = found.horizon;
        manifest.marked.retain(|mark| !found.sweep.contains(mark));
        for mark in &found.mark {
            let object = mark.object;
            manifest
                .segments
                .retain(|e| Marked::segment(e, now).object != object);
            manifest
                .images
                .retain(|e| Marked::image(e, now).object != object);
            manifest
                .index
                .retain(|e| Marked::index(e, now).object != object);
            self.catalog
                .nodes
                .retain(|node| Marked::index(&node.entry, now).object != object);
            manifest.marked.push(*mark);
        }
        assert!(manifest.marked.len() <= MARKS_MAX);
        self.check(&before);
        found.mark.len() + found.split.len()
    }

    /// Whether listed objects lead to a state, and tell which one it is: its own record, or an image of it.
    fn reaches(&self, txid: TxId) -> bool {
        let (segments, images) = self.catalog.entries();
        let told = segments.iter().any(|entry| entry.run.contains(txid))
            || images.iter().any(|image| image.position.txid == txid);
        if !told {
            return false;
        }
        let covered = |low: TxId, high: TxId| {
            let mut at = low;
            for entry in &segments {
                if entry.run.first <= at.next() && entry.run.last > at {
                    at = entry.run.last;
                }
            }
            low == high || at >= high
        };
        let mut starts: Vec<TxId> = images.iter().map(|image| image.position.txid).collect();
        starts.push(TxId::ZERO);
        starts
            .iter()
            .any(|start| covered((*start).min(txid), (*start).max(txid)))
    }

    /// Every state that is promised at `now` can be reached.
    fn prove(&self, now: Timestamp) {
        let manifest = &self.catalog.manifest;
        let cutoff = Timestamp::from_micros(now.micros() - WINDOW_DAYS * DAY_MICROS);
        let inside = self.times.iter().filter(|time| **time > cutoff).count();
        let outside = (self.times.len() - inside) as u64;
        assert!(
            manifest.horizon.get() <= outside.max(1),
            "the horizon never cuts into the window"
        );
        for txid in manifest.horizon.get().max(1)..self.next {
            assert!(self.reaches(TxId::new(txid)), "{txid} is promised");
        }
        for pin in &manifest.pins {
            assert!(
                self.reaches(pin.position.txid),
                "{} is pinned",
                pin.position.txid
            );
        }
    }

    fn objects(&self) -> usize {
        let (segments, images) = self.catalog.entries();
        segments.len() + images.len()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// I5 over random histories of forty days with pins that come and go, images, folds of two levels.
    #[test]
    fn nothing_that_is_promised_or_pinned_is_ever_marked(seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        let mut pins = 0_u8;
        for today in 0..40 {
            for _ in 0..rng.random_range(0..4_u32) {
                let (commits, len) = (rng.random_range(1..5), rng.random_range(1..100));
                world.segment(commits, day(today), len);
                if rng.random_ratio(1, 6) {
                    world.image(TxId::new(world.next - 1), rng.random_range(1..200));
                }
            }
            let manifest = &world.catalog.manifest;
            let newest = world.next - 1;
            let from = manifest.horizon.get().max(1);
            if from <= newest && rng.random_ratio(1, 5) {
                let txid = TxId::new(rng.random_range(from..=newest));
                pins += 1;
                world.pin(pins, txid);
            }
            if rng.random_ratio(1, 8) && !world.catalog.manifest.pins.is_empty() {
                let at = rng.random_range(0..world.catalog.manifest.pins.len());
                world.catalog.manifest.pins.remove(at);
            }
            let listed = world.catalog.manifest.segments.len();
            if listed > 4 && rng.random_ratio(1, 5) {
                world.fold(rng.random_range(1..listed));
            }
            if world.catalog.nodes.len() > 2
                && rng.random_ratio(1, 6)
                && world.catalog.nodes.iter().all(|node| node.entry.level < 3)
            {
                world.fold_index();
            }
            world.look(day(today));
            world.prove(day(today));
        }
        // A year of silence later only the newest state and what is pinned is left.
        for later in [400, 402, 404, 406] {
            world.look(day(later));
            world.prove(day(later));
        }
        if world.next > 1 && world.catalog.manifest.pins.is_empty() {
            prop_assert_eq!(world.objects(), 1, "one image holds the newest state");
        }
    }
}

#[test]
fn inside_the_window_nothing_goes() {
    let mut world = World::new();
    for today in 0..WINDOW_DAYS {
        world.segment(3, day(today), 10);
        world.image(TxId::new(world.next - 1), 5);
        assert_eq!(world.look(day(today)), 0);
    }
    assert_eq!(world.objects(), 20);
}

#[test]
fn what_is_overdue_goes_within_a_tenth_of_the_window_and_the_grace() {
    let mut world = World::new();
    world.segment(1, day(0), 1000);
    for today in 1..=30 {
        world.segment(1, day(today), 10);
        world.look(day(today));
        world.prove(day(today));
        let (segments, images) = world.catalog.entries();
        let late = WINDOW_DAYS + WINDOW_DAYS / 10 + 1;
        let oldest = segments.iter().map(|e| e.run.first_time);
        let oldest = oldest.chain(images.iter().map(|e| e.time)).min();
        assert!(
            oldest >= Some(day(today.saturating_sub(late))),
            "day {today}: {oldest:?}"
        );
    }
}

#[test]
fn a_pin_keeps_the_cheapest_path_forward() {
    for (image_len, kept_image) in [(5, true), (500, false)] {
        let mut world = World::new();
        world.segment(5, day(0), 100);
        world.image(TxId::new(5), image_len);
        world.segment(1, day(0), 10);
        world.pin(1, TxId::new(6));
        world.segment(4, day(1), 20);
        world.image(TxId::new(10), 100);
        world.segment(1, day(30), 10);
        assert!(world.look(day(30)) > 0);
        world.prove(day(30));
        let (segments, images) = world.catalog.entries();
        assert_eq!(images.len(), if kept_image { 2 } else { 1 });
        // From the image over one commit, or from nothing over all six; never backward from the image behind it.
        let kept: Vec<u64> = segments.iter().map(|e| e.run.first.get()).collect();
        let expected = if kept_image {
            vec![6, 11]
        } else {
            vec![1, 6, 11]
        };
        assert_eq!(kept, expected);
    }
}

#[test]
fn marks_are_swept_after_the_grace_and_labels_go_at_their_time() {
    let mut world = World::new();
    world.segment(1, day(0), 10);
    world.segment(1, day(1), 10);
    world.image(TxId::new(2), 10);
    world.segment(1, day(20), 10);
    world.catalog.manifest.labels.push(Label {
        name: "a".to_owned(),
        note: String::new(),
        position: position(TxId::new(3)),
        time: day(20),
        created: day(20),
        expires: Some(day(21)),
    });
    let now = day(20);
    assert_eq!(world.look(now), 2);
    let early = Timestamp::from_micros(now.micros() + GRACE_MICROS - 1);
    let early = plan(&world.catalog, early, TxId::new(2));
    assert!(early.sweep.is_empty() && early.labels.is_empty());
    let late = plan(&world.catalog, day(21), TxId::new(2));
    assert_eq!((late.sweep.len(), late.labels), (2, vec!["a".to_owned()]));
    assert_eq!(next_look(&world.catalog, now), Some(day(21)));
}

#[test]
fn a_database_that_owes_nothing_is_not_looked_at() {
    let mut world = World::new();
    assert_eq!(next_look(&world.catalog, day(0)), None);
    world.segment(1, day(0), 10);
    let due = next_look(&world.catalog, day(0)).expect("it will expire");
    assert_eq!(due, day(WINDOW_DAYS + WINDOW_DAYS / 10));
    world.look(Timestamp::from_micros(due.micros() + 1));
    assert!(next_look(&world.catalog, due) > Some(due), "one more look");
    world.look(day(50));
    world.look(day(60));
    assert_eq!(next_look(&world.catalog, day(60)), None);
}
