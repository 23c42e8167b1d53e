//! How a command ends.

use std::process::ExitCode;

use serde_json::{Value as Json, json};
use tidelog_archive::ErrorKind;

/// The exit codes of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Damaged = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    pub(crate) fn of_kind(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict
            | ErrorKind::Fenced
            | ErrorKind::Invalid
            | ErrorKind::KeyUnavailable => Self::Refused,
            ErrorKind::Corrupt => Self::Damaged,
            ErrorKind::Unavailable
            | ErrorKind::Exhausted
            | ErrorKind::OutcomeUnknown
            | ErrorKind::Internal => Self::Failed,
        }
    }

    /// The exit of an answer that a server refused with.
    pub(crate) fn of_problem(status: u16, code: &str) -> Self {
        match (status, code) {
            (_, "key-unavailable") => Self::Refused,
            (_, "object-corrupt" | "database-corrupt" | "recovery-gap") => Self::Damaged,
            (404 | 410, _) => Self::NotFound,
            (400, _) => Self::Usage,
            (401 | 403 | 409 | 412 | 413 | 415 | 422, _) => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// Why a command did not do what it was told.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) document: Json,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let message = message.into();
        let document = json!({ "detail": message });
        Self {
            exit,
            message,
            document,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }
}

impl From<tidelog_engine::Error> for Failure {
    fn from(error: tidelog_engine::Error) -> Self {
        let causes = crate::problem::causes(&error);
        let message = if causes.is_empty() {
            error.to_string()
        } else {
            format!("{error}: {causes}")
        };
        let mut document = error.members().clone();
        document.insert("code".to_owned(), json!(error.code().as_str()));
        document.insert("detail".to_owned(), json!(message));
        Self {
            exit: Exit::of_kind(error.kind()),
            message,
            document: Json::Object(document),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_from_absence_and_from_refusal() {
        assert_eq!(Exit::of_problem(500, "object-corrupt"), Exit::Damaged);
        assert_eq!(Exit::of_problem(404, "database-not-found"), Exit::NotFound);
        assert_eq!(Exit::of_problem(410, "bookmark-lost"), Exit::NotFound);
        assert_eq!(Exit::of_problem(409, "name-taken"), Exit::Refused);
        assert_eq!(Exit::of_problem(400, "unknown-field"), Exit::Usage);
        assert_eq!(Exit::of_problem(503, "storage-unavailable"), Exit::Failed);
        assert_eq!(Exit::of_kind(ErrorKind::Corrupt), Exit::Damaged);
        assert_eq!(Exit::of_kind(ErrorKind::OutcomeUnknown), Exit::Failed);
    }
}
