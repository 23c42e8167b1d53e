//! The end of a namespace: hidden with all its databases for seven days, then gone for good; or gone at once.
//!
//! *Soft*: one transaction says deleted of the namespace and of every live database in it. From then on nothing in it
//! is served; the manifests say so as the calendar comes to each. Undelete brings back the namespace and what went
//! with it, not what was deleted before.
//!
//! *Purge*, each step of which may be the last before a crash:
//!
//! 1. the row says that it is being purged: nobody brings it back or begins anything in it. Refused while a database
//!    is protected or an archive held;
//! 2. its databases are purged ([`super::deletion`]), the newest first, so that forks go before what they read through;
//! 3. what the store still has under its name without a row, half-made by a call that failed, gets a row and goes alike;
//! 4. tokens, members, records and the row, in one transaction.
//!
//! What stays: tombstones without a name, and the audit log for its own time. What was begun is ended by the calendar or
//! by the recovery of operations, whichever comes first.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use tidelog_archive::key::{DatabaseObject, Key};
use tidelog_archive::manifest::State;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use super::archives::rfc3339;
use super::old_versions::{copies, old_versions};
use super::retention::run::trusted;
use crate::boxed;
use crate::crash_point;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::node::start::store_error;
use crate::operations::{Begins, Handle, NewOperation, Operation, OperationType, Task};
use crate::remote::publish_error;
use crate::system::audit::{AuditLine, Severity};
use crate::system::databases::{DatabaseRow, Namespace};
use crate::system::namespaces::NamespaceEnd;

/// What purges of databases did, together.
#[derive(Debug, Default)]
struct Sum {
    databases: u64,
    objects: u64,
    bytes: u64,
    archives: u64,
    journal: Json,
}

impl Sum {
    fn add(&mut self, said: &Json) {
        let number = |name: &str| said.get(name).and_then(Json::as_u64).unwrap_or(0);
        self.databases += 1;
        self.objects += number("objects_deleted");
        self.bytes += number("bytes_deleted");
        self.archives += number("archives_deleted");
        if let Some(journal) = said.get("journal") {
            self.journal = journal.clone();
        }
    }
}

impl Engine {
    /// The namespace of an id.
    #[boxed]
    pub async fn namespace_by_id(&self, id: NamespaceId) -> Result<Namespace, Error> {
        self.inner.system.namespace_by_id(id).await
    }

    /// The end of a namespace, if it is deleted; costs no read.
    pub fn namespace_end(&self, id: NamespaceId) -> Option<NamespaceEnd> {
        self.inner.system.namespace_end(id)
    }

    /// Refuses what is asked of a namespace that is deleted.
    pub fn refuse_ended(&self, id: NamespaceId) -> Result<(), Error> {
        self.inner.system.refuse_ended(id)
    }

    fn refuse_worked_in(&self, id: NamespaceId) -> Result<(), Error> {
        let Some(operation) = self.inner.running.changing_in(id) else {
            return Ok(());
        };
        let what =
            format!("operation {operation} works in this namespace; wait for it or cancel it");
        Err(Error::new(Code::OperationInProgress, what).with("operation", operation))
    }

    fn hide_all(&self, rows: &[DatabaseRow], hidden: bool) {
        let now = self.now();
        for row in rows {
            self.inner.registry.slot(row.id).hide(hidden);
            self.inner.core.calendar.not_later(row.id, now);
        }
    }

    /// Hides a namespace and every database in it; both can be brought back for seven days.
    #[boxed]
    pub async fn namespace_delete(&self, id: NamespaceId) -> Result<NamespaceEnd, Error> {
        self.inner.system.refuse_ended(id)?;
        self.refuse_worked_in(id)?;
        let (end, rows) = self.inner.system.namespace_delete(id).await?;
        self.hide_all(&rows, true);
        Ok(end)
    }

    /// Brings back a namespace, and the databases that went with it; answers how many.
    #[boxed]
    pub async fn namespace_undelete(&self, id: NamespaceId) -> Result<usize, Error> {
        match self.inner.system.namespace_end(id) {
            None => return Ok(0),
            Some(end) if end.purging => self.inner.system.refuse_ended(id)?,
            Some(_) => {}
        }
        let rows = self.inner.system.namespace_undelete(id).await?;
        self.hide_all(&rows, false);
        Ok(rows.len())
    }

    /// Destroys a namespace for good, deleted or not.
    #[boxed]
    pub async fn namespace_purge(
        &self,
        id: NamespaceId,
        token: Option<String>,
    ) -> Result<Handle, Error> {
        let namespace = self.inner.system.namespace_by_id(id).await?;
        self.refuse_worked_in(id)?;
        let new = NewOperation {
            kind: OperationType::Purge,
            namespace: id,
            database: None,
            exclusive: false,
            token,
            note: json!({ "namespace": namespace.name }),
            begins: Begins::Stored,
        };
        let engine = self.clone();
        self.operate(new, async move |task| {
            let id = (id, Some(task.id()));
            let _turn = engine.inner.core.calendar.ending().await;
            engine.end_namespace(id, Some(&task)).await
        })
        .await
    }

    /// Ends the purge of a namespace that an earlier life began; `None` if it had not come to anything.
    pub(crate) async fn recover_namespace_purge(
        &self,
        operation: &Operation,
    ) -> Result<Option<Json>, Error> {
        let (id, system) = (operation.namespace, &self.inner.system);
        let name = operation.note.get("namespace").cloned();
        let gone = match system.namespace_by_id(id).await {
            Err(error) if error.code() == Code::NamespaceNotFound => true,
            found => found.map(|_| false)?,
        };
        if gone {
            return Ok(Some(json!({ "purged": name, "id": id.to_string() })));
        }
        if !system.namespace_end(id).is_some_and(|end| end.purging) {
            return Ok(None);
        }
        let _turn = self.inner.core.calendar.ending().await;
        let own = (id, Some(operation.id.clone()));
        self.end_namespace(own, None).await.map(Some)
    }

    /// Ends the namespaces that were begun to be purged, and those that were deleted seven days ago and have no
    /// database left: the calendar purges each in its own time, and keeps those with archives.
    pub(crate) async fn end_deleted_namespaces(&self) -> Result<(), Error> {
        let system = &self.inner.system;
        for (id, end) in system.namespaces_ended() {
            if !end.purging && end.over_at() > self.now() {
                continue;
            }
            // Whoever purges it now ends it.
            let Some(_turn) = self.inner.core.calendar.try_ending() else {
                return Ok(());
            };
            if !end.purging {
                let kept = !system.databases_of(id).await?.is_empty();
                let core = &self.inner.core;
                if kept || end.over_at() > trusted(core, system.namespace, system.id).await? {
                    continue;
                }
            }
            if let Err(error) = self.end_namespace((id, None), None).await {
                tracing::warn!(namespace = %id, %error, "the end of a namespace is tried again");
            }
        }
        Ok(())
    }

    /// The time by which the retention of archives is judged: the store is asked where any archive is retained.
    async fn judged_at(&self, id: NamespaceId) -> Result<Timestamp, Error> {
        let system = &self.inner.system;
        if system.any_retained(id).await? {
            trusted(&self.inner.core, system.namespace, system.id).await
        } else {
            Ok(self.now())
        }
    }

    /// Purges a namespace, from wherever an earlier attempt stopped. The caller holds the turn to end one.
    async fn end_namespace(
        &self,
        (id, operation): (NamespaceId, Option<String>),
        task: Option<&Task>,
    ) -> Result<Json, Error> {
        let system = &self.inner.system;
        let namespace = match system.namespace_by_id(id).await {
            Err(error) if error.code() == Code::NamespaceNotFound => {
                return Ok(json!({ "purged": null, "id": id.to_string() }));
            }
            found => found?,
        };
        if let Some(task) = task {
            task.phase("closing", 0)?;
            task.point_of_no_return()?;
        }
        if !system.namespace_end(id).is_some_and(|end| end.purging) {
            let now = self.judged_at(id).await?;
            let rows = system.namespace_purging(id, now).await?;
            self.hide_all(&rows, true);
        }
        crash_point!("namespace.after_closing");
        let mut sum = Sum::default();
        self.purge_databases(id, &mut sum, task).await?;
        for orphan in self.without_row(id).await? {
            system.database_add_hidden(&orphan).await?;
        }
        self.purge_databases(id, &mut sum, task).await?;
        crash_point!("namespace.before_forget");
        let kept = self.inner.core.settings.audit_retention;
        let kept = u64::try_from(kept.as_micros()).unwrap_or(u64::MAX);
        let audit = Timestamp::from_micros(self.now().micros().saturating_add(kept));
        let said = json!({
            "purged": namespace.name,
            "id": id.to_string(),
            "databases_purged": sum.databases,
            "objects_deleted": sum.objects,
            "bytes_deleted": sum.bytes,
            "archives_deleted": sum.archives,
            "objects_gone_at": rfc3339(self.now()),
            "audit_log_gone_at": rfc3339(audit),
            "copies": copies(&self.inner.core),
            "old_versions": old_versions(&self.inner.core, self.now()),
            "journal": sum.journal,
        });
        self.audit_now(AuditLine {
            event: "admin.namespace_purge".to_owned(),
            severity: Severity::Critical,
            action: "purge".to_owned(),
            resource: "namespace".to_owned(),
            resource_id: Some(namespace.name.clone()),
            details: json!({ "id": id.to_string(), "databases": sum.databases, "operation": operation }),
            success: true,
            ..AuditLine::default()
        })
        .await?;
        system.namespace_forget(id, operation).await?;
        Ok(said)
    }

    /// Purges the databases of a namespace that is closed for good.
    async fn purge_databases(
        &self,
        id: NamespaceId,
        sum: &mut Sum,
        task: Option<&Task>,
    ) -> Result<(), Error> {
        loop {
            let rows = self.inner.system.databases_of(id).await?;
            let (mut gone, mut pinned) = (0, None);
            for row in &rows {
                if let Some(task) = task {
                    task.progress(0);
                }
                match self.purge(row, None).await {
                    Ok(said) => {
                        sum.add(&said);
                        gone += 1;
                    }
                    // Its forks go first.
                    Err(error) if error.code() == Code::ForkParentPinned => pinned = Some(error),
                    Err(error) => return Err(error),
                }
            }
            match pinned {
                None => return Ok(()),
                Some(error) if gone == 0 => return Err(error),
                Some(_) => {}
            }
        }
    }

    /// Rows for what the store has of a namespace that no row tells of and no tombstone: drafts of calls that failed.
    async fn without_row(&self, id: NamespaceId) -> Result<Vec<DatabaseRow>, Error> {
        let remote = &self.inner.core.remote;
        let prefix = format!("tenants/{id}/");
        let found = remote.store.list(&prefix).await;
        let found = found.map_err(|e| store_error("list what is left of a namespace", e))?;
        let of = |key: &str| match Key::parse(key) {
            Some(Key::Database(_, database, DatabaseObject::Manifest)) => Some(database),
            _ => None,
        };
        let listed: BTreeSet<DatabaseId> =
            found.iter().filter_map(|entry| of(&entry.key)).collect();
        let mut rows = Vec::new();
        for database in listed {
            if self.inner.system.database_exists(database).await? {
                continue;
            }
            if remote.is_shredded(id, database).await? {
                continue;
            }
            let loaded = remote.manifests(id, database).load().await;
            let loaded = loaded.map_err(|e| publish_error("read a manifest", e))?;
            let manifest = loaded.manifest;
            if matches!(manifest.state, State::Purged(_)) {
                continue;
            }
            rows.push(DatabaseRow::plain(
                (id, database),
                manifest.name_hint.clone(),
                manifest.page_size,
                self.now(),
            ));
        }
        Ok(rows)
    }
}
