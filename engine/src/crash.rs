//! Named crash points: every durable step is bracketed by two, so that tests can stop the world there.
//!
//! Without the feature `crash-points` they compile to nothing. With it, the environment variable
//! `TIDELOG_CRASH_AT` holds a name, optionally `name:n` for the n-th time it is reached, and the process
//! aborts there, as `kill -9` would: no destructor, no flush.

/// Stops the process here if the environment asks for it (tests only).
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::crash::reached($name);
    };
}

/// Aborts if `TIDELOG_CRASH_AT` names this point and its count is used up; notes in the file that
/// `TIDELOG_CRASH_TRACE` names that it was reached.
#[cfg(feature = "crash-points")]
pub fn reached(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SEEN: AtomicU64 = AtomicU64::new(0);
    if let Some(trace) = std::env::var_os("TIDELOG_CRASH_TRACE") {
        use std::io::Write as _;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(trace);
        // One write a line: threads do not mix theirs.
        let _ = file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
    }
    let Ok(wanted) = std::env::var("TIDELOG_CRASH_AT") else {
        return;
    };
    let (point, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if point == name && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == count.parse().unwrap_or(1) {
        std::process::abort();
    }
}
