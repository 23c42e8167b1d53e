//! Terms as a starting node meets them: claims the next, closes its own earlier ones and those it takes over.

use std::collections::HashMap;

use tidelog_archive::ErrorKind;
use tidelog_archive::envelope::{ObjectKind, WriteId};
use tidelog_archive::journal::{Claim, Fence, slot_kind};
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::root::Root;
use tidelog_archive::store::Store;
use tidelog_wal::Term;

use super::identity::Identity;
use super::start::store_error;
use crate::core::Parts;
use crate::error::{Code, Error};
use crate::settings::TakeOver;

fn corrupt(key: &Key, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Code::ObjectCorrupt, format!("{key} is damaged")).caused_by(error)
}

/// Claims the first free term above `hint`.
pub(crate) async fn claim(
    store: &Store,
    parts: &Parts,
    identity: &Identity,
    hint: Term,
) -> Result<Term, Error> {
    let mut term = hint;
    loop {
        term = term
            .next()
            .ok_or_else(|| Error::internal("no term is left in this bucket"))?;
        let claim = Claim {
            term,
            previous: identity.last_term,
            node: identity.node,
            cluster: identity.cluster,
            wall: parts.clock.wall(),
        };
        let bytes = claim
            .encode(WriteId(parts.entropy.bytes16()))
            .map_err(|e| Error::internal("encode a claim").caused_by(e))?
            .bytes;
        match store.create(&Key::Claim(term).to_string(), bytes).await {
            Ok(_) => return Ok(term),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(store_error("claim a term", error)),
        }
    }
}

/// Closes the open terms before `term` that are this node's or are taken over; refuses to go on while another
/// node's is open. Answers the fence of every closed term.
pub(crate) async fn close_earlier(
    store: &Store,
    parts: &Parts,
    identity: &Identity,
    take_over: TakeOver,
    _root: &Root,
    term: Term,
) -> Result<HashMap<Term, u64>, Error> {
    let mut closed = HashMap::new();
    let mut earlier = Term::FIRST;
    while earlier < term {
        let key = Key::Claim(earlier);
        let claim = match store.get(&key.to_string()).await {
            Ok(bytes) => Claim::decode(&bytes, earlier).map_err(|e| corrupt(&key, e))?,
            Err(error) => return Err(store_error("read a claim", error)),
        };
        let ours = claim.node == identity.node;
        let taken = match take_over {
            TakeOver::None => false,
            TakeOver::Node(node) => node == claim.node,
            TakeOver::All => true,
        };
        let seq = walk(store, earlier).await?;
        let fence = match seq {
            End::Fence(seq) => seq,
            End::Missing(seq) if ours || taken => {
                fence(store, parts, identity, earlier, seq, term).await?
            }
            End::Missing(_) => {
                let what = format!(
                    "node {} has an open term {}: if it is dead, start with --take-over {}",
                    claim.node,
                    earlier.get(),
                    claim.node
                );
                return Err(Error::new(Code::Refused, what));
            }
        };
        closed.insert(earlier, fence);
        earlier = earlier.next().ok_or_else(|| Error::internal("terms end"))?;
    }
    Ok(closed)
}

enum End {
    Fence(u64),
    Missing(u64),
}

async fn walk(store: &Store, term: Term) -> Result<End, Error> {
    let mut seq = Seq::FIRST;
    loop {
        let key = Key::Journal(term, seq);
        match store.get_range(&key.to_string(), 0..96).await {
            Ok(head) => match slot_kind(&head).map_err(|e| corrupt(&key, e))? {
                ObjectKind::Fence => return Ok(End::Fence(seq.get())),
                _ => seq = seq.next(),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(End::Missing(seq.get()));
            }
            Err(error) => return Err(store_error("walk a journal", error)),
        }
    }
}

async fn fence(
    store: &Store,
    parts: &Parts,
    identity: &Identity,
    closed: Term,
    from: u64,
    by: Term,
) -> Result<u64, Error> {
    let mut seq = Seq::new(from);
    loop {
        let fence = Fence {
            term: closed,
            seq,
            by_term: by,
            by_node: identity.node,
            wall: parts.clock.wall(),
        };
        let bytes = fence
            .encode(WriteId(parts.entropy.bytes16()))
            .map_err(|e| Error::internal("encode a fence").caused_by(e))?
            .bytes;
        match store
            .create(&Key::Journal(closed, seq).to_string(), bytes)
            .await
        {
            Ok(_) => return Ok(seq.get()),
            Err(error) if error.kind() == ErrorKind::Conflict => seq = seq.next(),
            Err(error) => return Err(store_error("close a term", error)),
        }
    }
}

/// Notes the claim in the root, where it is a hint.
pub(crate) async fn note_in_root(
    store: &Store,
    parts: &Parts,
    identity: &Identity,
    term: Term,
) -> Result<(), Error> {
    let key = Key::Root.to_string();
    loop {
        let (bytes, version) = store
            .get_versioned(&key)
            .await
            .map_err(|e| store_error("read the root", e))?;
        let (mut root, _) = Root::decode(&bytes).map_err(|e| corrupt(&Key::Root, e))?;
        root.note_claim(identity.node, term);
        let encoded = root
            .encode(WriteId(parts.entropy.bytes16()))
            .map_err(|e| Error::internal("encode the root").caused_by(e))?;
        match store.replace(&key, encoded.bytes, &version).await {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(store_error("note the claim in the root", error)),
        }
    }
}
