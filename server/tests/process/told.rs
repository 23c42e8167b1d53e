//! What a server tells: traces, logs, audit objects and its own tables hold nothing of a tenant's rows and no secret of a
//! caller.

use std::path::Path;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::json;

use super::world::{PATIENCE, Server, command, deadline, free_port, home, signed_by};

/// Goal: traces tell which route a request took and which id it has, and nothing that was in it. Method: a
/// collector that keeps what it gets, and planted names, SQL, parameters and tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_name_route_and_request_and_nothing_of_the_tenant() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (seen, mut batches) = tokio::sync::mpsc::unbounded_channel();
    let collect = move |headers: axum::http::HeaderMap, body: axum::body::Bytes| {
        let kind = headers.get("content-type").cloned();
        seen.send((kind, body)).expect("the test waits");
        std::future::ready(())
    };
    let collector = axum::Router::new().route("/v1/traces", axum::routing::post(collect));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
    let listener = listener.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let collector = tokio::spawn(async move { axum::serve(listener, collector).await });
    let config = format!("[telemetry]\notlp_endpoint = \"http://127.0.0.1:{port}/\"\n");
    std::fs::write(home.path().join("tidelog.toml"), config).expect("written");

    let server = Server::start_with(home.path(), &["--config", "tidelog.toml"]).await;
    let made = server
        .post("databases", json!({ "name": "planteddb" }))
        .await;
    assert_eq!(made.expect("an answer").0, StatusCode::CREATED);
    let url = format!(
        "{}/v1/namespaces/default/databases/planteddb/query",
        server.base
    );
    let body = json!({ "sql": "select 'plantedsql', ?", "params": ["plantedparam"] });
    let ask = Client::new()
        .post(url)
        .bearer_auth(&server.token)
        .json(&body);
    let answer = ask.send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let id = answer.headers()["x-request-id"]
        .to_str()
        .expect("text")
        .to_owned();
    let token = server.token.clone();
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    collector.abort();

    let mut text = String::new();
    while let Ok((kind, batch)) = batches.try_recv() {
        assert_eq!(kind.expect("a type"), "application/x-protobuf");
        text.push_str(&String::from_utf8_lossy(&batch));
    }
    for told in [
        &id,
        "/v1/namespaces/{ns}/databases/{db}/query",
        "tidelog",
        "POST",
    ] {
        assert!(text.contains(told), "{told} is in no span");
    }
    for secret in ["plantedsql", "plantedparam", "planteddb", &token, "Bearer"] {
        assert!(!text.contains(secret), "{secret} left the server");
    }
}

/// What stands in the files of a folder and below.
fn files_of(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_of(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            // A server that runs may remove what was listed.
            found.push((path, bytes));
        }
    }
    found
}

/// Goal (LOG-8, LOG-10): no secret of a caller is in anything that the server writes down or says to somebody: all of
/// its log at the finest level with that of every library in it, audit objects in the bucket, bodies of refusals, metrics.
/// Method: secrets in statements, parameters, tokens of our own and signed ones, keys and headers, some of them right and
/// some wrong; then every byte is searched.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_caller_is_in_anything_a_server_writes_down() {
    const PLANTED: &str = "pLaNtEd-93ab";
    const SECRET: &str = "the signing secret pLaNtEd-93ab of this server";
    let home = home();
    let file = |name: &str| home.path().join(name);
    std::fs::write(file("hs256"), SECRET).expect("written");
    let text = "[auth.jwt]\naudience = \"tidelog\"\n[[auth.jwt.keys]]\nalg = \"HS256\"\nfile = \"hs256\"\n\
                [audit]\nretention_days = 90\nship_interval_s = 1\n[log]\nfilter = \"trace\"\n\
                [limits]\nslow_query_ms = 0\n";
    std::fs::write(file("tidelog.toml"), text).expect("written");
    let port = free_port();
    let log = std::fs::File::create(file("serve.log")).expect("a log file");
    let child = command(home.path(), port)
        .env_remove("TIDELOG_LOG")
        .args(["--config", "tidelog.toml"])
        .stderr(log)
        .spawn()
        .expect("the server starts");
    let base = format!("http://127.0.0.1:{port}");
    let late = deadline(PATIENCE);
    while Client::new()
        .get(format!("{base}/readyz"))
        .send()
        .await
        .is_err()
    {
        let said = std::fs::read_to_string(file("serve.log")).unwrap_or_default();
        assert!(!late(), "the server is not ready: {said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let token = std::fs::read_to_string(file("data/owner.token")).expect("a token file");
    let token = token.trim().to_owned();
    let server = Server { child, base, token };
    server
        .post("databases", json!({ "name": "d" }))
        .await
        .expect("an answer");
    server.run("d", "create table t(a)").await;
    let ana = json!({ "role": "analyst" });
    let member = format!("{}/v1/namespaces/default/members/ana", server.base);
    let client = Client::new();
    let put = client
        .put(member)
        .bearer_auth(&server.token)
        .json(&ana)
        .send();
    assert_eq!(put.await.expect("an answer").status(), StatusCode::OK);

    let query = format!("{}/v1/namespaces/default/databases/d/query", server.base);
    let mut said = Vec::new();
    let mut ask = async |token: &str, body: String| {
        let request = client.post(&query).bearer_auth(token).body(body);
        let request = request
            .header("content-type", "application/json")
            .header("x-api-key", PLANTED)
            .header("cookie", format!("session={PLANTED}"));
        let answer = request.send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        if !status.is_success() {
            said.push(text);
        }
        status.as_u16()
    };
    let insert = json!({ "sql": format!("insert into t values('{PLANTED}')") }).to_string();
    let bound = json!({ "sql": "insert into t values(?)", "params": [PLANTED] }).to_string();
    assert_eq!(ask(&server.token, insert.clone()).await, 200);
    assert_eq!(ask(&server.token, bound.clone()).await, 200);
    let foreign = signed_by(&format!("{PLANTED} is no secret of this server at all"));
    let jwt = signed_by(SECRET);
    let wrong = format!("tl_live_{PLANTED}");
    for (token, body, expected) in [
        (jwt.as_str(), insert.as_str(), 403),
        (jwt.as_str(), "{", 400),
        (foreign.as_str(), insert.as_str(), 401),
        (wrong.as_str(), insert.as_str(), 401),
        (wrong.as_str(), bound.as_str(), 401),
    ] {
        assert_eq!(
            ask(token, body.to_owned()).await,
            expected,
            "{token} {body}"
        );
    }
    let metrics = client.get(format!("{}/metrics", server.base)).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("a text");
    // Lines reach the bucket within moments: what waits is written every few seconds, and shipped then.
    let audit = || {
        let all = files_of(&file("store"));
        let audit = all
            .into_iter()
            .filter(|(path, _)| path.to_string_lossy().contains("/audit/"));
        audit.collect::<Vec<_>>()
    };
    let late = deadline(PATIENCE);
    while !audit()
        .iter()
        .any(|(_, text)| contains(text, "auth.failure"))
    {
        assert!(!late(), "no refusal is in the bucket: {:?}", audit());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let owner = server.token.clone();
    assert!(server.terminate().status.success());

    let log = std::fs::read(file("serve.log")).expect("the log");
    assert!(
        contains(&log, "request refused"),
        "what is refused is logged"
    );
    let mut all = vec![
        ("the log".to_owned(), log),
        ("the metrics".to_owned(), metrics.into_bytes()),
    ];
    all.extend(
        said.into_iter()
            .map(|text| (text.clone(), text.into_bytes())),
    );
    all.extend(
        audit()
            .into_iter()
            .map(|(path, text)| (path.display().to_string(), text)),
    );
    let jwt_signature = jwt.rsplit('.').next().expect("three parts");
    for (what, text) in &all {
        for secret in [PLANTED, SECRET, owner.as_str(), jwt_signature] {
            let lines = text.split(|byte| *byte == b'\n');
            let found: Vec<_> = lines
                .filter(|line| contains(line, secret))
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .take(3)
                .collect();
            assert!(found.is_empty(), "{secret} in {what}: {found:?}");
        }
    }
}

fn contains(text: &[u8], word: &str) -> bool {
    text.windows(word.len())
        .any(|window| window == word.as_bytes())
}

/// Goal (ISO-4, RES-2): what a server knows about its tenants stands apart from their rows, in a database that holds none of
/// these and that none of them can read. Method: a value planted in rows, looked for in every table of every file.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_rows_of_tenants_stand_apart() {
    const PLANTED: &str = "pLaNtEd-row-5d";
    let home = home();
    let server = Server::start(home.path()).await;
    server
        .post("databases", json!({ "name": "d" }))
        .await
        .expect("an answer");
    server.run("d", "create table t(a)").await;
    server
        .run("d", &format!("insert into t values('{PLANTED}')"))
        .await;
    server
        .run("d", &format!("select * from t where a = '{PLANTED}'"))
        .await;
    for table in ["tokens", "members", "audit", "databases"] {
        let body = json!({ "sql": format!("select * from {table}") });
        let (status, answer) = server
            .post("databases/d/query", body)
            .await
            .expect("an answer");
        assert_eq!(
            status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{table}: {answer}"
        );
    }
    assert!(server.terminate().status.success());

    let (mut systems, mut tenants) = (0, 0);
    for (path, bytes) in files_of(&home.path().join("data/databases")) {
        if !bytes.starts_with(b"SQLite format 3\0") {
            continue;
        }
        let copy = home.path().join("copy.db");
        std::fs::write(&copy, &bytes).expect("written");
        let file = rusqlite::Connection::open(&copy).expect("a database");
        let tables = texts(&file, "select name from sqlite_schema where type = 'table'");
        let mut holds = 0;
        for table in &tables {
            let rows = texts(&file, &format!("select * from \"{table}\""));
            holds += rows.iter().filter(|text| text.contains(PLANTED)).count();
        }
        if tables.iter().any(|table| table == "tokens") {
            systems += 1;
            assert!(tables.iter().any(|table| table == "members"), "{tables:?}");
            assert_eq!(holds, 0, "a row is in the metadata: {}", path.display());
        } else {
            tenants += 1;
            assert_eq!(holds, 1, "{}: {tables:?}", path.display());
        }
    }
    assert_eq!((systems, tenants), (1, 1));
}

/// Every value of every row of a query, as text.
fn texts(file: &rusqlite::Connection, sql: &str) -> Vec<String> {
    use rusqlite::types::ValueRef;
    let mut select = file.prepare(sql).expect("a statement");
    let columns = select.column_count();
    let mut rows = select.query([]).expect("rows");
    let mut found = Vec::new();
    while let Some(row) = rows.next().expect("a row") {
        for column in 0..columns {
            let value = row.get_ref(column).expect("a value");
            let (ValueRef::Text(bytes) | ValueRef::Blob(bytes)) = value else {
                continue;
            };
            found.push(String::from_utf8_lossy(bytes).into_owned());
        }
    }
    found
}
