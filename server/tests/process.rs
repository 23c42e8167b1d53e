//! The real binary as a process: killed, stopped, started twice.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tidelog_testkit::server::{PATIENCE, free_port};

/// A server process on a data folder and a store folder below `home`.
struct Server {
    child: Child,
    base: String,
    token: String,
}

fn command(home: &Path, port: u16) -> Command {
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

fn store(home: &Path) -> String {
    format!("file://{}", home.join("store").display())
}

/// Ends a process that has not ended by itself within the time.
fn finished(mut child: Child, within: Duration) -> Output {
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

fn deadline(within: Duration) -> impl Fn() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test of real processes lives in real time"
    )]
    let begun = Instant::now();
    move || begun.elapsed() > within
}

impl Server {
    async fn start(home: &Path) -> Self {
        Self::start_with(home, &[]).await
    }

    async fn start_with(home: &Path, arguments: &[&str]) -> Self {
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

    async fn post(&self, path: &str, body: Json) -> Option<(StatusCode, Json)> {
        let url = format!("{}/v1/namespaces/default/{path}", self.base);
        let request = Client::new().post(url).bearer_auth(&self.token).json(&body);
        let answer = request.send().await.ok()?;
        let status = answer.status();
        Some((status, answer.json().await.ok()?))
    }

    async fn run(&self, database: &str, sql: &str) -> Json {
        let path = format!("databases/{database}/query");
        let (status, answer) = self
            .post(&path, json!({ "sql": sql }))
            .await
            .expect("an answer");
        assert_eq!(status, StatusCode::OK, "{sql}: {answer}");
        answer
    }

    /// What the command line says to this server: its exit code, and the document it writes or fails with.
    fn ask(&self, home: &Path, arguments: &[&str]) -> (i32, Json) {
        self.ask_as(&self.token, home, arguments)
    }

    fn ask_as(&self, token: &str, home: &Path, arguments: &[&str]) -> (i32, Json) {
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

    fn kill(mut self) {
        self.child.kill().expect("SIGKILL is sent");
        self.child.wait().expect("the child is reaped");
    }

    fn terminate(self) -> Output {
        let sent = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
        assert!(sent.expect("kill runs").success());
        finished(self.child, PATIENCE)
    }
}

fn home() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Writes rows 1, 2, 3, ... until the server no longer answers; returns the last one acknowledged.
async fn write_until_it_dies(
    server: Arc<(String, String)>,
    database: String,
    durability: &'static str,
    first: i64,
    acknowledged: Arc<AtomicUsize>,
) -> i64 {
    let (base, token) = &*server;
    let url = format!("{base}/v1/db/default/{database}/query");
    let client = Client::new();
    let mut row = first;
    loop {
        let body = json!({
            "sql": "insert into t values(?, hex(randomblob(50)))", "params": [row], "durability": durability,
        });
        let answer = client
            .post(&url)
            .bearer_auth(token)
            .json(&body)
            .send()
            .await;
        if !answer.is_ok_and(|answer| answer.status() == StatusCode::OK) {
            return row - 1;
        }
        acknowledged.fetch_add(1, Ordering::Relaxed);
        row += 1;
    }
}

/// Goal: I1 and I2 for kill -9. Method: writers at each level on databases of their own, the process killed
/// under them again and again; after each start every acknowledged row is there, and what is there has no gap.
#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_under_load_loses_no_acknowledged_row() {
    const ROUNDS: usize = 20;
    const WRITERS: [(&str, &str); 4] = [
        ("a", "memory"),
        ("b", "local"),
        ("c", "remote"),
        ("d", "local"),
    ];
    let home = home();
    let mut server = Server::start(home.path()).await;
    for (database, _) in WRITERS {
        server
            .post("databases", json!({ "name": database }))
            .await
            .expect("an answer");
        server
            .run(database, "create table t(id integer primary key, x)")
            .await;
    }
    let mut next = [1_i64; WRITERS.len()];
    for round in 0..ROUNDS {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let shared = Arc::new((server.base.clone(), server.token.clone()));
        let writers: Vec<_> = WRITERS
            .iter()
            .zip(next)
            .map(|((database, durability), first)| {
                let (shared, count) = (Arc::clone(&shared), Arc::clone(&acknowledged));
                tokio::spawn(write_until_it_dies(
                    shared,
                    (*database).to_owned(),
                    durability,
                    first,
                    count,
                ))
            })
            .collect();
        // Another instant each round: in the first commits, between ships, after many.
        let wanted = [20, 333, 77, 800, 150][round % 5] + 7 * round;
        let late = deadline(PATIENCE);
        while acknowledged.load(Ordering::Relaxed) < wanted {
            assert!(!late(), "the writers make no progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        let mut last = Vec::new();
        for writer in writers {
            last.push(writer.await.expect("a writer ends"));
        }
        server = Server::start(home.path()).await;
        for (index, (database, durability)) in WRITERS.iter().enumerate() {
            let answer = server
                .run(database, "select count(*), max(id) from t")
                .await;
            let (count, max) = (answer["rows"][0][0].as_i64(), answer["rows"][0][1].as_i64());
            let (count, max) = (count.unwrap_or(0), max.unwrap_or(0));
            assert!(
                max >= last[index],
                "round {round}: {durability}: row {} was acknowledged, {max} is the last one there",
                last[index]
            );
            assert_eq!(
                count, max,
                "round {round}: {durability}: the rows have a gap"
            );
            let check = server.run(database, "pragma integrity_check").await;
            assert_eq!(check["rows"], json!([["ok"]]), "round {round}: {database}");
            next[index] = max + 1;
        }
    }
    let output = server.terminate();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_in_order_and_a_start_goes_on() {
    let home = home();
    let server = Server::start(home.path()).await;
    server
        .post("databases", json!({ "name": "orders" }))
        .await
        .expect("an answer");
    server.run("orders", "create table t(a)").await;
    let before = server.run("orders", "insert into t values(1)").await;
    let token = server.token.clone();
    assert!(server.terminate().status.success());
    let server = Server::start(home.path()).await;
    assert_eq!(server.token, token, "a second start makes no new tokens");
    let after = server.run("orders", "insert into t values(2)").await;
    assert!(
        before["bookmark"].as_str() < after["bookmark"].as_str(),
        "{before} {after}"
    );
    let rows = server.run("orders", "select a from t").await;
    assert_eq!(rows["rows"], json!([[1], [2]]));
    assert!(server.terminate().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_folder_is_refused() {
    let home = home();
    let first = Server::start(home.path()).await;
    let second = command(home.path(), free_port())
        .stderr(Stdio::piped())
        .spawn();
    let output = finished(second.expect("it starts"), PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    let why = "another server runs on the data folder";
    assert!(said.contains(why), "it says why: {said}");
    first
        .post("databases", json!({ "name": "orders" }))
        .await
        .expect("the first still answers");
    assert!(first.terminate().status.success());
}

/// Goal: a store that cannot be reached is told at the start, where no local copy can serve.
#[test]
fn a_store_that_does_not_answer_at_the_start_is_told() {
    let home = home();
    let port = free_port();
    let nowhere = format!("s3://bucket/prefix?endpoint=http://127.0.0.1:{port}&region=r");
    let listen = format!("127.0.0.1:{}", free_port());
    let server = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .current_dir(home.path())
        .args(["serve", "--data", "data", "--listen", &listen])
        .args(["--store", &nowhere])
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .stderr(Stdio::piped())
        .spawn();
    let output = finished(server.expect("it starts"), PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it has never served"), "{said}");
    assert!(
        said.contains(&port.to_string()),
        "it names the store: {said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_on_a_used_bucket_is_refused_and_says_what_to_type() {
    let home = home();
    let server = Server::start(home.path()).await;
    server
        .post("databases", json!({ "name": "orders" }))
        .await
        .expect("an answer");
    server.kill();
    std::fs::remove_dir_all(home.path().join("data")).expect("the disk is lost");
    let again = command(home.path(), free_port())
        .stderr(Stdio::piped())
        .spawn();
    let output = finished(again.expect("it starts"), PATIENCE);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("--take-over"), "{said}");
}

/// Runs a command that fails: its exit code and what it says of the failure.
fn refused(home: &Path, arguments: &[&str]) -> (i32, Json) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .current_dir(home)
        .args(["--json", "--store", &store(home)])
        .args(arguments)
        .output()
        .expect("the binary runs");
    let said: Json = serde_json::from_slice(&output.stderr).unwrap_or_default();
    let code = output.status.code().unwrap_or(-1);
    assert_eq!(said["exit"], code, "{arguments:?}: {output:?}");
    (code, said["error"].clone())
}

fn tidelog(home: &Path, arguments: &[&str]) -> (i32, Json) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    command
        .current_dir(home)
        .args(["--json", "--store", &store(home)])
        .args(arguments);
    let output = command.output().expect("the binary runs");
    let document = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap_or(-1), document)
}

fn items(document: &Json) -> Vec<Json> {
    document["items"].as_array().expect("items").clone()
}

/// Goal: I1, I3 with the bucket alone. Method: known contents at every bookmark, the machine lost, each bookmark
/// restored by the command line; then one byte of the history is flipped and the verification must name it.
#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_alone_restores_every_bookmark_and_tells_damage() {
    let home = home();
    let server = Server::start(home.path()).await;
    server
        .post("databases", json!({ "name": "orders" }))
        .await
        .expect("an answer");
    server
        .run("orders", "create table t(id integer primary key, x)")
        .await;
    let mut known = Vec::new();
    for row in 1..=12_i64 {
        let sql = format!("insert into t values({row}, hex(randomblob(800)))");
        let sql = json!({ "sql": sql, "durability": "remote" });
        let (_, answer) = server
            .post("databases/orders/query", sql)
            .await
            .expect("an answer");
        known.push((
            answer["bookmark"].as_str().expect("a bookmark").to_owned(),
            row,
        ));
    }
    server.kill();
    std::fs::remove_dir_all(home.path().join("data")).expect("the machine is lost");
    let home = home.path();

    let (code, listed) = tidelog(home, &["list"]);
    assert_eq!((code, items(&listed).len()), (0, 1), "{listed}");
    let (_, history) = tidelog(home, &["history", "orders"]);
    assert_eq!(
        items(&history).len(),
        14,
        "creation, the table, twelve rows: {history}"
    );
    for (bookmark, row) in &known {
        let out = format!("at-{row}.db");
        let (code, _) = tidelog(
            home,
            &["restore", "orders", "--bookmark", bookmark, "--out", &out],
        );
        assert_eq!(code, 0, "{bookmark}");
        let restored = rusqlite::Connection::open(home.join(&out)).expect("SQLite opens");
        let rows = "select count(*), max(id) from t";
        let found = restored.query_row(rows, [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(found.expect("rows"), (*row, *row), "{bookmark}");
        let check = restored.query_row("pragma integrity_check", [], |row| row.get::<_, String>(0));
        assert_eq!(check.expect("a check"), "ok");
    }
    let again = ["restore", "orders", "--out", "at-1.db"];
    assert_eq!(
        tidelog(home, &again).0,
        4,
        "a file that exists is not replaced"
    );
    assert_eq!(tidelog(home, &["restore", "nothing", "--out", "x.db"]).0, 3);
    let newest = json!(known[11].0);
    let unknown = known[0].0.replacen("00000001-", "00000077-", 1);
    let mut foreign = known[3].0.clone();
    let last = foreign.pop().expect("a digit");
    foreign.push(if last == '0' { '1' } else { '0' });
    for (bookmark, code, named, (member, nearest)) in [
        (
            unknown.as_str(),
            3,
            "bookmark-unknown",
            ("current_bookmark", &newest),
        ),
        (
            foreign.as_str(),
            4,
            "bookmark-foreign",
            ("nearest", &json!(known[3].0)),
        ),
    ] {
        for arguments in [
            &["restore", "orders", "--bookmark", bookmark, "--out", "x.db"][..],
            &["history", "orders", "--from", bookmark],
            &["history", "orders", "--to", bookmark],
        ] {
            let (exit, said) = refused(home, arguments);
            assert_eq!((exit, &said["code"]), (code, &json!(named)), "{said}");
            assert_eq!(&said[member], nearest, "{arguments:?}: {said}");
        }
    }
    assert!(
        !home.join("x.db").exists(),
        "a refused restore leaves nothing"
    );
    let (from, to) = (&known[2].0, &known[4].0);
    let (code, part) = tidelog(home, &["history", "orders", "--from", from, "--to", to]);
    let bookmarks = items(&part).into_iter().map(|one| one["bookmark"].clone());
    let wanted = [4, 3, 2].map(|at| json!(known[at].0));
    assert_eq!((code, bookmarks.collect::<Vec<_>>()), (0, wanted.to_vec()));
    let time = items(&part)[0]["committed_at"].clone();
    let time = time.as_str().expect("a time");
    let (code, then) = tidelog(
        home,
        &["restore", "orders", "--at", time, "--out", "then.db"],
    );
    assert_eq!((code, &then["bookmark"]), (0, &json!(to)), "{then}");
    let listed = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .args(["--store", &store(home), "list"])
        .output()
        .expect("the binary runs");
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(
        listed.contains("default/orders") && listed.contains(&known[11].0),
        "{listed}"
    );

    // What belonged to the file that is replaced must not be taken for the new one's (HAZARDS W25).
    std::fs::copy(home.join("at-2.db"), home.join("at-1.db-wal")).expect("junk");
    let (code, _) = tidelog(home, &["restore", "orders", "--out", "at-1.db", "--force"]);
    assert_eq!(code, 0);
    assert!(!home.join("at-1.db-wal").exists());
    let replaced = rusqlite::Connection::open(home.join("at-1.db")).expect("SQLite opens");
    let count = replaced.query_row("select count(*) from t", [], |row| row.get::<_, i64>(0));
    assert_eq!(count.expect("rows"), 12);

    let (code, report) = tidelog(home, &["verify", "orders"]);
    assert_eq!((code, items(&report).len()), (0, 1), "{report}");

    let (code, report) = tidelog(home, &["verify", "--level", "full"]);
    assert_eq!(code, 0, "{report}");
    assert!(
        items(&report)
            .iter()
            .all(|one| one["integrity_checked"] == true)
    );
    assert_eq!(
        tidelog(home, &["verify", "--every", "24h"]).0,
        2,
        "a bucket has no schedule"
    );
    flip_a_byte_of_a_journal_object(&home.join("store"));
    let verify = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .args(["--store", &store(home), "verify"])
        .output()
        .expect("the binary runs");
    let said = [verify.stdout, verify.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(verify.status.code(), Some(5), "{said}");
    assert!(
        said.contains("journal/00000001/"),
        "the object is named: {said}"
    );
    let (code, said) = refused(home, &["restore", "orders", "--out", "x.db"]);
    assert_eq!(
        (code, &said["code"]),
        (5, &json!("object-corrupt")),
        "{said}"
    );
    let detail = said["detail"].as_str().expect("a detail");
    assert!(detail.contains("journal/00000001/"), "{said}");
    let left = std::fs::read_dir(home).expect("the folder").flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("x.db"));
    assert_eq!(left.count(), 0, "a failed restore leaves nothing");
}

/// Damages the largest journal object, which holds commits.
fn flip_a_byte_of_a_journal_object(store: &Path) {
    let folder = store.join("journal").join("00000001");
    let entries = std::fs::read_dir(&folder).expect("the journal of the first term");
    let sized = entries.flatten().map(|entry| {
        (
            entry.metadata().map_or(0, |found| found.len()),
            entry.path(),
        )
    });
    let (length, path) = sized.max().expect("an object");
    let mut bytes = std::fs::read(&path).expect("the object");
    bytes[usize::try_from(length / 2).expect("small")] ^= 1;
    std::fs::write(&path, bytes).expect("damaged");
}

/// Goal: I1 for the loss of the machine. Method: load at every level, kill -9, the data folder removed; a new node
/// takes over and must have every row acknowledged as remote, and of the others a prefix.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_machine_loses_no_row_acknowledged_as_remote() {
    const WRITERS: [(&str, &str); 3] = [("a", "remote"), ("b", "local"), ("c", "remote")];
    let home = home();
    let mut server = Server::start(home.path()).await;
    for (database, _) in WRITERS {
        server
            .post("databases", json!({ "name": database }))
            .await
            .expect("an answer");
        server
            .run(database, "create table t(id integer primary key, x)")
            .await;
    }
    let mut next = [1_i64; WRITERS.len()];
    for wanted in [40, 500, 150] {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let shared = Arc::new((server.base.clone(), server.token.clone()));
        let writers: Vec<_> = WRITERS
            .iter()
            .zip(next)
            .map(|((database, durability), first)| {
                let (shared, count) = (Arc::clone(&shared), Arc::clone(&acknowledged));
                tokio::spawn(write_until_it_dies(
                    shared,
                    (*database).to_owned(),
                    durability,
                    first,
                    count,
                ))
            })
            .collect();
        let late = deadline(PATIENCE);
        while acknowledged.load(Ordering::Relaxed) < wanted {
            assert!(!late(), "the writers make no progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        let mut last = Vec::new();
        for writer in writers {
            last.push(writer.await.expect("a writer ends"));
        }
        std::fs::remove_dir_all(home.path().join("data")).expect("the disk is lost");
        server = Server::start_with(home.path(), &["--take-over", "all"]).await;
        for (index, (database, durability)) in WRITERS.iter().enumerate() {
            let answer = server
                .run(database, "select count(*), max(id) from t")
                .await;
            let (count, max) = (answer["rows"][0][0].as_i64(), answer["rows"][0][1].as_i64());
            let (count, max) = (count.unwrap_or(0), max.unwrap_or(0));
            assert_eq!(count, max, "{database}: the rows have a gap");
            if *durability == "remote" {
                assert!(
                    max >= last[index],
                    "row {} was acknowledged, {max} is there",
                    last[index]
                );
            }
            next[index] = max + 1;
        }
    }
    assert!(server.terminate().status.success());
    let (code, report) = tidelog(home.path(), &["verify", "--level", "restore"]);
    assert_eq!(code, 0, "{report}");
}

/// Goal: the bucket's credentials alone make an owner token, beside a server that was stopped or died, and the
/// next server starts as ever. Method: stop, recover with and without the flag, delete the folder, take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_is_recovered_from_the_bucket_alone() {
    let home = home();
    let server = Server::start(home.path()).await;
    let made = server.post("databases", json!({ "name": "orders" }));
    made.await.expect("an answer");
    let recover = |arguments: &[&str]| {
        let mut all = vec!["token", "recover"];
        all.extend(arguments);
        tidelog(home.path(), &all)
    };
    let (code, said) = recover(&[]);
    assert_eq!(code, 4, "a running server holds its term: {said}");
    server.terminate();
    assert_eq!(
        recover(&[]).0,
        4,
        "its term is open until somebody closes it"
    );
    let (code, said) = recover(&["--take-over", "all"]);
    assert_eq!(code, 0, "{said}");
    let first = said["token"].as_str().expect("a secret").to_owned();
    // Released: a second errand needs no flag, and no more does the server itself.
    let (code, said) = recover(&["--namespace", "server"]);
    assert_eq!(code, 0, "{said}");
    let (code, said) = recover(&["--namespace", "nobody"]);
    assert_eq!(code, 3, "{said}");
    let mut server = Server::start(home.path()).await;
    server.token = first;
    let (status, body) = server
        .post("databases", json!({ "name": "more" }))
        .await
        .expect("an answer");
    assert_eq!(status, StatusCode::CREATED, "{body}");
    server.run("orders", "create table t(a)").await;
    server.kill();
}

/// Goal: a configuration is judged before anything starts, and shown without its secrets.
#[test]
fn a_configuration_is_checked_and_shown_without_secrets() {
    let home = home();
    let file = home.path().join("tidelog.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_tidelog"))
            .current_dir(home.path())
            .args(["config", "check", "--config", "tidelog.toml"])
            .env("TIDELOG_LIMITS_ROWS_MAX", "77")
            .output()
            .expect("the binary runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let good = "preset = \"strict\"\nstore = \"s3://b/p?region=r\"\n";
    let (code, shown, _) = check(good);
    assert_eq!(code, Some(0), "{shown}");
    assert!(
        shown.contains("rows_max = 77") && shown.contains("sql_bytes_max = 10000"),
        "{shown}"
    );
    assert!(shown.contains("region=r"), "{shown}");
    let (code, shown, said) = check("store = \"s3://b/p?secret_access_key=planted&region=r\"\n");
    assert_eq!(
        code,
        Some(2),
        "credentials do not come from the URL: {said}"
    );
    assert!(
        !shown.contains("planted") && !said.contains("planted"),
        "{said}"
    );
    for bad in [
        "store = \"s4://b/p\"",
        "[log]\nfilter = \"tidelog=loudly\"",
        "rows = 1",
        "[limits]\nrow_max = 1",
        "[tls]\ncert = \"a\"\nkey = \"b\"",
        "preset = 1",
        "[encryption]\nmaster_key = 1",
    ] {
        let (code, _, said) = check(bad);
        assert_eq!(code, Some(2), "{bad}: {said}");
        assert!(!said.is_empty());
    }
    let serve = Command::new(env!("CARGO_BIN_EXE_tidelog"))
        .current_dir(home.path())
        .args(["serve", "--config", "tidelog.toml"])
        .output()
        .expect("the binary runs");
    assert_eq!(serve.status.code(), Some(2));
    assert!(
        !home.path().join("tidelog-data").exists(),
        "nothing was started"
    );
}

#[test]
fn wrong_usage_exits_with_two_and_help_with_zero() {
    let run = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_tidelog"))
            .args(arguments)
            .output();
        done.expect("the binary runs").status.code()
    };
    assert_eq!(run(&["--help"]), Some(0));
    assert_eq!(run(&["--version"]), Some(0));
    assert_eq!(run(&["frobnicate"]), Some(2));
    assert_eq!(run(&["serve", "--durability", "maybe"]), Some(2));
    assert_eq!(
        run(&["serve", "--listen", "0.0.0.0:0"]),
        Some(2),
        "plain HTTP beyond loopback"
    );
    assert_eq!(
        run(&["db", "list", "--store", "memory:"]),
        Some(2),
        "a bucket is no server"
    );
    assert_eq!(run(&["store", "check", "--store", "memory:"]), Some(0));
    assert_eq!(
        run(&["store", "check", "--store", "ftp://x"]),
        Some(4),
        "an URL of no store"
    );
    assert_eq!(
        run(&["db", "list", "--url", "http://127.0.0.1:9", "--token", "x"]),
        Some(1)
    );
}

/// Goal: an archive needs nothing but itself. Method: made, listed, downloaded, proven, restored and deleted by the
/// command line against a server; the downloaded bytes are unpacked and opened as what they are.
#[tokio::test(flavor = "multi_thread")]
async fn archives_and_proof_go_by_the_command_line() {
    let home = home();
    let server = Server::start(home.path()).await;
    server.post("databases", json!({ "name": "orders" })).await;
    server.run("orders", "create table t(a)").await;
    server.run("orders", "insert into t values(1), (2)").await;
    let ask = |arguments: &[&str]| server.ask(home.path(), arguments);
    let create = [
        "archive",
        "create",
        "orders",
        "--name",
        "kept",
        "--legal-hold",
    ];
    let (code, made) = ask(&create);
    assert_eq!(code, 0, "{made}");
    let id = made["id"].as_str().expect("an id").to_owned();
    let (code, listed) = ask(&["archive", "list", "orders"]);
    assert_eq!((code, items(&listed).len()), (0, 1));
    assert_eq!(items(&listed)[0]["name"], "kept");
    let download = ["archive", "download", "orders", &id, "--out", "x.db.zst"];
    let (code, done) = ask(&download);
    assert_eq!(code, 0, "{done}");
    assert_eq!(done["stored_sha256"], made["stored_sha256"]);
    assert_eq!(ask(&download).0, 4, "a file that exists is not replaced");
    let packed = std::fs::File::open(home.path().join("x.db.zst")).expect("downloaded");
    let mut plain = std::fs::File::create(home.path().join("x.db")).expect("a file");
    zstd::stream::copy_decode(packed, &mut plain).expect("zstd");
    let opened = rusqlite::Connection::open(home.path().join("x.db")).expect("open");
    let count: i64 = opened
        .query_row("select count(*) from t", [], |row| row.get(0))
        .expect("count");
    assert_eq!(count, 2);
    assert_eq!(ask(&["archive", "verify", "orders", &id]).0, 0);
    let delete = ["archive", "delete", "orders", &id, "--yes"];
    assert_eq!(ask(&delete).0, 4, "it is held");
    assert_eq!(
        ask(&["archive", "hold", "orders", &id, "--legal-hold", "false"]).0,
        0
    );
    assert_eq!(ask(&["archive", "restore", "again", &id]).0, 0);
    let found = server.run("again", "select count(*) from t").await;
    assert_eq!(found["rows"][0][0], 2);
    assert_eq!(ask(&delete).0, 0);
    assert_eq!(ask(&["archive", "show", "orders", &id]).0, 3);
    let (code, proof) = ask(&["verify", "orders", "--level", "full"]);
    assert_eq!(
        (code, &proof["outcome"]),
        (0, &json!("verified")),
        "{proof}"
    );
    let (code, schedule) = ask(&["verify", "orders", "--level", "restore", "--every", "24h"]);
    assert_eq!((code, &schedule["every_seconds"]), (0, &json!(86_400)));
    assert_eq!(ask(&["verify", "orders", "--every", "never"]).0, 0);
    let import = ["import", "orders", "x.db", "--replace", "--yes"];
    let (code, replaced) = ask(&import);
    assert_eq!(code, 0, "{replaced}");
    assert!(replaced["previous_bookmark"].is_string());
    assert!(server.terminate().status.success());
}

/// Writes to `database` until it is told to stop; every write must succeed.
async fn write_until(
    server: (String, String),
    database: &'static str,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
) {
    let (base, token) = server;
    let url = format!("{base}/v1/db/default/{database}/query");
    let client = Client::new();
    while !stop.load(Ordering::Relaxed) {
        let body = json!({ "sql": "insert into w values(1)", "durability": "memory" });
        let answer = client.post(&url).bearer_auth(&token).json(&body);
        let answer = answer.send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        assert_eq!(status, StatusCode::OK, "{text}");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Goal: everything an owner does with the past goes by the command line, on a database that is written to all the
/// while, and each end has its exit code. Method: a bad DELETE, put back while a writer goes on; what is refused because
/// of the writer is refused with 4, and the writer sees no error.
#[tokio::test(flavor = "multi_thread")]
async fn time_travel_goes_by_the_command_line_while_a_writer_goes_on() {
    let home = home();
    let server = Server::start(home.path()).await;
    let ask = |arguments: &[&str]| server.ask(home.path(), arguments);
    let done = |arguments: &[&str]| {
        let (code, document) = ask(arguments);
        assert_eq!(code, 0, "{arguments:?}: {document}");
        document
    };
    let refused = |arguments: &[&str], exit: i32, problem: &str| {
        let (code, document) = ask(arguments);
        assert_eq!(code, exit, "{arguments:?}: {document}");
        assert_eq!(
            document["error"]["code"], problem,
            "{arguments:?}: {document}"
        );
        document["error"].clone()
    };
    let text = |value: &Json| value.as_str().expect("a text").to_owned();
    let kept = |database: &str| {
        let select = "select count(*) from kept";
        done(&["query", database, select])["rows"][0][0].clone()
    };
    assert_eq!(done(&["db", "create", "orders"])["name"], "orders");
    assert_eq!(items(&done(&["db", "list"])).len(), 1);
    done(&["query", "orders", "create table w(a)"]);
    done(&["query", "orders", "create table kept(a)"]);
    let good = done(&[
        "query",
        "orders",
        "insert into kept values(?)",
        "--params",
        "[1]",
    ]);
    let good = text(&good["bookmark"]);
    assert_eq!(done(&["bookmark", "orders"])["bookmark"], json!(good));
    assert_eq!(items(&done(&["history", "orders"])).len(), 4);
    done(&["snapshot", "create", "orders", "good", "--pin"]);
    assert_eq!(
        items(&done(&["snapshot", "list", "orders"]))[0]["name"],
        "good"
    );
    done(&["export", "orders", "--out", "good.db"]);
    assert!(home.path().join("good.db").exists());
    done(&["query", "orders", "delete from kept"]);

    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let writer = tokio::spawn(write_until(
        (server.base.clone(), server.token.clone()),
        "orders",
        Arc::clone(&stop),
        Arc::clone(&written),
    ));
    let more = async || {
        let (seen, late) = (written.load(Ordering::Relaxed), deadline(PATIENCE));
        while written.load(Ordering::Relaxed) < seen + 20 {
            assert!(!late() && !writer.is_finished(), "the writer ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    more().await;
    let back = ["restore", "orders", "--snapshot", "good"];
    let and = |more: &[&'static str]| [&back[..], more].concat();
    assert_eq!(done(&and(&["--dry-run"]))["bookmark"], json!(good));
    assert_eq!(ask(&back).0, 4, "nobody confirms it");
    assert_eq!(kept("orders"), 0);
    let restored = done(&and(&[
        "--yes",
        "--reason",
        "oops",
        "--preserve-as",
        "before",
    ]));
    assert_eq!(restored["restore"]["to"], json!(good));
    assert!(restored["operation"].is_string());
    assert_eq!(kept("orders"), 1);
    more().await;
    // Where the writer had no turn between the plan and its run the plan stands: once more, from where it was before.
    let mut tries = 1;
    let stale = loop {
        let (code, document) = ask(&and(&["--yes", "--if-unchanged"]));
        if code != 0 {
            break (code, document["error"]["code"].clone());
        }
        assert!(tries < 4, "the writer makes no plan stale: {document}");
        tries += 1;
        done(&["query", "orders", "delete from kept"]);
        done(&and(&["--yes"]));
        more().await;
    };
    assert_eq!(stale, (4, json!("plan-stale")));
    let superseded = refused(&["undo", "orders", "--yes"], 4, "restore-superseded");
    assert!(superseded["commits_since"].as_u64() > Some(0));
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("every write succeeded");

    let now = text(&done(&["bookmark", "orders"])["bookmark"]);
    done(&["undo", "orders", "--yes", "--force", &now]);
    assert_eq!(kept("orders"), 0, "as it was before the restore");
    done(&["undo", "orders", "--yes"]);
    assert_eq!(kept("orders"), 1, "the undo is undone");
    refused(
        &["snapshot", "delete", "orders", "before"],
        4,
        "snapshot-pinned",
    );
    for name in ["before", "good"] {
        done(&["snapshot", "delete", "orders", name, "--unpin"]);
    }

    refused(
        &["restore", "nothing", "--bookmark", &good, "--yes"],
        3,
        "database-not-found",
    );
    let unknown = good.replacen("00000001-", "00000077-", 1);
    refused(
        &["restore", "orders", "--bookmark", &unknown, "--yes"],
        3,
        "bookmark-unknown",
    );
    assert_eq!(ask(&["restore", "orders", "--yes"]).0, 2, "back to what?");
    refused(
        &["undo", "orders", "rs_none", "--yes"],
        3,
        "restore-not-found",
    );

    assert_eq!(
        done(&["fork", "orders", "copy", "--bookmark", &good])["bookmark"],
        json!(good)
    );
    assert_eq!(kept("copy"), 1);
    done(&["fork", "orders", "bare", "--schema-only"]);
    assert_eq!(kept("bare"), 0);
    refused(&["fork", "orders", "copy"], 4, "name-taken");
    let pinned = refused(
        &["db", "delete", "orders", "--purge", "--yes"],
        4,
        "fork-parent-pinned",
    );
    assert_eq!(pinned["forks"], json!(["copy"]));
    assert_eq!(ask(&["db", "delete", "orders"]).0, 4, "nobody confirms it");
    assert_eq!(
        done(&["db", "delete", "orders", "--yes"])["forks"],
        json!(["copy"])
    );
    done(&["fork", "orders", "again", "--bookmark", &good]);
    assert_eq!(kept("again"), 1);
    done(&["db", "undelete", "orders"]);
    done(&["detach", "copy"]);
    let purge = [
        "db",
        "delete",
        "orders",
        "--purge",
        "--detach-forks",
        "--yes",
    ];
    assert_eq!(done(&purge)["purged"], "orders");
    for name in ["copy", "again"] {
        assert_eq!(done(&["db", "show", name])["parent"], Json::Null);
        assert_eq!(kept(name), 1);
    }
    refused(&["db", "show", "orders"], 3, "database-not-found");
    refused(&["db", "undelete", "orders"], 3, "database-purged");

    let operations = items(&done(&["operations"]));
    for kind in ["restore", "fork", "detach", "purge"] {
        let one = operations.iter().find(|one| one["type"] == kind);
        assert!(one.is_some(), "{kind} is not among {operations:?}");
    }
    assert_eq!(items(&done(&["operations", "--limit", "2"])).len(), 2);
    let ended = text(&operations[0]["id"]);
    refused(
        &["operations", "--cancel", &ended],
        4,
        "operation-not-cancellable",
    );

    refused(&["gc"], 4, "insufficient-permissions");
    let keeper = std::fs::read_to_string(home.path().join("data/server.token")).expect("a file");
    let gc = |arguments: &[&str]| server.ask_as(keeper.trim(), home.path(), arguments);
    let (code, dry) = gc(&["gc"]);
    assert_eq!((code, &dry["applied"]), (0, &json!(false)), "{dry}");
    let (code, applied) = gc(&["gc", "copy", "--apply"]);
    assert_eq!((code, &applied["applied"]), (0, &json!(true)), "{applied}");
    assert_eq!(items(&applied).len(), 1);
    done(&["snapshot", "create", "copy", "kept", "--pin"]);
    assert!(server.terminate().status.success());
    // The bucket alone says the same.
    let (_, listed) = tidelog(home.path(), &["list"]);
    let listed = items(&listed);
    assert_eq!(listed.len(), 3, "{listed:?}");
    let copy = listed.iter().find(|one| one["database"] == "default/copy");
    assert_eq!(copy.expect("it is listed")["snapshots"][0]["name"], "kept");
}

/// Goal: an object that is gone is told from one that is damaged, and either is exit 5, after everything else was
/// looked at. Method: a file is imported, so that an image is listed; a bit of the image is flipped, then it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_object_is_told_of_its_database_alone() {
    let home = home();
    let server = Server::start(home.path()).await;
    let made = server.post("databases", json!({ "name": "whole" })).await;
    assert_eq!(made.expect("an answer").0, StatusCode::CREATED);
    server.run("whole", "create table t(a)").await;
    let plain = rusqlite::Connection::open(home.path().join("x.db")).expect("open");
    plain
        .execute_batch("create table t(a); insert into t values(1)")
        .expect("fill");
    drop(plain);
    let (code, imported) = server.ask(home.path(), &["import", "orders", "x.db"]);
    assert_eq!(code, 0, "{imported}");
    let id = imported["id"].as_str().expect("an id").to_owned();
    assert!(server.terminate().status.success());

    let home = home.path();
    let (code, report) = tidelog(home, &["verify", "--level", "restore"]);
    assert_eq!(code, 0, "{report}");
    let mut images = Vec::new();
    for namespace in std::fs::read_dir(home.join("store/tenants"))
        .expect("tenants")
        .flatten()
    {
        let folder = namespace.path().join(&id).join("images");
        images.extend(std::fs::read_dir(folder).into_iter().flatten().flatten());
    }
    assert!(!images.is_empty(), "the import has an image");
    let looked = |outcome: &str, kind: &str| {
        let (code, report) = tidelog(home, &["verify", "--level", "restore"]);
        assert_eq!(code, 5, "{report}");
        for one in items(&report) {
            if one["database"] == "default/orders" {
                assert_eq!(one["outcome"], outcome, "{one}");
                assert_eq!(one["findings"][0]["kind"], kind, "{one}");
            } else {
                assert_eq!(one["outcome"], "verified", "{one}");
            }
        }
    };
    for image in &images {
        let mut bytes = std::fs::read(image.path()).expect("the object");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(image.path(), bytes).expect("damaged");
    }
    looked("mismatch", "damaged");
    for image in &images {
        std::fs::remove_file(image.path()).expect("removed");
    }
    looked("error", "missing");
}

/// Goal: what stands beside a local file is part of it, and a file that is none is told from one that is not there.
/// Method: rows that stand in the WAL alone are imported as a new database.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_file_is_imported_with_what_lies_beside_it() {
    let home = home();
    let server = Server::start(home.path()).await;
    let import = |name: &str, file: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_tidelog"))
            .current_dir(home.path())
            .env("TIDELOG_URL", &server.base)
            .env("TIDELOG_TOKEN", &server.token)
            .args(["import", name, file])
            .output()
            .expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), said)
    };
    let writer = rusqlite::Connection::open(home.path().join("live.db")).expect("SQLite opens");
    writer
        .execute_batch(
            "pragma journal_mode=wal; pragma wal_autocheckpoint=0;
             create table t(a); insert into t values(1), (2), (3);",
        )
        .expect("written");
    let (code, said) = import("live", "live.db");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("recovered into a copy"), "{said}");
    let found = server.run("live", "select count(*) from t").await;
    assert_eq!(found["rows"], json!([[3]]));
    drop(writer);
    let (code, said) = import("whole", "live.db");
    assert_eq!((code, said.contains("recovered")), (0, false), "{said}");
    std::fs::write(home.path().join("junk.db"), [7; 8192]).expect("written");
    let (code, said) = import("junk", "junk.db");
    assert_eq!(code, 4, "{said}");
    assert_eq!(import("none", "none.db").0, 3);
    let (status, _) = server
        .post("databases/junk/query", json!({ "sql": "select 1" }))
        .await
        .expect("an answer");
    assert_eq!(status, StatusCode::NOT_FOUND, "nothing was made");
    assert!(server.terminate().status.success());
}

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

fn seconds() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "a signed token is made of real time"
    )]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A signed token of `ana` in the namespace `default`.
fn signed_by(secret: &str) -> String {
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
    let claims = json!({ "sub": "ana", "tenant_id": "default", "aud": "tidelog", "exp": seconds() + 600, "iat": seconds() });
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("signed")
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
