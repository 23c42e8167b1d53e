//! Settling: stored journal sections become segments of their database, listed by its manifest.
//!
//! Per database, when its shipped unsettled log reaches `settle_bytes` or `settle_age`; one settle of this
//! node at a time, with a pause between, largest first. A settle writes one segment (the records verbatim,
//! recompressed together), then publishes the manifest, which lists the images that records name, too. Records come from the local chunk while it is here,
//! else from the stored journal object.
//!
//! A settle that fails is tried again; what stands in the journal is never in danger. Being fenced poisons the
//! journal.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidelog_archive::envelope::Finished;
use tidelog_archive::journal::JournalObject;
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::manifest::{ImageEntry, Loaded, PublishError, SegmentEntry};
use tidelog_archive::segment::{SegmentMeta, SegmentWriter};
use tidelog_archive::term::Terms;
use tidelog_wal::block::Compressor;
use tidelog_wal::codec::Reader;
use tidelog_wal::record::{CommitRecord, RecordBody, RecordHeader, RecordKind};
use tidelog_wal::{Chain, DatabaseId, Term, Timestamp, TxId, chain};
use tokio::sync::{mpsc, watch};

use crate::core::Core;
use crate::crash_point;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::gap::Break;
use crate::image;
use crate::journal::chunk::{Entries, Entry};
use crate::part;
use crate::places::For;
use crate::registry::Registry;
use crate::remote::publish_error;
use crate::sealing;
use crate::ship::ShippedSection;
use crate::trim::Trimmer;

/// The most compressed log of one segment.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;

/// Stored, unsettled sections of one database.
#[derive(Debug, Default)]
struct Backlog {
    sections: Vec<ShippedSection>,
    bytes: u64,
    oldest: u64,
}

/// Settles the sections it is told of.
#[derive(Debug)]
pub(crate) struct Settler {
    core: Arc<Core>,
    registry: Arc<Registry>,
    trimmer: Trimmer,
    inbox: mpsc::UnboundedReceiver<Vec<ShippedSection>>,
    /// Images that are stored and wait until their commit is settled.
    images: HashMap<DatabaseId, ImageEntry>,
}

impl Settler {
    pub(crate) fn new(
        core: Arc<Core>,
        registry: Arc<Registry>,
        terms: Terms,
        inbox: mpsc::UnboundedReceiver<Vec<ShippedSection>>,
    ) -> Self {
        let trimmer = Trimmer::new(terms, core.term(), Arc::clone(&core.parts.clock));
        Self {
            core,
            registry,
            trimmer,
            inbox,
            images: HashMap::new(),
        }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut backlogs: HashMap<DatabaseId, Backlog> = HashMap::new();
        let pause = self.core.settings.settle_pause;
        while !*stop.borrow() {
            let core = Arc::clone(&self.core);
            tokio::select! {
                Some(sections) = self.inbox.recv() => {
                    self.trimmer.note(&sections);
                    take(&core, &mut backlogs, sections);
                }
                () = wait(&core, &backlogs) => {}
                _ = stop.changed() => return,
            }
            while let Ok(sections) = self.inbox.try_recv() {
                self.trimmer.note(&sections);
                take(&core, &mut backlogs, sections);
            }
            let Some(id) = due(&core, &backlogs) else {
                continue;
            };
            let Some(backlog) = backlogs.remove(&id) else {
                continue;
            };
            match self.settle(id, &backlog.sections).await {
                Ok(()) => {}
                Err(error) if error.code() == Code::WriterFenced => {
                    return self.core.journal.poison(error);
                }
                // What is not settled is found again by the next life.
                Err(_) if self.registry.is_shut() => return,
                Err(error) => {
                    tracing::warn!(database = %id, %error, "not settled; it is tried again");
                    backlogs.insert(id, backlog);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Settles a database, lists an image that waited for it, and makes one if the log is long.
    async fn settle(&mut self, id: DatabaseId, sections: &[ShippedSection]) -> Result<(), Error> {
        let Some(first) = sections.first() else {
            return Ok(());
        };
        let clock = Arc::clone(&self.core.parts.clock);
        let began = clock.monotonic_micros();
        if self.core.remote.is_gone(first.meta.namespace, id).await? {
            return self.pass_over(id).await;
        }
        let mut loaded = settle(&self.core, id, sections).await?;
        self.core.calendar.settled(id);
        let took = clock.monotonic_micros().saturating_sub(began);
        self.core.meters.settle.record(took);
        let settled = loaded
            .manifest
            .settled_position()
            .map_or(TxId::ZERO, |p| p.txid);
        if let Some(entry) = self.images.get(&id)
            && entry.position.txid <= settled
        {
            loaded = image::publish(&self.core, &loaded, *entry).await?;
            self.images.remove(&id);
        }
        self.trimmer.settled(id, settled);
        self.trimmer.trim().await;
        if self.images.contains_key(&id) {
            return Ok(());
        }
        if image::is_due(&loaded.manifest) {
            // Only now is the database opened.
            let lease = self
                .registry
                .lease_for(For::Engine, first.meta.namespace, id)
                .await?;
            let entry = image::write(&self.core, &lease).await?;
            self.images.insert(id, entry);
        }
        Ok(())
    }
}

impl Settler {
    /// What a purged database left in the journal counts as settled, so that trimming goes on.
    async fn pass_over(&mut self, id: DatabaseId) -> Result<(), Error> {
        self.images.remove(&id);
        self.core.pass_over(id).await?;
        self.trimmer.settled(id, TxId::new(u64::MAX));
        self.trimmer.trim().await;
        Ok(())
    }
}

impl Core {
    /// Lets the journal forget a purged database: everything of it counts as settled and checkpointed.
    pub(crate) async fn pass_over(self: &Arc<Self>, id: DatabaseId) -> Result<(), Error> {
        let all = TxId::new(u64::MAX);
        self.tails.settled(id, all);
        self.journal.set_settled(id, all);
        self.journal.set_checkpointed(id, all);
        let core = Arc::clone(self);
        blocking(self.executor(), move || core.journal.collect()).await
    }
}

fn take(core: &Core, backlogs: &mut HashMap<DatabaseId, Backlog>, sections: Vec<ShippedSection>) {
    let now = core.parts.clock.monotonic_micros();
    for section in sections {
        let backlog = backlogs.entry(section.meta.database).or_default();
        if backlog.sections.is_empty() {
            backlog.oldest = now;
        }
        backlog.bytes += section.stored_bytes;
        backlog.sections.push(section);
    }
}

fn settle_age(core: &Core) -> u64 {
    u64::try_from(core.settings.settle_age.as_micros()).unwrap_or(u64::MAX)
}

/// The database to settle now: the largest of those that are due.
fn due(core: &Core, backlogs: &HashMap<DatabaseId, Backlog>) -> Option<DatabaseId> {
    let now = core.parts.clock.monotonic_micros();
    let age = settle_age(core);
    backlogs
        .iter()
        .filter(|(_, b)| {
            b.bytes >= core.settings.settle_bytes || now >= b.oldest.saturating_add(age)
        })
        .max_by_key(|(_, backlog)| backlog.bytes)
        .map(|(id, _)| *id)
}

/// Sleeps until the oldest backlog is due by age; for ever without any.
async fn wait(core: &Core, backlogs: &HashMap<DatabaseId, Backlog>) {
    let Some(oldest) = backlogs.values().map(|backlog| backlog.oldest).min() else {
        return std::future::pending().await;
    };
    if due(core, backlogs).is_some() {
        return;
    }
    let now = core.parts.clock.monotonic_micros();
    let left = oldest.saturating_add(settle_age(core)).saturating_sub(now);
    tokio::time::sleep(std::time::Duration::from_micros(left)).await;
}

/// Settles stored sections of one database.
pub(crate) async fn settle(
    core: &Arc<Core>,
    id: DatabaseId,
    sections: &[ShippedSection],
) -> Result<Loaded, Error> {
    let Some(first) = sections.first() else {
        return Err(Error::internal("nothing to settle"));
    };
    let loaded = core.remote.owned_manifest(first.meta.namespace, id).await?;
    let mut after = loaded
        .manifest
        .settled_position()
        .map_or(TxId::ZERO, |settled| settled.txid);
    let mut after_time = loaded.manifest.settled.map(|settled| settled.time);
    let mut current = loaded;
    let mut rest: &[ShippedSection] = sections;
    while !rest.is_empty() {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take_while(|section| {
                let fits = bytes == 0 || bytes + section.stored_bytes <= SEGMENT_BYTES_MAX;
                bytes += section.stored_bytes;
                fits
            })
            .count();
        let (now, later) = rest.split_at(count.max(1));
        let fetched = fetch(core, now, after).await?;
        if let Some(built) = build(core, now, (after, after_time), fetched).await? {
            after = built.last;
            after_time = built.last_time;
            current = publish(core, &current, built).await?;
        }
        rest = later;
    }
    let head = current
        .manifest
        .settled_position()
        .map_or(TxId::ZERO, |position| position.txid);
    core.journal.set_settled(id, head);
    core.tails.settled(id, head);
    core.breaks.settled(id, head);
    let collector = Arc::clone(core);
    blocking(core.executor(), move || collector.journal.collect()).await?;
    Ok(current)
}

/// A journal object that had to be read back, for sections whose chunk is gone.
type Fetched = HashMap<(Term, u64), Bytes>;

async fn fetch(core: &Core, sections: &[ShippedSection], after: TxId) -> Result<Fetched, Error> {
    let mut fetched = Fetched::new();
    for section in sections {
        // A chunk that holds spooled records does not say where their parts are; the object does.
        let unusable = section.has_parts || core.journal.chunk_file(section.object).is_none();
        if unusable && section.meta.last > after && !fetched.contains_key(&section.object) {
            let key = Key::Journal(section.object.0, Seq::new(section.object.1)).to_string();
            let bytes = core.remote.get(&key).await?;
            let store = &core.remote.store;
            let object =
                sealing::journal(store, &bytes, section.object.0, Seq::new(section.object.1));
            for found in object.await?.sections {
                let meta = found.meta;
                if meta.database == section.meta.database {
                    let unlocked = store.unlock(meta.namespace, meta.database, meta.key_id);
                    unlocked.await.map_err(sealing::key_error)?;
                }
            }
            fetched.insert(section.object, bytes);
        }
    }
    Ok(fetched)
}

/// What one settle lists: segments written now, and parts that were uploaded before.
struct Built {
    pieces: Vec<Piece>,
    terms: Vec<(Term, TxId)>,
    breaks: Vec<Break>,
    last: TxId,
    last_time: Option<Timestamp>,
}

enum Piece {
    Segment(Finished, SegmentMeta),
    Part(SegmentEntry),
}

/// A segment being written.
struct SegmentBuild<'a> {
    core: &'a Core,
    writer: Option<SegmentWriter>,
    pieces: Vec<Piece>,
    terms: Vec<(Term, TxId)>,
    breaks: Vec<Break>,
    last: TxId,
    /// Time of the last commit, if there is one.
    last_time: Option<Timestamp>,
}

impl SegmentBuild<'_> {
    /// Ends the segment being written.
    fn cut(&mut self) -> Result<(), Error> {
        if let Some(writer) = self.writer.take() {
            let (finished, meta, _) = writer
                .finish()
                .map_err(|e| Error::internal("write a segment").caused_by(e))?;
            self.pieces.push(Piece::Segment(finished, meta));
        }
        Ok(())
    }

    /// Adds a record, unless it is settled already; `chain_before` is the chain before it.
    fn push(
        &mut self,
        section: &ShippedSection,
        chain_before: Chain,
        record: &[u8],
    ) -> Result<(), Error> {
        let (header, kind) = RecordHeader::decode(&mut Reader::new(record)).map_err(|e| {
            Error::new(Code::DatabaseCorrupt, "a journaled record to be settled").caused_by(e)
        })?;
        if header.txid <= self.last {
            return Ok(());
        }
        let meta = &section.meta;
        if header.txid != self.last.next() {
            return Err(Error::internal(format!(
                "settling database {}: commit {} follows {}",
                meta.database, header.txid, self.last
            )));
        }
        let core = self.core;
        if kind == RecordKind::Reference {
            let damaged = |e| Error::new(Code::ObjectCorrupt, "a reference record").caused_by(e);
            let decoded = CommitRecord::decode(record).map_err(damaged)?;
            if let RecordBody::Reference { object, chain } = &decoded.body {
                self.cut()?;
                let entry = part::entry(&header, object, chain_before, *chain)?;
                self.pieces.push(Piece::Part(entry));
            }
            self.took(&header);
            return Ok(());
        }
        if kind == RecordKind::Image {
            let damaged = |e| Error::new(Code::ObjectCorrupt, "an image record").caused_by(e);
            let decoded = CommitRecord::decode(record).map_err(damaged)?;
            if let RecordBody::Image(object) = &decoded.body {
                let after = chain::step(chain_before, record);
                let found = Break::of_record(&header, object, after, self.last_time)?;
                self.breaks.push(found);
            }
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(SegmentWriter::new(
                (meta.namespace, meta.database),
                meta.page_size,
                meta.seed,
                chain_before,
                core.remote.stamp(meta.namespace, meta.database)?,
                Compressor::new(core.settings.settle_level),
            )),
        };
        writer
            .push(record)
            .map_err(|e| Error::internal("write a segment").caused_by(e))?;
        self.took(&header);
        Ok(())
    }

    fn took(&mut self, header: &RecordHeader) {
        if self
            .terms
            .last()
            .is_none_or(|(term, _)| *term < header.term)
        {
            self.terms.push((header.term, header.txid));
        }
        self.last = header.txid;
        self.last_time = Some(header.time);
    }
}

/// Builds the segment of the records after `after`; `None` if there are none.
async fn build(
    core: &Arc<Core>,
    sections: &[ShippedSection],
    (after, after_time): (TxId, Option<Timestamp>),
    fetched: Fetched,
) -> Result<Option<Built>, Error> {
    let (core, sections) = (Arc::clone(core), sections.to_vec());
    blocking(core.executor(), move || {
        let mut build = SegmentBuild {
            core: &core,
            writer: None,
            pieces: Vec::new(),
            terms: Vec::new(),
            breaks: Vec::new(),
            last: after,
            last_time: after_time,
        };
        for section in &sections {
            if let Some(bytes) = fetched.get(&section.object) {
                from_object(section, bytes, &mut build)?;
            } else if let Some(path) = core.journal.chunk_file(section.object) {
                let io = |e| Error::io(format!("read {}", path.display()), e);
                let file = core.parts.disk.read(&path).map_err(io)?;
                from_chunk(section, &file, &mut build)?;
            } else if section.meta.last > build.last {
                return Err(Error::new(
                    Code::StorageUnavailable,
                    "a chunk went away; try again",
                ));
            }
        }
        build.cut()?;
        let SegmentBuild {
            pieces,
            terms,
            breaks,
            last,
            last_time,
            ..
        } = build;
        Ok((!pieces.is_empty()).then_some(Built {
            pieces,
            terms,
            breaks,
            last,
            last_time,
        }))
    })
    .await
}

fn from_object(
    section: &ShippedSection,
    bytes: &Bytes,
    build: &mut SegmentBuild<'_>,
) -> Result<(), Error> {
    let (term, seq) = section.object;
    let key = Key::Journal(term, Seq::new(seq));
    let damaged = |e| sealing::refused(&key.to_string(), e);
    let object = JournalObject::decode(bytes, term, Seq::new(seq), build.core.remote.store.keys())
        .map_err(damaged)?;
    let wanted = section.meta.database;
    let Some(found) = object.sections.iter().find(|s| s.meta.database == wanted) else {
        let what = format!("journal object {key} holds no section of database {wanted}");
        return Err(Error::new(Code::ObjectCorrupt, what));
    };
    let stored = object.section_bytes(found).unwrap_or_default();
    let mut records = object.records(found, &stored);
    let mut chain = found.meta.chain_before;
    while let Some(record) = records.next_record().map_err(damaged)? {
        build.push(section, chain, record.bytes)?;
        chain = record.position.chain;
    }
    Ok(())
}

fn from_chunk(
    section: &ShippedSection,
    file: &[u8],
    build: &mut SegmentBuild<'_>,
) -> Result<(), Error> {
    let mut slot = None;
    let mut chain = Chain::default();
    let mut slots = 0;
    for entry in Entries::new(file) {
        match entry {
            Entry::Database { database, .. } => {
                if database.id == section.meta.database {
                    slot = Some(slots);
                    chain = database.chain_before;
                }
                slots += 1;
            }
            Entry::Record { at, record } if slot == Some(at.slot) => {
                build.push(section, chain, record)?;
                chain = at.chain;
            }
            Entry::Record { .. } | Entry::Spooled { .. } => {}
        }
    }
    Ok(())
}

async fn publish(core: &Core, current: &Loaded, built: Built) -> Result<Loaded, Error> {
    let Built {
        pieces,
        terms,
        breaks,
        ..
    } = built;
    let (namespace, id) = (current.manifest.namespace, current.manifest.database);
    let mut entries = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match piece {
            Piece::Part(entry) => entries.push(entry),
            Piece::Segment(finished, meta) => {
                let entry = SegmentEntry {
                    run: meta.run,
                    nonce: core.remote.nonces.next(),
                    len: finished.len,
                    blake3: finished.blake3,
                };
                let key = entry.key(namespace, id).to_string();
                crash_point!("settle.before_segment");
                core.remote.create(&key, finished.bytes).await?;
                crash_point!("settle.after_segment");
                entries.push(entry);
            }
        }
    }
    crash_point!("settle.before_cas");
    let published = core
        .remote
        .publish(current, |manifest| {
            for entry in &entries {
                manifest.append_segment(*entry);
            }
            for (term, first) in &terms {
                manifest.note_term(*term, *first);
            }
            for found in &breaks {
                found.list(manifest);
            }
            Ok(())
        })
        .await
        .map_err(|error: PublishError| publish_error("settle a database", error))?;
    crash_point!("settle.after_cas");
    core.remote.remember(id, published.clone());
    Ok(published)
}
