//! The `key` object of a database: its wrapped data keys. Rewritten by compare-and-swap, plain.
//!
//! Payload:
//!
//! | field | form |
//! | --- | --- |
//! | state, since | u8: 0 in use, 1 shredded (then there are no keys); varint |
//! | plain before | u8: 1 if the database has history from before its first key |
//! | keys | varint count, then key*, the newest last |
//!
//! | key field | form |
//! | --- | --- |
//! | key id | 16 |
//! | made at | varint |
//! | master key id | varint length, 1 to 64 ASCII letters, digits, `-`, `_`, `.` |
//! | wrapped | nonce 16, key 32, tag 16 ([`super`]) |

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_bytes, put_varint};
use tidelog_wal::{DatabaseId, DecodeError, NamespaceId, Timestamp};

use super::cipher::{Aes, SEAL_OVERHEAD};
use super::error::KeyError;
use super::keys::{DataKey, SealKey, Stamp};
use super::master::{MASTER_ID_LEN_MAX, MasterKey, MasterKeys};
use super::ring::Keyring;
use crate::Entropy;
use crate::envelope::{
    Expect, Finished, FormatError, KeyId, ObjectKind, VERSION, WriteId, decode_payload,
    encode_payload,
};
use crate::key::{DatabaseObject, Key};

/// The most data keys of a database.
pub const KEYS_MAX: usize = 4096;

const WRAP_CONTEXT: &str = "tidelog 2026 wrap key v1";
const NONCE_LEN: usize = 16;
const SEALED_LEN: usize = 32 + SEAL_OVERHEAD;

/// A data key as it stands in the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// Names the data key.
    pub id: KeyId,
    /// When it was made.
    pub created: Timestamp,
    /// Which master key wraps it.
    pub master: String,
    nonce: [u8; NONCE_LEN],
    sealed: [u8; SEALED_LEN],
}

/// The key object of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyObject {
    /// Whose keys they are.
    pub namespace: NamespaceId,
    /// Which database's.
    pub database: DatabaseId,
    /// Since when the keys are destroyed, if they are.
    pub shredded: Option<Timestamp>,
    /// When the object was made, or shredded.
    pub since: Timestamp,
    /// The database has history from before its first key.
    pub plain_before: bool,
    /// The keys, the newest last.
    pub keys: Vec<WrappedKey>,
}

impl KeyObject {
    /// An object without keys.
    pub const fn new(
        namespace: NamespaceId,
        database: DatabaseId,
        since: Timestamp,
        plain_before: bool,
    ) -> Self {
        Self {
            namespace,
            database,
            shredded: None,
            since,
            plain_before,
            keys: Vec::new(),
        }
    }

    /// Its key in the bucket.
    pub fn place(namespace: NamespaceId, database: DatabaseId) -> String {
        Key::Database(namespace, database, DatabaseObject::Key).to_string()
    }

    /// The same as a name for errors.
    pub(super) fn name(&self) -> String {
        Self::place(self.namespace, self.database)
    }

    /// Adds a data key, wrapped by `master`, as the newest.
    pub fn add(&mut self, key: &SealKey, master: &MasterKey, entropy: &dyn Entropy) {
        let wrapped = self.wrap(key, master, entropy.bytes16());
        self.keys.push(wrapped);
    }

    fn wrap(&self, key: &SealKey, master: &MasterKey, nonce: [u8; NONCE_LEN]) -> WrappedKey {
        let aad = self.bound(key.id, key.created, master.id());
        let mut sealed = zeroize::Zeroizing::new(key.key.bytes().to_vec());
        Aes::new(&master.key().derive(WRAP_CONTEXT, &nonce)).seal(0, &aad, &mut sealed);
        WrappedKey {
            id: key.id,
            created: key.created,
            master: master.id().to_owned(),
            nonce,
            sealed: sealed
                .as_slice()
                .try_into()
                .expect("32 bytes sealed are 48"),
        }
    }

    /// What a wrapped key is bound to.
    fn bound(&self, id: KeyId, created: Timestamp, master: &str) -> Vec<u8> {
        let mut aad = VERSION.to_le_bytes().to_vec();
        aad.extend_from_slice(self.namespace.as_bytes());
        aad.extend_from_slice(self.database.as_bytes());
        aad.extend_from_slice(&id.0);
        aad.extend_from_slice(&created.micros().to_le_bytes());
        aad.push(u8::from(self.plain_before));
        aad.extend_from_slice(master.as_bytes());
        aad
    }

    /// Opens one of its keys.
    pub fn unwrap(&self, wrapped: &WrappedKey, masters: &MasterKeys) -> Result<SealKey, KeyError> {
        let (object, key_id, master) = (self.name(), wrapped.id, wrapped.master.clone());
        let Some(opener) = masters.get(&wrapped.master) else {
            return Err(KeyError::MasterMissing {
                object,
                key_id,
                master,
            });
        };
        let aad = self.bound(wrapped.id, wrapped.created, &wrapped.master);
        let aes = Aes::new(&opener.key().derive(WRAP_CONTEXT, &wrapped.nonce));
        let opened = aes.open(0, &aad, &wrapped.sealed);
        let bytes = opened
            .map(zeroize::Zeroizing::new)
            .and_then(|opened| <[u8; 32]>::try_from(opened.as_slice()).ok());
        match bytes {
            Some(bytes) => Ok(SealKey {
                id: wrapped.id,
                key: DataKey::from_bytes(bytes),
                created: wrapped.created,
            }),
            None => Err(KeyError::MasterWrong {
                object,
                key_id,
                master,
            }),
        }
    }

    /// Wraps every key by the newest master key; answers how many were wrapped by another. The data keys
    /// stay as they are, and so does everything they seal.
    pub fn rewrap(
        &mut self,
        masters: &MasterKeys,
        entropy: &dyn Entropy,
    ) -> Result<usize, KeyError> {
        let Some(newest) = masters.newest() else {
            return Err(KeyError::Off {
                object: self.name(),
            });
        };
        let mut changed = 0;
        let mut keys = Vec::with_capacity(self.keys.len());
        for wrapped in &self.keys {
            if wrapped.master == newest.id() {
                keys.push(wrapped.clone());
                continue;
            }
            let key = self.unwrap(wrapped, masters)?;
            keys.push(self.wrap(&key, newest, entropy.bytes16()));
            changed += 1;
        }
        self.keys = keys;
        Ok(changed)
    }

    /// Destroys the keys.
    pub fn shred(&mut self, now: Timestamp) {
        self.keys.clear();
        self.shredded = Some(now);
        self.since = now;
    }

    /// The object.
    pub fn encode(&self, write_id: WriteId) -> Result<Finished, FormatError> {
        if self.keys.len() > KEYS_MAX || self.shredded.is_some() != self.keys.is_empty() {
            return Err(FormatError::Unwritable {
                what: "too many data keys, or none in an object that is not shredded",
            });
        }
        let mut out = vec![u8::from(self.shredded.is_some())];
        put_varint(&mut out, self.since.micros());
        out.push(u8::from(self.plain_before));
        put_varint(&mut out, self.keys.len() as u64);
        for key in &self.keys {
            out.extend_from_slice(&key.id.0);
            put_varint(&mut out, key.created.micros());
            put_bytes(&mut out, key.master.as_bytes());
            out.extend_from_slice(&key.nonce);
            out.extend_from_slice(&key.sealed);
        }
        let expect = Expect::database(ObjectKind::Key, self.namespace, self.database);
        encode_payload(expect, Stamp::plain(write_id), out)
    }

    /// Reads the key object of a database.
    pub fn decode(
        bytes: &Bytes,
        namespace: NamespaceId,
        database: DatabaseId,
    ) -> Result<Self, FormatError> {
        let expect = Expect::database(ObjectKind::Key, namespace, database);
        let (object, _) = decode_payload(bytes, expect, &Keyring::off(), |_, payload| {
            Self::payload(payload, namespace, database)
        })?;
        Ok(object)
    }

    fn payload(
        payload: &[u8],
        namespace: NamespaceId,
        database: DatabaseId,
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let flag = |reader: &mut Reader<'_>, what| {
            let offset = reader.offset();
            match reader.u8()? {
                0 => Ok(false),
                1 => Ok(true),
                _ => Err(DecodeError::Invalid { offset, what }),
            }
        };
        let shredded = flag(&mut reader, "state of a key object")?;
        let since = Timestamp::from_micros(reader.varint()?);
        let plain_before = flag(&mut reader, "history before the first key")?;
        let least = 16 + 1 + 2 + NONCE_LEN + SEALED_LEN;
        let count = reader.count("data keys", KEYS_MAX.min(reader.remaining() / least))?;
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            let id = KeyId(reader.array()?);
            let created = Timestamp::from_micros(reader.varint()?);
            let offset = reader.offset();
            let len = reader.count("master key id", MASTER_ID_LEN_MAX)?;
            let master = std::str::from_utf8(reader.take(len)?).map_err(|_| {
                let what = "master key id";
                DecodeError::Invalid { offset, what }
            })?;
            keys.push(WrappedKey {
                id,
                created,
                master: master.to_owned(),
                nonce: reader.array()?,
                sealed: reader.array()?,
            });
        }
        reader.finish()?;
        if shredded != keys.is_empty() {
            return Err(DecodeError::Invalid {
                offset: 0,
                what: "keys of a key object",
            });
        }
        Ok(Self {
            namespace,
            database,
            shredded: shredded.then_some(since),
            since,
            plain_before,
            keys,
        })
    }
}
