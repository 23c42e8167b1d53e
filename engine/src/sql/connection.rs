//! The one place that opens SQLite connections, and what every one of them is told before its first SQL.
//!
//! Rules that hold for every connection (DESIGN 5.1; HAZARDS W9, W15, W24, W32):
//! `NO_CKPT_ON_CLOSE` comes first, so that no close ever checkpoints; WAL mode; automatic checkpoints off and
//! read back; untrusted schema; temporary files in the node's own folder; defensive mode; the authorizer of [`super::policy`]; a
//! progress handler that is the statement's deadline.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};
use tidelog_archive::env::Clock;
use tidelog_wal::PageSize;

use super::policy::{Permission, Policy};
use crate::rules::rule;
use crate::turns::Pace;

/// The oldest SQLite without the WAL-reset race (HAZARDS W13).
pub const SQLITE_FLOOR: i32 = 3_051_003;

/// Virtual machine steps between two looks at the clock.
const STEPS_PER_CHECK: i32 = 1000;
/// Page cache of a connection, in KiB.
const CACHE_KIB: i32 = 256;
/// That of one that writes raw pages, which are spilled one by one where it is full, while writers wait.
pub(crate) const RAW_CACHE_KIB: i32 = 4096;
/// Statements kept prepared.
const STATEMENTS_CACHED: usize = 64;
/// The longest string, blob or row.
const VALUE_BYTES_MAX: i32 = 32 << 20;
/// What the values of a row may take together: SQLite holds all columns at once, however they are made.
const ROW_VALUES_MAX: usize = 256 << 20;
/// Arguments of a function, all of which SQLite holds at once as well.
const FUNCTION_ARGS_MAX: i32 = 127;
/// How long SQLite itself waits for a lock: only recovery and checkpoints ever hold one against us.
const BUSY_TIMEOUT_MS: u64 = 5000;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reads tenant SQL; writing is impossible on it.
    Reader,
    /// Runs writing transactions, behind the write gate.
    Writer,
    /// Checkpoints, and pins read snapshots for them. Runs no tenant SQL.
    Checkpointer,
    /// Writes raw pages, behind the write gate. Runs no tenant SQL; not defensive, for `sqlite_dbpage` and
    /// `schema_version` are refused or ignored otherwise.
    RawPages,
}

/// A connection with its policy and deadline.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    policy: Arc<Policy>,
    deadline: Arc<AtomicU64>,
    pace: Arc<Mutex<Option<Pace>>>,
}

/// A request's statements take turns with others while this lives.
#[derive(Debug)]
pub(crate) struct Paced<'a>(&'a Mutex<Option<Pace>>);

impl Drop for Paced<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The bound of a statement's values, until it is dropped.
#[derive(Debug)]
pub(crate) struct RowShare<'a> {
    connection: &'a Connection,
    value_bytes: i32,
}

impl RowShare<'_> {
    /// The most bytes of one value.
    pub(crate) const fn value_bytes(&self) -> i32 {
        self.value_bytes
    }
}

impl Drop for RowShare<'_> {
    fn drop(&mut self) {
        if self.value_bytes != VALUE_BYTES_MAX {
            // Fails for a negative value alone.
            let _ = self
                .connection
                .set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX);
        }
    }
}

/// The time of a connection's statements, for whoever makes one of them wait between two rows.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    deadline: Arc<AtomicU64>,
    pace: Arc<Mutex<Option<Pace>>>,
}

impl Timing {
    /// Has what runs end at once.
    pub(crate) fn end_now(&self) {
        self.deadline.store(0, Ordering::Relaxed);
    }

    /// The statement waits for somebody: others have its turn meanwhile.
    pub(crate) fn rest(&self) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = pace.as_mut() {
            pace.rest();
        }
    }

    /// It goes on after so many microseconds, which are not its own.
    pub(crate) fn go_on(&self, rested: u64) {
        let later =
            |until: u64| (until != u64::MAX && until != 0).then(|| until.saturating_add(rested));
        // While a statement runs only its end is set beside this; without one there is nothing to put off.
        let _ = self
            .deadline
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = pace.as_mut() {
            pace.go_on(rested);
        }
    }
}

/// Opens a connection to an existing database.
pub fn open(path: &Path, purpose: Purpose, clock: &Arc<dyn Clock>) -> rusqlite::Result<Sqlite> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    configure(connection, purpose, clock)
}

/// Creates a database file of this page size, in WAL mode, and closes it again.
///
/// Switching to WAL writes page 1 into the file itself: the first commit record carries it as the change
/// from nothing (PROTOTYPE B8).
pub fn create(path: &Path, page_size: PageSize, auto_vacuum: AutoVacuum) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "page_size", page_size.get())?;
    connection.pragma_update(None, "auto_vacuum", auto_vacuum.code())?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.close().map_err(|(_, error)| error)
}

/// How a new database gives pages back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoVacuum {
    /// Pages stay in the file.
    #[default]
    None,
    /// At every commit.
    Full,
    /// When asked.
    Incremental,
}

impl AutoVacuum {
    const fn code(self) -> i32 {
        match self {
            Self::None => 0,
            Self::Full => 1,
            Self::Incremental => 2,
        }
    }
}

fn configure(
    mut connection: Connection,
    purpose: Purpose,
    clock: &Arc<dyn Clock>,
) -> rusqlite::Result<Sqlite> {
    connection.busy_timeout(std::time::Duration::from_millis(BUSY_TIMEOUT_MS))?;
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(refused("the database did not enter WAL mode"));
    }
    let cache_kib = if purpose == Purpose::RawPages {
        RAW_CACHE_KIB
    } else {
        CACHE_KIB
    };
    connection.execute_batch(&format!(
        "PRAGMA synchronous=NORMAL; PRAGMA temp_store=FILE; PRAGMA cache_size=-{cache_kib}; \
         PRAGMA foreign_keys=ON; PRAGMA mmap_size=0;"
    ))?;
    let _: i64 = connection.query_row("PRAGMA journal_size_limit=-1", [], |row| row.get(0))?;
    // What is deleted in a page that lives on is overwritten, else it would stand in every image to come and never
    // leave the bucket. Whole pages that become free are not: that would log a dropped table's every byte.
    let _: i64 = connection.query_row("PRAGMA secure_delete=FAST", [], |row| row.get(0))?;
    let pages: i64 = connection.query_row("PRAGMA wal_autocheckpoint=0", [], |row| row.get(0))?;
    if pages != 0 {
        return Err(refused("automatic checkpoints could not be switched off"));
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    let defensive = purpose != Purpose::RawPages || !rule!("rewind.defensive_off");
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, defensive)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
    connection.set_limit(Limit::SQLITE_LIMIT_FUNCTION_ARG, FUNCTION_ARGS_MAX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    if purpose == Purpose::Reader {
        connection.execute_batch("PRAGMA query_only=ON")?;
    }
    let policy = Arc::new(Policy::default());
    policy.set(Permission::ENGINE);
    connection.authorizer(Some(policy.authorizer()))?;
    let deadline = Arc::new(AtomicU64::new(u64::MAX));
    let (watched, clock) = (Arc::clone(&deadline), Arc::clone(clock));
    let pace: Arc<Mutex<Option<Pace>>> = Arc::default();
    let paced = Arc::clone(&pace);
    connection.progress_handler(
        STEPS_PER_CHECK,
        Some(move || {
            let until = watched.load(Ordering::Relaxed);
            if until == u64::MAX {
                return false;
            }
            let now = clock.monotonic_micros();
            let mut pace = paced.lock().unwrap_or_else(PoisonError::into_inner);
            now >= until || pace.as_mut().is_some_and(|pace| pace.step(now, until))
        }),
    )?;
    Ok(Sqlite {
        connection,
        policy,
        deadline,
        pace,
    })
}

/// Has SQLite make its temporary files in this folder: statement journals, sorts and the copy a VACUUM makes are as
/// large as what they are for, and memory is not. SQLite removes their names as it opens them.
///
/// The folder is the whole process's: the first node of a process chooses it, and where it is gone SQLite takes the
/// system's own.
pub(crate) fn use_temp_folder(folder: &Path) -> rusqlite::Result<()> {
    static CHOSEN: Mutex<bool> = Mutex::new(false);
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    if *chosen {
        return Ok(());
    }
    let Some(folder) = folder.to_str() else {
        return Err(refused("the data folder's path is not UTF-8"));
    };
    let memory = Connection::open_in_memory()?;
    memory.pragma_update(None, "temp_store_directory", folder)?;
    *chosen = true;
    Ok(())
}

fn refused(what: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISUSE),
        Some(what.to_owned()),
    )
}

impl Sqlite {
    /// The connection itself.
    pub const fn raw(&self) -> &Connection {
        &self.connection
    }

    /// Its policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Sets what the next statements may do. Statements prepared under other permissions are forgotten: a
    /// cached one would not be judged again.
    pub fn permit(&self, permission: Permission) {
        if self.policy.get() != permission {
            self.connection.flush_prepared_statement_cache();
            self.policy.set(permission);
        }
        self.policy.take_refusal();
    }

    /// Runs `work` as the engine, with every permission, and puts the tenant's back.
    pub fn as_engine<T>(&self, work: impl FnOnce(&Connection) -> T) -> T {
        let before = self.policy.get();
        self.policy.set(Permission::ENGINE);
        let result = work(&self.connection);
        self.policy.set(before);
        result
    }

    /// Interrupts statements once the monotonic clock reaches `until` (microseconds).
    pub fn set_deadline(&self, until: Option<u64>) {
        self.deadline
            .store(until.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Has foreign keys enforced, or not, from the next statement on.
    pub(crate) fn enforce_foreign_keys(&self, on: bool) -> rusqlite::Result<()> {
        let config = DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY;
        if self.connection.db_config(config)? != on {
            self.connection.set_db_config(config, on)?;
        }
        Ok(())
    }

    /// Has the statements of a tenant's request take turns with other long ones until the guard goes.
    pub(crate) fn paced(&self, pace: Pace) -> Paced<'_> {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = Some(pace);
        Paced(&self.pace)
    }

    /// Has the columns of a statement share what a row may take: the more there are, the smaller is each.
    pub(crate) fn share_row(&self, columns: usize) -> RowShare<'_> {
        let share = ROW_VALUES_MAX / columns.max(1);
        let value_bytes =
            i32::try_from(share).map_or(VALUE_BYTES_MAX, |one| one.min(VALUE_BYTES_MAX));
        if value_bytes != VALUE_BYTES_MAX {
            // Fails for a negative value alone.
            let _ = self
                .connection
                .set_limit(Limit::SQLITE_LIMIT_LENGTH, value_bytes);
        }
        RowShare {
            connection: &self.connection,
            value_bytes,
        }
    }

    /// The time of its statements, to be seen to from elsewhere.
    pub(crate) fn timing(&self) -> Timing {
        Timing {
            deadline: Arc::clone(&self.deadline),
            pace: Arc::clone(&self.pace),
        }
    }

    /// Closes the connection, saying why it could not.
    pub fn close(self) -> rusqlite::Result<()> {
        self.connection.flush_prepared_statement_cache();
        self.connection.close().map_err(|(_, error)| error)
    }
}

/// The sentence to stop with if the linked SQLite will not do, or `None`.
pub fn unfit_library() -> Option<String> {
    if rusqlite::version_number() < SQLITE_FLOOR {
        return Some(format!(
            "SQLite {} can corrupt a WAL that is reset while it is checkpointed; 3.51.3 or newer is needed",
            rusqlite::version()
        ));
    }
    let has = || -> rusqlite::Result<bool> {
        let memory = Connection::open_in_memory()?;
        let mut options = memory.prepare("PRAGMA compile_options")?;
        let mut rows = options.query([])?;
        while let Some(row) = rows.next()? {
            if row.get::<_, String>(0)? == "ENABLE_DBPAGE_VTAB" {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match has() {
        Ok(true) => None,
        _ => Some(
            "SQLite was built without sqlite_dbpage; set LIBSQLITE3_FLAGS = \
             \"-DSQLITE_ENABLE_DBPAGE_VTAB\" under [env] in .cargo/config.toml and build again"
                .to_owned(),
        ),
    }
}
