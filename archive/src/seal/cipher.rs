//! Sealing and opening the blocks of one object for one database. The construction stands in [`super`].

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use tidelog_wal::{DatabaseId, NamespaceId};

use super::keys::DataKey;
use crate::envelope::{Cipher, ObjectKind, ObjectNonce, VERSION};

/// What sealing adds to a block.
pub const SEAL_OVERHEAD: usize = 16;
/// The number under which an index is sealed.
pub const INDEX_BLOCK: u64 = u64::MAX;

const OBJECT_CONTEXT: &str = "tidelog 2026 object key v1";
const AAD_LEN: usize = 2 + 1 + 1 + 3 * 16 + 8;

/// An AES-256-GCM key.
pub(crate) struct Aes(LessSafeKey);

impl Aes {
    pub(crate) fn new(key: &DataKey) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key.bytes()).expect("AES-256 takes 32 bytes");
        Self(LessSafeKey::new(key))
    }

    fn nonce(number: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals what stands in `bytes`, appending the tag.
    pub(crate) fn seal(&self, number: u64, aad: &[u8], bytes: &mut Vec<u8>) {
        let sealed = self
            .0
            .seal_in_place_append_tag(Self::nonce(number), Aad::from(aad), bytes);
        sealed.expect("a block is far below the limit of AES-GCM");
    }

    /// What was sealed, or `None` if it was not, under this key, number and additional data.
    pub(crate) fn open(&self, number: u64, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let len = sealed.len().checked_sub(SEAL_OVERHEAD)?;
        let (text, tag) = sealed.split_at(len);
        let mut opened = vec![0; len];
        self.0
            .open_separate_gather(Self::nonce(number), Aad::from(aad), text, tag, &mut opened)
            .ok()?;
        Some(opened)
    }
}

/// Seals or opens the blocks of one object that belong to one database.
pub struct BlockSealer {
    aes: Aes,
    /// The additional data, but for the block's number.
    bound: [u8; AAD_LEN],
}

impl fmt::Debug for BlockSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockSealer").finish_non_exhaustive()
    }
}

impl BlockSealer {
    /// For the object of kind `kind` with nonce `nonce`, blocks of `database`, whose data key is `key`.
    pub fn new(
        key: &DataKey,
        kind: ObjectKind,
        nonce: ObjectNonce,
        (namespace, database): (NamespaceId, DatabaseId),
    ) -> Self {
        let mut bound = [0; AAD_LEN];
        bound[..2].copy_from_slice(&VERSION.to_le_bytes());
        bound[2] = kind.code();
        bound[3] = Cipher::Aes256Gcm.code();
        bound[4..20].copy_from_slice(&nonce.0);
        bound[20..36].copy_from_slice(namespace.as_bytes());
        bound[36..52].copy_from_slice(database.as_bytes());
        Self {
            aes: Aes::new(&key.derive(OBJECT_CONTEXT, &nonce.0)),
            bound,
        }
    }

    fn aad(&self, block: u64) -> [u8; AAD_LEN] {
        let mut aad = self.bound;
        aad[52..].copy_from_slice(&block.to_le_bytes());
        aad
    }

    /// Seals what stands in `bytes` as block number `block`.
    pub fn seal(&self, block: u64, bytes: &mut Vec<u8>) {
        self.aes.seal(block, &self.aad(block), bytes);
    }

    /// Opens a stored block; `None` if it is not that block of that object.
    pub fn open(&self, block: u64, stored: &[u8]) -> Option<Vec<u8>> {
        self.aes.open(block, &self.aad(block), stored)
    }
}
