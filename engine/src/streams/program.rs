//! Statements that depend on each other's outcome, and who takes their results.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use tokio::runtime::Handle;

use super::Shared;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::jobs::Job;
use crate::sql::connection::Timing;
use crate::sql::run::{Collected, Column, Limits, Rows, Statement, StatementResult, Tally, Value};

/// When a step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// That step ran and succeeded.
    Ok(usize),
    /// That step did not: it failed or was skipped.
    Error(usize),
    /// The opposite.
    Not(Box<Self>),
    /// All of them.
    And(Vec<Self>),
    /// One of them.
    Or(Vec<Self>),
    /// No transaction is open.
    IsAutocommit,
}

impl Condition {
    /// Whether it holds; `succeeded` says of each earlier step whether it ran and succeeded.
    pub(crate) fn holds(&self, succeeded: &[bool], autocommit: bool) -> bool {
        let ok = |step: &usize| succeeded.get(*step).copied().unwrap_or(false);
        match self {
            Self::Ok(step) => ok(step),
            Self::Error(step) => !ok(step),
            Self::Not(inner) => !inner.holds(succeeded, autocommit),
            Self::And(all) => all.iter().all(|one| one.holds(succeeded, autocommit)),
            Self::Or(some) => some.iter().any(|one| one.holds(succeeded, autocommit)),
            Self::IsAutocommit => autocommit,
        }
    }
}

/// A statement that runs under a condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Without one it runs in any case.
    pub condition: Option<Condition>,
    /// What to run.
    pub statement: Statement,
    /// Whether its rows are wanted.
    pub want_rows: bool,
}

/// What a statement would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The names of its parameters, by position.
    pub params: Vec<Option<String>>,
    /// Its columns.
    pub columns: Vec<Column>,
    /// Whether it is an EXPLAIN.
    pub is_explain: bool,
    /// Whether it leaves the database as it is.
    pub is_readonly: bool,
}

/// What a step did, beside its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepEnd {
    /// What it did.
    pub tally: Tally,
    /// How long it took.
    pub took: Duration,
}

/// Takes what the steps of a program answer. [`Code::OperationCancelled`] ends the program; any other error of
/// [`Sink::begin`] and [`Sink::row`] is the error of the step.
pub trait Sink: Send {
    /// A step runs: its columns. Skipped ones have no begin; one that fails may have none.
    fn begin(&mut self, step: usize, columns: Vec<Column>) -> Result<(), Error>;
    /// One row of the step that began last.
    fn row(&mut self, values: Vec<Value>) -> Result<(), Error>;
    /// The step has succeeded.
    fn end(&mut self, step: usize, end: StepEnd) -> Result<(), Error>;
    /// The step has failed.
    fn failed(&mut self, step: usize, error: Error) -> Result<(), Error>;
    /// Bytes of rows that it may still take.
    fn left(&self) -> usize {
        usize::MAX
    }
    /// What has to be waited for before more rows come: somebody reads slowly. No worker is held meanwhile.
    fn stall(&mut self) -> Option<BoxFuture<'static, Result<(), Error>>> {
        None
    }
    /// Whether a commit must be durable before [`Sink::end`] is told of it; else the caller sees to it later.
    fn waits(&self) -> bool;
}

/// What a running program holds beside its connection.
pub(super) struct Flow {
    pub(super) job: Option<Job>,
    pub(super) database: Database,
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Handle,
    pub(super) timing: Timing,
}

impl Flow {
    /// Waits for a slow reader: without a worker or a turn, and without counting it as the statement's time.
    fn wait(&mut self, stall: BoxFuture<'static, Result<(), Error>>) -> Result<(), Error> {
        let clock = Arc::clone(&self.database.engine().inner.core.parts.clock);
        let began = clock.monotonic_micros();
        self.job = None;
        self.timing.rest();
        let mut ended = self.shared.ended.subscribe();
        let waited = async {
            let gone = std::pin::pin!(ended.wait_for(Option::is_some));
            match select(stall, gone).await {
                Either::Left((outcome, _)) => outcome?,
                Either::Right(_) => return Err(super::cancelled()),
            }
            self.database.worker().await
        };
        self.job = Some(self.runtime.block_on(waited)?);
        self.timing
            .go_on(clock.monotonic_micros().saturating_sub(began));
        Ok(())
    }
}

/// One step's rows on their way to a sink.
pub(super) struct StepRows<'a> {
    pub(super) sink: &'a mut dyn Sink,
    pub(super) flow: &'a mut Flow,
    pub(super) step: usize,
    pub(super) want_rows: bool,
}

impl Rows for StepRows<'_> {
    fn columns(&mut self, columns: Vec<Column>) -> Result<(), Error> {
        self.sink.begin(self.step, columns)
    }

    fn row(&mut self, values: Vec<Value>) -> Result<(), Error> {
        if !self.want_rows {
            return Ok(());
        }
        self.sink.row(values)?;
        match self.sink.stall() {
            None => Ok(()),
            Some(stall) => self.flow.wait(stall),
        }
    }

    fn left(&self) -> Option<usize> {
        self.want_rows.then(|| self.sink.left())
    }
}

impl StepRows<'_> {
    /// Hands out what was held back until a commit.
    pub(super) fn hand_out(&mut self, held: Collected) -> Result<(), Error> {
        self.columns(held.columns)?;
        held.rows.into_iter().try_for_each(|row| self.row(row))
    }
}

/// Whether an error of a sink means that nobody listens any more.
pub(super) fn is_cancelled(error: &Error) -> bool {
    error.code() == Code::OperationCancelled
}

/// The results of all steps, held within the limits of a request.
#[derive(Debug, Default)]
pub struct Results {
    /// Of each step: nothing if it was skipped.
    pub steps: Vec<Option<Result<(StatementResult, Duration), Error>>>,
    /// Bytes of values that may still be collected.
    pub budget: usize,
    limits: Limits,
    now: Option<Collected>,
}

impl Results {
    /// None yet, of so many steps; `budget` is what is left of the limits.
    pub fn of(steps: usize, limits: Limits, budget: usize) -> Self {
        let mut all = Vec::with_capacity(steps);
        all.resize_with(steps, || None);
        Self {
            steps: all,
            budget,
            limits,
            now: None,
        }
    }

    fn set(&mut self, step: usize, result: Result<(StatementResult, Duration), Error>) {
        if let Some(place) = self.steps.get_mut(step) {
            *place = Some(result);
        }
    }
}

impl Sink for Results {
    fn begin(&mut self, _step: usize, columns: Vec<Column>) -> Result<(), Error> {
        let mut now = Collected::within(&self.limits, self.budget);
        now.columns(columns)?;
        self.now = Some(now);
        Ok(())
    }

    fn row(&mut self, values: Vec<Value>) -> Result<(), Error> {
        match &mut self.now {
            Some(now) => now.row(values),
            None => Err(Error::internal("a row before its columns")),
        }
    }

    fn end(&mut self, step: usize, end: StepEnd) -> Result<(), Error> {
        let now = self.now.take().unwrap_or_default();
        if now.limit != 0 {
            self.budget = now.budget;
        }
        self.set(step, Ok((now.result(end.tally), end.took)));
        Ok(())
    }

    fn failed(&mut self, step: usize, error: Error) -> Result<(), Error> {
        self.now = None;
        self.set(step, Err(error));
        Ok(())
    }

    fn left(&self) -> usize {
        self.budget
    }

    fn waits(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_step_counts_as_failed() {
        let succeeded = [true, false];
        let holds = |condition: &Condition| condition.holds(&succeeded, false);
        assert!(holds(&Condition::Ok(0)) && !holds(&Condition::Ok(1)));
        assert!(!holds(&Condition::Error(0)) && holds(&Condition::Error(1)));
        assert!(holds(&Condition::Not(Box::new(Condition::IsAutocommit))));
        assert!(holds(&Condition::And(Vec::new())) && !holds(&Condition::Or(Vec::new())));
        let both = vec![Condition::Ok(0), Condition::Ok(1)];
        assert!(!holds(&Condition::And(both.clone())) && holds(&Condition::Or(both)));
    }
}
