//! Listings and deletions.
//!
//! A listing is a hint: order, paging and freshness differ between stores. It is sorted here; truth is
//! what a manifest, a claim or a fence names. Prefixes are folders: `a/b` lists `a/b/c`, never `a/bc`.
//!
//! A deletion may be repeated, and may land late: delete only keys that are never written again.

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path;
use tidelog_wal::Timestamp;

use super::error::{Failure, timed_out};
use super::read::timestamp;
use super::retry::{read_error, repeat};
use super::{Store, StoreError};

/// Entries of one page, and keys of one bulk deletion.
const PAGE: usize = 1_000;

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its key, relative to the store's prefix.
    pub key: String,
    /// Its length in bytes.
    pub length: u64,
    /// When the store says it was written, by the store's clock.
    pub last_modified: Timestamp,
}

impl Store {
    /// Every object below the folder `prefix` (empty: everything), sorted by key.
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Denied`], or [`StoreError::Exhausted`] above
    /// `list_entries_max` entries, for which there is [`list_pages`](Self::list_pages).
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let folder = self.inner.prefix.folder(prefix)?;
        let limit = self.inner.settings.list_entries_max;
        let mut attempts = self.attempts();
        loop {
            attempts.count();
            // The time limit is each entry's, not the whole listing's.
            let taken: object_store::Result<Vec<ObjectMeta>> = self
                .entries(&folder)
                .take(limit.saturating_add(1))
                .try_collect()
                .await;
            let error = match taken.map_err(denied_in_words) {
                Ok(metas) if metas.len() > limit => {
                    return Err(StoreError::Exhausted {
                        what: "the number of listed objects",
                        limit: limit as u64,
                        key: prefix.to_owned(),
                    });
                }
                Ok(metas) => return Ok(self.sorted(metas)),
                Err(error) => error,
            };
            match Failure::of(&error) {
                Failure::Missing => return Ok(Vec::new()),
                Failure::Unclear if attempts.again().await => {}
                failure => {
                    return Err(read_error(failure, "list", prefix, attempts.made(), error));
                }
            }
        }
    }

    /// Every object below the folder `prefix` in pages of at most 1,000, each sorted, in the store's order,
    /// which need not be that of the keys. After an error begin again.
    pub fn list_pages(
        &self,
        prefix: &str,
    ) -> Result<impl Stream<Item = Result<Vec<Entry>, StoreError>> + Send + use<>, StoreError> {
        let folder = self.inner.prefix.folder(prefix)?;
        let (store, prefix) = (self.clone(), prefix.to_owned());
        Ok(self
            .entries(&folder)
            .try_chunks(PAGE)
            .map(move |page| match page {
                Ok(metas) => Ok(store.sorted(metas)),
                Err(stream::TryChunksError(_, error)) => {
                    let error = denied_in_words(error);
                    Err(read_error(Failure::of(&error), "list", &prefix, 1, error))
                }
            }))
    }

    /// The names of the folders directly below the folder `prefix`, sorted. Errors as
    /// [`list`](Self::list).
    pub async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let folder = self.inner.prefix.folder(prefix)?;
        let request = || async {
            match self.inner.objects.list_with_delimiter(Some(&folder)).await {
                Err(error) if Failure::of(&error) == Failure::Missing => Ok(Vec::new()),
                other => Ok(other.map_err(denied_in_words)?.common_prefixes),
            }
        };
        let paths = repeat(self.attempts(), "list", prefix, request).await?;
        let mut names: Vec<String> = paths
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Deletes the object at `key`; one that is not there counts as deleted.
    ///
    /// [`StoreError::Unavailable`] (it may be deleted or not), [`StoreError::Denied`].
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.inner.prefix.path(key)?;
        let request = || self.delete_paths(vec![path.clone()]);
        repeat(self.attempts(), "delete", key, request).await
    }

    /// Deletes the objects at `keys`, a thousand a request where the store can. Errors as
    /// [`delete`](Self::delete), with those before it deleted.
    pub async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        for chunk in keys.chunks(PAGE) {
            let paths = chunk
                .iter()
                .map(|key| self.inner.prefix.path(key))
                .collect::<Result<Vec<_>, _>>()?;
            let first = chunk.first().map_or("", String::as_str);
            let request = || self.delete_paths(paths.clone());
            repeat(self.attempts(), "delete", first, request).await?;
        }
        Ok(())
    }

    async fn delete_paths(&self, paths: Vec<Path>) -> object_store::Result<()> {
        let paths = stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut results = self.inner.objects.delete_stream(paths);
        let mut failed = None;
        while let Some(result) = results.next().await {
            match result {
                Err(error) if Failure::of(&error) != Failure::Missing => {
                    let error = denied_in_words(error);
                    // What may yet succeed is worth another attempt, beside what is forbidden.
                    if failed.is_none() || Failure::of(&error) != Failure::Denied {
                        failed = Some(error);
                    }
                }
                _ => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The entries of a listing, each awaited for at most the time of one request.
    fn entries(&self, folder: &Path) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let limit = self.inner.settings.request_timeout;
        let prefix = (!folder.is_root()).then_some(folder);
        let listing = self.inner.objects.list(prefix);
        stream::try_unfold(listing, move |mut listing| async move {
            match tokio::time::timeout(limit, listing.next()).await {
                Ok(Some(Ok(meta))) => Ok(Some((meta, listing))),
                Ok(Some(Err(error))) => Err(error),
                Ok(None) => Ok(None),
                Err(_) => Err(timed_out(limit)),
            }
        })
        .boxed()
    }

    fn sorted(&self, metas: Vec<ObjectMeta>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = metas
            .into_iter()
            .filter_map(|meta| {
                Some(Entry {
                    key: self.inner.prefix.key(&meta.location)?,
                    length: meta.size,
                    last_modified: timestamp(&meta),
                })
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        entries.dedup_by(|a, b| a.key == b.key);
        entries
    }
}

/// A refusal that the library hands on as text, as what it is: that of a listing, and that of one key in a bulk
/// deletion, which S3 answers with success and a code for each key.
fn denied_in_words(error: object_store::Error) -> object_store::Error {
    match error {
        object_store::Error::Generic { source, .. } if says_denied(&source.to_string()) => {
            object_store::Error::PermissionDenied {
                path: String::new(),
                source,
            }
        }
        other => other,
    }
}

fn says_denied(text: &str) -> bool {
    text.ends_with("(code: AccessDenied)") || text.contains("status code: 403 Forbidden")
}
