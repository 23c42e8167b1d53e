//! Two halves of one large piece of work, at once.
//!
//! For work of milliseconds: a thread is begun for one half of it and ends with it, some tens of microseconds that
//! nothing else is made to wait or keep for.

use std::panic::resume_unwind;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

/// Whether this process has a second processor.
static TWO: LazyLock<bool> =
    LazyLock::new(|| thread::available_parallelism().is_ok_and(|many| many.get() > 1));

/// Runs `here` on this thread and `there` beside it; if no thread or no processor is there for it, behind it. Answers what
/// both answered.
///
/// # Panics
///
/// If one of them does.
pub fn both<A, B: Send>(here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> (A, B) {
    if !*TWO {
        return (here(), there());
    }
    let there = Mutex::new(Some(there));
    let take = || there.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (a, b) = thread::scope(|scope| {
        let beside = thread::Builder::new()
            .name("tidelog-half".to_owned())
            .spawn_scoped(scope, || take().map(|there| there()));
        let a = here();
        let b = beside.ok().and_then(|beside| match beside.join() {
            Ok(b) => b,
            Err(panic) => resume_unwind(panic),
        });
        (a, b)
    });
    let b = b.or_else(|| take().map(|there| there()));
    (a, b.expect("it ran on one of the two threads"))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn both_halves_run_at_once() {
        let (barrier, mut sum) = (Barrier::new(if *TWO { 2 } else { 1 }), 0);
        let halves = both(
            || {
                barrier.wait();
                sum += 1;
                sum
            },
            || {
                barrier.wait();
                2
            },
        );
        assert_eq!(halves, (1, 2));
    }

    #[test]
    #[should_panic(expected = "the other half")]
    fn a_panic_of_the_other_half_is_the_callers() {
        both(|| (), || panic!("the other half"));
    }
}
