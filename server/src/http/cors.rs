//! Browsers of other origins: allowed by list, none by default, never with cookies.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

const METHODS: &str = "GET, POST, PUT, PATCH, DELETE, OPTIONS";
const HEADERS: &str = "authorization, content-type, idempotency-key, if-match, prefer, range, \
                       db-durability, x-namespace, x-libsql-client-version, x-turso-encryption-key";
const EXPOSED: &str = "db-bookmark, db-durable-bookmark, db-as-of, idempotency-replayed, link, location, \
                       retry-after, x-request-id, ratelimit-limit, ratelimit-remaining, ratelimit-reset, \
                       content-digest, etag";
/// How long a browser may believe an answer to its preflight, in seconds.
const MAX_AGE: &str = "86400";

/// The origin of a request, if it is one of those allowed.
fn allowed(headers: &HeaderMap, origins: &[String]) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let text = origin.to_str().ok()?;
    origins
        .iter()
        .any(|one| one == text)
        .then(|| origin.clone())
}

/// The answer to a preflight; `None` if the request is none. An origin that is not listed gets no permission.
pub(crate) fn preflight(
    method: &Method,
    headers: &HeaderMap,
    origins: &[String],
) -> Option<Response<Body>> {
    let asks = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if *method != Method::OPTIONS || !asks || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if allowed(headers, origins).is_some() {
        let set: [(HeaderName, &str); 3] = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ];
        for (name, value) in set {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
    }
    Some(response)
}

/// Tells a browser that an answer may be read, if its origin is listed.
pub(crate) fn permit(asked: Option<HeaderValue>, headers: &mut HeaderMap) {
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = asked {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = HeaderValue::from_static(EXPOSED);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// The origin to name in the answer.
pub(crate) fn asked(headers: &HeaderMap, origins: &[String]) -> Option<HeaderValue> {
    allowed(headers, origins)
}
