//! Fair share of the node's workers: at most so many run SQL at once, and no tenant has more than its part of
//! them, however many of its requests wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tidelog_wal::NamespaceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Code, Error};

/// Tenants remembered before those that use nothing are forgotten.
const SWEEP_AT: usize = 1024;

/// The workers of a node.
#[derive(Debug)]
pub(crate) struct Jobs {
    all: Arc<Semaphore>,
    per_tenant: usize,
    tenants: Mutex<HashMap<NamespaceId, Weak<Semaphore>>>,
}

/// A worker, taken.
#[derive(Debug)]
pub(crate) struct Job {
    _all: OwnedSemaphorePermit,
    // Behind the permit of the node: that one is free first.
    _tenant: OwnedSemaphorePermit,
}

/// Counts a waiter as long as it waits, also when it gives up.
struct Waiter<'a>(&'a AtomicU64);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Jobs {
    pub(crate) fn new(workers: usize, per_tenant: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(workers.max(1))),
            per_tenant: per_tenant.clamp(1, workers.max(1)),
            tenants: Mutex::new(HashMap::new()),
        }
    }

    fn share(&self, tenant: NamespaceId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return share;
        }
        if tenants.len() >= SWEEP_AT {
            tenants.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(self.per_tenant));
        tenants.insert(tenant, Arc::downgrade(&share));
        share
    }

    /// A worker for this tenant: first its own turn, then the node's, both first come first served.
    pub(crate) async fn take(
        &self,
        tenant: NamespaceId,
        waiting: &AtomicU64,
    ) -> Result<Job, Error> {
        waiting.fetch_add(1, Ordering::Relaxed);
        let _waiter = Waiter(waiting);
        let stopping =
            |error| Error::new(Code::Overloaded, "the node is shutting down").caused_by(error);
        let share = self.share(tenant);
        let tenant = share.acquire_owned().await.map_err(stopping)?;
        let all = Arc::clone(&self.all)
            .acquire_owned()
            .await
            .map_err(stopping)?;
        Ok(Job {
            _all: all,
            _tenant: tenant,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_tenant_leaves_workers_for_the_others() {
        let (jobs, waiting) = (Jobs::new(4, 3), AtomicU64::new(0));
        let (loud, quiet) = (
            NamespaceId::from_bytes([1; 16]),
            NamespaceId::from_bytes([2; 16]),
        );
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(jobs.take(loud, &waiting).await.expect("its share"));
        }
        assert!(
            jobs.take(loud, &waiting).now_or_never().is_none(),
            "beyond its share"
        );
        let other = jobs.take(quiet, &waiting).now_or_never().expect("at once");
        drop(held.pop());
        assert!(jobs.take(loud, &waiting).now_or_never().is_some());
        drop(other);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
    }
}
