//! Operations: long work as a resource that can be looked at, waited for, cancelled, and that survives its
//! process life.
//!
//! An operation is noted in the system database before it leaves anything behind and again when it has ended, which
//! it has once that is stored, and with it everything that was committed before ([`crate::system::Noted`]). In
//! between, its progress is in memory: whoever watches reads it there. A process life that finds operations
//! of an earlier one open ends them: [`recover`] finishes what was past its point of no return and cleans up
//! the rest, so that nothing half-made stays.
//!
//! One mutating operation a database at a time.

mod record;
mod recover;
mod task;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value as Json;
use tidelog_wal::{DatabaseId, NamespaceId};
use tokio::sync::watch;

use crate::boxed;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::system::{Page, PageOf};

pub use record::{Failure, Operation, OperationFilter, OperationState, OperationType};
pub(crate) use recover::{decided, recover_all};
use task::Shared;
pub(crate) use task::Task;

/// How long ended operations are shown: 180 days.
pub(crate) const KEPT_MICROS: u64 = 180 * 24 * 3600 * 1_000_000;

/// Tries to note an end that the store does not take yet.
const END_PAUSE: Duration = Duration::from_millis(500);

/// What an operation is to be.
#[derive(Debug)]
pub(crate) struct NewOperation {
    pub(crate) kind: OperationType,
    pub(crate) namespace: NamespaceId,
    pub(crate) database: Option<(DatabaseId, String)>,
    /// Refused while another exclusive one works on the database.
    pub(crate) exclusive: bool,
    /// Id of the token that asks.
    pub(crate) token: Option<String>,
    /// What the next process life needs to end it.
    pub(crate) note: Json,
    /// When its work begins.
    pub(crate) begins: Begins,
}

/// When the work of an operation begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    /// Once the operation is stored: whatever it leaves behind is found again by it.
    Stored,
    /// While it is being stored. It leaves nothing behind before a later commit of the system database is stored.
    Noted,
}

/// The operations that run now.
#[derive(Debug, Default)]
pub(crate) struct Running {
    inner: Mutex<RunningInner>,
}

#[derive(Debug, Default)]
struct RunningInner {
    by_id: HashMap<String, Arc<Shared>>,
    exclusive: HashMap<DatabaseId, String>,
    stopping: bool,
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, RunningInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &str) -> Option<Arc<Shared>> {
        self.lock().by_id.get(id).cloned()
    }

    fn enter(&self, shared: &Arc<Shared>, exclusive: Option<DatabaseId>) -> Result<(), Error> {
        let mut inner = self.lock();
        if inner.stopping {
            return Err(Error::new(Code::Overloaded, "the node is shutting down"));
        }
        let id = shared.id();
        if let Some(database) = exclusive {
            if let Some(other) = inner.exclusive.get(&database) {
                let what =
                    format!("operation {other} works on this database; wait for it or cancel it");
                return Err(
                    Error::new(Code::OperationInProgress, what).with("operation", other.clone())
                );
            }
            inner.exclusive.insert(database, id.clone());
        }
        inner.by_id.insert(id, Arc::clone(shared));
        Ok(())
    }

    fn leave(&self, id: &str) {
        let mut inner = self.lock();
        inner.by_id.remove(id);
        inner.exclusive.retain(|_, holder| holder != id);
    }

    /// The exclusive operation that works on a database.
    pub(crate) fn working_on(&self, database: DatabaseId) -> Option<String> {
        self.lock().exclusive.get(&database).cloned()
    }

    /// An operation that changes something in a namespace.
    pub(crate) fn changing_in(&self, namespace: NamespaceId) -> Option<String> {
        let inner = self.lock();
        let mut all = inner.by_id.values().map(|shared| shared.current());
        let changing = all.find(|operation| {
            operation.namespace == namespace && operation.kind != OperationType::Verification
        });
        changing.map(|operation| operation.id)
    }

    /// Interrupts everything that has not passed its point of no return, and lets nothing new in.
    pub(crate) fn interrupt(&self) -> Vec<Handle> {
        let mut inner = self.lock();
        inner.stopping = true;
        let running = inner.by_id.values();
        running
            .map(|shared| {
                shared.interrupt();
                Handle::new(shared)
            })
            .collect()
    }
}

/// Follows an operation.
#[derive(Debug, Clone)]
pub struct Handle {
    changes: watch::Receiver<Operation>,
}

impl Handle {
    fn new(shared: &Shared) -> Self {
        Self {
            changes: shared.subscribe(),
        }
    }

    /// What is known of it now.
    pub fn current(&self) -> Operation {
        self.changes.borrow().clone()
    }

    /// Waits until it has ended, at most `limit`, and answers what is known then.
    #[boxed]
    pub async fn wait(&mut self, limit: Duration) -> Operation {
        let ended = self
            .changes
            .wait_for(|operation| operation.state.is_final());
        // Whether it ended, took too long or the node stops: what is known is the answer.
        let _ = tokio::time::timeout(limit, ended).await;
        self.current()
    }

    /// Waits until it has ended.
    #[boxed]
    pub async fn ended(&mut self) -> Operation {
        // A closed channel holds the end, or what was known when the node stopped.
        let _ = self.changes.wait_for(|known| known.state.is_final()).await;
        self.current()
    }

    /// Waits for the next change; `None` once it has ended and been seen so.
    #[boxed]
    pub async fn changed(&mut self) -> Option<Operation> {
        if self.changes.borrow_and_update().state.is_final() {
            return None;
        }
        self.changes.changed().await.ok()?;
        Some(self.changes.borrow().clone())
    }
}

impl Engine {
    /// Begins an operation: notes it, then runs `work` in a task of its own. An error of `work` is the
    /// operation's; `work` must have cleaned up behind itself by then.
    pub(crate) async fn operate<F, W>(&self, new: NewOperation, work: F) -> Result<Handle, Error>
    where
        F: FnOnce(Task) -> W + Send + 'static,
        W: Future<Output = Result<Json, Error>> + Send + 'static,
    {
        let inner = &self.inner;
        let now = inner.core.parts.clock.wall();
        let mut chance = [0; 6];
        inner.core.parts.entropy.fill(&mut chance);
        let chance = chance
            .iter()
            .fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        let (database, database_name) = new.database.unzip();
        let operation = Operation {
            id: format!("op_{:014x}{chance:012x}", now.micros()),
            namespace: new.namespace,
            database,
            database_name,
            kind: new.kind,
            state: OperationState::Running,
            phase: "starting".to_owned(),
            phase_started_at: now,
            bytes_done: 0,
            bytes_total: 0,
            started_at: now,
            heartbeat_at: now,
            ended_at: None,
            cancellable: true,
            token: new.token,
            note: new.note,
            result: None,
            error: None,
        };
        let exclusive = database.filter(|_| new.exclusive);
        let shared = Arc::new(Shared::new(
            operation.clone(),
            Arc::clone(&inner.core.parts.clock),
        ));
        inner.running.enter(&shared, exclusive)?;
        let noted = async {
            let noted = inner.system.operation_add(&operation).await?;
            match new.begins {
                Begins::Stored => noted.stored().await.map(|()| None),
                Begins::Noted => Ok(Some(noted)),
            }
        };
        let noted = noted
            .await
            .inspect_err(|_| inner.running.leave(&operation.id))?;
        let handle = Handle::new(&shared);
        let (engine, task) = (self.clone(), Task::new(Arc::clone(&shared), self.clone()));
        tokio::spawn(async move {
            let worked = tokio::spawn(work(task)).await;
            let outcome = worked.unwrap_or_else(|failure| {
                Err(Error::internal("an operation panicked").caused_by(failure))
            });
            engine.end_operation(&shared, outcome).await;
        });
        if let Some(noted) = noted {
            noted.stored().await?;
        }
        Ok(handle)
    }

    /// Notes how an operation ended, as often as it takes; one that was interrupted by the end of the process
    /// life stays open for the next.
    async fn end_operation(&self, shared: &Shared, outcome: Result<Json, Error>) {
        let inner = &self.inner;
        let id = shared.id();
        if let Err(error) = &outcome {
            if error.code() == Code::OperationInterrupted {
                shared.end(outcome);
                inner.running.leave(&id);
                return;
            }
            tracing::warn!(operation = %id, %error, "operation ended with an error");
        }
        let ended = shared.ended(outcome);
        let mut stop = inner.stop_signal();
        while let Err(error) = inner.system.operation_end(&ended).await {
            tracing::warn!(operation = %id, %error, "the end of an operation is not noted yet");
            tokio::select! {
                () = tokio::time::sleep(END_PAUSE) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        inner.running.leave(&id);
        shared.publish(ended);
    }

    /// An operation of a namespace.
    #[boxed]
    pub async fn operation(&self, namespace: NamespaceId, id: &str) -> Result<Operation, Error> {
        if let Some(shared) = self.inner.running.get(id) {
            let operation = Handle::new(&shared).current();
            if operation.namespace == namespace {
                return Ok(operation);
            }
        }
        self.inner.system.operation(namespace, id).await
    }

    /// An operation of a namespace that is gone: how its end came out.
    #[boxed]
    pub async fn operation_of_gone(&self, id: &str) -> Result<Operation, Error> {
        self.inner.system.operation_of_gone(id).await
    }

    /// Follows an operation of a namespace; one that has ended shows its end and no change.
    #[boxed]
    pub async fn operation_watch(&self, namespace: NamespaceId, id: &str) -> Result<Handle, Error> {
        if let Some(shared) = self.inner.running.get(id) {
            let handle = Handle::new(&shared);
            if handle.current().namespace == namespace {
                return Ok(handle);
            }
        }
        let ended = self.inner.system.operation(namespace, id).await?;
        let (_, changes) = watch::channel(ended);
        Ok(Handle { changes })
    }

    /// Operations of a namespace, newest first.
    #[boxed]
    pub async fn operations(
        &self,
        namespace: NamespaceId,
        filter: OperationFilter,
        page: Page,
    ) -> Result<PageOf<Operation>, Error> {
        let mut listed = self
            .inner
            .system
            .operation_list(namespace, filter, page)
            .await?;
        for operation in &mut listed.items {
            if let Some(shared) = self.inner.running.get(&operation.id) {
                *operation = Handle::new(&shared).current();
            }
        }
        Ok(listed)
    }

    /// Asks an operation to stop. It stops at its next look, cleaning up; past its point of no return, and
    /// once it has ended, it is refused.
    #[boxed]
    pub async fn operation_cancel(
        &self,
        namespace: NamespaceId,
        id: &str,
    ) -> Result<Operation, Error> {
        let operation = self.operation(namespace, id).await?;
        let refused = || {
            let what = format!("operation {id} is past the point where it can be cancelled");
            Error::new(Code::OperationNotCancellable, what)
        };
        let shared = self.inner.running.get(id).ok_or_else(refused)?;
        if operation.state.is_final() || !shared.cancel() {
            return Err(refused());
        }
        self.operation(namespace, id).await
    }
}
