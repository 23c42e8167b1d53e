//! Counters in the text format of Prometheus. No label names a tenant: routes are templates.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tidelog_archive::store::{MeterSnapshot, Outcome, Verb};
use tidelog_engine::meters::{BOUNDS_MICROS, Counts, Histogram, NodeStatus};
use tidelog_engine::travel::verify::{Outcome as Verified, ProofStatus};
use tidelog_wal::Timestamp;

use crate::app::App;

/// The verbs of the store, by the name a label has.
const VERBS: [(Verb, &str); 6] = [
    (Verb::Get, "get"),
    (Verb::Head, "head"),
    (Verb::Put, "put"),
    (Verb::Part, "part"),
    (Verb::Delete, "delete"),
    (Verb::List, "list"),
];
/// The outcomes of a request to the store, by the name a label has.
const OUTCOMES: [(Outcome, &str); 4] = [
    (Outcome::Ok, "ok"),
    (Outcome::Missing, "missing"),
    (Outcome::Refused, "refused"),
    (Outcome::Failed, "failed"),
];

/// What the HTTP layer counts.
#[derive(Debug, Default)]
pub(crate) struct HttpMeters {
    routes: RwLock<BTreeMap<(String, String), Arc<RouteMeter>>>,
    /// Requests whose token was refused.
    pub(crate) auth_failures: AtomicU64,
    /// Requests that a role, a scope or a namespace refused.
    pub(crate) denied: AtomicU64,
    /// Requests that a rate or a share refused.
    pub(crate) rate_limited: AtomicU64,
    /// Statements slower than the threshold.
    pub(crate) slow_queries: AtomicU64,
}

/// One method of one path template.
#[derive(Debug, Default)]
struct RouteMeter {
    took: Histogram,
    /// By hundreds of the status, from 1xx.
    statuses: [AtomicU64; 5],
}

impl HttpMeters {
    /// Counts an answer. `route` is a template of the table, so that there are only so many.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, micros: u64) {
        let key = (method.to_owned(), route.to_owned());
        let known = {
            let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
            routes.get(&key).cloned()
        };
        let meter = known.unwrap_or_else(|| {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(routes.entry(key).or_default())
        });
        meter.took.record(micros);
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(count) = meter.statuses.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write(&self, out: &mut String) {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        head(
            out,
            "counter",
            "http_requests_total",
            "Answers by route and class of status.",
        );
        for ((method, route), meter) in routes.iter() {
            for (class, count) in (1..).zip(&meter.statuses) {
                let count = count.load(Ordering::Relaxed);
                let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{class}xx\"");
                line(out, &format!("http_requests_total{{{labels}}}"), count);
            }
        }
        let name = "http_request_duration_seconds";
        head(out, "histogram", name, "Time to answer, by route.");
        for ((method, route), meter) in routes.iter() {
            let labels = format!("method=\"{method}\",route=\"{route}\"");
            histogram(out, name, &labels, &meter.took.counts());
        }
        let counters = [
            (
                "auth_failures_total",
                "Requests whose token was refused.",
                &self.auth_failures,
            ),
            (
                "authz_denied_total",
                "Requests that role, scope or namespace refused.",
                &self.denied,
            ),
            (
                "rate_limited_total",
                "Requests that a rate or a share refused.",
                &self.rate_limited,
            ),
            (
                "slow_queries_total",
                "Statements slower than the threshold.",
                &self.slow_queries,
            ),
        ];
        for (name, help, count) in counters {
            head(out, "counter", name, help);
            line(out, name, count.load(Ordering::Relaxed));
        }
    }
}

/// The text of a scrape.
pub(crate) async fn scrape(app: &App) -> String {
    let mut out = String::new();
    store(&mut out, &app.engine.store_meter());
    node(&mut out, &app.engine.status().await);
    let dropped = app.engine.audit_dropped();
    head(
        &mut out,
        "counter",
        "audit_dropped_total",
        "Audit lines dropped because too many waited.",
    );
    line(&mut out, "audit_dropped_total", dropped);
    verifications(&mut out, app.engine.proof_status(), app.engine.now());
    gauge(
        &mut out,
        "client_streams",
        "Streams of clients of libSQL that are open.",
        u64::try_from(app.engine.stream_count()).unwrap_or(u64::MAX),
    );
    gauge(
        &mut out,
        "term",
        "Number of this process life.",
        u64::from(app.engine.term().get()),
    );
    keys(&mut out, app);
    app.guards.meters.write(&mut out);
    out
}

/// How old the keys are; nothing without encryption.
fn keys(out: &mut String, app: &App) {
    let ages = app.engine.key_ages();
    if !ages.on {
        return;
    }
    gauge(
        out,
        "sealed_databases",
        "Databases whose data key is in memory.",
        ages.databases,
    );
    let now = app.clock.wall();
    let oldest = ages.oldest.map_or(0, |made| now.micros_since(made));
    head(
        out,
        "gauge",
        "data_key_oldest_seconds",
        "Age of the oldest data key that seals new objects, of the databases opened so far.",
    );
    series(out, "data_key_oldest_seconds", &seconds(oldest));
}

fn node(out: &mut String, status: &NodeStatus) {
    let gauges = [
        (
            "journal_bytes",
            "Bytes under the journal folder.",
            status.journal_bytes,
        ),
        (
            "journal_waiting_bytes",
            "Bytes of the journal that are not stored yet.",
            status.journal_waiting_bytes,
        ),
        (
            "lag_commits",
            "Commits that are not stored yet.",
            status.lag_commits,
        ),
        (
            "open_databases",
            "Databases with descriptors.",
            status.open_databases,
        ),
        (
            "jobs_waiting",
            "Queries that wait for a worker.",
            status.jobs_waiting,
        ),
        (
            "gates_waiting",
            "Writers that wait for a write gate.",
            status.gates_waiting,
        ),
    ];
    for (name, help, value) in gauges {
        gauge(out, name, help, value);
    }
    for (name, help, count) in [
        (
            "discontinuities_total",
            "Times that the files of a database were at no commit that history leads to.",
            status.discontinuities,
        ),
        (
            "diverged_forks_total",
            "Forks made of what a life had not stored whose term another closed.",
            status.diverged_forks,
        ),
    ] {
        head(out, "counter", name, help);
        line(out, name, count);
    }
    let times = [
        (
            "lag_seconds",
            "Age of the oldest commit that is not stored yet.",
            status.lag_micros,
        ),
        (
            "last_flush_seconds",
            "Time since the last durable flush to the store.",
            status.since_flush_micros,
        ),
        (
            "oldest_restorable_timestamp_seconds",
            "Oldest point that can be restored, of the databases read so far; 0 before the first.",
            status.oldest_restorable_micros.unwrap_or(0),
        ),
    ];
    for (name, help, micros) in times {
        head(out, "gauge", name, help);
        series(out, name, &seconds(micros));
    }
    for (name, help, counts) in [
        (
            "capture_duration_seconds",
            "Time to capture a pass of commits.",
            &status.capture,
        ),
        (
            "settle_duration_seconds",
            "Time to settle a database.",
            &status.settle,
        ),
    ] {
        head(out, "histogram", name, help);
        histogram(out, name, "", counts);
    }
}

/// Microseconds as seconds, exactly.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn histogram(out: &mut String, name: &str, labels: &str, counts: &Counts) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut sum = 0;
    for (bound, count) in BOUNDS_MICROS.iter().zip(&counts.buckets) {
        sum += count;
        let le = seconds(*bound);
        line(
            out,
            &format!("{name}_bucket{{{labels}{comma}le=\"{le}\"}}"),
            sum,
        );
    }
    let total = counts.total();
    line(
        out,
        &format!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}}"),
        total,
    );
    let braced = if labels.is_empty() {
        String::new()
    } else {
        format!("{{{labels}}}")
    };
    series(
        out,
        &format!("{name}_sum{braced}"),
        &seconds(counts.sum_micros),
    );
    line(out, &format!("{name}_count{braced}"), total);
}

fn store(out: &mut String, meter: &MeterSnapshot) {
    head(
        out,
        "counter",
        "store_requests_total",
        "Requests to the object store.",
    );
    for (verb, verb_name) in VERBS {
        for (outcome, outcome_name) in OUTCOMES {
            let count = meter.requests(verb, outcome);
            let labels = format!("verb=\"{verb_name}\",outcome=\"{outcome_name}\"");
            line(out, &format!("store_requests_total{{{labels}}}"), count);
        }
    }
    head(
        out,
        "counter",
        "store_bytes_total",
        "Bytes that successful store requests carried.",
    );
    for (verb, name) in VERBS {
        line(
            out,
            &format!("store_bytes_total{{verb=\"{name}\"}}"),
            meter.bytes(verb),
        );
    }
    gauge(
        out,
        "store_requests_in_flight",
        "Store requests under way.",
        meter.in_flight,
    );
}

/// What is known of verifications, over all databases: a series that has no value yet is left out.
fn verifications(out: &mut String, status: ProofStatus, now: Timestamp) {
    head(
        out,
        "counter",
        "verifications_total",
        "Verifications that ended in this process life.",
    );
    for (outcome, count) in Verified::ALL.into_iter().zip(status.ended) {
        let outcome = outcome.as_str();
        line(
            out,
            &format!("verifications_total{{outcome=\"{outcome}\"}}"),
            count,
        );
    }
    if let Some(good) = status.last_good {
        gauge(
            out,
            "verification_age_seconds",
            "Since a verification last found everything right.",
            now.micros_since(good) / 1_000_000,
        );
    }
    if let Some(took) = status.restore_duration {
        head(
            out,
            "gauge",
            "restore_duration_seconds",
            "The newest measured time of a restore.",
        );
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "tidelog_restore_duration_seconds {}",
            took.as_secs_f64()
        );
    }
}

fn gauge(out: &mut String, name: &str, help: &str, value: u64) {
    head(out, "gauge", name, help);
    line(out, name, value);
}

fn head(out: &mut String, kind: &str, name: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP tidelog_{name} {help}\n# TYPE tidelog_{name} {kind}"
    );
}

fn line(out: &mut String, name: &str, value: u64) {
    series(out, name, &value.to_string());
}

fn series(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "tidelog_{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulated_and_end_with_all() {
        let meters = HttpMeters::default();
        meters.answered("GET", "/x", 200, 50);
        meters.answered("GET", "/x", 404, 60_000_000);
        let mut out = String::new();
        meters.write(&mut out);
        for expected in [
            "tidelog_http_requests_total{method=\"GET\",route=\"/x\",status=\"2xx\"} 1",
            "tidelog_http_requests_total{method=\"GET\",route=\"/x\",status=\"4xx\"} 1",
            "tidelog_http_request_duration_seconds_bucket{method=\"GET\",route=\"/x\",le=\"0.000100\"} 1",
            "tidelog_http_request_duration_seconds_bucket{method=\"GET\",route=\"/x\",le=\"30.000000\"} 1",
            "tidelog_http_request_duration_seconds_bucket{method=\"GET\",route=\"/x\",le=\"+Inf\"} 2",
            "tidelog_http_request_duration_seconds_sum{method=\"GET\",route=\"/x\"} 60.000050",
            "tidelog_http_request_duration_seconds_count{method=\"GET\",route=\"/x\"} 2",
        ] {
            assert!(
                out.lines().any(|line| line == expected),
                "{expected}\n{out}"
            );
        }
    }
}
