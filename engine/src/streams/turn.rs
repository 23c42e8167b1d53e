//! One request's use of a stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidelog_wal::Position;
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;

use super::program::{Flow, StepRows, is_cancelled};
use super::session::{Session, Stepped, Terms};
use super::split::statements;
use super::{Described, Own, Running, Sink, Step, StepEnd, Stream, cancelled, lock};
use crate::boxed;
use crate::capture::Head;
use crate::database::write::after_commit;
use crate::database::{OpenDb, Ticket, execute};
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::places::Changes;
use crate::request::Access;
use crate::settings::Durability;
use crate::sql::run::{Collected, Column, Limits, Params, Statement, Tally, Value, check};

/// The use of a stream by one request. Dropped without [`Turn::keep`] it ends the stream and rolls back.
#[derive(Debug)]
pub struct Turn {
    stream: Stream,
    own: OwnedMutexGuard<Own>,
    terms: Arc<Terms>,
    durability: Durability,
    committed: Option<Ticket>,
    /// What was captured when its last program ended.
    captured: Option<Result<Head, Error>>,
    schema_changed: bool,
    kept: bool,
    _in_use: InUse,
}

/// Says that a request uses a stream, until it is dropped.
#[derive(Debug)]
struct InUse {
    stream: Stream,
    changes: Changes,
}

impl InUse {
    fn of(stream: &Stream, changes: &Changes) -> Result<Self, Error> {
        if stream.0.in_use.swap(true, Ordering::AcqRel) {
            let what = "another request runs on the stream; a stream takes one at a time";
            return Err(Error::new(Code::StreamBusy, what));
        }
        Ok(Self {
            stream: stream.clone(),
            changes: changes.clone(),
        })
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.stream.0.in_use.store(false, Ordering::Release);
        // It may be at rest now, and give its database's place up.
        self.changes.tell();
    }
}

/// What a request came to.
#[derive(Debug, Clone, Copy)]
pub struct TurnEnd {
    /// The Position of its last commit, or of the newest state.
    pub bookmark: Position,
    /// The newest stored Position.
    pub durable_bookmark: Option<Position>,
    /// A commit changed the schema.
    pub schema_changed: bool,
}

impl Stream {
    /// Begins a request on the stream; one at a time. `database` must be read anew for every request: it says what
    /// is allowed now.
    #[boxed]
    pub async fn enter(
        &self,
        database: Database,
        access: Access,
        limits: Limits,
        durability: Option<Durability>,
    ) -> Result<Turn, Error> {
        self.check()?;
        database.admit_read()?;
        let in_use = InUse::of(self, &database.engine().inner.core.place_changes)?;
        // Free in a moment: only the sweep looks at a stream that no request uses.
        let own = Arc::clone(&self.0.own).lock_owned().await;
        self.check()?;
        let durability = durability
            .or(database.row().durability)
            .unwrap_or_else(|| database.engine().default_durability());
        let turn = Turn {
            stream: self.clone(),
            own,
            terms: Arc::new(Terms {
                access,
                limits,
                database,
            }),
            durability,
            committed: None,
            captured: None,
            schema_changed: false,
            kept: false,
            _in_use: in_use,
        };
        turn.touch();
        Ok(turn)
    }
}

/// A program on its way: everything that moves to a worker and back.
struct Run<S> {
    session: Session,
    steps: Arc<Vec<Step>>,
    /// Whether the first error ends it.
    strict: bool,
    at: usize,
    succeeded: Vec<bool>,
    sink: S,
    terms: Arc<Terms>,
    flow: Flow,
    /// The last commit that nobody has waited for.
    ticket: Option<Ticket>,
    schema_changed: bool,
}

/// Why a run came back from its worker.
enum Pause {
    /// All steps are done, or nobody listens any more.
    Ended { cancelled: bool },
    /// The step at hand writes.
    NeedsGate,
    /// The step at hand has committed, and its end must wait until that is durable.
    Committed(Ticket, Tally, Option<Collected>, u64),
}

impl Turn {
    fn touch(&self) {
        let now = self.now();
        self.stream.0.last_used.store(now, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.terms
            .database
            .engine()
            .inner
            .core
            .parts
            .clock
            .monotonic_micros()
    }

    /// The connection, opened if need be; it is the caller's until it puts it back.
    async fn session(&mut self) -> Result<Session, Error> {
        self.stream.check()?;
        if let Some(session) = self.own.session.take() {
            return Ok(session);
        }
        let lease = self.terms.database.lease().await?;
        let foreign_keys = self.terms.database.row().foreign_keys;
        let session = blocking(lease.core.executor(), move || {
            Session::open(lease, foreign_keys)
        })
        .await?;
        *lock(&self.stream.0.running) = Some(Running {
            interrupt: session.interrupt_handle(),
            database: Arc::downgrade(session.lease()),
        });
        // Whoever ended it, or began to close the database, before that could not reach the connection.
        self.stream.check()?;
        if session.lease().is_closing() {
            self.stream.0.end(super::Ended::DatabaseClosed);
            self.stream.check()?;
        }
        Ok(session)
    }

    fn put_back(&mut self, session: Session) {
        let since = &self.stream.0.reading_since;
        if session.is_autocommit() {
            since.store(0, Ordering::Relaxed);
        }
        self.own.session = Some(session);
    }

    /// Runs steps, each under its condition, and hands their results to `sink`. A step that fails stops nothing
    /// but what depends on it; an error of this call is the whole request's, and the stream ends with it.
    pub async fn program<S: Sink + 'static>(
        &mut self,
        steps: Vec<Step>,
        sink: S,
    ) -> Result<S, Error> {
        self.run(steps, false, sink).await
    }

    /// Runs the statements of a text up to the first error.
    #[boxed]
    pub async fn sequence(&mut self, sql: &str) -> Result<Result<(), Error>, Error> {
        let steps = statements(sql)
            .into_iter()
            .map(|sql| Step {
                condition: None,
                statement: Statement {
                    sql: sql.to_owned(),
                    params: Params::None,
                },
                want_rows: false,
            })
            .collect();
        let sink = self.run(steps, true, FirstError(None)).await?;
        Ok(sink.0.map_or(Ok(()), Err))
    }

    async fn run<S: Sink + 'static>(
        &mut self,
        steps: Vec<Step>,
        strict: bool,
        sink: S,
    ) -> Result<S, Error> {
        if steps.is_empty() {
            return Ok(sink);
        }
        let session = self.session().await?;
        let flow = Flow {
            job: None,
            database: self.terms.database.clone(),
            shared: Arc::clone(&self.stream.0),
            runtime: Handle::current(),
            timing: session.timing(),
        };
        let mut run = Run {
            session,
            succeeded: Vec::with_capacity(steps.len()),
            steps: Arc::new(steps),
            strict,
            at: 0,
            sink,
            terms: Arc::clone(&self.terms),
            flow,
            ticket: None,
            schema_changed: false,
        };
        loop {
            // No worker is held while the gate is waited for: whoever holds the gate may need one to go on.
            run.flow.job = Some(self.terms.database.worker().await?);
            let (back, pause, captured) = blocking(self.terms.database.executor(), move || {
                let pause = run.advance();
                run.flow.job = None;
                let ended = matches!(pause, Pause::Ended { .. });
                let captured = ended.then(|| run.session.lease().capture_now());
                Ok((run, pause, captured))
            })
            .await?;
            run = back;
            self.captured = captured;
            match pause {
                Pause::Ended { cancelled: gone } => {
                    self.committed = run.ticket.or(self.committed.take());
                    self.schema_changed |= run.schema_changed;
                    self.put_back(run.session);
                    self.touch();
                    self.stream.check()?;
                    return if gone { Err(cancelled()) } else { Ok(run.sink) };
                }
                Pause::NeedsGate => {
                    let database = Arc::clone(run.session.lease());
                    if run.session.is_autocommit() {
                        // Inside a transaction its snapshot would grow old meanwhile.
                        self.terms.database.history_pause().await;
                    }
                    let gate = match self.terms.database.admit_history() {
                        Ok(()) => database.gate().await,
                        Err(error) => Err(error),
                    };
                    let taken = gate.and_then(|gate| run.session.take_gate(gate));
                    if let Err(error) = taken {
                        run.fail(error)?;
                    }
                }
                Pause::Committed(ticket, tally, held, began) => {
                    let database = Arc::clone(run.session.lease());
                    acknowledge(&database, &ticket, self.durability).await?;
                    let (back, outcome) = blocking(self.terms.database.executor(), move || {
                        let outcome = run.succeed(tally, held, began);
                        run.flow.job = None;
                        Ok((run, outcome))
                    })
                    .await?;
                    run = back;
                    outcome?;
                }
            }
        }
    }

    /// What a statement would be.
    #[boxed]
    pub async fn describe(&mut self, sql: &str) -> Result<Result<Described, Error>, Error> {
        let mut session = self.session().await?;
        let job = self.terms.database.worker().await?;
        let (sql, terms) = (sql.to_owned(), Arc::clone(&self.terms));
        let (session, described) = blocking(self.terms.database.executor(), move || {
            let _job = job;
            let statement = Statement {
                sql,
                params: Params::None,
            };
            let described = check(&statement, &terms.limits)
                .and_then(|()| session.describe(&statement.sql, &terms));
            Ok((session, described))
        })
        .await?;
        self.put_back(session);
        Ok(described)
    }

    /// Whether a commit of the request has changed the schema so far.
    pub const fn schema_changed(&self) -> bool {
        self.schema_changed
    }

    /// Whether no transaction is open.
    pub fn is_autocommit(&self) -> bool {
        self.own.session.as_ref().is_none_or(Session::is_autocommit)
    }

    /// Waits until what the request committed is as durable as asked, and says where the database stands.
    #[boxed]
    pub async fn finish(&mut self) -> Result<TurnEnd, Error> {
        // The session, where there is one, holds its own lease.
        let held = self
            .own
            .session
            .as_ref()
            .map(|session| Arc::clone(session.lease()));
        let (database, _lease) = match held {
            Some(database) => (database, None),
            None => {
                let lease = self.terms.database.lease().await?;
                (Arc::clone(&lease), Some(lease))
            }
        };
        let captured = match self.captured.take() {
            Some(captured) => captured,
            None => {
                let capturing = Arc::clone(&database);
                blocking(database.core.executor(), move || capturing.capture_now()).await
            }
        };
        let bookmark = match self.committed.take() {
            None => captured?.position(),
            Some(ticket) => {
                captured.map_err(after_commit)?;
                execute::acknowledge(&database, &ticket, self.durability).await?
            }
        };
        self.touch();
        Ok(TurnEnd {
            bookmark,
            durable_bookmark: database.durable(),
            schema_changed: self.schema_changed,
        })
    }

    /// Ends the request and leaves the stream to the next one.
    pub fn keep(mut self) -> Result<(), Error> {
        self.stream.check()?;
        self.touch();
        self.kept = true;
        Ok(())
    }
}

async fn acknowledge(
    database: &Arc<OpenDb>,
    ticket: &Ticket,
    durability: Durability,
) -> Result<(), Error> {
    let captured = Arc::clone(database);
    let captured = blocking(database.core.executor(), move || captured.capture_now()).await;
    captured.map_err(after_commit)?;
    execute::acknowledge(database, ticket, durability).await?;
    Ok(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        let shared = &self.stream.0;
        // Who ended the stream meanwhile has left the connection to this request.
        if self.kept && shared.ended().is_none() {
            return;
        }
        shared.end(super::Ended::Closed);
        let streams = &self.terms.database.engine().inner.registry.streams;
        streams.remove(shared.id);
        *lock(&shared.running) = None;
        // Where the runtime is gone the connection closes right here.
        let session = self.own.session.take();
        if Handle::try_current().is_ok() {
            super::discard(session);
        }
    }
}

impl<S: Sink> Run<S> {
    fn now(&self) -> u64 {
        self.flow
            .database
            .engine()
            .inner
            .core
            .parts
            .clock
            .monotonic_micros()
    }

    /// Runs steps until one needs something that a worker must not wait for. Blocks.
    fn advance(&mut self) -> Pause {
        let steps = Arc::clone(&self.steps);
        while let Some(step) = steps.get(self.at) {
            if self.flow.shared.ended().is_some() {
                return Pause::Ended { cancelled: true };
            }
            let autocommit = self.session.is_autocommit();
            let runs = step
                .condition
                .as_ref()
                .is_none_or(|condition| condition.holds(&self.succeeded, autocommit));
            if !runs {
                self.pass(false);
                continue;
            }
            match self.step(step, autocommit) {
                Ok(None) => {}
                Ok(Some(pause)) => return pause,
                Err(_) => return Pause::Ended { cancelled: true },
            }
            if self.strict && self.succeeded.last() == Some(&false) {
                break;
            }
        }
        Pause::Ended { cancelled: false }
    }

    fn pass(&mut self, succeeded: bool) {
        self.succeeded.push(succeeded);
        self.at += 1;
    }

    /// Runs one step. An error is the sink's: nobody listens any more.
    fn step(&mut self, step: &Step, autocommit: bool) -> Result<Option<Pause>, Error> {
        let began = self.now();
        if autocommit {
            let since = &self.flow.shared.reading_since;
            since.store(began, Ordering::Relaxed);
        }
        let mut rows = StepRows {
            sink: &mut self.sink,
            flow: &mut self.flow,
            step: self.at,
            want_rows: step.want_rows,
        };
        let outcome = check(&step.statement, &self.terms.limits)
            .and_then(|()| self.session.step(&step.statement, &self.terms, &mut rows));
        if self.session.is_autocommit() {
            self.flow.shared.reading_since.store(0, Ordering::Relaxed);
        }
        match outcome {
            Ok(Stepped::NeedsGate) => Ok(Some(Pause::NeedsGate)),
            Ok(Stepped::Done(tally, committed)) => {
                self.schema_changed |= committed.schema_changed;
                match committed.ticket {
                    Some(ticket) if self.sink.waits() => {
                        let pause = Pause::Committed(ticket, tally, committed.rows, began);
                        return Ok(Some(pause));
                    }
                    ticket => self.ticket = ticket.or(self.ticket.take()),
                }
                self.succeed(tally, committed.rows, began)?;
                Ok(None)
            }
            Err(error) if is_cancelled(&error) => Err(error),
            Err(error) => self.fail(error).map(|()| None),
        }
    }

    fn fail(&mut self, error: Error) -> Result<(), Error> {
        self.sink.failed(self.at, error)?;
        self.pass(false);
        if self.strict {
            self.at = self.steps.len();
        }
        Ok(())
    }

    fn succeed(&mut self, tally: Tally, held: Option<Collected>, began: u64) -> Result<(), Error> {
        let want_rows = self.steps.get(self.at).is_some_and(|step| step.want_rows);
        if let Some(held) = held {
            let mut rows = StepRows {
                sink: &mut self.sink,
                flow: &mut self.flow,
                step: self.at,
                want_rows,
            };
            // The commit stands: only a reader that is gone, or a limit of the whole request, is in the way.
            if let Err(error) = rows.hand_out(held) {
                return self.fail(after_commit(error));
            }
        }
        let took = std::time::Duration::from_micros(self.now().saturating_sub(began));
        self.sink.end(self.at, StepEnd { tally, took })?;
        self.pass(true);
        Ok(())
    }
}

/// Keeps the first error alone.
struct FirstError(Option<Error>);

impl Sink for FirstError {
    fn begin(&mut self, _: usize, _: Vec<Column>) -> Result<(), Error> {
        Ok(())
    }

    fn row(&mut self, _: Vec<Value>) -> Result<(), Error> {
        Ok(())
    }

    fn end(&mut self, _: usize, _: StepEnd) -> Result<(), Error> {
        Ok(())
    }

    fn failed(&mut self, _: usize, error: Error) -> Result<(), Error> {
        self.0.get_or_insert(error);
        Ok(())
    }

    fn waits(&self) -> bool {
        false
    }
}
