//! Statements that are known to write, by their text, so that they are not tried on a reader first each time.
//!
//! It is a hint: whether a statement writes is SQLite's to say, and a text that is taken for a write by mistake runs
//! on the writer with the same result.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Texts that are remembered at most; beyond, all are forgotten and found again.
const TEXTS_MAX: usize = 1024;

/// The hashes of texts that were found to write.
#[derive(Debug, Default)]
pub(crate) struct WriteTexts {
    hasher: RandomState,
    known: Mutex<HashSet<u64>>,
}

impl WriteTexts {
    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a statement of this text was found to write.
    pub(crate) fn holds(&self, sql: &str) -> bool {
        let hash = self.hasher.hash_one(sql);
        self.lock().contains(&hash)
    }

    /// Notes that a statement of this text writes.
    pub(crate) fn note(&self, sql: &str) {
        let hash = self.hasher.hash_one(sql);
        let mut known = self.lock();
        if known.len() >= TEXTS_MAX {
            known.clear();
        }
        known.insert(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_known_once_noted_and_bounded() {
        let texts = WriteTexts::default();
        assert!(!texts.holds("insert"));
        texts.note("insert");
        assert!(texts.holds("insert") && !texts.holds("select"));
        for number in 0..3 * TEXTS_MAX {
            texts.note(&number.to_string());
            assert!(texts.lock().len() <= TEXTS_MAX);
        }
    }
}
