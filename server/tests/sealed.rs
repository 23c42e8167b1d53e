//! The real binary with master keys: served, killed, read from the bucket alone, rotated.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value as Json, json};
use tidelog_testkit::server::{PATIENCE, free_port};

fn tidelog(home: &Path, keys: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    command
        .current_dir(home)
        .env_remove("TIDELOG_MASTER_KEYS")
        .env("TIDELOG_LOG", "error")
        // A machine that is busy with something else makes no call fail.
        .env("TIDELOG_ENGINE_GATE_TIMEOUT_MS", "60000")
        .env("TIDELOG_LIMITS_QUERY_MS", "600000")
        .env("TIDELOG_DURABILITY_TIMEOUT_MS", "60000")
        .env("TIDELOG_STORE", format!("file://{}/store", home.display()));
    for key in keys {
        command.args(["--master-key-file", key]);
    }
    command
}

/// Runs a command to its end: its exit code, and what it printed.
fn run(home: &Path, keys: &[&str], arguments: &[&str]) -> (i32, Json) {
    let output = tidelog(home, keys)
        .arg("--json")
        .args(arguments)
        .output()
        .expect("the command runs");
    let said = if output.stdout.is_empty() {
        json!(String::from_utf8_lossy(&output.stderr))
    } else {
        serde_json::from_slice(&output.stdout).expect("one document")
    };
    (output.status.code().expect("an exit code"), said)
}

/// A server, killed when dropped.
struct Server(Child, String);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn serve(home: &Path, keys: &[&str]) -> Server {
    serve_with(home, keys, &[]).await
}

async fn serve_with(home: &Path, keys: &[&str], more: &[&str]) -> Server {
    let port = free_port();
    let child = tidelog(home, keys)
        .args(["serve", "--data", "data", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    let mut server = Server(child, format!("http://127.0.0.1:{port}"));
    let started = tokio::time::Instant::now();
    loop {
        let ready = Client::new().get(format!("{}/readyz", server.1)).send();
        if ready
            .await
            .is_ok_and(|answer| answer.status() == StatusCode::OK)
        {
            return server;
        }
        let ended = server.0.try_wait().expect("a child can be asked");
        assert!(
            ended.is_none() && started.elapsed() < PATIENCE,
            "the server is not ready: {ended:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn post(server: &Server, token: &str, path: &str, body: Json) -> Json {
    let url = format!("{}/v1/namespaces/default/{path}", server.1);
    let sent = Client::new()
        .post(url)
        .bearer_auth(token)
        .header("idempotency-key", body.to_string().len().to_string())
        .header("prefer", "wait=30")
        .json(&body)
        .send();
    let answer = sent.await.expect("an answer");
    let status = answer.status();
    let body: Json = answer.json().await.expect("a document");
    assert!(status.is_success(), "{status}: {body}");
    body
}

/// The object of the store whose name ends so.
fn stored(home: &Path, name: &str) -> std::path::PathBuf {
    let mut folders = vec![home.join("store")];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(name) {
                return path;
            }
        }
    }
    panic!("{name} is not stored");
}

fn key(home: &Path, id: &str, first: u8) -> String {
    let bytes: Vec<u8> = (first..first + 32).collect();
    std::fs::write(home.join(id), bytes).expect("a key file");
    format!("{id}={id}")
}

/// Goal: sealed from the first start on, served again, read from the bucket alone, and never without its key. Method:
/// the real binary with key files; every command with the right key, without, and with another one of that name.
#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_bucket_is_served_read_and_rotated_with_its_keys_alone() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let home = home.path();
    let (k1, k2) = (key(home, "k1", 1), key(home, "k2", 60));
    let server = serve(home, &[&k1]).await;
    let token = std::fs::read_to_string(home.join("data/owner.token")).expect("a token");
    let token = token.trim();
    post(&server, token, "databases", json!({ "name": "orders" })).await;
    for sql in [
        "create table t(x)",
        "insert into t values('planted in plain')",
    ] {
        let body = json!({ "sql": sql, "durability": "remote" });
        post(&server, token, "databases/orders/query", body).await;
    }
    let server_token = std::fs::read_to_string(home.join("data/server.token")).expect("a token");
    let metrics = Client::new()
        .get(format!("{}/metrics", server.1))
        .bearer_auth(server_token.trim())
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text");
    assert!(metrics.contains("sealed_databases 2"), "{metrics}");
    assert!(metrics.contains("data_key_oldest_seconds"), "{metrics}");
    let body = json!({ "format": "sqlite" });
    let made = post(&server, token, "databases/orders/archives", body).await;
    let archive = made["archive"]["id"].as_str().expect("an id").to_owned();
    drop(server);

    // Without the key, and with another one of that name: refused, saying what is wanted.
    let other = home.join("other");
    std::fs::write(&other, (100..132).collect::<Vec<u8>>()).expect("a key file");
    for keys in [&[][..], &["k1=other"]] {
        for command in [&["list"][..], &["verify"], &["keys", "status"]] {
            let (code, said) = run(home, keys, command);
            assert_eq!(code, 4, "{command:?}: {said}");
        }
        let refused = tidelog(home, keys)
            .args(["serve", "--data", "data", "--listen", "127.0.0.1:0"])
            .output()
            .expect("it ends");
        assert_eq!(refused.status.code(), Some(4));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("/key"), "it names the object: {said}");
    }
    let (code, said) = run(home, &["k1=nowhere"], &["list"]);
    assert_eq!(code, 1, "{said}");

    // With it, all is as ever.
    let (code, said) = run(home, &[&k1], &["verify", "--level", "restore"]);
    assert_eq!(code, 0, "{said}");
    let restore = ["restore", "orders", "--out", "out.db"];
    assert_eq!(run(home, &[&k1], &restore).0, 0);
    let restored = rusqlite::Connection::open(home.join("out.db")).expect("SQLite opens");
    let found: String = restored
        .query_row("select x from t", [], |row| row.get(0))
        .expect("a row");
    assert_eq!(found, "planted in plain");

    // An archive is opened where it lies, or as a copy with the key object or the bucket at hand.
    let lies = stored(home, &format!("{archive}.db.zst"));
    let text = |path: &Path| path.display().to_string();
    let keys = lies
        .parent()
        .and_then(Path::parent)
        .expect("a folder")
        .join("key");
    std::fs::copy(&lies, home.join("copy")).expect("a copy");
    let decrypt = |keys: &[&str], bucket: bool, arguments: &[&str]| {
        let mut command = tidelog(home, keys);
        if !bucket {
            command.env_remove("TIDELOG_STORE");
        }
        command.args(["archive", "decrypt", "--out", "plain.db", "--force"]);
        let ended = command.args(arguments).output().expect("it ends");
        (
            ended.status.code(),
            String::from_utf8_lossy(&ended.stderr).into_owned(),
        )
    };
    for (bucket, arguments) in [
        (false, &[&*text(&lies)][..]),
        (false, &["copy", "--key-object", &*text(&keys)]),
        (true, &["copy"]),
    ] {
        let (code, said) = decrypt(&[&k1], bucket, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        let plain = rusqlite::Connection::open(home.join("plain.db")).expect("SQLite opens");
        let found: String = plain
            .query_row("select x from t", [], |row| row.get(0))
            .expect("a row");
        assert_eq!(found, "planted in plain");
        std::fs::remove_file(home.join("plain.db")).expect("remove");
    }
    assert_eq!(
        decrypt(&[&k1], false, &["copy"]).0,
        Some(2),
        "where are the keys"
    );
    assert_eq!(
        decrypt(&[&k1], false, &["out.db"]).0,
        Some(4),
        "it is plain"
    );
    for keys in [&[][..], &["k1=other"]] {
        let (code, said) = decrypt(keys, true, &["copy"]);
        assert_eq!(code, Some(4), "{keys:?}: {said}");
    }
    assert!(!home.join("plain.db").exists(), "nothing half opened stays");

    // The master key is rotated on the bucket alone; then the server wraps what is its own, and k2 is enough.
    let (code, said) = run(home, &[&k1, &k2], &["keys", "rotate"]);
    assert_eq!((code, &said["rewrapped"]), (0, &json!(2)), "{said}");
    let (_, said) = run(home, &[&k2], &["keys", "status"]);
    for item in said["items"].as_array().expect("items") {
        assert_eq!(item["masters"], json!(["k2"]), "{said}");
        assert_eq!(item["state"], "sealed", "{said}");
        assert_eq!(item["rewrap_due"], false, "{said}");
    }
    let (code, said) = run(home, &[&k2], &["keys", "rotate", "--data-keys", "orders"]);
    assert_eq!(
        (code, &said["rotated"]),
        (0, &json!(["default/orders"])),
        "{said}"
    );
    drop(serve(home, &[&k1, &k2]).await);
    let file = "[encryption]\nmaster_keys = [{ id = \"k2\", file = \"k2\" }]\n";
    std::fs::write(home.join("tidelog.toml"), file).expect("a settings file");
    let server = serve_with(home, &[], &["--config", "tidelog.toml"]).await;
    let body = json!({ "sql": "insert into t values('later')", "durability": "remote" });
    post(&server, token, "databases/orders/query", body).await;
    drop(server);
    let (_, said) = run(home, &[&k2], &["keys", "status"]);
    assert_eq!(said["items"][1]["data_keys"], 2, "{said}");
    let (code, said) = run(home, &[&k2], &["verify", "--level", "restore"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(run(home, &[&k1], &["list"]).0, 4, "the old key alone");
}

/// Goal: nobody serves customers in plain by an oversight. Method: a start with each preset and no key.
#[test]
fn a_production_server_does_not_start_without_encryption() {
    let home = tempfile::tempdir().expect("a temporary folder");
    for preset in ["production", "strict"] {
        let refused = tidelog(home.path(), &[])
            .args(["serve", "--preset", preset, "--listen", "127.0.0.1:0"])
            .output()
            .expect("it ends");
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("[encryption]"), "{said}");
    }
    assert!(!home.path().join("store").exists(), "nothing was started");
}
