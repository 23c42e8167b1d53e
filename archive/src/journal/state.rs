//! A term's state: `journal/{term}/state`, rewritten by compare-and-swap.
//!
//! Payload: term varint, trimmed-below varint, inherited terms varint count, then (term varint, fence seq
//! varint)*, ascending by term.
//!
//! `trimmed_below` is raised before journal objects below it are deleted, so that a missing number below it
//! is a deleted object and one at or above it is the end of the term. A term is recorded as inherited before
//! its fence is written (fence seq 0 until then).

use bytes::Bytes;
use tidelog_wal::codec::{Reader, put_varint};
use tidelog_wal::{DecodeError, Term};

use super::check_place;
use crate::envelope::{
    Expect, Finished, FormatError, ObjectKind, WriteId, decode_payload, encode_payload,
};
use crate::key::Seq;
use crate::seal::{Keyring, Stamp};

/// A term this one closed and must settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    /// The closed term.
    pub term: Term,
    /// Where its fence stands, once written.
    pub fence: Option<Seq>,
}

/// What a term's owner writes down about its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TermState {
    /// The term.
    pub term: Term,
    /// Journal objects below this number may be gone.
    pub trimmed_below: Seq,
    /// Terms this one inherited.
    pub inherited: Vec<Inherited>,
}

impl TermState {
    /// The state of a new term.
    pub const fn new(term: Term) -> Self {
        Self {
            term,
            trimmed_below: Seq::FIRST,
            inherited: Vec::new(),
        }
    }

    /// The object.
    pub fn encode(&self, write_id: WriteId) -> Result<Finished, FormatError> {
        if !self.inherited.is_sorted_by(|a, b| a.term < b.term) {
            return Err(FormatError::Unwritable {
                what: "inherited terms do not ascend",
            });
        }
        let mut out = Vec::new();
        put_varint(&mut out, u64::from(self.term.get()));
        put_varint(&mut out, self.trimmed_below.get());
        put_varint(&mut out, self.inherited.len() as u64);
        for inherited in &self.inherited {
            put_varint(&mut out, u64::from(inherited.term.get()));
            put_varint(&mut out, inherited.fence.map_or(0, Seq::get));
        }
        encode_payload(
            Expect::node(ObjectKind::TermState),
            Stamp::plain(write_id),
            out,
        )
    }

    /// Reads the state of `term`, with the write id of the PUT that wrote it.
    pub fn decode(bytes: &Bytes, term: Term) -> Result<(Self, WriteId), FormatError> {
        let expect = Expect::node(ObjectKind::TermState);
        let (state, object) = decode_payload(bytes, expect, &Keyring::off(), |_, payload| {
            Self::payload(payload)
        })?;
        check_place((state.term, Seq::CLAIM), (term, Seq::CLAIM))?;
        Ok((state, object.header.write_id))
    }

    fn payload(payload: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(payload);
        let term = Term::new(reader.varint_u32("term")?);
        let trimmed_below = Seq::new(reader.varint()?);
        let count = reader.count("inherited terms", reader.remaining() / 2)?;
        let mut inherited = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = reader.offset();
            let term = Term::new(reader.varint_u32("term")?);
            if inherited
                .last()
                .is_some_and(|last: &Inherited| last.term >= term)
            {
                return Err(DecodeError::Invalid {
                    offset,
                    what: "order of inherited terms",
                });
            }
            let fence = Seq::new(reader.varint()?);
            inherited.push(Inherited {
                term,
                fence: (fence != Seq::CLAIM).then_some(fence),
            });
        }
        reader.finish()?;
        Ok(Self {
            term,
            trimmed_below,
            inherited,
        })
    }
}
