//! Fetching and opening what a plan needs, ahead of the thread that applies it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tidelog_wal::{DatabaseId, NamespaceId, Position};

use super::error::RestoreError;
use crate::envelope::{BlockTable, FormatError};
use crate::image::Image;
use crate::journal::{JournalObject, Section};
use crate::plan::{ImageSource, Opened, Step, get_range, open_image, open_piece};
use crate::segment::{Segment, SegmentSpan};
use crate::store::Store;

/// Raw bytes opened at once: what one task holds.
const UNIT_RAW_MAX: u64 = 4 << 20;

/// A part of an object, to be fetched and opened.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// Blocks of an image.
    Image(Arc<Image>, Range<usize>),
    /// Blocks of a segment's span.
    Segment(Arc<(Segment, SegmentSpan)>, Range<usize>, usize),
    /// A section, which came with its journal object.
    Section(Arc<(JournalObject, Section)>, usize),
}

impl Part {
    /// Bytes of it as they are stored.
    pub(super) fn stored_len(&self) -> u64 {
        let (table, blocks) = match self {
            Self::Image(image, blocks) => (&image.table, blocks),
            Self::Segment(segment, blocks, _) => (&segment.0.table, blocks),
            Self::Section(section, _) => {
                let range = section.1.range();
                return range.end.saturating_sub(range.start);
            }
        };
        let blocks = table.blocks.get(blocks.clone()).unwrap_or_default();
        blocks.iter().map(|block| u64::from(block.stored_len)).sum()
    }
}

/// What the applying thread takes.
#[derive(Debug)]
pub(super) enum Unit {
    /// Opened blocks of an image, by their numbers.
    Image(Arc<Image>, Vec<(usize, Vec<u8>)>),
    /// Raw pieces of a step's span, the first at block number `.1`.
    Segment(
        Arc<(Segment, SegmentSpan)>,
        Range<usize>,
        Vec<Vec<u8>>,
        usize,
    ),
    /// A section of a step.
    Section(Arc<(JournalObject, Section)>, usize),
}

/// Cuts `blocks` into ranges of at most 4 MiB raw.
fn cut(table: &BlockTable, blocks: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut start, mut raw) = (blocks.start, 0);
    for block in blocks.clone() {
        let len = table.blocks.get(block).map_or(0, |b| u64::from(b.raw_len));
        if raw + len > UNIT_RAW_MAX && block > start {
            parts.push(start..block);
            (start, raw) = (block, 0);
        }
        raw += len;
    }
    if start < blocks.end {
        parts.push(start..blocks.end);
    }
    parts
}

/// The parts of an image, which must be the state it is listed as.
pub(super) async fn image_parts(
    store: &Store,
    source: &ImageSource,
) -> Result<(Arc<Image>, Vec<Part>), RestoreError> {
    let named = &source.object;
    let object = open_image(store, source).await?;
    let refused = |error: FormatError| RestoreError::Format(error).in_object(&named.key);
    let image = Image::from_object(object).map_err(refused)?;
    image
        .check_state(&source.position, source.n, source.digest)
        .map_err(refused)?;
    let image = Arc::new(image);
    let parts = cut(&image.table, 0..image.table.blocks.len());
    let parts = parts.into_iter();
    let parts = parts.map(|blocks| Part::Image(Arc::clone(&image), blocks));
    let parts = parts.collect();
    Ok((image, parts))
}

/// An image that a record names: its Position is the record's.
pub(super) fn image_of_record(
    (namespace, database): (NamespaceId, DatabaseId),
    object: tidelog_wal::record::ObjectRef,
    position: Position,
    header: &tidelog_wal::record::RecordHeader,
) -> ImageSource {
    ImageSource {
        namespace,
        database,
        position,
        time: header.time,
        n: header.n_after,
        digest: header.digest,
        object,
    }
}

/// The parts of step number `number`.
pub(super) async fn step_parts(
    store: &Store,
    step: &Step,
    number: usize,
) -> Result<Vec<Part>, RestoreError> {
    match open_piece(store, &step.piece).await? {
        Opened::Section(journal, section) => {
            Ok(vec![Part::Section(Arc::new((journal, section)), number)])
        }
        Opened::Segment(segment) => {
            let span = segment.span(step.first, step.last).ok_or_else(|| {
                let error = FormatError::invalid(0, "run of txids");
                RestoreError::Format(error).in_object(step.piece.source.key())
            })?;
            let blocks = cut(&segment.table, span.blocks.clone());
            let shared = Arc::new((segment, span));
            let part = |blocks| Part::Segment(Arc::clone(&shared), blocks, number);
            Ok(blocks.into_iter().map(part).collect())
        }
    }
}

/// The stored bytes of some blocks, from the whole object or by one ranged request.
async fn stored(
    store: &Store,
    key: &str,
    whole: Option<&Bytes>,
    table: &BlockTable,
    blocks: &Range<usize>,
) -> Result<(Bytes, u64), RestoreError> {
    let blocks = table.blocks.get(blocks.clone()).unwrap_or_default();
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
        return Ok((Bytes::new(), 0));
    };
    let range = first.offset..last.range().end;
    let bytes = match whole {
        Some(whole) => {
            let start = usize::try_from(range.start).unwrap_or(usize::MAX);
            let end = usize::try_from(range.end).unwrap_or(usize::MAX);
            if start > end || end > whole.len() {
                let error = FormatError::invalid(start, "block beyond the object");
                return Err(RestoreError::Format(error).in_object(key));
            }
            whole.slice(start..end)
        }
        None => get_range(store, key, range.clone()).await?,
    };
    Ok((bytes, range.start))
}

/// Fetches and opens a part. Opening runs on a blocking thread.
pub(super) async fn fetch(store: Store, key: String, part: Part) -> Result<Unit, RestoreError> {
    match part {
        Part::Section(section, step) => Ok(Unit::Section(section, step)),
        Part::Image(image, blocks) => {
            let whole = image.whole();
            let (bytes, base) = stored(&store, &key, whole, &image.table, &blocks).await?;
            blocking(move || {
                let mut opened = Vec::with_capacity(blocks.len());
                for block in blocks {
                    let raw = open_image_block(&image, block, &bytes, base)
                        .map_err(|error| RestoreError::Format(error).in_object(&key))?;
                    opened.push((block, raw));
                }
                Ok(Unit::Image(image, opened))
            })
            .await
        }
        Part::Segment(segment, blocks, step) => {
            let whole = segment.0.whole();
            let (bytes, base) = stored(&store, &key, whole, &segment.0.table, &blocks).await?;
            blocking(move || {
                let mut opened = Vec::with_capacity(blocks.len());
                for block in blocks.clone() {
                    let raw = segment.0.open_block_in(block, &bytes, base);
                    let raw = raw.map_err(|error| RestoreError::Format(error).in_object(&key))?;
                    opened.push(raw);
                }
                Ok(Unit::Segment(segment, blocks, opened, step))
            })
            .await
        }
    }
}

fn open_image_block(
    image: &Image,
    block: usize,
    bytes: &Bytes,
    base: u64,
) -> Result<Vec<u8>, FormatError> {
    let stored = image.table.blocks.get(block).and_then(|entry| {
        let from = usize::try_from(entry.offset.checked_sub(base)?).ok()?;
        bytes.get(from..from.checked_add(entry.stored_len as usize)?)
    });
    let missing = FormatError::invalid(0, "block number");
    Ok(image.open_block(block, stored.ok_or(missing)?)?.into_raw())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(RestoreError::Stopped),
    }
}
