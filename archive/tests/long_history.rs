//! A long history restores whole, across many segments.

mod format_support;

use format_support::world::World;
use format_support::{Dice, History};
use tidelog_archive::plan::Target;
use tidelog_archive::restore::{FileSink, RestoreSettings, execute};
use tidelog_archive::store::{Store, StoreOptions};

const COMMITS: u64 = 2_000;
/// Commits a segment.
const SEGMENT: u64 = 250;

/// So many that the file is proven by two threads.
const PAGES: u64 = 2_200;

/// A history of small changes on a few thousand pages, each about 2 KB as a record. States are not
/// remembered but for the last.
fn long(commits: u64) -> History {
    let mut dice = Dice(3);
    let mut history = History::new(4096);
    history.commit((0..PAGES).map(|_| dice.bytes(4096)).collect());
    for _ in 0..commits {
        let mut changes = Vec::new();
        for _ in 0..5 {
            let page = dice.roll(PAGES);
            let at = dice.roll(3600);
            let text = dice.roll(90);
            changes.push((page, at, text));
        }
        history.change(&changes);
    }
    history
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_restores_across_segments() {
    let folder = tempfile::tempdir().expect("folder");
    let url = format!("file://{}/store", folder.path().display());
    let store = Store::open(&url, StoreOptions::default()).expect("store");
    let mut world = World::in_store(store, long(COMMITS));
    let last = COMMITS + 1;
    for first in (1..=last).step_by(usize::try_from(SEGMENT).expect("small")) {
        world.settle(first, last.min(first + SEGMENT - 1)).await;
    }
    let plan = world.plan(Target::Head, None).await.expect("plan");
    assert_eq!(plan.objects() as u64, last.div_ceil(SEGMENT));
    let sink = FileSink::create(&folder.path().join("restored.db")).expect("create");
    let executed = execute(&world.store, &plan, sink, RestoreSettings::default()).await;
    let (_, report) = executed.expect("restore");
    assert_eq!(report.commits, last);
}
