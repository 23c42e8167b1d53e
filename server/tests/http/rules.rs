//! The rules that hold for every route.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tidelog_server::settings::Limits;
use tidelog_server::surface;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{World, fill, read};

fn method(text: &str) -> Method {
    text.parse().expect("a method")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_answers_without_a_token_but_health_and_metrics() {
    let world = World::start().await;
    for served in surface() {
        let path = fill(served.path, "default", "orders");
        let url = format!("{}{path}", world.base);
        let bare = read(world.client.request(method(&served.method), &url)).await;
        if served.required.is_none() {
            assert_eq!(bare.status, 200, "{served:?}");
            assert_eq!(bare.header("cache-control"), None, "{served:?}");
            continue;
        }
        assert_eq!(bare.status, 401, "{served:?}");
        assert_eq!(bare.code(), "unauthenticated");
        assert!(
            bare.header("www-authenticate")
                .is_some_and(|value| value.starts_with("Bearer "))
        );
        let wrong = world
            .client
            .request(method(&served.method), &url)
            .bearer_auth("tl_live_wrong");
        assert_eq!(read(wrong).await.code(), "unauthenticated", "{served:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_a_request_id_and_the_security_headers() {
    let world = World::start().await;
    for path in [
        "/healthz",
        "/v1/namespaces/default/databases",
        "/nowhere",
        "/v1/namespaces/x/databases",
    ] {
        let got = world.get(path).await;
        assert!(
            got.header("x-request-id")
                .is_some_and(|id| id.starts_with("req_")),
            "{path}"
        );
        assert_eq!(
            got.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert_eq!(got.header("x-frame-options"), Some("DENY"), "{path}");
        assert!(
            got.header("content-security-policy")
                .is_some_and(|csp| csp.contains("'none'"))
        );
        if path != "/healthz" {
            assert_eq!(got.header("cache-control"), Some("no-store"), "{path}");
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_paths_methods_and_media_types_are_problems() {
    let world = World::start().await;
    let database = world.database("orders").await;
    assert_eq!(world.get("/v1/nothing").await.code(), "not-found");
    let got = read(world.ask(Method::PUT, "/v1/namespaces/default/databases")).await;
    assert_eq!((got.status, got.code()), (405, "method-not-allowed"));
    let allow = got.header("allow").expect("405 names the methods");
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    let query = format!("{database}/query");
    let got = read(
        world
            .ask(Method::POST, &query)
            .body("{\"sql\":\"select 1\"}"),
    )
    .await;
    assert_eq!((got.status, got.code()), (415, "unsupported-media-type"));
    for body in ["", "[]", "{", "\"x\"", "nul"] {
        let request = world
            .ask(Method::POST, &query)
            .header("content-type", "application/json");
        let got = read(request.body(body)).await;
        assert_eq!(
            (got.status, got.code()),
            (400, "invalid-request"),
            "{body:?}"
        );
    }
    world.stop().await;
}

/// Goal: a field that is not known is never ignored. Method: each write route, with what it needs and one more.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_field_changes_nothing_and_is_named() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let cases = [
        (
            "/v1/namespaces/default/databases".to_owned(),
            json!({ "name": "other" }),
        ),
        (
            format!("{database}/query"),
            json!({ "sql": "create table t(a)" }),
        ),
        (
            format!("{database}/batch"),
            json!({ "statements": [{ "sql": "create table t(a)" }] }),
        ),
        (
            "/v1/namespaces/default/tokens".to_owned(),
            json!({ "kind": "live", "scopes": ["read"] }),
        ),
    ];
    for (path, mut body) in cases {
        body["dry_run"] = json!(true);
        let got = world.post(&path, body).await;
        assert_eq!((got.status, got.code()), (400, "unknown-field"), "{path}");
        assert_eq!(got.body["errors"][0]["pointer"], "/dry_run");
    }
    let got = world
        .post(
            &format!("{database}/query"),
            json!({ "sql": "x", "as_of": "y" }),
        )
        .await;
    assert_eq!(
        got.code(),
        "unknown-field",
        "what is not built yet is refused"
    );
    let nested = json!({ "statements": [{ "sql": "select 1", "x": 1 }] });
    let got = world.post(&format!("{database}/batch"), nested).await;
    assert_eq!(got.body["errors"][0]["pointer"], "/statements/0/x");
    let got = world.get(&format!("{database}?verbose=1")).await;
    assert_eq!(
        got.code(),
        "unknown-field",
        "a query parameter counts as a field"
    );
    let tables = world
        .run(
            &database,
            "select count(*) from sqlite_schema where name = 't'",
        )
        .await;
    assert_eq!(tables.body["rows"], json!([[0]]));
    let listed = world.get("/v1/namespaces/default/databases").await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_while_it_is_read() {
    let limits = Limits {
        body_bytes_max: 1_000,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let database = world.database("orders").await;
    let sql = "x".repeat(2_000);
    let got = world
        .post(&format!("{database}/query"), json!({ "sql": sql }))
        .await;
    assert_eq!((got.status, got.code()), (413, "body-too-large"));
    assert_eq!(got.body["limit"], 1_000);
    // Without a length in front the bytes still count.
    let pieces = (0..100).map(|_| Ok::<_, std::io::Error>(vec![b' '; 100]));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let request = world.ask(Method::POST, &format!("{database}/query"));
    let got = read(
        request
            .header("content-type", "application/json")
            .body(body),
    )
    .await;
    assert_eq!(got.code(), "body-too-large");
    world.stop().await;
}

/// A refusal that is written before the body has come does not reset the connection under a client that still
/// sends: it could take the answer away with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_still_sends_when_it_is_refused_reads_the_answer() {
    let limits = Limits {
        body_bytes_max: 1_000,
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let database = world.database("orders").await;
    let address = world.base.trim_start_matches("http://").to_owned();
    let post = |token: &str, length: usize, more: &str| {
        format!(
            "POST {database}/query HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n"
        )
    };
    for (token, refused) in [(world.owner.as_str(), "413"), ("tl_live_none", "401")] {
        // The connection goes on with the next request. What is left of a body is read for a moment: a machine that is
        // busy with something else may miss it, and tries again.
        let mut went_on = false;
        for _ in 0..20 {
            let mut stream = TcpStream::connect(&address).await.expect("connects");
            let head = post(token, 500_000, "");
            stream.write_all(head.as_bytes()).await.expect("a head");
            stream.write_all(&[b' '; 5_000]).await.expect("a part");
            let told = answer(&mut stream).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {refused}")), "{told}");
            let next = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
            let rest = [&vec![b' '; 495_000][..], next].concat();
            if stream.write_all(&rest).await.is_err() {
                continue;
            }
            if let Some(told) = answered(&mut stream).await {
                assert!(told.starts_with("HTTP/1.1 200"), "{told}");
                went_on = true;
                break;
            }
        }
        assert!(went_on, "the connection never goes on behind {refused}");
    }
    // One that waits to be told is not told to send what will be refused.
    let mut stream = TcpStream::connect(&address).await.expect("connects");
    let head = post(&world.owner, 500_000, "Expect: 100-continue\r\n");
    stream.write_all(head.as_bytes()).await.expect("a head");
    let told = answer(&mut stream).await;
    assert!(told.starts_with("HTTP/1.1 413"), "{told}");
    // One that sends without end is cut off.
    let mut stream = TcpStream::connect(&address).await.expect("connects");
    let head = post(&world.owner, 1 << 40, "");
    stream.write_all(head.as_bytes()).await.expect("a head");
    let piece = vec![b' '; 65_536];
    let sent = async { while stream.write_all(&piece).await.is_ok() {} };
    tokio::time::timeout(Duration::from_mins(2), sent)
        .await
        .expect("the connection ends");
    world.stop().await;
}

async fn answer(stream: &mut TcpStream) -> String {
    answered(stream).await.expect("an answer")
}

/// An answer with a `Content-Length`, as it came; nothing where the connection ends before.
async fn answered(stream: &mut TcpStream) -> Option<String> {
    let mut got = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next())
                .and_then(|length| length.parse::<usize>().ok());
            if length.is_some_and(|length| body.len() >= length) {
                return Some(text);
            }
        }
        if stream.read_buf(&mut got).await.ok()? == 0 {
            return None;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_head_is_let_go() {
    let limits = Limits {
        head_deadline: Duration::from_millis(500),
        ..Limits::default()
    };
    let world = World::with(limits).await;
    let address = world.base.trim_start_matches("http://").to_owned();
    let mut slow = TcpStream::connect(&address).await.expect("connects");
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        .await
        .expect("half a head");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_mins(2), slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is still open");
    // On a busy machine another client's head may be as late: it asks again.
    let mut answer = None;
    for _ in 0..100 {
        let url = format!("{}/healthz", world.base);
        answer = world.client.get(url).send().await.ok();
        if answer.is_some() {
            break;
        }
    }
    assert_eq!(answer.expect("others are served").status(), 200);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_that_link_to_the_next() {
    let world = World::start().await;
    for name in ["a", "b", "c"] {
        world.database(name).await;
    }
    let mut names = Vec::new();
    let mut path = "/v1/namespaces/default/databases?limit=2".to_owned();
    loop {
        let got = world.get(&path).await;
        assert_eq!(got.status, 200, "{got:?}");
        let items = got.body["items"].as_array().expect("items").clone();
        names.extend(
            items
                .iter()
                .map(|item| item["name"].as_str().expect("a name").to_owned()),
        );
        let Some(link) = got.header("link") else {
            assert!(got.body["next_cursor"].is_null());
            break;
        };
        assert!(
            got.body["next_cursor"].is_string() && link.ends_with("; rel=\"next\""),
            "{link}"
        );
        path = link[1..link.find('>').expect("a link ends")].to_owned();
    }
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);
    for bad in ["limit=0", "limit=501", "limit=x", "limit=1&limit=2"] {
        let got = world
            .get(&format!("/v1/namespaces/default/databases?{bad}"))
            .await;
        assert_eq!(got.code(), "invalid-request", "{bad}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_match_guards_a_change_against_a_database_that_moved() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let before = world.run(&database, "create table t(a)").await;
    let before = before.header("db-bookmark").expect("a bookmark").to_owned();
    let now = world.run(&database, "insert into t values(1)").await;
    let now = now.header("db-bookmark").expect("a bookmark").to_owned();
    assert!(before < now, "bookmarks sort in commit order");
    let change = |bookmark: String| {
        let request = world
            .ask(Method::PATCH, &database)
            .header("if-match", bookmark);
        read(request.json(&json!({ "delete_protection": true })))
    };
    let moved = change(format!("\"{before}\"")).await;
    assert_eq!((moved.status, moved.code()), (412, "database-moved"));
    assert_eq!(moved.body["current_bookmark"].as_str(), Some(now.as_str()));
    assert_eq!(
        change("\"what\"".to_owned()).await.code(),
        "bookmark-malformed"
    );
    assert_eq!(change(format!("\"{now}\"")).await.status, 200);
    let got = read(world.ask(Method::DELETE, &database)).await;
    assert_eq!((got.status, got.code()), (409, "database-protected"));
    let got = read(
        world
            .ask(Method::GET, &database)
            .header("if-match", format!("\"{now}\"")),
    )
    .await;
    assert_eq!(
        got.code(),
        "invalid-request",
        "If-Match is refused where it has no meaning"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_prometheus_text_without_tenant_names() {
    let world = World::start().await;
    let database = world.database("verysecretname").await;
    world.run(&database, "create table t(a)").await;
    let response = world
        .ask(Method::GET, "/metrics")
        .send()
        .await
        .expect("an answer");
    assert!(
        response.headers()["content-type"]
            .to_str()
            .expect("text")
            .starts_with("text/plain")
    );
    let text = response.text().await.expect("text");
    assert!(!text.contains("verysecretname"));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(
            name.starts_with("tidelog_") && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }
    world.stop().await;
}
