//! A process that serves for long: its memory is bounded, and certificate and keys are read again without a stop.

use std::process::Command;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::json;

use super::world::{PATIENCE, Server, command, deadline, free_port, home, signed_by};

/// The most memory a process has had, in KiB.
fn peak(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let figure = line.and_then(|line| line.trim().strip_suffix(" kB"));
    figure
        .and_then(|figure| figure.parse().ok())
        .expect("a figure")
}

/// Goal: a result of any size takes bounded memory, however slowly it is read. Method: a gigabyte by cursor, whose client
/// rests at first; the process must not have grown by more than a fraction of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_by_cursor_takes_little_memory() {
    use futures::StreamExt as _;
    let home = home();
    let server = Server::start(home.path()).await;
    server
        .post("databases", json!({ "name": "orders" }))
        .await
        .expect("an answer");
    server.run("orders", "select 1").await;
    let before = peak(server.child.id());
    let sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 27000) select x, zeroblob(30000) from n";
    let sent = Client::new()
        .post(format!("{}/default/orders/v3/cursor", server.base))
        .bearer_auth(&server.token)
        .json(&json!({ "batch": { "steps": [{ "stmt": { "sql": sql } }] } }));
    let mut pieces = sent.send().await.expect("an answer").bytes_stream();
    let (mut bytes, mut rests, mut tail) = (0_usize, 0, Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece.expect("whole");
        bytes += piece.len();
        if bytes > rests << 20 && rests < 5 {
            rests += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tail = piece.to_vec();
    }
    assert!(bytes > 1 << 30, "{bytes}");
    let tail = String::from_utf8_lossy(&tail);
    assert!(
        tail.ends_with("\"type\":\"replication_index\"}\n"),
        "{tail}"
    );
    let grown = peak(server.child.id()) - before;
    assert!(grown < 64 << 10, "grown by {grown} KiB");
    assert!(server.terminate().status.success());
}

/// Goal (SEC-2): SIGHUP has a running server read its certificate and its keys again. Method: both files are replaced,
/// the key's with the time it had, so that nothing but the signal tells of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_has_certificate_and_keys_read_again() {
    const SECRETS: [&str; 2] = [
        "the first secret of at least thirty-two bytes",
        "another secret of at least thirty-two bytes",
    ];
    let home = home();
    let file = |name: &str| home.path().join(name);
    let certify = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.expect("a certificate");
        std::fs::write(file("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(file("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let trusted = reqwest::Certificate::from_pem(made.cert.pem().as_bytes());
        let client = Client::builder().no_proxy();
        let client = client.tls_certs_only([trusted.expect("our own certificate")]);
        client.build().expect("a client")
    };
    let first = certify();
    std::fs::write(file("hs256"), SECRETS[0]).expect("written");
    let text = "[auth.jwt]\naudience = \"tidelog\"\n[[auth.jwt.keys]]\nalg = \"HS256\"\nfile = \"hs256\"\n";
    std::fs::write(file("tidelog.toml"), text).expect("written");
    let port = free_port();
    let log = std::fs::File::create(file("serve.log")).expect("a log file");
    let child = command(home.path(), port)
        .args(["--config", "tidelog.toml"])
        .args(["--tls-cert", "cert.pem", "--tls-key", "key.pem"])
        .stderr(log)
        .spawn()
        .expect("the server starts");
    let base = format!("https://localhost:{port}");
    let late = deadline(PATIENCE);
    let answers = async |client: &Client| client.get(format!("{base}/readyz")).send().await.is_ok();
    while !answers(&first).await {
        let said = std::fs::read_to_string(file("serve.log")).unwrap_or_default();
        assert!(!late(), "the server is not ready: {said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let token = std::fs::read_to_string(file("data/owner.token")).expect("a token file");
    let token = token.trim().to_owned();
    let server = Server { child, base, token };
    let url = format!("{}/v1/namespaces/default/members/ana", server.base);
    let put = first.put(url).bearer_auth(&server.token);
    let put = put.json(&json!({ "role": "viewer" })).send().await;
    assert_eq!(put.expect("an answer").status(), StatusCode::OK);
    let status = async |client: &Client, secret: &str| {
        let url = format!("{}/v1/namespaces/default/databases", server.base);
        let asked = client.get(url).bearer_auth(signed_by(secret)).send().await;
        asked.map(|answer| answer.status().as_u16()).ok()
    };
    assert_eq!(status(&first, SECRETS[0]).await, Some(200));
    assert_eq!(status(&first, SECRETS[1]).await, Some(401));

    let second = certify();
    let written = std::fs::metadata(file("hs256")).and_then(|found| found.modified());
    std::fs::write(file("hs256"), SECRETS[1]).expect("written");
    let key = std::fs::File::options().append(true).open(file("hs256"));
    key.expect("the file")
        .set_modified(written.expect("a time"))
        .expect("set");
    assert_eq!(
        status(&second, SECRETS[1]).await,
        None,
        "nobody told it yet"
    );
    let hangup = Command::new("kill")
        .args(["-HUP", &server.child.id().to_string()])
        .status();
    assert!(hangup.expect("kill runs").success());
    let late = deadline(PATIENCE);
    while status(&second, SECRETS[1]).await != Some(200) {
        assert!(!late(), "the new certificate and key never count");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status(&second, SECRETS[0]).await, Some(401));
    assert!(server.terminate().status.success());
}
