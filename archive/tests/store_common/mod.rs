//! What the store suites share: bodies with write ids, patient and impatient settings, stores to test.
#![allow(dead_code, reason = "each suite uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use tidelog_archive::env::Entropy;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};

/// Numbers in a row, so that a run repeats.
#[derive(Debug, Default)]
pub(crate) struct Counting(AtomicU64);

impl Counting {
    /// Begins at another number.
    pub(crate) fn skip(&self, numbers: u64) {
        self.0.fetch_add(numbers, Ordering::Relaxed);
    }
}

impl Entropy for Counting {
    fn fill(&self, buf: &mut [u8]) {
        let mut reader = blake3::Hasher::new()
            .update(&self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes())
            .finalize_xof();
        reader.fill(buf);
    }
}

/// Few attempts, short pauses: for injected faults under paused time.
pub(crate) fn impatient() -> StoreOptions {
    StoreOptions {
        settings: StoreSettings {
            attempts_max: 3,
            call_time_max: Duration::from_mins(10),
            backoff_first: Duration::from_millis(1),
            backoff_max: Duration::from_millis(4),
            ..StoreSettings::default()
        },
        entropy: Arc::new(Counting::default()),
        ..StoreOptions::default()
    }
}

/// The same, giving up at the first failure.
pub(crate) fn despondent() -> StoreOptions {
    let mut options = impatient();
    options.settings.attempts_max = 1;
    options
}

/// An object as the formats make them, as far as a store looks: magic, write id, content.
pub(crate) fn envelope(write_id: u8, content: &str) -> Bytes {
    let mut bytes = b"TIDELOG\0\x01\0\x06\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&[write_id; 16]);
    bytes.extend_from_slice(content.as_bytes());
    bytes.into()
}

/// A store on `objects` for tests with faults.
pub(crate) fn on(objects: Arc<dyn ObjectStore>) -> Store {
    Store::from_object_store(objects, "p", impatient()).expect("the prefix is valid")
}
