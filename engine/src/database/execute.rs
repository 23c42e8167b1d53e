//! A request against one database: reads on a reader, everything else behind the write gate.
//!
//! Whether a request writes is SQLite's to say: all its statements are prepared on a reader first, and only
//! if each is read-only do they run there. A statement that cannot be prepared there (its table is made by one
//! before it) goes to the writer, which gives the true error.

use std::sync::Arc;

use tidelog_wal::{DatabaseId, Position, Timestamp};

use super::growth::Growth;
use super::ticket::Ticket;
use super::{Lease, OpenDb, idempotency};
use crate::capture::Head;
use crate::core::Core;
use crate::engine::Database;
use crate::error::{Code, Error};
use crate::executor::blocking;
use crate::jobs::Job;
use crate::request::{Request, Response};
use crate::settings::Durability;
use crate::sql::connection::Sqlite;
use crate::sql::own::tenant_text;
use crate::sql::policy::Permission;
use crate::sql::run::{Statement, StatementResult, check, run, sql_error};
use crate::turns::Pace;

/// The most statements of one batch.
const STATEMENTS_MAX: usize = 100;

/// How a read attempt ended.
enum Attempt {
    /// The results, and what is captured after them.
    Read(Vec<StatementResult>, Head),
    NeedsWriter,
}

/// What the settings of a database allow a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The most bytes it may have.
    pub(crate) size_max: Option<u64>,
    /// Whether foreign keys are enforced.
    pub(crate) foreign_keys: bool,
}

/// Runs a request. `durability` is what holds if the request does not say; `writes` is why the database takes no
/// writes, if so.
pub(crate) async fn execute(
    lease: Lease,
    request: Request,
    durability: Durability,
    (writes, bounds): (Result<(), Error>, Bounds),
    database: &Database,
) -> Result<Response, Error> {
    if request.statements.is_empty() || request.statements.len() > STATEMENTS_MAX {
        let have = request.statements.len();
        let what = format!("a batch holds 1 to {STATEMENTS_MAX} statements, this one {have}");
        return Err(Error::new(Code::InvalidRequest, what).with("limit", STATEMENTS_MAX));
    }
    for statement in &request.statements {
        check(statement, &request.limits)?;
    }
    let request = Arc::new(request);
    if request.idempotency.is_none()
        && !is_known_to_write(&lease, &request)
        && let Attempt::Read(results, head) =
            try_reading(&lease, &request, bounds, database.worker().await?).await?
    {
        return Ok(answer(&lease, results, head.position(), (false, false)));
    }
    writes?;
    database.history_pause().await;
    let durability = request.durability.unwrap_or(durability);
    let ((results, ticket, (replayed, schema_changed)), captured) =
        write(&lease, &request, bounds, database).await?;
    let position = match ticket {
        None => {
            let head = captured?;
            // Its answer counts as its commit's: a retry must not hear of more than is durable.
            if replayed {
                lease.wait_durable(lease.last_lsn(), durability).await?;
            }
            head.position()
        }
        Some(ticket) => {
            captured.map_err(super::write::after_commit)?;
            acknowledge(&lease, &ticket, durability).await?
        }
    };
    Ok(answer(
        &lease,
        results,
        position,
        (replayed, schema_changed),
    ))
}

/// Waits until a commit is as durable as asked.
pub(crate) async fn acknowledge(
    database: &Arc<OpenDb>,
    ticket: &Ticket,
    durability: Durability,
) -> Result<Position, Error> {
    let resolved = ticket.resolve().await?;
    database
        .wait_durable(resolved.lsn, durability)
        .await
        .map_err(|error| match error.code() {
            // Said as what they are: it stands and is late, or this node's writes count no more.
            Code::DurabilityTimeout | Code::WriterFenced => error,
            _ => super::write::after_commit(error),
        })
        .map_err(|error| error.with("bookmark", resolved.position.to_string()))?;
    Ok(resolved.position)
}

fn answer(
    database: &OpenDb,
    results: Vec<StatementResult>,
    bookmark: Position,
    (replayed, schema_changed): (bool, bool),
) -> Response {
    Response {
        results,
        bookmark,
        durable_bookmark: database.durable(),
        replayed,
        schema_changed,
    }
}

/// Whether a statement of the request was found to write before: it need not be tried on a reader again.
fn is_known_to_write(database: &OpenDb, request: &Request) -> bool {
    // Who may not write hears of it from the reader, without waiting for the gate.
    request.access.permission().allows(Permission::WRITE)
        && request
            .statements
            .iter()
            .any(|statement| database.write_texts.holds(&statement.sql))
}

async fn try_reading(
    lease: &Lease,
    request: &Arc<Request>,
    bounds: Bounds,
    job: Job,
) -> Result<Attempt, Error> {
    let reader = lease.reader().await?;
    let request = Arc::clone(request);
    let (turns, tenant) = (Arc::clone(&lease.core.turns), lease.meta.namespace);
    let deadline = lease.core.deadline(request.limits.deadline);
    let database = Arc::clone(lease);
    blocking(lease.core.executor(), move || {
        let permission = request.access.permission();
        let results = reader.transaction(permission, Some(deadline), |sqlite| {
            let set = sqlite.enforce_foreign_keys(bounds.foreign_keys);
            set.map_err(|error| sql_error(sqlite, error))?;
            if !all_read_only(sqlite, &request, &database)? {
                return Ok(None);
            }
            let _paced = sqlite.paced(turns.begin(tenant, deadline));
            let mut budget = request.limits.result_bytes_max;
            let mut results = Vec::with_capacity(request.statements.len());
            for statement in &request.statements {
                results.push(run(sqlite, statement, &request.limits, &mut budget)?);
            }
            Ok(Some(results))
        })?;
        let Some(results) = results else {
            return Ok(Attempt::NeedsWriter);
        };
        // Neither is needed to capture.
        drop((reader, job));
        Ok(Attempt::Read(results, database.capture_now()?))
    })
    .await
}

fn all_read_only(sqlite: &Sqlite, request: &Request, database: &OpenDb) -> Result<bool, Error> {
    let permission = request.access.permission();
    for statement in &request.statements {
        sqlite.permit(permission);
        match sqlite.raw().prepare_cached(tenant_text(&statement.sql)) {
            Ok(prepared) if prepared.readonly() => {}
            // What a single statement is refused for, or is wrong with it, the caller hears at once.
            Err(error) if request.statements.len() == 1 => return Err(sql_error(sqlite, error)),
            Ok(_) => {
                database.write_texts.note(&statement.sql);
                return Ok(false);
            }
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Results, the ticket, and whether they were replayed and the schema was changed.
type Done = (Vec<StatementResult>, Option<Ticket>, (bool, bool));

/// Runs the request as a writer. Answers what it did, and what is captured after it.
async fn write(
    lease: &Lease,
    request: &Arc<Request>,
    bounds: Bounds,
    database: &Database,
) -> Result<(Done, Result<Head, Error>), Error> {
    // No worker is held while the gate is waited for: whoever holds the gate may need one to go on.
    let mut gate = lease.gate().await?;
    let owed = gate.owing();
    let job = database.worker().await?;
    let page_size = u64::from(lease.meta.page_size.get());
    let pages_max = bounds.size_max.map(|bytes| bytes / page_size);
    let deadline = lease.core.deadline(request.limits.deadline);
    let (request, id) = (Arc::clone(request), lease.meta.id);
    let now = lease.core.parts.clock.wall();
    let core = Arc::clone(&lease.core);
    let tenant = lease.meta.namespace;
    let of = database.clone();
    blocking(lease.core.executor(), move || {
        let begin = || core.turns.begin(tenant, deadline);
        let room = of.admit_history();
        gate.enforce_foreign_keys(bounds.foreign_keys)?;
        let done = write_behind(
            &gate,
            &request,
            deadline,
            (pages_max, room),
            (&core, id, now),
            &begin,
        );
        // Others may write and run meanwhile; waiting for the disk or the store, later, takes no worker either.
        drop((gate, job));
        let captured = owed.pay();
        Ok((done?, captured))
    })
    .await
}

/// Runs the request behind the gate. Blocks.
fn write_behind(
    gate: &super::write::Gate,
    request: &Request,
    deadline: u64,
    (pages_max, room): (Option<u64>, Result<(), Error>),
    (core, id, now): (&Core, DatabaseId, Timestamp),
    begin: &dyn Fn() -> Pace,
) -> Result<Done, Error> {
    let mut budget = request.limits.result_bytes_max;
    if !request.transaction && request.idempotency.is_none() {
        room?;
        return one_by_one(gate, request, deadline, &mut budget, pages_max, begin);
    }
    let permission = request.access.permission();
    let written = gate.transaction(
        permission,
        Some(deadline),
        request.access.annotations(),
        |sqlite| {
            if let Some(key) = &request.idempotency {
                if let Some(stored) = idempotency::find(sqlite, id, key, now)? {
                    return Ok((stored, (true, false)));
                }
                core.rolled_back.check(id, &idempotency::row_key(key))?;
            }
            room?;
            let growth = Growth::begin(sqlite, pages_max, request.limits.tables_max)?;
            sqlite.permit(permission);
            let paced = sqlite.paced(begin());
            let mut results = Vec::with_capacity(request.statements.len());
            for (at, statement) in request.statements.iter().enumerate() {
                let result = run(sqlite, statement, &request.limits, &mut budget);
                results.push(
                    growth
                        .judge(result)
                        .map_err(|error| error.with("statement", at))?,
                );
            }
            drop(paced);
            let changed = growth.end(sqlite)?;
            if let Some(key) = &request.idempotency {
                idempotency::store(sqlite, id, key, now, &results)?;
            }
            Ok((results, (false, changed)))
        },
    );
    match written {
        Ok(written) => Ok((written.value.0, written.ticket, written.value.1)),
        Err(error) if request.statements.len() == 1 && is_vacuum(&error) => {
            vacuum(gate, request, deadline, begin)
        }
        Err(error) => Err(error),
    }
}

/// Each statement in a transaction of its own; the first error ends the request, what came before stays.
fn one_by_one(
    gate: &super::write::Gate,
    request: &Request,
    deadline: u64,
    budget: &mut usize,
    pages_max: Option<u64>,
    begin: &dyn Fn() -> Pace,
) -> Result<Done, Error> {
    let permission = request.access.permission();
    let mut results = Vec::with_capacity(request.statements.len());
    let (mut last, mut changed) = (None, false);
    for (at, statement) in request.statements.iter().enumerate() {
        let annotations = request.access.annotations();
        let written = gate
            .transaction(permission, Some(deadline), annotations, |sqlite| {
                let growth = Growth::begin(sqlite, pages_max, request.limits.tables_max)?;
                sqlite.permit(permission);
                let paced = sqlite.paced(begin());
                let result = growth.judge(run(sqlite, statement, &request.limits, budget))?;
                drop(paced);
                Ok((result, growth.end(sqlite)?))
            })
            .map_err(|error| error.with("statement", at).with("completed", at))?;
        results.push(written.value.0);
        changed |= written.value.1;
        last = written.ticket.or(last);
    }
    Ok((results, last, (false, changed)))
}

/// SQLite itself says that a statement is a VACUUM: by refusing it inside a transaction.
pub(crate) fn is_vacuum(error: &Error) -> bool {
    error.code() == Code::SqlError
        && error
            .to_string()
            .contains("cannot VACUUM from within a transaction")
}

fn vacuum(
    gate: &super::write::Gate,
    request: &Request,
    deadline: u64,
    begin: &dyn Fn() -> Pace,
) -> Result<Done, Error> {
    if request.idempotency.is_some() {
        let what = "VACUUM takes no Idempotency-Key: it runs outside any transaction";
        return Err(Error::new(Code::InvalidRequest, what));
    }
    let Some(statement) = request.statements.first() else {
        return Err(Error::internal("a VACUUM without a statement"));
    };
    let permission = request.access.permission();
    let written =
        gate.autocommit(|sqlite| run_vacuum(sqlite, statement, permission, deadline, begin()))?;
    Ok((
        vec![StatementResult::default()],
        written.ticket,
        (false, false),
    ))
}

/// Runs a VACUUM on a connection in autocommit.
pub(crate) fn run_vacuum(
    sqlite: &Sqlite,
    statement: &Statement,
    permission: Permission,
    deadline: u64,
    pace: Pace,
) -> Result<(), Error> {
    sqlite.permit(permission);
    let mut prepared = sqlite
        .raw()
        .prepare(&statement.sql)
        .map_err(|error| sql_error(sqlite, error))?;
    sqlite.set_deadline(Some(deadline));
    sqlite.policy().set(Permission::VACUUM);
    let paced = sqlite.paced(pace);
    let ran = prepared.raw_execute();
    drop(paced);
    sqlite.policy().set(Permission::ENGINE);
    sqlite.set_deadline(None);
    ran.map_err(|error| sql_error(sqlite, error))?;
    Ok(())
}
