//! The journal: a process life's log of the commit records of all its databases.
//!
//! Records are appended to the open chunk in the order they were captured. The chunk is synced in groups
//! (one sync serves every writer that waits), sealed by the shipper, shipped as one journal object, and
//! deleted when nothing needs it: it is stored, every database in it was checkpointed past its records (the
//! journal is the redo log of the SQLite files), and they are settled.
//!
//! Watermarks are local record numbers (`lsn`), dense in a process life, from 1:
//! `appended >= synced`, `appended >= shipped`. Shipped moves in order: it never passes an object that is
//! not acknowledged.
//!
//! A failed append is cut back to the last whole record. A failed sync, or a cut that fails, poisons the
//! journal: nothing is acknowledged any more until the node restarts and recovers (HAZARDS W22).

pub mod chunk;
pub(crate) mod hold;
pub mod replay;
pub(crate) mod tail;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use tidelog_archive::env::Clock;
use tidelog_wal::{Chain, ClusterId, DatabaseId, NamespaceId, Term, TxId};
use tokio::sync::{Notify, watch};

use crate::boxed;
use crate::crash_point;
use crate::disk::{AppendFile, Disk};
use crate::error::{Code, Error};

use chunk::{ChunkDatabase, ChunkHeader, Entry, EntryAt, WalPosition};

/// The bytes of a record, or where they stand.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// The canonical record.
    Record(&'a [u8]),
    /// A record whose bytes stand, synced, in a spool file.
    Spooled {
        /// Its length.
        len: u64,
        /// BLAKE3 of it.
        blake3: [u8; 32],
        /// The record's header as canonical bytes.
        header: &'a [u8],
    },
}

/// A record to append.
#[derive(Debug, Clone, Copy)]
pub struct Append<'a> {
    /// Its number in its database.
    pub txid: TxId,
    /// Where the WAL stood.
    pub wal: WalPosition,
    /// The chain after it.
    pub chain: Chain,
    /// Its bytes.
    pub payload: Payload<'a>,
}

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

/// A chunk that takes no more records.
#[derive(Debug, Clone)]
pub struct SealedChunk {
    /// Its name.
    pub id: ChunkId,
    /// Its file.
    pub path: PathBuf,
    /// Length of the file.
    pub len: u64,
    /// Local number of its first record.
    pub first_lsn: u64,
    /// Local number of its last record.
    pub last_lsn: u64,
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

/// When the open chunk wants to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealDue {
    /// It holds nothing.
    Empty,
    /// At this monotonic time in microseconds.
    At(u64),
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

fn create_chunk(parts: &JournalParts, seq: u64, first_lsn: u64) -> Result<OpenChunk, Error> {
    let id = (parts.term, seq);
    let path = chunk_path(&parts.folder, id);
    let header = ChunkHeader {
        term: parts.term,
        seq,
        first_lsn,
        cluster: parts.cluster,
    };
    let io = |error| Error::io(format!("create journal chunk {}", path.display()), error);
    let file: Arc<dyn AppendFile> = parts.disk.create(&path).map_err(io)?.into();
    if let Err(error) = file.write_at(0, &header.encode()) {
        // Its name must be free for the next attempt; what cannot be removed now fails that one.
        let _ = parts.disk.remove(&path);
        return Err(io(error));
    }
    Ok(OpenChunk {
        id,
        path,
        file,
        len: chunk::HEADER_LEN as u64,
        first_lsn,
        slots: HashMap::new(),
        heads: HashMap::new(),
        first_record_at: None,
        waited_for_since: None,
    })
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

    /// Appends records of one database, in order; answers the local number of the last.
    ///
    /// They are written when this returns, not synced. On an error none of them counts.
    pub fn append(&self, database: &ChunkDatabase, records: &[Append<'_>]) -> Result<u64, Error> {
        self.check_poison()?;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        let known = state.open.slots.get(&database.id).copied();
        let slot = known.unwrap_or_else(|| slot_number(state.open.slots.len()));
        if known.is_none() {
            Entry::Database {
                slot,
                database: *database,
            }
            .encode(&mut buffer);
        }
        let first_lsn = state.next_lsn;
        for (lsn, append) in (first_lsn..).zip(records) {
            let at = EntryAt {
                slot,
                lsn,
                wal: append.wal,
                chain: append.chain,
            };
            match append.payload {
                Payload::Record(record) => Entry::Record { at, record }.encode(&mut buffer),
                Payload::Spooled {
                    len,
                    blake3,
                    header,
                } => {
                    Entry::Spooled {
                        at,
                        len,
                        blake3,
                        header,
                    }
                    .encode(&mut buffer);
                }
            }
        }
        crash_point!("journal.before_append");
        let open = &mut state.open;
        let written = open.file.write_at(open.len, &buffer);
        if let Err(error) = written {
            let cut = open.file.truncate(open.len);
            state.buffer = buffer;
            drop(guard);
            let error = Error::io("append to the journal", error);
            if let Err(cut) = cut {
                self.poison(Error::io("cut back the journal after a failed append", cut));
            }
            return Err(error);
        }
        crash_point!("journal.after_append");
        open.len += buffer.len() as u64;
        open.slots.insert(database.id, slot);
        let marks = state.watermarks.entry(database.id).or_default();
        marks.namespace = database.namespace;
        if let Some(last) = records.last() {
            open.heads.insert(database.id, last.txid);
            open.first_record_at
                .get_or_insert(self.parts.clock.monotonic_micros());
        }
        state.buffer = buffer;
        state.next_lsn += records.len() as u64;
        let appended = state.next_lsn - 1;
        let mut rolled = false;
        if state.open.len >= self.parts.chunk_bytes {
            match self.roll(state) {
                Ok(()) => rolled = true,
                // The records stand where they are; the next append tries again.
                Err(error) => tracing::warn!(%error, "the open chunk grows beyond its length"),
            }
        }
        drop(guard);
        self.appended.send_replace(appended);
        if rolled {
            // Its descriptor is held until it is synced.
            self.want_sync(appended);
        }
        self.ship_wake.notify_one();
        Ok(appended)
    }

    /// Begins the next chunk; the open one, which holds a record, takes no more.
    fn roll(&self, state: &mut State) -> Result<(), Error> {
        let next = create_chunk(&self.parts, state.open.id.1 + 1, state.next_lsn)?;
        crash_point!("journal.after_roll");
        let old = std::mem::replace(&mut state.open, next);
        let last_lsn = state.next_lsn - 1;
        state.unsynced.push_back((last_lsn, old.file));
        let kept = Kept {
            path: old.path.clone(),
            len: old.len,
            heads: old.heads,
            shipped: None,
            since: old.first_record_at.unwrap_or(u64::MAX),
        };
        state.kept.insert(old.id, kept);
        state.sealed.push_back(SealedChunk {
            id: old.id,
            path: old.path,
            len: old.len,
            first_lsn: old.first_lsn,
            last_lsn,
        });
        Ok(())
    }

    /// Makes every record up to `lsn` durable on this disk. Blocks; one sync serves all that wait.
    pub fn sync_to(&self, lsn: u64) -> Result<(), Error> {
        if *self.synced.borrow() >= lsn {
            return Ok(());
        }
        let turn = lock(&self.syncing);
        if *self.synced.borrow() >= lsn {
            return Ok(());
        }
        self.check_poison()?;
        let (files, appended) = {
            let state = lock(&self.state);
            let mut files: Vec<_> = state
                .unsynced
                .iter()
                .map(|(_, file)| Arc::clone(file))
                .collect();
            files.push(Arc::clone(&state.open.file));
            (files, state.next_lsn - 1)
        };
        for file in files {
            if let Err(error) = file.sync() {
                drop(turn);
                self.poison(Error::io("sync the journal", error));
                return self.check_poison();
            }
        }
        crash_point!("journal.after_sync");
        lock(&self.state)
            .unsynced
            .retain(|(last, _)| *last > appended);
        self.synced.send_replace(appended);
        drop(turn);
        Ok(())
    }

    /// The loop of the sync thread: syncs whenever somebody waits. Returns when the journal is closed or
    /// poisoned.
    pub fn sync_loop(&self) {
        loop {
            let wanted = {
                let mut guard = lock(&self.sync_wanted);
                while guard.0 <= *self.synced.borrow() && !guard.1 {
                    guard = self
                        .sync_wake
                        .wait(guard)
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if guard.1 {
                    return;
                }
                guard.0
            };
            if self.sync_to(wanted).is_err() {
                return;
            }
        }
    }

    /// Ends the sync thread.
    pub fn stop_syncing(&self) {
        lock(&self.sync_wanted).1 = true;
        self.sync_wake.notify_all();
    }

    fn want_sync(&self, lsn: u64) {
        let mut guard = lock(&self.sync_wanted);
        if guard.0 < lsn {
            guard.0 = lsn;
            self.sync_wake.notify_one();
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

    /// Waits until every record up to `lsn` is synced.
    #[boxed]
    pub async fn wait_synced(&self, lsn: u64) -> Result<(), Error> {
        self.want_sync(lsn);
        self.wait(&self.synced, lsn).await
    }

    /// Waits until every record up to `lsn` is stored and acknowledged in order.
    #[boxed]
    pub async fn wait_shipped(&self, lsn: u64) -> Result<(), Error> {
        if *self.shipped.borrow() < lsn {
            let now = self.parts.clock.monotonic_micros();
            lock(&self.state).open.waited_for_since.get_or_insert(now);
            self.ship_wake.notify_one();
        }
        self.wait(&self.shipped, lsn).await
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

    /// Follows the shipped watermark.
    pub fn shipped_watch(&self) -> watch::Receiver<u64> {
        self.shipped.subscribe()
    }

    /// Wakes when a record was appended or a `remote` writer began to wait.
    #[boxed]
    pub async fn ship_wanted(&self) {
        self.ship_wake.notified().await;
    }

    /// Wakes the shipper.
    pub fn wake_shipper(&self) {
        self.ship_wake.notify_one();
    }

    /// When the open chunk should be sealed, by the three rules of DESIGN 5.4.
    pub fn seal_due(&self, interval_us: u64, linger_us: u64) -> SealDue {
        let state = lock(&self.state);
        if !state.sealed.is_empty() {
            return SealDue::At(0);
        }
        let Some(first) = state.open.first_record_at else {
            return SealDue::Empty;
        };
        let by_age = first.saturating_add(interval_us);
        let by_waiter = state
            .open
            .waited_for_since
            .map(|since| since.max(first) + linger_us);
        SealDue::At(by_waiter.unwrap_or(by_age).min(by_age))
    }

    /// The next chunk to be shipped, synced: one that is full, else the open one if it holds a record. Blocks.
    pub fn seal(&self) -> Result<Option<SealedChunk>, Error> {
        self.check_poison()?;
        let sealed = {
            let mut state = lock(&self.state);
            if state.sealed.is_empty() && state.open.first_record_at.is_some() {
                self.roll(&mut state)?;
            }
            match state.sealed.pop_front() {
                Some(sealed) => sealed,
                None => return Ok(None),
            }
        };
        crash_point!("journal.before_seal_sync");
        self.sync_to(sealed.last_lsn)?;
        crash_point!("journal.after_seal_sync");
        Ok(Some(sealed))
    }

    /// Says that the chunk, and all before it, are stored.
    pub fn set_shipped(&self, sealed: &SealedChunk) {
        let now = self.parts.clock.monotonic_micros();
        self.flushed_at.store(now, Ordering::Relaxed);
        if let Some(kept) = lock(&self.state).kept.get_mut(&sealed.id) {
            kept.shipped = Some(now);
        }
        self.shipped.send_if_modified(|lsn| {
            let moved = *lsn < sealed.last_lsn;
            *lsn = (*lsn).max(sealed.last_lsn);
            moved
        });
    }

    /// Keeps a stored chunk of an earlier life until its records are settled.
    pub fn keep_earlier(&self, chunk: &replay::FoundChunk) {
        let now = self.parts.clock.monotonic_micros();
        self.keep(chunk, Some(now), u64::MAX);
    }

    /// Keeps a chunk of which it is not known whether it is stored.
    pub fn keep_waiting(&self, chunk: &replay::FoundChunk) {
        let now = self.parts.clock.monotonic_micros();
        self.keep(chunk, None, now);
    }

    fn keep(&self, chunk: &replay::FoundChunk, shipped: Option<u64>, since: u64) {
        let kept = Kept {
            path: chunk.path.clone(),
            len: chunk.len,
            heads: chunk.heads.clone(),
            shipped,
            since,
        };
        let mut state = lock(&self.state);
        state.kept.insert(chunk.id, kept);
        for database in &chunk.databases {
            let marks = state.watermarks.entry(database.id).or_default();
            marks.namespace = database.namespace;
        }
    }

    /// Databases for whose checkpoint alone a stored chunk waits, stored `age_us` ago or longer; when the journal
    /// is crowded, whatever its age.
    pub fn wanting_checkpoint(&self, age_us: u64) -> Vec<(NamespaceId, DatabaseId)> {
        let now = self.parts.clock.monotonic_micros();
        let crowded = self.is_crowded();
        let state = lock(&self.state);
        let old = state.kept.values().filter(|chunk| {
            let waits = |at: u64| crowded || now.saturating_sub(at) >= age_us;
            chunk.shipped.is_some_and(waits)
        });
        let mut wanting: Vec<(NamespaceId, DatabaseId)> = old
            .flat_map(|chunk| &chunk.heads)
            .filter_map(|(id, txid)| {
                let marks = state.watermarks.get(id).copied().unwrap_or_default();
                (marks.checkpointed < *txid).then_some((marks.namespace, *id))
            })
            .collect();
        wanting.sort_unstable();
        wanting.dedup();
        wanting
    }

    /// Whether a stored chunk waits for a checkpoint of `database`.
    pub(crate) fn waits_for_checkpoint(&self, database: DatabaseId) -> bool {
        let state = lock(&self.state);
        let done = state
            .watermarks
            .get(&database)
            .map_or(TxId::ZERO, |marks| marks.checkpointed);
        let waits = |chunk: &Kept| {
            chunk.shipped.is_some() && chunk.heads.get(&database).is_some_and(|head| *head > done)
        };
        state.kept.values().any(waits)
    }

    /// Whether so much stands in the journal folder that what is stored has to go soon.
    pub fn is_crowded(&self) -> bool {
        self.bytes() > self.parts.bytes_max / 2
    }

    /// The file of a chunk that is still here.
    pub fn chunk_file(&self, id: ChunkId) -> Option<PathBuf> {
        lock(&self.state)
            .kept
            .get(&id)
            .map(|kept| kept.path.clone())
    }

    /// Says that the SQLite file of `database` holds everything up to `txid`, synced.
    pub fn set_checkpointed(&self, database: DatabaseId, txid: TxId) {
        let mut state = lock(&self.state);
        let mark = state.watermarks.entry(database).or_default();
        mark.checkpointed = mark.checkpointed.max(txid);
    }

    /// Says that `database` is settled up to `txid`.
    pub fn set_settled(&self, database: DatabaseId, txid: TxId) {
        let mut state = lock(&self.state);
        let mark = state.watermarks.entry(database).or_default();
        mark.settled = mark.settled.max(txid);
    }

    /// Counts a spool file, to be deleted with the chunks: when its record is shipped and checkpointed.
    pub fn add_spool(&self, path: PathBuf, database: DatabaseId, txid: TxId, len: u64) {
        lock(&self.state).spools.insert(path, (database, txid, len));
    }

    /// Deletes what nothing needs any more: stored, checkpointed, settled, and not being read. Beyond half the bound, stored and
    /// checkpointed suffices: settling then reads the objects back.
    pub fn collect(&self) -> Result<(), Error> {
        let crowded = self.is_crowded();
        let doomed: Vec<PathBuf> = {
            let mut state = lock(&self.state);
            let State {
                open,
                kept,
                watermarks,
                spools,
                ..
            } = &mut *state;
            let done = |id: &DatabaseId, txid: &TxId, settle: bool| {
                watermarks.get(id).is_some_and(|mark| {
                    mark.checkpointed >= *txid && (!settle || mark.settled >= *txid)
                }) && !self.holds.is_held(*id, *txid)
            };
            let free: Vec<ChunkId> = kept
                .iter()
                .filter(|(_, chunk)| {
                    chunk.shipped.is_some()
                        && chunk
                            .heads
                            .iter()
                            .all(|(id, txid)| done(id, txid, !crowded))
                })
                .map(|(id, _)| *id)
                .collect();
            let mut doomed: Vec<PathBuf> = free
                .iter()
                .filter_map(|id| kept.remove(id))
                .map(|chunk| chunk.path)
                .collect();
            spools.retain(|path, (id, txid, _)| {
                let free = done(id, txid, false)
                    && !open.heads.contains_key(id)
                    && !kept
                        .values()
                        .any(|c| c.shipped.is_none() && c.heads.contains_key(id));
                if free {
                    doomed.push(path.clone());
                }
                !free
            });
            doomed
        };
        for path in doomed {
            crash_point!("journal.before_remove");
            self.parts
                .disk
                .remove(&path)
                .map_err(|e| Error::io(format!("remove {}", path.display()), e))?;
        }
        Ok(())
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

    /// Admission of a write that has not begun: refused when the journal is at its bound or poisoned.
    pub fn admit(&self) -> Result<(), Error> {
        self.check_poison()?;
        let bytes = self.bytes();
        if bytes < self.parts.bytes_max {
            return Ok(());
        }
        Err(Error::new(
            Code::JournalFull,
            format!(
                "the journal folder holds {bytes} bytes, its bound is {}; writes go on when the store has taken them",
                self.parts.bytes_max
            ),
        )
        .with("limit", self.parts.bytes_max)
        .with("used", bytes))
    }
}

fn slot_number(databases: usize) -> u32 {
    u32::try_from(databases).expect("a chunk holds fewer than 2^32 databases")
}
