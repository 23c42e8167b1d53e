//! A connection that is one client's own, with the transaction the client has open on it.
//!
//! Rules (DESIGN 5.1):
//!
//! - A statement that is not read-only runs behind the write gate and inside a transaction: the client's, or, in
//!   autocommit, one that is opened for it alone. The gate is taken before the first of a transaction and held to
//!   its end.
//! - The session never waits for the gate: it says [`Stepped::NeedsGate`] between two statements, and is called
//!   again with the gate in hand. A snapshot that is no longer the newest cannot be written to then; SQLite says so
//!   (`SQLITE_BUSY_SNAPSHOT`), and the gate goes back.
//! - Whether a statement writes is SQLite's to say, and what it does to the transaction is the authorizer's.
//! - The connection goes before the gate does: whoever gets the gate finds no transaction open. It is never
//!   pooled; what a client left on it goes with it.

use rusqlite::TransactionState;
use tidelog_wal::record::Annotation;
use tidelog_wal::shm::WalIndexHeader;

use crate::database::execute::{is_vacuum, run_vacuum};
use crate::database::growth::Growth;
use crate::database::write::Gate;
use crate::database::{Lease, Ticket};
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::request::Access;
use crate::sql::connection::{Purpose, Sqlite, Timing, open};
use crate::sql::own::{self, tenant_text};
use crate::sql::policy::{Control, Permission, Seen};
use crate::sql::run::{
    Collected, Column, Limits, Rows, Statement, Tally, Value, columns, is_blank, no_statement,
    run_anew, run_into, sql_error,
};
use crate::turns::Pace;

use super::program::Described;

/// What bounds the statements of one request.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) access: Access,
    pub(crate) limits: Limits,
    /// The database as its row says now: whether it takes writes, and how large it may be.
    pub(crate) database: Database,
}

impl Terms {
    fn pages_max(&self, page_size: u32) -> Option<u64> {
        let bytes = self.database.row().size_limit?;
        Some(bytes / u64::from(page_size))
    }

    fn permission(&self) -> Permission {
        self.access.permission().in_stream()
    }

    fn annotations(&self) -> Vec<Annotation> {
        self.access.annotations()
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Session {
    // First: closing rolls back, and then the gate is free.
    sqlite: Sqlite,
    writing: Option<Writing>,
    lease: Lease,
    /// Its transaction was rolled back from outside; what belongs to it must not run without it.
    lost: bool,
    /// A setting or a TEMP object stands on the connection.
    marked: bool,
}

/// The gate, held for the client's transaction.
#[derive(Debug)]
struct Writing {
    gate: Gate,
    /// As it stood when the gate was taken: nobody commits meanwhile.
    before: WalIndexHeader,
    /// Set before the first write of the transaction.
    growth: Option<Growth>,
}

/// How a statement went.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// It ran. What it committed, if anything, and whether that changed the schema.
    Done(Tally, Committed),
    /// It writes: call again with the gate.
    NeedsGate,
}

/// A commit of a statement.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    pub(crate) ticket: Option<Ticket>,
    pub(crate) schema_changed: bool,
    /// Rows that were held back until the commit.
    pub(crate) rows: Option<Collected>,
}

/// What a statement is.
#[derive(Debug, Clone, Copy)]
struct Class {
    control: Option<Control>,
    readonly: bool,
    returns: bool,
    /// It may stay prepared: preparing it has no effect, and shows nothing that has to be known.
    plain: bool,
}

/// Rows that are held back, unless nobody wants them.
struct Held {
    rows: Collected,
    wanted: bool,
}

impl Rows for Held {
    fn columns(&mut self, columns: Vec<Column>) -> Result<(), Error> {
        self.rows.columns(columns)
    }

    fn row(&mut self, values: Vec<Value>) -> Result<(), Error> {
        if self.wanted {
            self.rows.row(values)
        } else {
            Ok(())
        }
    }

    fn left(&self) -> Option<usize> {
        self.wanted.then_some(self.rows.budget)
    }
}

impl Session {
    /// Opens the connection, which enforces foreign keys or not until its client says otherwise. Blocks.
    pub(crate) fn open(lease: Lease, foreign_keys: bool) -> Result<Self, Error> {
        let failed = |e| Error::new(Code::Internal, "open a client's connection").caused_by(e);
        let clock = &lease.core.parts.clock;
        let sqlite = open(lease.file(), Purpose::Writer, clock).map_err(failed)?;
        sqlite.enforce_foreign_keys(foreign_keys).map_err(failed)?;
        sqlite
            .as_engine(|c| c.query_row(own::TEMP_PAGES, [], |row| row.get::<_, i64>(0)))
            .map_err(failed)?;
        Ok(Self {
            sqlite,
            writing: None,
            lease,
            lost: false,
            marked: false,
        })
    }

    pub(crate) const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether no transaction is open.
    pub(crate) fn is_autocommit(&self) -> bool {
        self.sqlite.raw().is_autocommit()
    }

    /// Whether it holds the write gate.
    pub(crate) const fn holds_gate(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether nothing would be lost with it.
    pub(crate) fn is_clean(&self) -> bool {
        self.is_autocommit() && !self.lost && !self.marked && self.writing.is_none()
    }

    /// Whether its client could not tell a new connection from it: it is clean and has changed no row, so that
    /// `changes()` and `last_insert_rowid()` are as at the start.
    pub(crate) fn leaves_no_trace(&self) -> bool {
        let raw = self.sqlite.raw();
        self.is_clean() && raw.total_changes() == 0 && raw.last_insert_rowid() == 0
    }

    pub(crate) fn timing(&self) -> Timing {
        self.sqlite.timing()
    }

    pub(crate) fn interrupt_handle(&self) -> rusqlite::InterruptHandle {
        self.sqlite.raw().get_interrupt_handle()
    }

    /// Hands over the gate, for the statement that asked for it.
    pub(crate) fn take_gate(&mut self, gate: Gate) -> Result<(), Error> {
        let before = self.lease.header()?;
        self.writing = Some(Writing {
            gate,
            before,
            growth: None,
        });
        Ok(())
    }

    /// Rolls back what is open. Until the client ends the transaction itself its statements are refused.
    pub(crate) fn lose_transaction(&mut self) {
        if !self.is_autocommit() {
            self.lost = true;
            if let Some(writing) = &self.writing {
                writing.gate.roll_back(&self.sqlite);
            } else {
                // A read transaction: what fails here fails again at the next statement.
                let _ = self.sqlite.as_engine(|c| c.execute_batch("ROLLBACK"));
            }
        }
        self.settle();
    }

    /// Gives the gate back once no transaction needs it.
    fn settle(&mut self) {
        if self.is_autocommit() {
            self.writing = None;
        }
    }

    /// Runs one statement. Blocks.
    pub(crate) fn step(
        &mut self,
        statement: &Statement,
        terms: &Terms,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        let was_writing = self
            .writing
            .as_ref()
            .is_some_and(|one| one.growth.is_some());
        let stepped = self.step_unsettled(statement, terms, rows);
        if stepped.is_err() && !was_writing && !self.writes_now() {
            // It did not come to write (its snapshot may be too old): others may.
            self.writing = None;
        }
        self.settle();
        stepped
    }

    /// Whether SQLite holds the write lock of the file.
    fn writes_now(&self) -> bool {
        let state = self.sqlite.raw().transaction_state(Some("main"));
        // What cannot be told counts as yes: the gate is then held a little longer.
        state.map_or(true, |state| state == TransactionState::Write)
    }

    fn step_unsettled(
        &mut self,
        statement: &Statement,
        terms: &Terms,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        self.lease.check()?;
        let class = self.classify(&statement.sql, terms)?;
        if self.lost {
            return self.step_lost(class);
        }
        if !class.readonly {
            terms.database.admit_write()?;
        }
        match class.control {
            Some(Control::Opens) if !class.readonly => self.begin_writing(statement, terms, rows),
            Some(Control::Ends) if self.writing.is_some() => self.commit(statement, terms, rows),
            Some(_) => self.control(statement, terms, rows),
            None if class.readonly => self.read(statement, terms, class.plain, rows),
            None if self.writing.is_none() => Ok(Stepped::NeedsGate),
            None if self.is_autocommit() => self.write_alone(statement, terms, rows.left()),
            None => self.write_inside(statement, terms, class.returns, rows),
        }
    }

    /// What a statement is. Plain ones stay prepared.
    fn classify(&mut self, sql: &str, terms: &Terms) -> Result<Class, Error> {
        let sqlite = &self.sqlite;
        sqlite.permit(terms.permission());
        if sqlite.raw().is_autocommit() {
            // Reads the schema cookie: a statement prepared under a stale schema would be called wrong.
            sqlite
                .as_engine(|c| c.prepare_cached(own::TOUCH)?.exists([]))
                .map_err(|error| sql_error(sqlite, error))?;
        }
        sqlite.policy().take_seen();
        let prepared = sqlite
            .raw()
            .prepare_cached(tenant_text(sql))
            .map_err(|error| sql_error(sqlite, error))?;
        let seen = sqlite.policy().take_seen();
        if is_blank(&prepared) {
            return Err(no_statement());
        }
        // EXPLAIN COMMIT commits nothing.
        let control = seen.control.filter(|_| prepared.is_explain() == 0);
        let class = Class {
            control,
            readonly: prepared.readonly(),
            returns: prepared.column_count() > 0,
            plain: seen == Seen::default(),
        };
        if !class.plain {
            // From the cache it would show nothing the next time.
            prepared.discard();
        }
        self.marked |= seen.leaves;
        let writes = terms.access.permission().allows(Permission::WRITE);
        if class.control == Some(Control::Opens) && !class.readonly && !writes {
            let what = "the token may not write, so it may not keep others from writing";
            return Err(
                Error::new(Code::InsufficientPermissions, what).with("required", "operator")
            );
        }
        Ok(class)
    }

    /// After its transaction was rolled back from outside only ROLLBACK runs, and says that all is known.
    fn step_lost(&mut self, class: Class) -> Result<Stepped, Error> {
        if class.control == Some(Control::Undoes) {
            self.lost = false;
            return Ok(Stepped::Done(Tally::default(), Committed::default()));
        }
        Err(Error::new(
            Code::TransactionTimeout,
            "the transaction did nothing for too long and was rolled back; send ROLLBACK and begin anew",
        ))
    }

    /// Runs a plain statement within its time, taking turns with others'.
    fn bounded(
        &self,
        statement: &Statement,
        terms: &Terms,
        plain: bool,
        rows: &mut dyn Rows,
    ) -> Result<Tally, Error> {
        let sqlite = &self.sqlite;
        sqlite.permit(terms.permission());
        let deadline = self.lease.core.deadline(terms.limits.deadline);
        sqlite.set_deadline(Some(deadline));
        let paced = sqlite.paced(self.pace(deadline));
        let ran = if plain {
            run_into(sqlite, statement, rows)
        } else {
            run_anew(sqlite, statement, rows)
        };
        drop(paced);
        sqlite.set_deadline(None);
        ran
    }

    /// A turn among the tenants' statements.
    fn pace(&self, deadline: u64) -> Pace {
        let turns = &self.lease.core.turns;
        turns.begin(self.lease.meta().namespace, deadline)
    }

    fn read(
        &self,
        statement: &Statement,
        terms: &Terms,
        plain: bool,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        let tally = self.bounded(statement, terms, plain, rows)?;
        Ok(Stepped::Done(tally, Committed::default()))
    }

    /// BEGIN, SAVEPOINT, ROLLBACK, and COMMIT of what only read.
    fn control(
        &self,
        statement: &Statement,
        terms: &Terms,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        self.sqlite.permit(terms.permission());
        let tally = run_anew(&self.sqlite, statement, rows)?;
        Ok(Stepped::Done(tally, Committed::default()))
    }

    /// BEGIN IMMEDIATE or EXCLUSIVE.
    fn begin_writing(
        &mut self,
        statement: &Statement,
        terms: &Terms,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        if self.writing.is_none() {
            return Ok(Stepped::NeedsGate);
        }
        let done = self.control(statement, terms, rows)?;
        self.bound_growth(terms)?;
        Ok(done)
    }

    /// Sets the bounds of the transaction before its first write.
    fn bound_growth(&mut self, terms: &Terms) -> Result<(), Error> {
        let pages_max = terms.pages_max(self.lease.meta().page_size.get());
        if let Some(writing) = &mut self.writing
            && writing.growth.is_none()
        {
            let growth = Growth::begin(&self.sqlite, pages_max, terms.limits.tables_max)?;
            writing.growth = Some(growth);
        }
        Ok(())
    }

    /// A write inside the client's transaction.
    fn write_inside(
        &mut self,
        statement: &Statement,
        terms: &Terms,
        returns: bool,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        self.bound_growth(terms)?;
        let engine = |sql: &str| {
            self.sqlite
                .as_engine(|c| c.prepare_cached(sql)?.execute([]))
                .map_err(|error| sql_error(&self.sqlite, error))
        };
        // With rows to hand out it may be stopped half-way, when all is written already.
        if returns {
            engine(own::GUARD)?;
        }
        let ran = self.bounded(statement, terms, true, rows);
        if returns && !self.is_autocommit() {
            if ran.is_err() {
                engine(own::GUARD_UNDONE)?;
            }
            engine(own::GUARD_KEPT)?;
        }
        let growth = self.writing.as_ref().and_then(|one| one.growth.as_ref());
        let tally = match growth {
            Some(growth) => growth.judge(ran)?,
            None => ran?,
        };
        Ok(Stepped::Done(tally, Committed::default()))
    }

    /// A write in autocommit: a transaction of its own. Its rows are held back until it is committed.
    fn write_alone(
        &mut self,
        statement: &Statement,
        terms: &Terms,
        left: Option<usize>,
    ) -> Result<Stepped, Error> {
        let Some(writing) = self.writing.take() else {
            return Ok(Stepped::NeedsGate);
        };
        let gate = &writing.gate;
        let sqlite = &self.sqlite;
        let deadline = self.lease.core.deadline(terms.limits.deadline);
        let pages_max = terms.pages_max(self.lease.meta().page_size.get());
        let budget = left.unwrap_or(0).min(terms.limits.result_bytes_max);
        let mut held = Held {
            rows: Collected::within(&terms.limits, budget),
            wanted: left.is_some(),
        };
        let permission = terms.permission();
        let written = gate.transaction_on(
            sqlite,
            permission,
            Some(deadline),
            terms.annotations(),
            |sqlite| {
                let growth = Growth::begin(sqlite, pages_max, terms.limits.tables_max)?;
                sqlite.permit(permission);
                let paced = sqlite.paced(self.pace(deadline));
                let tally = growth.judge(run_into(sqlite, statement, &mut held))?;
                drop(paced);
                Ok((tally, growth.end(sqlite)?))
            },
        );
        match written {
            Ok(written) => Ok(Stepped::Done(
                written.value.0,
                Committed {
                    ticket: written.ticket,
                    schema_changed: written.value.1,
                    rows: Some(held.rows),
                },
            )),
            Err(error) if is_vacuum(&error) => {
                let done = gate.autocommit_on(sqlite, |sqlite| {
                    run_vacuum(sqlite, statement, permission, deadline, self.pace(deadline))
                })?;
                Ok(Stepped::Done(
                    Tally::default(),
                    Committed {
                        ticket: done.ticket,
                        rows: Some(held.rows),
                        ..Committed::default()
                    },
                ))
            }
            Err(error) => Err(error),
        }
    }

    /// COMMIT, END or RELEASE of a transaction that writes.
    fn commit(
        &mut self,
        statement: &Statement,
        terms: &Terms,
        rows: &mut dyn Rows,
    ) -> Result<Stepped, Error> {
        let Some(writing) = &self.writing else {
            return self.control(statement, terms, rows);
        };
        let sqlite = &self.sqlite;
        let schema_changed = match &writing.growth {
            Some(growth) => growth.end(sqlite)?,
            None => false,
        };
        sqlite.permit(terms.permission());
        let ticket =
            writing
                .gate
                .commit_on(sqlite, &writing.before, terms.annotations(), |sqlite| {
                    sqlite
                        .raw()
                        .prepare(tenant_text(&statement.sql))?
                        .raw_execute()
                        .map(|_| ())
                })?;
        rows.columns(Vec::new())?;
        let ended = self.is_autocommit();
        Ok(Stepped::Done(
            Tally::default(),
            Committed {
                ticket,
                schema_changed: schema_changed && ended,
                rows: None,
            },
        ))
    }

    /// What a statement would be, without running it. Blocks.
    pub(crate) fn describe(&mut self, sql: &str, terms: &Terms) -> Result<Described, Error> {
        self.lease.check()?;
        self.classify(sql, terms)?;
        let sqlite = &self.sqlite;
        let prepared = sqlite
            .raw()
            .prepare(tenant_text(sql))
            .map_err(|error| sql_error(sqlite, error))?;
        sqlite.policy().take_seen();
        let params = (1..=prepared.parameter_count())
            .map(|index| prepared.parameter_name(index).map(str::to_owned))
            .collect();
        Ok(Described {
            params,
            columns: columns(&prepared),
            is_explain: prepared.is_explain() != 0,
            is_readonly: prepared.readonly(),
        })
    }
}
