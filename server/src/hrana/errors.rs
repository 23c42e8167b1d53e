//! Failures as the clients of libSQL know them: `message`, `code` (always a text), `extended_code`.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use serde_json::{Map, Value as Json, json};
use tidelog_engine::{Code, Error};

use crate::problem::Problem;

/// Names of SQLite's primary result codes.
const PRIMARY: [&str; 27] = [
    "SQLITE_OK",
    "SQLITE_ERROR",
    "SQLITE_INTERNAL",
    "SQLITE_PERM",
    "SQLITE_ABORT",
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_NOMEM",
    "SQLITE_READONLY",
    "SQLITE_INTERRUPT",
    "SQLITE_IOERR",
    "SQLITE_CORRUPT",
    "SQLITE_NOTFOUND",
    "SQLITE_FULL",
    "SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL",
    "SQLITE_EMPTY",
    "SQLITE_SCHEMA",
    "SQLITE_TOOBIG",
    "SQLITE_CONSTRAINT",
    "SQLITE_MISMATCH",
    "SQLITE_MISUSE",
    "SQLITE_NOLFS",
    "SQLITE_AUTH",
    "SQLITE_FORMAT",
    "SQLITE_RANGE",
    "SQLITE_NOTADB",
];

/// Names of the details of `SQLITE_CONSTRAINT`, from 1.
const CONSTRAINT: [&str; 12] = [
    "CHECK",
    "COMMITHOOK",
    "FOREIGNKEY",
    "FUNCTION",
    "NOTNULL",
    "PRIMARYKEY",
    "TRIGGER",
    "UNIQUE",
    "VTAB",
    "ROWID",
    "PINNED",
    "DATATYPE",
];

fn primary(code: u64) -> &'static str {
    let index = usize::try_from(code & 0xff).unwrap_or(usize::MAX);
    PRIMARY.get(index).copied().unwrap_or("SQLITE_ERROR")
}

fn extended(code: u64) -> Option<String> {
    let detail = usize::try_from(code >> 8).ok()?.checked_sub(1)?;
    match primary(code) {
        "SQLITE_CONSTRAINT" => Some(format!("SQLITE_CONSTRAINT_{}", CONSTRAINT.get(detail)?)),
        _ => None,
    }
}

/// A code of ours in capitals.
fn capitals(code: &str) -> String {
    code.to_ascii_uppercase().replace('-', "_")
}

/// The failure of one statement.
pub(crate) fn of_statement(error: &Error) -> Json {
    let members = error.members();
    let number = members.get("sqlite_code").and_then(Json::as_u64);
    let said = error.to_string();
    let code = match error.code() {
        Code::SqlError => match members.get("reason").and_then(Json::as_str) {
            Some("many-statements") => "SQL_MANY_STATEMENTS".to_owned(),
            Some("no-statement") => "SQL_NO_STATEMENT".to_owned(),
            _ if members.contains_key("offset") => {
                let grammar = ["syntax error", "unrecognized token", "incomplete input"];
                let parse = grammar.iter().any(|text| said.contains(text));
                if parse {
                    "SQL_PARSE_ERROR"
                } else {
                    "SQL_INPUT_ERROR"
                }
                .to_owned()
            }
            _ => match (number, members.get("sqlite_code").and_then(Json::as_str)) {
                (Some(number), _) => primary(number).to_owned(),
                (None, Some(name)) => name.to_owned(),
                (None, None) => "SQLITE_ERROR".to_owned(),
            },
        },
        Code::InvalidRequest | Code::TooManyParameters => "ARGS_INVALID".to_owned(),
        Code::ResultTooLarge => "RESPONSE_TOO_LARGE".to_owned(),
        Code::DatabaseBusy => "TRANSACTION_BUSY".to_owned(),
        Code::DatabaseReadOnly
        | Code::DatabaseBlocked
        | Code::Maintenance
        | Code::InsufficientPermissions => "BLOCKED".to_owned(),
        Code::QueryTimeout => "SQLITE_INTERRUPT".to_owned(),
        Code::DiskFull | Code::QuotaExceeded => "SQLITE_FULL".to_owned(),
        other => capitals(other.as_str()),
    };
    let mut document = Map::from_iter([
        ("message".to_owned(), json!(said)),
        ("code".to_owned(), json!(code)),
    ]);
    if let Some(extended) = number.and_then(extended) {
        document.insert("extended_code".to_owned(), json!(extended));
    }
    Json::Object(document)
}

/// A failure that a request has by its own fault.
pub(crate) fn plain(code: &str, message: &str) -> Json {
    json!({ "message": message, "code": code })
}

/// The answer of a request that failed whole. The type is compared by its clients letter by letter.
pub(crate) fn of_request(problem: &Problem, instance: &str, request_id: &str) -> Response<Body> {
    let mut response = problem.response(instance, request_id);
    let code = match problem.code() {
        "database-blocked" | "database-read-only" | "maintenance" => "BLOCKED".to_owned(),
        other => capitals(other),
    };
    let said = problem.detail();
    let body = json!({
        "message": said,
        "code": code,
        "error": said,
        "request_id": request_id,
    });
    *response.body_mut() = Body::from(body.to_string());
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_codes_have_their_names() {
        assert_eq!(primary(19), "SQLITE_CONSTRAINT");
        assert_eq!(primary(26), "SQLITE_NOTADB");
        assert_eq!(extended(2067).as_deref(), Some("SQLITE_CONSTRAINT_UNIQUE"));
        assert_eq!(
            extended(1555).as_deref(),
            Some("SQLITE_CONSTRAINT_PRIMARYKEY")
        );
        assert_eq!(
            extended(787).as_deref(),
            Some("SQLITE_CONSTRAINT_FOREIGNKEY")
        );
        assert_eq!(extended(1), None);
        let error =
            Error::new(Code::SqlError, "UNIQUE constraint failed").with("sqlite_code", 2067);
        let document = of_statement(&error);
        assert_eq!(document["code"], "SQLITE_CONSTRAINT");
        assert_eq!(document["extended_code"], "SQLITE_CONSTRAINT_UNIQUE");
    }

    /// Goal: HRANA 6: a failed statement has a `message` and a `code` that is a text, whatever the engine said.
    #[test]
    fn every_code_of_the_engine_has_a_word_for_statements() {
        for code in Code::ALL {
            let document = of_statement(&Error::new(*code, "said"));
            let word = document["code"].as_str().unwrap_or_default();
            let fits = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
            assert!(!word.is_empty() && word.bytes().all(fits), "{code}: {word}");
            assert_eq!(document["message"], "said", "{code}");
        }
        for (code, word) in [
            (Code::InvalidRequest, "ARGS_INVALID"),
            (Code::TooManyParameters, "ARGS_INVALID"),
            (Code::ResultTooLarge, "RESPONSE_TOO_LARGE"),
            (Code::DatabaseBusy, "TRANSACTION_BUSY"),
            (Code::TransactionTimeout, "TRANSACTION_TIMEOUT"),
            (Code::DatabaseReadOnly, "BLOCKED"),
            (Code::DatabaseBlocked, "BLOCKED"),
            (Code::Maintenance, "BLOCKED"),
            (Code::InsufficientPermissions, "BLOCKED"),
            (Code::QueryTimeout, "SQLITE_INTERRUPT"),
            (Code::DiskFull, "SQLITE_FULL"),
            (Code::QuotaExceeded, "SQLITE_FULL"),
            (Code::StreamExpired, "STREAM_EXPIRED"),
            (Code::SqlError, "SQLITE_ERROR"),
            (Code::DatabaseCorrupt, "DATABASE_CORRUPT"),
            (Code::StorageUnavailable, "STORAGE_UNAVAILABLE"),
        ] {
            assert_eq!(of_statement(&Error::new(code, "x"))["code"], word, "{code}");
        }
    }

    /// Goal: a request that failed whole keeps its status, and says why in the one form that clients read.
    #[tokio::test]
    async fn a_request_that_failed_whole_has_its_status_and_the_form_of_the_clients() {
        use crate::problem::Code as Whole;
        for (code, status, word) in [
            (Whole::InvalidRequest, 400, "INVALID_REQUEST"),
            (Whole::BatonInvalid, 400, "BATON_INVALID"),
            (Whole::StreamExpired, 400, "STREAM_EXPIRED"),
            (Whole::Unauthenticated, 401, "UNAUTHENTICATED"),
            (Whole::DatabaseBlocked, 403, "BLOCKED"),
            (Whole::DatabaseReadOnly, 403, "BLOCKED"),
            (Whole::DatabaseNotFound, 404, "DATABASE_NOT_FOUND"),
            (Whole::RequestTimeout, 408, "REQUEST_TIMEOUT"),
            (Whole::BodyTooLarge, 413, "BODY_TOO_LARGE"),
            (Whole::RateLimited, 429, "RATE_LIMITED"),
            (Whole::Internal, 500, "INTERNAL"),
            (Whole::ObjectCorrupt, 500, "OBJECT_CORRUPT"),
            (Whole::DatabaseCorrupt, 500, "DATABASE_CORRUPT"),
            (Whole::Maintenance, 503, "BLOCKED"),
            (Whole::Overloaded, 503, "OVERLOADED"),
            (Whole::StorageUnavailable, 503, "STORAGE_UNAVAILABLE"),
            (Whole::OutcomeUnknown, 504, "OUTCOME_UNKNOWN"),
        ] {
            let response = of_request(&Problem::new(code, "said"), "/v3/pipeline", "req_1");
            assert_eq!(response.status().as_u16(), status, "{code:?}");
            let kind = response.headers().get(header::CONTENT_TYPE);
            let kind = kind.and_then(|kind| kind.to_str().ok());
            assert_eq!(kind, Some("application/json"), "{code:?}");
            let waits = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(waits, status == 503, "{code:?}");
            let body = axum::body::to_bytes(response.into_body(), 4096).await;
            let body: Json = serde_json::from_slice(&body.expect("a body")).expect("JSON");
            let wanted =
                json!({ "message": "said", "code": word, "error": "said", "request_id": "req_1" });
            assert_eq!(body, wanted);
        }
    }
}
