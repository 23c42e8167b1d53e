//! What a scrub makes of an error, and the records it counts.

use std::error::Error;

use tidelog_wal::delta::PageDelta;
use tidelog_wal::{DecodeError, Position};

use super::Finding;
use crate::envelope::{CorruptObject, FormatError};
use crate::plan::ReadError;
use crate::records::{RecordHead, RecordVisitor};

/// Where in its object an error stands, if it says so.
fn offset_of(error: &FormatError) -> Option<u64> {
    match error {
        FormatError::Decode(
            DecodeError::Short { offset, .. }
            | DecodeError::Magic { offset, .. }
            | DecodeError::Invalid { offset, .. }
            | DecodeError::TooLarge { offset, .. }
            | DecodeError::Checksum { offset, .. }
            | DecodeError::Trailing { offset, .. },
        ) => Some(*offset as u64),
        FormatError::Chain { offset, .. } | FormatError::Unauthentic { offset, .. } => {
            Some(*offset)
        }
        FormatError::Decode(DecodeError::Version { .. })
        | FormatError::Cipher { .. }
        | FormatError::KeyUnavailable { .. }
        | FormatError::NotSealed
        | FormatError::Foreign { .. }
        | FormatError::Unwritable { .. } => None,
    }
}

impl From<CorruptObject> for Finding {
    fn from(corrupt: CorruptObject) -> Self {
        Self {
            offset: offset_of(&corrupt.error),
            what: corrupt.error.to_string(),
            kind: corrupt.kind(),
            key: corrupt.key,
        }
    }
}

impl From<ReadError> for Finding {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Corrupt(corrupt) => corrupt.into(),
            ReadError::Key { key, source } => Self {
                key,
                offset: None,
                what: chain_of(&source),
                kind: source.kind(),
            },
            ReadError::Store { key, source } => Self {
                key,
                offset: None,
                what: chain_of(&source),
                kind: source.kind(),
            },
        }
    }
}

/// An error with its causes.
pub(super) fn chain_of(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Counts records; pages are proven by being decoded.
#[derive(Debug, Default)]
pub(super) struct Counter {
    pub(super) records: u64,
}

impl RecordVisitor for Counter {
    type Error = FormatError;

    fn begin(&mut self, _head: &RecordHead) -> Result<(), FormatError> {
        Ok(())
    }

    fn page(&mut self, _page: &PageDelta<'_>) -> Result<(), FormatError> {
        Ok(())
    }

    fn end(&mut self, _position: &Position) -> Result<(), FormatError> {
        self.records += 1;
        Ok(())
    }
}
