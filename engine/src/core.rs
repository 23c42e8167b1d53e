//! What every part of a running node shares: settings, components, the journal, the capture pump.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_archive::env::{Clock, Entropy, SystemClock, SystemEntropy};
use tidelog_wal::{DatabaseId, Term};

use crate::capture::Scratches;
use crate::copy::Untouched;
use crate::database::backfill::Backfills;
use crate::database::rolled_back::RolledBack;
use crate::disk::{Disk, StdDisk};
use crate::error::{Code, Error};
use crate::executor::{Executor, Threads};
use crate::gap::Breaks;
use crate::journal::Journal;
use crate::meters::{Meters, NodeStatus};
use crate::node::detached::Detached;
use crate::node::life::boot_id;
use crate::places::Changes;
use crate::pump::Pump;
use crate::rebuild::Tails;
use crate::remote::Remote;
use crate::settings::Settings;
use crate::spool::Spools;
use crate::travel::calendar::Calendar;
use crate::travel::retention::hold::Holds;
use crate::turns::Turns;

/// The components a node is made of. Tests put in their own.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// Where blocking work runs.
    pub executor: Arc<dyn Executor>,
    /// The local disk, for the engine's own files.
    pub disk: Arc<dyn Disk>,
    /// Names the time since the machine was started, if it has such a name.
    pub boot: Option<String>,
}

impl Parts {
    /// The real ones.
    pub fn production() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            entropy: Arc::new(SystemEntropy),
            executor: Arc::new(Threads),
            disk: Arc::new(StdDisk),
            boot: boot_id(),
        }
    }
}

/// How long what the disk said of its free space is believed, in microseconds.
const ROOM_AGE_US: u64 = 10_000;

/// The free space of the data folder's disk, asked for now and then.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// When it was asked, and what it said.
    asked: Mutex<Option<(u64, Option<u64>)>>,
}

impl Room {
    fn free(&self, now: u64, ask: impl FnOnce() -> io::Result<u64>) -> Option<u64> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match *asked {
            Some((at, said)) if now.saturating_sub(at) < ROOM_AGE_US => said,
            _ => {
                let said = ask().ok();
                *asked = Some((now, said));
                said
            }
        }
    }
}

/// What every open database holds on to.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) parts: Parts,
    pub(crate) journal: Journal,
    pub(crate) pump: Pump,
    pub(crate) backfills: Backfills,
    /// Ends that who waits for a place hears of.
    pub(crate) place_changes: Changes,
    /// Forks that nobody has touched yet.
    pub(crate) untouched: Untouched,
    pub(crate) remote: Remote,
    pub(crate) tails: Tails,
    pub(crate) breaks: Breaks,
    pub(crate) scratches: Scratches,
    pub(crate) rolled_back: RolledBack,
    /// Databases that something reads for long.
    pub(crate) holds: Holds,
    /// What is due when.
    pub(crate) calendar: Calendar,
    pub(crate) meters: Meters,
    pub(crate) room: Room,
    /// Whose long statements run.
    pub(crate) turns: Arc<Turns>,
    /// The store could not be reached at the start: what this life may do without it.
    pub(crate) detached: Option<Detached>,
    /// The machine was not started anew since the last life of this folder.
    pub(crate) same_boot: bool,
}

impl Core {
    /// The core of a life that begins: nothing is open, held or due yet.
    pub(crate) fn new(
        settings: Settings,
        parts: Parts,
        journal: Journal,
        remote: Remote,
        same_boot: bool,
        detached: Option<Detached>,
    ) -> Arc<Self> {
        let turns = Turns::new(Arc::clone(&parts.clock), settings.turns_at_once);
        Arc::new(Self {
            settings,
            parts,
            journal,
            pump: Pump::default(),
            backfills: Backfills::default(),
            place_changes: Changes::default(),
            untouched: Untouched::default(),
            remote,
            tails: Tails::default(),
            breaks: Breaks::default(),
            scratches: Scratches::default(),
            rolled_back: RolledBack::default(),
            holds: Holds::default(),
            calendar: Calendar::default(),
            meters: Meters::default(),
            room: Room::default(),
            turns: Arc::new(turns),
            detached,
            same_boot,
        })
    }

    /// Where blocking work runs.
    pub(crate) fn executor(&self) -> Arc<dyn Executor> {
        Arc::clone(&self.parts.executor)
    }

    /// This process life.
    pub(crate) const fn term(&self) -> Term {
        self.journal.term()
    }

    /// What the node has counted; open databases are the registry's to count.
    pub(crate) fn status(&self) -> NodeStatus {
        let (journal, meters) = (&self.journal, &self.meters);
        NodeStatus {
            journal_bytes: journal.bytes(),
            journal_waiting_bytes: journal.unshipped_bytes(),
            lag_commits: journal.appended_lsn().saturating_sub(journal.shipped_lsn()),
            lag_micros: journal.lag_micros(),
            since_flush_micros: journal.since_flush_micros(),
            open_databases: 0,
            jobs_waiting: meters.jobs_waiting.load(Ordering::Relaxed),
            gates_waiting: meters.gates_waiting.load(Ordering::Relaxed),
            discontinuities: meters.discontinuities.load(Ordering::Relaxed),
            diverged_forks: meters.diverged_forks.load(Ordering::Relaxed),
            oldest_restorable_micros: self.remote.oldest_restorable(),
            capture: meters.capture.counts(),
            settle: meters.settle.counts(),
        }
    }

    /// Admission of a write that has not begun: refused when the journal is at its bound or poisoned, or when the
    /// disk has no more than the reserve left.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        if self.detached == Some(Detached::Reads) {
            let what = "the store could not be reached at the start, and commits of this folder may have been lost \
                        with the machine's memory: it is read only until the store is back";
            return Err(Error::new(Code::StorageUnavailable, what));
        }
        self.journal.admit()?;
        let now = self.parts.clock.monotonic_micros();
        let free = self
            .room
            .free(now, || self.parts.disk.free_bytes(&self.settings.data));
        let reserve = self.settings.disk_reserve_bytes;
        // A disk that cannot say shows it when it is written to.
        match free {
            Some(free) if free < reserve => Err(Error::new(
                Code::DiskFull,
                format!(
                    "the disk of the data folder has {free} bytes left and {reserve} are kept in reserve; \
                     writes go on when there is room again"
                ),
            )
            .with("limit", reserve)
            .with("free", free)),
            _ => Ok(()),
        }
    }

    /// The folder of a database.
    pub(crate) fn database_folder(&self, id: DatabaseId) -> PathBuf {
        self.settings.data.join("databases").join(id.to_string())
    }

    /// Where large commits of a database are spooled.
    pub(crate) fn spools(&self, database: DatabaseId) -> Spools {
        Spools {
            disk: Arc::clone(&self.parts.disk),
            folder: self.journal.folder().to_owned(),
            database,
            limit: usize::try_from(self.settings.spool_bytes).unwrap_or(usize::MAX),
        }
    }

    /// Microseconds on the monotonic clock, `after` from now.
    pub(crate) fn deadline(&self, after: std::time::Duration) -> u64 {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        self.parts.clock.monotonic_micros().saturating_add(micros)
    }
}
