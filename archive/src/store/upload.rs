//! Large objects, uploaded in parts from a stream that is never held in memory whole.
//!
//! An upload in parts cannot be conditional (completing one with a condition is not atomic on every
//! store), so its key must be unique: a nonce stands in it, nobody else writes there, and what is there
//! is ours. It becomes part of a history by the manifest alone. A completion can answer success with an
//! error inside, or fail after it took effect: either way a HEAD decides, by the length. Parts of an
//! upload that failed are aborted where the store answers; the rest is the bucket's lifecycle rule's.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryPolicy};
use object_store::{MultipartUpload, PutMultipartOptions, PutPayload, UploadPart};

use super::error::{ABORT, BoxError, Failure};
use super::retry::{bounded, read_error, repeat};
use super::{Head, Store, StoreError};

/// Most parts of one object, as S3 has it.
const PARTS_MAX: u64 = 10_000;

impl Store {
    /// Writes the bytes of `source` at `key`, which nobody else ever writes, and returns what the store then
    /// knows of the object. At most `parts_in_flight + 1` parts are in memory. A body of one part goes up
    /// as [`create`](Self::create) does.
    ///
    /// [`StoreError::Source`] if the source fails; [`StoreError::Short`] if the store lost bytes;
    /// [`StoreError::Exhausted`] above 10,000 parts; else errors as `create`. After any error the object is not
    /// to be used, and the upload is begun anew under another key.
    pub async fn put_unique<S, E>(&self, key: &str, source: S) -> Result<Head, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<BoxError>,
    {
        let path = self.inner.prefix.path(key)?;
        let mut parts = Parts {
            source: Box::pin(source),
            pending: BytesMut::new(),
            length: self.inner.settings.part_bytes.max(1),
            ended: false,
        };
        let first = parts.next(key).await?;
        if parts.done() {
            self.create(key, first).await?;
            return self.head(key).await;
        }
        let limit = self.inner.settings.request_timeout;
        let mut upload = self.begin_upload(key, &path).await?;
        let sent = match self
            .send_parts(key, upload.as_mut(), first, &mut parts)
            .await
        {
            Ok(sent) => sent,
            Err(error) => {
                // Best effort: what cannot be aborted now is left to the bucket's lifecycle rule.
                let _ = bounded(limit, upload.abort()).await;
                return Err(error);
            }
        };
        let completed = bounded(limit, upload.complete()).await;
        self.confirm(key, sent, completed.err()).await
    }

    /// Tries to give up an upload in parts: begins one at `key`, sends a part and aborts it. Where that is refused the
    /// upload is completed instead, so that nothing of it stays that a deletion of `key` does not remove.
    ///
    /// [`StoreError::Denied`], [`StoreError::Unavailable`].
    pub async fn probe_abort(&self, key: &str) -> Result<(), StoreError> {
        let path = self.inner.prefix.path(key)?;
        let limit = self.inner.settings.request_timeout;
        let mut upload = self.begin_upload(key, &path).await?;
        let failed = |verb, error| read_error(Failure::of(&error), verb, key, 1, error);
        let part = upload.put_part(PutPayload::from_static(b"a part"));
        let sent = bounded(limit, part).await;
        match bounded(limit, upload.abort()).await {
            Ok(()) => sent.map_err(|e| failed("upload", e)),
            Err(error) => {
                let _ = bounded(limit, upload.complete()).await;
                Err(failed(ABORT, error))
            }
        }
    }

    async fn begin_upload(
        &self,
        key: &str,
        path: &Path,
    ) -> Result<Box<dyn MultipartUpload>, StoreError> {
        let policy = Arc::new(PartRetry {
            store: self.clone(),
        });
        let options = PutMultipartOptions::default().with_retry_policy(policy);
        let begin = || self.inner.objects.put_multipart_opts(path, options.clone());
        repeat(self.attempts(), "begin upload", key, begin).await
    }

    async fn send_parts<S, E>(
        &self,
        key: &str,
        upload: &mut dyn MultipartUpload,
        first: Bytes,
        parts: &mut Parts<S>,
    ) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<BoxError>,
    {
        let mut flying: FuturesUnordered<UploadPart> = FuturesUnordered::new();
        let limit = self.inner.settings.request_timeout;
        let (mut sent, mut count, mut part) = (0_u64, 0_u64, first);
        let failed = |error| read_error(Failure::of(&error), "upload", key, 1, error);
        loop {
            count += 1;
            if count > PARTS_MAX {
                return Err(StoreError::Exhausted {
                    what: "the number of parts",
                    limit: PARTS_MAX,
                    key: key.to_owned(),
                });
            }
            sent += part.len() as u64;
            flying.push(Box::pin(bounded(
                limit,
                upload.put_part(PutPayload::from_bytes(part)),
            )));
            while flying.len() >= self.inner.settings.parts_in_flight.max(1) {
                if let Some(done) = flying.next().await {
                    done.map_err(failed)?;
                }
            }
            part = parts.next(key).await?;
            if part.is_empty() {
                break;
            }
        }
        while let Some(done) = flying.next().await {
            done.map_err(failed)?;
        }
        Ok(sent)
    }

    /// The object after its completion was answered, or not: its length decides.
    async fn confirm(
        &self,
        key: &str,
        sent: u64,
        failed: Option<object_store::Error>,
    ) -> Result<Head, StoreError> {
        match (self.head(key).await, failed) {
            (Ok(head), _) if head.length == sent => Ok(head),
            (Ok(head), _) => Err(StoreError::Short {
                key: key.to_owned(),
                want: sent,
                have: head.length,
            }),
            (Err(_), Some(source)) => Err(StoreError::OutcomeUnknown {
                key: key.to_owned(),
                reason: "the upload's completion was not confirmed",
                source: Box::new(source),
            }),
            (Err(error), None) => Err(error),
        }
    }
}

/// A stream of bytes cut into parts of equal length.
struct Parts<S> {
    source: std::pin::Pin<Box<S>>,
    pending: BytesMut,
    length: usize,
    ended: bool,
}

impl<S> Parts<S> {
    /// Whether no byte is left.
    fn done(&self) -> bool {
        self.ended && self.pending.is_empty()
    }

    /// The next part; shorter than the others, or empty, only at the end.
    async fn next<E>(&mut self, key: &str) -> Result<Bytes, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<BoxError>,
    {
        while !self.ended && self.pending.len() < self.length {
            match self.source.next().await {
                Some(Ok(bytes)) => self.pending.extend_from_slice(&bytes),
                Some(Err(error)) => {
                    return Err(StoreError::Source {
                        key: key.to_owned(),
                        source: error.into(),
                    });
                }
                None => self.ended = true,
            }
        }
        // What is pending beyond this part means that there is another one.
        let take = self.pending.len().min(self.length);
        let part = self.pending.split_to(take).freeze();
        Ok(part)
    }
}

/// Repeats parts that failed, as patiently as every other request.
#[derive(Debug)]
struct PartRetry {
    store: Store,
}

#[async_trait]
impl RetryPolicy for PartRetry {
    async fn retry(&self, context: RetryContext) -> bool {
        let settings = &self.store.inner.settings;
        let attempt = u32::try_from(context.attempt).unwrap_or(u32::MAX);
        if attempt >= settings.attempts_max || context.elapsed >= settings.call_time_max {
            return false;
        }
        let pause = settings.backoff_first.saturating_mul(1 << attempt.min(16));
        let micros = u64::try_from(pause.min(settings.backoff_max).as_micros()).unwrap_or(u64::MAX);
        let jitter = self.store.inner.entropy.below(micros / 2 + 1);
        tokio::time::sleep(std::time::Duration::from_micros(micros / 2 + jitter)).await;
        true
    }
}
