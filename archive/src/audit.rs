//! Audit objects: lines of JSON of one namespace and day.
//!
//! Without encryption the object is the lines. With it, it is an envelope whose payload they are, sealed with the
//! system database's key: a tenant's record outlives the tenant's keys.

use bytes::Bytes;
use tidelog_wal::{DatabaseId, DecodeError, NamespaceId};

use crate::envelope::{
    Expect, Finished, FormatError, MAGIC, ObjectKind, decode_payload, encode_payload,
};
use crate::seal::{Keyring, Stamp};

fn expect(namespace: NamespaceId) -> Expect {
    Expect::database(ObjectKind::Audit, namespace, DatabaseId::default())
}

/// Seals the lines of a namespace.
pub fn seal(namespace: NamespaceId, stamp: Stamp, lines: &str) -> Result<Finished, FormatError> {
    encode_payload(expect(namespace), stamp, lines.as_bytes().to_vec())
}

/// The lines of an audit object, sealed or plain. Plain ones are refused in a bucket that was sealed from its first
/// object on.
pub fn open(bytes: &Bytes, namespace: NamespaceId, keys: &Keyring) -> Result<String, FormatError> {
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map_err(|error| DecodeError::Invalid {
            offset: error.valid_up_to(),
            what: "text of an audit object",
        });
        text.map(str::to_owned)
    };
    if !bytes.starts_with(&MAGIC) {
        if keys.bucket_must_be_sealed() {
            return Err(FormatError::NotSealed);
        }
        return Ok(text(bytes)?);
    }
    let (lines, _) = decode_payload(bytes, expect(namespace), keys, |_, bytes| text(bytes))?;
    Ok(lines)
}
