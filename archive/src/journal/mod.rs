//! The journal of a term: its claim, its journal objects, the fence that closes it, its state.
//!
//! # Journal object
//!
//! One sealed chunk of a process life: the commit records of all its databases in one store, grouped into
//! *sections*, one a database. Body: the blocks of section after section, each section a record stream
//! ([`crate::records`]) cut alone, so that one ranged GET fetches it. Index:
//!
//! | field | form |
//! | --- | --- |
//! | term | varint, at most 32 bits |
//! | seq | varint, >= 1 |
//! | first, last local record number | varint, varint (last - first) |
//! | sections | varint count, then section* |
//!
//! | section field | form |
//! | --- | --- |
//! | namespace, database | 16, 16 |
//! | page size | u8, binary logarithm |
//! | digest seed | u64 |
//! | key id | 16, zero when plain |
//! | run of records | first, last, terms, times, chains, digest, page counts ([`crate::records::Run`]) |
//! | blocks | block table ([`crate::envelope::BlockTable`]) |
//!
//! Records keep the term they were committed under when a later life sends them again, so a section's terms
//! may differ from the journal's.
//!
//! # Claim, fence, term state: see [`Claim`], [`Fence`], [`TermState`].
//!
//! A key `journal/{term}/{seq}` holds a journal object or the fence: [`slot_kind`] tells them apart.

mod builder;
mod claim;
mod fence;
mod object;
mod section;
mod state;

use tidelog_wal::Term;

pub use builder::JournalObjectBuilder;
pub use claim::Claim;
pub use fence::Fence;
pub use object::{JournalObject, SectionRecords};
pub use section::{Section, SectionMeta};
pub use state::{Inherited, TermState};

use crate::envelope::{FormatError, Header, ObjectKind};
use crate::key::Seq;

/// The most sections of a journal object.
pub const SECTIONS_MAX: usize = 1 << 20;

/// What stands in a journal slot: [`ObjectKind::Journal`] or [`ObjectKind::Fence`], or a claim at number 0.
pub fn slot_kind(bytes: &[u8]) -> Result<ObjectKind, FormatError> {
    match Header::decode(bytes)?.kind {
        kind @ (ObjectKind::Journal | ObjectKind::Fence | ObjectKind::Claim) => Ok(kind),
        kind => Err(FormatError::Foreign {
            what: "object kind",
            found: format!("{kind:?}"),
            expected: "Journal, Fence or Claim".into(),
        }),
    }
}

/// Refuses an object of another place in the journal.
fn check_place(found: (Term, Seq), expected: (Term, Seq)) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Foreign {
        what: "place in the journal",
        found: format!("{}/{}", found.0, found.1),
        expected: format!("{}/{}", expected.0, expected.1),
    })
}
