//! Traces over OTLP: a span a request, sent to a collector as protobuf over HTTP; off unless the configuration names
//! one.
//!
//! A span holds what the log line of the request does: request id, method, the route's template, status. Neither path
//! nor query, header, SQL or parameter is ever in one: only spans of [`TARGET`] leave, and only [`span`] makes them.
//! Batches are sent from a thread of the exporter's own; one that cannot be sent is lost, which the log says.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::{Method, Request, Response};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Span;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, filter};

use crate::config::Telemetry;

/// The target of the spans that leave.
const TARGET: &str = "tidelog_trace";

/// How long a batch may take to be sent.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// What is sent, and to whom; drop it last, after [`Traces::end`].
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

/// The span of a request. `otel.name` is what a collector lists it under.
pub(crate) fn span(method: &Method, route: &str, request_id: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method.as_str(),
        http.route = route,
        request_id,
        http.response.status_code = tracing::field::Empty,
        otel.status_code = tracing::field::Empty,
    )
}

/// Notes how the request ended.
pub(crate) fn ended(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// Whether a log shall show it: spans for a collector are no news for a reader of lines.
pub(crate) fn is_for_lines() -> FilterFn {
    filter::filter_fn(|about| about.target() != TARGET)
}

impl Traces {
    /// Prepares sending, if the configuration names a collector. Within a runtime, which does the sending.
    pub fn begin(settings: &Telemetry) -> Result<Option<Self>, String> {
        let Some(endpoint) = &settings.otlp_endpoint else {
            return Ok(None);
        };
        let failed = |error: &dyn fmt::Display| format!("telemetry.otlp_endpoint: {error}");
        let client = reqwest::Client::builder()
            .timeout(SEND_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(&error))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Sender {
                client,
                runtime: Handle::current(),
            })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(SEND_DEADLINE)
            .build()
            .map_err(|error| failed(&error))?;
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty()
            .with_service_name("tidelog")
            .with_attribute(version);
        let ratio = f64::from(settings.sample_percent) / 100.0;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::TraceIdRatioBased(ratio))
            .with_resource(resource.build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// What takes the spans in.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("tidelog"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false)
            .with_filter(filter::filter_fn(|about| about.target() == TARGET))
    }

    /// Sends what is left. Blocks; not on a thread of the runtime.
    pub fn end(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(SEND_DEADLINE) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Sends a batch on the server's runtime: the exporter's thread has none.
struct Sender {
    client: reqwest::Client,
    runtime: Handle,
}

impl fmt::Debug for Sender {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Sender").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = async move {
            let answer = client.execute(request.try_into()?).await?;
            let status = answer.status();
            let mut response = Response::new(answer.bytes().await?);
            *response.status_mut() = status;
            Ok::<_, reqwest::Error>(response)
        };
        let sent = self.runtime.spawn(sending).await?;
        match &sent {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => {
                tracing::warn!(status = response.status().as_u16(), "traces were refused");
            }
            // Without its URL: that may hold what is nobody's business.
            Err(error) => {
                let reason = if error.is_timeout() {
                    "no answer in time"
                } else {
                    "no connection"
                };
                tracing::warn!(reason, "traces were not sent");
            }
        }
        Ok(sent.map_err(reqwest::Error::without_url)?)
    }
}
