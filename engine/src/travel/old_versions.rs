//! What a purge says of bytes that it does not reach: old versions, in a bucket that keeps them.
//!
//! Such a bucket keeps the `key` object as it was before it was destroyed, too: until its rules remove that, whoever
//! holds the master key opens all the rest.

use serde_json::{Value as Json, json};
use tidelog_wal::Timestamp;

use super::archives::rfc3339;
use crate::core::Core;

const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;

/// Whether the bucket keeps them, and when the last is gone, if it was said how long its rules keep them.
pub(super) fn old_versions(core: &Core, now: Timestamp) -> Json {
    let kept = core.remote.keeps_versions;
    let gone = core.settings.old_versions.filter(|_| kept).map(|rule| {
        let rule = u64::try_from(rule.as_micros()).unwrap_or(u64::MAX);
        // Rules count from the next midnight.
        let gone = now.micros().saturating_add(rule).saturating_add(DAY_MICROS);
        rfc3339(Timestamp::from_micros(gone))
    });
    json!({ "kept": kept, "gone_at": gone })
}

/// The same in words.
pub(super) fn copies(core: &Core) -> &'static str {
    if core.remote.keeps_versions {
        "the bucket keeps old versions: what was deleted, and the key object as it was, lie there until the bucket's \
         own rules remove them, and until then they open with the master key"
    } else {
        "the bucket keeps no old versions; a copy that somebody made of its objects opens as long as there is a copy of \
         the key object, too, and the master key that wraps it"
    }
}
