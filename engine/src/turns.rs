//! Turns of statements: while more than one tenant asks for something, no tenant's statements take all processors,
//! and those of every tenant that have run for longer than a moment share a part of them.
//!
//! The operating system shares processors between threads, and a tenant with eight scans has eight of them. A
//! statement cannot be put aside and gone on with later, but it waits where SQLite asks its progress handler. So:
//!
//! - of one tenant at most [`Turns::at_once`] statements run, short ones first;
//! - of all long ones together at most as many, each for [`TURN_US`], the tenant that was served longest ago first;
//! - a tenant that is alone waits for nothing.
//!
//! A turn is held while statements run and no longer: not for COMMIT, not for durability, not while a client is
//! waited for that reads its rows slowly. Whoever holds one waits for
//! nothing but the processor; so nobody waits for a turn longer than those in front of them run, and never beyond
//! their deadline.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidelog_archive::env::Clock;
use tidelog_wal::NamespaceId;

/// A request whose statements have run for less is short.
const SHORT_US: u64 = 10_000;
/// How long a turn of a long one lasts while others wait.
const TURN_US: u64 = 20_000;
/// Time between two looks at who else is there.
const LOOK_US: u64 = 1_000;
/// A tenant that asked for something within this time is there.
const RECENT_US: u64 = 200_000;
/// Longest wait before deadline and company are looked at again.
const WAIT: Duration = Duration::from_millis(5);

/// Whose turn it is.
#[derive(Debug)]
pub(crate) struct Turns {
    clock: Arc<dyn Clock>,
    at_once: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Long statements that run, of all tenants.
    long: usize,
    /// Counts turns of long statements: who was served longest ago has the smallest.
    turns: u64,
    /// Tenants whose statements run or wait.
    tenants: HashMap<NamespaceId, Standing>,
    /// The two tenants that asked last, the last one first.
    asked: [Option<(NamespaceId, u64)>; 2],
}

#[derive(Debug, Default)]
struct Standing {
    /// Requests that are under way.
    requests: usize,
    running: usize,
    short_waiting: usize,
    long_waiting: usize,
    served: u64,
}

impl State {
    /// Whether anybody but this tenant is there.
    fn is_shared(&self, tenant: NamespaceId, now: u64) -> bool {
        let there = |asked: &Option<(NamespaceId, u64)>| {
            asked.is_some_and(|(who, at)| who != tenant && now.saturating_sub(at) < RECENT_US)
        };
        self.asked.iter().any(there) || self.tenants.keys().any(|who| *who != tenant)
    }

    /// Whether a statement of the tenant may run now.
    fn may_run(&self, tenant: NamespaceId, is_long: bool, at_once: usize) -> bool {
        let Some(own) = self.tenants.get(&tenant) else {
            return true;
        };
        if own.running >= at_once {
            return false;
        }
        let mut others = self.tenants.iter().filter(|(who, _)| **who != tenant);
        !is_long
            || (own.short_waiting == 0
                && self.long < at_once
                && others.all(|(_, other)| other.long_waiting == 0 || other.served >= own.served))
    }
}

impl Turns {
    pub(crate) fn new(clock: Arc<dyn Clock>, at_once: usize) -> Self {
        Self {
            clock,
            at_once: at_once.max(1),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a tenant asks for something.
    pub(crate) fn asked(&self, tenant: NamespaceId) {
        let now = self.clock.monotonic_micros();
        let mut state = self.lock();
        let [last, before] = &mut state.asked;
        match last {
            Some((who, at)) if *who == tenant => *at = now,
            _ => {
                *before = *last;
                *last = Some((tenant, now));
            }
        }
    }

    /// The statements of one request of a tenant begin, once it is their turn or `until` is reached. Blocks.
    pub(crate) fn begin(self: &Arc<Self>, tenant: NamespaceId, until: u64) -> Pace {
        let now = self.clock.monotonic_micros();
        self.lock().tenants.entry(tenant).or_default().requests += 1;
        let mut pace = Pace {
            turns: Arc::clone(self),
            tenant,
            began: now,
            look_at: now.saturating_add(SHORT_US),
            turn: None,
        };
        // A deadline that has passed is the progress handler's to tell.
        let _ = pace.wait(false, false, now, until);
        pace.began = self.clock.monotonic_micros();
        pace.look_at = pace.began.saturating_add(LOOK_US);
        pace
    }

    /// A turn of a tenant, or `false` if it took too long. Whoever has just had one lets its siblings go first.
    fn take(&self, tenant: NamespaceId, is_long: bool, had_one: bool) -> bool {
        let waiting = |own: &mut Standing, one: bool| {
            let count = if is_long {
                &mut own.long_waiting
            } else {
                &mut own.short_waiting
            };
            *count = if one { *count + 1 } else { *count - 1 };
            *count
        };
        let mut state = self.lock();
        if had_one || !state.may_run(tenant, is_long, self.at_once) {
            let others = waiting(state.tenants.entry(tenant).or_default(), true) > 1;
            // Seen from behind those that wait already.
            if !had_one || others || !state.may_run(tenant, is_long, self.at_once) {
                let waited = self.changed.wait_timeout(state, WAIT);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            waiting(state.tenants.entry(tenant).or_default(), false);
            if !state.may_run(tenant, is_long, self.at_once) {
                return false;
            }
        }
        state.turns += u64::from(is_long);
        state.long += usize::from(is_long);
        let turns = state.turns;
        let own = state.tenants.entry(tenant).or_default();
        own.running += 1;
        if is_long {
            own.served = turns;
        }
        true
    }

    fn give_back(&self, tenant: NamespaceId, was_long: bool) {
        let mut state = self.lock();
        state.long -= usize::from(was_long);
        if let Some(own) = state.tenants.get_mut(&tenant) {
            own.running -= 1;
        }
        let somebody_waits = |one: &Standing| one.short_waiting + one.long_waiting > 0;
        if state.tenants.values().any(somebody_waits) {
            self.changed.notify_all();
        }
    }
}

/// A turn: since when, and whether it is one of a long statement.
#[derive(Debug, Clone, Copy)]
struct Turn {
    since: u64,
    is_long: bool,
}

/// The statements of one request, as they run.
#[derive(Debug)]
pub(crate) struct Pace {
    turns: Arc<Turns>,
    tenant: NamespaceId,
    began: u64,
    /// When to look next.
    look_at: u64,
    turn: Option<Turn>,
}

impl Pace {
    /// Waits for a turn where one is due. `true` once `until` is reached: the statement is to end. Blocks.
    pub(crate) fn step(&mut self, now: u64, until: u64) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now.saturating_add(LOOK_US);
        let is_long = now.saturating_sub(self.began) >= SHORT_US;
        let mut had_one = false;
        match self.turn {
            Some(turn) if turn.is_long == is_long => {
                if !is_long || now.saturating_sub(turn.since) < TURN_US {
                    return false;
                }
                self.end_turn();
                had_one = true;
            }
            Some(_) => self.end_turn(),
            None => {}
        }
        self.wait(is_long, had_one, now, until)
    }

    /// The statement waits for something else than the processor: its turn is over.
    pub(crate) fn rest(&mut self) {
        self.end_turn();
    }

    /// It goes on after so many microseconds, which do not make it a long one. Its next step waits for a turn where
    /// one is due.
    pub(crate) fn go_on(&mut self, rested: u64) {
        self.began = self.began.saturating_add(rested);
        self.look_at = 0;
    }

    fn wait(&mut self, is_long: bool, mut had_one: bool, mut now: u64, until: u64) -> bool {
        while self.turns.lock().is_shared(self.tenant, now) {
            let taken = self.turns.take(self.tenant, is_long, had_one);
            had_one = false;
            now = self.turns.clock.monotonic_micros();
            if taken {
                let since = now;
                self.turn = Some(Turn { since, is_long });
                return false;
            }
            if now >= until {
                return true;
            }
        }
        false
    }

    fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.turns.give_back(self.tenant, turn.is_long);
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.end_turn();
        let mut state = self.turns.lock();
        if let Some(own) = state.tenants.get_mut(&self.tenant) {
            own.requests -= 1;
            if own.requests == 0 {
                state.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tidelog_wal::Timestamp;

    use super::*;

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn wall(&self) -> Timestamp {
            Timestamp::from_micros(self.monotonic_micros())
        }
        fn monotonic_micros(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Hand {
        fn set(&self, micros: u64) -> u64 {
            self.0.store(micros, Ordering::Relaxed);
            micros
        }
    }

    fn tenant(number: u8) -> NamespaceId {
        NamespaceId::from_bytes([number; 16])
    }

    fn world() -> (Arc<Hand>, Arc<Turns>) {
        let clock = Arc::new(Hand::default());
        let turns = Turns::new(Arc::clone(&clock) as Arc<dyn Clock>, 1);
        (clock, Arc::new(turns))
    }

    fn is_empty(turns: &Turns) -> bool {
        let state = turns.lock();
        state.long == 0 && state.tenants.is_empty()
    }

    #[test]
    fn a_tenant_that_is_alone_takes_no_turn() {
        let (clock, turns) = world();
        turns.asked(tenant(1));
        let mut scans: Vec<_> = (0..8).map(|_| turns.begin(tenant(1), 0)).collect();
        let now = clock.set(50_000);
        assert!(scans.iter_mut().all(|scan| !scan.step(now, now + 1)));
        assert!(scans.iter().all(|scan| scan.turn.is_none()));
        drop(scans);
        assert!(is_empty(&turns));
    }

    #[test]
    fn one_tenant_runs_so_many_statements_beside_another() {
        let (_clock, turns) = world();
        turns.asked(tenant(2));
        let first = turns.begin(tenant(1), 0);
        assert!(first.turn.is_some());
        // Its deadline is now: it waits no longer, and the progress handler will end it.
        let second = turns.begin(tenant(1), 0);
        assert!(second.turn.is_none(), "it went on beside the first");
        let other = turns.begin(tenant(2), 0);
        assert!(other.turn.is_some(), "another tenant has turns of its own");
        drop(first);
        assert!(turns.begin(tenant(1), 0).turn.is_some());
        drop((second, other));
        assert!(is_empty(&turns));
    }

    #[test]
    fn long_statements_of_all_tenants_share_their_turns() {
        let (clock, turns) = world();
        turns.asked(tenant(3));
        let (mut first, mut second) = (turns.begin(tenant(1), 0), turns.begin(tenant(2), 0));
        let now = clock.set(SHORT_US / 2);
        assert!(
            !first.step(now, u64::MAX) && !second.step(now, u64::MAX),
            "both are short"
        );
        let now = clock.set(SHORT_US);
        assert!(!first.step(now, u64::MAX));
        assert!(first.turn.is_some_and(|turn| turn.is_long));
        assert!(second.step(now, now), "it went on beside the first");
        // A short one has a turn of its own tenant's, for which the long one gave its place.
        let short = turns.begin(tenant(2), 0);
        assert!(short.turn.is_some_and(|turn| !turn.is_long));
        drop(short);
        let now = clock.set(now + TURN_US);
        drop(first);
        assert!(!second.step(now, now) && second.turn.is_some());
        drop(second);
        assert!(is_empty(&turns));
    }

    #[test]
    fn who_rests_holds_no_turn_and_its_rest_does_not_make_it_long() {
        let (clock, turns) = world();
        turns.asked(tenant(2));
        let other = turns.begin(tenant(2), 0);
        let mut reads = turns.begin(tenant(1), 0);
        reads.rest();
        let sibling = turns.begin(tenant(1), 0);
        assert!(sibling.turn.is_some(), "the turn is free meanwhile");
        let now = clock.set(SHORT_US * 3);
        reads.go_on(SHORT_US * 3);
        assert!(reads.step(now, now), "its next step waits for a turn");
        drop(sibling);
        reads.go_on(0);
        assert!(!reads.step(now, now));
        assert!(reads.turn.is_some_and(|turn| !turn.is_long));
        drop((reads, other));
        assert!(is_empty(&turns));
    }

    #[test]
    fn short_ones_go_first_and_long_ones_by_when_they_were_served() {
        let mut state = State::default();
        let standing = |short_waiting, long_waiting, served| Standing {
            requests: 4,
            running: 0,
            short_waiting,
            long_waiting,
            served,
        };
        state.tenants.insert(tenant(1), standing(0, 3, 7));
        state.tenants.insert(tenant(2), standing(0, 1, 4));
        let may = |state: &State, who, is_long| state.may_run(tenant(who), is_long, 1);
        assert!(may(&state, 2, true) && !may(&state, 1, true));
        assert!(may(&state, 1, false), "a short one waits for no long one");
        state.tenants.insert(tenant(2), standing(0, 0, 4));
        assert!(may(&state, 1, true), "who does not wait holds nobody up");
        state.tenants.insert(tenant(1), standing(1, 3, 7));
        assert!(!may(&state, 1, true), "its own short one is first");
    }

    #[test]
    fn a_tenant_that_has_gone_is_waited_for_no_longer() {
        let (clock, turns) = world();
        turns.asked(tenant(2));
        let (first, mut second) = (turns.begin(tenant(1), 0), turns.begin(tenant(1), 0));
        let now = clock.set(RECENT_US - 1);
        assert!(first.turn.is_some() && second.step(now, now));
        let now = clock.set(RECENT_US + LOOK_US);
        assert!(!second.step(now, now) && second.turn.is_none());
    }
}
