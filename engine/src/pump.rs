//! The capture pump: which databases have commits that are not captured, and the thread that captures them.
//!
//! The worker parks while nothing is dirty. The first commit wakes it; then it drains once a millisecond, or at
//! once when somebody waits for a ticket. (Measured on the OLTP mix: capturing inline costs a third of the
//! throughput, a wake-up a commit 18 %, batches of a millisecond 1.5 %.)

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::capture::Scratch;
use crate::database::OpenDb;

/// Pause between two drains while nobody waits.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Queue {
    dirty: VecDeque<Arc<OpenDb>>,
    urgent: bool,
    closed: bool,
}

/// The queue of dirty databases.
#[derive(Debug, Default)]
pub(crate) struct Pump {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Pump {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a database that was not queued yet.
    pub(crate) fn push(&self, database: Arc<OpenDb>) {
        let mut queue = self.lock();
        queue.dirty.push_back(database);
        if queue.dirty.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// Somebody waits: drain now.
    pub(crate) fn hurry(&self) {
        let mut queue = self.lock();
        if !queue.urgent && !queue.dirty.is_empty() {
            queue.urgent = true;
            self.wake.notify_one();
        }
    }

    /// Ends the worker once the queue is empty.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }

    fn wait(&self) -> Option<VecDeque<Arc<OpenDb>>> {
        let mut queue = self.lock();
        while queue.dirty.is_empty() {
            if queue.closed {
                return None;
            }
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !queue.urgent && !queue.closed {
            let waited = self
                .wake
                .wait_timeout_while(queue, DRAIN_PAUSE, |q| !q.urgent && !q.closed);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.urgent = false;
        Some(std::mem::take(&mut queue.dirty))
    }

    /// The worker's loop: returns when the pump is closed and empty.
    pub(crate) fn run(&self) {
        let mut scratch = Scratch::default();
        while let Some(dirty) = self.wait() {
            for database in dirty {
                database.clear_queued();
                // A failure poisons the database and is logged there; its waiters hear of it.
                let _ = database.capture_with(&mut scratch);
            }
        }
    }
}
