//! Counters in the text format of Prometheus. No label names a tenant.

use std::fmt::Write;

use tidelog_archive::store::{MeterSnapshot, Outcome, Verb};
use tidelog_engine::Engine;

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

/// The text of a scrape.
pub(crate) fn scrape(engine: &Engine) -> String {
    let mut out = String::new();
    store(&mut out, &engine.store_meter());
    gauge(
        &mut out,
        "term",
        "Number of this process life.",
        u64::from(engine.term().get()),
    );
    out
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

fn line(out: &mut String, series: &str, value: u64) {
    let _ = writeln!(out, "tidelog_{series} {value}");
}
