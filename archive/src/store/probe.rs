//! Whether a store can hold a log: tried on two objects of its own at start.
//!
//! Several S3-compatible servers ignore `If-None-Match` or `If-Match` and overwrite silently; on such a
//! store two process lives could claim one term. One client cannot tell a store that checks its
//! conditions atomically from one that checks and then acts: the manual lists what was raced.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};
use tidelog_wal::Timestamp;

use super::error::{ABSENT, Failure};
use super::read::{Body, Want, timestamp};
use super::retry::{bounded, read_error};
use super::{Store, StoreError};

/// What a store that passed has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitness {
    /// Our clock when the first probe object had been written.
    pub wall: Timestamp,
    /// The store's time of that object: a large difference means that one of the clocks is wrong.
    pub store_time: Timestamp,
    /// The store names versions of objects: what is overwritten or deleted may live on as an older one. So does a
    /// bucket that keeps none any more, of what it kept before.
    pub versioned: bool,
}

/// Length of a probe object.
const LENGTH: u8 = 64;

/// Why a trial ended early.
enum Trial {
    /// The store does not do what it must.
    Unfit(&'static str),
    /// A request failed, so nothing is known.
    Failed(&'static str, object_store::Error),
}

impl From<object_store::Error> for Trial {
    fn from(error: object_store::Error) -> Self {
        Self::Failed("read", error)
    }
}

impl Store {
    /// Tries what the protocol needs: create if absent, replace if unchanged, reads that see the last write,
    /// ranged reads, lengths, times and versions. Removes its objects, whatever the result.
    ///
    /// [`StoreError::Unfit`] says in a sentence what is missing; [`StoreError::Unavailable`] or
    /// [`StoreError::Denied`] that it could not be tried.
    pub async fn probe(&self) -> Result<Fitness, StoreError> {
        let mut attempts = self.attempts();
        loop {
            attempts.count();
            // A new key each time: an unclear answer leaves an object that may be there or not.
            let nonce = u128::from_le_bytes(self.inner.entropy.bytes16());
            let keys = [
                format!("probe/{nonce:032x}"),
                format!("probe/{nonce:032x}-never"),
            ];
            let tried = self.try_out(&keys).await;
            let removed = self.delete_all(&keys).await;
            let (verb, error) = match tried {
                Ok(fitness) => {
                    removed?;
                    return match self.head(&keys[0]).await {
                        Err(StoreError::NotFound { .. }) => Ok(fitness),
                        Ok(_) => Err(self.unfit("a deleted object is still found")),
                        // It was there to be read a moment ago.
                        Err(StoreError::Denied { key, source, .. }) => Err(StoreError::Denied {
                            verb: ABSENT,
                            key,
                            source,
                        }),
                        Err(error) => Err(error),
                    };
                }
                Err(Trial::Unfit(missing)) => return Err(self.unfit(missing)),
                Err(Trial::Failed(verb, error)) => (verb, error),
            };
            match Failure::of(&error) {
                Failure::Unclear if attempts.again().await => {}
                failure => {
                    return Err(read_error(failure, verb, &keys[0], attempts.made(), error));
                }
            }
        }
    }

    fn unfit(&self, missing: &'static str) -> StoreError {
        StoreError::Unfit {
            url: self.inner.url.clone(),
            missing,
        }
    }

    async fn try_out(&self, [key, never]: &[String; 2]) -> Result<Fitness, Trial> {
        let malformed = |_| Trial::Unfit("its prefix leaves no room for keys");
        let path = self.inner.prefix.path(key).map_err(malformed)?;
        let never = self.inner.prefix.path(never).map_err(malformed)?;

        let first = self
            .try_put(&path, 1, PutMode::Create)
            .await?
            .ok_or(Trial::Unfit(
                "it refuses a new object written with If-None-Match, or the bucket does not exist",
            ))?;
        let wall = self.inner.clock.wall();
        if first.e_tag.is_none() && first.version.is_none() {
            return Err(Trial::Unfit("it answers a write without a version"));
        }
        if self.try_put(&path, 2, PutMode::Create).await?.is_some() {
            return Err(Trial::Unfit(
                "it ignores If-None-Match: a second create overwrote the first object",
            ));
        }
        let (store_time, named) = self.check(&path, 1, &first).await?;

        let second = self
            .try_put(&path, 3, if_match(&first))
            .await?
            .ok_or(Trial::Unfit("it refuses If-Match with the current version"))?;
        if second.e_tag == first.e_tag && second.version == first.version {
            return Err(Trial::Unfit("a replaced object keeps its version"));
        }
        if self.try_put(&path, 4, if_match(&first)).await?.is_some() {
            return Err(Trial::Unfit(
                "it ignores If-Match: a stale writer overwrote a newer object",
            ));
        }
        self.check(&path, 3, &second).await?;
        if self.try_put(&never, 5, if_match(&second)).await?.is_some() {
            return Err(Trial::Unfit(
                "it ignores If-Match: it created an object that did not exist",
            ));
        }
        Ok(Fitness {
            wall,
            store_time,
            // Where keeping them was suspended the name is "null", which some stores say of a read alone.
            versioned: first.version.is_some() || named,
        })
    }

    /// One PUT, unresolved: what the store itself answers is the question. `None` is a refusal.
    async fn try_put(
        &self,
        path: &Path,
        fill: u8,
        mode: PutMode,
    ) -> Result<Option<PutResult>, Trial> {
        let payload = PutPayload::from_bytes(filled(fill));
        let request = self
            .inner
            .objects
            .put_opts(path, payload, PutOptions::from(mode));
        match bounded(self.inner.settings.request_timeout, request).await {
            Ok(put) => Ok(Some(put)),
            Err(error) => match Failure::of(&error) {
                Failure::Refused | Failure::Missing => Ok(None),
                Failure::Unsupported => {
                    Err(Trial::Unfit("it does not implement conditional writes"))
                }
                Failure::Denied | Failure::Unclear => Err(Trial::Failed("write", error)),
            },
        }
    }

    /// Reads the object whole, in part and by its head; returns the store's time of it, and whether it has a version.
    async fn check(
        &self,
        path: &Path,
        fill: u8,
        put: &PutResult,
    ) -> Result<(Timestamp, bool), Trial> {
        let limit = self.inner.settings.request_timeout;
        let (whole, meta) = bounded(limit, self.fetch(path, None, Want::Version)).await?;
        match whole {
            Body::Bytes(bytes) if bytes == filled(fill) => {}
            _ => return Err(Trial::Unfit("a read does not return the last write")),
        }
        if put.e_tag.is_some() && meta.e_tag != put.e_tag {
            return Err(Trial::Unfit(
                "a read names another version than the write did",
            ));
        }
        let (part, _) = bounded(limit, self.fetch(path, Some(16..32), Want::Bytes)).await?;
        match part {
            Body::Bytes(bytes) if bytes == filled(fill).slice(16..32) => {}
            _ => return Err(Trial::Unfit("it does not honour ranged reads")),
        }
        let options = GetOptions::new().with_head(true);
        let head = bounded(limit, self.inner.objects.get_opts(path, options))
            .await?
            .meta;
        if head.size != u64::from(LENGTH) {
            return Err(Trial::Unfit("HEAD does not tell the length of an object"));
        }
        match timestamp(&head) {
            Timestamp::ZERO => Err(Trial::Unfit(
                "HEAD does not tell when an object was written",
            )),
            time => Ok((time, head.version.is_some())),
        }
    }
}

/// A body whose bytes tell their places, so that a wrong range shows.
fn filled(fill: u8) -> Bytes {
    (0..LENGTH)
        .map(|i| fill.wrapping_mul(64).wrapping_add(i))
        .collect()
}

fn if_match(put: &PutResult) -> PutMode {
    PutMode::Update(UpdateVersion {
        e_tag: put.e_tag.clone(),
        version: put.version.clone(),
    })
}
