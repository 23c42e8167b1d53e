//! What every part of a running node shares: settings, components, the journal, the capture pump.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidelog_archive::env::{Clock, Entropy, SystemClock, SystemEntropy};
use tidelog_wal::{DatabaseId, Term};

use crate::capture::Scratches;
use crate::database::rolled_back::RolledBack;
use crate::disk::{Disk, StdDisk};
use crate::journal::Journal;
use crate::meters::{Meters, NodeStatus};
use crate::pump::Pump;
use crate::rebuild::Tails;
use crate::remote::Remote;
use crate::settings::Settings;
use crate::spool::Spools;
use crate::travel::calendar::Calendar;
use crate::travel::retention::hold::Holds;

/// The components a node is made of. Tests put in their own.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// The local disk, for the engine's own files.
    pub disk: Arc<dyn Disk>,
}

impl Parts {
    /// The real ones.
    pub fn production() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            entropy: Arc::new(SystemEntropy),
            disk: Arc::new(StdDisk),
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
    pub(crate) remote: Remote,
    pub(crate) tails: Tails,
    pub(crate) scratches: Scratches,
    pub(crate) rolled_back: RolledBack,
    /// Databases that something reads for long.
    pub(crate) holds: Holds,
    /// What is due when.
    pub(crate) calendar: Calendar,
    pub(crate) meters: Meters,
}

impl Core {
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
            oldest_restorable_micros: self.remote.oldest_restorable(),
            capture: meters.capture.counts(),
            settle: meters.settle.counts(),
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
