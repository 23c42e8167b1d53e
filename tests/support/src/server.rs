//! The real `tidelog` binary as a process: started on a free port, asked over HTTP, stopped, continued, killed.
//!
//! The binary stands in the folder above the one of the test executable. It is built when it is missing or
//! older than a source of the four crates, so that a test alone never runs yesterday's server.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use reqwest::{Client, StatusCode};
use serde_json::{Value as Json, json};

/// How long a process may take for what takes a moment: a machine that is busy with something else keeps it waiting.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// The crates the binary is made of.
const CRATES: [&str; 4] = ["wal", "archive", "engine", "server"];

/// Where a server finds its things, and how it is called.
#[derive(Debug, Clone)]
pub struct Launch {
    data: PathBuf,
    store: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Launch {
    /// A server whose data folder and file store stand below `home`.
    pub fn below(home: &Path) -> Self {
        let store = format!("file://{}", home.join("store").display());
        Self::on(home.join("data"), store)
    }

    /// A server on a data folder and a store.
    pub fn on(data: PathBuf, store: String) -> Self {
        Self {
            data,
            store,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The same with more arguments to `serve`.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The same with more variables in its environment.
    #[must_use]
    pub fn with_environment(mut self, variables: &[(&str, &str)]) -> Self {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        self.environment.extend(variables.iter().map(owned));
        self
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The URL of the store.
    pub fn store(&self) -> &str {
        &self.store
    }

    fn log(&self) -> PathBuf {
        let mut log = self.data.as_os_str().to_owned();
        log.push(".log");
        log.into()
    }

    fn command(&self, port: u16) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("serve")
            .arg("--data")
            .arg(&self.data)
            .args(["--store", &self.store])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(&self.arguments)
            .env("TIDELOG_LOG", "error")
            // A machine that is busy with something else makes no call fail.
            .env("TIDELOG_ENGINE_GATE_TIMEOUT_MS", "60000")
            .env("TIDELOG_LIMITS_QUERY_MS", "600000")
            .env("TIDELOG_DURABILITY_TIMEOUT_MS", "60000")
            .envs(crate::sealing::environment())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts a server and waits until it judges requests.
    pub async fn start(&self) -> Server {
        let port = free_port();
        let log = std::fs::File::create(self.log()).expect("a log file can be made");
        let child = self.command(port).stderr(log).spawn();
        let mut server = Server {
            child: child.expect("the server starts"),
            base: format!("http://127.0.0.1:{port}"),
            token: String::new(),
            client: Client::builder()
                // The server closes what is idle for longer than a head may take.
                .pool_idle_timeout(Duration::from_secs(1))
                .timeout(PATIENCE)
                .build()
                .expect("a client can be made"),
            log: self.log(),
        };
        let late = deadline(PATIENCE);
        loop {
            let ready = server
                .client
                .get(format!("{}/readyz", server.base))
                .send()
                .await;
            if ready.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                break;
            }
            let ended = server.child.try_wait().expect("a child can be asked");
            assert!(
                ended.is_none() && !late(),
                "the server is not ready ({ended:?}): {}",
                server.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let token = std::fs::read_to_string(self.data.join("owner.token"));
        token
            .expect("a server keeps its owner token in a file")
            .trim()
            .clone_into(&mut server.token);
        server
    }

    /// Starts a server that should not come up, and waits for its end: what it said, and whether it failed.
    pub fn refused(&self) -> (bool, String) {
        let child = self.command(free_port()).stderr(Stdio::piped()).spawn();
        let output = finished(child.expect("the server starts"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success(), said)
    }
}

/// A running server; it is killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    base: String,
    token: String,
    client: Client,
    log: PathBuf,
}

/// How a client reaches a server; it outlives the process.
#[derive(Debug, Clone)]
pub struct Address {
    base: String,
    token: String,
    client: Client,
}

impl Server {
    /// How to reach it.
    pub fn address(&self) -> Address {
        Address {
            base: self.base.clone(),
            token: self.token.clone(),
            client: self.client.clone(),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it in order, and waits until it has ended.
    pub async fn stop(mut self) {
        self.signal("TERM");
        let late = deadline(PATIENCE);
        while self
            .child
            .try_wait()
            .expect("a child can be asked")
            .is_none()
        {
            assert!(!late(), "the server does not stop: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it said on standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("SIGKILL is sent");
        self.child.wait().expect("the child is reaped");
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(sent.expect("kill runs").success(), "kill -{name}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Address {
    /// Sends a body to a path of the namespace `default`; `None` when no whole answer came.
    pub async fn post(&self, path: &str, body: &Json) -> Option<(StatusCode, Json)> {
        let url = format!("{}/v1/namespaces/default/{path}", self.base);
        let request = self.client.post(url).bearer_auth(&self.token).json(body);
        let answer = request.send().await.ok()?;
        let status = answer.status();
        Some((status, answer.json().await.ok()?))
    }

    /// Asks a path of the namespace `default`.
    pub async fn get(&self, path: &str) -> Option<(StatusCode, Json)> {
        let url = format!("{}/v1/namespaces/default/{path}", self.base);
        let request = self.client.get(url).bearer_auth(&self.token);
        let answer = request.send().await.ok()?;
        let status = answer.status();
        Some((status, answer.json().await.ok()?))
    }

    /// Begins an operation under an idempotency key, at a path of the namespace `default`, and waits for its end.
    pub async fn begin(&self, path: &str, key: &str, body: &Json) -> Option<(StatusCode, Json)> {
        let url = format!("{}/v1/namespaces/default/{path}", self.base);
        let request = self.client.post(url).bearer_auth(&self.token).json(body);
        let request = request
            .header("idempotency-key", key)
            .header("prefer", "wait=30");
        let answer = request.send().await.ok()?;
        let status = answer.status();
        Some((status, answer.json().await.ok()?))
    }

    /// Deletes at a path of the namespace `default`, and waits for what that begins.
    pub async fn delete(&self, path: &str) -> Option<(StatusCode, Json)> {
        let url = format!("{}/v1/namespaces/default/{path}", self.base);
        let request = self.client.delete(url).bearer_auth(&self.token);
        let answer = request.header("prefer", "wait=30").send().await.ok()?;
        let status = answer.status();
        Some((status, answer.json().await.ok()?))
    }

    /// Runs a statement that has to work, and returns its rows.
    pub async fn rows(&self, database: &str, sql: &str) -> Json {
        let path = format!("databases/{database}/query");
        let answer = self.post(&path, &json!({ "sql": sql })).await;
        let (status, mut answer) = answer.expect("a server that runs answers");
        assert_eq!(status, StatusCode::OK, "{database}: {sql}: {answer}");
        answer["rows"].take()
    }
}

/// A condition that holds once so much real time has gone by.
pub fn deadline(within: Duration) -> impl Fn() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test of real processes lives in real time"
    )]
    let begun = Instant::now();
    move || begun.elapsed() > within
}

fn finished(mut child: Child) -> Output {
    let late = deadline(PATIENCE);
    while child.try_wait().expect("a child can be asked").is_none() {
        if late() {
            child.kill().expect("a child can be killed");
            panic!("the process did not end within {PATIENCE:?}");
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    child
        .wait_with_output()
        .expect("a finished child has output")
}

/// A port that nobody listens on, another one each time. It lies below those that connections are made from, so that
/// none of them has it by the time a server asks for it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let of_process = std::process::id().wrapping_mul(7_919);
    let ports = (0..COUNT).map(|_| {
        let next = of_process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        u16::try_from(FIRST + next % COUNT).expect("a port")
    });
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.into_iter().find(is_free).expect("a free port")
}

/// The `tidelog` program, built if need be.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test knows its executable");
        let folder = test.parent().expect("an executable stands in a folder");
        // A test stands in target/PROFILE/deps, a bench that is a binary in target/PROFILE.
        let profile = match folder.parent() {
            Some(profile) if folder.ends_with("deps") => profile,
            _ => folder,
        };
        let binary = profile.join("tidelog");
        let built = std::fs::metadata(&binary).and_then(|found| found.modified());
        let newest = newest_source().expect("the sources can be listed");
        if built.is_ok_and(|built| built >= newest) {
            return binary;
        }
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--package", "tidelog-server"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let status = build.current_dir(workspace()).status();
        assert!(status.expect("cargo runs").success(), "the server builds");
        binary
    })
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn newest_source() -> io::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    let mut folders: Vec<PathBuf> = CRATES
        .iter()
        .map(|name| workspace().join(name).join("src"))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                newest = newest.max(entry.metadata()?.modified()?);
            }
        }
    }
    Ok(newest)
}
