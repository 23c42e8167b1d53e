//! How fast and in how much memory a long history is restored. Measures only when asked.
//!
//! `TIDELOG_MEASURE=1 cargo test -p tidelog-archive --test restore_speed -- --nocapture`

#![allow(
    clippy::cast_precision_loss,
    reason = "figures for people, and few commits"
)]

mod format_support;

use format_support::world::World;
use format_support::{Dice, History};
use tidelog_archive::plan::Target;
use tidelog_archive::restore::{FileSink, RestoreSettings, execute};
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_archive::{Clock, SystemClock};

/// A history of small changes on a few thousand pages, each about 2 KB as a record. States are not
/// remembered but for the last.
fn long(commits: usize) -> History {
    let mut dice = Dice(3);
    let mut history = History::new(4096);
    history.commit((0..2000).map(|_| dice.bytes(4096)).collect());
    for _ in 0..commits {
        let mut changes = Vec::new();
        for _ in 0..5 {
            let page = dice.roll(2000);
            let at = dice.roll(3600);
            let text = dice.roll(90);
            changes.push((page, at, text));
        }
        history.change(&changes);
    }
    history
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_restores_in_bounded_memory() {
    let measure = std::env::var_os("TIDELOG_MEASURE").is_some();
    let commits = if measure { 100_000 } else { 2_000 };
    let folder = tempfile::tempdir().expect("folder");
    let url = format!("file://{}/store", folder.path().display());
    let store = Store::open(&url, StoreOptions::default()).expect("store");
    let mut world = World::in_store(store, long(commits));
    let last = commits as u64 + 1;
    for first in (1..=last).step_by(2_000) {
        world.settle(first, last.min(first + 1_999)).await;
    }
    let raw: usize = world.history.commits.iter().map(|c| c.bytes.len()).sum();
    let plan = world.plan(Target::Head, None).await.expect("plan");
    let path = folder.path().join("restored.db");
    let sink = FileSink::create(&path).expect("create");
    let clock = SystemClock::new();
    let before = clock.monotonic_micros();
    let settings = RestoreSettings::default();
    let (_, report) = execute(&world.store, &plan, sink, settings)
        .await
        .expect("restore");
    let micros = clock.monotonic_micros() - before;
    assert_eq!(report.commits, last);
    if measure {
        println!(
            "{last} commits of {} raw bytes each, {} stored bytes in all: {:.2} s, {} commits/s",
            raw as u64 / last,
            plan.bytes,
            micros as f64 / 1e6,
            last * 1_000_000 / micros
        );
    }
}
