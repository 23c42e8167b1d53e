//! Running a scrub.

use bytes::Bytes;
use tidelog_wal::TxId;

use super::check::{Counter, chain_of};
use super::{Finding, Level, ScrubReport};
use crate::ErrorKind;
use crate::envelope::{BlockEntry, BlockTable, FormatError, TRAILER_LEN};
use crate::image::Image;
use crate::plan::{
    History, ImageSource, Opened, Piece, PieceSource, PlanError, ReadError, Resolved, get_range,
    open_image, open_piece,
};
use crate::records::RecordScanner;
use crate::restore::{PageSink, RestoreError, RestoreSettings, execute};
use crate::store::Store;

/// Bytes of an object fetched at a time.
const CHUNK: u64 = 4 << 20;

/// Verifies `history`, all of it, from `store`. `sink` makes files to restore into; it is called at
/// [`Level::Restore`] alone.
pub async fn scrub<S: PageSink + 'static>(
    store: &Store,
    history: History,
    level: Level,
    sink: impl FnMut() -> std::io::Result<S>,
) -> Result<ScrubReport, PlanError> {
    scrub_some(store, history, level, sink, |_| true).await
}

/// As [`scrub`], but reads only the objects whose keys `wanted` picks. That the runs of all objects join is
/// checked by their entries, whichever are read; at [`Level::Restore`] what a state needs is read in any case.
pub async fn scrub_some<S: PageSink + 'static>(
    store: &Store,
    mut history: History,
    level: Level,
    mut sink: impl FnMut() -> std::io::Result<S>,
    mut wanted: impl FnMut(&str) -> bool,
) -> Result<ScrubReport, PlanError> {
    history.read_all().await?;
    let mut report = ScrubReport::default();
    let mut last: Option<&Piece> = None;
    for piece in &history.pieces {
        let expired = piece.first <= history.horizon.next();
        if let Some(last) = last.filter(|last| !history.joins(last, piece) && !expired) {
            report.findings.push(Finding {
                key: piece.source.key().to_owned(),
                offset: None,
                what: format!("does not follow {}", last.source.key()),
                kind: ErrorKind::Corrupt,
            });
        }
        last = Some(piece);
        if !wanted(piece.source.key()) {
            report.skipped += 1;
            continue;
        }
        if let Err(finding) = scrub_piece(store, piece, level, &mut report).await {
            report.findings.push(finding);
        }
    }
    for image in &history.images {
        if !wanted(&image.object.key) {
            report.skipped += 1;
            continue;
        }
        if let Err(finding) = scrub_image(store, image, level, &mut report).await {
            report.findings.push(finding);
        }
    }
    if level >= Level::Restore {
        for target in targets(&history) {
            restore_state(store, &mut history, target, &mut sink, &mut report).await;
        }
    }
    Ok(report)
}

/// The states that are restored: what each image must agree with, and the newest.
fn targets(history: &History) -> Vec<Resolved> {
    let ends = history
        .pieces
        .iter()
        .filter(|piece| piece.last == piece.run.last);
    let ends = ends.map(|piece| Resolved {
        position: piece.run.end(),
        time: piece.run.last_time,
        n: piece.run.n_after,
        digest: piece.run.digest_after,
    });
    let at_image = |end: &Resolved| {
        let images = &history.images;
        images.iter().any(|image| image.position == end.position)
    };
    let head = history.head();
    ends.filter(|end| Some(end.position) == head || at_image(end))
        .collect()
}

/// Reads every byte of an object and proves its BLAKE3, in bounded memory.
async fn prove_bytes(store: &Store, key: &str, len: u64, blake3: &[u8; 32]) -> Result<(), Finding> {
    let covered = len.saturating_sub(TRAILER_LEN as u64);
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < covered {
        let end = covered.min(at + CHUNK);
        hasher.update(&get_range(store, key, at..end).await?);
        at = end;
    }
    let found = hasher.finalize();
    if found.as_bytes() == blake3 {
        return Ok(());
    }
    Err(Finding {
        key: key.to_owned(),
        offset: Some(0),
        what: format!(
            "BLAKE3 of the object is {found}, expected {}",
            blake3::Hash::from_bytes(*blake3)
        ),
        kind: ErrorKind::Corrupt,
    })
}

/// Hands out stored blocks in order: from the whole object, or fetched a few megabytes at a time.
struct Window<'a> {
    store: &'a Store,
    key: &'a str,
    /// Where the blocks end.
    end: u64,
    /// Where `bytes` begins in the object.
    base: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    fn new(store: &'a Store, key: &'a str, whole: Option<&Bytes>, table: &BlockTable) -> Self {
        Self {
            store,
            key,
            end: table.range().end,
            base: 0,
            bytes: whole.cloned().unwrap_or_default(),
        }
    }

    fn held(&self, entry: &BlockEntry) -> Option<Bytes> {
        let start = usize::try_from(entry.offset.checked_sub(self.base)?).ok()?;
        let end = start.checked_add(entry.stored_len as usize)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }

    async fn block(&mut self, entry: &BlockEntry) -> Result<Bytes, ReadError> {
        if let Some(bytes) = self.held(entry) {
            return Ok(bytes);
        }
        let range = entry.range();
        let end = range.end.max(self.end.min(range.start + CHUNK));
        self.bytes = get_range(self.store, self.key, range.start..end).await?;
        self.base = range.start;
        Ok(self.held(entry).unwrap_or_default())
    }
}

async fn scrub_piece(
    store: &Store,
    piece: &Piece,
    level: Level,
    report: &mut ScrubReport,
) -> Result<(), Finding> {
    report.objects += 1;
    let opened = open_piece(store, piece).await?;
    report.bytes += piece.bytes;
    let key = piece.source.key();
    let refused = |error: FormatError| Finding::from(error.in_object(key));
    let mut counter = Counter::default();
    match opened {
        Opened::Segment(segment) => {
            if let (None, PieceSource::Segment(named)) = (segment.whole(), &piece.source) {
                prove_bytes(store, key, named.len, &named.blake3).await?;
            }
            if level < Level::Chain {
                return Ok(());
            }
            let empty = || refused(FormatError::invalid(0, "run of txids"));
            let span = segment.all().ok_or_else(empty)?;
            let mut scanner = RecordScanner::new(segment.meta.page_size, span.walk);
            let mut window = Window::new(store, key, segment.whole(), &segment.table);
            for block in span.blocks.clone() {
                let entry = segment.table.blocks.get(block).ok_or_else(empty)?;
                let stored = window.block(entry).await?;
                let raw = segment.open_block(block, &stored).map_err(refused)?;
                let fed = scanner.feed(span.piece(block, &raw), &mut counter);
                fed.map_err(|error| refused(error.shifted(entry.offset)))?;
            }
            let end = scanner.finish(span.last, span.chain_after, span.range.start);
            end.map_err(refused)?;
        }
        Opened::Section(journal, section) => {
            if level < Level::Chain {
                return Ok(());
            }
            let stored = journal.section_bytes(&section).unwrap_or_default();
            let mut records = journal.records(&section, &stored);
            while records.next_record().map_err(refused)?.is_some() {
                counter.records += 1;
            }
        }
    }
    report.records += counter.records;
    Ok(())
}

async fn scrub_image(
    store: &Store,
    source: &ImageSource,
    level: Level,
    report: &mut ScrubReport,
) -> Result<(), Finding> {
    report.objects += 1;
    let named = &source.object;
    let refused = |error: FormatError| Finding::from(error.in_object(&named.key));
    let object = open_image(store, source).await?;
    report.bytes += named.len;
    if object.whole.is_none() {
        prove_bytes(store, &named.key, named.len, &named.blake3).await?;
    }
    let image = Image::from_object(object).map_err(refused)?;
    image
        .check_state(&source.position, source.n, source.digest)
        .map_err(refused)?;
    if level >= Level::Chain {
        let mut window = Window::new(store, &named.key, image.whole(), &image.table);
        for (block, entry) in image.table.blocks.iter().enumerate() {
            let stored = window.block(entry).await?;
            image.open_block(block, &stored).map_err(refused)?;
        }
    }
    Ok(())
}

/// Restores a state from an image and, if another path leads there, over that one too.
async fn restore_state<S: PageSink + 'static>(
    store: &Store,
    history: &mut History,
    target: Resolved,
    sink: &mut impl FnMut() -> std::io::Result<S>,
    report: &mut ScrubReport,
) {
    let txid = target.position.txid;
    // An image at the target must not be the only witness of it.
    let own: Vec<ImageSource> = take_images(history, txid);
    let without = history.plan(target, None).await.ok();
    history.images.extend(own);
    history.images.sort_by_key(|image| image.position.txid);
    let with = history.plan(target, None).await.ok();
    for plan in [without, with].into_iter().flatten() {
        let done = match sink() {
            Ok(sink) => execute(store, &plan, sink, RestoreSettings::default()).await,
            Err(error) => Err(RestoreError::Io(error)),
        };
        match done {
            Ok(_) => report.states += 1,
            Err(RestoreError::Read(error)) => report.findings.push(error.into()),
            Err(error) => report.findings.push(Finding {
                key: plan
                    .steps
                    .last()
                    .map_or_else(String::new, |step| step.piece.source.key().to_owned()),
                offset: None,
                what: format!("restoring txid {txid}: {}", chain_of(&error)),
                kind: error.kind(),
            }),
        }
    }
}

fn take_images(history: &mut History, txid: TxId) -> Vec<ImageSource> {
    let (own, rest) = std::mem::take(&mut history.images)
        .into_iter()
        .partition(|image| image.position.txid == txid);
    history.images = rest;
    own
}
