//! `tidelog store check`.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use serde_json::json;
use tidelog_archive::store::{Store, StoreError, StoreOptions, StoreSettings};
use tidelog_archive::{Entropy as _, SystemClock, SystemEntropy};

use crate::cli::exit::Failure;
use crate::cli::output::Output;
use crate::time;

/// A part of an upload in parts: the least S3 takes.
const PART: usize = 5 << 20;

/// `tidelog store check`: proves that the store does what Tidelog needs with the rights it has, and leaves nothing in
/// it: creating, replacing, reading, ranges, HEAD, deleting, the conditions; then uploading in parts, giving such an
/// upload up, and listing.
pub(in crate::cli) async fn check(url: &str, output: &Output) -> Result<(), Failure> {
    let options = StoreOptions {
        settings: StoreSettings {
            part_bytes: PART,
            ..StoreSettings::default()
        },
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SystemEntropy),
    };
    let store = Store::open(url, options)?;
    let fitness = store.probe().await.map_err(lacking)?;
    let nonce = u128::from_be_bytes(SystemEntropy.bytes16());
    let key = format!("probe/{nonce:032x}-parts");
    let tried = parts_and_listing(&store, &key).await;
    let removed = store.delete(&key).await;
    tried.map_err(lacking)?;
    removed.map_err(lacking)?;
    let (ours, theirs) = (fitness.wall, fitness.store_time);
    let apart = ours.micros().abs_diff(theirs.micros()) / 1000;
    let document = json!({
        "fit": true,
        "clock_difference_ms": apart,
        "store_time": time::format(theirs),
        "versioned": fitness.versioned,
    });
    output.result(&document, || {
        format!(
            "the store does what Tidelog needs: it creates only what is absent, replaces only what is unchanged, \
             shows its last write, reads ranges, takes uploads in parts, gives them up and lists; its clock is {apart} ms from ours\n"
        )
    });
    if fitness.versioned {
        output.remark(
            "the bucket keeps versions: what is deleted or replaced, wrapped data keys too, lives on as an old version \
             until the bucket's rules expire it",
        );
    }
    Ok(())
}

/// Says by name which right the credentials lack, if it is that.
fn lacking(error: StoreError) -> Failure {
    let right = error.right();
    let mut failure = Failure::from(error);
    if let Some(right) = right {
        failure.message = format!(
            "{}: the credentials lack {right}, or its like on other stores; docs/security.md has the whole policy",
            failure.message
        );
        failure.document["detail"] = json!(failure.message);
        failure.document["lacks"] = json!(right);
    }
    failure
}

async fn parts_and_listing(store: &Store, key: &str) -> Result<(), StoreError> {
    let part = Bytes::from(vec![0x5a; PART]);
    let pieces = [part, Bytes::from_static(b"the last part")];
    let pieces = stream::iter(pieces.map(Ok::<_, StoreError>));
    store.put_unique(key, pieces).await?;
    store.probe_abort(key).await?;
    let mut listed = pin!(store.list_pages("probe/")?);
    while let Some(page) = listed.next().await {
        if page?.iter().any(|entry| entry.key == key) {
            return Ok(());
        }
    }
    Err(StoreError::Unfit {
        url: store.url().to_owned(),
        missing: "it does not list an object that was just written",
    })
}
