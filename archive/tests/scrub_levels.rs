//! Promises of the scrub: it covers everything listed, and names what is wrong.

mod format_support;

use bytes::Bytes;
use format_support::world::World;
use format_support::{Dice, History};
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::restore::MemorySink;
use tidelog_archive::scrub::{Level, ScrubReport, scrub};
use tidelog_wal::Term;

async fn world() -> World {
    let mut world = World::new(History::random(512, 40, &mut Dice(31)));
    for first in (1..=30).step_by(10) {
        world.settle(first, first + 9).await;
    }
    world.image(10).await;
    world.image(20).await;
    world.ship(1, 31, 40).await;
    world
}

async fn run(world: &World, level: Level) -> ScrubReport {
    let sink = || Ok(MemorySink::default());
    scrub(&world.store, world.known(), level, sink)
        .await
        .expect("history is readable")
}

/// Keys of all objects the world lists.
fn keys(world: &World) -> Vec<String> {
    let manifest = &world.manifest;
    let (ns, db) = (manifest.namespace, manifest.database);
    let segments = manifest.segments.iter().map(|entry| entry.key(ns, db));
    let images = manifest.images.iter().map(|entry| entry.key(ns, db));
    let journal = [Key::Journal(Term::new(3), Seq::new(1))];
    segments
        .chain(images)
        .chain(journal)
        .map(|key| key.to_string())
        .collect()
}

async fn replace(world: &World, key: &str, bytes: Option<Bytes>) {
    world.store.delete(key).await.expect("delete");
    if let Some(bytes) = bytes {
        world.store.create(key, bytes).await.expect("create");
    }
}

#[tokio::test]
async fn a_sound_database_is_covered_whole_and_clean() {
    let world = world().await;
    for (level, records, states) in [
        (Level::Objects, 0, 0),
        (Level::Chain, 40, 0),
        // Two images and the head, each over two plans.
        (Level::Restore, 40, 6),
    ] {
        let report = run(&world, level).await;
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!(report.objects, 6);
        assert_eq!(
            (report.records, report.states),
            (records, states),
            "{level:?}"
        );
        assert!(report.bytes > 1000);
    }
}

#[tokio::test]
async fn every_damaged_missing_or_swapped_object_is_named_at_every_level() {
    let world = world().await;
    let keys = keys(&world);
    let mut originals = Vec::new();
    for key in &keys {
        originals.push(world.store.get(key).await.expect("get"));
    }
    for (i, key) in keys.iter().enumerate() {
        let mut flipped = originals[i].to_vec();
        flipped[130] ^= 1;
        let cut = originals[i].slice(..originals[i].len() - 1);
        let swapped = originals[(i + 1) % keys.len()].clone();
        for put in [Some(flipped.into()), Some(cut), Some(swapped), None] {
            replace(&world, key, put).await;
            for level in [Level::Objects, Level::Chain, Level::Restore] {
                let report = run(&world, level).await;
                assert!(!report.is_clean(), "{key} at {level:?}");
                let named = report.findings.iter().all(|finding| finding.key == *key);
                assert!(named, "{key} at {level:?}: {:?}", report.findings);
            }
        }
        replace(&world, key, Some(originals[i].clone())).await;
    }
    assert!(run(&world, Level::Restore).await.is_clean());
}

#[tokio::test]
async fn a_flip_is_named_with_its_offset() {
    let world = world().await;
    let key = &keys(&world)[0];
    let mut bytes = world.store.get(key).await.expect("get").to_vec();
    bytes[130] ^= 1;
    replace(&world, key, Some(bytes.into())).await;
    let report = run(&world, Level::Objects).await;
    assert_eq!(report.findings.len(), 1);
    assert_eq!(
        report.findings[0].offset,
        Some(0),
        "BLAKE3 covers the object from its start"
    );
    assert!(
        report.findings[0].to_string().contains("BLAKE3"),
        "{}",
        report.findings[0]
    );
}

#[tokio::test]
async fn objects_that_are_intact_but_do_not_join_are_found() {
    let mut world = world().await;
    // The shipped section goes on from another history than the settled one.
    let mut other = World::new(History::random(512, 40, &mut Dice(32)));
    other.ship(1, 31, 40).await;
    let key = Key::Journal(Term::new(3), Seq::new(1)).to_string();
    let bytes = other.store.get(&key).await.expect("get");
    replace(&world, &key, Some(bytes)).await;
    world.tail.clone_from(&other.tail);
    let report = run(&world, Level::Objects).await;
    assert!(
        report
            .findings
            .iter()
            .any(|f| f.what.starts_with("does not follow"))
    );
}

#[tokio::test]
async fn objects_too_large_for_one_request_are_proven_in_parts() {
    let mut history = History::new(4096);
    let mut dice = Dice(8);
    for _ in 0..3 {
        history.commit((0..600).map(|_| dice.bytes(4096)).collect());
    }
    let mut world = World::new(history);
    let segment = world.settle(1, 3).await;
    let image = world.image(3).await;
    assert!(
        segment.len > 5 << 20 && image.len > 2 << 20,
        "more than is fetched whole"
    );
    let report = run(&world, Level::Restore).await;
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.records, report.states), (3, 2));
    for key in keys(&world).iter().take(2) {
        let whole = world.store.get(key).await.expect("get");
        for at in [96, whole.len() / 2, whole.len() - 100] {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 8;
            replace(&world, key, Some(bytes.into())).await;
            let report = run(&world, Level::Objects).await;
            assert_eq!(report.findings.len(), 1, "{key} at {at}");
            assert_eq!(report.findings[0].key, *key);
        }
        replace(&world, key, Some(whole)).await;
    }
}
