//! Shipping: every sealed chunk becomes one journal object, in order of acknowledgement.
//!
//! One task a (process, store). It seals when the rules of DESIGN 5.4 say so, builds the object (the records
//! of the chunk, grouped by database) and creates it at `journal/{term}/{seq}`. Several PUTs may be on
//! their way; the shipped watermark moves in order. A store that does not answer is asked again for ever,
//! with pauses; what is not shipped stays in chunks, and admission bounds those (I8).
//!
//! A number that is taken by something else is a fence: a later life closed this term. The journal is then
//! poisoned with `writer-fenced` and nothing is acknowledged any more (I4).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::KeyId;
use tidelog_archive::journal::{JournalObjectBuilder, SectionMeta};
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::store::{Store, StoreError};
use tidelog_wal::DatabaseId;
use tidelog_wal::block::Compressor;
use tidelog_wal::codec::Reader;
use tidelog_wal::record::ObjectRef;
use tidelog_wal::record::RecordHeader;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::core::Core;
use crate::crash_point;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::journal::chunk::{ChunkDatabase, Entries, Entry, EntryAt};
use crate::journal::{SealDue, SealedChunk};
use crate::part;

/// First and longest pause between attempts at one object.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A run of records of one database in a stored journal object.
#[derive(Debug, Clone)]
pub(crate) struct ShippedSection {
    /// The object.
    pub(crate) object: (tidelog_wal::Term, u64),
    /// What the section holds.
    pub(crate) meta: SectionMeta,
    /// Its stored bytes, roughly: the object's share by raw length.
    pub(crate) stored_bytes: u64,
    /// Some of its records stand in segment parts.
    pub(crate) has_parts: bool,
    /// Stored bytes of those parts; 0 where they are not known.
    pub(crate) part_bytes: u64,
}

/// An object ready to be stored.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) bytes: Bytes,
    pub(crate) sections: Vec<ShippedSection>,
}

/// Ships the journal of this life.
#[derive(Debug)]
pub(crate) struct Shipper {
    pub(crate) core: Arc<Core>,
    pub(crate) store: Store,
    /// The node is stopping: a store that does not answer an attempt begun then is not waited for.
    pub(crate) stop: watch::Receiver<bool>,
    /// Told of every stored section, in order.
    pub(crate) settle: tokio::sync::mpsc::UnboundedSender<Vec<ShippedSection>>,
}

type Put = JoinHandle<Result<(SealedChunk, Vec<ShippedSection>), Error>>;

impl Shipper {
    /// Runs until `stop` is true and everything is shipped, or the journal is poisoned.
    pub(crate) async fn run(self) {
        let mut stop = self.stop.clone();
        let shipper = Arc::new(self);
        let mut puts: FuturesOrdered<Put> = FuturesOrdered::new();
        loop {
            let stopping = *stop.borrow();
            let free = puts.len() < shipper.core.settings.inflight_puts;
            match shipper.clone().seal_if_due(free, stopping).await {
                Ok(Some(sealed)) => {
                    let shipper = Arc::clone(&shipper);
                    puts.push_back(tokio::spawn(async move { shipper.put(sealed).await }));
                    continue;
                }
                Ok(None) if stopping && puts.is_empty() => return,
                Ok(None) => {}
                // Nothing was lost: the records stand in the open chunk, and it is sealed when there is room.
                Err(error)
                    if error.code() == Code::DiskFull
                        && shipper.core.journal.poisoned().is_none() =>
                {
                    tracing::warn!(%error, "the open chunk is not sealed yet");
                    if stopping && puts.is_empty() {
                        return;
                    }
                    tokio::time::sleep(RETRY_FIRST).await;
                }
                Err(error) => return shipper.core.journal.poison(error),
            }
            let due = shipper.pause(free);
            tokio::select! {
                Some(put) = puts.next(), if !puts.is_empty() => {
                    if let Err(error) = shipper.stored(put) {
                        return shipper.core.journal.poison(error);
                    }
                }
                () = due => {}
                () = shipper.core.journal.ship_wanted() => {}
                _ = stop.changed(), if !stopping => {}
            }
            if shipper.core.journal.poisoned().is_some() {
                return;
            }
        }
    }

    fn due(&self) -> SealDue {
        let settings = &self.core.settings;
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        self.core
            .journal
            .seal_due(micros(settings.ship_interval), micros(settings.ship_linger))
    }

    /// Sleeps until a chunk should be sealed; for ever if there is none or no PUT may start.
    async fn pause(&self, free: bool) {
        match self.due() {
            SealDue::At(at) if free => {
                let now = self.core.parts.clock.monotonic_micros();
                tokio::time::sleep(Duration::from_micros(at.saturating_sub(now))).await;
            }
            SealDue::At(_) | SealDue::Empty => std::future::pending().await,
        }
    }

    /// Seals a chunk if it is time and a PUT may start.
    async fn seal_if_due(
        self: Arc<Self>,
        free: bool,
        stopping: bool,
    ) -> Result<Option<SealedChunk>, Error> {
        let now = self.core.parts.clock.monotonic_micros();
        match self.due() {
            SealDue::At(at) if free && (at <= now || stopping) => {
                blocking(self.core.executor(), move || self.core.journal.seal()).await
            }
            SealDue::At(_) | SealDue::Empty => Ok(None),
        }
    }

    async fn put(&self, sealed: SealedChunk) -> Result<(SealedChunk, Vec<ShippedSection>), Error> {
        let parts = self.upload_parts(&sealed).await?;
        let (core, chunk) = (Arc::clone(&self.core), sealed.clone());
        let built = blocking(self.core.executor(), move || build(&core, &chunk, &parts)).await?;
        let key = Key::Journal(sealed.id.0, Seq::new(sealed.id.1)).to_string();
        let mut pause = RETRY_FIRST;
        loop {
            let last = *self.stop.borrow();
            crash_point!("ship.before_put");
            match self.store.create(&key, built.bytes.clone()).await {
                Ok(_) => {
                    crash_point!("ship.after_put");
                    return Ok((sealed, built.sections));
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    return Err(fenced(&key, error));
                }
                Err(error) => {
                    tracing::warn!(%key, %error, "journal object not stored yet");
                    self.again(error, last, &mut pause).await?;
                }
            }
        }
    }

    /// Waits before what failed is tried again. Once the node stops it is tried a last time, at once.
    async fn again(
        &self,
        error: impl std::error::Error + Send + Sync + 'static,
        last: bool,
        pause: &mut Duration,
    ) -> Result<(), Error> {
        if last {
            return Err(not_shipped(error));
        }
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(*pause) => *pause = (*pause * 2).min(RETRY_MAX),
            told = stop.wait_for(|stop| *stop) => drop(told.map_err(|_| not_shipped(error))?),
        }
        if self.core.journal.poisoned().is_some() {
            let what = "the journal is poisoned";
            return Err(Error::new(Code::StorageUnavailable, what));
        }
        Ok(())
    }

    /// Uploads every spooled record of a chunk as a segment part, until each is stored.
    async fn upload_parts(&self, sealed: &SealedChunk) -> Result<Parts, Error> {
        let (core, chunk) = (Arc::clone(&self.core), sealed.clone());
        let spooled = blocking(self.core.executor(), move || {
            part::spooled_records(&core, &chunk.path)
        })
        .await?;
        let mut parts = Parts::new();
        for record in spooled {
            let mut pause = RETRY_FIRST;
            let object = loop {
                let last = *self.stop.borrow();
                match part::upload(&self.core, &record).await {
                    Ok(object) => break object,
                    Err(error) if error.kind() == ErrorKind::Corrupt => return Err(error),
                    Err(error) => {
                        tracing::warn!(%error, "segment part not stored yet");
                        self.again(error, last, &mut pause).await?;
                    }
                }
            };
            parts.insert(record.lsn, object);
        }
        Ok(parts)
    }

    fn stored(
        &self,
        put: Result<Result<(SealedChunk, Vec<ShippedSection>), Error>, tokio::task::JoinError>,
    ) -> Result<(), Error> {
        let (sealed, sections) = put
            .map_err(|e| Error::internal("ship a chunk").caused_by(e))
            .flatten()?;
        // Before anybody is told that it is stored: who hears it looks for it here.
        self.core.tails.add(&sections);
        self.core.journal.set_shipped(&sealed);
        if self.core.journal.is_crowded()
            && let Err(error) = self.core.journal.collect()
        {
            tracing::warn!(%error, "stored chunks were not removed yet");
        }
        // Nobody settles any more once the node stops: the next start finds the sections again.
        let _ = self.settle.send(sections);
        Ok(())
    }
}

/// The node stops, and the store does not answer.
fn not_shipped(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let what = "the store does not answer: what is not shipped stays in the journal folder and is shipped \
                after the next start";
    Error::new(Code::StorageUnavailable, what).caused_by(error)
}

fn fenced(key: &str, error: StoreError) -> Error {
    let what =
        format!("{key} is taken: a later process life closed this term; this node writes no more");
    Error::new(Code::WriterFenced, what).caused_by(error)
}

/// Segment parts by the local number of their record.
type Parts = HashMap<u64, ObjectRef>;

/// The records of one database in a chunk, in order.
struct Run<'a> {
    database: ChunkDatabase,
    records: Vec<(EntryAt, Cow<'a, [u8]>)>,
    has_parts: bool,
    part_bytes: u64,
}

/// Builds the journal object of a sealed chunk.
pub(crate) fn build(core: &Core, sealed: &SealedChunk, parts: &Parts) -> Result<Built, Error> {
    let io = |e| Error::io(format!("read {}", sealed.path.display()), e);
    let file = core.parts.disk.read(&sealed.path).map_err(io)?;
    let runs = group(&file, |lsn| parts.get(&lsn).cloned())?;
    let stamp = core.remote.journal_stamp()?;
    let compressor = Compressor::new(core.settings.journal_level);
    let locals = (sealed.first_lsn, sealed.last_lsn);
    let (term, seq) = (sealed.id.0, Seq::new(sealed.id.1));
    let mut builder = JournalObjectBuilder::new(term, seq, locals, stamp, compressor);
    let format = |e| Error::internal("build a journal object").caused_by(e);
    let mut sections = Vec::new();
    let mut before = builder.stored_len();
    for run in &runs {
        let meta = section_meta(run)?;
        let key = core.remote.section_key(meta.namespace, meta.database)?;
        builder.section(meta, key.as_deref()).map_err(format)?;
        for (_, record) in &run.records {
            builder.push(record).map_err(format)?;
        }
        sections.push(ShippedSection {
            object: sealed.id,
            meta,
            stored_bytes: 0,
            part_bytes: run.part_bytes,
            has_parts: run.has_parts,
        });
    }
    let raw: u64 = runs.iter().map(raw_len).sum::<u64>().max(1);
    let (finished, _) = builder.finish().map_err(format)?;
    before = finished.len.saturating_sub(before);
    for (section, run) in sections.iter_mut().zip(&runs) {
        section.stored_bytes = before * raw_len(run) / raw;
    }
    Ok(Built {
        bytes: finished.bytes,
        sections,
    })
}

/// What the journal object of a chunk holds. Stored bytes are not known here: a quarter of the raw ones.
pub(crate) fn sections_of_chunk(
    file: &[u8],
    object: (tidelog_wal::Term, u64),
) -> Result<Vec<ShippedSection>, Error> {
    let section = |run: &Run<'_>| {
        Ok(ShippedSection {
            object,
            meta: section_meta(run)?,
            stored_bytes: raw_len(run) / 4,
            part_bytes: run.part_bytes,
            has_parts: run.has_parts,
        })
    };
    let placeholder = |_| {
        Some(ObjectRef {
            key: String::new(),
            len: 0,
            blake3: [0; 32],
        })
    };
    group(file, placeholder)?.iter().map(section).collect()
}

fn raw_len(run: &Run<'_>) -> u64 {
    run.records
        .iter()
        .map(|(_, record)| record.len() as u64)
        .sum()
}

/// Groups the records of a chunk by database; `part` names the segment part of a spooled one.
fn group(file: &[u8], part: impl Fn(u64) -> Option<ObjectRef>) -> Result<Vec<Run<'_>>, Error> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut by_id: HashMap<DatabaseId, usize> = HashMap::new();
    for entry in Entries::new(file) {
        match entry {
            Entry::Database { database, .. } => {
                by_id.insert(database.id, runs.len());
                runs.push(Run {
                    database,
                    records: Vec::new(),
                    has_parts: false,
                    part_bytes: 0,
                });
            }
            Entry::Record { at, record } => {
                let run = runs.get_mut(at.slot as usize);
                run.ok_or_else(unnamed)?
                    .records
                    .push((at, Cow::Borrowed(record)));
            }
            Entry::Spooled { at, header, .. } => {
                let object = part(at.lsn)
                    .ok_or_else(|| Error::internal("a spooled record without a part"))?;
                let run = runs.get_mut(at.slot as usize).ok_or_else(unnamed)?;
                run.has_parts = true;
                run.part_bytes += object.len;
                let record = part::reference(header, object, at.chain)?;
                run.records.push((at, Cow::Owned(record)));
            }
        }
    }
    runs.retain(|run| !run.records.is_empty());
    runs.sort_by_key(|run| (run.database.namespace, run.database.id));
    Ok(runs)
}

fn unnamed() -> Error {
    Error::new(
        Code::DatabaseCorrupt,
        "a record of an unnamed database in a journal chunk",
    )
}

fn section_meta(run: &Run<'_>) -> Result<SectionMeta, Error> {
    let header = |record: &[u8]| {
        RecordHeader::decode(&mut Reader::new(record))
            .map(|(header, _)| header)
            .map_err(|e| Error::new(Code::DatabaseCorrupt, "a journaled record").caused_by(e))
    };
    let (Some((_, first)), Some((at, last))) = (run.records.first(), run.records.last()) else {
        return Err(Error::internal("an empty section"));
    };
    let (first, last) = (header(first)?, header(last)?);
    Ok(SectionMeta {
        namespace: run.database.namespace,
        database: run.database.id,
        page_size: run.database.page_size,
        seed: run.database.seed,
        key_id: KeyId::default(),
        first: first.txid,
        last: last.txid,
        first_term: first.term,
        last_term: last.term,
        first_time: first.time,
        last_time: last.time,
        chain_before: run.database.chain_before,
        chain_after: at.chain,
        digest_after: last.digest,
        n_before: first.n_before,
        n_after: last.n_after,
    })
}
