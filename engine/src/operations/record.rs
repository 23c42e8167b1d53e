//! What is known of an operation, and its row in the system database.

use rusqlite::{OptionalExtension as _, Row, params};
use serde_json::{Value as Json, json};
use tidelog_wal::{DatabaseId, NamespaceId, Timestamp};

use crate::error::{Code, Error};
use crate::system::requests;
use crate::system::{Noted, Page, PageOf, System, id16, micros, timestamp};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationType {
    /// Puts a database back to an earlier state, in place.
    Restore,
    /// Makes a database that begins at another's state.
    Fork,
    /// Copies what a fork shares, so that it no longer does.
    Detach,
    /// Exports a state into the store.
    Archive,
    /// Makes a database of an archive or a file.
    Import,
    /// Proves stored history.
    Verification,
    /// Destroys a database for good.
    Purge,
    /// Applies the retention window.
    Retention,
}

impl OperationType {
    const ALL: [Self; 8] = [
        Self::Restore,
        Self::Fork,
        Self::Detach,
        Self::Archive,
        Self::Import,
        Self::Verification,
        Self::Purge,
        Self::Retention,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Fork => "fork",
            Self::Detach => "detach",
            Self::Archive => "archive",
            Self::Import => "import",
            Self::Verification => "verification",
            Self::Purge => "purge",
            Self::Retention => "retention",
        }
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationState {
    /// At work.
    Running,
    /// Asked to stop; it stops at its next look.
    Cancelling,
    /// Done.
    Succeeded,
    /// Ended by an error; nothing of it stays.
    Failed,
    /// Stopped when asked; nothing of it stays.
    Cancelled,
}

impl OperationState {
    const ALL: [Self; 5] = [
        Self::Running,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether it has ended.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The stable code.
    pub code: String,
    /// A sentence.
    pub detail: String,
    /// Members that belong to the code.
    pub members: serde_json::Map<String, Json>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut detail = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let text = inner.to_string();
            if !detail.contains(&text) {
                detail = format!("{detail}: {text}");
            }
            source = inner.source();
        }
        Self {
            code: error.code().as_str().to_owned(),
            detail,
            members: error.members().clone(),
        }
    }
}

impl Failure {
    fn to_json(&self) -> Json {
        json!({ "code": self.code, "detail": self.detail, "members": self.members })
    }

    fn of_json(value: &Json) -> Option<Self> {
        Some(Self {
            code: value.get("code")?.as_str()?.to_owned(),
            detail: value.get("detail")?.as_str()?.to_owned(),
            members: value.get("members")?.as_object()?.clone(),
        })
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// Its id: later ones are greater.
    pub id: String,
    /// Whose it is.
    pub namespace: NamespaceId,
    /// What it works on, if it is one database.
    pub database: Option<DatabaseId>,
    /// The name of that database when the operation began.
    pub database_name: Option<String>,
    /// What it does.
    pub kind: OperationType,
    /// Where it is.
    pub state: OperationState,
    /// The part of the work it is at.
    pub phase: String,
    /// When that part began.
    pub phase_started_at: Timestamp,
    /// Bytes of this phase that are done.
    pub bytes_done: u64,
    /// Bytes of this phase, 0 where they are not known.
    pub bytes_total: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// When it last showed progress.
    pub heartbeat_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// It can still be cancelled.
    pub cancellable: bool,
    /// Id of the token it was asked for with.
    pub token: Option<String>,
    /// What the next process life needs to end it.
    pub note: Json,
    /// What came of it.
    pub result: Option<Json>,
    /// Why it failed.
    pub error: Option<Failure>,
}

impl Operation {
    /// Percent done of the present phase, where its size is known.
    pub fn progress_percent(&self) -> Option<u8> {
        if self.state == OperationState::Succeeded {
            return Some(100);
        }
        let done = self.bytes_done.saturating_mul(100);
        let percent = done.checked_div(self.bytes_total)?;
        Some(u8::try_from(percent.min(99)).unwrap_or(99))
    }

    /// Seconds until the present phase ends at its pace so far.
    pub fn eta_seconds(&self) -> Option<u64> {
        if self.state.is_final() || self.bytes_done == 0 || self.bytes_total == 0 {
            return None;
        }
        let took = self.heartbeat_at.micros_since(self.phase_started_at);
        let left = self.bytes_total.saturating_sub(self.bytes_done);
        let micros = u128::from(took) * u128::from(left) / u128::from(self.bytes_done);
        u64::try_from(micros / 1_000_000).ok()
    }
}

/// Which operations a list shows.
#[derive(Debug, Clone, Default)]
pub struct OperationFilter {
    /// Only those of this database name.
    pub database: Option<String>,
    /// Only those of this type.
    pub kind: Option<OperationType>,
    /// Only those in this state.
    pub state: Option<OperationState>,
}

const COLUMNS: &str = "id, namespace, database, database_name, type, state, note, token, started, \
                       ended, phase, result, error";

fn json_of(text: Option<String>) -> Option<Json> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

fn operation(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let unknown = || rusqlite::Error::InvalidQuery;
    let database: Option<Vec<u8>> = row.get(2)?;
    let database = database.map(|bytes| id16(&bytes)).transpose()?;
    let started_at = timestamp(row.get(8)?);
    let ended_at = row.get::<_, Option<i64>>(9)?.map(timestamp);
    let kind = OperationType::parse(&row.get::<_, String>(4)?).ok_or_else(unknown)?;
    let state = OperationState::parse(&row.get::<_, String>(5)?).ok_or_else(unknown)?;
    Ok(Operation {
        id: row.get(0)?,
        namespace: NamespaceId::from_bytes(id16(&row.get::<_, Vec<u8>>(1)?)?),
        database: database.map(DatabaseId::from_bytes),
        database_name: row.get(3)?,
        kind,
        state,
        phase: row.get::<_, Option<String>>(10)?.unwrap_or_default(),
        phase_started_at: started_at,
        bytes_done: 0,
        bytes_total: 0,
        started_at,
        heartbeat_at: ended_at.unwrap_or(started_at),
        ended_at,
        cancellable: false,
        token: row.get(7)?,
        note: json_of(row.get(6)?).unwrap_or(Json::Null),
        result: json_of(row.get(11)?),
        error: json_of(row.get(12)?).and_then(|value| Failure::of_json(&value)),
    })
}

impl System {
    /// Notes an operation that begins; it is not stored yet.
    pub(super) async fn operation_add(&self, begun: &Operation) -> Result<Noted, Error> {
        let row = begun.clone();
        let record = requests::of_operation(&begun.id);
        self.commit_recorded(record, move |c| {
            c.execute(
                "INSERT INTO operations(id, namespace, database, database_name, type, state, note, \
                 token, started, phase) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                params![
                    row.id,
                    row.namespace.as_bytes(),
                    row.database.map(|id| id.as_bytes().to_vec()),
                    row.database_name,
                    row.kind.as_str(),
                    row.state.as_str(),
                    row.note.to_string(),
                    row.token,
                    micros(row.started_at),
                    row.phase,
                ],
            )
        })
        .await
        .map(|(_, noted)| noted)
    }

    /// Replaces what the next process life needs to end an operation.
    pub(super) async fn operation_note(&self, id: &str, note: &Json) -> Result<(), Error> {
        let (id, note) = (id.to_owned(), note.to_string());
        self.write(move |c| c.execute("UPDATE operations SET note = ?2 WHERE id = ?1", [id, note]))
            .await
            .map(|_| ())
    }

    /// Notes how an operation ended.
    pub(super) async fn operation_end(&self, ended: &Operation) -> Result<(), Error> {
        let row = ended.clone();
        self.write(move |c| {
            c.execute(
                "UPDATE operations SET state = ?2, ended = ?3, phase = ?4, result = ?5, error = ?6 \
                 WHERE id = ?1",
                params![
                    row.id,
                    row.state.as_str(),
                    row.ended_at.map(micros),
                    row.phase,
                    row.result.map(|value| value.to_string()),
                    row.error.map(|failure| failure.to_json().to_string()),
                ],
            )
        })
        .await
        .map(|_| ())
    }

    /// Operations that an earlier process life left open, oldest first.
    pub(crate) async fn operations_open(&self) -> Result<Vec<Operation>, Error> {
        self.read(|c| {
            let mut select = c.prepare(&format!(
                "SELECT {COLUMNS} FROM operations WHERE ended IS NULL ORDER BY id"
            ))?;
            select.query_map([], operation)?.collect()
        })
        .await
    }

    /// One operation of a namespace.
    pub(super) async fn operation(
        &self,
        namespace: NamespaceId,
        id: &str,
    ) -> Result<Operation, Error> {
        let wanted = id.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!("SELECT {COLUMNS} FROM operations WHERE namespace = ?1 AND id = ?2"),
                    params![namespace.as_bytes(), wanted],
                    operation,
                )
                .optional()
            })
            .await?;
        found.ok_or_else(|| {
            Error::new(
                Code::OperationNotFound,
                format!("there is no operation {id:?}"),
            )
        })
    }

    /// One operation of a namespace that is gone.
    pub(super) async fn operation_of_gone(&self, id: &str) -> Result<Operation, Error> {
        let wanted = id.to_owned();
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!(
                        "SELECT {COLUMNS} FROM operations WHERE id = ?1 AND NOT EXISTS(\
                         SELECT 1 FROM namespaces WHERE id = operations.namespace)"
                    ),
                    [wanted],
                    operation,
                )
                .optional()
            })
            .await?;
        found.ok_or_else(|| {
            let what = format!("no namespace that is gone had an operation {id:?}");
            Error::new(Code::OperationNotFound, what)
        })
    }

    /// Operations of a namespace, newest first.
    pub(super) async fn operation_list(
        &self,
        namespace: NamespaceId,
        filter: OperationFilter,
        page: Page,
    ) -> Result<PageOf<Operation>, Error> {
        let limit = page.limit();
        // Greater than every id, which begin with "op_".
        let before = page.cursor.unwrap_or_else(|| "op_~".to_owned());
        let kind = filter.kind.map(|kind| kind.as_str().to_owned());
        let state = filter.state.map(|state| state.as_str().to_owned());
        let select = format!(
            "SELECT {COLUMNS} FROM operations WHERE namespace = ?1 AND id < ?2 \
             AND (?3 IS NULL OR database_name = ?3) AND (?4 IS NULL OR type = ?4) \
             AND (?5 IS NULL OR state = ?5) ORDER BY id DESC LIMIT ?6"
        );
        let given = vec![
            namespace.as_bytes().to_vec().into(),
            before.into(),
            filter.database.into(),
            kind.into(),
            state.into(),
        ];
        self.page(select, given, limit, operation, |operation| {
            operation.id.clone()
        })
        .await
    }

    /// Forgets operations that ended before `time`.
    pub(crate) async fn operations_prune(&self, time: Timestamp) -> Result<(), Error> {
        let old = self
            .read(move |c| {
                c.query_row(
                    "SELECT EXISTS(SELECT 1 FROM operations WHERE ended < ?1)",
                    [micros(time)],
                    |row| row.get::<_, bool>(0),
                )
            })
            .await?;
        if old {
            self.write(move |c| {
                c.execute("DELETE FROM operations WHERE ended < ?1", [micros(time)])
            })
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types_and_states_round_trip() {
        for kind in OperationType::ALL {
            assert_eq!(OperationType::parse(kind.as_str()), Some(kind));
        }
        for state in OperationState::ALL {
            assert_eq!(OperationState::parse(state.as_str()), Some(state));
        }
        assert_eq!(OperationType::parse("nothing"), None);
    }

    /// Goal: the time left is that of the phase at its own pace, whatever came before it; nothing is said where nothing
    /// is known, and 100 percent only at the end.
    #[test]
    fn percent_and_time_left_are_of_the_present_phase() {
        let second = |n: u64| Timestamp::from_micros(n * 1_000_000);
        let mut operation = Operation {
            id: "op_1".to_owned(),
            namespace: NamespaceId::from_bytes([0; 16]),
            database: None,
            database_name: None,
            kind: OperationType::Restore,
            state: OperationState::Running,
            phase: "apply".to_owned(),
            phase_started_at: second(1_000),
            bytes_done: 25,
            bytes_total: 100,
            started_at: second(0),
            heartbeat_at: second(1_010),
            ended_at: None,
            cancellable: true,
            token: None,
            note: Json::Null,
            result: None,
            error: None,
        };
        assert_eq!(operation.progress_percent(), Some(25));
        assert_eq!(operation.eta_seconds(), Some(30));
        operation.bytes_done = 0;
        assert_eq!(operation.progress_percent(), Some(0));
        assert_eq!(operation.eta_seconds(), None);
        operation.bytes_done = 120;
        assert_eq!(operation.progress_percent(), Some(99));
        assert_eq!(operation.eta_seconds(), Some(0));
        operation.bytes_total = 0;
        assert_eq!(operation.progress_percent(), None);
        operation.state = OperationState::Succeeded;
        assert_eq!(operation.progress_percent(), Some(100));
    }

    #[test]
    fn failures_survive_their_row() {
        let error = Error::new(Code::DatabaseMoved, "it moved").with("current_bookmark", "x");
        let failure = Failure::from(&error);
        assert_eq!(failure.code, "database-moved");
        assert_eq!(Failure::of_json(&failure.to_json()), Some(failure));
    }
}
