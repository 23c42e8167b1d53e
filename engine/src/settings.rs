//! Every bound of the engine in one place, each with what raising and lowering it costs.
//!
//! Settings are plain values; components (clock, randomness, disk, executor, store) are [`crate::Parts`].

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tidelog_archive::seal::MasterKeys;
use tidelog_wal::NodeId;

/// When a write is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// SQLite has committed: survives a crash of the process.
    Memory,
    /// The journal chunk that holds it is synced: survives power loss.
    Local,
    /// The journal object that holds it, and all before it, is stored: survives the loss of the machine.
    Remote,
}

impl Durability {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "memory" => Ok(Self::Memory),
            "local" => Ok(Self::Local),
            "remote" => Ok(Self::Remote),
            _ => Err(format!(
                "durability is memory, local or remote, not {text:?}"
            )),
        }
    }
}

/// Whose open terms a starting node may close beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TakeOver {
    /// Only its own.
    #[default]
    None,
    /// Those of one node, which must be dead.
    Node(NodeId),
    /// Those of every node.
    All,
}

/// What the engine is told. `Default` is what `tidelog serve` runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data folder: SQLite files, journal, node identity. One process at a time.
    pub data: PathBuf,
    /// Where history is stored.
    pub store_url: String,
    /// Durability of a write that does not ask for one.
    pub durability: Durability,
    /// Whose terms to close at start.
    pub take_over: TakeOver,
    /// Join a bucket with an empty folder for one errand, taking nothing over: refused while a term is open.
    pub visit: bool,
    /// The master keys, the newest last. With any, encryption is on: new databases, the local journal and spools
    /// are sealed. Without, a sealed bucket or data folder is refused.
    pub master_keys: MasterKeys,
    /// How long a chunk collects commits. Longer: fewer requests and better compression, more to lose with
    /// the machine for writes below `remote`.
    pub ship_interval: Duration,
    /// How long a chunk waits for company once a `remote` writer waits. Longer: fewer requests, slower
    /// `remote` writes.
    pub ship_linger: Duration,
    /// A chunk is sealed when it holds this many bytes. Larger: fewer requests, more memory while an object
    /// is built (about twice this).
    pub chunk_bytes: u64,
    /// Journal objects on their way at once. More: hides latency, more memory, more order to wait for.
    pub inflight_puts: usize,
    /// Everything under the journal folder. At this bound writes are refused with `journal-full`; lower:
    /// shorter store outages are survived without refusals.
    pub journal_max_bytes: u64,
    /// A `remote` or `local` wait that lasts longer is answered `durability-timeout`.
    pub durability_timeout: Duration,
    /// Compressed unsettled log of one database at which it is settled. Larger: fewer, larger segments;
    /// longer tails to read at a restore.
    pub settle_bytes: u64,
    /// The oldest unsettled commit is at most this old.
    pub settle_age: Duration,
    /// Pause between two settles of this node. Shorter: more requests a second.
    pub settle_pause: Duration,
    /// Copy captured frames into the database file whenever the WAL has grown by this, beside the writers. Smaller:
    /// more syncs; larger: more is left for the writer that makes the WAL exceed `wal_soft_bytes`. What a rewind or a
    /// replacing import writes waits until that is stored, 5 s at most, or the WAL has grown by this once more.
    pub wal_backfill_bytes: u64,
    /// Restart the WAL beyond this. Larger: longer WAL indexes, slower reads.
    pub wal_soft_bytes: u64,
    /// A database unused for this long is checkpointed and closed. Shorter: fewer descriptors, more opens.
    pub idle_close: Duration,
    /// How often idle databases and waiting checkpoints are looked for.
    pub idle_sweep: Duration,
    /// A stored chunk waits at most this long for the checkpoint of a database in it that stays open and is
    /// rarely written. Longer: fewer checkpoints, more chunks on disk and more to read after a crash.
    pub checkpoint_age: Duration,
    /// Writes are refused with `disk-full` before they begin when the disk of the data folder has less than this
    /// left. Higher: more room to finish what was begun; lower: more of the disk can be used.
    pub disk_reserve_bytes: u64,
    /// Databases open at once, of which one tenant has at most half. Each takes about 12 descriptors and 1 MiB. Lower: more
    /// databases are closed and opened again, one that was unused for longest for each that is opened beyond it.
    pub open_databases_max: usize,
    /// SQLite jobs running at once.
    pub workers: usize,
    /// SQLite jobs of one tenant running at once. Lower: a loud tenant leaves more for the others, and has
    /// less when it is alone.
    pub workers_per_tenant: usize,
    /// While several tenants ask for something: statements of one tenant that run at once, and long statements of all
    /// of them together. More: less of the processors is left for the others.
    pub turns_at_once: usize,
    /// A commit whose record is larger than this stands in a segment part of its own.
    pub spool_bytes: u64,
    /// Writers that may wait for one database's write gate.
    pub gate_queue_max: usize,
    /// How long a writer waits for the gate before `database-busy`.
    pub gate_timeout: Duration,
    /// A stream that was not used for this long ends. Longer: more open connections.
    pub stream_idle: Duration,
    /// A stream that holds the write gate and does nothing for this long is rolled back. Longer: a client that
    /// dawdles or vanishes inside a transaction keeps the other writers waiting.
    pub stream_gate_idle: Duration,
    /// Streams of one principal at once; each is a connection of about 400 KiB. At the bound the one that was
    /// unused for longest and holds nothing makes place.
    pub streams_per_principal: usize,
    /// Streams of one database at once.
    pub streams_per_database: usize,
    /// Streams of one tenant at once. More: less is left for the others.
    pub streams_per_tenant: usize,
    /// Streams of the node at once. A stream whose client reads a result slowly holds one of the runtime's blocking
    /// threads: it must have more of them than this.
    pub streams_max: usize,
    /// A read transaction older than this is interrupted once the WAL is longer than `wal_hard_bytes`, and the stream
    /// that holds it ends: it keeps the WAL from starting anew.
    pub reader_max_age: Duration,
    /// See `reader_max_age`.
    pub wal_hard_bytes: u64,
    /// Restores in place of one database in ten minutes. Each is a commit as large as what it takes back.
    pub restores_max: usize,
    /// How often a restore drill proves the database that was proven longest ago; `None` for never. Shorter:
    /// fresher proof and restore times, more reads from the store.
    pub drill_interval: Option<Duration>,
    /// zstd level of journal objects: on the path of every commit.
    pub journal_level: i32,
    /// zstd level of segments and images: once for each byte, off the path.
    pub settle_level: i32,
    /// How often audit lines leave for the bucket. Shorter: more, smaller objects.
    pub audit_ship_interval: Duration,
    /// How long audit lines are kept, in the system database and in the bucket.
    pub audit_retention: Duration,
    /// How long the bucket's own rules keep old versions of objects, if it keeps any; `None` if that is not known.
    /// Purges say until when they may live by it.
    pub old_versions: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./tidelog-data"),
            store_url: "file://./tidelog-store".to_owned(),
            durability: Durability::Local,
            take_over: TakeOver::None,
            visit: false,
            master_keys: MasterKeys::default(),
            ship_interval: Duration::from_secs(1),
            ship_linger: Duration::from_millis(10),
            chunk_bytes: 4 << 20,
            inflight_puts: 2,
            journal_max_bytes: 4 << 30,
            durability_timeout: Duration::from_secs(10),
            settle_bytes: 1 << 20,
            settle_age: Duration::from_hours(1),
            settle_pause: Duration::from_secs(1),
            wal_backfill_bytes: 1 << 20,
            wal_soft_bytes: 4 << 20,
            idle_close: Duration::from_secs(30),
            idle_sweep: Duration::from_secs(5),
            checkpoint_age: Duration::from_mins(1),
            disk_reserve_bytes: 64 << 20,
            open_databases_max: 1024,
            workers: 16,
            workers_per_tenant: 8,
            // One processor is left for everything else.
            turns_at_once: std::thread::available_parallelism()
                .map_or(1, |processors| processors.get().saturating_sub(1).max(1)),
            spool_bytes: 1 << 20,
            gate_queue_max: 1024,
            gate_timeout: Duration::from_secs(5),
            stream_idle: Duration::from_mins(1),
            stream_gate_idle: Duration::from_secs(5),
            streams_per_principal: 128,
            streams_per_database: 256,
            streams_per_tenant: 1024,
            streams_max: 2048,
            reader_max_age: Duration::from_mins(1),
            wal_hard_bytes: 64 << 20,
            restores_max: 10,
            drill_interval: None,
            journal_level: 3,
            settle_level: 9,
            audit_ship_interval: Duration::from_hours(1),
            audit_retention: Duration::from_hours(90 * 24),
            old_versions: None,
        }
    }
}
