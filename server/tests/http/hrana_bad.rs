//! What is wrong with a request of Hrana, case by case, each while the stream is inside a transaction that writes: what
//! the client hears, what becomes of the transaction, and that nothing holds the lock once it is over.

use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_server::config::{Config, Preset};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hrana::{CURSOR, PIPELINE, close, error_code, execute, failed, filled};
use crate::world::{Got, World, read, read_as_is, read_refused};

/// A server on which a stream keeps the lock for far longer than another writer waits for it: whoever writes then
/// proves that the lock was given back, not that it ran out.
async fn patient() -> World {
    with(unhurried()).await
}

/// A configuration under which a machine that is busy with something else makes no call fail, and nothing that holds
/// the lock runs out.
fn unhurried() -> Config {
    let mut config = Preset::Development.config();
    config.stream_gate_idle_ms = 600_000;
    config.stream_idle_ms = 600_000;
    config.engine.gate_timeout_ms = 60_000;
    config.durability_timeout_ms = 60_000;
    config.limits.query_ms = 600_000;
    config.limits.cursor_pause_ms = 600_000;
    config
}

async fn with(config: Config) -> World {
    filled(World::of(config).await).await
}

impl World {
    /// A stream inside a transaction that has written a row.
    async fn writing(&self) -> Json {
        let insert = execute("insert into t(b) values('open')");
        let begin = json!([execute("begin immediate"), insert]);
        let (results, baton) = self.piped(&Json::Null, begin).await;
        assert!(results.iter().all(|one| one["type"] == "ok"), "{results:?}");
        baton
    }

    /// Nothing of a transaction is left, nothing holds the lock, and no stream is open.
    async fn is_free(&self, what: &str) {
        let insert = execute("insert into t(b) values('free')");
        let write = json!([insert, execute("delete from t"), close()]);
        let (results, _) = self.piped(&Json::Null, write).await;
        assert_eq!(results[0]["type"], "ok", "{what}: {results:?}");
        let changed = &results[1]["response"]["result"]["affected_row_count"];
        assert_eq!(changed, 1, "{what}: a row of the transaction is left");
        self.has_streams(0, what).await;
    }

    async fn has_streams(&self, count: usize, what: &str) {
        for _ in 0..12_000 {
            if self.engine.stream_count() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {} streams", self.engine.stream_count());
    }

    async fn posted(&self, path: &str, body: &Json) -> Got {
        read(self.ask(Method::POST, path).json(body)).await
    }
}

fn batch(condition: &Json) -> Json {
    json!([{ "type": "batch", "batch": { "steps": [{ "condition": condition, "stmt": { "sql": "select 1" } }] } }])
}

fn nested(depth: usize) -> Json {
    let mut deep = json!({ "type": "is_autocommit" });
    for _ in 0..depth {
        deep = json!({ "type": "not", "cond": deep });
    }
    deep
}

#[expect(clippy::needless_pass_by_value, reason = "it is written in place")]
fn stmt(stmt: Json) -> Json {
    json!({ "type": "execute", "stmt": stmt })
}

/// Goal: a request that is wrong as a whole ends its stream and rolls back (HRANA 2, 4 and 6). Method: each case on a
/// stream that holds the lock, which the next writer needs at once.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_end_their_stream_and_leave_no_lock() {
    let world = patient().await;
    let arg = |arg: Json| json!([stmt(json!({ "sql": "select ?", "args": [arg] }))]);
    let step = |step: Json| json!([{ "type": "batch", "batch": { "steps": [step] } }]);
    let forward = json!({ "type": "error", "step": 3 });
    for bad in [
        json!([{ "type": "unknown" }]),
        json!([{ "stmt": { "sql": "select 1" } }]),
        json!([{ "type": 7 }]),
        json!([7]),
        json!([null]),
        json!([[]]),
        json!([{ "type": "execute" }]),
        json!([stmt(json!(null))]),
        json!([stmt(json!({ "sql": 7 }))]),
        json!([stmt(json!({ "sql_id": "1" }))]),
        json!([stmt(json!({ "sql_id": 3_000_000_000_u64 }))]),
        json!([stmt(json!({ "sql": "select 1", "want_rows": "yes" }))]),
        json!([stmt(json!({ "sql": "select 1", "args": {} }))]),
        json!([stmt(
            json!({ "sql": "select 1", "named_args": [{ "value": { "type": "null" } }] })
        )]),
        arg(json!({ "type": "what" })),
        arg(json!({ "type": "integer", "value": 1 })),
        arg(json!({ "type": "float", "value": "1" })),
        arg(json!({ "type": "float", "value": null })),
        arg(json!({ "type": "text" })),
        arg(json!(1)),
        json!([{ "type": "store_sql", "sql_id": 1 }]),
        json!([{ "type": "store_sql", "sql_id": 1.5, "sql": "select 1" }]),
        json!([{ "type": "close_sql" }]),
        json!([{ "type": "batch", "batch": {} }]),
        json!([{ "type": "batch", "batch": { "steps": 7 } }]),
        step(json!({})),
        step(json!({ "stmt": 7 })),
        json!([close(), execute("select 1")]),
        json!([close(), close()]),
        json!([execute("select 1"), close(), { "type": "get_autocommit" }]),
        batch(&json!({ "type": "ok", "step": 0 })),
        batch(&forward),
        batch(&json!({ "type": "not", "cond": forward })),
        batch(&json!({ "type": "and", "conds": [forward] })),
        batch(&json!({ "type": "or", "conds": [{ "type": "is_autocommit" }, forward] })),
        batch(&json!({ "type": "ok", "step": u64::MAX })),
        batch(&json!({ "type": "ok", "step": -1 })),
        batch(&json!({ "type": "ok" })),
        batch(&json!({ "type": "perhaps" })),
        batch(&json!({ "type": "not" })),
        batch(&json!({ "type": "and", "conds": forward })),
        batch(&nested(32)),
        batch(&nested(50)),
    ] {
        let baton = world.writing().await;
        let got = world.hrana(&baton, bad.clone()).await;
        failed(&got, 400, "INVALID_REQUEST");
        failed(&world.hrana(&baton, json!([])).await, 400, "STREAM_EXPIRED");
        world.is_free(&bad.to_string()).await;
    }
    let bad_arg = json!({ "sql": "select ?", "args": [{ "type": "blob", "base64": "*" }] });
    for bad in [
        json!({ "steps": 7 }),
        json!({}),
        json!(null),
        json!({ "steps": [{ "condition": forward, "stmt": { "sql": "select 1" } }] }),
        json!({ "steps": [{ "condition": nested(50), "stmt": { "sql": "select 1" } }] }),
        json!({ "steps": [{ "stmt": { "sql": "select 1", "sql_id": 1 } }] }),
        json!({ "steps": [{ "stmt": bad_arg }] }),
    ] {
        let baton = world.writing().await;
        let body = json!({ "baton": baton, "batch": bad });
        failed(&world.posted(CURSOR, &body).await, 400, "INVALID_REQUEST");
        failed(&world.hrana(&baton, json!([])).await, 400, "STREAM_EXPIRED");
        world.is_free(&bad.to_string()).await;
    }
    // Beside the body.
    for path in [PIPELINE, CURSOR] {
        for (query, header) in [("?a=1", "local"), ("", "for ever")] {
            let baton = world.writing().await;
            let body = json!({ "baton": baton, "requests": [], "batch": { "steps": [] } });
            let sent = world.ask(Method::POST, &format!("{path}{query}"));
            let got = read(sent.header("db-durability", header).json(&body)).await;
            assert_eq!(got.status, 400, "{got:?}");
            failed(&world.hrana(&baton, json!([])).await, 400, "STREAM_EXPIRED");
            world.is_free(&format!("{path}{query} {header}")).await;
        }
    }
    // The database takes no reads any more.
    let baton = world.writing().await;
    let block = async |on: bool| {
        let patch = world.ask(Method::PATCH, "/v1/namespaces/default/databases/orders");
        let patched = read(patch.json(&json!({ "block_reads": on }))).await;
        assert_eq!(patched.status, 200);
    };
    block(true).await;
    let got = world.hrana(&baton, json!([execute("commit")])).await;
    failed(&got, 403, "BLOCKED");
    block(false).await;
    world.is_free("blocked").await;
    world.stop().await;
}

/// Goal: a body that names no stream is refused, whatever it is, and opens none.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_requests_open_nothing() {
    let world = patient().await;
    let deep = |open: &str| format!("{{\"requests\":{}", open.repeat(100_000));
    let bomb = "{\"type\":\"not\",\"cond\":".repeat(100_000);
    let bomb = format!(
        "{{\"requests\":[{{\"type\":\"batch\",\"batch\":{{\"steps\":[{{\"stmt\":{{\"sql\":\"select 1\"}},\"condition\":{bomb}"
    );
    let texts = [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        "{\"requests\":7}",
        "{\"requests\":{}}",
        "{\"baton\":7,\"requests\":[]}",
        "{\"baton\":[],\"requests\":[]}",
        "\u{feff}{\"requests\":[]}",
        "{\"requests\":[]} {}",
    ];
    let texts = texts.map(str::to_owned).into_iter();
    for text in texts.chain([deep("["), deep("{\"a\":"), bomb]) {
        let sent = world.ask(Method::POST, PIPELINE).body(text);
        failed(&read(sent).await, 400, "INVALID_REQUEST");
    }
    let bytes = world.ask(Method::POST, PIPELINE).body(vec![0xff; 100]);
    failed(&read(bytes).await, 400, "INVALID_REQUEST");
    let large = format!("{{\"requests\":[],\"x\":\"{}\"}}", "x".repeat(11 << 20));
    let large = bytes::Bytes::from(large);
    let large = read_refused(|| world.ask(Method::POST, PIPELINE).body(large.clone())).await;
    failed(&large, 413, "BODY_TOO_LARGE");
    let keyed = world
        .ask(Method::POST, PIPELINE)
        .header("idempotency-key", "k");
    let keyed = read(keyed.json(&json!({ "requests": [] }))).await;
    failed(&keyed, 400, "INVALID_REQUEST");
    for (path, status, code) in [
        ("/default/none/v3/pipeline", 404, "DATABASE_NOT_FOUND"),
        ("/other/orders/v3/pipeline", 403, "NAMESPACE_MISMATCH"),
        ("/v3/pipeline", 404, "NOT_FOUND"),
    ] {
        let got = world.posted(path, &json!({ "requests": [] })).await;
        failed(&got, status, code);
    }
    world.has_streams(0, "none was opened").await;
    world.is_free("nothing").await;
    world.stop().await;
}

/// Goal: a statement that is wrong fails alone: the transaction goes on, and ends with its client's word (HRANA 3
/// and 6).
#[tokio::test(flavor = "multi_thread")]
async fn wrong_statements_leave_their_transaction_open_and_no_lock_after_it() {
    let world = patient().await;
    let nil = json!({ "type": "null" });
    let named = json!([{ "name": "a", "value": nil }]);
    let twice = json!([{ "name": "a", "value": nil }, { "name": ":a", "value": nil }]);
    let stored = |len: usize| json!({ "type": "store_sql", "sql_id": 1, "sql": "x".repeat(len) });
    let integer = |text: &str| {
        stmt(json!({ "sql": "select ?", "args": [{ "type": "integer", "value": text }] }))
    };
    let huge = "with recursive n(x) as (select 1 union all select x + 1 from n limit 200000) select x from n";
    for (bad, code) in [
        (execute("selec 1"), "SQL_PARSE_ERROR"),
        (execute("select 1; select 2"), "SQL_MANY_STATEMENTS"),
        (
            execute("select 1; -- and\nselect 2;"),
            "SQL_MANY_STATEMENTS",
        ),
        (execute(""), "SQL_NO_STATEMENT"),
        (execute(";"), "SQL_NO_STATEMENT"),
        (execute("/* nothing */ -- at all"), "SQL_NO_STATEMENT"),
        (execute("select none"), "SQL_INPUT_ERROR"),
        (execute("select * from nowhere"), "SQLITE_ERROR"),
        (execute("select ?"), "ARGS_INVALID"),
        (
            stmt(json!({ "sql": "select 1", "args": [nil] })),
            "ARGS_INVALID",
        ),
        (
            stmt(json!({ "sql": "select :b", "named_args": named })),
            "ARGS_INVALID",
        ),
        (
            stmt(json!({ "sql": "select :a", "named_args": twice })),
            "ARGS_INVALID",
        ),
        (
            stmt(json!({ "sql": "select ?", "args": [nil], "named_args": named })),
            "ARGS_BOTH_POSITIONAL_AND_NAMED",
        ),
        (integer("9223372036854775808"), "ARGS_INVALID"),
        (integer("1e3"), "ARGS_INVALID"),
        (integer(""), "ARGS_INVALID"),
        (stmt(json!({})), "SQL_INPUT_ERROR"),
        (
            stmt(json!({ "sql": "select 1", "sql_id": 1 })),
            "SQL_INPUT_ERROR",
        ),
        (stmt(json!({ "sql_id": 7 })), "SQL_NOT_STORED"),
        (json!({ "type": "sequence", "sql_id": 7 }), "SQL_NOT_STORED"),
        (json!({ "type": "sequence" }), "SQL_INPUT_ERROR"),
        (
            json!({ "type": "sequence", "sql": "select 1; selec" }),
            "SQL_PARSE_ERROR",
        ),
        (json!({ "type": "describe", "sql_id": 7 }), "SQL_NOT_STORED"),
        (
            json!({ "type": "describe", "sql": "selec" }),
            "SQL_PARSE_ERROR",
        ),
        (
            json!({ "type": "describe", "sql": "select 1; select 2" }),
            "SQL_MANY_STATEMENTS",
        ),
        (stored(5_001), "SQL_STORE_TOO_LARGE"),
        (stored(1 << 20), "SQL_STORE_TOO_LARGE"),
        (execute("attach 'x' as y"), "SQLITE_AUTH"),
        (execute("pragma journal_mode = delete"), "SQLITE_AUTH"),
        (execute("begin"), "SQLITE_ERROR"),
        (execute("vacuum"), "SQLITE_ERROR"),
        (execute("release none"), "SQLITE_ERROR"),
        (
            execute("insert into t values(1, 1), (1, 2)"),
            "SQLITE_CONSTRAINT",
        ),
        (execute(huge), "RESPONSE_TOO_LARGE"),
        (
            execute(&format!("select '{}'", "x".repeat(2 << 20))),
            "SQL_TOO_LONG",
        ),
    ] {
        let what: String = bad.to_string().chars().take(200).collect();
        let baton = world.writing().await;
        let asked = json!([bad, { "type": "get_autocommit" }, execute("select count(*) from t")]);
        let (results, baton) = world.piped(&baton, asked).await;
        assert_eq!(error_code(&results[0]), code, "{what}");
        assert_eq!(results[1]["response"]["is_autocommit"], false, "{what}");
        let count = &results[2]["response"]["result"]["rows"][0][0]["value"];
        assert_eq!(count, "1", "{what}");
        let (_, baton) = world.piped(&baton, json!([close()])).await;
        assert!(baton.is_null());
        world.is_free(&what).await;
    }
    // SQLite itself ends the transaction here.
    let baton = world.writing().await;
    let rollback = execute("insert or rollback into t select a, b from t");
    let asked = json!([rollback, { "type": "get_autocommit" }]);
    let (results, _) = world.piped(&baton, asked).await;
    assert_eq!(error_code(&results[0]), "SQLITE_CONSTRAINT");
    assert_eq!(results[1]["response"]["is_autocommit"], true);
    let write = json!([execute("insert into t(b) values(1)"), close()]);
    let (results, _) = world.piped(&Json::Null, write).await;
    assert_eq!(
        results[0]["type"], "ok",
        "the stream holds the lock: {results:?}"
    );
    world.stop().await;
}

/// Goal: a baton is good once, for its owner, and what is refused for it changes nothing (HRANA 4).
#[tokio::test(flavor = "multi_thread")]
async fn a_baton_that_is_refused_leaves_the_stream_to_its_owner() {
    let world = patient().await;
    world.database("other").await;
    let second = world
        .token(json!({ "kind": "live", "scopes": ["write"] }))
        .await;
    let first = world.writing().await;
    let (_, latest) = world.piped(&first, json!([execute("select 1")])).await;
    let text = latest.as_str().expect("a text");
    let flipped = |at: usize| {
        let other = if &text[at..=at] == "A" { "B" } else { "A" };
        format!("{}{other}{}", &text[..at], &text[at + 1..])
    };
    let forged = [
        flipped(0),
        flipped(12),
        flipped(40),
        String::new(),
        "AAAA".to_owned(),
        text[..60].to_owned(),
        format!("{text}{text}"),
        "\u{0}".to_owned(),
        "x".repeat(100_000),
    ];
    for bad in forged.iter().map(|text| json!(text)).chain([first]) {
        for body in [json!([execute("commit")]), json!([close()])] {
            failed(&world.hrana(&bad, body).await, 400, "BATON_INVALID");
        }
        let steps = json!({ "baton": bad, "batch": { "steps": [] } });
        failed(&world.posted(CURSOR, &steps).await, 400, "BATON_INVALID");
    }
    let commit = json!({ "baton": latest, "requests": [execute("commit")] });
    let elsewhere = world.posted("/default/other/v3/pipeline", &commit).await;
    failed(&elsewhere, 400, "BATON_INVALID");
    for (token, status, code) in [
        (second.as_str(), 400, "BATON_INVALID"),
        (world.server.as_str(), 403, "NAMESPACE_MISMATCH"),
        ("tl_live_none", 401, "UNAUTHENTICATED"),
    ] {
        let url = format!("{}{PIPELINE}", world.base);
        let sent = world.client.post(url).bearer_auth(token).json(&commit);
        failed(&read(sent).await, status, code);
    }
    let commit = json!([execute("commit"), close()]);
    let (results, _) = world.piped(&latest, commit).await;
    assert_eq!(results[0]["type"], "ok");
    assert_eq!(
        world.count().await,
        1,
        "the transaction was its owner's all the time"
    );
    world
        .run("/v1/namespaces/default/databases/orders", "delete from t")
        .await;
    world.is_free("after all").await;
    world.stop().await;
}

/// Goal: a stream takes one request at a time; a second one is refused and harms nobody (HRANA 4).
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_takes_one_request_at_a_time() {
    let world = patient().await;
    let (_, baton) = world.piped(&Json::Null, json!([execute("select 1")])).await;
    let long = "with recursive n(x) as (select 1 union all select x + 1 from n limit 5000000) select count(*) from n";
    let insert = execute("insert into t(b) values('begun')");
    let requests = json!({ "baton": baton, "requests": [insert, execute(long)] });
    let sent = world.ask(Method::POST, PIPELINE).json(&requests);
    let running = tokio::spawn(async move { read(sent).await });
    while world.count().await == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // It runs, and used the baton up.
    failed(&world.hrana(&baton, json!([])).await, 400, "BATON_INVALID");
    let done = running.await.expect("no panic");
    assert_eq!(done.status, 200, "{done:?}");
    let (results, _) = world.piped(&done.body["baton"], json!([close()])).await;
    assert_eq!(results[0]["type"], "ok");

    // A cursor hands its baton out before its rows; it is good once they are written.
    let rows = "with recursive n(x) as (select 1 union all select x + 1 from n limit 400000) select x, zeroblob(50) from n";
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": "begin immediate" } }, { "stmt": { "sql": rows } }] } });
    let sent = world.ask(Method::POST, CURSOR).json(&body).send().await;
    let mut pieces = sent.expect("an answer").bytes_stream();
    let first = pieces.next().await.expect("a piece").expect("sound");
    let line = first.split(|byte| *byte == b'\n').next().expect("a line");
    let line: Json = serde_json::from_slice(line).expect("JSON");
    failed(
        &world.hrana(&line["baton"], json!([])).await,
        400,
        "BATON_INVALID",
    );
    while let Some(piece) = pieces.next().await {
        piece.expect("whole");
    }
    let (results, _) = world
        .piped(&line["baton"], json!([execute("commit"), close()]))
        .await;
    assert_eq!(results[0]["type"], "ok", "{results:?}");
    world
        .run("/v1/namespaces/default/databases/orders", "delete from t")
        .await;
    world.is_free("after both").await;
    world.stop().await;
}

/// Goal: who cannot have the lock hears `TRANSACTION_BUSY` and may try again: the gate is another's for too long, or the
/// transaction began before somebody else's commit (HRANA 6).
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_have_the_lock_is_told_that_it_is_busy() {
    let mut config = unhurried();
    config.engine.gate_timeout_ms = 2_000;
    let world = with(config).await;
    let begin = json!([execute("begin"), execute("select count(*) from t")]);
    let (_, old) = world.piped(&Json::Null, begin).await;
    let holder = world.writing().await;
    let insert = execute("insert into t(b) values('waits')");
    for alone in [true, false] {
        let requests = if alone {
            json!([insert, close()])
        } else {
            json!([insert, execute("begin immediate"), { "type": "get_autocommit" }, close()])
        };
        let (results, _) = world.piped(&Json::Null, requests).await;
        assert_eq!(error_code(&results[0]), "TRANSACTION_BUSY");
        assert!(alone || error_code(&results[1]) == "TRANSACTION_BUSY");
        assert!(alone || results[2]["response"]["is_autocommit"] == true);
    }
    world
        .piped(&holder, json!([execute("commit"), close()]))
        .await;
    let (results, old) = world
        .piped(&old, json!([insert, { "type": "get_autocommit" }]))
        .await;
    assert_eq!(error_code(&results[0]), "TRANSACTION_BUSY");
    assert_eq!(
        results[1]["response"]["is_autocommit"], false,
        "it still reads"
    );
    let again = json!([
        execute("rollback"),
        execute("begin"),
        insert,
        execute("delete from t"),
        execute("commit"),
        close()
    ]);
    let (results, _) = world.piped(&old, again).await;
    assert!(results.iter().all(|one| one["type"] == "ok"), "{results:?}");
    world.is_free("after all").await;
    world.stop().await;
}

/// Goal: requests that are refused whole for what the server is, not for what they are, are said as the clients read it
/// (HRANA 6): rates, places for streams, maintenance.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_server_have_their_status_and_the_body_of_the_clients() {
    let mut config = unhurried();
    config.engine.streams_per_principal = 2;
    let world = with(config).await;
    let limited = world
        .token(json!({ "scopes": ["read"], "rate_per_minute": 1 }))
        .await;
    let once = async || {
        let url = format!("{}{PIPELINE}", world.base);
        let sent = world.client.post(url).bearer_auth(&limited);
        read(sent.json(&json!({ "requests": [execute("select 1"), close()] }))).await
    };
    assert_eq!(once().await.status, 200);
    let got = once().await;
    failed(&got, 429, "RATE_LIMITED");
    let wait = got
        .header("retry-after")
        .and_then(|wait| wait.parse::<u64>().ok());
    assert!(wait.is_some_and(|wait| wait > 0), "{got:?}");

    // Two streams in a transaction make no place for a third one; one that is unused does.
    let begin = json!([execute("begin"), execute("select 1 from t")]);
    let (_, one) = world.piped(&Json::Null, begin.clone()).await;
    let (_, two) = world.piped(&Json::Null, begin.clone()).await;
    for path in [PIPELINE, CURSOR] {
        let body = json!({ "requests": begin, "batch": { "steps": [] } });
        let got = world.posted(path, &body).await;
        failed(&got, 503, "OVERLOADED");
        assert!(got.header("retry-after").is_some(), "{got:?}");
    }
    let (_, unused) = world.piped(&two, json!([execute("commit")])).await;
    let (_, three) = world.piped(&Json::Null, begin).await;
    failed(
        &world.hrana(&unused, json!([])).await,
        400,
        "STREAM_EXPIRED",
    );
    for baton in [one, three] {
        world.piped(&baton, json!([close()])).await;
    }

    let maintenance = async |on: bool| {
        let put = world.ask(Method::PUT, "/v1/namespaces/default/maintenance");
        assert_eq!(read(put.json(&json!({ "enabled": on }))).await.status, 200);
    };
    maintenance(true).await;
    let (results, _) = world
        .piped(
            &Json::Null,
            json!([execute("delete from t"), execute("select 1"), close()]),
        )
        .await;
    assert_eq!(error_code(&results[0]), "BLOCKED");
    assert_eq!(results[1]["type"], "ok", "reads go on");
    maintenance(false).await;
    world.is_free("after maintenance").await;
    world.stop().await;
}

/// Goal: what comes too late is said in the words of the clients, and leaves no lock (HRANA 6): a body that stands still
/// is 408, an answer that takes longer than a request may is 504. Method: half a body; a write that waits for a
/// transaction which does not end, alone and on a stream of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_too_late_is_said_and_leaves_no_lock() {
    // Each on a server of its own, so that neither time ends beside the other.
    let mut config = unhurried();
    config.limits.body_ms = 1_000;
    let world = with(config).await;
    for path in [PIPELINE, CURSOR] {
        let address = world.base.trim_start_matches("http://");
        let mut socket = tokio::net::TcpStream::connect(address)
            .await
            .expect("connects");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 100\r\n\r\n{{",
            world.owner
        );
        socket.write_all(head.as_bytes()).await.expect("sent");
        let mut said = Vec::new();
        socket.read_to_end(&mut said).await.expect("it is let go");
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
        assert!(
            said.contains("content-type: application/json\r\n"),
            "{said}"
        );
        let (_, body) = said.split_once("\r\n\r\n").expect("a body");
        let body: Json = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["code"], "REQUEST_TIMEOUT");
        assert!(body["message"].is_string() && body["error"].is_string());
    }
    world.stop().await;
    let mut config = unhurried();
    config.limits.request_ms = 2_000;
    let world = with(config).await;
    let baton = world.writing().await;
    let insert = execute("insert into t(b) values('late')");
    for late in [
        json!([insert, close()]),
        json!([execute("begin"), insert, execute("rollback"), close()]),
    ] {
        let body = json!({ "baton": null, "requests": late });
        // Whoever asks to wait has longer.
        let got = read_as_is(world.ask(Method::POST, PIPELINE).json(&body)).await;
        failed(&got, 504, "OUTCOME_UNKNOWN");
    }
    world
        .piped(&baton, json!([execute("rollback"), close()]))
        .await;
    world.has_streams(0, "all have ended").await;
    let write = json!([insert, execute("delete from t"), close()]);
    let (results, _) = world.piped(&Json::Null, write).await;
    assert_eq!(results[1]["type"], "ok", "{results:?}");
    world.stop().await;
}

/// Goal: a client that keeps its connection and reads nothing of a cursor is let go, and its transaction with it. Method:
/// a result larger than what the sockets hold, inside a transaction that writes.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_of_a_cursor_is_let_go() {
    let mut config = unhurried();
    config.limits.cursor_pause_ms = 200;
    let world = with(config).await;
    let sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 100000) select x, zeroblob(700) from n";
    let steps = ["begin immediate", "insert into t(b) values('open')", sql];
    let steps = steps.map(|sql| json!({ "stmt": { "sql": sql } }));
    let body = json!({ "batch": { "steps": steps } });
    let sent = world.ask(Method::POST, CURSOR).json(&body).send().await;
    let mut pieces = sent.expect("an answer").bytes_stream();
    pieces.next().await.expect("a piece").expect("sound");
    world.is_free("nobody read").await;
    let mut text = Vec::new();
    while let Some(Ok(piece)) = pieces.next().await {
        text.extend_from_slice(&piece);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(
        !text.contains("replication_index"),
        "it is not said to be whole"
    );
    world.stop().await;
}

/// Goal: a client that vanishes keeps nobody waiting for longer than its time, whatever it was doing, and hears what
/// became of its transaction if it returns (HRANA 4 and 6).
#[tokio::test(flavor = "multi_thread")]
async fn who_vanishes_inside_a_transaction_leaves_no_lock() {
    let mut config = unhurried();
    config.stream_gate_idle_ms = 200;
    let world = with(config.clone()).await;
    let database = "/v1/namespaces/default/databases/orders";

    // It never comes back.
    world.writing().await;
    world.run(database, "delete from t").await;
    assert_eq!(world.count().await, 0);

    // It comes back late: nothing of its transaction runs outside of it until it knows.
    let baton = world.writing().await;
    world.run(database, "delete from t").await;
    let late = json!([
        execute("insert into t(b) values('late')"),
        execute("commit"),
        execute("select 1"),
        execute("rollback"),
        execute("select 1"),
        close()
    ]);
    let (results, _) = world.piped(&baton, late).await;
    for result in &results[..3] {
        assert_eq!(error_code(result), "TRANSACTION_TIMEOUT");
    }
    assert!(
        results[3..].iter().all(|one| one["type"] == "ok"),
        "{results:?}"
    );
    assert_eq!(world.count().await, 0);
    world.stop().await;

    // Later still, the stream is gone, and whoever sends its baton is told so.
    config.stream_idle_ms = 2_000;
    config.limits.query_ms = 5_000;
    let world = with(config).await;
    let baton = world.writing().await;
    world.has_streams(0, "it expires").await;
    let got = world.hrana(&baton, json!([execute("commit")])).await;
    failed(&got, 400, "STREAM_EXPIRED");
    let steps = json!({ "baton": baton, "batch": { "steps": [] } });
    failed(&world.posted(CURSOR, &steps).await, 400, "STREAM_EXPIRED");
    world.is_free("expired").await;

    // It hangs up while a statement runs that would never end, and in the middle of a body.
    let endless =
        "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n";
    for half in [false, true] {
        let baton = world.writing().await;
        let body = json!({ "baton": baton, "requests": [execute(endless)] }).to_string();
        let sent = if half { body.len() / 2 } else { body.len() };
        let address = world.base.trim_start_matches("http://");
        let connected = tokio::net::TcpStream::connect(address).await;
        let mut stream = connected.expect("connects");
        let head = format!(
            "POST {PIPELINE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{}",
            world.owner,
            body.len(),
            &body[..sent]
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        drop(stream);
        world.run(database, "delete from t").await;
    }
    world.has_streams(0, "all expire").await;
    world.is_free("hung up").await;
    world.stop().await;
}
