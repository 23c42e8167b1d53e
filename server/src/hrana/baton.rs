//! Batons: the name of a stream towards its client, valid for one request.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | the stream, big-endian |
//! | 8..16 | the number of the request, big-endian |
//! | 16..48 | HMAC-SHA-256 over both, the tenant, the database and the principal |
//!
//! The key is made anew by every process. A baton whose MAC is right is therefore one that this process gave to
//! this principal; if its stream is not there any more, it has ended.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// Bytes of a baton.
const BATON_LEN: usize = 48;
/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// Whom a baton belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) namespace: [u8; 16],
    pub(crate) database: [u8; 16],
    pub(crate) principal: [u8; 16],
}

/// The key of a process.
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, stream: u64, sequence: u64, owner: &Owner) -> [u8; 32] {
        let pad = |with: u8| {
            let mut block = [with; BLOCK];
            for (to, from) in block.iter_mut().zip(self.0) {
                *to ^= from;
            }
            block
        };
        let mut inner = Sha256::new();
        inner.update(pad(0x36));
        inner.update(stream.to_be_bytes());
        inner.update(sequence.to_be_bytes());
        inner.update(owner.namespace);
        inner.update(owner.database);
        inner.update(owner.principal);
        let mut outer = Sha256::new();
        outer.update(pad(0x5c));
        outer.update(inner.finalize());
        outer.finalize().into()
    }

    /// The baton of a stream's next request.
    pub(crate) fn seal(&self, stream: u64, sequence: u64, owner: &Owner) -> String {
        let mut bytes = Vec::with_capacity(BATON_LEN);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend(self.mac(stream, sequence, owner));
        STANDARD.encode(bytes)
    }

    /// Stream and sequence of a baton, if it is this owner's.
    pub(crate) fn open(&self, baton: &str, owner: &Owner) -> Option<(u64, u64)> {
        let bytes = STANDARD
            .decode(baton)
            .or_else(|_| STANDARD_NO_PAD.decode(baton))
            .ok()?;
        let bytes: [u8; BATON_LEN] = bytes.try_into().ok()?;
        let (stream, rest) = bytes.split_first_chunk::<8>()?;
        let (sequence, given) = rest.split_first_chunk::<8>()?;
        let (stream, sequence) = (u64::from_be_bytes(*stream), u64::from_be_bytes(*sequence));
        let right = self.mac(stream, sequence, owner);
        // Without an early end: the time must not tell how much of it was right.
        let differs = right
            .iter()
            .zip(given)
            .fold(0, |differs, (a, b)| differs | (a ^ b));
        (differs == 0).then_some((stream, sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baton_opens_for_its_owner_alone() {
        let key = Key::new([7; 32]);
        let owner = Owner {
            namespace: [1; 16],
            database: [2; 16],
            principal: [3; 16],
        };
        let baton = key.seal(5, 9, &owner);
        assert_eq!(key.open(&baton, &owner), Some((5, 9)));
        assert_eq!(key.open(baton.trim_end_matches('='), &owner), Some((5, 9)));
        for change in 0..3 {
            let mut other = owner.clone();
            let parts = [
                &mut other.namespace,
                &mut other.database,
                &mut other.principal,
            ];
            for part in parts.into_iter().skip(change).take(1) {
                *part = [9; 16];
            }
            assert_eq!(key.open(&baton, &other), None);
        }
        assert_eq!(Key::new([8; 32]).open(&baton, &owner), None);
        let bytes = STANDARD.decode(&baton).expect("ours");
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(key.open(&STANDARD.encode(bad), &owner), None, "byte {at}");
        }
        for bad in ["", "x", "!!!", &baton[..40]] {
            assert_eq!(key.open(bad, &owner), None);
        }
    }

    /// RFC 4231 has no case of this shape, so the construction is held against the one-block definition.
    #[test]
    fn the_mac_is_hmac_sha_256() {
        let owner = Owner {
            namespace: [0; 16],
            database: [0; 16],
            principal: [0; 16],
        };
        let hash = |parts: &[&[u8]]| {
            let mut hash = Sha256::new();
            for part in parts {
                hash.update(part);
            }
            hash.finalize().to_vec()
        };
        let (mut inner, mut outer) = ([0x36; 64], [0x5c; 64]);
        inner[..32].iter_mut().for_each(|byte| *byte ^= 4);
        outer[..32].iter_mut().for_each(|byte| *byte ^= 4);
        let message = [&1_u64.to_be_bytes()[..], &2_u64.to_be_bytes()[..], &[0; 48]].concat();
        let expected = hash(&[&outer, &hash(&[&inner, &message])]);
        assert_eq!(Key::new([4; 32]).mac(1, 2, &owner).to_vec(), expected);
    }
}
