//! The Idempotency-Key of a POST: reading it, and what two uses of one key are compared by.

use axum::http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use tidelog_engine::IdempotencyKey;

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
