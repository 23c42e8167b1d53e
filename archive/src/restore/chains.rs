//! Hashing the chain of segments ahead of the thread that compares and applies, on a thread of its own: hashing takes
//! about as long as applying does.
//!
//! What is found here is only computed. That it is the chain which plan and segment name is proven where records are
//! applied.

use tidelog_wal::Chain;
use tokio::sync::mpsc;

use super::error::RestoreError;
use super::fetch::Unit;
use crate::plan::Plan;
use crate::records::{ChainList, KnownChains, RecordScanner};

/// Opened units that wait for the next thread, each of at most 4 MiB raw.
pub(super) const UNITS_AHEAD: usize = 1;

/// What a thread is told.
pub(super) enum Message<T> {
    Unit(T),
    /// Everything of the plan was sent.
    Complete,
}

/// A unit and, if it is part of a segment, the chain after each record that ends in it.
pub(super) struct Hashed {
    pub(super) unit: Unit,
    pub(super) chains: KnownChains,
}

/// Hands on what comes from `opened`, until everything of `plan` came.
pub(super) fn hash_ahead(
    plan: &Plan,
    mut opened: mpsc::Receiver<Message<Unit>>,
    hashed: &mpsc::Sender<Message<Hashed>>,
) -> Result<(), RestoreError> {
    let send = |message| {
        let sent = hashed.blocking_send(message);
        sent.map_err(|_| RestoreError::Stopped)
    };
    let mut scanner = None;
    loop {
        match opened.blocking_recv() {
            Some(Message::Unit(unit)) => {
                let chains = chains_of(plan, &mut scanner, &unit)?.into_iter();
                send(Message::Unit(Hashed { unit, chains }))?;
            }
            Some(Message::Complete) => return send(Message::Complete),
            None => return Err(RestoreError::Stopped),
        }
    }
}

/// The chain after each record that ends in `unit`. Units of one span come in order; `scanner` stands where the last
/// one ended.
fn chains_of(
    plan: &Plan,
    scanner: &mut Option<RecordScanner>,
    unit: &Unit,
) -> Result<Vec<Chain>, RestoreError> {
    let Unit::Segment(segment, blocks, raws, step) = unit else {
        return Ok(Vec::new());
    };
    let span = &segment.1;
    if blocks.start == span.blocks.start {
        *scanner = Some(RecordScanner::new(plan.page_size, span.walk));
    }
    let (Some(scanner), Some(step)) = (scanner, plan.steps.get(*step)) else {
        return Err(RestoreError::Stopped);
    };
    let mut chains = ChainList::default();
    for (block, raw) in blocks.clone().zip(raws) {
        let fed = scanner.feed(span.piece(block, raw), &mut chains);
        let key = step.piece.source.key();
        fed.map_err(|error| RestoreError::Format(error).in_object(key))?;
    }
    Ok(chains.0)
}
