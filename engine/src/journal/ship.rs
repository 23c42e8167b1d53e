//! Shipping, as the journal sees it: when a chunk is sealed, which one is next, and that it is stored.
//!
//! A chunk is synced before anybody is given it to store: the store never holds a record that a loss of power could take
//! from this disk.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{ChunkId, Journal, lock};
use crate::boxed;
use crate::crash_point;
use crate::error::Error;

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

/// When the open chunk wants to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealDue {
    /// It holds nothing.
    Empty,
    /// At this monotonic time in microseconds.
    At(u64),
}

impl Journal {
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
}
