//! Opens an object: whole, or from its head and tail.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tidelog_wal::DecodeError;
use tidelog_wal::record::ObjectRef;

use super::error::FormatError;
use super::header::{Expect, HEADER_LEN, Header};
use super::trailer::{TRAILER_LEN, Trailer};
use super::writer::{Finished, ObjectWriter};
use crate::seal::{BlockSealer, INDEX_BLOCK, Keyring, Stamp};

/// Bytes worth fetching from an object's end in one go: trailer and, mostly, all of the index.
pub const TAIL_GUESS: u64 = 64 << 10;

/// The longest payload of a small object.
const PAYLOAD_MAX: usize = 16 << 20;

/// An opened object: header, trailer and index proven; the body if all of it was at hand.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its header, if its bytes were at hand.
    pub header: Header,
    /// Its trailer.
    pub trailer: Trailer,
    /// Its index, proven by CRC-32, opened.
    pub index: Bytes,
    /// What opens its blocks; `None` if they are plain, or sealed section by section.
    pub sealer: Option<Arc<BlockSealer>>,
    /// All of its bytes, proven by BLAKE3, if it was opened whole.
    pub whole: Option<Bytes>,
}

/// What [`Object::open_tail`] wants fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailRange(pub Range<u64>);

impl Object {
    /// Opens a whole object, proving every byte of it.
    pub fn open(bytes: &Bytes, expect: Expect, keys: &Keyring) -> Result<Self, FormatError> {
        let header = Header::decode(bytes)?;
        header.check(expect)?;
        let len = bytes.len();
        let trailer = Trailer::decode(bytes, len as u64)?;
        let covered = bytes.get(..len - TRAILER_LEN).unwrap_or_default();
        let found = blake3::hash(covered);
        if found.as_bytes() != &trailer.blake3 {
            return Err(digest_mismatch(&found, &trailer.blake3));
        }
        let start = usize::try_from(trailer.index_offset)
            .map_err(|_| FormatError::invalid(len - TRAILER_LEN, "index offset"))?;
        let index = bytes.slice(start..len - TRAILER_LEN);
        trailer.check_index(&index)?;
        Self::unsealed(header, trailer, index, Some(bytes.clone()), keys)
    }

    /// Opens a whole object that `named` names, proving that it is that one.
    pub fn open_named(
        bytes: &Bytes,
        expect: Expect,
        named: &ObjectRef,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let object = Self::open(bytes, expect, keys)?;
        object.trailer.check_name(named)?;
        Ok(object)
    }

    /// Opens the object that `named` names from its head (at least 96 bytes) and `tail`, its last bytes.
    /// Where the tail does not reach back to the index, the answer is the range of the tail that does.
    pub fn open_tail(
        head: &[u8],
        tail: &Bytes,
        expect: Expect,
        named: &ObjectRef,
        keys: &Keyring,
    ) -> Result<Result<Self, TailRange>, FormatError> {
        let header = Header::decode(head)?;
        header.check(expect)?;
        let trailer = Trailer::decode(tail, named.len)?;
        trailer.check_name(named)?;
        let wanted = named.len - trailer.index_offset;
        let Some(start) = (tail.len() as u64)
            .checked_sub(wanted)
            .and_then(|start| usize::try_from(start).ok())
        else {
            return Ok(Err(TailRange(trailer.index_offset..named.len)));
        };
        let index = tail.slice(start..tail.len() - TRAILER_LEN);
        trailer.check_index(&index)?;
        Self::unsealed(header, trailer, index, None, keys).map(Ok)
    }

    /// Where the body lies.
    pub const fn body(&self) -> Range<u64> {
        HEADER_LEN as u64..self.trailer.index_offset
    }

    /// Opens the index of a proven object.
    fn unsealed(
        header: Header,
        trailer: Trailer,
        index: Bytes,
        whole: Option<Bytes>,
        keys: &Keyring,
    ) -> Result<Self, FormatError> {
        let sealer = keys.opening(&header)?.map(Arc::new);
        let index = match &sealer {
            Some(sealer) if !index.is_empty() => {
                let offset = trailer.index_offset;
                let what = "the index";
                let opened = sealer.open(INDEX_BLOCK, &index);
                opened
                    .ok_or(FormatError::Unauthentic { offset, what })?
                    .into()
            }
            _ => index,
        };
        Ok(Self {
            header,
            trailer,
            index,
            sealer,
            whole,
        })
    }
}

impl Trailer {
    /// Refuses an object that is intact but not the one `named` names.
    pub fn check_name(&self, named: &ObjectRef) -> Result<(), FormatError> {
        if self.object_len != named.len {
            return Err(FormatError::Foreign {
                what: "object length",
                found: self.object_len.to_string(),
                expected: named.len.to_string(),
            });
        }
        if self.blake3 != named.blake3 {
            return Err(FormatError::Foreign {
                what: "BLAKE3 of the object",
                found: blake3::Hash::from_bytes(self.blake3).to_string(),
                expected: blake3::Hash::from_bytes(named.blake3).to_string(),
            });
        }
        Ok(())
    }
}

fn digest_mismatch(found: &blake3::Hash, expected: &[u8; 32]) -> FormatError {
    FormatError::Decode(DecodeError::Checksum {
        offset: 0,
        what: "BLAKE3 of the object",
        found: found.to_string(),
        expected: blake3::Hash::from_bytes(*expected).to_string(),
    })
}

/// Writes a small object whose body is `payload` in one block, sealed as `stamp` says, and whose index is empty.
pub fn encode_payload(
    expect: Expect,
    stamp: Stamp,
    payload: Vec<u8>,
) -> Result<Finished, FormatError> {
    if payload.len() > PAYLOAD_MAX {
        return Err(FormatError::Unwritable {
            what: "the payload is too long",
        });
    }
    let mut payload = payload;
    let mut writer = ObjectWriter::new(expect, stamp);
    if let Some(sealer) = writer.sealer() {
        sealer.seal(0, &mut payload);
    }
    writer.append(&payload);
    writer.finish(&[])
}

/// Opens a small object and hands its payload to `decode`, whose offsets become the object's.
pub fn decode_payload<T>(
    bytes: &Bytes,
    expect: Expect,
    keys: &Keyring,
    decode: impl FnOnce(&Header, &[u8]) -> Result<T, DecodeError>,
) -> Result<(T, Object), FormatError> {
    if bytes.len() > PAYLOAD_MAX + HEADER_LEN + TRAILER_LEN {
        return Err(FormatError::invalid(0, "object length"));
    }
    let object = Object::open(bytes, expect, keys)?;
    if !object.index.is_empty() {
        let offset = bytes.len() - TRAILER_LEN - object.index.len();
        return Err(FormatError::invalid(
            offset,
            "index of an object without one",
        ));
    }
    let stored = bytes
        .get(HEADER_LEN..bytes.len() - TRAILER_LEN)
        .unwrap_or_default();
    let opened = object.sealer.as_ref().map(|sealer| {
        let offset = HEADER_LEN as u64;
        let what = "the payload";
        let opened = sealer.open(0, stored);
        opened.ok_or(FormatError::Unauthentic { offset, what })
    });
    let opened = opened.transpose()?;
    let payload = opened.as_deref().unwrap_or(stored);
    let value = super::error::at(HEADER_LEN as u64, decode(&object.header, payload))?;
    Ok((value, object))
}
