//! The audit log: who did what, when, and how it ended; one log a namespace, append-only.
//!
//! Lines collect in memory for at most [`FLUSH_EVERY`] and then become rows of the system database in one
//! transaction. What must be on record before it happens (a restore, a purge, an erasure) is written with
//! [`System::audit_now`] and awaited. Rows leave for the bucket as JSON lines under
//! `tenants/{namespace}/audit/{day}/`, and both are deleted once they are older than the retention. A line
//! holds names and counts, never SQL, parameters or secrets: its maker sees to that.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::params;
use serde_json::{Value as Json, json};
use tidelog_archive::key::{AuditDate, Key};
use tidelog_wal::{NamespaceId, Timestamp};

use super::{Page, PageOf, System, id16, micros};
use crate::error::Error;

/// How long a line may wait in memory.
pub(crate) const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Lines that wait at most; further ones are dropped and counted.
const WAITING_MAX: usize = 20_000;
/// Lines of one object in the bucket.
const OBJECT_LINES_MAX: usize = 10_000;
/// Rows deleted in one transaction.
const PRUNE_MAX: i64 = 50_000;
/// Objects deleted before their rows are.
const PRUNE_OBJECTS_MAX: i64 = 1_000;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Severity {
    /// What happens every day.
    #[default]
    Info,
    /// What was refused, or takes something away.
    Warning,
    /// What somebody should look at.
    Critical,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One event.
#[derive(Debug, Clone, Default)]
pub struct AuditLine {
    /// Whose log; `None`: the server's own.
    pub namespace: Option<NamespaceId>,
    /// What kind of event: `auth.failure`, `backup.restore`, ...
    pub event: String,
    /// How much it matters.
    pub severity: Severity,
    /// Who: a member or a token id.
    pub user: Option<String>,
    /// What they called: method and route.
    pub action: String,
    /// On what: `database`, `token`, ...
    pub resource: String,
    /// Which one.
    pub resource_id: Option<String>,
    /// What else there is to know: names and counts.
    pub details: Json,
    /// From where.
    pub ip: Option<String>,
    /// With what program.
    pub user_agent: Option<String>,
    /// The request.
    pub request_id: Option<String>,
    /// Whether it was done.
    pub success: bool,
    /// Why not.
    pub error_code: Option<String>,
    /// Why not, in words.
    pub error_message: Option<String>,
    /// How long it took.
    pub duration: Option<Duration>,
}

/// A line with its place in the log.
#[derive(Debug, Clone)]
struct Placed {
    namespace: NamespaceId,
    id: String,
    at: Timestamp,
    action: String,
    text: String,
}

/// Id, time and text of a row.
type Line = (String, i64, String);

/// Which lines of a log are wanted.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only events of this kind; a kind ending in `.` means all that begin so.
    pub event: Option<String>,
    /// Only from then on.
    pub since: Option<Timestamp>,
}

/// Lines on their way to the system database.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    lines: Mutex<VecDeque<Placed>>,
    dropped: std::sync::atomic::AtomicU64,
    /// Held while lines become rows: whoever reads the log meanwhile waits for those that are no longer in memory and
    /// not yet in it.
    flushing: tokio::sync::Mutex<()>,
    /// Held while rows leave for the bucket: two at once would store the same lines twice.
    shipping: tokio::sync::Mutex<()>,
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Placed>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty() && self.flushing.try_lock().is_ok()
    }
}

fn insert(c: &rusqlite::Connection, lines: &[Placed]) -> rusqlite::Result<()> {
    let mut insert = c.prepare_cached(
        "INSERT OR IGNORE INTO audit(namespace, id, at, action, line) VALUES(?1, ?2, ?3, ?4, ?5)",
    )?;
    for line in lines {
        let id = line.namespace.as_bytes();
        insert.execute(params![
            id,
            line.id,
            micros(line.at),
            line.action,
            line.text
        ])?;
    }
    Ok(())
}

impl System {
    fn place(&self, line: AuditLine) -> Placed {
        let parts = &self.core.parts;
        let at = parts.clock.wall();
        let chance = u128::from_be_bytes(parts.entropy.bytes16()) >> 64;
        let id = format!("aud_{:016x}{chance:016x}", at.micros());
        let text = json!({
            "id": id,
            "at_micros": at.micros(),
            "event_type": line.event,
            "severity": line.severity.as_str(),
            "user_id": line.user,
            "tenant_id": line.namespace.map(|id| id.to_string()),
            "action": line.action,
            "resource": line.resource,
            "resource_id": line.resource_id,
            "details": line.details,
            "ip": line.ip,
            "user_agent": line.user_agent,
            "request_id": line.request_id,
            "success": line.success,
            "error_code": line.error_code,
            "error_message": line.error_message,
            "duration_ms": line.duration.map(|took| (took.as_secs_f64() * 1e6).round() / 1e3),
        });
        Placed {
            namespace: line.namespace.unwrap_or(self.namespace),
            id,
            at,
            action: line.event,
            text: text.to_string(),
        }
    }

    /// Puts a line on its way.
    pub(crate) fn audit(&self, line: AuditLine) {
        let line = self.place(line);
        let mut waiting = self.audit.lock();
        if waiting.len() >= WAITING_MAX {
            drop(waiting);
            let dropped = &self.audit.dropped;
            if dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                tracing::error!("audit lines are dropped: the system database takes no writes");
            }
            return;
        }
        waiting.push_back(line);
    }

    /// Writes a line and waits until it is stored: for what must be on record before it happens.
    pub(crate) async fn audit_now(&self, line: AuditLine) -> Result<(), Error> {
        let line = self.place(line);
        self.write(move |c| insert(c, &[line])).await
    }

    /// Lines that were dropped because too many waited.
    pub(crate) fn audit_dropped(&self) -> u64 {
        self.audit
            .dropped
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Makes rows of the lines that wait. If that fails they wait on.
    pub(crate) async fn flush_audit(&self) -> Result<(), Error> {
        let _flushing = self.audit.flushing.lock().await;
        let lines: Vec<Placed> = self.audit.lock().drain(..).collect();
        if lines.is_empty() {
            return Ok(());
        }
        let rows = lines.clone();
        let written = self.write(move |c| insert(c, &rows)).await;
        if written.is_err() {
            let mut waiting = self.audit.lock();
            for line in lines.into_iter().rev() {
                waiting.push_front(line);
            }
            waiting.truncate(WAITING_MAX);
        }
        written
    }

    /// The lines of a namespace's log, or of the server's own, newest first.
    pub(crate) async fn audit_list(
        &self,
        namespace: Option<NamespaceId>,
        filter: AuditFilter,
        page: Page,
    ) -> Result<PageOf<Json>, Error> {
        self.flush_audit().await?;
        let limit = page.limit();
        let namespace = namespace.unwrap_or(self.namespace);
        let (from, to) = match filter.event {
            None => (String::new(), "\u{7f}".to_owned()),
            Some(event) if event.ends_with('.') => (event.clone(), format!("{event}\u{7f}")),
            Some(event) => (event.clone(), event),
        };
        let before = page.cursor.unwrap_or_else(|| "b".to_owned());
        let since = filter.since.map_or(0, micros);
        let select = "SELECT line FROM audit WHERE namespace = ?1 AND id < ?2 AND at >= ?3 \
                      AND action BETWEEN ?4 AND ?5 ORDER BY id DESC LIMIT ?6";
        let given = vec![
            namespace.as_bytes().to_vec().into(),
            before.into(),
            since.into(),
            from.into(),
            to.into(),
        ];
        self.page_of_lines(select, given, limit, "read an audit line")
            .await
    }

    /// Stores the lines that are not in the bucket yet, and deletes rows and objects past the retention.
    pub(crate) async fn ship_audit(&self, retention: Duration) -> Result<(), Error> {
        let _shipping = self.audit.shipping.lock().await;
        while self.ship_some().await? {}
        while self.prune_some(retention).await? {}
        Ok(())
    }

    async fn ship_some(&self) -> Result<bool, Error> {
        let rows: Vec<(NamespaceId, String, i64, String)> = self
            .read(|c| {
                let mut select = c.prepare(
                    "SELECT namespace, id, at, line FROM audit WHERE shipped = 0 \
                     ORDER BY namespace, id LIMIT ?1",
                )?;
                let limit = i64::try_from(OBJECT_LINES_MAX).unwrap_or(i64::MAX);
                select
                    .query_map([limit], |row| {
                        let id = id16(&row.get::<_, Vec<u8>>(0)?)?;
                        Ok((
                            NamespaceId::from_bytes(id),
                            row.get(1)?,
                            row.get(2)?,
                            row.get(3)?,
                        ))
                    })?
                    .collect()
            })
            .await?;
        let full = rows.len() == OBJECT_LINES_MAX;
        let mut objects: BTreeMap<(NamespaceId, AuditDate), Vec<Line>> = BTreeMap::new();
        for (namespace, id, at, line) in rows {
            let day = AuditDate::of(super::timestamp(at));
            objects
                .entry((namespace, day))
                .or_default()
                .push((id, at, line));
        }
        for ((namespace, day), lines) in objects {
            let remote = &self.core.remote;
            let key = Key::Audit(namespace, day, remote.nonces.next()).to_string();
            let mut text = String::new();
            for (_, _, line) in &lines {
                text.push_str(line);
                text.push('\n');
            }
            let object = remote.audit_object(namespace, text)?;
            let newest = lines.iter().map(|(_, at, _)| *at).max().unwrap_or(0);
            // First: an object that no row names would outlive the retention. One that is named and absent does no harm.
            let named = key.clone();
            self.write(move |c| {
                let insert = "INSERT INTO audit_objects VALUES(?1, ?2)";
                c.execute(insert, params![named, newest])
            })
            .await?;
            remote.create(&key, object).await?;
            self.write(move |c| {
                let mut update =
                    c.prepare("UPDATE audit SET shipped = 1 WHERE namespace = ?1 AND id = ?2")?;
                for (id, _, _) in &lines {
                    update.execute(params![namespace.as_bytes(), id])?;
                }
                Ok(())
            })
            .await?;
        }
        Ok(full)
    }

    /// Deletes what is past the retention; whether more may be.
    async fn prune_some(&self, retention: Duration) -> Result<bool, Error> {
        let kept = u64::try_from(retention.as_micros()).unwrap_or(u64::MAX);
        let now = self.core.parts.clock.wall().micros();
        let oldest = micros(Timestamp::from_micros(now.saturating_sub(kept)));
        let (old, doomed): (i64, Vec<String>) = self
            .read(move |c| {
                let old = c.query_row(
                    "SELECT count(*) FROM (SELECT 1 FROM audit WHERE at < ?1 AND shipped = 1 LIMIT ?2)",
                    params![oldest, PRUNE_MAX],
                    |row| row.get(0),
                )?;
                let mut select =
                    c.prepare("SELECT key FROM audit_objects WHERE newest < ?1 LIMIT ?2")?;
                let keys = select.query_map([oldest, PRUNE_OBJECTS_MAX], |row| row.get(0))?;
                Ok((old, keys.collect::<rusqlite::Result<_>>()?))
            })
            .await?;
        if old == 0 && doomed.is_empty() {
            return Ok(false);
        }
        let objects = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
        let full = old >= PRUNE_MAX || objects >= PRUNE_OBJECTS_MAX;
        self.core
            .remote
            .store
            .delete_all(&doomed)
            .await
            .map_err(|error| crate::node::start::store_error("delete audit objects", error))?;
        self.write(move |c| {
            for key in &doomed {
                c.execute("DELETE FROM audit_objects WHERE key = ?1", [key])?;
            }
            c.execute(
                "DELETE FROM audit WHERE (namespace, id) IN (SELECT namespace, id FROM audit \
                 WHERE at < ?1 AND shipped = 1 LIMIT ?2)",
                params![oldest, PRUNE_MAX],
            )
        })
        .await?;
        Ok(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, Parts, Settings};

    /// Goal: who reads the log finds every line, also one that somebody else is just writing down. Method: the write gate of
    /// the system database is held, so that a flush has taken the line from memory and made no row of it yet.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_line_on_its_way_is_waited_for() {
        let folder = tempfile::tempdir().expect("tempdir");
        let settings = Settings {
            data: folder.path().join("data"),
            store_url: "memory:".to_owned(),
            gate_timeout: Duration::from_mins(1),
            durability_timeout: Duration::from_mins(1),
            ..Settings::default()
        };
        let engine = Box::pin(Engine::start(settings, Parts::production())).await;
        let engine = engine.expect("starts");
        let system = &engine.inner.system;
        let lease = system.lease().await.expect("open");
        let mut gate = Some(lease.gate().await.expect("the gate"));
        engine.audit(AuditLine {
            event: "a.first".to_owned(),
            ..AuditLine::default()
        });
        let writing = tokio::spawn({
            let engine = engine.clone();
            async move { engine.ship_audit().await }
        });
        while !system.audit.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let filter = AuditFilter {
            event: Some("a.first".to_owned()),
            since: None,
        };
        let mut listing = std::pin::pin!(system.audit_list(None, filter, Page::default()));
        // Whatever it answers while the gate is held it would have to have without the row.
        let early = tokio::time::timeout(Duration::from_millis(200), listing.as_mut()).await;
        let listed = match early {
            Ok(listed) => listed,
            Err(_) => {
                drop(gate.take());
                listing.await
            }
        };
        assert_eq!(listed.expect("the log").items.len(), 1);
        drop((gate, lease));
        writing.await.expect("no panic").expect("shipped");
        engine.shutdown().await.expect("stops");
    }
}
