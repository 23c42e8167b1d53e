//! An image of a state that only the store holds: restored into a sealed scratch file, written from there.
//!
//! The restore proves the state's digest, and the writer of the image proves it again.

use std::sync::Arc;

use tidelog_archive::image::ImageMeta;
use tidelog_archive::manifest::{ImageEntry, Loaded};
use tidelog_archive::plan::{Plan, Target};
use tidelog_wal::{DatabaseId, NamespaceId, TxId};

use crate::core::Core;
use crate::crash_point;
use crate::error::Error;
use crate::rebuild::{history, materialise_into, plan, present, replanned};
use crate::scratch::ScratchPages;

/// The state in a scratch file.
async fn copy(
    core: &Core,
    namespace: NamespaceId,
    id: DatabaseId,
    txid: TxId,
) -> Result<(Plan, ScratchPages), Error> {
    let mut known = history(core, namespace, id).await?;
    let store = &core.remote.store;
    let terms = present(core.term());
    let plan = plan(store, &mut known, Target::TxId(txid), terms).await?;
    let bytes = plan.target.n.bytes(plan.page_size);
    let pages = ScratchPages::create(core, "an image of an older state", plan.page_size, bytes)?;
    let pages = materialise_into(store, &plan, pages).await?;
    Ok((plan, pages))
}

/// Stores an image of the state `txid` of a database. It exists once a manifest lists it.
pub(crate) async fn write_at(
    core: &Arc<Core>,
    loaded: &Loaded,
    txid: TxId,
) -> Result<ImageEntry, Error> {
    let manifest = &loaded.manifest;
    let (plan, pages) = replanned!(copy(core, manifest.namespace, manifest.database, txid))?;
    let target = plan.target;
    let meta = ImageMeta {
        namespace: manifest.namespace,
        database: manifest.database,
        page_size: manifest.page_size,
        seed: manifest.seed,
        position: target.position,
        time: target.time,
        n: target.n,
        digest: target.digest,
    };
    crash_point!("retention.before_image");
    let written = crate::image::write_pages(core, meta, pages).await;
    crash_point!("retention.after_image");
    written
}
