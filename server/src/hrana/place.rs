//! Which database a request means whose path does not say: the header `x-namespace`, the first label of the host
//! under a configured suffix, the configured default, in this order.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header};

/// The database, if the request or the configuration names one.
pub(crate) fn database(
    uri: &Uri,
    headers: &HeaderMap,
    suffixes: &[String],
    default: Option<&str>,
) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(named) = text("x-namespace")
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        return Some(named.to_owned());
    }
    let host = uri.host().or_else(|| text(header::HOST.as_str()));
    host.and_then(|host| label(host, suffixes))
        .or_else(|| default.map(str::to_owned))
}

/// The first label of a host whose rest is one of the suffixes.
fn label(host: &str, suffixes: &[String]) -> Option<String> {
    let name = match host.strip_prefix('[') {
        Some(_) => return None,
        None => host.split(':').next().unwrap_or_default(),
    };
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let (first, rest) = name.split_once('.')?;
    let listed = suffixes.iter().any(|suffix| {
        let suffix = suffix.strip_prefix('.').unwrap_or(suffix);
        suffix.eq_ignore_ascii_case(rest)
    });
    (listed && !first.is_empty()).then(|| first.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_counts_under_a_suffix_alone() {
        let suffixes = [
            "db.example.org".to_owned(),
            ".localhost".to_owned(),
            "0.0.1".to_owned(),
        ];
        let of = |host| label(host, &suffixes);
        assert_eq!(of("orders.db.example.org:8080").as_deref(), Some("orders"));
        assert_eq!(of("Orders.DB.example.org").as_deref(), Some("orders"));
        assert_eq!(of("orders.localhost").as_deref(), Some("orders"));
        for none in [
            "db.example.org",
            "a.b.db.example.org",
            "orders",
            "127.0.0.1:80",
            "[::1]:80",
            ".localhost",
        ] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
