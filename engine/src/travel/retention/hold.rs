//! Databases that something reads for long: a restore, a fork, an archive, an export, a verification.
//!
//! While one is held, nothing of it is marked. Take the hold before the manifest is read: what was marked before that
//! is not planned with, and what is planned with is not marked. For that the two exclude each other: marks that are
//! on their way to the manifest when a hold is asked for are waited for.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidelog_wal::DatabaseId;
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct State {
    counts: HashMap<DatabaseId, usize>,
    marking: HashSet<DatabaseId>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Marks have been published, or were not.
    marked: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which databases are held now.
#[derive(Debug, Default)]
pub(crate) struct Holds(Arc<Shared>);

impl Holds {
    /// Holds databases until the answer is dropped.
    pub(crate) async fn hold(&self, ids: Vec<DatabaseId>) -> Hold {
        loop {
            let mut marked = pin!(self.0.marked.notified());
            marked.as_mut().enable();
            {
                let mut state = self.0.lock();
                if ids.iter().all(|id| !state.marking.contains(id)) {
                    for id in &ids {
                        *state.counts.entry(*id).or_default() += 1;
                    }
                    let shared = Arc::clone(&self.0);
                    return Hold { shared, ids };
                }
            }
            marked.await;
        }
    }

    /// Whether anybody holds it.
    pub(crate) fn is_held(&self, id: DatabaseId) -> bool {
        self.0.lock().counts.contains_key(&id)
    }

    /// Lets the marks of a database be published until the answer is dropped; `None` while somebody holds it.
    pub(crate) fn marking(&self, id: DatabaseId) -> Option<Marking> {
        let mut state = self.0.lock();
        if state.counts.contains_key(&id) {
            return None;
        }
        state.marking.insert(id);
        let shared = Arc::clone(&self.0);
        Some(Marking { shared, id })
    }
}

/// Keeps databases from being marked.
#[derive(Debug)]
pub(crate) struct Hold {
    shared: Arc<Shared>,
    ids: Vec<DatabaseId>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        for id in &self.ids {
            if let Some(count) = state.counts.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.counts.remove(id);
                }
            }
        }
    }
}

/// Keeps a database from being held.
#[derive(Debug)]
pub(crate) struct Marking {
    shared: Arc<Shared>,
    id: DatabaseId,
}

impl Drop for Marking {
    fn drop(&mut self) {
        self.shared.lock().marking.remove(&self.id);
        self.shared.marked.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn marks_and_holds_exclude_each_other() {
        let holds = Arc::new(Holds::default());
        let (a, b) = (
            DatabaseId::from_bytes([1; 16]),
            DatabaseId::from_bytes([2; 16]),
        );
        let (one, two) = (holds.hold(vec![a, b]).await, holds.hold(vec![a]).await);
        assert!(holds.marking(a).is_none() && holds.marking(b).is_none());
        drop(one);
        assert!(holds.is_held(a) && !holds.is_held(b));
        drop(two);
        let marking = holds.marking(a).expect("nobody holds it");
        let waiting = Arc::clone(&holds);
        let mut held = tokio::spawn(async move { waiting.hold(vec![b, a]).await });
        tokio::task::yield_now().await;
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), &mut held).await;
        assert!(early.is_err(), "marks are on their way");
        assert!(!holds.is_held(b), "nothing is half held");
        drop(marking);
        let held = held.await.expect("held");
        assert!(holds.marking(a).is_none() && holds.is_held(b));
        drop(held);
        assert!(!holds.is_held(a));
    }
}
