//! The command line: each command does what its words say, and every end has its exit code.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value as Json, json};

use super::world::{PATIENCE, Server, deadline, home, items, tidelog};

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
