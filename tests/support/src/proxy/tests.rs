//! The proxy against a tiny in-process object server: each fault makes exactly the outcome it names.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Fault, FaultProxy, Gate, Match};

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// PUT stores, GET reads, HEAD tells the length; one request a connection.
fn object_server() -> (SocketAddr, Objects) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port is free");
    let address = listener
        .local_addr()
        .expect("a bound listener has an address");
    let objects = Objects::default();
    let shared = Arc::clone(&objects);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let objects = Arc::clone(&shared);
            std::thread::spawn(move || answer(stream, &objects));
        }
    });
    (address, objects)
}

fn answer(mut stream: TcpStream, objects: &Objects) -> io::Result<()> {
    let (head, body) = read_message(&mut stream, false)?;
    let mut words = head.split(' ');
    let (method, key) = (
        words.next().unwrap_or(""),
        words.next().unwrap_or("").to_owned(),
    );
    let mut objects = objects.lock().expect("no test panics here");
    let (status, body) = match method {
        "PUT" => {
            objects.insert(key, body);
            ("200 OK", Vec::new())
        }
        _ => match objects.get(&key) {
            Some(body) => ("200 OK", body.clone()),
            None => ("404 Not Found", b"none".to_vec()),
        },
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nX-Kept: Yes\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(if method == "HEAD" { b"" } else { &body })
}

fn read_message(stream: &mut TcpStream, bodiless: bool) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |length| length.parse().expect("a number"));
    let mut body = vec![0; if bodiless { 0 } else { length }];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

/// One request through the proxy on a connection of its own.
fn call(proxy: &FaultProxy, method: &str, key: &str, body: &[u8]) -> io::Result<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(proxy.address())?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    call_on(&mut stream, method, key, body)
}

fn call_on(
    stream: &mut TcpStream,
    method: &str,
    key: &str,
    body: &[u8],
) -> io::Result<(String, Vec<u8>)> {
    let head = format!(
        "{method} {key} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    read_message(stream, method == "HEAD")
}

fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..12_000 {
        if condition() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("the condition did not come true within a minute");
}

fn stored(objects: &Objects, key: &str) -> Option<Vec<u8>> {
    objects
        .lock()
        .expect("no test panics here")
        .get(key)
        .cloned()
}

fn pair() -> (FaultProxy, Objects) {
    let (upstream, objects) = object_server();
    (
        FaultProxy::start(upstream).expect("the proxy starts"),
        objects,
    )
}

#[test]
fn without_rules_it_relays_verbatim_and_counts() {
    let (proxy, objects) = pair();
    let mut stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
    call_on(&mut stream, "PUT", "/b/k1?x=1", b"hello").expect("PUT");
    let (head, body) = call_on(&mut stream, "GET", "/b/k1?x=1", b"").expect("GET, same connection");
    assert!(
        head.contains("X-Kept: Yes\r\n") && head.contains("Content-Length: 5\r\n"),
        "{head}"
    );
    assert_eq!(body, b"hello");
    let (head, _) = call_on(&mut stream, "HEAD", "/b/k1?x=1", b"").expect("HEAD, same connection");
    assert!(head.contains("Content-Length: 5\r\n"), "{head}");
    assert_eq!(
        stored(&objects, "/b/k1?x=1").as_deref(),
        Some(&b"hello"[..])
    );
    assert_eq!(proxy.count(&Match::any()), 3);
    assert_eq!(proxy.count(&Match::new("put", "k1")), 1);
    let seen = proxy.requests();
    assert_eq!(
        (seen[0].key.as_str(), seen[0].query.as_str()),
        ("/b/k1", "x=1")
    );
    assert_eq!((seen[0].request_bytes, seen[1].response_bytes), (5, 5));
    assert_eq!(seen[2].status, Some(200));
}

#[test]
fn a_lost_answer_leaves_its_effect() {
    let (proxy, objects) = pair();
    proxy.rule(Match::new("PUT", "journal/"), Fault::LoseAnswer, 1);
    call(&proxy, "PUT", "/b/journal/1", b"one").expect_err("the answer is lost");
    assert_eq!(
        stored(&objects, "/b/journal/1").as_deref(),
        Some(&b"one"[..])
    );
    call(&proxy, "PUT", "/b/journal/1", b"two").expect("the rule is used up");
}

#[test]
fn a_reset_before_the_request_has_no_effect() {
    let (proxy, objects) = pair();
    proxy.rule(Match::new("PUT", ""), Fault::ResetBefore, 1);
    call(&proxy, "PUT", "/b/k", b"one").expect_err("the connection is reset");
    assert_eq!(stored(&objects, "/b/k"), None);
    assert_eq!(proxy.requests()[0].status, None);
}

#[test]
fn a_cut_body_announces_its_whole_length() {
    let (proxy, _objects) = pair();
    call(&proxy, "PUT", "/b/k", b"0123456789").expect("PUT");
    proxy.rule(Match::new("GET", "k"), Fault::CutBody(4), 1);
    let error = call(&proxy, "GET", "/b/k", b"").expect_err("the body is cut");
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        "{error}"
    );
    assert_eq!(
        call(&proxy, "GET", "/b/k", b"").expect("GET").1,
        b"0123456789"
    );
}

#[test]
fn slow_down_answers_as_often_as_told_and_forwards_nothing() {
    let (proxy, objects) = pair();
    proxy.rule(Match::any(), Fault::SlowDown, 2);
    for _ in 0..2 {
        let (head, body) = call(&proxy, "PUT", "/b/k", b"x").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(String::from_utf8_lossy(&body).contains("SlowDown"));
    }
    assert_eq!(stored(&objects, "/b/k"), None);
    assert!(
        call(&proxy, "PUT", "/b/k", b"x")
            .expect("PUT")
            .0
            .starts_with("HTTP/1.1 200 ")
    );
}

/// Goal: a request can take effect after its sender has given up. Method: hold a PUT, drop the client's
/// connection, release, wait for the upstream.
#[test]
fn a_held_request_is_applied_after_its_client_is_gone() {
    let (proxy, objects) = pair();
    let gate = Gate::new();
    proxy.rule(Match::new("PUT", "k"), Fault::Hold(gate.clone()), 1);
    let mut stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
    stream
        .write_all(b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nlate")
        .expect("the request is sent");
    wait_until(|| gate.held() == 1);
    drop(stream);
    assert_eq!(stored(&objects, "/b/k"), None);
    gate.release();
    wait_until(|| gate.applied() == 1);
    assert_eq!(stored(&objects, "/b/k").as_deref(), Some(&b"late"[..]));
}

#[test]
fn a_swallowed_request_is_neither_applied_nor_answered() {
    let (proxy, objects) = pair();
    proxy.rule(Match::new("PUT", "k"), Fault::Swallow, 1);
    let mut stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a time limit can be set");
    let error = call_on(&mut stream, "PUT", "/b/k", b"x").expect_err("no answer comes");
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
        "{error}"
    );
    // It may have been read only after the client gave up.
    wait_until(|| proxy.count(&Match::new("PUT", "k")) == 1);
    assert_eq!(stored(&objects, "/b/k"), None);
}

#[test]
fn rules_apply_in_order_and_can_be_cleared() {
    let (proxy, _objects) = pair();
    proxy.rule(
        Match::new("GET", ""),
        Fault::Delay(Duration::from_millis(1)),
        1,
    );
    proxy.rule(Match::any(), Fault::SlowDown, usize::MAX);
    let first = call(&proxy, "GET", "/b/none", b"").expect("an answer");
    let second = call(&proxy, "GET", "/b/none", b"").expect("an answer");
    assert!(first.0.starts_with("HTTP/1.1 404 ") && second.0.starts_with("HTTP/1.1 503 "));
    proxy.clear_rules();
    assert!(
        call(&proxy, "GET", "/b/none", b"")
            .expect("an answer")
            .0
            .contains(" 404 ")
    );
}
