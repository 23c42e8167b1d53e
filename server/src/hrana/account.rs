//! What a request came to, beside its answer: for the insights, the slow log and the audit log. A statement that is
//! refused inside an answer of 200 is on record like a call that is refused whole.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use tidelog_engine::{Database, Error};

use crate::http::Call;
use crate::http::audit::Ended;
use crate::problem::Problem;
use crate::routes::query::{self, Cost};

/// The account of one request.
#[derive(Debug, Default)]
pub(crate) struct Account {
    began: u64,
    pub(crate) cost: Cost,
    /// The texts that ran, or were to.
    pub(crate) texts: Vec<String>,
    /// A commit changed the schema.
    pub(crate) schema_changed: bool,
    pub(crate) failures: Failures,
}

/// The statements that failed.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    first: Option<StatusCode>,
    /// One refusal of each code: a request with a thousand of them is one event.
    denied: BTreeMap<&'static str, Problem>,
}

impl Failures {
    /// A statement failed.
    pub(crate) fn add(&mut self, error: &Error) {
        let problem = Problem::from(error);
        self.first.get_or_insert(problem.status());
        if problem.is_denial() {
            self.denied.entry(problem.code()).or_insert(problem);
        }
    }

    /// A statement was wrong before SQLite saw it.
    pub(crate) fn add_wrong(&mut self) {
        self.first.get_or_insert(StatusCode::UNPROCESSABLE_ENTITY);
    }
}

impl Account {
    /// The account of a request that began then.
    pub(crate) fn of(began: u64) -> Self {
        Self {
            began,
            ..Self::default()
        }
    }

    /// How long the request took so far.
    pub(crate) fn took(&self, call: &Call) -> Duration {
        let micros = call.app.clock.monotonic_micros();
        Duration::from_micros(micros.saturating_sub(self.began))
    }

    /// Writes it down: the request has ended, with `failed` if it failed whole. `tells_schema` says that the answer
    /// goes to the layer that puts changes of the schema on record.
    pub(crate) fn close(
        self,
        call: &Call,
        database: &Database,
        failed: Option<&Problem>,
        tells_schema: bool,
    ) -> Result<(), Problem> {
        let took = self.took(call);
        for problem in self.failures.denied.values() {
            call.note(&Ended::Refused(problem), took);
        }
        if self.schema_changed && !tells_schema {
            let ended = Ended::Done {
                schema_changed: true,
            };
            call.note(&ended, took);
        }
        let status = failed
            .map(Problem::status)
            .or(self.failures.first)
            .unwrap_or(StatusCode::OK);
        query::note(call, database, status.as_u16(), self.cost, took)?;
        query::slow(call, database, &self.texts, took)
    }
}
