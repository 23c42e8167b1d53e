//! A server process on a folder of its own, the command line beside it, and patience for both.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
pub(crate) use tidelog_testkit::server::{PATIENCE, free_port};

/// A server process on a data folder and a store folder below `home`.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) base: String,
    pub(crate) token: String,
}

pub(crate) fn command(home: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    command
        .current_dir(home)
        .args([
            "serve",
            "--data",
            "data",
            "--listen",
            &format!("127.0.0.1:{port}"),
        ])
        .args(["--store", &store(home)])
        .env("TIDELOG_LOG", "error")
        // A machine that is busy with something else makes no call fail.
        .env("TIDELOG_ENGINE_GATE_TIMEOUT_MS", "60000")
        .env("TIDELOG_LIMITS_QUERY_MS", "600000")
        .env("TIDELOG_DURABILITY_TIMEOUT_MS", "60000")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

pub(crate) fn store(home: &Path) -> String {
    format!("file://{}", home.join("store").display())
}

/// Ends a process that has not ended by itself within the time.
pub(crate) fn finished(mut child: Child, within: Duration) -> Output {
    let until = deadline(within);
    while child.try_wait().expect("a child can be asked").is_none() {
        if until() {
            child.kill().expect("a child can be killed");
            panic!("the process did not end within {within:?}");
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    child
        .wait_with_output()
        .expect("a finished child has output")
}

pub(crate) fn deadline(within: Duration) -> impl Fn() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test of real processes lives in real time"
    )]
    let begun = Instant::now();
    move || begun.elapsed() > within
}

impl Server {
    pub(crate) async fn start(home: &Path) -> Self {
        Self::start_with(home, &[]).await
    }

    pub(crate) async fn start_with(home: &Path, arguments: &[&str]) -> Self {
        let port = free_port();
        let log = std::fs::File::create(home.join("serve.log")).expect("a log file");
        let mut child = command(home, port)
            .args(arguments)
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let base = format!("http://127.0.0.1:{port}");
        let late = deadline(PATIENCE);
        loop {
            let ready = Client::new().get(format!("{base}/readyz")).send().await;
            if ready.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                break;
            }
            let ended = child.try_wait().expect("a child can be asked");
            if ended.is_some() || late() {
                let log = std::fs::read_to_string(home.join("serve.log")).unwrap_or_default();
                panic!("the server is not ready ({ended:?}): {log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let token = std::fs::read_to_string(home.join("data/owner.token")).expect("a token file");
        Self {
            child,
            base,
            token: token.trim().to_owned(),
        }
    }

    pub(crate) async fn post(&self, path: &str, body: Json) -> Option<(StatusCode, Json)> {
        let url = format!("{}/v1/namespaces/default/{path}", self.base);
        let request = Client::new().post(url).bearer_auth(&self.token).json(&body);
        let answer = request.send().await.ok()?;
        let status = answer.status();
        Some((status, answer.json().await.ok()?))
    }

    pub(crate) async fn run(&self, database: &str, sql: &str) -> Json {
        let path = format!("databases/{database}/query");
        let (status, answer) = self
            .post(&path, json!({ "sql": sql }))
            .await
            .expect("an answer");
        assert_eq!(status, StatusCode::OK, "{sql}: {answer}");
        answer
    }

    /// What the command line says to this server: its exit code, and the document it writes or fails with.
    pub(crate) fn ask(&self, home: &Path, arguments: &[&str]) -> (i32, Json) {
        self.ask_as(&self.token, home, arguments)
    }

    pub(crate) fn ask_as(&self, token: &str, home: &Path, arguments: &[&str]) -> (i32, Json) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
        command
            .current_dir(home)
            .env("TIDELOG_URL", &self.base)
            .env("TIDELOG_TOKEN", token)
            .stdin(Stdio::null())
            .arg("--json")
            .args(arguments);
        let output = command.output().expect("the binary runs");
        let said = if output.status.success() {
            &output.stdout
        } else {
            &output.stderr
        };
        let document: Json = serde_json::from_slice(said).unwrap_or_default();
        (output.status.code().unwrap_or(-1), document)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("SIGKILL is sent");
        self.child.wait().expect("the child is reaped");
    }

    pub(crate) fn terminate(self) -> Output {
        let sent = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        assert!(sent.expect("kill runs").success());
        finished(self.child, PATIENCE)
    }
}

pub(crate) fn home() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub(crate) fn tidelog(home: &Path, arguments: &[&str]) -> (i32, Json) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    command
        .current_dir(home)
        .args(["--json", "--store", &store(home)])
        .args(arguments);
    let output = command.output().expect("the binary runs");
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap_or(-1), document)
}

pub(crate) fn items(document: &Json) -> Vec<Json> {
    document["items"].as_array().expect("items").clone()
}

pub(crate) fn seconds() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "a signed token is made of real time"
    )]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A signed token of `ana` in the namespace `default`.
pub(crate) fn signed_by(secret: &str) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    let claims = json!({ "sub": "ana", "tenant_id": "default", "aud": "tidelog", "exp": seconds() + 600, "iat": seconds() });
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("signed")
}
