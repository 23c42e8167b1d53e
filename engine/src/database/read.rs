//! Reading: a small pool of connections that cannot write.

use std::sync::Arc;

use super::OpenDb;
use crate::error::{Code, Error};
use crate::sql::connection::{Purpose, Sqlite, open};
use crate::sql::own;
use crate::sql::policy::Permission;
use crate::sql::run::sql_error;

/// A permit to use one reader, held.
#[derive(Debug)]
pub(crate) struct ReaderPermit {
    database: Arc<OpenDb>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl OpenDb {
    /// Waits for a reader.
    pub(crate) async fn reader(self: &Arc<Self>) -> Result<ReaderPermit, Error> {
        self.check()?;
        let slots = Arc::clone(&self.reader_slots);
        let bound = self.core.settings.gate_timeout;
        let waited = tokio::time::timeout(bound, slots.acquire_owned()).await;
        let Ok(Ok(permit)) = waited else {
            let what = format!("other reads held the database for {} ms", bound.as_millis());
            return Err(Error::new(Code::DatabaseBusy, what));
        };
        self.touch();
        Ok(ReaderPermit {
            database: Arc::clone(self),
            _permit: permit,
        })
    }
}

impl ReaderPermit {
    /// Runs `work` inside one read transaction: all its statements see one state. Blocks.
    ///
    /// Statements stay prepared from one transaction to the next as long as they come with one permission.
    pub(crate) fn transaction<T>(
        &self,
        permission: Permission,
        deadline: Option<u64>,
        work: impl FnOnce(&Sqlite) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let database = &self.database;
        database.check()?;
        let taken = database.lock_connections().readers.pop();
        let sqlite = match taken {
            Some(sqlite) => sqlite,
            None => open(
                &database.database_file,
                Purpose::Reader,
                &database.core.parts.clock,
            )
            .map_err(|e| Error::new(Code::Internal, "open a reader").caused_by(e))?,
        };
        let result = (|| {
            sqlite
                .as_engine(|c| {
                    c.prepare_cached(own::BEGIN)?.execute([])?;
                    // Reads the schema cookie: statements prepared under a stale schema would be called wrong.
                    c.prepare_cached(own::TOUCH)?.exists([])
                })
                .map_err(|error| sql_error(&sqlite, error))?;
            sqlite.permit(permission);
            let now = database.core.parts.clock.monotonic_micros();
            let read = database.reads.begin(&sqlite, now, deadline);
            let outcome = read.judge(work(&sqlite));
            drop(read);
            sqlite.set_deadline(None);
            let ended = sqlite.as_engine(|c| c.prepare_cached(own::COMMIT)?.execute([]));
            match (outcome, ended) {
                (Ok(_), Err(error)) => Err(sql_error(&sqlite, error)),
                (outcome, _) => outcome,
            }
        })();
        if sqlite.raw().is_autocommit() && !sqlite.raw().is_busy() {
            database.lock_connections().readers.push(sqlite);
        }
        result
    }
}
