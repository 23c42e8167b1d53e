//! Reads. A read is repeated until it succeeds, is answered for good, or the attempts run out; a body that
//! was cut on its way counts as a failed attempt.

use std::ops::Range;

use bytes::Bytes;
use futures::Stream;
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta};
use tidelog_wal::Timestamp;

use super::error::Failure;
use super::options::SINGLE_PUT_MAX;
use super::retry::read_error;
use super::{Store, StoreError, Version};

/// What a store knows about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its length in bytes.
    pub length: u64,
    /// When the store says it was written, by the store's clock.
    pub last_modified: Timestamp,
    /// Its version.
    pub version: Version,
}

impl Head {
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self {
            length: meta.size,
            last_modified: timestamp(meta),
            version: Version::of(meta),
        }
    }
}

/// The store's time of the last change; before 1970 reads as 1970.
pub(crate) fn timestamp(meta: &ObjectMeta) -> Timestamp {
    let micros = meta.last_modified.timestamp_micros();
    Timestamp::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// What came of a GET.
#[derive(Debug)]
pub(crate) enum Body {
    Bytes(Bytes),
    /// Longer than one GET may take into memory.
    TooLong,
}

/// What else a GET is to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// The bytes alone: a folder need not make up a version.
    Bytes,
    /// The version too.
    Version,
    /// The bytes of the version with this tag, or a refusal.
    Tag(String),
}

/// Marks a GET whose caller has no use for the version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unversioned;

/// A body ended before its length.
#[derive(Debug, thiserror::Error)]
#[error("the body ended after {have} of {want} bytes")]
struct CutBody {
    want: u64,
    have: u64,
}

impl Store {
    /// The whole object, which must not exceed [`SINGLE_PUT_MAX`]: longer ones are read by range or
    /// [streamed](Self::get_stream).
    ///
    /// [`StoreError::NotFound`], [`StoreError::Unavailable`], [`StoreError::Denied`],
    /// [`StoreError::Exhausted`].
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        Ok(self.read(key, None, Want::Bytes).await?.0)
    }

    /// The whole object and its version. Errors as [`get`](Self::get).
    pub async fn get_versioned(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        let (bytes, meta) = self.read(key, None, Want::Version).await?;
        Ok((bytes, Version::of(&meta)))
    }

    /// Exactly the bytes of `range`. [`StoreError::Short`] if the object ends before it does; else errors
    /// as [`get`](Self::get).
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let (bytes, meta) = self.read(key, Some(range.clone()), Want::Bytes).await?;
        if bytes.len() as u64 == range.end - range.start {
            Ok(bytes)
        } else {
            Err(StoreError::Short {
                key: key.to_owned(),
                want: range.end,
                have: meta.size,
            })
        }
    }

    /// What the store knows about the object. Errors as [`get`](Self::get).
    pub async fn head(&self, key: &str) -> Result<Head, StoreError> {
        let path = self.inner.prefix.path(key)?;
        let request = || async {
            let options = GetOptions::new().with_head(true);
            Ok(self.inner.objects.get_opts(&path, options).await?.meta)
        };
        let meta = super::retry::repeat(self.attempts(), "head", key, request).await?;
        Ok(Head::of(&meta))
    }

    /// The object in chunks of `read_chunk_bytes`, each fetched (and retried) when the one before has been
    /// taken. All are of one version: an object replaced meanwhile ends the stream with
    /// [`StoreError::Conflict`]. Else errors as [`get`](Self::get).
    pub fn get_stream(
        &self,
        key: &str,
    ) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + use<> {
        let (store, key) = (self.clone(), key.to_owned());
        let begin: Option<(u64, Option<Head>)> = Some((0, None));
        futures::stream::try_unfold(begin, move |state| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let Some((offset, head)) = state else {
                    return Ok(None);
                };
                let head = match head {
                    Some(head) => head,
                    None => store.head(&key).await?,
                };
                if offset >= head.length {
                    return Ok(None);
                }
                let chunk = store
                    .inner
                    .settings
                    .read_chunk_bytes
                    .clamp(1, SINGLE_PUT_MAX);
                let end = head.length.min(offset.saturating_add(chunk));
                let want = head.version.e_tag.clone().map_or(Want::Bytes, Want::Tag);
                let (bytes, _) = store.read(&key, Some(offset..end), want).await?;
                if bytes.len() as u64 != end - offset {
                    return Err(StoreError::Short {
                        key,
                        want: end,
                        have: offset + bytes.len() as u64,
                    });
                }
                Ok(Some((bytes, Some((end, Some(head))))))
            }
        })
    }

    async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        want: Want,
    ) -> Result<(Bytes, ObjectMeta), StoreError> {
        let path = self.inner.prefix.path(key)?;
        let mut attempts = self.attempts();
        loop {
            let request = self.fetch(&path, range.clone(), want.clone());
            let error = match attempts.attempt(request).await {
                Ok((Body::Bytes(bytes), meta)) => return Ok((bytes, meta)),
                Ok((Body::TooLong, _)) => {
                    return Err(StoreError::Exhausted {
                        what: "the length of one read",
                        limit: SINGLE_PUT_MAX,
                        key: key.to_owned(),
                    });
                }
                Err(error) => error,
            };
            let failure = Failure::of(&error);
            // A range that begins at or past the end is an error without a type of its own: the length
            // tells it apart, once, at the first failure.
            if let (Failure::Unclear, Some(range), 1) = (failure, &range, attempts.made()) {
                let head = GetOptions::new().with_head(true);
                if let Ok(got) = attempts
                    .aside(self.inner.objects.get_opts(&path, head))
                    .await
                    && got.meta.size <= range.start
                {
                    return Err(StoreError::Short {
                        key: key.to_owned(),
                        want: range.end,
                        have: got.meta.size,
                    });
                }
            }
            if failure != Failure::Unclear || !attempts.again().await {
                return Err(read_error(failure, "read", key, attempts.made(), error));
            }
        }
    }

    /// One GET. A range is cut at the end of the object; a body that is cut otherwise is a failure.
    pub(crate) async fn fetch(
        &self,
        path: &Path,
        range: Option<Range<u64>>,
        want: Want,
    ) -> object_store::Result<(Body, ObjectMeta)> {
        let mut options = GetOptions::new().with_range(range);
        match want {
            Want::Bytes => {
                options.extensions.insert(Unversioned);
            }
            Want::Version => {}
            Want::Tag(tag) => options.if_match = Some(tag),
        }
        let got = self.inner.objects.get_opts(path, options).await?;
        let want = got.range.end - got.range.start;
        if want > SINGLE_PUT_MAX {
            return Ok((Body::TooLong, got.meta));
        }
        let meta = got.meta.clone();
        let bytes = got.bytes().await?;
        if bytes.len() as u64 != want {
            return Err(object_store::Error::Generic {
                store: "tidelog",
                source: Box::new(CutBody {
                    want,
                    have: bytes.len() as u64,
                }),
            });
        }
        Ok((Body::Bytes(bytes), meta))
    }
}
