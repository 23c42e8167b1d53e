//! From where a request comes: the address of the connection, or, behind a proxy that the configuration trusts,
//! the last address before it that is not such a proxy's.

use std::net::IpAddr;

use axum::http::{Extensions, HeaderMap};

/// The address of a connection, in the extensions of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Where a request comes from; `None` if there is no connection, as in a test of the router alone.
pub(crate) fn origin(
    extensions: &Extensions,
    headers: &HeaderMap,
    trusted: &[IpAddr],
) -> Option<IpAddr> {
    let peer = extensions.get::<Peer>()?.0.to_canonical();
    if !trusted.contains(&peer) {
        return Some(peer);
    }
    let values = headers.get_all("x-forwarded-for").iter();
    let listed: Vec<&str> = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    // From the right: what stands to the left of an untrusted address may be invented.
    for text in listed.into_iter().rev() {
        let Ok(address) = text.trim().parse::<IpAddr>() else {
            break;
        };
        let address = address.to_canonical();
        if !trusted.contains(&address) {
            return Some(address);
        }
    }
    Some(peer)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let trusted = [ip("10.0.0.1"), ip("10.0.0.2")];
        let from = |peer: &str, forwarded: &'static str| {
            let mut extensions = Extensions::new();
            extensions.insert(Peer(ip(peer)));
            let mut headers = HeaderMap::new();
            headers.insert("x-forwarded-for", HeaderValue::from_static(forwarded));
            origin(&extensions, &headers, &trusted).map(|ip| ip.to_string())
        };
        assert_eq!(from("9.9.9.9", "1.2.3.4").as_deref(), Some("9.9.9.9"));
        assert_eq!(
            from("10.0.0.1", "6.6.6.6, 1.2.3.4").as_deref(),
            Some("1.2.3.4")
        );
        assert_eq!(
            from("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2").as_deref(),
            Some("1.2.3.4")
        );
        assert_eq!(
            from("10.0.0.1", "1.2.3.4, junk").as_deref(),
            Some("10.0.0.1")
        );
        assert_eq!(
            from("::ffff:10.0.0.1", "1.2.3.4").as_deref(),
            Some("1.2.3.4")
        );
    }
}
