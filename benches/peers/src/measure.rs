//! Clock, medians and spreads of the benches.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::memory::{forget_peak, mib, resident};

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since.
pub(crate) fn millis(from: Instant) -> f64 {
    from.elapsed().as_secs_f64() * 1000.0
}

/// The middle of some values, or what lies between the two in the middle; zero of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = (values.len().saturating_sub(1)) / 2..=values.len() / 2;
    values
        .get(middle)
        .map_or(0.0, |two| f64::midpoint(two[0], two[two.len() - 1]))
}

/// The least and the most of them.
pub(crate) fn spread(values: &[f64]) -> Value {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    json!([least.round(), most.round()])
}

/// Makes a file so many times anew: the median in milliseconds, and the memory it took above what there was, in MiB.
pub(crate) async fn made_anew(
    rounds: usize,
    out: &Path,
    mut make: impl AsyncFnMut(&Path),
) -> (f64, f64) {
    let (mut times, mut peak) = (Vec::new(), 0.0_f64);
    let process = std::process::id();
    for _ in 0..rounds {
        let _ = std::fs::remove_file(out);
        forget_peak(process);
        let (before, _) = resident(process).expect("this process");
        let begun = now();
        make(out).await;
        times.push(millis(begun));
        let (_, most) = resident(process).expect("this process");
        peak = peak.max(mib(most.saturating_sub(before)));
    }
    (median(times), peak)
}
