//! From where a request comes: the address of the connection, or, behind a proxy that the configuration trusts,
//! the last address before it that is not such a proxy's.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{Extensions, HeaderMap};

use tidelog_engine::system::tokens::TokenInfo;

use super::caller::caller;
use super::rates::{Key, Running};
use crate::app::App;
use crate::problem::{Code, Problem};

/// A connection, in the extensions of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The address of its other end.
    pub(crate) address: IpAddr,
    users: Arc<Mutex<Vec<User>>>,
}

/// A principal that uses a connection, or its tenant, and the place among the connections of theirs.
type User = (Key, Running);

impl Peer {
    pub(crate) fn new(address: IpAddr) -> Self {
        Self {
            address,
            users: Arc::default(),
        }
    }

    /// Counts the connection as one of the principal's and of their tenant's until it ends; refuses what would be one too
    /// many: a tenant with many tokens still leaves the others half. A proxy's connections carry anybody's requests and
    /// are not counted.
    pub(crate) fn used_by(&self, token: &TokenInfo, app: &App) -> Result<(), Problem> {
        if app.trusted_proxies.contains(&self.address.to_canonical()) {
            return Ok(());
        }
        let limits = &app.limits;
        let half = (limits.connections_max / 2).max(1);
        let keys = [
            (
                Key::Connected(caller(token)),
                limits.connections_per_principal_max,
                "principal",
            ),
            (Key::ConnectedTo(token.namespace), half, "namespace"),
        ];
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, limit, whose) in keys {
            if limit == 0 || users.iter().any(|(user, _)| *user == key) {
                continue;
            }
            let counted = app.guards.in_flight.enter(&[(key, limit)]).map_err(|_| {
                let detail =
                    format!("{limit} connections of this {whose} are open already; use them");
                Problem::new(Code::RateLimited, detail)
                    .with("limit", limit)
                    .with("retry_after", 1)
            })?;
            users.push((key, counted));
        }
        Ok(())
    }
}

/// Where a request comes from; `None` if there is no connection, as in a test of the router alone.
pub(crate) fn origin(
    extensions: &Extensions,
    headers: &HeaderMap,
    trusted: &[IpAddr],
) -> Option<IpAddr> {
    let peer = extensions.get::<Peer>()?.address.to_canonical();
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
            extensions.insert(Peer::new(ip(peer)));
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
