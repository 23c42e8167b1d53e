//! Running a plan.

use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use tidelog_wal::{PageNo, PageSize, Position};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::apply::{Applier, Elsewhere, PartApplier};
use super::chains::{Hashed, Message, UNITS_AHEAD, hash_ahead};
use super::error::RestoreError;
use super::fetch::{Part, Unit, fetch, image_of_record, image_parts, step_parts};
use super::sink::PageSink;
use crate::envelope::FormatError;
use crate::image::Image;
use crate::plan::{ImageSource, Plan, Start, Step, get_range, open_segment};
use crate::records::{BodyHead, KnownChains, RecordScanner};
use crate::segment::SegmentSpan;
use crate::store::Store;

/// What a restore may use.
#[derive(Debug, Clone, Copy)]
pub struct RestoreSettings {
    /// Bytes of page deltas gathered, as they are encoded, before they are applied; while they are folded, up to as much
    /// again. More saves passes over the file; less saves memory.
    pub gather_bytes_max: usize,
    /// Objects fetched at a time. More hides latency; each costs up to 6 MiB.
    pub fetches: usize,
}

impl Default for RestoreSettings {
    fn default() -> Self {
        Self {
            gather_bytes_max: 64 << 20,
            fetches: 8,
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The state that was restored.
    pub position: Position,
    /// Commits applied.
    pub commits: u64,
    /// Objects of the plan.
    pub objects: usize,
}

/// Executes `plan` into `sink` and hands it back, finished.
pub async fn execute<S: PageSink + 'static>(
    store: &Store,
    plan: &Plan,
    sink: S,
    settings: RestoreSettings,
) -> Result<(S, Report), RestoreError> {
    run(store, plan, sink, settings, None).await
}

/// Gathers the XOR of every delta between the start of `plan`, which must be a file at hand
/// ([`Start::Base`]), and its target into `sink`, which must be empty: a page there is then old XOR new, in
/// either direction. Chain and joints are proven; the base is for the caller to prove, by the digests of both
/// ends. The sink is not finished.
pub async fn merge<S: PageSink + 'static>(
    store: &Store,
    plan: &Plan,
    sink: S,
    settings: RestoreSettings,
) -> Result<(S, Report), RestoreError> {
    merge_watched(store, plan, sink, settings, &|_| {}).await
}

/// The same; `fetched` hears how many bytes of the plan's have arrived.
pub async fn merge_watched<S: PageSink + 'static>(
    store: &Store,
    plan: &Plan,
    sink: S,
    settings: RestoreSettings,
    fetched: &(dyn Fn(u64) + Sync),
) -> Result<(S, Report), RestoreError> {
    run(store, plan, sink, settings, Some(fetched)).await
}

async fn run<S: PageSink + 'static>(
    store: &Store,
    plan: &Plan,
    sink: S,
    settings: RestoreSettings,
    merging: Option<&(dyn Fn(u64) + Sync)>,
) -> Result<(S, Report), RestoreError> {
    let (units, opened) = mpsc::channel(UNITS_AHEAD);
    let (hashed, inbox) = mpsc::channel(UNITS_AHEAD);
    let fetched = merging.unwrap_or(&|_| {});
    let merging = merging.is_some();
    let shared = Arc::new(plan.clone());
    let worker = Worker {
        applier: Applier::new(sink, plan, settings.gather_bytes_max, merging),
        merging,
        plan: Arc::clone(&shared),
        store: store.clone(),
        runtime: Handle::current(),
        scanner: None,
    };
    // A thread of its own: were it one of the runtime's, which open the units too, half as many restores at once would
    // use all of them up waiting.
    let (told, chained) = oneshot::channel();
    let hashing = move || told.send(hash_ahead(&shared, opened, &hashed));
    let name = "tidelog-chain".to_owned();
    std::thread::Builder::new().name(name).spawn(hashing)?;
    let applied = tokio::task::spawn_blocking(move || worker.run(inbox));
    let fetched = fetch_all(store, plan, settings.fetches.max(1), units, fetched).await;
    // The threads end when their channels close: on success after the last unit, else without finishing.
    let chained = chained.await.map_err(|_| RestoreError::Stopped)?;
    let applied = applied.await.map_err(|_| RestoreError::Stopped)?;
    // A failure closes the channels before it and behind it, which the others see as `Stopped`.
    for earlier in [fetched, chained] {
        match earlier {
            Ok(()) | Err(RestoreError::Stopped) => {}
            Err(error) => return Err(error),
        }
    }
    applied
}

async fn fetch_all(
    store: &Store,
    plan: &Plan,
    fetches: usize,
    units: mpsc::Sender<Message<Unit>>,
    fetched: &(dyn Fn(u64) + Sync),
) -> Result<(), RestoreError> {
    let start = match &plan.start {
        Start::Image(source) => {
            let (_, parts) = image_parts(store, source).await?;
            let key = source.object.key.clone();
            parts
                .into_iter()
                .map(|part| (key.clone(), part))
                .collect::<Vec<_>>()
        }
        Start::Base(_) | Start::Empty => Vec::new(),
    };
    let open = |(number, step): (usize, Step)| async move {
        let parts = step_parts(store, &step, number).await?;
        let key = step.piece.source.key().to_owned();
        let parts = parts.into_iter().map(move |part| (key.clone(), part));
        Ok::<_, RestoreError>(stream::iter(parts.map(Ok::<(String, Part), RestoreError>)))
    };
    let steps = plan.steps.iter().cloned().enumerate();
    let parts = stream::iter(steps)
        .map(open)
        .buffered(fetches)
        .try_flatten();
    let mut opened = Box::pin(
        parts
            .map_ok(|(key, part)| {
                let bytes = part.stored_len();
                let fetching = fetch(store.clone(), key, part);
                async move { Ok((fetching.await?, bytes)) }
            })
            .try_buffered(2),
    );
    let mut done = 0;
    while let Some((unit, bytes)) = opened.try_next().await? {
        send(&units, Message::Unit(unit)).await?;
        done += bytes;
        fetched(done);
    }
    // Behind the deltas, which are applied as it comes: each page is written once.
    let start = start.into_iter();
    let start = start.map(|(key, part)| fetch(store.clone(), key, part));
    let mut opened = stream::iter(start).buffered(fetches);
    while let Some(unit) = opened.try_next().await? {
        send(&units, Message::Unit(unit)).await?;
    }
    send(&units, Message::Complete).await
}

async fn send(
    units: &mpsc::Sender<Message<Unit>>,
    message: Message<Unit>,
) -> Result<(), RestoreError> {
    units.send(message).await.map_err(|_| RestoreError::Stopped)
}

/// The thread that proves and applies.
struct Worker<S> {
    applier: Applier<S>,
    plan: Arc<Plan>,
    merging: bool,
    store: Store,
    runtime: Handle,
    scanner: Option<RecordScanner>,
}

impl<S: PageSink> Worker<S> {
    fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message<Hashed>>,
    ) -> Result<(S, Report), RestoreError> {
        if matches!(self.plan.start, Start::Base(_)) && !self.merging {
            self.applier.mask()?;
        }
        loop {
            match inbox.blocking_recv() {
                Some(Message::Unit(unit)) => self.unit(unit)?,
                Some(Message::Complete) => break,
                None => return Err(RestoreError::Stopped),
            }
        }
        self.applier.check_end(&self.plan)?;
        if self.merging {
            self.applier.spill()?;
        } else {
            self.applier.finish(&self.plan)?;
        }
        let report = Report {
            position: self.plan.target.position,
            commits: self.applier.commits,
            objects: self.plan.objects(),
        };
        Ok((self.applier.sink, report))
    }

    fn unit(&mut self, Hashed { unit, chains }: Hashed) -> Result<(), RestoreError> {
        self.applier.sink.check()?;
        match unit {
            Unit::Image(image, blocks) => {
                for (block, mut raw) in blocks {
                    let size = self.plan.page_size;
                    for (first, images) in page_runs(&image, block, &mut raw, size) {
                        self.applier.start_pages(first, images)?;
                    }
                }
                Ok(())
            }
            Unit::Segment(segment, blocks, raws, number) => {
                let Some(step) = self.plan.steps.get(number).cloned() else {
                    return Err(RestoreError::Stopped);
                };
                let key = step.piece.source.key();
                let done = self.blocks(&step, &segment.1, blocks, &raws, chains);
                done.map_err(|error| error.in_object(key))?;
                self.fetch_elsewhere(&step)
            }
            Unit::Section(section, number) => {
                let Some(step) = self.plan.steps.get(number).cloned() else {
                    return Err(RestoreError::Stopped);
                };
                let (journal, section) = section.as_ref();
                let key = step.piece.source.key();
                let meta = &section.meta;
                if meta.page_size != self.plan.page_size {
                    let error = FormatError::invalid(0, "page size");
                    return Err(RestoreError::Format(error).in_object(key));
                }
                let stored = journal.section_bytes(section).unwrap_or_default();
                let mut scanner = RecordScanner::new(meta.page_size, meta.walk());
                self.applier.begin_step(&step, meta.chain_before);
                for raw in journal.blocks(section, &stored) {
                    let raw = raw.map_err(|e| RestoreError::Format(e).in_object(key))?;
                    let fed = scanner.feed(&raw, &mut self.applier);
                    fed.map_err(|error| error.in_object(key))?;
                    self.fetch_elsewhere(&step)?;
                }
                let end = scanner.finish(meta.last, meta.chain_after, section.range().start);
                end.map_err(|error| RestoreError::Format(error).in_object(key))
            }
        }
    }

    /// Scans opened blocks of a step's span, keeping the scanner until the span ends.
    fn blocks(
        &mut self,
        step: &Step,
        span: &SegmentSpan,
        blocks: std::ops::Range<usize>,
        raws: &[Vec<u8>],
        mut chains: KnownChains,
    ) -> Result<(), RestoreError> {
        if blocks.start == span.blocks.start {
            self.scanner = Some(RecordScanner::new(self.plan.page_size, span.walk));
            self.applier.begin_step(step, span.walk.chain);
        }
        let Some(scanner) = &mut self.scanner else {
            return Err(RestoreError::Stopped);
        };
        for (block, raw) in blocks.clone().zip(raws) {
            scanner.feed_known(span.piece(block, raw), &mut chains, &mut self.applier)?;
        }
        if blocks.end == span.blocks.end {
            scanner.finish(span.last, span.chain_after, span.range.start)?;
            self.scanner = None;
        }
        Ok(())
    }

    /// Fetches what records said stands elsewhere: parts are applied, images replace the state.
    fn fetch_elsewhere(&mut self, step: &Step) -> Result<(), RestoreError> {
        for Elsewhere { head, position } in std::mem::take(&mut self.applier.elsewhere) {
            let ids = (step.piece.namespace, step.piece.database);
            match head.body {
                BodyHead::Reference { object, .. } => self.part(ids, &object, position)?,
                BodyHead::Image(object) => {
                    self.image(&image_of_record(ids, object, position, &head.header))?;
                }
                BodyHead::Delta | BodyHead::Fork { .. } | BodyHead::Restore { .. } => {}
            }
        }
        Ok(())
    }

    fn image(&mut self, source: &ImageSource) -> Result<(), RestoreError> {
        let (image, parts) = self.runtime.block_on(image_parts(&self.store, source))?;
        for part in parts {
            let opened = fetch(self.store.clone(), source.object.key.clone(), part);
            if let Unit::Image(_, blocks) = self.runtime.block_on(opened)? {
                for (block, mut raw) in blocks {
                    let size = self.plan.page_size;
                    for (first, images) in page_runs(&image, block, &mut raw, size) {
                        self.applier.xor_at(first.offset(size), images)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn part(
        &mut self,
        (namespace, database): (tidelog_wal::NamespaceId, tidelog_wal::DatabaseId),
        object: &tidelog_wal::record::ObjectRef,
        expected: Position,
    ) -> Result<(), RestoreError> {
        let opened = open_segment(&self.store, object, namespace, database);
        let segment = self.runtime.block_on(opened)?;
        let refused = |error: RestoreError| error.in_object(&object.key);
        let invalid = |what| refused(FormatError::invalid(0, what).into());
        let run = segment.meta.run;
        if run.end() != expected || run.first != expected.txid {
            return Err(invalid("run of a part"));
        }
        let Some(span) = segment.all() else {
            return Err(invalid("run of a part"));
        };
        let mut scanner = RecordScanner::new(self.plan.page_size, span.walk);
        for block in span.blocks.clone() {
            self.applier.sink.check()?;
            let Some(entry) = segment.table.blocks.get(block) else {
                return Err(invalid("block number"));
            };
            let stored = get_range(&self.store, &object.key, entry.range());
            let stored = self.runtime.block_on(stored)?;
            let raw = segment.open_block(block, &stored);
            let raw = raw.map_err(|error| refused(error.into()))?;
            let mut visitor = PartApplier {
                applier: &mut self.applier,
                expected,
            };
            scanner
                .feed(span.piece(block, &raw), &mut visitor)
                .map_err(refused)?;
        }
        scanner
            .finish(span.last, span.chain_after, span.range.start)
            .map_err(|error| refused(error.into()))
    }
}

/// Runs of pages of an opened block, with the first page of each. The block's length was proven against its runs when
/// the index was read.
fn page_runs<'a>(
    image: &'a Image,
    block: usize,
    raw: &'a mut [u8],
    size: PageSize,
) -> impl Iterator<Item = (PageNo, &'a mut [u8])> {
    let mut left = raw;
    image.runs(block).iter().map(move |run| {
        let bytes = run.pages as usize * size.bytes();
        let images = left.split_off_mut(..bytes).unwrap_or_default();
        (run.first, images)
    })
}
