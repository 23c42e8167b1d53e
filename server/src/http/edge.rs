//! The outermost layer: a request id, one log line, the security headers, a problem document for a panic, and a
//! moment for what a client still sends ([`Lingering`]).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Response, header};
use axum::middleware::Next;
use futures::FutureExt;
use tracing::Instrument;

use super::cors;
use super::linger::Lingering;
use crate::app::App;
use crate::problem::{Code, Problem};
use crate::telemetry;

/// The id of a request, in its extensions.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers of every answer. A JSON surface loads nothing, so its content policy allows nothing.
const SECURITY: [(HeaderName, &str); 7] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::REFERRER_POLICY, "strict-origin-when-cross-origin"),
    (
        HeaderName::from_static("permissions-policy"),
        "geolocation=(), microphone=(), camera=()",
    ),
    (header::X_XSS_PROTECTION, "1; mode=block"),
    (
        header::STRICT_TRANSPORT_SECURITY,
        "max-age=31536000; includeSubDomains; preload",
    ),
];

/// Paths whose answers may be kept by a cache.
const CACHEABLE: [&str; 4] = ["/healthz", "/readyz", "/metrics", "/v1/openapi.json"];

/// A method as a label: what is none of HTTP's own is one label, however many a client thinks of.
fn method_label(method: &Method) -> &str {
    match *method {
        Method::GET
        | Method::POST
        | Method::PUT
        | Method::PATCH
        | Method::DELETE
        | Method::OPTIONS
        | Method::HEAD => method.as_str(),
        _ => "other",
    }
}

/// Wraps the whole router.
pub(crate) async fn wrap(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let began = app.clock.monotonic_micros();
    let id = app.request_id();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    // The template, not the path: a log line names no tenant's database by accident of a route.
    let route = request.extensions().get::<MatchedPath>().cloned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let waits = request.headers().contains_key(header::EXPECT);
    let request = request.map(|body| Body::new(Lingering::new(body, waits)));
    let origin = cors::asked(request.headers(), &app.cors_origins);
    let preflight = cors::preflight(&method, request.headers(), &app.cors_origins);
    let template = route.as_ref().map_or("-", MatchedPath::as_str).to_owned();
    let span = telemetry::span(&method, &template, &id);
    let next = async {
        match preflight {
            Some(response) => response,
            None => next.run(request).await,
        }
    };
    let next = next.instrument(span.clone());
    let outcome = AssertUnwindSafe(next).catch_unwind().await;
    let mut response = outcome.unwrap_or_else(|_| {
        let problem = Problem::new(Code::Internal, "the server met a defect of its own");
        problem.response(&path, &id)
    });
    let headers = response.headers_mut();
    for (name, value) in SECURITY {
        headers.insert(name, HeaderValue::from_static(value));
    }
    cors::permit(origin, headers);
    if !CACHEABLE.contains(&path.as_str()) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    // Hex digits and an underscore: always a header value.
    if let Ok(value) = HeaderValue::try_from(&id) {
        headers.insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    let micros = app.clock.monotonic_micros().saturating_sub(began);
    let route = template.as_str();
    telemetry::ended(&span, status);
    let meters = &app.guards.meters;
    meters.answered(method_label(&method), route, status, micros);
    if status < 400 {
        tracing::debug!(request_id = %id, %method, route, status, micros, "request");
    } else {
        tracing::info!(request_id = %id, %method, route, status, micros, "request refused");
    }
    response
}
