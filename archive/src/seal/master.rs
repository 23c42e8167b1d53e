//! Master keys: what the operator holds, and what wraps data keys.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::keys::DataKey;

/// The longest id of a master key in bytes.
pub const MASTER_ID_LEN_MAX: usize = 64;

/// Why something is no master key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// The id is empty, too long, or has other characters than letters, digits, `-`, `_` and `.`.
    #[error("the id of a master key is 1 to 64 letters, digits, '-', '_' or '.', not {id:?}")]
    Id {
        /// What was given.
        id: String,
    },
    /// The key has not 32 bytes.
    #[error(
        "master key {id:?} is neither 32 raw bytes nor 32 bytes in base64, but {len} bytes of \
         something else; make one with: head -c 32 /dev/urandom | base64"
    )]
    Length {
        /// Its id.
        id: String,
        /// Bytes that were given.
        len: usize,
    },
    /// Every byte of the key is the same.
    #[error("master key {id:?} is not random: all of its bytes are the same")]
    NotRandom {
        /// Its id.
        id: String,
    },
    /// Two keys have one id.
    #[error("two master keys have the id {id:?}")]
    Twice {
        /// The id.
        id: String,
    },
}

/// One master key.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey {
    id: String,
    key: DataKey,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl MasterKey {
    /// The key named `id` that stands in `bytes`: 32 raw bytes, or their base64 with white space around it.
    pub fn parse(id: &str, bytes: &[u8]) -> Result<Self, MasterKeyError> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if id.is_empty() || id.len() > MASTER_ID_LEN_MAX || !id.bytes().all(fits) {
            return Err(MasterKeyError::Id { id: id.to_owned() });
        }
        let text = Zeroizing::new(bytes.trim_ascii().to_vec());
        let decoded = STANDARD.decode(text.as_slice()).map(Zeroizing::new);
        let raw = match <[u8; 32]>::try_from(bytes) {
            Ok(raw) => Some(raw),
            Err(_) => decoded
                .ok()
                .and_then(|decoded| <[u8; 32]>::try_from(decoded.as_slice()).ok()),
        };
        let Some(raw) = raw.map(Zeroizing::new) else {
            let (id, len) = (id.to_owned(), bytes.len());
            return Err(MasterKeyError::Length { id, len });
        };
        if raw.iter().all(|byte| Some(byte) == raw.first()) {
            return Err(MasterKeyError::NotRandom { id: id.to_owned() });
        }
        Ok(Self {
            id: id.to_owned(),
            key: DataKey::from_bytes(*raw),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) const fn key(&self) -> &DataKey {
        &self.key
    }
}

/// The master keys at hand, the newest last. Cheap to clone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct MasterKeys(Arc<Vec<MasterKey>>);

impl fmt::Debug for MasterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl MasterKeys {
    /// These keys, the newest last.
    pub fn new(keys: Vec<MasterKey>) -> Result<Self, MasterKeyError> {
        for (at, key) in keys.iter().enumerate() {
            if keys.iter().skip(at + 1).any(|other| other.id == key.id) {
                return Err(MasterKeyError::Twice { id: key.id.clone() });
            }
        }
        Ok(Self(Arc::new(keys)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that wraps.
    pub fn newest(&self) -> Option<&MasterKey> {
        self.0.last()
    }

    /// The key of an id.
    pub fn get(&self, id: &str) -> Option<&MasterKey> {
        self.0.iter().find(|key| key.id == id)
    }

    /// Their ids, the newest last.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(MasterKey::id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_key_is_32_bytes_raw_or_in_base64() {
        let raw: Vec<u8> = (0..32).collect();
        let text = format!(" {}\n", STANDARD.encode(&raw));
        let one = MasterKey::parse("k1", &raw).expect("raw");
        assert_eq!(
            MasterKey::parse("k1", text.as_bytes()).expect("base64"),
            one
        );
        assert!(matches!(
            MasterKey::parse("k1", &raw[..31]),
            Err(MasterKeyError::Length { len: 31, .. })
        ));
        assert!(matches!(
            MasterKey::parse("k1", &[7; 32]),
            Err(MasterKeyError::NotRandom { .. })
        ));
        assert!(matches!(
            MasterKey::parse("k/1", &raw),
            Err(MasterKeyError::Id { .. })
        ));
        assert!(!format!("{one:?}").contains('7'), "keys are never shown");
        assert!(matches!(
            MasterKeys::new(vec![one.clone(), one]),
            Err(MasterKeyError::Twice { .. })
        ));
    }
}
