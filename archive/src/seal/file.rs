//! Sealing the pieces of a local file that only ever grows.

use std::fmt;

use super::cipher::{Aes, SEAL_OVERHEAD};
use super::keys::DataKey;

const FILE_CONTEXT: &str = "tidelog 2026 file key v1";

/// Seals the pieces of one file under a key of its own: `BLAKE3.derive_key("tidelog 2026 file key v1", key || file
/// nonce)`. Each piece has a number, which is the AES-GCM nonce, and is bound to where it lies in the plain file.
/// The caller never uses a number twice for one file nonce.
pub struct FileSealer(Aes);

impl fmt::Debug for FileSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSealer").finish_non_exhaustive()
    }
}

impl FileSealer {
    /// What sealing adds to a piece.
    pub const OVERHEAD: usize = SEAL_OVERHEAD;

    /// For the file with this nonce, random and never used before.
    pub fn new(key: &DataKey, nonce: &[u8; 16]) -> Self {
        Self(Aes::new(&key.derive(FILE_CONTEXT, nonce)))
    }

    /// Seals `bytes`, which lie at `offset` of the plain file, as piece `number`.
    pub fn seal(&self, number: u64, offset: u64, bytes: &mut Vec<u8>) {
        self.0.seal(number, &offset.to_le_bytes(), bytes);
    }

    /// Opens a piece; `None` if it is not that one.
    pub fn open(&self, number: u64, offset: u64, stored: &[u8]) -> Option<Vec<u8>> {
        self.0.open(number, &offset.to_le_bytes(), stored)
    }
}
