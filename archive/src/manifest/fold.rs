//! Folding: moves the oldest entries out of the root into immutable index objects.
//!
//! Entries move in runs of 128; 32 index objects of one level move into one of the next. So 200,000
//! segments need a root of about 200 entries, and a look-up at most two more GETs. Entries are moved, never
//! rewritten: an index object is uploaded once.

use bytes::Bytes;

use super::MANIFEST_LEN_MAX;
use super::entry::ImageEntry;
use super::model::Manifest;
use crate::envelope::FormatError;
use crate::index::IndexObject;
use crate::key::{Key, KeyNonce};
use crate::records::Run;
use crate::seal::Stamp;

/// The most segments a root lists.
pub const SEGMENTS_MAX: usize = 256;
/// How many segments move at once.
const SEGMENTS_FOLD: usize = 128;
/// The most index objects of one level a root lists, and how many move at once.
const INDEX_MAX: usize = 48;
const INDEX_FOLD: usize = 32;
/// From this size on entries move even if they are few: room for what one settle adds.
const LEN_SOFT_MAX: usize = MANIFEST_LEN_MAX - (4 << 10);

/// An index object to be stored before the manifest that names it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewIndexObject {
    /// Its key.
    pub key: Key,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Manifest {
    /// Moves the oldest entries into index objects until the root is small enough, and hands those out.
    /// Does nothing most of the time. `nonce` and `stamp` make the objects unique.
    pub fn fold(
        &mut self,
        mut nonce: impl FnMut() -> KeyNonce,
        mut stamp: impl FnMut() -> Stamp,
    ) -> Result<Vec<NewIndexObject>, FormatError> {
        let mut made = Vec::new();
        while self.segments.len() > SEGMENTS_MAX
            || self.segments.len() > 1 && self.encoded_len() > LEN_SOFT_MAX
        {
            let count = SEGMENTS_FOLD.min(self.segments.len() / 2);
            let object = self.take_oldest(count);
            made.push(self.place(&object, 0, nonce(), stamp())?);
        }
        for level in 0..crate::index::LEVEL_MAX {
            let of_level = |m: &Self| m.index.iter().filter(|e| e.level == level).count();
            while of_level(self) > INDEX_MAX {
                let object = self.take_index(level);
                made.push(self.place(&object, level + 1, nonce(), stamp())?);
            }
        }
        Ok(made)
    }

    /// Takes the `count` oldest segments and the images that lie in them, but for the newest image.
    fn take_oldest(&mut self, count: usize) -> IndexObject {
        let segments: Vec<_> = self.segments.drain(..count).collect();
        let last = segments.last().map(|entry| entry.run.last);
        let old = |image: &&ImageEntry| last.is_some_and(|last| image.position.txid <= last);
        let images = self.images.iter().filter(old).count();
        let images = images.min(self.images.len().saturating_sub(1));
        IndexObject {
            segments,
            images: self.images.drain(..images).collect(),
            children: Vec::new(),
        }
    }

    /// Takes the oldest index objects of `level`.
    fn take_index(&mut self, level: u8) -> IndexObject {
        let start = self.index.partition_point(|entry| entry.level > level);
        let end = (start + INDEX_FOLD).min(self.index.len());
        IndexObject {
            segments: Vec::new(),
            images: Vec::new(),
            children: self.index.drain(start..end).collect(),
        }
    }

    /// Lists a new index object at its place and encodes it.
    fn place(
        &mut self,
        object: &IndexObject,
        level: u8,
        nonce: KeyNonce,
        stamp: Stamp,
    ) -> Result<NewIndexObject, FormatError> {
        let run = object.run().ok_or(FormatError::Unwritable {
            what: "an index object without entries",
        })?;
        let finished = object.encode(self.namespace, self.database, level, stamp)?;
        let entry = object.entry(run, level, nonce, &finished);
        let at = self.index.partition_point(|e| e.run.last < run.first);
        self.index.insert(at, entry);
        Ok(NewIndexObject {
            key: entry.key(self.namespace, self.database),
            bytes: finished.bytes,
        })
    }
}

/// The run from the first of `runs` to the last.
pub(crate) fn spanning<'a>(runs: impl Iterator<Item = &'a Run>) -> Option<Run> {
    let mut runs = runs;
    let first = *runs.next()?;
    let last = runs.last().copied().unwrap_or(first);
    Some(Run {
        last: last.last,
        last_term: last.last_term,
        last_time: last.last_time,
        chain_after: last.chain_after,
        digest_after: last.digest_after,
        n_after: last.n_after,
        ..first
    })
}
