//! A process that is killed, stopped, started twice, or loses its machine: what was acknowledged is there again (I1, I2),
//! and two never serve one folder.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::json;

use super::world::{PATIENCE, Server, command, deadline, finished, free_port, home, tidelog};

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

/// A database, and the level that its writer asks for.
type Writing = (&'static str, &'static str);

/// Makes the databases of writers.
async fn make(server: &Server, writers: &[Writing]) {
    for (database, _) in writers {
        server
            .post("databases", json!({ "name": database }))
            .await
            .expect("an answer");
        server
            .run(database, "create table t(id integer primary key, x)")
            .await;
    }
}

/// Has every writer go on at its next row, and kills the server under them once so many rows are acknowledged; answers
/// the last one of each.
async fn killed_under_load(
    server: Server,
    writers: &[Writing],
    next: &[i64],
    wanted: usize,
) -> Vec<i64> {
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let shared = Arc::new((server.base.clone(), server.token.clone()));
    let writers: Vec<_> = writers
        .iter()
        .zip(next)
        .map(|(&(database, durability), &first)| {
            let (shared, count) = (Arc::clone(&shared), Arc::clone(&acknowledged));
            tokio::spawn(write_until_it_dies(
                shared,
                database.to_owned(),
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
    last
}

/// Goal: I1 and I2 for kill -9. Method: writers at each level on databases of their own, the process killed
/// under them again and again; after each start every acknowledged row is there, and what is there has no gap.
#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_under_load_loses_no_acknowledged_row() {
    const ROUNDS: usize = 20;
    const WRITERS: [Writing; 4] = [
        ("a", "memory"),
        ("b", "local"),
        ("c", "remote"),
        ("d", "local"),
    ];
    let home = home();
    let mut server = Server::start(home.path()).await;
    make(&server, &WRITERS).await;
    let mut next = [1_i64; WRITERS.len()];
    for round in 0..ROUNDS {
        // Another instant each round: in the first commits, between ships, after many.
        let wanted = [20, 333, 77, 800, 150][round % 5] + 7 * round;
        let last = killed_under_load(server, &WRITERS, &next, wanted).await;
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

/// Goal: I1 for the loss of the machine. Method: load at every level, kill -9, the data folder removed; a new node
/// takes over and must have every row acknowledged as remote, and of the others a prefix.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_machine_loses_no_row_acknowledged_as_remote() {
    const WRITERS: [Writing; 3] = [("a", "remote"), ("b", "local"), ("c", "remote")];
    let home = home();
    let mut server = Server::start(home.path()).await;
    make(&server, &WRITERS).await;
    let mut next = [1_i64; WRITERS.len()];
    for wanted in [40, 500, 150] {
        let last = killed_under_load(server, &WRITERS, &next, wanted).await;
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
