//! How many event streams a principal holds at once: each costs a connection and a task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tidelog_engine::system::tokens::Principal;

use super::caller::{Caller, caller};
use crate::problem::{Code, Problem};

/// The streams that are open, by principal.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: Arc<Mutex<HashMap<Caller, usize>>>,
}

/// A place among a principal's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    open: Arc<Mutex<HashMap<Caller, usize>>>,
    owner: Caller,
}

impl Streams {
    /// Takes a place for one more stream of a principal, who may hold `max`.
    pub(crate) fn enter(&self, principal: &Principal, max: usize) -> Result<StreamPlace, Problem> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = caller(&principal.token);
        let count = open.entry(owner).or_default();
        if *count >= max {
            if *count == 0 {
                open.remove(&owner);
            }
            let detail = format!("a principal holds at most {max} event streams at once");
            return Err(Problem::new(Code::Overloaded, detail).with("limit", max));
        }
        *count += 1;
        let open = Arc::clone(&self.open);
        Ok(StreamPlace { open, owner })
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tidelog_engine::Role;

    use super::*;
    use crate::http::auth::tests::principal;

    #[test]
    fn streams_are_bounded_by_principal_and_given_back() {
        let streams = Streams::default();
        let token = |id: u8, member: Option<&str>| {
            let mut one = principal(Role::Viewer);
            one.token.id = [id; 16];
            one.token.principal = member.map(str::to_owned);
            one
        };
        let held: Vec<_> = (0..3)
            .map(|_| streams.enter(&token(1, None), 3).expect("a place"))
            .collect();
        assert!(streams.enter(&token(1, None), 3).is_err());
        assert!(streams.enter(&token(2, None), 3).is_ok());
        // A member with many tokens is one principal.
        let ana: Vec<_> = (3..6)
            .map(|id| streams.enter(&token(id, Some("ana")), 3).expect("a place"))
            .collect();
        assert!(streams.enter(&token(6, Some("ana")), 3).is_err());
        drop((held, ana));
        assert!(streams.enter(&token(1, None), 3).is_ok());
        assert!(streams.enter(&token(1, None), 0).is_err());
        assert!(streams.open.lock().expect("no panic").is_empty());
    }
}
