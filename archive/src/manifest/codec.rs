//! The bytes of a manifest. The layout stands in [`super`].

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_bytes, put_varint};
use tidelog_wal::{
    DatabaseId, DecodeError, Digest, DigestSeed, NamespaceId, NodeId, PageCount, PageSize, Term,
    Timestamp, TxId,
};

use super::MANIFEST_LEN_MAX;
use super::entry::{Entry, put_list, put_position, read_list, read_position};
use super::invariants::ManifestError;
use super::model::{
    Gap, GapReason, Label, Manifest, Owner, Parent, Pin, Settled, State, TermStart,
};
use crate::envelope::{
    Expect, Finished, FormatError, HEADER_LEN, Header, KeyId, ObjectKind, TRAILER_LEN, WriteId,
    decode_payload, encode_payload,
};
use crate::seal::{Keyring, SEAL_OVERHEAD, Stamp};

/// The longest name hint and note of a label, in bytes.
const TEXT_LEN_MAX: usize = 1024;

impl Manifest {
    /// The object, if it is sound ([`Manifest::check_self`]) and small enough.
    pub fn encode(&self, stamp: Stamp) -> Result<Finished, ManifestError> {
        self.check_self()?;
        let payload = self.payload();
        let len = payload.len() + HEADER_LEN + TRAILER_LEN + SEAL_OVERHEAD;
        if len > MANIFEST_LEN_MAX {
            return Err(ManifestError::TooLarge { len });
        }
        let expect = Expect::database(ObjectKind::Manifest, self.namespace, self.database);
        Ok(encode_payload(expect, stamp, payload)?)
    }

    /// Bytes of the encoded object, sealed.
    pub fn encoded_len(&self) -> usize {
        self.payload().len() + HEADER_LEN + TRAILER_LEN + SEAL_OVERHEAD
    }

    /// Reads the manifest of a database, with the write id of the PUT that wrote it.
    pub fn decode(
        bytes: &Bytes,
        namespace: NamespaceId,
        database: DatabaseId,
        keys: &Keyring,
    ) -> Result<(Self, WriteId), ManifestError> {
        if bytes.len() > MANIFEST_LEN_MAX {
            return Err(ManifestError::TooLarge { len: bytes.len() });
        }
        let expect = Expect::database(ObjectKind::Manifest, namespace, database);
        let (manifest, object) = decode_payload(bytes, expect, keys, Self::from_payload)?;
        manifest.check_self()?;
        Ok((manifest, object.header.write_id))
    }

    fn payload(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.version);
        put_varint(&mut out, u64::from(self.owner.term.get()));
        out.extend_from_slice(self.owner.node.as_bytes());
        self.state.encode(&mut out);
        put_bytes(&mut out, self.name_hint.as_bytes());
        out.push(self.page_size.log2());
        out.extend_from_slice(&self.seed.get().to_le_bytes());
        put_varint(&mut out, self.created.micros());
        put_varint(&mut out, self.retention_micros);
        put_varint(&mut out, self.horizon.get());
        put_list(&mut out, &self.key_ids);
        put_option(&mut out, self.parent.as_ref());
        put_option(&mut out, self.settled.as_ref());
        put_list(&mut out, &self.terms);
        put_list(&mut out, &self.labels);
        put_list(&mut out, &self.pins);
        put_list(&mut out, &self.gaps);
        put_list(&mut out, &self.index);
        put_list(&mut out, &self.images);
        put_list(&mut out, &self.segments);
        put_list(&mut out, &self.marked);
        out
    }

    fn from_payload(header: &Header, payload: &[u8]) -> Result<Self, DecodeError> {
        let limit = MANIFEST_LEN_MAX;
        let mut reader = Reader::new(payload);
        let r = &mut reader;
        let version = r.varint()?;
        let owner = Owner {
            term: Term::new(r.varint_u32("term")?),
            node: NodeId::from_bytes(r.array()?),
        };
        let state = State::decode(r)?;
        let name_hint = read_text(r, "name hint")?;
        let offset = r.offset();
        let page_size = PageSize::from_log2(r.u8()?, offset)?;
        let manifest = Self {
            namespace: header.namespace,
            database: header.database,
            version,
            owner,
            state,
            name_hint,
            page_size,
            seed: DigestSeed::new(r.u64()?),
            created: Timestamp::from_micros(r.varint()?),
            retention_micros: r.varint()?,
            horizon: TxId::new(r.varint()?),
            key_ids: read_list(r, "key ids", limit)?,
            parent: read_option(r)?,
            settled: read_option(r)?,
            terms: read_list(r, "terms", limit)?,
            labels: read_list(r, "labels", limit)?,
            pins: read_list(r, "pins", limit)?,
            gaps: read_list(r, "gaps", limit)?,
            index: read_list(r, "index objects", limit)?,
            images: read_list(r, "images", limit)?,
            segments: read_list(r, "segments", limit)?,
            marked: read_list(r, "marked objects", limit)?,
        };
        reader.finish()?;
        Ok(manifest)
    }
}

fn put_option<E: Entry>(out: &mut Vec<u8>, entry: Option<&E>) {
    out.push(u8::from(entry.is_some()));
    if let Some(entry) = entry {
        entry.encode(out);
    }
}

fn read_option<E: Entry>(reader: &mut Reader<'_>) -> Result<Option<E>, DecodeError> {
    Ok(match read_code(reader, "presence", 1)? {
        0 => None,
        _ => Some(E::decode(reader)?),
    })
}

fn read_text(reader: &mut Reader<'_>, what: &'static str) -> Result<String, DecodeError> {
    let offset = reader.offset();
    let bytes = reader.bytes(what, TEXT_LEN_MAX)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(DecodeError::Invalid { offset, what }),
    }
}

fn read_code(reader: &mut Reader<'_>, what: &'static str, max: u8) -> Result<u8, DecodeError> {
    let offset = reader.offset();
    let code = reader.u8()?;
    if code > max {
        return Err(DecodeError::Invalid { offset, what });
    }
    Ok(code)
}

impl Entry for KeyId {
    const LEN_MIN: usize = 16;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(reader.array()?))
    }
}

impl State {
    fn encode(self, out: &mut Vec<u8>) {
        let (code, since) = match self {
            Self::Creating(since) => (0, since),
            Self::Active(since) => (1, since),
            Self::Deleted(since) => (2, since),
            Self::Purged(since) => (3, since),
        };
        out.push(code);
        put_varint(out, since.micros());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let code = read_code(reader, "state of a database", 3)?;
        let since = Timestamp::from_micros(reader.varint()?);
        Ok(match code {
            0 => Self::Creating(since),
            1 => Self::Active(since),
            2 => Self::Deleted(since),
            _ => Self::Purged(since),
        })
    }
}

impl Entry for Parent {
    const LEN_MIN: usize = 32 + 18 + 16;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.namespace.as_bytes());
        out.extend_from_slice(self.database.as_bytes());
        put_position(out, &self.at);
        out.extend_from_slice(&self.pin);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            namespace: NamespaceId::from_bytes(reader.array()?),
            database: DatabaseId::from_bytes(reader.array()?),
            at: read_position(reader)?,
            pin: reader.array()?,
        })
    }
}

impl Entry for Settled {
    const LEN_MIN: usize = 18 + 2 + 8;

    fn encode(&self, out: &mut Vec<u8>) {
        put_position(out, &self.position);
        put_varint(out, self.time.micros());
        put_varint(out, u64::from(self.n.get()));
        out.extend_from_slice(&self.digest.get().to_le_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            position: read_position(reader)?,
            time: Timestamp::from_micros(reader.varint()?),
            n: PageCount::new(reader.varint_u32("page count")?),
            digest: Digest::from_u64(reader.u64()?),
        })
    }
}

impl Entry for TermStart {
    const LEN_MIN: usize = 2;

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.term.get()));
        put_varint(out, self.first.get());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            term: Term::new(reader.varint_u32("term")?),
            first: TxId::new(reader.varint()?),
        })
    }
}

impl Entry for Label {
    const LEN_MIN: usize = 2 + 18 + 3;

    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.name.as_bytes());
        put_bytes(out, self.note.as_bytes());
        put_position(out, &self.position);
        put_varint(out, self.time.micros());
        put_varint(out, self.created.micros());
        put_varint(out, self.expires.map_or(0, Timestamp::micros));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: read_text(reader, "name of a label")?,
            note: read_text(reader, "note of a label")?,
            position: read_position(reader)?,
            time: Timestamp::from_micros(reader.varint()?),
            created: Timestamp::from_micros(reader.varint()?),
            expires: Some(reader.varint()?)
                .filter(|micros| *micros > 0)
                .map(Timestamp::from_micros),
        })
    }
}

impl Entry for Pin {
    const LEN_MIN: usize = 16 + 18 + 2;

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id);
        put_position(out, &self.position);
        put_varint(out, self.created.micros());
        out.push(u8::from(self.child.is_some()));
        if let Some(child) = &self.child {
            out.extend_from_slice(child.as_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.array()?,
            position: read_position(reader)?,
            created: Timestamp::from_micros(reader.varint()?),
            child: match read_code(reader, "presence", 1)? {
                0 => None,
                _ => Some(DatabaseId::from_bytes(reader.array()?)),
            },
        })
    }
}

impl Entry for Gap {
    const LEN_MIN: usize = 5;

    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.after.get());
        put_varint(out, self.resumes.get());
        put_varint(out, self.from.micros());
        put_varint(out, self.to.micros());
        out.push(match self.reason {
            GapReason::Discontinuity => 0,
            GapReason::Lost => 1,
            GapReason::Damaged => 2,
        });
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            after: TxId::new(reader.varint()?),
            resumes: TxId::new(reader.varint()?),
            from: Timestamp::from_micros(reader.varint()?),
            to: Timestamp::from_micros(reader.varint()?),
            reason: match read_code(reader, "reason of a gap", 2)? {
                0 => GapReason::Discontinuity,
                1 => GapReason::Lost,
                _ => GapReason::Damaged,
            },
        })
    }
}

/// What of a text `check_self` refuses.
pub(super) fn text_fits(text: &str, limit: usize) -> bool {
    text.len() <= limit.min(TEXT_LEN_MAX)
}

/// An error of bytes is an error of the manifest.
impl From<FormatError> for ManifestError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}
