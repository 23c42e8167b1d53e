//! Where blocking work runs: SQLite, files and compression, which would hold up the runtime's threads.
//!
//! How much of it runs at a time is bounded above, by workers and turns; an executor only gives it a thread. In
//! production that is one of the runtime's blocking threads. A simulation gives none: with [`Inline`] every piece of
//! work runs where it is asked for, one after the other, so that a seed decides the order of everything. A large piece may
//! begin a thread for half of itself, which it waits for ([`tidelog_wal::parallel`]): what comes of it is the same.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::Error;

/// A piece of work that may block.
pub type Work = Box<dyn FnOnce() + Send>;

/// Runs blocking work.
pub trait Executor: Debug + Send + Sync {
    /// Runs `work` to its end, now or later, here or on another thread. Called on a thread of a runtime.
    fn run(&self, work: Work);
}

/// The runtime's threads for blocking work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads;

impl Executor for Threads {
    fn run(&self, work: Work) {
        tokio::task::spawn_blocking(work);
    }
}

/// The thread that asks, at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Executor for Inline {
    fn run(&self, work: Work) {
        work();
    }
}

/// Runs blocking work and waits for its answer.
pub(crate) async fn blocking<T: Send + 'static>(
    executor: Arc<dyn Executor>,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (answer, answered) = oneshot::channel();
    executor.run(Box::new(move || {
        // Whoever asked may be gone.
        let _ = answer.send(work());
    }));
    match answered.await {
        Ok(result) => result,
        Err(_) => Err(Error::internal("a worker panicked")),
    }
}

/// Runs one end of a pipe: work that waits for the task beside it has a thread of its own whatever the executor.
pub(crate) async fn piped<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal("a worker panicked").caused_by(error)),
    }
}
