//! Images: every page of a database at one commit, so that a restore reads at most about twice the database.
//!
//! An image is written when the compressed log since the last one exceeds its compressed size. The pages of an open
//! database are read by a fuzzy copy ([`crate::copy`]): no read transaction is held and writers go on. The writer of the
//! object proves the digest, so that what is stored is that commit or nothing.

use std::sync::Arc;

use tidelog_archive::envelope::Finished;
use tidelog_archive::image::{ImageMeta, ImageWriter};
use tidelog_archive::key::{Key, KeyNonce};
use tidelog_archive::manifest::{ImageEntry, Loaded, Manifest, PublishError};
use tidelog_wal::block::Compressor;
use tidelog_wal::{PageCount, PageNo};

use crate::copy::Copy;
use crate::core::Core;
use crate::crash_point;
use crate::database::Lease;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::remote::publish_error;
use crate::scratch::ScratchPages;
use crate::upload::{Pieces, upload};

/// Bytes handed to the upload at once.
const PIECE_BYTES: usize = 1 << 20;
/// A database smaller than this is not worth an image: its log is read whole.
const LOG_MIN: u64 = 256 << 10;
/// What a page shrinks to, as a share of its size in percent, before the first image tells.
const SHARE_GUESSED: u64 = 40;

/// Whether the settled log since the newest image is longer than an image would be: the manifest tells.
pub(crate) fn is_due(manifest: &Manifest) -> bool {
    let newest = manifest.images.last();
    let from = newest.map_or(0, |image| image.position.txid.get());
    let indexed: u64 = if newest.is_none() {
        manifest.index.iter().map(|entry| entry.bytes).sum()
    } else {
        0
    };
    let log: u64 = indexed
        + manifest
            .segments
            .iter()
            .filter(|segment| segment.run.last.get() > from)
            .map(|segment| segment.len)
            .sum::<u64>();
    let pages = manifest.settled.map_or(PageCount::ZERO, |at| at.n);
    let guessed = pages.bytes(manifest.page_size) * SHARE_GUESSED / 100;
    log > newest.map_or(guessed, |image| image.len).max(LOG_MIN)
}

/// Writes an image of the newest commit and lists it in the manifest. The commit must be settled: the caller
/// settles afterwards where it is not, since an image beyond the settled Position is not listed.
pub(crate) async fn write(core: &Arc<Core>, lease: &Lease) -> Result<ImageEntry, Error> {
    let database = Arc::clone(lease);
    let copy = blocking(lease.core.executor(), move || Copy::newest(&database)).await?;
    let state = *copy.target();
    let meta = ImageMeta {
        namespace: lease.meta.namespace,
        database: lease.meta.id,
        page_size: lease.meta.page_size,
        seed: lease.meta.seed,
        position: state.position,
        time: state.time,
        n: state.n,
        digest: state.digest,
    };
    let nonce = core.remote.nonces.next();
    let stamp = core.remote.stamp(meta.namespace, meta.database)?;
    let level = core.settings.settle_level;
    let write = move |pieces: &Pieces| {
        let format = |e| Error::new(Code::DatabaseCorrupt, "write an image").caused_by(e);
        let mut writer = ImageWriter::new(meta, stamp, Compressor::new(level));
        let mut handed = 0;
        copy.pages(None, |first, run| {
            let numbers = (first.get()..).filter_map(PageNo::new);
            for (page, image) in numbers.zip(run.chunks_exact(meta.page_size.bytes())) {
                writer.page(page, image).map_err(format)?;
                if writer.stored_len() - handed >= PIECE_BYTES as u64 {
                    handed = writer.stored_len();
                    pieces.push(writer.take())?;
                }
            }
            Ok(())
        })?;
        let (finished, _, _) = writer.finish().map_err(format)?;
        pieces.push(finished.bytes.clone())?;
        Ok(finished)
    };
    let key = Key::image(meta.namespace, meta.database, meta.position.txid, nonce);
    crash_point!("image.before_put");
    let finished = upload(core, &key.to_string(), write).await?;
    crash_point!("image.after_put");
    Ok(entry(&meta, nonce, &finished))
}

fn entry(meta: &ImageMeta, nonce: KeyNonce, finished: &Finished) -> ImageEntry {
    ImageEntry {
        position: meta.position,
        time: meta.time,
        n: meta.n,
        digest: meta.digest,
        nonce,
        len: finished.len,
        blake3: finished.blake3,
    }
}

/// Writes an image of the state in `pages`. The writer of the object proves that it is the state that `meta` names.
pub(crate) async fn write_pages(
    core: &Arc<Core>,
    meta: ImageMeta,
    pages: ScratchPages,
) -> Result<ImageEntry, Error> {
    let nonce = core.remote.nonces.next();
    let key = Key::image(meta.namespace, meta.database, meta.position.txid, nonce);
    let stamp = core.remote.stamp(meta.namespace, meta.database)?;
    let level = core.settings.settle_level;
    let write = move |pieces: &Pieces| {
        let io = |e| Error::io("read a scratch file", e);
        let format = |e| Error::new(Code::DatabaseCorrupt, "write an image").caused_by(e);
        let mut writer = ImageWriter::new(meta, stamp, Compressor::new(level));
        let mut image = vec![0; meta.page_size.bytes()];
        let mut handed = 0;
        for page in meta.n.pages(meta.page_size) {
            pages.page(page, &mut image).map_err(io)?;
            writer.page(page, &image).map_err(format)?;
            if writer.stored_len() - handed >= PIECE_BYTES as u64 {
                handed = writer.stored_len();
                pieces.push(writer.take())?;
            }
        }
        let (finished, _, _) = writer.finish().map_err(format)?;
        pieces.push(finished.bytes.clone())?;
        Ok(finished)
    };
    let finished = upload(core, &key.to_string(), write).await?;
    Ok(entry(&meta, nonce, &finished))
}

/// Lists an image in the manifest.
pub(crate) async fn publish(
    core: &Core,
    current: &Loaded,
    entry: ImageEntry,
) -> Result<Loaded, Error> {
    crash_point!("image.before_cas");
    let published = core
        .remote
        .publish(current, |manifest| {
            manifest.add_image(entry);
            Ok(())
        })
        .await
        .map_err(|error: PublishError| publish_error("list an image", error))?;
    crash_point!("image.after_cas");
    core.remote
        .remember(current.manifest.database, published.clone());
    Ok(published)
}
