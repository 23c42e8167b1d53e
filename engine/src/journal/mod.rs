//! The journal: a process life's log of the commit records of all its databases.
//!
//! Records are appended to the open chunk in the order they were captured. The chunk is synced in groups, sealed by the
//! shipper, shipped as one journal object, and deleted when nothing needs it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `append` | records go into the open chunk, all of them or none |
//! | `sync` | one sync serves every writer that waits |
//! | `ship` | a chunk is sealed, and stored in order |
//! | `keep` | what a chunk is still needed for, and its end |
//! | [`chunk`] | the bytes of a chunk |
//! | [`replay`], `tail` | the chunks that an earlier life left; what one database has in them |
//! | `hold` | chunks that somebody reads |
//!
//! Watermarks are local record numbers (`lsn`), dense in a process life, from 1:
//! `appended >= synced`, `appended >= shipped`. Shipped moves in order: it never passes an object that is
//! not acknowledged.
//!
//! A failed append is cut back to the last whole record. A failed sync, or a cut that fails, poisons the
//! journal: nothing is acknowledged any more until the node restarts and recovers (HAZARDS W22).

mod append;
pub mod chunk;
pub(crate) mod hold;
mod keep;
pub mod replay;
mod ship;
mod sync;
pub(crate) mod tail;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use tidelog_archive::env::Clock;
use tidelog_wal::{ClusterId, DatabaseId, NamespaceId, Term, TxId};
use tokio::sync::{Notify, watch};

use crate::disk::{AppendFile, Disk};
use crate::error::Error;

use append::create_chunk;
pub use append::{Append, Payload};
pub use ship::{SealDue, SealedChunk};

/// Names a chunk: the life that wrote it, and its place in it.
pub type ChunkId = (Term, u64);

/// The highest TxId of each database in a chunk.
type Heads = HashMap<DatabaseId, TxId>;

#[derive(Debug)]
struct OpenChunk {
    id: ChunkId,
    path: PathBuf,
    file: Arc<dyn AppendFile>,
    len: u64,
    first_lsn: u64,
    slots: HashMap<DatabaseId, u32>,
    heads: Heads,
    first_record_at: Option<u64>,
    waited_for_since: Option<u64>,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    len: u64,
    heads: Heads,
    /// Since when its first record waits to be stored, on the monotonic clock.
    since: u64,
    /// When it was stored, on the monotonic clock.
    shipped: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watermarks {
    namespace: NamespaceId,
    checkpointed: TxId,
    settled: TxId,
}

#[derive(Debug)]
struct State {
    open: OpenChunk,
    /// Chunks that take no more records and that nobody has asked for yet, in order.
    sealed: VecDeque<SealedChunk>,
    next_lsn: u64,
    unsynced: VecDeque<(u64, Arc<dyn AppendFile>)>,
    kept: BTreeMap<ChunkId, Kept>,
    spools: HashMap<PathBuf, (DatabaseId, TxId, u64)>,
    watermarks: HashMap<DatabaseId, Watermarks>,
    buffer: Vec<u8>,
}

/// What the journal is made with.
#[derive(Debug, Clone)]
pub struct JournalParts {
    /// The journal folder.
    pub folder: PathBuf,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The bucket.
    pub cluster: ClusterId,
    /// This process life.
    pub term: Term,
    /// The most bytes under the folder.
    pub bytes_max: u64,
    /// A chunk of this length takes no more records, whether or not it can be shipped now.
    pub chunk_bytes: u64,
}

/// The journal of one process life in one store.
#[derive(Debug)]
pub struct Journal {
    parts: JournalParts,
    state: Mutex<State>,
    syncing: Mutex<()>,
    sync_wanted: Mutex<(u64, bool)>,
    sync_wake: Condvar,
    appended: watch::Sender<u64>,
    synced: watch::Sender<u64>,
    shipped: watch::Sender<u64>,
    poison: watch::Sender<Option<Arc<Error>>>,
    ship_wake: Notify,
    /// What somebody reads.
    holds: Arc<hold::Holds>,
    /// When a chunk was last stored, on the monotonic clock.
    flushed_at: AtomicU64,
}

/// The file of a chunk.
pub fn chunk_path(folder: &Path, (term, seq): ChunkId) -> PathBuf {
    folder.join(format!("{term}-{seq:016x}.chunk"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Journal {
    /// Begins the journal of a life whose first chunk has number `first_seq`.
    pub fn create(parts: JournalParts, first_seq: u64) -> Result<Self, Error> {
        Self::resume(parts, first_seq, 1)
    }

    /// Goes on with the journal of a life that ended: its next chunk has number `first_seq`, the next record
    /// `first_lsn`.
    pub fn resume(parts: JournalParts, first_seq: u64, first_lsn: u64) -> Result<Self, Error> {
        let open = create_chunk(&parts, first_seq, first_lsn)?;
        let before = first_lsn.saturating_sub(1);
        let flushed_at = AtomicU64::new(parts.clock.monotonic_micros());
        let state = State {
            open,
            sealed: VecDeque::new(),
            next_lsn: first_lsn,
            unsynced: VecDeque::new(),
            kept: BTreeMap::new(),
            spools: HashMap::new(),
            watermarks: HashMap::new(),
            buffer: Vec::new(),
        };
        Ok(Self {
            parts,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
            sync_wanted: Mutex::new((0, false)),
            sync_wake: Condvar::new(),
            appended: watch::Sender::new(before),
            synced: watch::Sender::new(before),
            shipped: watch::Sender::new(0),
            poison: watch::Sender::new(None),
            ship_wake: Notify::new(),
            holds: Arc::default(),
            flushed_at,
        })
    }

    /// This process life.
    pub const fn term(&self) -> Term {
        self.parts.term
    }

    /// The bucket it belongs to.
    pub const fn cluster(&self) -> ClusterId {
        self.parts.cluster
    }

    /// The journal folder.
    pub fn folder(&self) -> &Path {
        &self.parts.folder
    }

    /// Why the journal takes nothing any more, if so.
    pub fn poisoned(&self) -> Option<Arc<Error>> {
        self.poison.borrow().clone()
    }

    /// Refuses everything from now on.
    pub fn poison(&self, error: Error) {
        tracing::error!(%error, "journal poisoned: nothing is acknowledged until the node restarts");
        self.poison.send_if_modified(|poison| {
            let first = poison.is_none();
            if first {
                *poison = Some(Arc::new(error));
            }
            first
        });
        self.stop_syncing();
    }

    fn check_poison(&self) -> Result<(), Error> {
        match self.poisoned() {
            None => Ok(()),
            Some(error) => Err(Error::new(error.code(), error.to_string())),
        }
    }

    async fn wait(&self, watermark: &watch::Sender<u64>, lsn: u64) -> Result<(), Error> {
        let mut reached = watermark.subscribe();
        let mut poison = self.poison.subscribe();
        tokio::select! {
            biased;
            _ = reached.wait_for(|done| *done >= lsn) => Ok(()),
            _ = poison.wait_for(Option::is_some) => self.check_poison(),
        }
    }

    /// The newest record written.
    pub fn appended_lsn(&self) -> u64 {
        *self.appended.borrow()
    }

    /// The newest record synced.
    pub fn synced_lsn(&self) -> u64 {
        *self.synced.borrow()
    }

    /// The newest record stored, with all before it.
    pub fn shipped_lsn(&self) -> u64 {
        *self.shipped.borrow()
    }

    /// Bytes under the journal folder.
    pub fn bytes(&self) -> u64 {
        let state = lock(&self.state);
        state.open.len
            + state.kept.values().map(|chunk| chunk.len).sum::<u64>()
            + state.spools.values().map(|(_, _, len)| len).sum::<u64>()
    }

    /// Microseconds since a chunk was last stored, or since the journal began.
    pub fn since_flush_micros(&self) -> u64 {
        let now = self.parts.clock.monotonic_micros();
        now.saturating_sub(self.flushed_at.load(Ordering::Relaxed))
    }

    /// Age in microseconds of the oldest record that is not stored yet, 0 if all are.
    pub fn lag_micros(&self) -> u64 {
        let state = lock(&self.state);
        let waiting = state.kept.values().filter(|chunk| chunk.shipped.is_none());
        let oldest = waiting
            .map(|chunk| chunk.since)
            .chain(state.open.first_record_at)
            .min();
        oldest.map_or(0, |since| {
            self.parts.clock.monotonic_micros().saturating_sub(since)
        })
    }

    /// The newest chunk: no record that was appended so far stands in a later one.
    pub fn newest_chunk(&self) -> ChunkId {
        lock(&self.state).open.id
    }

    /// Whether records of `database` are not stored yet.
    pub fn owes(&self, database: DatabaseId) -> bool {
        let state = lock(&self.state);
        let unshipped =
            |chunk: &Kept| chunk.shipped.is_none() && chunk.heads.contains_key(&database);
        state.open.heads.contains_key(&database) || state.kept.values().any(unshipped)
    }

    /// Bytes that are not stored yet.
    pub fn unshipped_bytes(&self) -> u64 {
        let state = lock(&self.state);
        state.open.len
            + state
                .kept
                .values()
                .filter(|chunk| chunk.shipped.is_none())
                .map(|chunk| chunk.len)
                .sum::<u64>()
    }
}
