//! `tidelog store check`.

use std::sync::Arc;

use serde_json::json;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_archive::{SystemClock, SystemEntropy};

use crate::cli::exit::Failure;
use crate::cli::output::Output;
use crate::time;

/// `tidelog store check`: proves that the store does what Tidelog needs, and leaves nothing in it.
pub(in crate::cli) async fn check(url: &str, output: &Output) -> Result<(), Failure> {
    let options = StoreOptions {
        settings: StoreSettings::default(),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SystemEntropy),
    };
    let fitness = Store::open(url, options)?.probe().await?;
    let (ours, theirs) = (fitness.wall, fitness.store_time);
    let apart = ours.micros().abs_diff(theirs.micros()) / 1000;
    let document = json!({
        "fit": true,
        "clock_difference_ms": apart,
        "store_time": time::format(theirs),
    });
    output.result(&document, || {
        format!(
            "the store does what Tidelog needs: it creates only what is absent, replaces only what is unchanged, \
             shows its last write and reads ranges; its clock is {apart} ms from ours\n"
        )
    });
    Ok(())
}
