//! A folder that behaves as a bucket: durable, with conditional writes, for many processes at once.
//!
//! Reads, listings and the mapping of keys to paths are the library's [`LocalFileSystem`]; writes are ours:
//!
//! - **create**: the body is staged, synced, and hard-linked to its name, which fails if the name exists;
//!   then the folder is synced.
//! - **replace**: the body is staged and synced; under the key's lock file the digest of what stands there is
//!   compared with the version asked for; rename; sync the folder. Deletions take the lock too, so that
//!   a replace cannot bring a deleted object back.
//! - **upload in parts**: parts are written into a staged file, which is synced and renamed.
//!
//! A version is the BLAKE3 of the content up to 1 MiB; a longer object has no version, since reading
//! it whole for every request would cost more than it is worth, and cannot be replaced. Inode and
//! time stamps will not do: both can repeat within one tick of the kernel's clock.
//!
//! **Crash safety.** A name appears only when its content is synced, and is answered only when the folder is.
//! A refusal also syncs the folder first: what stands in the way is then as durable as what we say about
//! it. Folders are synced up to the root when a process first writes below them. kill -9 leaves a staged file
//! at worst, in a folder of its own per process with a lock on it: the next process that opens the store
//! takes the locks of the dead and removes what they left. After a failed sync nothing is known about
//! what is on disk, so the handle refuses everything from then on (reads too: what they return could vanish).
//!
//! ```text
//! {root}/{key}                          the objects
//! {root}/.tidelog/locks/{00..ff}        one lock file for each 256th of the keys
//! {root}/.tidelog/staging/{id}.lock     held by a living process
//! {root}/.tidelog/staging/{id}/{n}      what that process is writing
//! ```
//!
//! Tolerated: emptied folders stay; network filesystems without working `flock` are not supported.

mod lock;
mod place;
mod staging;
mod upload;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::StoreError;
use super::read::Unversioned;
use place::{Place, failed};

/// The longest object that has a version.
pub(crate) const DIGEST_MAX: u64 = super::REPLACE_MAX;

/// The folder of our own below the root; keys cannot begin with a dot.
const PRIVATE: &str = ".tidelog";

/// A folder as an object store.
#[derive(Debug)]
pub struct FileStore {
    files: LocalFileSystem,
    place: Arc<Place>,
}

impl FileStore {
    /// The store in `folder`, which is made if it does not exist. Removes what dead processes were writing.
    pub fn open(folder: &std::path::Path) -> Result<Self, StoreError> {
        let invalid = |what, detail: String| StoreError::Invalid { what, detail };
        let place = Place::open(folder).map_err(|error| {
            invalid(
                "the store's folder cannot be used",
                format!("{}: {error}", folder.display()),
            )
        })?;
        let files = LocalFileSystem::new_with_prefix(place.root())
            .map_err(|error| invalid("the store's folder cannot be used", error.to_string()))?;
        Ok(Self {
            files,
            place: Arc::new(place),
        })
    }

    /// Runs `work` on the blocking pool, unless a sync has failed before.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> object_store::Result<T> + Send + 'static,
    ) -> object_store::Result<T> {
        let place = Arc::clone(&self.place);
        tokio::task::spawn_blocking(move || {
            place.check()?;
            work(&place)
        })
        .await?
    }
}

impl fmt::Display for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.place.root().display())
    }
}

fn is_private(path: &Path) -> bool {
    path.parts()
        .next()
        .is_some_and(|part| part.as_ref() == PRIVATE)
}

fn unsupported(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: "FileStore".to_owned(),
    }
}

fn written(version: Option<String>) -> PutResult {
    PutResult {
        e_tag: version,
        version: None,
        extensions: object_store::Extensions::default(),
    }
}

#[async_trait]
impl ObjectStore for FileStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let target = self.files.path_to_filesystem(location)?;
        self.blocking(move |place| {
            let staged = place.stage(&payload)?;
            let version = staged.version.clone();
            match opts.mode {
                PutMode::Create => place.create(&staged, &target)?,
                PutMode::Overwrite => place.overwrite(&staged, &target)?,
                PutMode::Update(expected) => {
                    let Some(expected) = expected.e_tag else {
                        return Err(unsupported("replacing an object without a version"));
                    };
                    place.replace(&staged, &target, &expected)?;
                }
            }
            Ok(written(version))
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let target = self.files.path_to_filesystem(location)?;
        let staged = self.blocking(Place::stage_empty).await?;
        Ok(Box::new(upload::PartsUpload::new(
            Arc::clone(&self.place),
            staged,
            target,
        )))
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.place.check()?;
        // Conditions are checked here: the library's versions are not ours.
        let inner = GetOptions::new()
            .with_range(options.range.clone())
            .with_head(options.head);
        let mut got = self.files.get_opts(location, inner).await?;
        got.meta.e_tag = None;
        // Hashing what nobody compares would cost a restore a tenth of its time.
        if options.if_match.is_none() && options.extensions.get::<Unversioned>().is_some() {
            return Ok(got);
        }
        let GetResultPayload::File(file, path) = got.payload else {
            return Err(unsupported("reading what is not a file"));
        };
        let length = got.meta.size;
        let (file, path, version) = self
            .blocking(move |_| {
                let version = place::version_of(&file, length)
                    .map_err(|error| failed("read", &path, error))?;
                Ok((file, path, version))
            })
            .await?;
        got.meta.e_tag = version;
        options.check_preconditions(&got.meta)?;
        got.payload = GetResultPayload::File(file, path);
        Ok(got)
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.place.check()?;
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (files, place) = (self.files.clone(), Arc::clone(&self.place));
        locations
            .map(move |location| {
                let (files, place) = (files.clone(), Arc::clone(&place));
                async move {
                    let location = location?;
                    let target = files.path_to_filesystem(&location)?;
                    tokio::task::spawn_blocking(move || {
                        place.check()?;
                        place.delete(&target)?;
                        Ok(location)
                    })
                    .await?
                }
            })
            .buffered(4)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        if let Err(error) = self.place.check() {
            return futures::stream::once(async { Err(error) }).boxed();
        }
        self.files
            .list(prefix)
            .filter(|entry| {
                let hidden = entry.as_ref().is_ok_and(|meta| is_private(&meta.location));
                std::future::ready(!hidden)
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.place.check()?;
        let mut listed = self.files.list_with_delimiter(prefix).await?;
        listed.common_prefixes.retain(|path| !is_private(path));
        listed.objects.retain(|meta| !is_private(&meta.location));
        Ok(listed)
    }

    async fn copy_opts(
        &self,
        _from: &Path,
        _to: &Path,
        _options: CopyOptions,
    ) -> object_store::Result<()> {
        Err(unsupported("copy"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::store::{Store, StoreOptions, StoreSettings};

    /// After a failed sync nobody knows what is on disk: nothing is read, and a write that was under way is
    /// neither done nor undone.
    #[tokio::test]
    async fn a_failed_sync_poisons_the_handle_and_leaves_outcomes_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let files = FileStore::open(folder.path()).unwrap();
        let place = Arc::clone(&files.place);
        let options = StoreOptions {
            settings: StoreSettings {
                attempts_max: 2,
                ..StoreSettings::default()
            },
            ..StoreOptions::default()
        };
        let store = Store::from_object_store(Arc::new(files), "", options).unwrap();
        store.create("a/b", Bytes::from_static(b"x")).await.unwrap();
        place.poison();
        let kind = |error: StoreError| error.kind();
        assert_eq!(
            kind(store.get("a/b").await.unwrap_err()),
            ErrorKind::Unavailable
        );
        assert_eq!(
            kind(store.head("a/b").await.unwrap_err()),
            ErrorKind::Unavailable
        );
        assert_eq!(
            kind(store.list("").await.unwrap_err()),
            ErrorKind::Unavailable
        );
        assert_eq!(
            kind(store.delete("a/b").await.unwrap_err()),
            ErrorKind::Unavailable
        );
        let write = store.create("a/c", Bytes::from_static(b"y")).await;
        assert_eq!(kind(write.unwrap_err()), ErrorKind::OutcomeUnknown);
        // Another handle, as after a restart, sees what is there.
        let again = FileStore::open(folder.path()).unwrap();
        let store = Store::from_object_store(Arc::new(again), "", StoreOptions::default()).unwrap();
        assert_eq!(store.get("a/b").await.unwrap(), Bytes::from_static(b"x"));
    }
}
