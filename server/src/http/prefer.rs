//! `Prefer: wait=N` (RFC 7240): how long a caller waits for an operation before it is told where to look.

use std::time::Duration;

use axum::http::HeaderMap;

use crate::problem::{Code, Problem};

/// Without a preference.
const WAIT: Duration = Duration::from_secs(5);
/// The longest wait in seconds.
const WAIT_SECONDS_MAX: u64 = 30;

/// The wait a request prefers. Other preferences are ignored, as the standard says.
pub(crate) fn wait(headers: &HeaderMap) -> Result<Duration, Problem> {
    let values = headers.get_all("prefer").iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    let preferences = texts.flat_map(|text| text.split([',', ';'])).map(str::trim);
    for preference in preferences {
        if preference.eq_ignore_ascii_case("respond-async") {
            return Ok(Duration::ZERO);
        }
        let Some((name, value)) = preference.split_once('=') else {
            continue;
        };
        if name.trim().eq_ignore_ascii_case("wait") {
            let seconds = value.trim().trim_matches('"').parse::<u64>().ok();
            let seconds = seconds.filter(|seconds| *seconds <= WAIT_SECONDS_MAX);
            return seconds.map(Duration::from_secs).ok_or_else(|| {
                let detail = format!("Prefer: wait=N takes 0 to {WAIT_SECONDS_MAX} seconds");
                Problem::new(Code::InvalidRequest, detail)
            });
        }
    }
    Ok(WAIT)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn waits_are_read_bounded_and_have_a_default() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            wait(&headers).ok().map(|wait| wait.as_secs())
        };
        assert_eq!(wait(&HeaderMap::new()).ok(), Some(WAIT));
        assert_eq!(of("wait=0"), Some(0));
        assert_eq!(of("return=minimal, wait=30"), Some(30));
        assert_eq!(of("respond-async, wait=10"), Some(0));
        assert_eq!(of("wait=31"), None);
        assert_eq!(of("wait=soon"), None);
        assert_eq!(of("return=minimal"), Some(5));
    }
}
