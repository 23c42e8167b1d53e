//! Conditional writes whose outcome is proven, or called unknown.
//!
//! A store can apply a write and lose the answer, apply it a minute later, or answer "already exists" to
//! the second try of a write that it applied at the first. So no answer but a plain success is believed:
//! whatever else comes back, the object is read and compared. An object that begins with an envelope
//! carries a random *write id*, drawn anew for every write, in bytes 16..32: a ranged GET of 32 bytes
//! tells whose write stands there. Other objects are compared whole.
//!
//! | found | create (if absent) | replace (if it is version V) |
//! | --- | --- | --- |
//! | our write | done | done |
//! | nothing | the same PUT again | lost; unknown if an attempt was unclear |
//! | version V | - | the same PUT again |
//! | another write | lost | lost; unknown if an attempt was unclear |
//! | cannot be read | unknown | unknown |
//!
//! The same PUT may be sent again because it carries the same write id and the same condition: however
//! many of the attempts land, however late, one takes effect, and its bytes are these. An unclear attempt
//! to *replace* may have landed and been replaced by somebody else before we looked: that is why it is
//! not called lost. A lost *create* is lost for good at a key that is never deleted or replaced; at other
//! keys the caller judges by what stands there.
//!
//! Attempts that run out are [`StoreError::OutcomeUnknown`] if one of them was unclear, since it may
//! still land, and [`StoreError::NotApplied`] if the store refused them all.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{PutMode, PutOptions, PutPayload, UpdateVersion};

use super::error::Failure;
use super::options::{REPLACE_MAX, SINGLE_PUT_MAX};
use super::read::{Body, Want};
use super::retry::Attempts;
use super::{Store, StoreError, Version};

/// What every envelope begins with.
const ENVELOPE_MAGIC: &[u8; 8] = b"TIDELOG\0";
/// Magic, version, kind, cipher and write id.
const HEADER_PROOF_LEN: usize = 32;

/// What must hold for a write to take effect.
#[derive(Debug, Clone, Copy)]
enum Condition<'a> {
    Absent,
    Is(&'a Version),
}

/// Whose write stands at a key.
#[derive(Debug)]
enum Found {
    Ours(Version),
    Nothing,
    Other(Version),
}

impl Store {
    /// Writes `bytes` at `key` if no object has that key, and returns the version written.
    ///
    /// [`StoreError::Conflict`]: another write stands there. [`StoreError::OutcomeUnknown`],
    /// [`StoreError::NotApplied`], [`StoreError::Denied`], [`StoreError::Invalid`] as they say.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Version, StoreError> {
        self.write(key, bytes, Condition::Absent, SINGLE_PUT_MAX)
            .await
    }

    /// Writes `bytes` at `key` if the object there still is `expected`, and returns the version written.
    ///
    /// Errors as [`create`](Self::create); a missing object is a [`StoreError::Conflict`].
    pub async fn replace(
        &self,
        key: &str,
        bytes: Bytes,
        expected: &Version,
    ) -> Result<Version, StoreError> {
        self.write(key, bytes, Condition::Is(expected), REPLACE_MAX)
            .await
    }

    async fn write(
        &self,
        key: &str,
        bytes: Bytes,
        condition: Condition<'_>,
        length_max: u64,
    ) -> Result<Version, StoreError> {
        let path = self.inner.prefix.path(key)?;
        if bytes.len() as u64 > length_max {
            return Err(StoreError::Exhausted {
                what: "the length of a conditional write",
                limit: length_max,
                key: key.to_owned(),
            });
        }
        let mut attempts = self.attempts();
        // The first attempt whose effect is unclear, which may still land after we return.
        let mut unclear: Option<object_store::Error> = None;
        loop {
            let error = match attempts.attempt(self.put(&path, &bytes, condition)).await {
                Ok(version) => return Ok(version),
                Err(error) => error,
            };
            let failure = Failure::of(&error);
            if unclear.is_none() && matches!(failure, Failure::Denied | Failure::Unsupported) {
                return Err(super::retry::read_error(
                    failure,
                    "write",
                    key,
                    attempts.made(),
                    error,
                ));
            }
            let found = self.read_back(&path, &bytes, &attempts).await;
            let lost = match (found, condition) {
                (Ok(Found::Ours(version)), _) => return Ok(version),
                (Err(source), _) => {
                    return Err(StoreError::OutcomeUnknown {
                        key: key.to_owned(),
                        reason: "reading it back failed too",
                        source: Box::new(unclear.unwrap_or(source)),
                    });
                }
                (Ok(Found::Nothing), Condition::Absent) => false,
                (Ok(Found::Other(version)), Condition::Is(expected)) => version != *expected,
                (Ok(Found::Other(_)), Condition::Absent)
                | (Ok(Found::Nothing), Condition::Is(_)) => true,
            };
            let error = match (failure, unclear) {
                (Failure::Unclear, None) => {
                    unclear = Some(error);
                    None
                }
                (_, first) => {
                    unclear = first;
                    Some(error)
                }
            };
            if lost {
                return match (condition, unclear) {
                    (Condition::Is(_), Some(source)) => Err(StoreError::OutcomeUnknown {
                        key: key.to_owned(),
                        reason: "another write or a deletion has followed",
                        source: Box::new(source),
                    }),
                    _ => Err(StoreError::Conflict {
                        key: key.to_owned(),
                    }),
                };
            }
            if !attempts.again().await {
                let key = key.to_owned();
                return Err(match (unclear, error) {
                    (Some(source), _) => StoreError::OutcomeUnknown {
                        key,
                        reason: "it is not there, but may still arrive",
                        source: Box::new(source),
                    },
                    (None, Some(source)) => StoreError::NotApplied {
                        key,
                        attempts: attempts.made(),
                        source: Box::new(source),
                    },
                    (None, None) => unreachable!("the last failure is in one of the two"),
                });
            }
        }
    }

    async fn put(
        &self,
        path: &Path,
        bytes: &Bytes,
        condition: Condition<'_>,
    ) -> object_store::Result<Version> {
        let mode = match condition {
            Condition::Absent => PutMode::Create,
            Condition::Is(version) => PutMode::Update(UpdateVersion {
                e_tag: version.e_tag.clone(),
                version: version.version.clone(),
            }),
        };
        let payload = PutPayload::from_bytes(bytes.clone());
        let put = self
            .inner
            .objects
            .put_opts(path, payload, PutOptions::from(mode))
            .await?;
        Ok(Version {
            e_tag: put.e_tag,
            version: put.version,
        })
    }

    /// Whose write stands at `path`, given that ours would be `bytes`.
    async fn read_back(
        &self,
        path: &Path,
        bytes: &Bytes,
        write: &Attempts<'_>,
    ) -> object_store::Result<Found> {
        let proof = proof(bytes);
        let mut attempts = write.nested();
        loop {
            let range = (proof.len() < bytes.len()).then_some(0..proof.len() as u64);
            let error = match attempts
                .attempt(self.fetch(path, range, Want::Version))
                .await
            {
                Ok((Body::Bytes(found), meta)) => {
                    let version = Version::of(&meta);
                    return Ok(if *found == *proof {
                        Found::Ours(version)
                    } else {
                        Found::Other(version)
                    });
                }
                // Longer than anything we write in one piece.
                Ok((Body::TooLong, meta)) => return Ok(Found::Other(Version::of(&meta))),
                Err(error) => error,
            };
            match Failure::of(&error) {
                Failure::Missing => return Ok(Found::Nothing),
                Failure::Unclear if attempts.again().await => {}
                _ => return Err(error),
            }
        }
    }
}

/// The bytes that prove a write to be ours: the head of an envelope, or everything.
fn proof(bytes: &Bytes) -> &[u8] {
    match bytes.get(..HEADER_PROOF_LEN) {
        Some(head) if head.starts_with(ENVELOPE_MAGIC) => head,
        _ => bytes,
    }
}
