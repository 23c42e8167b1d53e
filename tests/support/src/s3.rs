//! The S3 servers the suite runs against, named by the environment.
//!
//! `scripts/test` starts the servers and sets `TIDELOG_TEST_S3` to a comma-separated list of store URLs,
//! `s3://bucket/prefix?endpoint=...`. A plain `cargo test` has none: [`stores`] is then empty and the S3 part
//! of a test does not run, which one line of the test run says ([`notice`]).

use std::io::Write;

/// The environment variable with the store URLs to test against.
pub const STORES: &str = "TIDELOG_TEST_S3";
/// The environment variable with the URL of a server that ignores conditional writes.
pub const REFUSED: &str = "TIDELOG_TEST_S3_REFUSED";

/// One store URL for each S3 server of this run, each with a prefix that nobody else uses. Empty without servers.
pub fn stores() -> Vec<String> {
    let listed = std::env::var(STORES).unwrap_or_default();
    listed
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(fresh_prefix)
        .collect()
}

/// The URL of a server that silently ignores `If-None-Match` and `If-Match`: the store probe must refuse it.
pub fn refused_store() -> Option<String> {
    std::env::var(REFUSED)
        .ok()
        .filter(|url| !url.is_empty())
        .map(|url| fresh_prefix(&url))
}

/// Says on the terminal, past the capture of the test harness, that the S3 suite was not run; `false` then.
pub fn notice() -> bool {
    if stores().is_empty() {
        // The handle, not the macro: the harness captures only the macro.
        let line =
            format!("S3 suite not run: {STORES} is not set (scripts/test starts the servers)\n");
        // A closed terminal loses the notice and nothing else.
        let _ = std::io::stderr().write_all(line.as_bytes());
        return false;
    }
    true
}

/// The same URL with a random folder behind its prefix, so that tests can share a bucket.
fn fresh_prefix(url: &str) -> String {
    let folder = format!("{:016x}", rand::random::<u64>());
    match url.split_once('?') {
        Some((path, query)) => format!("{}/{folder}?{query}", path.trim_end_matches('/')),
        None => format!("{}/{folder}", url.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::fresh_prefix;

    #[test]
    fn prefixes_of_one_store_differ_and_keep_its_settings() {
        let url = "s3://bucket/ministack?endpoint=http://127.0.0.1:9&path_style=true";
        let (one, other) = (fresh_prefix(url), fresh_prefix(url));
        assert_ne!(one, other);
        for fresh in [one, other] {
            assert!(fresh.starts_with("s3://bucket/ministack/"));
            assert!(fresh.ends_with("?endpoint=http://127.0.0.1:9&path_style=true"));
        }
    }
}
