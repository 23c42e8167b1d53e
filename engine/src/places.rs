//! Places for open databases: how many are open, and whose.
//!
//! Each open database holds its place until its last descriptor is closed. There are `open_databases_max` of them, and a
//! tenant has at most half, so that one that touches all it owns takes nobody's descriptors away. Work of the engine's
//! own is not refused for want of a place: it goes through one database after the other, and history waits for it.
//!
//! # Waiting for one
//!
//! A look for a place fails for one of four reasons, and each tells [`Changes`] when it is over, never before:
//!
//! | what was in the way | over, and told, when |
//! | --- | --- |
//! | the place of another database | a [`Place`] is dropped, once it is off the map |
//! | somebody uses a database that could be closed | the last [`Lease`](crate::database::Lease) is dropped, once its permit is back |
//! | a request uses a stream that would be at rest without it | the request ends, once the stream is free |
//! | somebody holds the slot of one that nobody uses | the slot is let go of, once its lock is free |
//!
//! No end is missed: who waits asks for the next change before it looks. What ends before the look is seen by it, and
//! what ends after it is a change since. Everybody who waits is told, since a place that is no use to one tenant may be
//! one for another; who finds none waits for the next change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidelog_wal::{DatabaseId, NamespaceId};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::database::OpenDb;
use crate::error::{Code, Error};

/// Who wants a database open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// A tenant's call.
    Tenant,
    /// The engine's own work.
    Engine,
}

/// What no place is left of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The tenant's share.
    Share(NamespaceId, usize),
    /// All of them.
    Node(usize),
}

impl Full {
    /// Refuses a database that could not be opened.
    pub(crate) fn error(self) -> Error {
        let (limit, whose) = match self {
            Self::Share(_, limit) => (limit, "this tenant"),
            Self::Node(limit) => (limit, "this node"),
        };
        let what = format!("{limit} databases of {whose} are in use, no more can be open at once");
        Error::new(Code::Overloaded, what).with("limit", limit)
    }
}

#[derive(Debug)]
struct Taken {
    namespace: NamespaceId,
    /// Dangles until the database is open.
    database: Weak<OpenDb>,
}

/// Tells who waits for a place that a look may find one now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes(Arc<Notify>);

impl Changes {
    /// Something that was in the way of a look is over.
    pub(crate) fn tell(&self) {
        self.0.notify_waiters();
    }

    /// Resolves once something was told after this call, polled by then or not.
    pub(crate) fn next(&self) -> Notified<'_> {
        self.0.notified()
    }
}

type Map = HashMap<DatabaseId, Taken>;

/// The places of a node.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: Arc<Mutex<Map>>,
    changes: Changes,
}

/// A place that is taken; it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    id: DatabaseId,
    taken: Arc<Mutex<Map>>,
    changes: Changes,
}

fn lock(taken: &Mutex<Map>) -> MutexGuard<'_, Map> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    pub(crate) fn new(max: usize, changes: Changes) -> Self {
        Self {
            max: max.max(1),
            taken: Arc::default(),
            changes,
        }
    }

    /// Where ends are told.
    pub(crate) const fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Takes a place for a database that holds none, if one is left.
    pub(crate) fn take(
        &self,
        namespace: NamespaceId,
        id: DatabaseId,
        whom: For,
    ) -> Result<Place, Full> {
        let mut taken = lock(&self.taken);
        let half = (self.max / 2).max(1);
        let own = |one: &&Taken| one.namespace == namespace;
        if whom == For::Tenant && taken.values().filter(own).count() >= half {
            return Err(Full::Share(namespace, half));
        }
        if taken.len() >= self.max {
            return Err(Full::Node(self.max));
        }
        Ok(self.place(&mut taken, namespace, id))
    }

    /// Takes a place beyond the bound.
    pub(crate) fn take_beyond(&self, namespace: NamespaceId, id: DatabaseId) -> Place {
        self.place(&mut lock(&self.taken), namespace, id)
    }

    fn place(&self, taken: &mut Map, namespace: NamespaceId, id: DatabaseId) -> Place {
        let one = Taken {
            namespace,
            database: Weak::new(),
        };
        taken.insert(id, one);
        Place {
            id,
            taken: Arc::clone(&self.taken),
            changes: self.changes.clone(),
        }
    }

    /// How many are taken.
    pub(crate) fn count(&self) -> usize {
        lock(&self.taken).len()
    }

    /// The open databases, but for those that are being opened.
    pub(crate) fn open(&self) -> Vec<(DatabaseId, Arc<OpenDb>)> {
        let taken = lock(&self.taken);
        let open = |(id, one): (&DatabaseId, &Taken)| Some((*id, one.database.upgrade()?));
        taken.iter().filter_map(open).collect()
    }

    /// The open databases whose end makes the place that is wanted, the longest unused first.
    fn of(&self, full: Full) -> Vec<(DatabaseId, Arc<OpenDb>)> {
        let counts = |database: &OpenDb| match full {
            Full::Share(namespace, _) => database.meta().namespace == namespace,
            Full::Node(_) => true,
        };
        let mut found = self.open();
        found.retain(|(_, database)| counts(database));
        found.sort_by_cached_key(|(id, database)| (database.last_used(), *id));
        found
    }

    /// Those of them that nobody uses.
    pub(crate) fn unused(&self, full: Full) -> Vec<DatabaseId> {
        let found = self.of(full).into_iter();
        let unused = found.filter(|(_, database)| database.is_idle());
        unused.map(|(id, _)| id).collect()
    }

    /// Those of them that somebody uses.
    pub(crate) fn used(&self, full: Full) -> Vec<Arc<OpenDb>> {
        let found = self.of(full).into_iter();
        let used = found.filter(|(_, database)| !database.is_idle());
        used.map(|(_, database)| database).collect()
    }
}

impl Place {
    /// Says which open database holds it.
    pub(crate) fn held_by(&self, database: &Arc<OpenDb>) {
        if let Some(one) = lock(&self.taken).get_mut(&self.id) {
            one.database = Arc::downgrade(database);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.id);
        self.changes.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> DatabaseId {
        DatabaseId::from_bytes([n; 16])
    }

    /// Goal: a tenant leaves half to the others, and what ends gives its place back.
    #[test]
    fn a_tenant_has_half_of_the_places() {
        let places = Places::new(4, Changes::default());
        let (loud, quiet) = (
            NamespaceId::from_bytes([1; 16]),
            NamespaceId::from_bytes([2; 16]),
        );
        let take = |namespace, n, whom| places.take(namespace, id(n), whom);
        let first = take(loud, 1, For::Tenant).expect("a place");
        let _second = take(loud, 2, For::Tenant).expect("a place");
        let share = Full::Share(loud, 2);
        assert_eq!(take(loud, 3, For::Tenant).expect_err("its share"), share);
        assert_eq!(share.error().code(), Code::Overloaded);
        drop(first);
        let _third = take(loud, 3, For::Tenant).expect("the place of the first");
        let _own = take(loud, 4, For::Engine).expect("the engine has no share");
        let _other = take(quiet, 5, For::Tenant).expect("the other half");
        assert_eq!(take(quiet, 6, For::Tenant).expect_err("all"), Full::Node(4));
        assert_eq!(places.count(), 4);
        let _beyond = places.take_beyond(quiet, id(6));
        assert_eq!(places.count(), 5, "the engine's own work goes on");
    }
}
