//! The cheapest way to a state.

use std::fmt;

use tidelog_wal::{DigestSeed, PageSize, Position, TxId};

use super::error::PlanError;
use super::history::{History, ImageSource, Piece};
use super::legs::{Leg, Same, cheapest};
use super::resolve::Resolved;

/// Where a plan starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The state with no pages.
    Empty,
    /// An image.
    Image(ImageSource),
    /// A file whose state is known.
    Base(Position),
}

impl Start {
    /// The TxId of the state it is.
    pub fn txid(&self) -> TxId {
        match self {
            Self::Empty => TxId::ZERO,
            Self::Image(image) => image.position.txid,
            Self::Base(position) => position.txid,
        }
    }
}

/// Which way the log is read. The deltas are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From an older state.
    Forward,
    /// From a newer state.
    Backward,
}

/// Records to apply, from one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The object.
    pub piece: Piece,
    /// The first record that is applied.
    pub first: TxId,
    /// The last record that is applied.
    pub last: TxId,
    /// Bytes to fetch, about.
    pub bytes: u64,
}

/// How to reach a state: what preview shows and execution does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Page size of the database.
    pub page_size: PageSize,
    /// Seed of its digests.
    pub seed: DigestSeed,
    /// The state.
    pub target: Resolved,
    /// Where it starts.
    pub start: Start,
    /// Which way the log is read.
    pub direction: Direction,
    /// Records to apply, in the order of history.
    pub steps: Vec<Step>,
    /// The stretches that they make up, ascending, where some that lie between start and target are left out because
    /// states are the same. Such a plan leads from start to target by the sum of its deltas alone.
    pub legs: Option<Vec<Leg>>,
    /// Bytes to fetch, about.
    pub bytes: u64,
}

impl Plan {
    /// Objects to fetch.
    pub fn objects(&self) -> usize {
        self.steps.len() + usize::from(matches!(self.start, Start::Image(_)))
    }

    /// Commits that are applied.
    pub fn commits(&self) -> u64 {
        let (a, b) = (self.start.txid(), self.target.position.txid);
        let between = |low: TxId, high: TxId| high.since(low).unwrap_or(0);
        match &self.legs {
            Some(legs) => legs
                .iter()
                .map(|leg| between(leg.from.txid, leg.to.txid))
                .sum(),
            None => between(a.min(b), a.max(b)),
        }
    }

    /// Where each stretch of records begins, which is nowhere if it does with the first commit of all, and ends.
    pub(crate) fn stretches(&self) -> Vec<(Option<Position>, Position)> {
        if let Some(legs) = &self.legs {
            return legs.iter().map(|leg| (Some(leg.from), leg.to)).collect();
        }
        let target = self.target.position;
        let start = match &self.start {
            Start::Empty => None,
            Start::Image(image) => Some(image.position),
            Start::Base(position) => Some(*position),
        };
        match start {
            Some(start) if start.txid > target.txid => vec![(Some(target), start)],
            start => vec![(start, target)],
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "to {} of {} pages: {} objects, {} bytes, {} commits",
            self.target.position,
            self.target.n.get(),
            self.objects(),
            self.bytes,
            self.commits()
        )?;
        match &self.start {
            Start::Empty => writeln!(f, "  start from nothing")?,
            Start::Image(image) => {
                writeln!(
                    f,
                    "  start from {} ({} bytes)",
                    image.object.key, image.object.len
                )?;
            }
            Start::Base(position) => writeln!(f, "  start from the file at {position}")?,
        }
        let way = match self.direction {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        };
        for step in &self.steps {
            writeln!(
                f,
                "  {way} {} to {} of {} ({} bytes)",
                step.first,
                step.last,
                step.piece.source.key(),
                step.bytes
            )?;
        }
        Ok(())
    }
}

impl History {
    /// The cheapest plan to `target`, by bytes. `base` is the Position of a file at hand, if there is one.
    pub async fn plan(
        &mut self,
        target: Resolved,
        base: Option<Position>,
    ) -> Result<Plan, PlanError> {
        self.plan_past(target, base, &[]).await
    }

    /// The same for a plan that is merged ([`crate::restore::merge`]): from a file at hand, the log is not read where it leads
    /// from one of two states that are the `same` to the other. The base and the outcome are for the caller to prove.
    pub async fn plan_past(
        &mut self,
        target: Resolved,
        base: Option<Position>,
        same: &[Same],
    ) -> Result<Plan, PlanError> {
        let txid = target.position.txid;
        self.read_index(|_, entry| entry.run.contains(txid)).await?;
        // Older index objects are read until there is a start below the target, newer ones as long as the
        // way through them is cheaper than the best plan so far.
        loop {
            let best = self.best(&target, base, same);
            let cost = best.as_ref().map_or(u64::MAX, |plan| plan.bytes);
            let lowest = self.lowest_joined(txid);
            let highest = self.highest_joined(txid);
            let mut read = false;
            self.read_index(|_, entry| {
                let beside = entry.run.last.next() == lowest || entry.run.first == highest.next();
                let take = beside && entry.bytes < cost && !read;
                read |= take;
                take
            })
            .await?;
            if !read {
                return match best {
                    Some(plan) => Ok(plan),
                    None => Err(self.no_plan(txid)),
                };
            }
        }
    }

    /// The plan to `target` from the file at `base` and from nothing else: it proves that file.
    pub async fn plan_from(&mut self, base: Position, target: Resolved) -> Result<Plan, PlanError> {
        let (from, to) = (base.txid, target.position.txid);
        let (low, high) = (from.min(to), from.max(to));
        self.read_index(|_, entry| entry.run.first <= high && entry.run.last > low)
            .await?;
        let joined = low == high || self.lowest_joined(high) <= low.next();
        if !joined || self.crosses_gap(from, to) {
            return Err(self.no_plan(to));
        }
        Ok(self.price(&target, Start::Base(base), &[]))
    }

    /// Why there is no plan: a gap on either side, or nothing that joins.
    fn no_plan(&self, txid: TxId) -> PlanError {
        let nearest = self
            .gaps
            .iter()
            .rev()
            .find(|gap| gap.resumes <= txid)
            .or_else(|| self.gaps.iter().find(|gap| gap.after >= txid));
        match nearest {
            Some(gap) => PlanError::Gap {
                after: gap.after,
                resumes: gap.resumes,
                reason: gap.reason,
                nearest_earlier: self.known(gap.after),
                nearest_later: self.known(gap.resumes),
            },
            None => PlanError::NoPath { txid },
        }
    }

    /// The Position of a commit, if an entry tells it.
    fn known(&self, txid: TxId) -> Option<Position> {
        let images = self.images.iter().map(|image| image.position);
        let ends = self.pieces.iter().map(|piece| piece.run.end());
        images.chain(ends).find(|at| at.txid == txid)
    }

    /// The first record from which known pieces lead to `txid` without a break.
    fn lowest_joined(&self, txid: TxId) -> TxId {
        let at = self.pieces.partition_point(|piece| piece.last < txid);
        let Some(mut low) = self.pieces.get(at).filter(|piece| piece.first <= txid) else {
            return txid.next();
        };
        for piece in self.pieces.get(..at).unwrap_or_default().iter().rev() {
            if !self.joins(piece, low) {
                break;
            }
            low = piece;
        }
        low.first
    }

    /// The last record to which known pieces lead from `txid` without a break.
    fn highest_joined(&self, txid: TxId) -> TxId {
        let at = self.pieces.partition_point(|piece| piece.last < txid);
        let beside = |piece: &&Piece| piece.first <= txid.next();
        let Some(mut high) = self.pieces.get(at).filter(beside) else {
            return txid;
        };
        for piece in self.pieces.get(at + 1..).unwrap_or_default() {
            if !self.joins(high, piece) {
                break;
            }
            high = piece;
        }
        high.last
    }

    /// The cheapest plan over what is known.
    fn best(&self, target: &Resolved, base: Option<Position>, same: &[Same]) -> Option<Plan> {
        let txid = target.position.txid;
        let (low, high) = (self.lowest_joined(txid), self.highest_joined(txid));
        let reachable = |start: TxId| start.next() >= low && start <= high || start == txid;
        let images = self.images.iter().map(|image| Start::Image(image.clone()));
        let starts = images
            .chain(base.map(Start::Base))
            .chain([Start::Empty])
            .filter(|start| reachable(start.txid()) && !self.crosses_gap(start.txid(), txid));
        starts
            .map(|start| self.price(target, start, same))
            .min_by_key(|plan| plan.bytes)
    }

    /// Whether the deltas between two states include some that a gap makes useless.
    fn crosses_gap(&self, a: TxId, b: TxId) -> bool {
        let (low, high) = (a.min(b), a.max(b));
        let crossed = |gap: &crate::manifest::Gap| low < gap.resumes && high > gap.after;
        low != high && self.gaps.iter().any(crossed)
    }

    fn price(&self, target: &Resolved, start: Start, same: &[Same]) -> Plan {
        let (from, to) = (start.txid(), target.position.txid);
        let legs = match &start {
            Start::Base(base) if !same.is_empty() => self.legs(*base, target, same),
            _ => None,
        };
        let steps = match &legs {
            Some(legs) => {
                let steps = legs.iter().map(|leg| (leg.from.txid, leg.to.txid));
                steps
                    .flat_map(|(low, high)| self.steps(low, high))
                    .collect()
            }
            None => self.steps(from.min(to), from.max(to)),
        };
        let image = match &start {
            Start::Image(image) => image.object.len,
            Start::Empty | Start::Base(_) => 0,
        };
        let bytes = steps.iter().map(|step| step.bytes);
        Plan {
            page_size: self.page_size,
            seed: self.seed,
            target: *target,
            start,
            direction: if from <= to {
                Direction::Forward
            } else {
                Direction::Backward
            },
            bytes: bytes.fold(image, u64::saturating_add),
            steps,
            legs,
        }
    }

    /// The legs between two states, if they leave something out.
    fn legs(&self, base: Position, target: &Resolved, same: &[Same]) -> Option<Vec<Leg>> {
        let to = target.position;
        let (low, high) = (self.lowest_joined(to.txid), self.highest_joined(to.txid));
        let price = |a: TxId, b: TxId| {
            let known = a.next() >= low && b <= high && !self.crosses_gap(a, b);
            let steps = || self.steps(a, b).into_iter().map(|step| step.bytes);
            known.then(|| steps().fold(0, u64::saturating_add))
        };
        let legs = cheapest((base, to), same, price)?;
        let whole = Leg {
            from: if base.txid < to.txid { base } else { to },
            to: if base.txid < to.txid { to } else { base },
        };
        (legs != [whole]).then_some(legs)
    }

    /// What is fetched for the records behind `low` up to `high`.
    fn steps(&self, low: TxId, high: TxId) -> Vec<Step> {
        let at = self.pieces.partition_point(|piece| piece.last <= low);
        let pieces = self.pieces.get(at..).unwrap_or_default().iter();
        pieces
            .take_while(|piece| low < high && piece.first <= high)
            .map(|piece| {
                let (first, last) = (piece.first.max(low.next()), piece.last.min(high));
                Step {
                    piece: piece.clone(),
                    first,
                    last,
                    bytes: piece.price(first, last),
                }
            })
            .collect()
    }
}
