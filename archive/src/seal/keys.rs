//! Data keys, and the stamp that makes one encoding of an object unique.

use std::fmt;
use std::sync::Arc;

use tidelog_wal::Timestamp;
use zeroize::Zeroizing;

use crate::Entropy;
use crate::envelope::{KeyId, ObjectNonce, WriteId};

/// 32 secret bytes, wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}

impl DataKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new one.
    pub fn draw(entropy: &dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(bytes.as_mut());
        Self(bytes)
    }

    /// A key for one purpose: of this one and `salt`, under the domain `context`.
    #[must_use]
    pub fn derive(&self, context: &str, salt: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(self.bytes());
        hasher.update(salt);
        Self::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A data key by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealKey {
    /// Names it, in headers and sections.
    pub id: KeyId,
    /// The key.
    pub key: DataKey,
    /// When it was made.
    pub created: Timestamp,
}

impl SealKey {
    /// A new key with a new id.
    pub fn draw(entropy: &dyn Entropy, created: Timestamp) -> Self {
        Self {
            id: KeyId(entropy.bytes16()),
            key: DataKey::draw(entropy),
            created,
        }
    }
}

/// What one encoding of an object is told apart and sealed by. It is used up by the encoding: no object nonce
/// serves twice.
#[derive(Debug)]
pub struct Stamp {
    pub(crate) write_id: WriteId,
    pub(crate) nonce: ObjectNonce,
    pub(crate) key: Option<Arc<SealKey>>,
}

impl Stamp {
    /// The key it seals with; `None` if it does not.
    pub fn key_id(&self) -> Option<KeyId> {
        self.key.as_ref().map(|key| key.id)
    }

    /// Of a plain object.
    pub fn plain(write_id: WriteId) -> Self {
        Self {
            write_id,
            nonce: ObjectNonce::default(),
            key: None,
        }
    }

    /// Of an object that is sealed with `key`, or plain without one.
    pub fn draw(entropy: &dyn Entropy, key: Option<Arc<SealKey>>) -> Self {
        match key {
            Some(_) => Self::shared(entropy, key),
            None => Self::plain(WriteId(entropy.bytes16())),
        }
    }

    /// Of a journal object with sealed sections. `key` seals its index.
    pub fn shared(entropy: &dyn Entropy, key: Option<Arc<SealKey>>) -> Self {
        Self {
            write_id: WriteId(entropy.bytes16()),
            nonce: ObjectNonce(entropy.bytes16()),
            key,
        }
    }

    /// Of a sealed object whose nonce is given: for fixtures. The pair of key and nonce must never come twice.
    pub const fn fixed(write_id: WriteId, nonce: ObjectNonce, key: Option<Arc<SealKey>>) -> Self {
        Self {
            write_id,
            nonce,
            key,
        }
    }
}
