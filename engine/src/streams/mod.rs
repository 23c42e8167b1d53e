//! Streams: connections that clients have to themselves, for transactions over several requests.
//!
//! A stream is made with [`Database::stream`], used by one request at a time ([`Stream::enter`] gives the
//! [`Turn`]), and ends when its client closes it, when nobody used it for a while, when its database is closed, or
//! when it must make place. It has its own SQLite connection ([`session`]), opened with the first statement and
//! closed at the end: no connection ever passes from one client to another.
//!
//! What ends a stream never waits for its client:
//!
//! | what | after | effect |
//! | --- | --- | --- |
//! | nothing is done while it holds the write gate | `stream_gate_idle` | the transaction is rolled back, the stream goes on and its client hears [`Code::TransactionTimeout`] |
//! | nothing is done | `stream_idle` | the stream ends |
//! | it pins an old snapshot and the WAL is long | `reader_max_age`, `wal_hard_bytes` | what runs is interrupted, the stream ends |
//! | its database is closed (stop, purge, a fault) | at once | the same |
//!
//! A stream that rests, unused and with a connection that nobody could tell from a new one, is in nobody's way: where
//! another database needs the place of its own ([`places`](crate::places)) the connection is closed, and the next
//! request of the stream opens a new one.
//!
//! A request that runs keeps its [`Turn`]; a turn that is dropped instead of kept ends the stream, so that a panic
//! or a client that hangs up leaves nothing behind.

mod program;
mod session;
mod split;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rusqlite::InterruptHandle;
use tidelog_wal::{DatabaseId, NamespaceId};
use tokio::sync::{Notify, OwnedMutexGuard, watch};

use crate::core::Core;
use crate::database::OpenDb;
use crate::engine::{Database, Engine};
use crate::error::{Code, Error};
use crate::settings::Settings;

pub use program::{Condition, Described, Results, Sink, Step, StepEnd};
use session::Session;
pub use turn::{Turn, TurnEnd};

/// Names a stream within this process life.
pub type StreamId = u64;

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its client closed it.
    Closed,
    /// Nobody used it.
    Idle,
    /// Another needed the place.
    Displaced,
    /// It pinned an old snapshot for too long.
    Pinned,
    /// Its database was closed.
    DatabaseClosed,
}

impl Ended {
    const fn says(self) -> &'static str {
        match self {
            Self::Closed => "the stream is closed",
            Self::Idle => "the stream expired: nobody used it for too long",
            Self::Displaced => "the stream ended: it was unused and others needed its place",
            Self::Pinned => "the stream ended: its transaction kept an old state for too long",
            Self::DatabaseClosed => "the stream ended with the connection to its database",
        }
    }

    fn error(self) -> Error {
        Error::new(Code::StreamExpired, self.says())
    }
}

/// What a sink is answered when nobody listens any more.
fn cancelled() -> Error {
    Error::new(Code::OperationCancelled, "the stream has ended")
}

/// The part of a stream that the request that uses it has to itself.
#[derive(Debug, Default)]
struct Own {
    session: Option<Session>,
}

/// A stream, as whoever holds it and the node see it.
#[derive(Debug)]
pub(crate) struct Shared {
    id: StreamId,
    namespace: NamespaceId,
    database: DatabaseId,
    principal: [u8; 16],
    own: Arc<tokio::sync::Mutex<Own>>,
    /// A request uses it.
    in_use: AtomicBool,
    ended: watch::Sender<Option<Ended>>,
    /// Monotonic microseconds.
    last_used: AtomicU64,
    /// Since when it may see one snapshot, 0 when it sees none.
    reading_since: AtomicU64,
    running: Mutex<Option<Running>>,
}

/// How to reach the connection from outside.
struct Running {
    interrupt: InterruptHandle,
    database: Weak<OpenDb>,
}

impl fmt::Debug for Running {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Running")
    }
}

impl Shared {
    fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Marks it as ended, the first reason counts, and interrupts what runs.
    fn end(&self, why: Ended) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(why);
            first
        });
        if let Some(running) = lock(&self.running).as_ref() {
            running.interrupt.interrupt();
        }
    }

    /// The connection, if no request uses the stream.
    fn idle(&self) -> Option<OwnedMutexGuard<Own>> {
        if self.in_use.load(Ordering::Acquire) {
            return None;
        }
        Arc::clone(&self.own).try_lock_owned().ok()
    }
}

/// A client's stream.
#[derive(Debug, Clone)]
pub struct Stream(Arc<Shared>);

impl Stream {
    /// Its name within this process life.
    pub fn id(&self) -> StreamId {
        self.0.id
    }

    /// Whether it belongs to this database and this principal.
    pub fn is_of(&self, database: &Database, principal: [u8; 16]) -> bool {
        let row = database.row();
        self.0.database == row.id
            && self.0.namespace == row.namespace
            && self.0.principal == principal
    }

    /// Why it takes no more requests, if so.
    pub fn check(&self) -> Result<(), Error> {
        self.0.ended().map_or(Ok(()), |ended| Err(ended.error()))
    }
}

/// The streams of a node.
#[derive(Debug)]
pub(crate) struct Streams {
    core: Arc<Core>,
    open: Mutex<HashMap<StreamId, Arc<Shared>>>,
    next: AtomicU64,
    opened: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            open: Mutex::default(),
            next: AtomicU64::new(1),
            opened: Notify::new(),
        }
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        lock(&self.open).len()
    }

    fn now(&self) -> u64 {
        self.core.parts.clock.monotonic_micros()
    }

    fn remove(&self, id: StreamId) {
        lock(&self.open).remove(&id);
    }

    /// Registers a stream, making place for it if need be.
    fn add(&self, database: &Database, principal: [u8; 16]) -> Result<Arc<Shared>, Error> {
        let row = database.row();
        let shared = Arc::new(Shared {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            namespace: row.namespace,
            database: row.id,
            principal,
            own: Arc::default(),
            in_use: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            last_used: AtomicU64::new(self.now()),
            reading_since: AtomicU64::new(0),
            running: Mutex::new(None),
        });
        let settings = &self.core.settings;
        let mut open = lock(&self.open);
        let mut displaced = Vec::new();
        for (limit, what, of) in [
            (
                settings.streams_per_principal,
                "principal",
                Box::new(|one: &Shared| one.principal == principal) as Box<dyn Fn(&Shared) -> bool>,
            ),
            (
                settings.streams_per_database,
                "database",
                Box::new(|one: &Shared| one.database == row.id),
            ),
            (
                settings.streams_per_tenant,
                "tenant",
                Box::new(|one: &Shared| one.namespace == row.namespace),
            ),
            (settings.streams_max, "node", Box::new(|_| true)),
        ] {
            if open.values().filter(|one| of(one)).count() < limit {
                continue;
            }
            let Some(id) = idlest(open.values().filter(|one| of(one))) else {
                let message =
                    format!("{limit} streams are open already, which is all one {what} may have");
                return Err(Error::new(Code::Overloaded, message).with("limit", limit));
            };
            displaced.extend(open.remove(&id));
        }
        open.insert(shared.id, Arc::clone(&shared));
        drop(open);
        for one in displaced {
            one.end(Ended::Displaced);
            drop_session(&one);
        }
        self.opened.notify_one();
        Ok(shared)
    }

    /// Ends every stream that has a connection to this database: its files are about to be closed.
    pub(crate) fn end_of(&self, id: DatabaseId) {
        let of: Vec<Arc<Shared>> = lock(&self.open)
            .values()
            .filter(|one| one.database == id && lock(&one.running).is_some())
            .cloned()
            .collect();
        for one in of {
            self.remove(one.id);
            one.end(Ended::DatabaseClosed);
            drop_session(&one);
        }
    }

    /// Takes the connections off the streams of `database` if they alone keep it in use and all of them rest. The
    /// streams go on; the connections are the caller's to close, away from the runtime's threads.
    pub(crate) fn rest(&self, database: &OpenDb) -> Vec<Session> {
        let id = database.meta().id;
        let of: Vec<Arc<Shared>> = lock(&self.open)
            .values()
            .filter(|one| one.database == id)
            .cloned()
            .collect();
        let mut resting = Vec::new();
        for one in of {
            let Some(own) = one.idle() else { continue };
            if own.session.as_ref().is_some_and(Session::leaves_no_trace) {
                resting.push((one, own));
            }
        }
        if resting.len() != database.users() {
            return Vec::new();
        }
        let taken = resting.into_iter().filter_map(|(one, mut own)| {
            *lock(&one.running) = None;
            own.session.take()
        });
        taken.collect()
    }

    /// Ends what is due. Answers whether there are streams left to watch.
    fn sweep(&self) -> bool {
        let settings = &self.core.settings;
        let now = self.now();
        let all: Vec<Arc<Shared>> = lock(&self.open).values().cloned().collect();
        for one in &all {
            if one.ended().is_some() {
                self.remove(one.id);
                continue;
            }
            if pins_too_long(one, now, settings) {
                self.remove(one.id);
                one.end(Ended::Pinned);
            }
            let unused = now.saturating_sub(one.last_used.load(Ordering::Relaxed));
            if unused < micros(settings.stream_gate_idle.min(settings.stream_idle)) {
                if one.ended().is_some() {
                    drop_session(one);
                }
                continue;
            }
            let Some(mut own) = one.idle() else { continue };
            // Whoever used it between the two looks has set the time anew.
            let unused = now.saturating_sub(one.last_used.load(Ordering::Relaxed));
            if unused >= micros(settings.stream_idle) || one.ended().is_some() {
                self.remove(one.id);
                one.end(Ended::Idle);
                *lock(&one.running) = None;
                discard(own.session.take());
            } else if unused >= micros(settings.stream_gate_idle)
                && own.session.as_ref().is_some_and(Session::holds_gate)
            {
                // The guard goes along: a request that comes meanwhile waits for the end of it.
                let one = Arc::clone(one);
                let executor = self.core.executor();
                executor.run(Box::new(move || {
                    if let Some(session) = &mut own.session {
                        session.lose_transaction();
                    }
                    one.reading_since.store(0, Ordering::Relaxed);
                    // Whoever ended it meanwhile could not reach the connection.
                    if one.ended().is_some() {
                        own.session = None;
                    }
                }));
            }
        }
        !all.is_empty()
    }
}

/// The stream that was unused for longest and holds nothing.
fn idlest<'a>(open: impl Iterator<Item = &'a Arc<Shared>>) -> Option<StreamId> {
    open.filter(|one| {
        let own = one.idle();
        own.is_some_and(|own| own.session.as_ref().is_none_or(Session::is_clean))
    })
    .min_by_key(|one| one.last_used.load(Ordering::Relaxed))
    .map(|one| one.id)
}

fn pins_too_long(one: &Shared, now: u64, settings: &Settings) -> bool {
    let since = one.reading_since.load(Ordering::Relaxed);
    if since == 0 || now.saturating_sub(since) < micros(settings.reader_max_age) {
        return false;
    }
    let database = lock(&one.running)
        .as_ref()
        .and_then(|one| one.database.upgrade());
    database.is_some_and(|database| database.wal_bytes() > settings.wal_hard_bytes)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Closes the connection of a stream that has ended, unless a request uses it, which then does.
fn drop_session(one: &Shared) {
    if let Some(mut own) = one.idle() {
        *lock(&one.running) = None;
        discard(own.session.take());
    }
}

/// Closes a connection away from the runtime's threads: rolling back may read and write.
fn discard(session: Option<Session>) {
    if let Some(session) = session {
        let executor = session.lease().core.executor();
        executor.run(Box::new(move || drop(session)));
    }
}

impl Database {
    /// A new stream of a principal.
    pub fn stream(&self, principal: [u8; 16]) -> Result<Stream, Error> {
        self.admit_read()?;
        let streams = &self.engine().inner.registry.streams;
        streams.add(self, principal).map(Stream)
    }
}

impl Engine {
    /// Ends a stream that its client has no more use for, and rolls back what is open on it.
    pub fn end_stream(&self, stream: &Stream) {
        self.inner.registry.streams.remove(stream.id());
        stream.0.end(Ended::Closed);
        drop_session(&stream.0);
    }

    /// How many streams are open.
    pub fn stream_count(&self) -> usize {
        self.inner.registry.streams.count()
    }

    /// Ends streams as they come due; sleeps while there are none.
    pub(crate) fn spawn_stream_sweep(&self) {
        let registry = Arc::downgrade(&self.inner.registry);
        let settings = &self.inner.core.settings;
        let shortest = settings.stream_gate_idle.min(settings.stream_idle);
        let pause = (shortest / 20).clamp(Duration::from_millis(5), Duration::from_millis(250));
        self.spawn_until_stop(|mut stop| async move {
            loop {
                let Some(all) = registry
                    .upgrade()
                    .map(|registry| Arc::clone(&registry.streams))
                else {
                    return;
                };
                let pending = async {
                    if all.sweep() {
                        tokio::time::sleep(pause).await;
                    } else {
                        all.opened.notified().await;
                    }
                };
                tokio::select! {
                    () = pending => {}
                    _ = stop.changed() => return,
                }
            }
        });
    }
}
