//! Which stretches of the log lead from one state to another where some states are known to be the same.
//!
//! A restore makes a state that was there before. The deltas between the two cancel out, so a way need not read them:
//! it leaves the log at one of them and goes on at the other, in whichever direction is cheaper from there. Deltas
//! form a group, so the stretches that are left can be merged in any order. What a restore recorded is taken at its
//! word here; who merges proves the outcome by the digests of both ends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use tidelog_wal::{Position, TxId};

/// Two Positions of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Same {
    /// The earlier.
    pub old: Position,
    /// The later.
    pub new: Position,
}

/// Records that are applied without a break: those behind `from`, up to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The earlier end.
    pub from: Position,
    /// The later end.
    pub to: Position,
}

/// From one state to another: what reading the log between them costs, or nothing where they are the same.
struct Way {
    to: TxId,
    cost: Option<u64>,
}

/// How the cheapest way comes to a state.
struct Came {
    from: TxId,
    /// By reading the log.
    reads: bool,
}

/// The cheapest legs between two states, ascending; `price` says what the records behind one commit up to another
/// cost, if they can be had. Nothing if there is no way.
pub(super) fn cheapest(
    (start, target): (Position, Position),
    same: &[Same],
    mut price: impl FnMut(TxId, TxId) -> Option<u64>,
) -> Option<Vec<Leg>> {
    let mut stops = BTreeMap::from([(target.txid, target), (start.txid, start)]);
    for one in same {
        stops.entry(one.old.txid).or_insert(one.old);
        stops.entry(one.new.txid).or_insert(one.new);
    }
    let mut ways: HashMap<TxId, Vec<Way>> = HashMap::new();
    let mut add = |a: TxId, b: TxId, cost: Option<u64>| {
        ways.entry(a).or_default().push(Way { to: b, cost });
        ways.entry(b).or_default().push(Way { to: a, cost });
    };
    // A commit of the same number that is not the same commit is of a history that was left.
    let stands = |at: Position| stops.get(&at.txid) == Some(&at);
    for one in same.iter().filter(|one| stands(one.old) && stands(one.new)) {
        add(one.old.txid, one.new.txid, None);
    }
    for (low, high) in stops.keys().zip(stops.keys().skip(1)) {
        if let Some(cost) = price(*low, *high) {
            add(*low, *high, Some(cost));
        }
    }
    // Dijkstra's; of ways that cost the same the one over fewer stops.
    let mut best: HashMap<TxId, Came> = HashMap::new();
    let mut next = BinaryHeap::from([Reverse((0, 0, start.txid, start.txid, false))]);
    while let Some(Reverse((cost, steps, at, from, reads))) = next.pop() {
        if best.contains_key(&at) {
            continue;
        }
        best.insert(at, Came { from, reads });
        if at == target.txid {
            break;
        }
        for way in ways.get(&at).into_iter().flatten() {
            let cost: u64 = way.cost.unwrap_or(0).saturating_add(cost);
            next.push(Reverse((cost, steps + 1, way.to, at, way.cost.is_some())));
        }
    }
    let mut legs: Vec<(TxId, TxId)> = Vec::new();
    let mut at = target.txid;
    while at != start.txid {
        let came = best.get(&at)?;
        if came.reads {
            legs.push((at.min(came.from), at.max(came.from)));
        }
        at = came.from;
    }
    legs.sort_unstable();
    let mut joined: Vec<Leg> = Vec::new();
    for (low, high) in legs {
        let (from, to) = (*stops.get(&low)?, *stops.get(&high)?);
        match joined.last_mut() {
            Some(leg) if leg.to == from => leg.to = to,
            _ => joined.push(Leg { from, to }),
        }
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_wal::{Chain, Term};

    fn at(txid: u64) -> Position {
        Position {
            term: Term::new(1),
            txid: TxId::new(txid),
            chain: Chain::default(),
        }
    }

    /// The legs where each record costs one, as numbers.
    fn legs(start: u64, target: u64, same: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let same: Vec<Same> = same
            .iter()
            .map(|(old, new)| Same {
                old: at(*old),
                new: at(*new),
            })
            .collect();
        let price = |low: TxId, high: TxId| high.since(low);
        let legs = cheapest((at(start), at(target)), &same, price).expect("a way");
        legs.iter()
            .map(|leg| (leg.from.txid.get(), leg.to.txid.get()))
            .collect()
    }

    #[test]
    fn what_a_restore_made_again_is_not_read() {
        assert_eq!(legs(100, 10, &[]), [(10, 100)]);
        assert_eq!(legs(10, 100, &[]), [(10, 100)]);
        assert_eq!(legs(100, 10, &[(40, 90)]), [(10, 40), (90, 100)]);
        // One after another, and one within another.
        assert_eq!(
            legs(100, 10, &[(20, 30), (40, 90)]),
            [(10, 20), (30, 40), (90, 100)]
        );
        assert_eq!(legs(100, 10, &[(50, 60), (40, 90)]), [(10, 40), (90, 100)]);
        // An undo goes forward from what was restored.
        assert_eq!(legs(91, 90, &[(40, 91)]), [(90, 91)]);
        assert_eq!(legs(91, 45, &[(40, 91)]), [(40, 45)]);
        assert_eq!(legs(100, 45, &[(40, 91)]), [(40, 45), (91, 100)]);
        // To what is there already.
        assert_eq!(legs(91, 40, &[(40, 91)]), []);
        assert_eq!(legs(40, 40, &[]), []);
        // Ends that touch are one stretch.
        assert_eq!(legs(100, 10, &[(50, 10_000)]), [(10, 100)]);
    }

    #[test]
    fn a_commit_of_a_history_that_was_left_is_no_way() {
        let left = Position {
            term: Term::new(9),
            ..at(90)
        };
        let same = [Same {
            old: at(40),
            new: left,
        }];
        let price = |low: TxId, high: TxId| high.since(low);
        // The other commit of that number is a stop of another restore.
        let known = [
            Same {
                old: at(95),
                new: at(90),
            },
            same[0],
        ];
        let found = cheapest((at(100), at(10)), &known, price).expect("a way");
        assert!(found.iter().all(|leg| leg.from.txid != TxId::new(40)));
    }

    #[test]
    fn what_cannot_be_had_is_gone_around_or_there_is_no_way() {
        // Nothing behind 50 up to 60 can be had.
        let price = |low: TxId, high: TxId| {
            let broken = low.get() < 60 && high.get() > 50;
            high.since(low).filter(|_| !broken)
        };
        let ends = (at(100), at(10));
        assert_eq!(cheapest(ends, &[], price), None);
        let same = [Same {
            old: at(40),
            new: at(70),
        }];
        let found = cheapest(ends, &same, price).expect("a way");
        let around = [(10, 40), (70, 100)].map(|(from, to)| Leg {
            from: at(from),
            to: at(to),
        });
        assert_eq!(found, around);
    }
}
