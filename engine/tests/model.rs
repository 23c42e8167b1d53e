//! The model test (RELIABILITY 13): random worlds of several databases with writes, labels, rewinds, undo, forks
//! of forks, branches, forks without rows, detaching, archives, deletion, days that pass with retention at work, and
//! machines that are lost, beside an oracle that keeps every state. Whatever is promised restores to exactly what was
//! there, after every look of retention and at the end (I3, I5); whatever is not is refused by its name.
//!
//! `TIDELOG_HISTORIES` sets how many histories run and `TIDELOG_SEED` the first seed; a failure names its own. After a
//! look of retention a few states of each database are restored, in some histories all of them, and in all histories
//! where `TIDELOG_EVERY_STATE` is set.

mod owner;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use owner::World;
use tokio::runtime::Runtime;

/// Steps of one history.
const STEPS: usize = 60;
/// Histories that run unless told otherwise.
const HISTORIES: u64 = 300;
/// Histories at once: they wait for timers more than they compute.
const AT_ONCE: usize = 4;

fn env(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn history(seed: u64) -> Result<usize, String> {
    let mut world = World::new(seed).await;
    for step in 0..STEPS {
        let done = world.step().await;
        let listed = if done.is_err() {
            world.listed().await
        } else {
            String::new()
        };
        done.map_err(|(what, e)| {
            format!(
                "seed {seed} step {step} {what}: {e}\n  {}\n{listed}",
                world.story()
            )
        })?;
    }
    let checked = world.finish().await;
    let listed = if checked.is_err() {
        world.listed().await
    } else {
        String::new()
    };
    checked.map_err(|e| format!("seed {seed} at the end: {e}\n  {}\n{listed}", world.story()))
}

#[test]
fn every_bookmark_of_every_database_restores_equal_whatever_an_owner_does() {
    let (first, count) = (env("TIDELOG_SEED", 0), env("TIDELOG_HISTORIES", HISTORIES));
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let runtime = Runtime::new().expect("runtime");
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match runtime.block_on(history(seed)) {
                        Ok(checked) => assert!(checked > 5, "seed {seed}: {checked} states"),
                        Err(error) => failures.lock().expect("lock").push(error),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("lock");
    assert!(
        failures.is_empty(),
        "{} of {count} histories failed:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
}
