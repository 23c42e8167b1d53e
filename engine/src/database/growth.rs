//! How large a database may become: a bound on its pages, which SQLite keeps itself, and one on its tables,
//! which is judged before the commit of a transaction that changed the schema.
//!
//! A database above its bound still takes what does not grow it.

use crate::error::{Code, Error};
use crate::sql::connection::Sqlite;
use crate::sql::own;
use crate::sql::run::sql_error;

/// The most pages SQLite can be told of.
const PAGES_MAX: u64 = 4_294_967_294;

/// The bounds of one transaction.
#[derive(Debug)]
pub(crate) struct Growth {
    pages_max: Option<u64>,
    tables_max: Option<u32>,
    cookie: i64,
}

impl Growth {
    /// Sets the bounds for the transaction that has begun.
    pub(crate) fn begin(
        sqlite: &Sqlite,
        pages_max: Option<u64>,
        tables_max: Option<u32>,
    ) -> Result<Self, Error> {
        let pages = pages_max.unwrap_or(PAGES_MAX).clamp(1, PAGES_MAX);
        let begun = sqlite.as_engine(|c| {
            // The connection keeps the bound: it is set for every transaction.
            c.prepare_cached(&own::max_page_count(pages))?
                .query_row([], |row| row.get::<_, i64>(0))?;
            c.prepare_cached(own::SCHEMA_VERSION)?
                .query_row([], |row| row.get(0))
        });
        Ok(Self {
            pages_max,
            tables_max,
            cookie: begun.map_err(|error| sql_error(sqlite, error))?,
        })
    }

    /// Tells a full database from a full disk.
    pub(crate) fn judge<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let Some(pages) = self.pages_max else {
            return result;
        };
        result.map_err(|error| {
            if error.code() == Code::DiskFull {
                let what =
                    "the database is at its size limit; delete rows, or have the limit raised";
                Error::new(Code::QuotaExceeded, what)
                    .with("limit_pages", pages)
                    .caused_by(error)
            } else {
                error
            }
        })
    }

    /// Judges the tables, if the transaction changed the schema; answers whether it did.
    pub(crate) fn end(&self, sqlite: &Sqlite) -> Result<bool, Error> {
        let seen = sqlite.as_engine(|c| {
            let cookie: i64 = c
                .prepare_cached(own::SCHEMA_VERSION)?
                .query_row([], |row| row.get(0))?;
            if cookie == self.cookie {
                return Ok(None);
            }
            c.prepare_cached(own::COUNT_TABLES)?
                .query_row([], |row| row.get::<_, u32>(0))
                .map(Some)
        });
        let tables = seen.map_err(|error| sql_error(sqlite, error))?;
        match (tables, self.tables_max) {
            (Some(tables), Some(max)) if tables > max => {
                let what = format!("the database would have {tables} tables, the limit is {max}");
                Err(Error::new(Code::QuotaExceeded, what).with("limit", max))
            }
            (tables, _) => Ok(tables.is_some()),
        }
    }
}
