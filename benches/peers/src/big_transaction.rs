//! One large transaction through the real server: what it takes in memory to commit, capture, journal, ship and settle
//! it, to restore it from the bucket, and to start on an empty disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use reqwest::StatusCode;
use rusqlite::Connection;
use serde_json::{Value, json};
use tidelog_testkit::server::{Launch, Server, binary};

use crate::dump::by_rows;
use crate::measure::now;
use crate::memory::{forget_peak, mib, resident};

/// Bytes of a row's blob.
const ROW_BYTES: u64 = 4_000;
/// The most above idle.
const BOUND: u64 = 256 << 20;
/// How long one transaction may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Mebibytes of one transaction.
    #[arg(long, default_value_t = 200)]
    mib: u64,
}

async fn query(server: &Server, sql: &str, durability: &str) -> Value {
    let body = json!({ "sql": sql, "durability": durability });
    let answer = server.address().post("databases/big/query", &body).await;
    let (status, answer) = answer.expect("a server that runs answers");
    assert_eq!(status, StatusCode::OK, "{sql}: {answer}");
    answer
}

/// Waits until the store has been left alone for a while: shipped, settled, images written.
async fn quiet(store: &Path) {
    let begun = now();
    let (mut last, mut since) = (0, now());
    while since.elapsed() < Duration::from_secs(5) {
        assert!(begun.elapsed() < PATIENCE, "the store is never left alone");
        let bytes = folder_bytes(store);
        if bytes != last {
            (last, since) = (bytes, now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Bytes of all files below a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => bytes += meta.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// Runs one transaction to the end of all its consequences: its bookmark, seconds until `remote`, peak memory.
async fn transaction(server: &Server, store: &Path, sql: &str) -> (String, f64, u64) {
    forget_peak(server.id());
    let begun = now();
    let answer = query(server, sql, "remote").await;
    let took = begun.elapsed().as_secs_f64();
    quiet(store).await;
    let (_, peak) = resident(server.id()).expect("a running server");
    let bookmark = answer["bookmark"].as_str().expect("a bookmark");
    (bookmark.to_owned(), took, peak)
}

const SUMS: &str =
    "SELECT count(*), sum(length(b)), sum(a * unicode(hex(substr(b, 1 + a % 3000, 1)))) FROM t";

/// Restores a bookmark with the program and the bucket alone; its peak memory.
fn restore(store: &str, bookmark: &str, out: &Path) -> u64 {
    let mut restoring = Command::new(binary())
        .args(["restore", "default/big", "--store", store])
        .args(["--bookmark", bookmark, "--json", "--out"])
        .arg(out)
        .stdout(Stdio::null())
        .spawn()
        .expect("the program runs");
    let mut peak = 0;
    let status = loop {
        if let Some((_, now)) = resident(restoring.id()) {
            peak = peak.max(now);
        }
        if let Some(status) = restoring.try_wait().expect("a child can be asked") {
            break status;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    assert!(status.success(), "restore {bookmark}");
    peak
}

fn sums(file: &Path) -> Value {
    let connection = Connection::open(file).expect("open");
    let check: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("check");
    assert_eq!(check, "ok");
    connection
        .query_row(SUMS, [], |row| {
            let (a, b, c): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(json!([[a, b, c]]))
        })
        .expect("sums")
}

/// The SQLite file of the database, which nobody has open.
fn live_file(data: &Path) -> PathBuf {
    let mut folders = vec![data.join("databases")];
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("list").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("a file"));
            if meta.is_dir() {
                folders.push(path);
            } else if path.ends_with("db.sqlite") {
                files.push((meta.len(), path));
            }
        }
    }
    files.sort();
    files.pop().expect("a database").1
}

pub(crate) async fn run(options: Options) -> Value {
    let home = tempfile::tempdir().expect("tempdir");
    let store = home.path().join("store");
    let launch = Launch::below(home.path()).with(&["--durability-timeout-ms", "300000"]);
    let server = launch.start().await;
    let made = server
        .address()
        .post("databases", &json!({ "name": "big" }))
        .await;
    assert_eq!(made.expect("an answer").0, StatusCode::CREATED);
    query(
        &server,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)",
        "remote",
    )
    .await;
    for _ in 0..100 {
        query(
            &server,
            "INSERT INTO t(b) VALUES(randomblob(4000))",
            "local",
        )
        .await;
    }
    query(&server, "DELETE FROM t", "remote").await;
    quiet(&store).await;
    let (idle, _) = resident(server.id()).expect("a running server");

    let rows = (options.mib << 20) / ROW_BYTES;
    let insert = format!(
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < {rows}) \
         INSERT INTO t SELECT x, randomblob({ROW_BYTES}) FROM c"
    );
    let (inserted, insert_seconds, insert_peak) = transaction(&server, &store, &insert).await;
    let at_insert = query(&server, SUMS, "memory").await["rows"].take();
    let update = format!("UPDATE t SET b = randomblob({ROW_BYTES})");
    let (updated, update_seconds, update_peak) = transaction(&server, &store, &update).await;
    let at_update = query(&server, SUMS, "memory").await["rows"].take();
    server.stop().await;
    let live = live_file(launch.data());
    let bytes = std::fs::metadata(&live).expect("a file").len();
    let live = by_rows(&live);

    let (first, second) = (home.path().join("first.db"), home.path().join("second.db"));
    let restore_peak = restore(launch.store(), &inserted, &first);
    assert_eq!(sums(&first), at_insert, "the insert restores equal");
    let restore_peak = restore_peak.max(restore(launch.store(), &updated, &second));
    assert_eq!(sums(&second), at_update, "the update restores equal");
    assert_eq!(by_rows(&second), live, "every row restores equal");

    std::fs::remove_dir_all(launch.data()).expect("lose the disk");
    let server = launch.clone().with(&["--take-over", "all"]).start().await;
    let (start_idle, _) = resident(server.id()).expect("a running server");
    forget_peak(server.id());
    assert_eq!(query(&server, SUMS, "memory").await["rows"], at_update);
    let (_, take_over_peak) = resident(server.id()).expect("a running server");
    server.stop().await;

    let within = [
        insert_peak.saturating_sub(idle),
        update_peak.saturating_sub(idle),
        take_over_peak.saturating_sub(start_idle),
        restore_peak,
    ]
    .iter()
    .all(|bytes| *bytes <= BOUND);
    let above = |peak: u64, idle: u64| mib(peak.saturating_sub(idle));
    json!({
        "transaction_mib": options.mib,
        "database_mib": mib(bytes),
        "idle_mib": mib(idle),
        "insert": { "seconds_until_remote": insert_seconds, "peak_mib": mib(insert_peak), "above_idle_mib": above(insert_peak, idle) },
        "update": { "seconds_until_remote": update_seconds, "peak_mib": mib(update_peak), "above_idle_mib": above(update_peak, idle) },
        "restore_by_program": { "peak_mib": mib(restore_peak) },
        "take_over_on_an_empty_disk": { "idle_mib": mib(start_idle), "peak_mib": mib(take_over_peak), "above_idle_mib": above(take_over_peak, start_idle) },
        "restores_equal": true,
        "bound_mib": mib(BOUND),
        "within_bound": within,
    })
}
