//! An image of a state that only the store holds: restored into a scratch file, written from there.
//!
//! The restore proves the state's digest, and the writer of the image proves it again. The scratch file stands
//! in the data folder, `retention/{database}`, and is removed whatever happens; one that a crash left is
//! removed by the next start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_archive::image::ImageMeta;
use tidelog_archive::manifest::{ImageEntry, Loaded};
use tidelog_archive::plan::{Plan, Target};
use tidelog_wal::{DatabaseId, NamespaceId, TxId};

use crate::core::Core;
use crate::crash_point;
use crate::error::Error;
use crate::rebuild::{history, materialise, plan, present, replanned};

/// Where the state of a database is restored to.
pub(crate) fn scratch(core: &Core, id: DatabaseId) -> PathBuf {
    core.settings.data.join("retention").join(id.to_string())
}

/// Stores an image of the state `txid` of a database. It exists once a manifest lists it.
pub(crate) async fn write_at(
    core: &Arc<Core>,
    loaded: &Loaded,
    txid: TxId,
) -> Result<ImageEntry, Error> {
    let path = scratch(core, loaded.manifest.database);
    let io = |e| Error::io("make a scratch file", e);
    let disk = &core.parts.disk;
    disk.create_folder(&core.settings.data.join("retention"))
        .map_err(io)?;
    disk.remove(&path).map_err(io)?;
    let written = write_through(core, loaded, txid, path.clone()).await;
    disk.remove(&path).map_err(io)?;
    written
}

/// The state in a file.
async fn copy(
    core: &Core,
    namespace: NamespaceId,
    id: DatabaseId,
    txid: TxId,
    path: &Path,
) -> Result<Plan, Error> {
    let mut known = history(core, namespace, id).await?;
    let store = &core.remote.store;
    let terms = present(core.term());
    let plan = plan(store, &mut known, Target::TxId(txid), terms).await?;
    materialise(store, &plan, path).await?;
    Ok(plan)
}

async fn write_through(
    core: &Arc<Core>,
    loaded: &Loaded,
    txid: TxId,
    path: PathBuf,
) -> Result<ImageEntry, Error> {
    let manifest = &loaded.manifest;
    let plan = replanned!(copy(
        core,
        manifest.namespace,
        manifest.database,
        txid,
        &path
    ))?;
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
    let written = crate::image::write_file(core, meta, path).await;
    crash_point!("retention.after_image");
    written
}
