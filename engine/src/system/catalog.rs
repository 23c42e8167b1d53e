//! The system database as a restored file: which namespaces and databases a bucket holds, by name.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use tidelog_wal::NamespaceId;

use super::databases::{COLUMNS, DatabaseRow, Namespace, row};
use super::{id16, timestamp};
use crate::error::{Code, Error};

/// Every database of a restored system database with its namespace, deleted ones among them, by name.
pub fn read(file: &Path) -> Result<Vec<(Namespace, DatabaseRow)>, Error> {
    let unreadable =
        |e| Error::new(Code::DatabaseCorrupt, "read the restored system database").caused_by(e);
    rows(file).map_err(unreadable)
}

fn rows(file: &Path) -> rusqlite::Result<Vec<(Namespace, DatabaseRow)>> {
    // Nobody else has the file; SQLite needs to write beside it because its header says WAL.
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut namespaces = connection.prepare("SELECT id, name, created FROM namespaces")?;
    let namespaces: Vec<Namespace> = namespaces
        .query_map([], |row| {
            Ok(Namespace {
                id: NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(0)?)?),
                name: row.get(1)?,
                created_at: timestamp(row.get(2)?),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut databases = connection.prepare(&format!("SELECT {COLUMNS} FROM databases"))?;
    let mut found = Vec::new();
    for database in databases.query_map([], row)? {
        let database = database?;
        let owner = namespaces
            .iter()
            .find(|namespace| namespace.id == database.namespace);
        // The schema's foreign key says that there is one.
        let owner = owner.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        found.push((owner.clone(), database));
    }
    found.sort_by(|(a, x), (b, y)| (&a.name, &x.name).cmp(&(&b.name, &y.name)));
    Ok(found)
}
