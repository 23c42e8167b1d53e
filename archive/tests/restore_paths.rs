//! Promises of plans and restores: every state, over every kind of path, byte for byte.

mod format_support;

use format_support::world::{World, file};
use format_support::{Dice, History, NAMESPACE, SEED};
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::WriteId;
use tidelog_archive::key::{Key, KeyNonce};
use tidelog_archive::manifest::{ImageEntry, Marked, Pin};
use tidelog_archive::plan::{Direction, Start, Target, Terms};
use tidelog_archive::restore::{
    FileSink, MemorySink, PageSink, RestoreError, RestoreSettings, execute,
};
use tidelog_archive::segment::SegmentWriter;
use tidelog_wal::block::Compressor;
use tidelog_wal::record::{ObjectRef, RecordBody};
use tidelog_wal::{Chain, PageSize, Position, Term, Timestamp, TxId, chain};

fn history(seed: u64, commits: usize) -> History {
    History::random(512, commits, &mut Dice(seed))
}

#[tokio::test]
async fn every_commit_restores_from_settled_and_unsettled_history() {
    for seed in 0..6 {
        let mut world = World::new(history(seed, 60));
        for first in (1..=40).step_by(8) {
            world.settle(first, first + 7).await;
        }
        world.image(17).await;
        world.image(32).await;
        // Sections overlap what is settled, and each other, as after a crash.
        world.ship(1, 37, 44).await;
        world.ship(2, 45, 50).await;
        world.ship(3, 45, 60).await;
        for txid in 1..=60 {
            let plan = world
                .plan(Target::TxId(TxId::new(txid)), None)
                .await
                .expect("plan");
            world.check(&plan, None).await;
        }
    }
}

#[tokio::test]
async fn the_cheapest_start_is_taken_in_either_direction() {
    let mut world = World::new(history(3, 40));
    for first in (1..=40).step_by(4) {
        world.settle(first, first + 3).await;
    }
    world.image(40).await;
    let plan = world
        .plan(Target::TxId(TxId::new(39)), None)
        .await
        .expect("plan");
    assert_eq!(plan.direction, Direction::Backward, "{plan}");
    assert_eq!(plan.commits(), 1);
    world.check(&plan, None).await;
    let plan = world
        .plan(Target::TxId(TxId::new(1)), None)
        .await
        .expect("plan");
    assert_eq!(plan.start, Start::Empty, "{plan}");
    world.check(&plan, None).await;
    // A file at hand costs nothing to begin with.
    for (at, target) in [(30, 33), (30, 22), (25, 25)] {
        let commit = world.history.at(at).clone();
        let target = Target::TxId(TxId::new(target));
        let plan = world
            .plan(target, Some(commit.position))
            .await
            .expect("plan");
        assert_eq!(plan.start, Start::Base(commit.position), "{plan}");
        let base = MemorySink {
            bytes: file(at, &commit.pages),
        };
        world.check(&plan, Some(base)).await;
    }
}

/// Retention leaves islands: images whose neighbouring records are gone. A smaller image behind a hole leads nowhere.
#[tokio::test]
async fn an_image_behind_a_hole_is_no_start() {
    let mut world = World::new(history(4, 30));
    for (first, last) in [(1, 6), (7, 8), (9, 30)] {
        world.settle(first, last).await;
    }
    world.image(6).await;
    world.image(8).await;
    world.manifest.images[1].len = 1;
    for gone in world.manifest.segments.drain(..2).collect::<Vec<_>>() {
        let marked = Marked::segment(&gone, Timestamp::ZERO);
        world.manifest.marked.push(marked);
    }
    world.manifest.horizon = TxId::new(8);
    world.manifest.pins.push(Pin {
        id: [1; 16],
        position: world.history.at(6).position,
        created: Timestamp::ZERO,
        child: None,
    });
    let plan = world.plan(Target::TxId(TxId::new(6)), None).await;
    let plan = plan.expect("plan");
    assert_eq!(plan.start.txid(), TxId::new(6), "{plan}");
    world.check(&plan, None).await;
}

#[tokio::test]
async fn history_in_index_objects_is_read_as_far_as_it_is_needed() {
    let mut world = World::new(history(5, 600));
    for txid in 1..=600 {
        world.settle(txid, txid).await;
    }
    for txid in [100, 300, 500] {
        world.image(txid).await;
    }
    world.fold().await;
    assert!(world.manifest.index.len() >= 3);
    for txid in [1, 60, 99, 100, 101, 250, 299, 301, 400, 499, 512, 600] {
        let plan = world
            .plan(Target::TxId(TxId::new(txid)), None)
            .await
            .expect("plan");
        assert!(plan.steps.len() <= 110, "{plan}");
        world.check(&plan, None).await;
        let plan = world
            .plan(Target::Time(world.time(txid)), None)
            .await
            .expect("plan");
        assert_eq!(plan.target.position, world.history.at(txid).position);
    }
}

/// A child of `parent` at `at`, with `commits` commits of its own.
fn fork(parent: &History, at: u64, commits: u64) -> History {
    let commit = parent.at(at).clone();
    let mut child = History {
        database: tidelog_wal::DatabaseId::from_bytes([0xcc; 16]),
        commits: parent.commits[..usize::try_from(at).expect("small")].to_vec(),
        ..parent.clone()
    };
    let mut header = child.next_header(commit.pages.len(), commit.header.digest);
    header.n_before = header.n_after;
    let body = RecordBody::Fork {
        parent: parent.database,
        at: commit.position,
    };
    child.push(header, body, commit.pages);
    let last = child.commits.len() - 1;
    child.commits[last].chain_before = chain::fork(child.database, &commit.position);
    let first = child.commits[last].clone();
    child.commits[last].position.chain = chain::step(first.chain_before, &first.bytes);
    let mut dice = Dice(commits);
    for _ in 0..commits {
        let mut pages = child.state();
        pages.push(dice.bytes(512));
        child.commit(pages);
    }
    child
}

#[tokio::test]
async fn a_fork_restores_its_own_commits_and_those_of_its_parent() {
    let mut parent = World::new(history(7, 30));
    parent.settle(1, 10).await;
    parent.settle(11, 24).await;
    parent.ship(1, 25, 30).await;
    parent.image(10).await;
    for at in [5, 10, 17, 27] {
        let history = fork(&parent.history, at, 9);
        let mut child = World::in_store(parent.store.clone(), history);
        child.manifest.parent = Some(tidelog_archive::manifest::Parent {
            namespace: NAMESPACE,
            database: parent.history.database,
            at: parent.history.at(at).position,
            pin: [1; 16],
        });
        child.manifest.terms[0].first = TxId::new(at + 1);
        child.parents = vec![parent.layer()];
        child.settle(at + 1, at + 6).await;
        child.ship(100 + at, at + 7, at + 10).await;
        for txid in 1..=at + 10 {
            let plan = child
                .plan(Target::TxId(TxId::new(txid)), None)
                .await
                .expect("plan");
            child.check(&plan, None).await;
        }
        for entry in &child.manifest.segments.clone() {
            child
                .store
                .delete(&child.named(entry).key)
                .await
                .expect("delete");
        }
    }
}

/// Nothing of either is settled: their terms stand in the sections alone, the child's later than its parent's.
#[tokio::test]
async fn a_fork_of_a_later_term_finds_the_bookmarks_of_its_parent() {
    let mut parent = World::new(history(8, 12));
    parent.ship(1, 1, 12).await;
    parent.manifest.terms.clear();
    let at = parent.history.at(10).position;
    let term = Term::new(at.term.get() + 1);
    let mut history = parent.history.clone();
    history.term = term;
    let mut child = World::in_store(parent.store.clone(), fork(&history, 10, 4));
    child.manifest.parent = Some(tidelog_archive::manifest::Parent {
        namespace: NAMESPACE,
        database: parent.history.database,
        at,
        pin: [1; 16],
    });
    child.manifest.terms.clear();
    child.parents = vec![parent.layer()];
    child.ship(100, 11, 15).await;
    let terms = Terms {
        highest_claimed: term,
        present: Some(term),
    };
    for txid in 1..=15 {
        let position = child.history.at(txid).position;
        assert_eq!(position.term == term, txid > 10);
        let mut known = child.known();
        let found = known.resolve(&child.store, Target::Position(position), terms);
        assert_eq!(found.await.expect("found").position, position);
    }
}

#[tokio::test]
async fn a_record_in_a_segment_part_is_fetched_through_its_reference() {
    let mut history = history(9, 10);
    let mut pages = history.state();
    pages.extend((0..40).map(|_| vec![9; 512]));
    history.commit(pages);
    let real = history.at(11).clone();
    let ids = (NAMESPACE, history.database);
    let size = history.page_size;
    let mut world = World::new(history.clone());
    let stamp = world.stamp(WriteId([7; 16]));
    let mut writer = SegmentWriter::new(
        ids,
        size,
        SEED,
        real.chain_before,
        stamp,
        Compressor::new(1),
    );
    writer.push(&real.bytes).expect("record");
    let finished = writer.finish().expect("finish").0;
    let txid = real.position.txid;
    let key = Key::segment(NAMESPACE, history.database, txid, txid, KeyNonce::default());
    let object: ObjectRef = finished.object_ref(&key);
    history.commits.pop();
    let chain = real.position.chain;
    let body = RecordBody::Reference { object, chain };
    history.push(real.header.clone(), body, real.pages.clone());
    let mut dice = Dice(2);
    for _ in 0..5 {
        let mut pages = history.state();
        pages[1] = dice.bytes(512);
        history.commit(pages);
    }
    world.history = history;
    world.settle(1, 8).await;
    world.ship(1, 9, 13).await;
    world.ship(2, 14, 16).await;
    world
        .store
        .create(&key.to_string(), finished.bytes)
        .await
        .expect("create");
    for txid in 9..=16 {
        let plan = world
            .plan(Target::TxId(TxId::new(txid)), None)
            .await
            .expect("plan");
        world.check(&plan, None).await;
    }
    world.store.delete(&key.to_string()).await.expect("delete");
    let plan = world
        .plan(Target::TxId(TxId::new(12)), None)
        .await
        .expect("plan");
    let error = world
        .restore(&plan, MemorySink::default())
        .await
        .expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_import_restores_through_its_image_record() {
    let mut history = History::new(512);
    let mut dice = Dice(1);
    let pages: Vec<Vec<u8>> = (0..20).map(|_| dice.bytes(512)).collect();
    history.commit(pages);
    let mut world = World::new(history);
    // The image comes before the record that names its bytes, so it cannot know that record's chain.
    let unchained = Position {
        chain: Chain::default(),
        ..world.history.at(1).position
    };
    let image = world.write_image_at(1, unchained).await;
    let object = image.object(NAMESPACE, world.history.database);
    let header = world.history.at(1).header.clone();
    let pages = world.history.state();
    world.history.commits.clear();
    world.history.push(header, RecordBody::Image(object), pages);
    for _ in 0..5 {
        let mut pages = world.history.state();
        pages[3] = dice.bytes(512);
        world.history.commit(pages);
    }
    world.ship(1, 1, 6).await;
    for txid in 1..=6 {
        let target = Target::TxId(TxId::new(txid));
        let plan = world.plan(target, None).await.expect("plan");
        world.check(&plan, None).await;
    }
    // Settled, the image is listed at the record's Position, and serves as any other.
    world.tail.clear();
    world.settle(1, 6).await;
    world.manifest.add_image(ImageEntry {
        position: world.history.at(1).position,
        ..image
    });
    let target = Target::TxId(TxId::FIRST);
    let plan = world.plan(target, None).await.expect("plan");
    world.check(&plan, None).await;
}

/// A section says by itself how large its pages are. One that says so of another database's is refused by its object's
/// name, before a delta of it is applied to a page that is shorter.
#[tokio::test]
async fn a_section_of_other_pages_is_refused_by_name() {
    let mut world = World::new(History::random(1024, 10, &mut Dice(17)));
    world.ship(1, 1, 10).await;
    let mut plan = world.plan(Target::Head, None).await.expect("plan");
    let key = plan.steps[0].piece.source.key().to_owned();
    plan.page_size = PageSize::new(512).expect("512");
    let settings = RestoreSettings::default();
    let refused = execute(&world.store, &plan, MemorySink::default(), settings).await;
    let refused = refused.expect_err("other pages");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    let RestoreError::Read(read) = refused else {
        panic!("{refused:?}");
    };
    assert!(format!("{read:?}").contains(&key), "{read:?}");
}

/// What an image record replaced whole counts no more, though the plan starts with an image of it.
#[tokio::test]
async fn an_image_record_takes_the_place_of_the_image_before_it() {
    let mut world = World::new(history(15, 60));
    for first in (1..=60).step_by(5) {
        world.settle(first, first + 4).await;
    }
    world.image(60).await;
    let mut dice = Dice(2);
    let pages: Vec<Vec<u8>> = (0..20).map(|_| dice.bytes(512)).collect();
    world.history.commit(pages);
    let unchained = Position {
        chain: Chain::default(),
        ..world.history.at(61).position
    };
    let image = world.write_image_at(61, unchained).await;
    let object = image.object(NAMESPACE, world.history.database);
    let replaced = world.history.commits.pop().expect("commit 61");
    let (header, pages) = (replaced.header, replaced.pages);
    world.history.push(header, RecordBody::Image(object), pages);
    for _ in 0..3 {
        let mut pages = world.history.state();
        pages[3] = dice.bytes(512);
        world.history.commit(pages);
    }
    world.ship(1, 61, 64).await;
    for txid in 61..=64 {
        let target = Target::TxId(TxId::new(txid));
        let plan = world.plan(target, None).await.expect("plan");
        assert_eq!(plan.start.txid(), TxId::new(60), "{plan}");
        world.check(&plan, None).await;
    }
}

#[tokio::test]
async fn a_missing_damaged_or_swapped_object_is_a_hard_error_with_its_key() {
    let mut world = World::new(history(11, 20));
    let entry = world.settle(1, 10).await;
    world.settle(11, 20).await;
    let plan = world
        .plan(Target::TxId(TxId::new(20)), None)
        .await
        .expect("plan");
    world.check(&plan, None).await;
    let named = world.named(&entry);
    let bytes = world.store.get(&named.key).await.expect("get");
    let other = world.write_segment(1, 9).await;
    let swapped = world
        .store
        .get(&world.named(&other).key)
        .await
        .expect("get");
    let mut damaged = bytes.to_vec();
    damaged[150] ^= 4;
    for (what, put, kind) in [
        ("missing", None, ErrorKind::NotFound),
        ("damaged", Some(damaged.into()), ErrorKind::Corrupt),
        ("swapped", Some(swapped), ErrorKind::Corrupt),
    ] {
        world.store.delete(&named.key).await.expect("delete");
        if let Some(bytes) = put {
            world.store.create(&named.key, bytes).await.expect("create");
        }
        let error = world
            .restore(&plan, MemorySink::default())
            .await
            .expect_err(what);
        assert_eq!(error.kind(), kind, "{what}");
        let text = format!("{error:?}");
        assert!(text.contains(&named.key), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_plan_for_another_state_than_recorded_makes_no_file() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("restored.db");
    let mut world = World::new(history(12, 20));
    world.settle(1, 20).await;
    let plan = world
        .plan(Target::TxId(TxId::new(15)), None)
        .await
        .expect("plan");
    let mut wrong = plan.clone();
    wrong.target.digest = world.history.at(2).header.digest;
    let settings = RestoreSettings::default();
    let sink = FileSink::create(&path).expect("create");
    let error = execute(&world.store, &wrong, sink, settings)
        .await
        .expect_err("digest");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
    let sink = FileSink::create(&path).expect("create");
    let (_, report) = execute(&world.store, &plan, sink, settings)
        .await
        .expect("restore");
    assert_eq!(report.commits, 15);
    let bytes = std::fs::read(&path).expect("read");
    assert_eq!(bytes, file(15, &world.history.at(15).pages));
    assert!(
        FileSink::create(&path).is_err(),
        "an existing file is never replaced"
    );
}

/// A sink that remembers where it was written, and refuses to go on if it is told to.
#[derive(Debug, Default)]
struct Noted {
    sink: MemorySink,
    writes: Vec<std::ops::Range<u64>>,
    refuses: bool,
}

impl PageSink for Noted {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.writes.push(offset..offset + bytes.len() as u64);
        self.sink.write(offset, bytes)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.sink.read(offset, buf)
    }

    fn check(&self) -> std::io::Result<()> {
        if self.refuses {
            return Err(std::io::Error::other("not wanted any more"));
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        self.sink.set_len(len)
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.sink.finish()
    }
}

/// Whoever no longer wants the file is asked while the log is read, long before anything is written.
#[tokio::test]
async fn a_restore_ends_when_its_sink_says_so_before_it_writes() {
    let mut world = World::new(history(16, 20));
    world.settle(1, 20).await;
    let plan = world.plan(Target::Head, None).await.expect("plan");
    let sink = Noted {
        refuses: true,
        ..Noted::default()
    };
    let ended = execute(&world.store, &plan, sink, RestoreSettings::default()).await;
    let ended = ended.expect_err("it was to end");
    assert!(matches!(&ended, RestoreError::Io(_)), "{ended:?}");
}

/// A page that both an image and deltas have is written once, and the file from its start to its end; so its way to the
/// disk can begin before its end is there. This history has no page of zeros, which an image leaves out.
#[tokio::test]
async fn from_an_image_each_page_is_written_once_and_in_order() {
    for (image, target) in [(50, 55), (55, 50)] {
        let mut world = World::new(history(14, 60));
        for first in (1..=60).step_by(5) {
            world.settle(first, first + 4).await;
        }
        world.image(image).await;
        let target = Target::TxId(TxId::new(target));
        let plan = world.plan(target, None).await.expect("plan");
        assert!(matches!(plan.start, Start::Image(_)), "{plan}");
        let settings = RestoreSettings::default();
        let noted = execute(&world.store, &plan, Noted::default(), settings).await;
        let (noted, report) = noted.expect("restored");
        assert_eq!(report.commits, 5);
        let commit = world.history.at(plan.target.position.txid.get());
        let expected = file(commit.position.txid.get(), &commit.pages);
        assert!(noted.sink.bytes == expected, "{plan}");
        // Page 1 is unmasked at the end, and what the image had no bytes of comes before that.
        let (last, before) = noted.writes.split_last().expect("writes");
        assert_eq!(last.start, 0);
        let ordered = before.windows(2).all(|two| two[0].end <= two[1].start);
        assert!(ordered, "{before:?}");
        // With little memory some deltas are in the file before the image comes.
        let little = RestoreSettings {
            gather_bytes_max: 100,
            ..settings
        };
        let noted = execute(&world.store, &plan, Noted::default(), little).await;
        let (noted, _) = noted.expect("restored");
        assert!(noted.sink.bytes == expected, "{plan}");
        let ordered = |two: &[std::ops::Range<u64>]| two[0].end <= two[1].start;
        let (_, before) = noted.writes.split_last().expect("writes");
        assert!(!before.windows(2).all(ordered), "{before:?}");
    }
}

#[tokio::test]
async fn a_file_of_another_history_is_not_built_upon() {
    let mut world = World::new(history(13, 20));
    world.settle(1, 20).await;
    let settings = RestoreSettings::default();
    for (at, target) in [(10, 15), (15, 10)] {
        let commit = world.history.at(at).clone();
        let foreign = Position {
            chain: Chain::from_bytes([0xee; 16]),
            ..commit.position
        };
        let target = Target::TxId(TxId::new(target));
        let plan = world.plan(target, Some(foreign)).await.expect("plan");
        assert_eq!(plan.start, Start::Base(foreign), "{plan}");
        let base = MemorySink {
            bytes: file(at, &commit.pages),
        };
        let error = execute(&world.store, &plan, base, settings).await;
        let error = error.expect_err("another chain");
        assert!(matches!(error, RestoreError::Broken { .. }), "{error:?}");
    }
    // The right name and the wrong bytes: the digest tells.
    let commit = world.history.at(10).clone();
    let target = Target::TxId(TxId::new(15));
    let plan = world
        .plan(target, Some(commit.position))
        .await
        .expect("plan");
    let mut bytes = file(10, &commit.pages);
    bytes[300] ^= 1;
    let error = execute(&world.store, &plan, MemorySink { bytes }, settings).await;
    assert!(matches!(
        error.expect_err("wrong bytes"),
        RestoreError::Digest { .. }
    ));
}
