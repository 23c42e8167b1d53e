//! The engine as those see it who run it for others: namespaces with their owners, tokens, members,
//! maintenance, answers to repeat, the audit log, insights, and what the node counts.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value as Json;
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use crate::boxed;
use crate::engine::{Database, Engine, Inner};
use crate::error::{Code, Error};
use crate::meters::NodeStatus;
use crate::request::{IdempotencyKey, Role};
use crate::system::audit::{self, AuditFilter, AuditLine};
use crate::system::databases::{DatabaseRow, Namespace};
use crate::system::insights::{self, Insight, QueryNote};
use crate::system::maintenance::Maintenance;
use crate::system::members::Member;
use crate::system::requests::Record;
use crate::system::tokens::{NewToken, Principal, TokenInfo};
use crate::system::{Page, PageOf};

/// How long a stop waits for the last audit lines to be stored.
const LAST_FLUSH: Duration = Duration::from_secs(2);

impl Engine {
    /// Makes a namespace with its first owner token; `record` is the answer to repeat.
    pub async fn namespace_create_owned(
        &self,
        name: &str,
        record: impl FnOnce(&Namespace, &TokenInfo) -> Option<Record>,
    ) -> Result<(Namespace, TokenInfo, String), Error> {
        self.inner.system.namespace_create_owned(name, record).await
    }

    /// As [`Engine::token_create`]; `record` is the answer to repeat.
    pub async fn token_create_recorded(
        &self,
        new: NewToken,
        record: impl FnOnce(&TokenInfo) -> Option<Record>,
    ) -> Result<(TokenInfo, String), Error> {
        self.inner.system.token_create(new, record).await
    }

    /// Whether a secret was found valid lately; costs no read.
    pub fn knows(&self, secret: &str) -> bool {
        self.inner.system.token_is_known(secret)
    }

    /// A token of a namespace.
    #[boxed]
    pub async fn token(&self, namespace: NamespaceId, id: &str) -> Result<TokenInfo, Error> {
        self.inner.system.token(namespace, id).await
    }

    /// Makes a successor of a token, which itself ends `overlap` from now at the latest.
    pub async fn token_rotate(
        &self,
        namespace: NamespaceId,
        id: &str,
        overlap: Duration,
        record: impl FnOnce(&TokenInfo) -> Option<Record>,
    ) -> Result<(TokenInfo, String), Error> {
        let overlap = u64::try_from(overlap.as_micros()).unwrap_or(u64::MAX);
        self.inner
            .system
            .token_rotate(namespace, id, overlap, record)
            .await
    }

    /// Ends every token of a member and every signed statement about them so far; answers how many tokens.
    #[boxed]
    pub async fn revoke_principal(
        &self,
        namespace: NamespaceId,
        principal: &str,
        record: Option<Record>,
    ) -> Result<usize, Error> {
        self.inner
            .system
            .revoke_principal(namespace, principal, record)
            .await
    }

    /// Who a signed statement speaks of, whose signature the caller has proven.
    #[boxed]
    pub async fn vouched(
        &self,
        namespace: &str,
        principal: &str,
        issued: Option<Timestamp>,
        expires_at: Timestamp,
    ) -> Result<Principal, Error> {
        self.inner
            .system
            .vouched(namespace, principal, issued, expires_at)
            .await
    }

    /// What a caller may do, in a database if one is named.
    #[boxed]
    pub async fn role_of(
        &self,
        principal: &Principal,
        database: Option<&str>,
    ) -> Result<Role, Error> {
        self.inner.system.role_of(principal, database).await
    }

    /// Counts what may end or lessen a right: while it stays, whoever was let in may stay.
    pub fn rights_epoch(&self) -> u64 {
        self.inner.system.rights_epoch()
    }

    /// Judges a caller anew who was let in a while ago: what they may do in a database now.
    #[boxed]
    pub async fn judge_again(
        &self,
        principal: &Principal,
        database: Option<&str>,
    ) -> Result<Role, Error> {
        self.inner.system.judge_again(principal, database).await
    }

    /// A member, if there is one of that name.
    #[boxed]
    pub async fn member(
        &self,
        namespace: NamespaceId,
        principal: &str,
    ) -> Result<Option<Member>, Error> {
        self.inner.system.member(namespace, principal).await
    }

    /// The members of a namespace.
    #[boxed]
    pub async fn member_list(
        &self,
        namespace: NamespaceId,
        page: Page,
    ) -> Result<PageOf<Member>, Error> {
        self.inner.system.member_list(namespace, page).await
    }

    /// Makes a member or changes their roles.
    #[boxed]
    pub async fn member_put(
        &self,
        namespace: NamespaceId,
        principal: &str,
        role: Role,
        databases: BTreeMap<String, Role>,
    ) -> Result<Member, Error> {
        self.inner
            .system
            .member_put(namespace, principal, role, databases)
            .await
    }

    /// Ends a membership; answers whether there was one.
    #[boxed]
    pub async fn member_delete(
        &self,
        namespace: NamespaceId,
        principal: &str,
    ) -> Result<bool, Error> {
        self.inner.system.member_delete(namespace, principal).await
    }

    /// The maintenance of a namespace, or of the server, if it is on.
    pub fn maintenance(&self, namespace: Option<NamespaceId>) -> Option<Maintenance> {
        self.inner.system.maintenance(namespace)
    }

    /// Refuses what changes anything in a namespace under maintenance.
    pub fn check_maintenance(&self, namespace: NamespaceId) -> Result<(), Error> {
        self.inner.system.check_maintenance(namespace)
    }

    /// Switches a maintenance on, for a reason, or off.
    #[boxed]
    pub async fn set_maintenance(
        &self,
        namespace: Option<NamespaceId>,
        reason: Option<String>,
    ) -> Result<Option<Maintenance>, Error> {
        self.inner.system.set_maintenance(namespace, reason).await
    }

    /// The database of a name that was deleted last, if it can be brought back.
    #[boxed]
    pub async fn database_deleted(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<Database, Error> {
        Ok(Database {
            engine: self.clone(),
            row: self.inner.system.database_deleted(namespace, name).await?,
        })
    }

    /// The live database of a name, else the one that was deleted last, if it can be brought back.
    #[boxed]
    pub async fn database_or_deleted(
        &self,
        namespace: NamespaceId,
        name: &str,
    ) -> Result<Database, Error> {
        match self.database(namespace, name).await {
            Err(error) if error.code() == Code::DatabaseNotFound => {
                self.database_deleted(namespace, name).await
            }
            found => found,
        }
    }

    /// Brings it back; `record` is the answer to repeat.
    #[boxed]
    pub async fn database_revive(
        &self,
        deleted: &Database,
        record: Option<Record>,
    ) -> Result<DatabaseRow, Error> {
        self.revive(deleted.row.clone(), record).await
    }

    /// The answer kept under a key in the last 24 hours.
    #[boxed]
    pub async fn request_find(&self, key: &IdempotencyKey) -> Result<Option<String>, Error> {
        self.inner.system.request_find(key).await
    }

    /// Keeps an answer whose effect needs no transaction with it: repeated, it would do no harm.
    #[boxed]
    pub async fn request_keep(&self, record: Record) -> Result<(), Error> {
        self.inner
            .system
            .write_recorded(Some(record), |_| Ok(()))
            .await
    }

    /// Puts a line on its way to the audit log.
    pub fn audit(&self, line: AuditLine) {
        self.inner.system.audit(line);
    }

    /// Writes a line and waits until it is stored: before a restore, a purge, an erasure acts.
    #[boxed]
    pub async fn audit_now(&self, line: AuditLine) -> Result<(), Error> {
        self.inner.system.audit_now(line).await
    }

    /// The audit log of a namespace, or the server's own, newest line first.
    #[boxed]
    pub async fn audit_list(
        &self,
        namespace: Option<NamespaceId>,
        filter: AuditFilter,
        page: Page,
    ) -> Result<PageOf<Json>, Error> {
        self.inner.system.audit_list(namespace, filter, page).await
    }

    /// Stores waiting audit lines in the bucket now, and deletes those past the retention.
    #[boxed]
    pub async fn ship_audit(&self) -> Result<(), Error> {
        let system = &self.inner.system;
        system.flush_audit().await?;
        system
            .ship_audit(self.inner.core.settings.audit_retention)
            .await
    }

    /// Counts a query that has ended.
    pub fn note_query(&self, note: &QueryNote) {
        self.inner.system.note_query(note);
    }

    /// Keeps a slow query; `line` is all that is shown of it.
    pub fn note_slow(&self, database: DatabaseId, line: Json) {
        self.inner.system.note_slow(database, line);
    }

    /// What queries of a database cost in the last hours.
    #[boxed]
    pub async fn insights(&self, database: DatabaseId, hours: u64) -> Result<Vec<Insight>, Error> {
        self.inner.system.insights(database, hours).await
    }

    /// The slow queries of a database, newest first.
    #[boxed]
    pub async fn slow_queries(
        &self,
        database: DatabaseId,
        page: Page,
    ) -> Result<PageOf<Json>, Error> {
        self.inner.system.slow_queries(database, page).await
    }

    /// Audit lines that were dropped because too many waited.
    pub fn audit_dropped(&self) -> u64 {
        self.inner.system.audit_dropped()
    }

    /// What the node counts about itself.
    #[boxed]
    pub async fn status(&self) -> NodeStatus {
        let open = self.inner.registry.count();
        NodeStatus {
            open_databases: u64::try_from(open).unwrap_or(u64::MAX),
            ..self.inner.core.status()
        }
    }

    /// Writes audit lines and counts as they come due; costs nothing while there are none.
    pub(crate) fn spawn_record_keeper(&self) {
        let inner = std::sync::Arc::downgrade(&self.inner);
        self.spawn_until_stop(|stop| keep_records(inner, stop));
    }
}

async fn keep_records(inner: Weak<Inner>, mut stop: tokio::sync::watch::Receiver<bool>) {
    let (mut counted, mut shipped) = (Duration::ZERO, Duration::ZERO);
    loop {
        tokio::select! {
            () = tokio::time::sleep(audit::FLUSH_EVERY) => {}
            _ = stop.changed() => return,
        }
        let Some(inner) = inner.upgrade() else { return };
        // A stop writes what waits itself, and then closes the system database for good.
        if inner.stopped.load(Ordering::Acquire) {
            return;
        }
        let settings = &inner.core.settings;
        counted += audit::FLUSH_EVERY;
        shipped += audit::FLUSH_EVERY;
        let mut outcome = inner.system.flush_audit().await;
        if counted >= insights::FLUSH_EVERY {
            counted = Duration::ZERO;
            outcome = outcome.and(inner.system.flush_insights().await);
        }
        if shipped >= settings.audit_ship_interval {
            shipped = Duration::ZERO;
            outcome = outcome.and(inner.system.ship_audit(settings.audit_retention).await);
        }
        if let Err(error) = outcome {
            tracing::warn!(%error, "audit lines or counts were not written; they wait");
        }
    }
}

impl Inner {
    /// Writes what waits, before a stop; a store that does not answer is not waited for.
    pub(crate) async fn flush_records(&self) {
        if !self.system.has_waiting() {
            return;
        }
        let flush = async {
            let audit = self.system.flush_audit().await;
            audit.and(self.system.flush_insights().await)
        };
        if !matches!(tokio::time::timeout(LAST_FLUSH, flush).await, Ok(Ok(()))) {
            tracing::warn!("the last audit lines were not proven to be stored before the stop");
        }
    }
}
