//! The S3 servers of a run: each one named is reachable, and a run without them says so in one line.

use std::net::ToSocketAddrs;

use tidelog_testkit::s3;

fn endpoint(url: &str) -> String {
    let query = url
        .split_once('?')
        .expect("a store URL of a test carries settings")
        .1;
    let endpoint = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("endpoint="));
    let endpoint = endpoint.expect("a store URL of a test names its endpoint");
    endpoint
        .strip_prefix("http://")
        .expect("a test endpoint is plain HTTP")
        .to_owned()
}

#[test]
fn s3_suite_runs_against_live_servers_or_says_that_it_does_not() {
    if !s3::notice() {
        return;
    }
    for url in s3::stores().into_iter().chain(s3::refused_store()) {
        let address = endpoint(&url);
        let mut candidates = address
            .to_socket_addrs()
            .expect("an endpoint is an address");
        assert!(
            candidates.any(|address| std::net::TcpStream::connect(address).is_ok()),
            "no server listens on {address}, named by {url}"
        );
    }
}
