//! A store of a run's S3 servers behind a fault proxy: what the server reaches, and what everybody else does.

use std::net::ToSocketAddrs as _;

use tidelog_testkit::proxy::FaultProxy;

/// A proxy in front of the server that `url` names, and the URL through it.
pub(crate) fn proxied(url: &str) -> (FaultProxy, String) {
    let (_, rest) = url.split_once("endpoint=http://").expect("an endpoint");
    let endpoint = rest.split('&').next().unwrap_or_default();
    let mut addresses = endpoint
        .to_socket_addrs()
        .expect("an endpoint is an address");
    let upstream = addresses.next().expect("an address");
    let proxy = FaultProxy::start(upstream).expect("a proxy");
    let through = url.replace(&format!("http://{endpoint}"), &proxy.endpoint());
    (proxy, through)
}
