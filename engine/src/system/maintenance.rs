//! Maintenance: writes of the whole server, or of one namespace, are refused until it ends; reads go on.
//!
//! It is stored, so that a restart does not end it, and kept in memory, since every write asks.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use rusqlite::params;
use tidelog_wal::{NamespaceId, Timestamp};

use super::{System, id16, micros, timestamp};
use crate::error::{Code, Error};

/// A maintenance that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// Why, for those whose writes are refused.
    pub reason: String,
    /// Since when.
    pub started_at: Timestamp,
}

/// What is under maintenance: `None` is the server.
#[derive(Debug, Default)]
pub(crate) struct State {
    on: RwLock<HashMap<Option<NamespaceId>, Maintenance>>,
}

fn scope(namespace: Option<NamespaceId>) -> Vec<u8> {
    namespace.map_or_else(Vec::new, |id| id.as_bytes().to_vec())
}

impl System {
    /// Reads what an earlier life left on.
    pub(crate) async fn load_maintenance(&self) -> Result<(), Error> {
        let rows = self
            .read(|c| {
                let mut select = c.prepare("SELECT scope, reason, started FROM maintenance")?;
                let rows = select.query_map([], |row| {
                    let scope: Vec<u8> = row.get(0)?;
                    let scope = match &scope[..] {
                        [] => None,
                        id => Some(NamespaceId::from_bytes(id16(id)?)),
                    };
                    let on = Maintenance {
                        reason: row.get(1)?,
                        started_at: timestamp(row.get(2)?),
                    };
                    Ok((scope, on))
                })?;
                rows.collect::<rusqlite::Result<HashMap<_, _>>>()
            })
            .await?;
        *self
            .maintenance
            .on
            .write()
            .unwrap_or_else(PoisonError::into_inner) = rows;
        Ok(())
    }

    /// The maintenance of a scope, if it is on.
    pub(crate) fn maintenance(&self, scope: Option<NamespaceId>) -> Option<Maintenance> {
        let on = self
            .maintenance
            .on
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        on.get(&scope).cloned()
    }

    /// Refuses a write while the server or the namespace is under maintenance.
    pub(crate) fn check_maintenance(&self, namespace: NamespaceId) -> Result<(), Error> {
        let on = self
            .maintenance
            .on
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let found = on.get(&None).or_else(|| on.get(&Some(namespace)));
        match found {
            None => Ok(()),
            Some(on) => {
                let what = format!("under maintenance, reads go on: {}", on.reason);
                Err(Error::new(Code::Maintenance, what).with("reason", on.reason.clone()))
            }
        }
    }

    /// Forgets the maintenance of a namespace that is gone.
    pub(super) fn drop_maintenance(&self, namespace: NamespaceId) {
        let on = &self.maintenance.on;
        let mut on = on.write().unwrap_or_else(PoisonError::into_inner);
        on.remove(&Some(namespace));
    }

    /// Switches the maintenance of a scope on, for a reason, or off. Starting it twice keeps its beginning.
    pub(crate) async fn set_maintenance(
        &self,
        namespace: Option<NamespaceId>,
        reason: Option<String>,
    ) -> Result<Option<Maintenance>, Error> {
        let began = self.maintenance(namespace).map(|on| on.started_at);
        let on = reason.map(|reason| Maintenance {
            reason,
            started_at: began.unwrap_or_else(|| self.core.parts.clock.wall()),
        });
        let (key, row) = (scope(namespace), on.clone());
        self.write(move |c| match row {
            None => c.execute("DELETE FROM maintenance WHERE scope = ?1", [key]),
            Some(on) => c.execute(
                "INSERT OR REPLACE INTO maintenance(scope, reason, started) VALUES(?1, ?2, ?3)",
                params![key, on.reason, micros(on.started_at)],
            ),
        })
        .await?;
        let mut all = self
            .maintenance
            .on
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match &on {
            None => all.remove(&namespace),
            Some(on) => all.insert(namespace, on.clone()),
        };
        Ok(on)
    }
}
