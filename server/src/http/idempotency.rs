//! The Idempotency-Key of a POST: reading it, what two uses of one key are compared by, and the answer that is
//! kept under it.
//!
//! Query and batch keep the record in the tenant's own database. Everything else keeps it in the system
//! database: the handler takes the [`Record`] of its answer from its [`Recorder`] and hands it to the engine
//! together with the change, so that both commit or neither. What a handler leaves behind is kept after it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tidelog_engine::IdempotencyKey;
use tidelog_engine::system::requests::Record;

use super::Answer;
use super::answer::Content;
use crate::problem::{Code, Problem};

/// The longest key.
const KEY_BYTES_MAX: usize = 255;

/// The key of a request; `None` without one. On another method than POST it is refused, not ignored.
pub(crate) fn key(headers: &HeaderMap, method: &Method) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let refused = |detail: &str| Err(Problem::new(Code::InvalidRequest, detail));
    if method != Method::POST {
        return refused("Idempotency-Key belongs to POST");
    }
    if values.next().is_some() {
        return refused("Idempotency-Key is given twice");
    }
    match value.to_str() {
        Ok(text) if (1..=KEY_BYTES_MAX).contains(&text.len()) => Ok(Some(text.to_owned())),
        _ => refused("Idempotency-Key must have 1 to 255 visible ASCII characters"),
    }
}

/// The record's identity: the key within token, database and route, and a fingerprint of the request.
///
/// `route` is the path's template and `path` the path as it came with its query, so that a key cannot wander.
pub(crate) fn record(
    key: String,
    token_id: &str,
    route: &str,
    path: &str,
    body: &[u8],
) -> IdempotencyKey {
    let mut hash = Sha256::new();
    for part in [b"POST", path.as_bytes(), body] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part);
    }
    let place = path.split('?').next().unwrap_or_default();
    IdempotencyKey {
        key,
        scope: format!("{token_id} {route} {place}"),
        fingerprint: hash.finalize().into(),
    }
}

/// The keys whose first call still runs.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<HashSet<(String, String)>>);

/// A running call; its key is free again when this goes.
#[derive(Debug)]
pub(crate) struct RunningKey {
    all: Arc<Running>,
    key: (String, String),
}

impl Running {
    /// Marks a key as running, or says that it runs already.
    pub(crate) fn begin(self: &Arc<Self>, key: &IdempotencyKey) -> Result<RunningKey, Problem> {
        let key = (key.scope.clone(), key.key.clone());
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !running.insert(key.clone()) {
            let detail = "the first call with this Idempotency-Key still runs; ask again";
            return Err(Problem::new(Code::IdempotencyInProgress, detail));
        }
        Ok(RunningKey {
            all: Arc::clone(self),
            key,
        })
    }
}

impl Drop for RunningKey {
    fn drop(&mut self) {
        let mut running = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.key);
    }
}

/// Hands out the record of an answer, once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Option<IdempotencyKey>>>);

impl Recorder {
    /// A recorder for a call with that key.
    pub(crate) fn new(key: IdempotencyKey) -> Self {
        Self(Arc::new(Mutex::new(Some(key))))
    }

    /// The record of an answer, to be kept with the effect; nothing without a key. The answer must hold no
    /// secret: a secret is shown once.
    pub(crate) fn record(&self, answer: &Answer) -> Option<Record> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let body = match &answer.content {
            Content::Json(document) => document.clone(),
            Content::Empty => Json::Null,
            // A stream is no answer to keep.
            Content::Rows(_) | Content::Other(_) => return None,
        };
        let key = left.take()?;
        let location = answer.headers.get(header::LOCATION);
        let answer = json!({
            "status": answer.status.as_u16(),
            "body": body,
            "location": location.and_then(|value| value.to_str().ok()),
        });
        Some(Record {
            key,
            answer: answer.to_string(),
        })
    }
}

/// The operation that a call began and that had not ended when its record was kept.
pub(crate) fn began(kept: &str) -> Option<String> {
    let kept: Json = serde_json::from_str(kept).ok()?;
    let open = kept["status"] == StatusCode::ACCEPTED.as_u16();
    let id = match &kept["operation"] {
        Json::String(id) => Some(id.as_str()),
        _ if open => kept["body"]["operation"]["id"].as_str(),
        _ => None,
    };
    id.map(str::to_owned)
}

/// The answer of a kept record, marked as a replay.
pub(crate) fn replay(kept: &str) -> Result<Answer, Problem> {
    let damaged = || Problem::new(Code::Internal, "the kept answer cannot be read");
    let mut kept: Json = serde_json::from_str(kept).map_err(|_| damaged())?;
    let status = kept["status"].as_u64().and_then(|n| u16::try_from(n).ok());
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let mut answer = match kept["body"].take() {
        Json::Null => Answer::nothing(),
        document => Answer::ok(document),
    };
    answer.status = status.ok_or_else(damaged)?;
    if let Some(location) = kept["location"].as_str() {
        let value = HeaderValue::try_from(location).map_err(|_| damaged())?;
        answer = answer.header(header::LOCATION, value);
    }
    Ok(answer.replayed())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_fingerprint_tells_path_query_and_body_apart() {
        let of = |path, body| record("k".to_owned(), "t", "/r", path, body).fingerprint;
        assert_eq!(of("/a", b"x"), of("/a", b"x"));
        assert_ne!(of("/a", b"x"), of("/a", b"y"));
        assert_ne!(of("/a", b"x"), of("/ax", b""));
        assert_ne!(of("/a", b"x"), of("/a?b=1", b"x"));
    }

    #[test]
    fn a_scope_holds_token_route_and_place() {
        let one = record("k".to_owned(), "t1", "/r", "/a?x=1", b"").scope;
        assert_eq!(one, record("k".to_owned(), "t1", "/r", "/a?x=2", b"").scope);
        assert_ne!(one, record("k".to_owned(), "t2", "/r", "/a", b"").scope);
        assert_ne!(one, record("k".to_owned(), "t1", "/r", "/b", b"").scope);
    }

    #[test]
    fn a_record_is_handed_out_once_and_reads_back() {
        let key = record("k".to_owned(), "t", "/r", "/a", b"");
        let recorder = Recorder::new(key.clone());
        let answer = Answer::created(json!({ "a": 1 }))
            .header(header::LOCATION, HeaderValue::from_static("/v1/x"));
        let kept = recorder.record(&answer).expect("the first time");
        assert!(recorder.record(&answer).is_none());
        assert_eq!(kept.key, key);
        let back = replay(&kept.answer).expect("our own text reads");
        assert_eq!(back.status, StatusCode::CREATED);
        assert_eq!(back.headers[header::LOCATION], "/v1/x");
        assert!(matches!(&back.content, Content::Json(body) if *body == json!({ "a": 1 })));
        assert!(replay("{}").is_err() && replay("x").is_err());
    }

    #[test]
    fn a_key_runs_once_at_a_time() {
        let running = Arc::new(Running::default());
        let key = record("k".to_owned(), "t", "/r", "/a", b"");
        let first = running.begin(&key).expect("free");
        let code = running.begin(&key).expect_err("taken").code();
        assert_eq!(code, "idempotency-in-progress");
        drop(first);
        assert!(running.begin(&key).is_ok());
    }

    #[test]
    fn keys_are_bounded_and_belong_to_post() {
        let mut headers = HeaderMap::new();
        assert_eq!(key(&headers, &Method::POST).expect("none"), None);
        let long = "k".repeat(256);
        for (value, good) in [
            ("k", true),
            (&long[..255], true),
            (&long, false),
            ("", false),
        ] {
            let value = HeaderValue::try_from(value).expect("ASCII");
            headers.insert("idempotency-key", value);
            assert_eq!(key(&headers, &Method::POST).is_ok(), good);
        }
        headers.insert("idempotency-key", HeaderValue::from_static("k"));
        assert!(key(&headers, &Method::GET).is_err());
    }
}
