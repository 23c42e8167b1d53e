//! Terms as a starting node meets them: it claims the next, closes its own earlier ones and those it takes
//! over, and refuses to go on beside another node's open one.

use std::collections::{BTreeSet, HashMap};

use tidelog_archive::ErrorKind;
use tidelog_archive::root::Root;
use tidelog_archive::term::{End, TermError, Terms};
use tidelog_wal::{NodeId, Term};

use super::identity::Identity;
use crate::error::{Code, Error};
use crate::settings::TakeOver;

/// Turns a failure of the protocol into the engine's.
pub(crate) fn term_error(what: &str, error: TermError) -> Error {
    let code = match error.kind() {
        ErrorKind::Fenced => Code::WriterFenced,
        ErrorKind::Corrupt => Code::ObjectCorrupt,
        ErrorKind::KeyUnavailable => Code::KeyUnavailable,
        ErrorKind::OutcomeUnknown => Code::OutcomeUnknown,
        ErrorKind::Unavailable => Code::StorageUnavailable,
        _ => Code::Internal,
    };
    Error::new(code, format!("{what}: {error}")).caused_by(error)
}

fn held(node: NodeId, term: Term) -> Error {
    Error::new(
        Code::Refused,
        format!(
            "node {node} holds the open term {}: if it is dead, start again with \
             --take-over {node} (or all); if it runs, this would shut it out",
            term.get()
        ),
    )
}

/// Refuses a visitor, before it claims a term, while a node that it does not take over holds an open one.
pub(crate) async fn refuse_beside_open(
    terms: &Terms,
    take_over: TakeOver,
    root: &Root,
) -> Result<(), Error> {
    for known in &root.nodes {
        let taken = match take_over {
            TakeOver::None => false,
            TakeOver::Node(wanted) => wanted == known.node,
            TakeOver::All => true,
        };
        let end = terms.end(known.last_term).await;
        let end = end.map_err(|e| term_error("look at the last terms", e))?;
        if !taken && matches!(end, End::Open(_)) {
            return Err(held(known.node, known.last_term));
        }
    }
    Ok(())
}

/// What closing found.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    /// The closed terms that this life has inherited, with the number of their fences.
    pub(crate) inherited: HashMap<Term, u64>,
    /// Terms of this folder that were closed by a life it does not know: what it holds beyond the store
    /// is not history any more.
    pub(crate) foreign: Vec<Term>,
}

/// Closes what must not write beside term `own`.
pub(crate) async fn close_earlier(
    terms: &Terms,
    identity: &Identity,
    take_over: TakeOver,
    root: &Root,
    own: Term,
) -> Result<Closed, Error> {
    let failed = |e| term_error("close earlier terms", e);
    let mut last: HashMap<NodeId, Term> = root
        .nodes
        .iter()
        .map(|node| (node.node, node.last_term))
        .collect();
    // Claims that the root does not know of yet.
    for claim in terms.claims(root.highest_term, own).await.map_err(failed)? {
        if claim.term < own {
            let known = last.entry(claim.node).or_insert(claim.term);
            *known = (*known).max(claim.term);
        }
    }
    let mut targets: BTreeSet<Term> = identity
        .terms
        .iter()
        .copied()
        .filter(|term| *term < own)
        .collect();
    for (node, term) in last {
        let taken = match take_over {
            TakeOver::None => false,
            TakeOver::Node(wanted) => wanted == node,
            TakeOver::All => true,
        };
        if node == identity.node || taken {
            targets.insert(term);
            continue;
        }
        match terms.end(term).await.map_err(failed)? {
            End::Open(_) => return Err(held(node, term)),
            // Released by its own life, which inherited it and is gone: the next one settles its tail.
            End::Closed(fence) if fence.by_term == term => {
                targets.insert(term);
            }
            End::Closed(_) => {}
        }
    }
    let targets: Vec<Term> = targets.into_iter().collect();
    let mut closed = Closed::default();
    for closure in terms.close_all(own, &targets).await.map_err(failed)? {
        let (term, by) = (closure.fence.term, closure.fence.by_term);
        if identity.terms.contains(&term) && !identity.terms.contains(&by) {
            closed.foreign.push(term);
        }
    }
    let state = terms.state(own).await.map_err(failed)?;
    for inherited in state.inherited {
        let fence = inherited
            .fence
            .ok_or_else(|| Error::internal("an inherited term is open"))?;
        closed.inherited.insert(inherited.term, fence.get());
    }
    Ok(closed)
}
