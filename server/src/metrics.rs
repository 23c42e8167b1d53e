//! The engine's counters in the text format of Prometheus. No label names a tenant.

use std::fmt::Write;

use tidelog_engine::Metrics;

/// What a number does over time.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// The text of a scrape.
pub(crate) fn encode(metrics: &Metrics) -> String {
    let mut out = String::new();
    let mut one = |kind: Kind, name: &str, help: &str, value: u64| {
        head(&mut out, kind, name, help);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "tidelog_{name} {value}");
    };
    one(
        Kind::Counter,
        "commits_captured_total",
        "Commits recorded.",
        metrics.commits_captured,
    );
    one(
        Kind::Gauge,
        "databases_open",
        "Databases open now.",
        metrics.open_databases,
    );
    one(
        Kind::Gauge,
        "journal_bytes",
        "Bytes in the journal folder.",
        metrics.journal_bytes,
    );
    one(
        Kind::Gauge,
        "lag_milliseconds",
        "Age of the oldest commit not in the store.",
        metrics.lag_ms,
    );
    out
}

fn head(out: &mut String, kind: Kind, name: &str, help: &str) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    let _ = writeln!(
        out,
        "# HELP tidelog_{name} {help}\n# TYPE tidelog_{name} {kind}"
    );
}
