//! The claim of a term: `journal/{term}/0000000000000000`, created if absent, never changed or deleted.
//!
//! Payload: term varint, previous term varint (0: none), node id (16), cluster id (16), wall time varint.

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::{ClusterId, NodeId, Term, Timestamp};

use super::check_place;
use crate::envelope::{
    Expect, Finished, FormatError, ObjectKind, WriteId, decode_payload, encode_payload,
};
use crate::key::Seq;
use crate::seal::{Keyring, Stamp};

/// Who claimed a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The term.
    pub term: Term,
    /// The term this node had before, if any.
    pub previous: Option<Term>,
    /// The node.
    pub node: NodeId,
    /// The cluster it believes to be in.
    pub cluster: ClusterId,
    /// Its wall clock when it claimed.
    pub wall: Timestamp,
}

impl Claim {
    /// The object.
    pub fn encode(&self, write_id: WriteId) -> Result<Finished, FormatError> {
        let mut out = Vec::new();
        put_varint(&mut out, u64::from(self.term.get()));
        put_varint(&mut out, u64::from(self.previous.map_or(0, Term::get)));
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(self.cluster.as_bytes());
        put_varint(&mut out, self.wall.micros());
        encode_payload(Expect::node(ObjectKind::Claim), Stamp::plain(write_id), out)
    }

    /// Reads the claim of `term`.
    pub fn decode(bytes: &Bytes, term: Term) -> Result<Self, FormatError> {
        let (claim, _) = decode_payload(
            bytes,
            Expect::node(ObjectKind::Claim),
            &Keyring::off(),
            |_, payload| {
                let mut reader = Reader::new(payload);
                let term = Term::new(reader.varint_u32("term")?);
                let previous = Term::new(reader.varint_u32("term")?);
                let claim = Self {
                    term,
                    previous: (previous != Term::NONE).then_some(previous),
                    node: NodeId::from_bytes(reader.array()?),
                    cluster: ClusterId::from_bytes(reader.array()?),
                    wall: Timestamp::from_micros(reader.varint()?),
                };
                reader.finish()?;
                Ok(claim)
            },
        )?;
        check_place((claim.term, Seq::CLAIM), (term, Seq::CLAIM))?;
        Ok(claim)
    }
}
