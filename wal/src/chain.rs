//! The hash chain over a database's commit records.
//!
//! ```text
//! chain_0 = BLAKE3("tidelog" || database id)                        cut to 128 bits
//! chain_t = BLAKE3(chain_(t-1) || canonical bytes of record t)      cut to 128 bits
//! a fork starts from BLAKE3(child id || parent Position: term be32, txid be64, chain)
//! ```
//!
//! Two histories that differ anywhere have different chains from there on, so that equal Positions mean
//! equal histories.

use crate::ids::{Chain, DatabaseId, Position};

/// The chain of the empty state of a new database.
pub fn genesis(database: DatabaseId) -> Chain {
    ChainHasher::start(|hasher| {
        hasher.update(b"tidelog");
        hasher.update(database.as_bytes());
    })
    .finish()
}

/// The chain a fork starts from.
pub fn fork(child: DatabaseId, parent: &Position) -> Chain {
    ChainHasher::start(|hasher| {
        hasher.update(child.as_bytes());
        hasher.update(&parent.term.get().to_be_bytes());
        hasher.update(&parent.txid.get().to_be_bytes());
        hasher.update(parent.chain.as_bytes());
    })
    .finish()
}

/// The chain after a commit whose canonical record is `record`.
pub fn step(before: Chain, record: &[u8]) -> Chain {
    let mut hasher = ChainHasher::after(before);
    hasher.update(record);
    hasher.finish()
}

/// Hashes a record that does not stand in one piece.
#[derive(Debug)]
pub struct ChainHasher(blake3::Hasher);

impl ChainHasher {
    fn start(write: impl FnOnce(&mut blake3::Hasher)) -> Self {
        let mut hasher = blake3::Hasher::new();
        write(&mut hasher);
        Self(hasher)
    }

    /// Begins the record that follows the chain `before`.
    pub fn after(before: Chain) -> Self {
        Self::start(|hasher| {
            hasher.update(before.as_bytes());
        })
    }

    /// Adds the record's next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The chain after the record.
    pub fn finish(self) -> Chain {
        let mut bytes = [0; 16];
        self.0.finalize_xof().fill(&mut bytes);
        Chain::from_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Term, TxId};

    #[test]
    fn chain_depends_on_database_order_and_content() {
        let a = genesis(DatabaseId::from_bytes([1; 16]));
        let b = genesis(DatabaseId::from_bytes([2; 16]));
        assert_ne!(a, b);
        assert_ne!(step(step(a, b"x"), b"y"), step(step(a, b"y"), b"x"));
        assert_ne!(step(a, b"x"), a);
    }

    #[test]
    fn pieces_hash_as_the_whole() {
        let a = genesis(DatabaseId::from_bytes([1; 16]));
        let mut hasher = ChainHasher::after(a);
        hasher.update(b"one");
        hasher.update(b"two");
        assert_eq!(hasher.finish(), step(a, b"onetwo"));
    }

    #[test]
    fn a_fork_differs_from_its_parent_and_its_siblings() {
        let parent = Position {
            term: Term::FIRST,
            txid: TxId::FIRST,
            chain: Chain::default(),
        };
        let a = fork(DatabaseId::from_bytes([1; 16]), &parent);
        assert_ne!(a, fork(DatabaseId::from_bytes([2; 16]), &parent));
        let later = Position {
            txid: TxId::new(2),
            ..parent
        };
        assert_ne!(a, fork(DatabaseId::from_bytes([1; 16]), &later));
    }
}
