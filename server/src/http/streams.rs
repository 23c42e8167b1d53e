//! How many event streams a principal holds at once: each costs a connection and a task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::problem::{Code, Problem};

/// Streams of one token at once.
const STREAMS_MAX: usize = 8;

/// The streams that are open, by token.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: Arc<Mutex<HashMap<[u8; 16], usize>>>,
}

/// A place among a token's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    open: Arc<Mutex<HashMap<[u8; 16], usize>>>,
    token: [u8; 16],
}

impl Streams {
    /// Takes a place for one more stream of a token.
    pub(crate) fn enter(&self, token: [u8; 16]) -> Result<StreamPlace, Problem> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(token).or_default();
        if *count >= STREAMS_MAX {
            let detail = format!("a token holds at most {STREAMS_MAX} event streams at once");
            return Err(Problem::new(Code::Overloaded, detail).with("limit", STREAMS_MAX));
        }
        *count += 1;
        let open = Arc::clone(&self.open);
        Ok(StreamPlace { open, token })
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_a_token_and_given_back() {
        let streams = Streams::default();
        let held: Vec<_> = (0..STREAMS_MAX)
            .map(|_| streams.enter([1; 16]).expect("a place"))
            .collect();
        assert!(streams.enter([1; 16]).is_err());
        assert!(streams.enter([2; 16]).is_ok());
        drop(held);
        assert!(streams.enter([1; 16]).is_ok());
    }
}
