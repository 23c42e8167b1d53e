//! A running operation from the inside: its progress, and whether it should stop.

use std::sync::Arc;

use serde_json::Value as Json;
use tidelog_archive::env::Clock;
use tokio::sync::watch;

use super::Handle;
use super::record::{Failure, Operation, OperationState};
use crate::engine::Engine;
use crate::error::{Code, Error};

/// What a running operation shares with those who look at it.
#[derive(Debug)]
pub(super) struct Shared {
    changes: watch::Sender<Operation>,
    stop: watch::Sender<Stop>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// Somebody asked for it.
    Cancelled,
    /// The process life ends.
    Interrupted,
}

impl Shared {
    pub(super) fn new(operation: Operation, clock: Arc<dyn Clock>) -> Self {
        Self {
            changes: watch::Sender::new(operation),
            stop: watch::Sender::new(Stop::No),
            clock,
        }
    }

    pub(super) fn id(&self) -> String {
        self.changes.borrow().id.clone()
    }

    pub(super) fn current(&self) -> Operation {
        self.changes.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Operation> {
        self.changes.subscribe()
    }

    /// Begins a phase: what was done and how fast counts from here.
    fn phase(&self, name: &str, bytes_total: u64) {
        let now = self.clock.wall();
        self.change(|operation| {
            name.clone_into(&mut operation.phase);
            operation.phase_started_at = now;
            operation.bytes_done = 0;
            operation.bytes_total = bytes_total;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Operation)) {
        let now = self.clock.wall();
        self.changes.send_modify(|operation| {
            change(operation);
            operation.heartbeat_at = now;
        });
    }

    /// Asks it to stop; answers whether it still can.
    pub(super) fn cancel(&self) -> bool {
        let mut can = false;
        self.change(|operation| {
            can = operation.cancellable;
            if can {
                operation.state = OperationState::Cancelling;
            }
        });
        if can {
            self.stop.send_replace(Stop::Cancelled);
        }
        can
    }

    /// Asks it to stop because the process life ends; past its point of no return it goes on.
    pub(super) fn interrupt(&self) {
        if self.changes.borrow().cancellable {
            self.stop.send_replace(Stop::Interrupted);
        }
    }

    /// What it is once it has ended so.
    pub(super) fn ended(&self, outcome: Result<Json, Error>) -> Operation {
        let mut operation = self.changes.borrow().clone();
        operation.cancellable = false;
        let now = self.clock.wall();
        operation.heartbeat_at = now;
        operation.ended_at = Some(now);
        match outcome {
            Ok(result) => {
                operation.state = OperationState::Succeeded;
                operation.result = Some(result);
            }
            Err(error) if error.code() == Code::OperationCancelled => {
                operation.state = OperationState::Cancelled;
            }
            Err(error) => {
                operation.state = OperationState::Failed;
                operation.error = Some(Failure::from(&error));
            }
        }
        operation
    }

    pub(super) fn publish(&self, operation: Operation) {
        self.changes.send_replace(operation);
    }

    pub(super) fn end(&self, outcome: Result<Json, Error>) {
        self.publish(self.ended(outcome));
    }
}

/// A running operation, for its own work.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    shared: Arc<Shared>,
    engine: Engine,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, engine: Engine) -> Self {
        Self { shared, engine }
    }

    /// Its id.
    pub(crate) fn id(&self) -> String {
        self.shared.id()
    }

    /// The operation as it stands.
    pub(crate) fn operation(&self) -> Operation {
        self.shared.changes.borrow().clone()
    }

    /// Completes once the operation has ended.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut handle = Handle::new(&self.shared);
        async move { drop(handle.ended().await) }
    }

    /// Begins a phase of `bytes_total` bytes, 0 where they are not known; fails if the operation is to stop.
    pub(crate) fn phase(&self, name: &str, bytes_total: u64) -> Result<(), Error> {
        self.shared.phase(name, bytes_total);
        self.check()
    }

    /// Says how many bytes of the phase are done.
    pub(crate) fn progress(&self, bytes_done: u64) {
        self.shared
            .change(|operation| operation.bytes_done = bytes_done);
    }

    /// The same for a phase whose size is known only once it is under way.
    pub(crate) fn progress_of(&self, bytes_done: u64, bytes_total: u64) {
        self.shared.change(|operation| {
            operation.bytes_done = bytes_done;
            operation.bytes_total = bytes_total;
        });
    }

    /// Fails if the operation is to stop.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match *self.shared.stop.borrow() {
            Stop::No => Ok(()),
            Stop::Cancelled => Err(Error::new(
                Code::OperationCancelled,
                "the operation was cancelled",
            )),
            Stop::Interrupted => Err(Error::new(
                Code::OperationInterrupted,
                "the server is stopping; the operation is ended at its next start",
            )),
        }
    }

    /// Completes when the operation is to stop: to race long waits against.
    pub(crate) async fn stopped(&self) -> Error {
        let mut stop = self.shared.stop.subscribe();
        // The sender lives as long as this task: it cannot be gone.
        let _ = stop.wait_for(|stop| *stop != Stop::No).await;
        match self.check() {
            Err(error) => error,
            Ok(()) => Error::internal("an operation's stop signal went away"),
        }
    }

    /// Runs `work` unless the operation is stopped first.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            error = self.stopped() => Err(error),
        }
    }

    /// From here on the operation cannot be cancelled; fails if it was before.
    pub(crate) fn point_of_no_return(&self) -> Result<(), Error> {
        self.shared
            .change(|operation| operation.cancellable = false);
        self.check()
    }

    /// Replaces, durably, what the next process life needs to end the operation.
    #[expect(dead_code, reason = "for operations of several durable steps")]
    pub(crate) async fn note(&self, note: Json) -> Result<(), Error> {
        let id = self.id();
        self.engine.inner.system.operation_note(&id, &note).await?;
        self.shared.change(|operation| operation.note = note);
        Ok(())
    }
}
