//! Claiming, closing and inheriting terms; shipping into and walking the journal of a term.
//!
//! A *term* is the number of one process life. Its journal is the run of objects `journal/{term}/1, 2, ...`
//! in a store. What this module guarantees, on any store that passes the probe, however requests fail or
//! arrive late:
//!
//! - **T1** One life holds a term. Terms are claimed without gaps, in order, and never again.
//! - **T2** A term's journal is what stands from `trimmed_below` up to its first missing number; once its fence
//!   stands there, that is its end for ever. What stands above a fence does not exist.
//! - **T3** A writer whose number is taken by a fence is told so ([`TermError::Fenced`]) and must never write again.
//! - **T4** Whoever closes a term has written down before that it inherits it, in the state of its own term, and
//!   has then seen that its own term was still open. So a chain of lives that close each other loses no tail.
//! - **T5** Nothing depends on a clock, a heartbeat, or on a listing being complete.
//!
//! Why it holds: claims, journal objects and fences are created if absent and never replaced, so each number
//! is decided once. A journal object is deleted only after the state's `trimmed_below` covers it, and
//! `trimmed_below` never exceeds a valid fence; so a fence that lands *below* `trimmed_below`, where an object
//! has been deleted, is recognised as **void** by whoever reads the state after it, and goes by.
//!
//! ```text
//! 1 2 3 4 5 6 7        trimmed_below = 4
//! . v . o o F g        v a void fence, o journal objects, F the fence, g an object in flight when F landed
//! ```
//!
//! A process ships at most [`IN_FLIGHT_MAX`] objects at once: that bounds how many can stand above a fence.
//!
//! | file | what it does |
//! | --- | --- |
//! | `claim` | the next free term |
//! | `state` | trimmed-below and inherited terms, by compare-and-swap |
//! | `end` | where a term ends, and whether it is closed |
//! | `close` | inherit, fence, take over what the closed term had inherited |
//! | `ship` | one journal object |
//! | `walk` | a term's objects in order |
//! | `root` | the root of the bucket |

mod claim;
mod close;
mod end;
mod error;
mod root;
mod ship;
mod state;
mod walk;

use std::sync::Arc;

use bytes::Bytes;
use tidelog_wal::{ClusterId, NodeId, Term};

use crate::env::{Clock, Entropy};
use crate::envelope::{Finished, FormatError, HEADER_LEN, ObjectKind, WriteId};
use crate::journal::{Claim, Fence, slot_kind};
use crate::key::{Key, Seq};
use crate::store::{Store, StoreError};

pub use close::Closure;
pub use end::End;
pub use error::TermError;
pub use ship::Shipped;
pub use walk::{JournalWalk, Step};

/// Most journal objects that a process ships at once: no more can stand above its fence but one.
pub const IN_FLIGHT_MAX: usize = 16;

/// Rounds of a loop that another writer can prolong, before it gives up as contended.
const ROUNDS_MAX: u32 = 1_000;

/// One node's hand on the terms of one store.
#[derive(Debug, Clone)]
pub struct Terms {
    store: Store,
    node: NodeId,
    cluster: ClusterId,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Terms {
    /// The terms in `store`, as `node` of `cluster` deals with them.
    pub fn new(
        store: Store,
        node: NodeId,
        cluster: ClusterId,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self {
            store,
            node,
            cluster,
            clock,
            entropy,
        }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn write_id(&self) -> WriteId {
        WriteId(self.entropy.bytes16())
    }

    /// The claim of `term`, if anybody has claimed it.
    pub async fn read_claim(&self, term: Term) -> Result<Option<Claim>, TermError> {
        let key = Key::Claim(term).to_string();
        match self.store.get(&key).await {
            Ok(bytes) => Ok(Some(
                Claim::decode(&bytes, term).map_err(|e| e.in_object(key))?,
            )),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(TermError::store("read the claim of a term", error)),
        }
    }

    /// What stands at number `seq` of `term`: [`ObjectKind::Journal`], [`ObjectKind::Fence`], or nothing.
    async fn slot(&self, term: Term, seq: Seq) -> Result<Option<ObjectKind>, TermError> {
        let key = Key::Journal(term, seq).to_string();
        match self.store.get_range(&key, 0..HEADER_LEN as u64).await {
            Ok(header) => Ok(Some(slot_kind(&header).map_err(|e| e.in_object(key))?)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(TermError::store("look at a journal", error)),
        }
    }

    /// The fence at number `seq` of `term`, which is known to be one.
    async fn fence_at(&self, term: Term, seq: Seq) -> Result<Fence, TermError> {
        let key = Key::Journal(term, seq).to_string();
        match self.store.get(&key).await {
            Ok(bytes) => decode_fence(&bytes, term, seq),
            // A fence is never deleted.
            Err(StoreError::NotFound { .. }) => Err(TermError::Missing { key }),
            Err(error) => Err(TermError::store("read a fence", error)),
        }
    }
}

fn decode_fence(bytes: &Bytes, term: Term, seq: Seq) -> Result<Fence, TermError> {
    let key = Key::Journal(term, seq).to_string();
    Ok(Fence::decode(bytes, term, seq).map_err(|error| error.in_object(key))?)
}

/// The bytes of an object of ours that its format can surely hold.
fn encoded(result: Result<Finished, FormatError>) -> Result<Bytes, TermError> {
    Ok(result.map_err(TermError::Unwritable)?.bytes)
}
