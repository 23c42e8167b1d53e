//! The fence: what closes a term, created at its first missing number, never changed or deleted.
//!
//! Payload: fenced term varint, seq varint, closing term varint, closing node id (16), wall time varint.

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::{NodeId, Term, Timestamp};

use super::check_place;
use crate::envelope::{
    Expect, Finished, FormatError, ObjectKind, WriteId, decode_payload, encode_payload,
};
use crate::key::Seq;
use crate::seal::{Keyring, Stamp};

/// Who closed a term, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The term that is closed.
    pub term: Term,
    /// The number at which it ends: what stands above does not exist.
    pub seq: Seq,
    /// The term that closed it.
    pub by_term: Term,
    /// The node that closed it.
    pub by_node: NodeId,
    /// That node's wall clock then.
    pub wall: Timestamp,
}

impl Fence {
    /// The object.
    pub fn encode(&self, write_id: WriteId) -> Result<Finished, FormatError> {
        let mut out = Vec::new();
        put_varint(&mut out, u64::from(self.term.get()));
        put_varint(&mut out, self.seq.get());
        put_varint(&mut out, u64::from(self.by_term.get()));
        out.extend_from_slice(self.by_node.as_bytes());
        put_varint(&mut out, self.wall.micros());
        encode_payload(Expect::node(ObjectKind::Fence), Stamp::plain(write_id), out)
    }

    /// Reads the fence at `seq` of `term`.
    pub fn decode(bytes: &Bytes, term: Term, seq: Seq) -> Result<Self, FormatError> {
        let (fence, _) = decode_payload(
            bytes,
            Expect::node(ObjectKind::Fence),
            &Keyring::off(),
            |_, payload| {
                let mut reader = Reader::new(payload);
                let fence = Self {
                    term: Term::new(reader.varint_u32("term")?),
                    seq: Seq::new(reader.varint()?),
                    by_term: Term::new(reader.varint_u32("term")?),
                    by_node: NodeId::from_bytes(reader.array()?),
                    wall: Timestamp::from_micros(reader.varint()?),
                };
                reader.finish()?;
                Ok(fence)
            },
        )?;
        check_place((fence.term, fence.seq), (term, seq))?;
        Ok(fence)
    }
}
