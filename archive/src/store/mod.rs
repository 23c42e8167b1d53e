//! One bucket prefix: conditional writes, their ambiguous outcomes, retries, metering, the probe.
//!
//! A [`Store`] is a cheap handle; keys are relative to its prefix (see `prefix.rs` for what a key may be).
//!
//! | method | may fail with kind |
//! | --- | --- |
//! | [`get`](Store::get), [`get_versioned`](Store::get_versioned), [`get_range`](Store::get_range), [`get_stream`](Store::get_stream), [`head`](Store::head) | `NotFound`, `Unavailable`, `Corrupt` (shorter than asked), `Exhausted` (longer than one read may be), `Conflict` (a stream's object was replaced) |
//! | [`create`](Store::create), [`replace`](Store::replace) | `Conflict` (lost, proven), `OutcomeUnknown`, `Unavailable` (not applied, proven), `Exhausted` |
//! | [`put_unique`](Store::put_unique) | as `create`; `Corrupt` (bytes lost); `Internal` (its source failed) |
//! | [`delete`](Store::delete), [`delete_all`](Store::delete_all) | `Unavailable`: repeat it |
//! | [`list`](Store::list), [`list_pages`](Store::list_pages), [`folders`](Store::folders) | `Unavailable`, `Exhausted` |
//! | [`probe`](Store::probe) | `Invalid`: the store cannot hold a log, and why; `Unavailable` |
//!
//! Every method may answer `Invalid` for a malformed key. Each wrapper has one concern: `prefix` names,
//! `retry` repeats what may be repeated, `resolve` proves what became of a conditional write,
//! `meter` counts, `file` makes a folder behave as a bucket, `probe` refuses stores that
//! would lose history. The library's own retries are off: a failed conditional write must reach
//! `resolve`, not be sent again behind its back.

mod away;
mod error;
mod file;
mod list;
mod location;
mod meter;
mod options;
mod prefix;
mod probe;
mod read;
mod resolve;
mod retry;
mod upload;

use std::fmt;
use std::sync::Arc;

use object_store::{ObjectMeta, ObjectStore};

use crate::env::{Clock, Entropy};
use crate::seal::Keyring;

pub use error::{BoxError, StoreError};
pub use file::FileStore;
pub use list::Entry;
pub use meter::{Meter, MeterSnapshot, Outcome, Verb};
pub use options::{REPLACE_MAX, SINGLE_PUT_MAX, StoreOptions, StoreSettings};
pub use probe::Fitness;
pub use read::Head;

use prefix::Prefix;
use retry::Attempts;

/// What a store calls one write of one object. Opaque: equal versions mean the same write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    e_tag: Option<String>,
    version: Option<String>,
}

impl Version {
    fn of(meta: &ObjectMeta) -> Self {
        Self {
            e_tag: meta.e_tag.clone(),
            version: meta.version.clone(),
        }
    }
}

/// One bucket prefix. Cheap to clone; all clones share their counters.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    keys: Keyring,
}

struct Inner {
    objects: Arc<dyn ObjectStore>,
    url: String,
    prefix: Prefix,
    settings: StoreSettings,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    meter: Arc<Meter>,
}

impl Store {
    /// The store at `url`. Nothing is read or written but, for `file:`, the folder made.
    ///
    /// | URL | store |
    /// | --- | --- |
    /// | `file:///absolute/path`, `file://./relative/path` | a folder |
    /// | `s3://bucket/prefix?endpoint=...&region=...&path_style=true` | S3 or what speaks its protocol; credentials from the environment |
    /// | `gs://bucket/prefix`, `az://container/prefix` | experimental |
    /// | `memory:` | a fresh one at each call |
    ///
    /// [`StoreError::Invalid`] says what is wrong with the URL.
    pub fn open(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let place = location::open(url, &options.settings)?;
        Ok(Self::assemble(place.objects, url, place.prefix, options))
    }

    /// A store on an object store of the caller's, for tests and simulation.
    pub fn from_object_store(
        objects: Arc<dyn ObjectStore>,
        prefix: &str,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let url = format!("{objects}");
        Ok(Self::assemble(objects, &url, Prefix::new(prefix)?, options))
    }

    /// Stands in for this store while it cannot be reached: every request fails, none is made.
    #[must_use]
    pub fn away(&self) -> Self {
        let inner = &self.inner;
        let options = StoreOptions {
            settings: StoreSettings {
                attempts_max: 1,
                ..inner.settings
            },
            clock: Arc::clone(&inner.clock),
            entropy: Arc::clone(&inner.entropy),
        };
        let objects = Arc::new(away::AwayStore);
        let store = Self::assemble(objects, &inner.url, inner.prefix.clone(), options);
        store.with_keys(self.keys.clone())
    }

    fn assemble(
        objects: Arc<dyn ObjectStore>,
        url: &str,
        prefix: Prefix,
        options: StoreOptions,
    ) -> Self {
        let meter = Arc::new(Meter::default());
        Self {
            inner: Arc::new(Inner {
                objects: Arc::new(meter::Metered::new(objects, Arc::clone(&meter))),
                url: url.to_owned(),
                prefix,
                settings: options.settings,
                clock: options.clock,
                entropy: options.entropy,
                meter,
            }),
            keys: Keyring::off(),
        }
    }

    /// The same store, read and written with these keys.
    #[must_use]
    pub fn with_keys(self, keys: Keyring) -> Self {
        Self { keys, ..self }
    }

    /// The keys it is read and written with.
    pub const fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// The URL it was opened with.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Its counters.
    pub fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts::new(&self.inner.settings, self.inner.entropy.as_ref())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.inner.url)
            .finish_non_exhaustive()
    }
}
