//! The unsettled tail: stored journal objects of closed terms whose records stand in no segment yet.
//!
//! A life settles what it inherits. Objects whose chunk is still in the folder are read from it; the others
//! are fetched. The sections also tell, for each database, how far the store is ahead of its manifest.

use std::collections::HashMap;

use tidelog_archive::key::{Key, Seq};
use tidelog_archive::term::Terms;
use tidelog_wal::Term;

use super::terms::term_error;
use crate::core::Core;
use crate::error::Error;
use crate::ship::{ShippedSection, sections_of_chunk};

/// The sections of every stored object of the closed terms, in order of (term, number).
pub(crate) async fn unsettled(
    core: &Core,
    terms: &Terms,
    closed: &HashMap<Term, u64>,
) -> Result<Vec<ShippedSection>, Error> {
    let mut order: Vec<(Term, u64)> = closed.iter().map(|(term, fence)| (*term, *fence)).collect();
    order.sort_unstable();
    let mut found = Vec::new();
    for (term, fence) in order {
        let state = terms
            .state(term)
            .await
            .map_err(|e| term_error("read the state of a term", e))?;
        for seq in state.trimmed_below.get()..fence {
            found.extend(sections(core, terms, term, seq).await?);
        }
    }
    Ok(found)
}

async fn sections(
    core: &Core,
    terms: &Terms,
    term: Term,
    seq: u64,
) -> Result<Vec<ShippedSection>, Error> {
    if let Some(path) = core.journal.chunk_file((term, seq)) {
        let io = |e| Error::io(format!("read {}", path.display()), e);
        let file = core.parts.disk.read(&path).map_err(io)?;
        return sections_of_chunk(&file, (term, seq));
    }
    let key = Key::Journal(term, Seq::new(seq)).to_string();
    let bytes = match terms.store().get(&key).await {
        Ok(bytes) => bytes,
        Err(error) => return Err(super::start::store_error("read a journal object", error)),
    };
    let object = crate::sealing::journal(terms.store(), &bytes, term, Seq::new(seq)).await?;
    Ok(object
        .sections
        .iter()
        .map(|section| ShippedSection {
            object: (term, seq),
            meta: section.meta,
            stored_bytes: section.range().end - section.range().start,
            part_bytes: 0,
            has_parts: false,
        })
        .collect())
}
