//! The bucket without its server: every bookmark is restored from it, a token and a node are made from it, and what is
//! damaged or missing in it is told by name.

use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::StatusCode;
use serde_json::{Value as Json, json};

use super::world::{PATIENCE, Server, command, finished, free_port, home, items, store, tidelog};

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
