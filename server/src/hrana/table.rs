//! The streams that clients hold.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidelog_engine::streams::{Stream, StreamId};

use super::baton::{Key, Owner};
use crate::problem::{Code, Problem};

/// The most texts a stream may store.
const TEXTS_MAX: usize = 50;
/// The most bytes of a stored text.
const TEXT_BYTES_MAX: usize = 5_000;
/// Streams remembered before those that have ended are forgotten.
const SWEEP_AT: usize = 1024;

/// The SQL texts that a client stored on a stream.
#[derive(Debug, Default)]
pub(crate) struct Texts(HashMap<i32, String>);

/// Why a text was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotStored {
    TooMany,
    TooLarge,
}

impl Texts {
    /// Stores a text, in place of one of the same id.
    pub(crate) fn store(&mut self, id: i32, sql: String) -> Result<(), NotStored> {
        if sql.len() > TEXT_BYTES_MAX {
            return Err(NotStored::TooLarge);
        }
        if self.0.len() >= TEXTS_MAX && !self.0.contains_key(&id) {
            return Err(NotStored::TooMany);
        }
        self.0.insert(id, sql);
        Ok(())
    }

    pub(crate) fn close(&mut self, id: i32) {
        self.0.remove(&id);
    }

    pub(crate) fn get(&self, id: i32) -> Option<&str> {
        self.0.get(&id).map(String::as_str)
    }
}

/// A stream while a request has it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) stream: Stream,
    pub(crate) texts: Texts,
    sequence: u64,
}

#[derive(Debug)]
struct Entry {
    stream: Stream,
    /// `None` while a request has them.
    texts: Option<Texts>,
    sequence: u64,
}

/// All of them, and the key of their batons.
pub(crate) struct Table {
    key: Key,
    streams: Mutex<HashMap<StreamId, Entry>>,
}

impl fmt::Debug for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Table").finish_non_exhaustive()
    }
}

impl Table {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self {
            key: Key::new(key),
            streams: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamId, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new stream in, held by the request that opened it.
    pub(crate) fn add(&self, stream: Stream) -> Held {
        let mut streams = self.lock();
        if streams.len() >= SWEEP_AT {
            streams.retain(|_, entry| entry.stream.check().is_ok());
        }
        let entry = Entry {
            stream: stream.clone(),
            texts: None,
            sequence: 0,
        };
        streams.insert(stream.id(), entry);
        Held {
            stream,
            texts: Texts::default(),
            sequence: 0,
        }
    }

    /// The stream of a baton, held by the request that sent it; the baton is used up.
    pub(crate) fn take(&self, baton: &str, owner: &Owner) -> Result<Held, Problem> {
        let refused = |detail: &str| Problem::new(Code::BatonInvalid, detail);
        let (id, sequence) = self
            .key
            .open(baton, owner)
            .ok_or_else(|| refused("this is not a baton of this database and this token"))?;
        let mut streams = self.lock();
        let gone = || Problem::new(Code::StreamExpired, "the stream has ended; open a new one");
        let entry = streams.get_mut(&id).ok_or_else(gone)?;
        if entry.stream.check().is_err() {
            streams.remove(&id);
            return Err(gone());
        }
        if entry.sequence != sequence {
            return Err(refused("the baton was used already"));
        }
        let texts = entry
            .texts
            .take()
            .ok_or_else(|| refused("another request runs on the stream"))?;
        entry.sequence += 1;
        Ok(Held {
            stream: entry.stream.clone(),
            texts,
            sequence: entry.sequence,
        })
    }

    /// The baton of the next request on a stream.
    pub(crate) fn baton(&self, held: &Held, owner: &Owner) -> String {
        self.key.seal(held.stream.id(), held.sequence, owner)
    }

    /// Gives a stream back, for its next request.
    pub(crate) fn keep(&self, held: Held) {
        if let Some(entry) = self.lock().get_mut(&held.stream.id()) {
            entry.texts = Some(held.texts);
        }
    }

    /// Forgets a stream that has ended.
    pub(crate) fn forget(&self, id: StreamId) {
        self.lock().remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_texts_are_bounded_and_replaced() {
        let mut texts = Texts::default();
        for id in 0..50 {
            texts.store(id, format!("select {id}")).expect("room");
        }
        assert_eq!(texts.store(50, String::new()), Err(NotStored::TooMany));
        texts.store(7, "other".to_owned()).expect("replaced");
        assert_eq!(texts.get(7), Some("other"));
        texts.close(7);
        texts.close(7);
        assert_eq!(texts.get(7), None);
        assert_eq!(texts.store(7, "x".repeat(5_001)), Err(NotStored::TooLarge));
        assert_eq!(texts.store(7, "x".repeat(5_000)), Ok(()));
    }
}
