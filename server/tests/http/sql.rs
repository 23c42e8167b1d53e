//! Statements over HTTP: values, batches, bookmarks, and what is refused.

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::world::{World, read};

#[tokio::test(flavor = "multi_thread")]
async fn values_come_back_as_they_went_in() {
    let world = World::start().await;
    let query = format!("{}/query", world.database("orders").await);
    world
        .post(&query, json!({ "sql": "create table t(a, b, c, d, e)" }))
        .await;
    let params = json!([null, i64::MIN, 0.1, "x\u{0}\u{1f600}", { "base64": "AP8H" }]);
    let body = json!({ "sql": "insert into t values(?,?,?,?,?)", "params": params });
    assert_eq!(world.post(&query, body).await.status, 200);
    let got = world
        .post(&query, json!({ "sql": "select * from t" }))
        .await;
    assert_eq!(got.body["columns"], json!(["a", "b", "c", "d", "e"]));
    assert_eq!(got.body["rows"], json!([params]));
    let body = json!({ "sql": "select b, 1.0, :on from t", "params": { "on": true }, "integers": "string" });
    let got = world.post(&query, body).await;
    assert_eq!(got.body["rows"], json!([[i64::MIN.to_string(), 1.0, "1"]]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_on_a_database_says_where_it_stands() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let write = world.run(&database, "create table t(a)").await;
    let at = write.body["bookmark"]
        .as_str()
        .expect("a bookmark")
        .to_owned();
    assert_eq!(write.header("db-bookmark"), Some(at.as_str()));
    for path in [
        "",
        "/bookmarks/current",
        "/recovery-window",
        "/history",
        "/export",
    ] {
        let got = world.get(&format!("{database}{path}")).await;
        assert_eq!(
            (got.status, got.header("db-bookmark")),
            (200, Some(at.as_str())),
            "{path}: {got:?}"
        );
    }
    let got = world
        .post(
            &format!("{database}/query"),
            json!({ "sql": "select * from none" }),
        )
        .await;
    assert_eq!((got.status, got.code()), (422, "sql-error"));
    assert_eq!(
        got.header("db-bookmark"),
        Some(at.as_str()),
        "a refusal says so too"
    );
    let body = json!({ "sql": "insert into t values(1)", "durability": "remote" });
    let got = world.post(&format!("{database}/query"), body).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(
        got.header("db-bookmark"),
        got.header("db-durable-bookmark"),
        "remote means durable"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_one_transaction_unless_told_otherwise() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let batch = format!("{database}/batch");
    let statements = json!([{ "sql": "create table t(a)" }, { "sql": "insert into t values(?)", "params": [7] },
        { "sql": "select a from t" }]);
    let got = world
        .post(&batch, json!({ "statements": statements }))
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body["results"][2]["rows"], json!([[7]]));
    let broken =
        json!([{ "sql": "insert into t values(8)" }, { "sql": "insert into none values(1)" }]);
    let got = world.post(&batch, json!({ "statements": broken })).await;
    assert_eq!(got.code(), "sql-error");
    let rows = world.run(&database, "select count(*) from t").await;
    assert_eq!(
        rows.body["rows"],
        json!([[1]]),
        "nothing of a failed batch stays"
    );
    let got = world
        .post(
            &batch,
            json!({ "statements": broken, "transaction": false }),
        )
        .await;
    assert_eq!(got.code(), "sql-error");
    let rows = world.run(&database, "select count(*) from t").await;
    assert_eq!(
        rows.body["rows"],
        json!([[2]]),
        "without a transaction what came before stays"
    );
    let many: Vec<Json> = (0..101).map(|_| json!({ "sql": "select 1" })).collect();
    for statements in [json!([]), json!(many), json!("x")] {
        let got = world
            .post(&batch, json!({ "statements": statements }))
            .await;
        assert_eq!(got.code(), "invalid-request");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_write_happens_once() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let insert = |sql: &'static str| {
        let request = world.ask(Method::POST, &format!("{database}/query"));
        read(
            request
                .header("idempotency-key", "k1")
                .json(&json!({ "sql": sql })),
        )
    };
    let first = insert("insert into t values(1) returning a").await;
    let again = insert("insert into t values(1) returning a").await;
    assert_eq!(
        (first.status, first.header("idempotency-replayed")),
        (200, None),
        "{first:?}"
    );
    assert_eq!(
        (again.status, again.header("idempotency-replayed")),
        (200, Some("true")),
        "{again:?}"
    );
    assert_eq!(again.body["rows"], first.body["rows"]);
    assert_eq!(
        insert("insert into t values(2)").await.code(),
        "idempotency-key-reused"
    );
    let rows = world.run(&database, "select a from t").await;
    assert_eq!(rows.body["rows"], json!([[1]]));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_that_reaches_out_of_its_database_is_refused() {
    let world = World::start().await;
    let database = world.database("orders").await;
    let query = format!("{database}/query");
    for sql in [
        "attach 'x.db' as x",
        "vacuum into 'x.db'",
        "select load_extension('x')",
        "select * from sqlite_dbpage",
        "pragma journal_mode=delete",
        "pragma hard_heap_limit=1",
        "pragma wal_checkpoint(truncate)",
        "pragma writable_schema=on",
        "begin",
        "commit",
        "savepoint x",
        "select 1; select 2",
        "",
        " -- nothing",
    ] {
        let got = world.post(&query, json!({ "sql": sql })).await;
        assert!(
            (got.status == 422 && ["sql-error", "transaction-control"].contains(&got.code()))
                || (got.status, got.code()) == (403, "insufficient-permissions"),
            "{sql}: {got:?}"
        );
    }
    // Every pragma that SQLite knows, but for those that look, and those that write what SQL may.
    let allowed = "foreign_keys defer_foreign_keys table_info table_xinfo table_list index_list index_info index_xinfo \
        foreign_key_list foreign_key_check query_only integrity_check quick_check user_version application_id optimize \
        incremental_vacuum recursive_triggers page_count page_size freelist_count encoding schema_version auto_vacuum \
        collation_list data_version";
    let allowed: Vec<&str> = allowed.split_ascii_whitespace().collect();
    let library = rusqlite::Connection::open_in_memory().expect("SQLite opens");
    let mut known = library.prepare("pragma pragma_list").expect("a list");
    let known = known.query_map([], |row| row.get::<_, String>(0));
    let known: Vec<String> = known
        .and_then(Iterator::collect)
        .expect("the names of all pragmas");
    assert!(known.len() > 40, "{known:?}");
    for name in known
        .iter()
        .filter(|name| !allowed.contains(&name.as_str()))
    {
        for sql in [format!("pragma {name}"), format!("pragma {name} = 1")] {
            let got = world.post(&query, json!({ "sql": sql })).await;
            assert_eq!(
                (got.status, got.code()),
                (422, "sql-error"),
                "{sql}: {got:?}"
            );
            assert_eq!(got.body["sqlite_code"], "SQLITE_AUTH", "{sql}: {got:?}");
        }
    }
    assert!(
        !std::path::Path::new("x.db").exists(),
        "a file was made outside the data folder"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_sql_are_answered_with_the_limit() {
    let world = World::start().await;
    let query = format!("{}/query", world.database("orders").await);
    let long = format!("select '{}'", "x".repeat(1 << 20));
    let got = world.post(&query, json!({ "sql": long })).await;
    assert_eq!((got.status, got.code()), (413, "sql-too-long"));
    assert_eq!(got.body["limit"], 1 << 20);
    let params: Vec<Json> = (0..1_001).map(|number| json!(number)).collect();
    let got = world
        .post(&query, json!({ "sql": "select 1", "params": params }))
        .await;
    assert_eq!((got.status, got.code()), (422, "too-many-parameters"));
    let many = "with recursive n(x) as (select 1 union all select x + 1 from n limit 100001) select x from n";
    let got = world.post(&query, json!({ "sql": many })).await;
    assert_eq!((got.status, got.code()), (413, "result-too-large"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_imported_exports_as_the_same_content() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("in.db");
    let made = rusqlite::Connection::open(&file).expect("SQLite opens");
    made.execute_batch(
        "pragma page_size=8192; create table t(a primary key, b) without rowid;
         with recursive n(x) as (select 1 union all select x + 1 from n limit 5000)
         insert into t select x, hex(randomblob(20)) from n;",
    )
    .expect("SQLite writes");
    drop(made);
    let bytes = std::fs::read(&file).expect("the file");
    let path = "/v1/namespaces/default/databases/in";
    let send = |bytes: Vec<u8>| {
        read(
            world
                .ask(Method::POST, &format!("{path}/import"))
                .body(bytes),
        )
    };
    let got = send(bytes.clone()).await;
    assert_eq!(
        (got.status, got.body["page_size"].as_u64()),
        (201, Some(8192)),
        "{got:?}"
    );
    assert_eq!(send(bytes.clone()).await.code(), "name-taken");
    let response = world
        .ask(Method::GET, &format!("{path}/export"))
        .send()
        .await
        .expect("an answer");
    let out = folder.path().join("out.db");
    std::fs::write(&out, response.bytes().await.expect("the file")).expect("written");
    let sum = |file: &std::path::Path| -> (i64, String) {
        let database = rusqlite::Connection::open(file).expect("SQLite opens");
        let check: String = database
            .query_row("pragma integrity_check", [], |row| row.get(0))
            .expect("a check");
        assert_eq!(check, "ok");
        let sql = "select count(*), group_concat(a || b) from t";
        database
            .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("a sum")
    };
    assert_eq!(sum(&file), sum(&out));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_and_creates_nothing() {
    let world = World::start().await;
    let good = {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("in.db");
        let made = rusqlite::Connection::open(&file).expect("SQLite opens");
        made.execute_batch("create table t(a); insert into t values(zeroblob(20000));")
            .expect("written");
        drop(made);
        std::fs::read(&file).expect("the file")
    };
    let truncated = good[..good.len() - 4096].to_vec();
    for (bytes, why) in [
        (Vec::new(), "empty"),
        (b"not a database".to_vec(), "cut off or no"),
        (vec![7; 8192], "encrypted"),
        (truncated, "cut off"),
    ] {
        let length = bytes.len();
        let request = world
            .ask(Method::POST, "/v1/namespaces/default/databases/bad/import")
            .body(bytes);
        let got = read(request).await;
        assert_eq!(
            (got.status, got.code()),
            (422, "import-invalid"),
            "{length} bytes"
        );
        let detail = got.body["detail"].as_str().expect("a text");
        assert!(detail.contains(why), "{length} bytes: {detail}");
    }
    let got = world.get("/v1/namespaces/default/databases/bad").await;
    assert_eq!((got.status, got.code()), (404, "database-not-found"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_resolves_to_the_commit_at_or_before_it() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let last = world.run(&database, "insert into t values(1)").await;
    let last = last.header("db-bookmark").expect("a bookmark").to_owned();
    let got = world
        .get(&format!(
            "{database}/bookmarks?timestamp=2999-01-01T00:00:00Z"
        ))
        .await;
    assert_eq!(
        got.body["bookmark"].as_str(),
        Some(last.as_str()),
        "{got:?}"
    );
    assert_eq!(got.body["exact"], false);
    // Unix milliseconds are the same time.
    let time = "2999-01-01T00:00:00Z";
    let millis = 32_472_144_000_000_u64;
    for (same, status) in [
        (millis.to_string(), 200),
        (time.to_owned(), 200),
        ("1".to_owned(), 410),
    ] {
        let again = world
            .get(&format!("{database}/bookmarks?timestamp={same}"))
            .await;
        assert_eq!(again.status, status, "{same}: {again:?}");
        assert!(status != 200 || again.body["bookmark"] == got.body["bookmark"]);
    }
    let got = world
        .get(&format!("{database}/bookmarks?timestamp=yesterday"))
        .await;
    assert_eq!(got.code(), "invalid-request");
    assert_eq!(
        world.get(&format!("{database}/bookmarks")).await.code(),
        "invalid-request"
    );
    let got = world
        .get(&format!("{database}/export?bookmark=nonsense"))
        .await;
    assert_eq!((got.status, got.code()), (422, "bookmark-malformed"));
    let history = world.get(&format!("{database}/history")).await;
    let items = history.body["items"].as_array().expect("items");
    assert_eq!(items.len(), 3, "creation and two commits");
    assert!(
        items
            .iter()
            .any(|item| item["bookmark"].as_str() == Some(last.as_str()))
    );
    // Where it begins and ends are judged as any other bookmark.
    let first = items[0]["bookmark"].as_str().expect("a bookmark");
    let unknown = format!("000000ff{}", &last[8..]);
    let foreign = format!("{}{}", &last[..last.len() - 32], &first[first.len() - 32..]);
    for end in ["from", "to"] {
        for (bookmark, status, code, member) in [
            ("nonsense", 422, "bookmark-malformed", "errors"),
            (
                unknown.as_str(),
                404,
                "bookmark-unknown",
                "current_bookmark",
            ),
            (foreign.as_str(), 422, "bookmark-foreign", "nearest"),
        ] {
            let path = format!("{database}/history?{end}={bookmark}");
            let got = world.get(&path).await;
            assert_eq!((got.status, got.code()), (status, code), "{path}: {got:?}");
            assert!(!got.body[member].is_null(), "{path}: {got:?}");
        }
    }
    let path = format!("{database}/history?from={last}&to={last}");
    let got = world.get(&path).await;
    let one = got.body["items"].as_array().expect("items");
    assert_eq!(
        (one.len(), &one[0]["bookmark"]),
        (1, &json!(last)),
        "{got:?}"
    );
    world.stop().await;
}

/// Goal: both routes have a second name, with the same answers.
#[tokio::test(flavor = "multi_thread")]
async fn statements_have_a_shorter_path() {
    let world = World::start().await;
    world.database("orders").await;
    let path = "/v1/db/default/orders";
    let statements = json!([{ "sql": "create table t(a)" }, { "sql": "insert into t values(7)" }]);
    let got = world
        .post(
            &format!("{path}/batch"),
            json!({ "statements": statements }),
        )
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.body["results"][1]["rows_written"], 1);
    let got = world
        .post(
            &format!("{path}/query"),
            json!({ "sql": "select a from t" }),
        )
        .await;
    assert_eq!((got.status, &got.body["rows"]), (200, &json!([[7]])));
    assert!(got.header("db-bookmark").is_some());
    world.stop().await;
}
