//! Hrana over HTTP, as the clients of libSQL and Turso send it: results, streams, cursors, and every bad input.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value as Json, json};
use tidelog_server::config::Preset;

use crate::records::lines;
use crate::world::{Got, World, read};

pub(crate) const PIPELINE: &str = "/default/orders/v3/pipeline";
pub(crate) const CURSOR: &str = "/default/orders/v3/cursor";

pub(crate) fn execute(sql: &str) -> Json {
    json!({ "type": "execute", "stmt": { "sql": sql } })
}

pub(crate) fn close() -> Json {
    json!({ "type": "close" })
}

/// A failure of a whole request: exactly as the clients read it.
pub(crate) fn failed(got: &Got, status: u16, code: &str) {
    assert_eq!(got.status, status, "{got:?}");
    assert_eq!(got.header("content-type"), Some("application/json"));
    assert_eq!(got.body["code"], code, "{got:?}");
    assert!(got.body["message"].is_string() && got.body["error"].is_string());
}

impl World {
    pub(crate) async fn hrana(&self, baton: &Json, requests: Json) -> Got {
        let body = json!({ "baton": baton, "requests": requests });
        read(self.ask(Method::POST, PIPELINE).json(&body)).await
    }

    /// One pipeline that must succeed, its results and the next baton.
    pub(crate) async fn piped(&self, baton: &Json, requests: Json) -> (Vec<Json>, Json) {
        let count = requests.as_array().map(Vec::len);
        let got = self.hrana(baton, requests).await;
        assert_eq!(got.status, 200, "{got:?}");
        let results = got.body["results"].as_array().expect("results").clone();
        assert_eq!(Some(results.len()), count, "one result for each request");
        (results, got.body["baton"].clone())
    }

    /// The lines of a cursor.
    async fn lines(&self, body: Json) -> Vec<Json> {
        let sent = self.ask(Method::POST, CURSOR).json(&body).send().await;
        let response = sent.expect("an answer");
        assert_eq!(response.status(), 200);
        let text = response.text().await.expect("text");
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).expect("a JSON line"))
            .collect()
    }

    pub(crate) async fn count(&self) -> Json {
        let got = self
            .run(
                "/v1/namespaces/default/databases/orders",
                "select count(*) from t",
            )
            .await;
        got.body["rows"][0][0].clone()
    }
}

async fn started() -> World {
    filled(World::start().await).await
}

/// The same on a server of the caller's.
pub(crate) async fn filled(world: World) -> World {
    let database = world.database("orders").await;
    world
        .run(&database, "create table t(a integer primary key, b)")
        .await;
    world
}

pub(crate) fn error_code(result: &Json) -> &str {
    assert_eq!(result["type"], "error", "{result}");
    result["error"]["code"].as_str().expect("a code is a text")
}

#[tokio::test(flavor = "multi_thread")]
async fn values_pass_exactly_and_results_have_every_member() {
    let world = started().await;
    let args = json!([{ "type": "integer", "value": "9223372036854775807" }, { "type": "blob", "base64": "AP8" }]);
    let insert =
        json!({ "type": "execute", "stmt": { "sql": "insert into t values(?, ?)", "args": args } });
    let (results, baton) = world.piped(&Json::Null, json!([insert, close()])).await;
    assert!(baton.is_null());
    let result = &results[0]["response"]["result"];
    assert_eq!(result["affected_row_count"], 1);
    assert_eq!(result["last_insert_rowid"], "9223372036854775807");
    assert_eq!(
        results[1],
        json!({ "type": "ok", "response": { "type": "close" } })
    );
    let sql = "select a, b, null, 1.5, 'x', 9e999, b as c from t where b = :b";
    let named = json!([{ "name": "b", "value": { "type": "blob", "base64": "AP8=" } }]);
    for alone in [true, false] {
        let select = json!({ "type": "execute", "stmt": { "sql": sql, "named_args": named } });
        let requests = if alone {
            json!([select, close()])
        } else {
            json!([select])
        };
        let (results, _) = world.piped(&Json::Null, requests).await;
        let result = &results[0]["response"]["result"];
        let row = json!([[{ "type": "integer", "value": "9223372036854775807" }, { "type": "blob", "base64": "AP8" },
            { "type": "null" }, { "type": "float", "value": 1.5 }, { "type": "text", "value": "x" },
            { "type": "float", "value": null }, { "type": "blob", "base64": "AP8" }]]);
        assert_eq!(result["rows"], row);
        assert_eq!(
            result["cols"][0],
            json!({ "name": "a", "decltype": "INTEGER" })
        );
        for member in ["rows_read", "rows_written", "query_duration_ms"] {
            assert!(!result[member].is_null(), "{member}");
        }
        let rowid = result.get("last_insert_rowid");
        assert_eq!(rowid, Some(&Json::Null), "clients need the member");
    }
    let unwanted = json!({ "type": "execute", "stmt": { "sql": "select 1", "want_rows": false } });
    let (results, _) = world.piped(&Json::Null, json!([unwanted, close()])).await;
    assert_eq!(results[0]["response"]["result"]["rows"], json!([]));
    world.stop().await;
}

/// Goal: what a statement is said to have changed and inserted is its own, not what was done last on the connection
/// that several clients write on. Method: one inserts, the others write without inserting, or insert the same rowid.
#[tokio::test(flavor = "multi_thread")]
async fn counts_and_rowids_are_the_statements_own() {
    let world = started().await;
    let seven = "insert into t(b) values(1), (2), (3), (4), (5), (6), (7)";
    let steps = [
        (seven, 7, json!("7")),
        ("create table u(a integer primary key)", 0, Json::Null),
        ("update t set b = 0 where a < 3", 2, Json::Null),
        ("delete from t where a = 7", 1, Json::Null),
        ("insert or ignore into t values(1, 1)", 0, Json::Null),
        ("pragma user_version = 7", 0, Json::Null),
        ("select 1", 0, Json::Null),
        ("insert into u values(7)", 1, json!("7")),
        (
            "with x as (select 8) replace into u select * from x",
            1,
            json!("8"),
        ),
        ("drop table u", 0, Json::Null),
        ("vacuum", 0, Json::Null),
    ];
    for (sql, changed, rowid) in steps {
        let (results, _) = world
            .piped(&Json::Null, json!([execute(sql), close()]))
            .await;
        let result = &results[0]["response"]["result"];
        assert_eq!(result["affected_row_count"], changed, "{sql}: {results:?}");
        assert_eq!(result["last_insert_rowid"], rowid, "{sql}");
    }
    // On a connection of its own the client's earlier statements count as little.
    let all = [
        "insert into t values(9, 0)",
        "begin immediate",
        "create table v(a)",
        "update t set b = 1 where a = 1",
        "commit",
    ];
    let requests: Vec<Json> = all.iter().copied().map(execute).chain([close()]).collect();
    let (results, _) = world.piped(&Json::Null, json!(requests)).await;
    let told = results[..5].iter().map(|one| {
        let result = &one["response"]["result"];
        (&result["affected_row_count"], &result["last_insert_rowid"])
    });
    let told: Vec<_> = told.collect();
    let (zero, one, null) = (json!(0), json!(1), Json::Null);
    let nine = json!("9");
    assert_eq!(
        told,
        [
            (&one, &nine),
            (&zero, &null),
            (&zero, &null),
            (&one, &null),
            (&zero, &null)
        ]
    );
    let database = "/v1/namespaces/default/databases/orders";
    let got = world.run(database, "update t set b = 2").await;
    assert_eq!(got.body["last_insert_rowid"], Json::Null);
    let got = world.run(database, "insert into t values(12, 0)").await;
    assert_eq!(got.body["last_insert_rowid"], 12);
    world.stop().await;
}

/// Goal: one row takes bounded memory, whoever reads it. Method: many columns of large values, which no limit of a
/// result reaches before the row is whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_many_large_values_is_refused() {
    let world = started().await;
    for (columns, bytes) in [(100, 60_000_000), (100, 2_000_000), (3, 30_000_000)] {
        let values = vec![format!("randomblob({bytes})"); columns].join(", ");
        let sql = format!("select {values}");
        let got = world
            .post(
                "/v1/namespaces/default/databases/orders/query",
                json!({ "sql": sql }),
            )
            .await;
        assert_eq!(
            (got.status, got.code()),
            (413, "result-too-large"),
            "{got:?}"
        );
        assert!(got.body["limit"].is_u64());
        let steps = json!([{ "stmt": { "sql": sql } }, { "stmt": { "sql": "select 1" } }]);
        let lines = world.lines(json!({ "batch": { "steps": steps } })).await;
        let failed = lines.iter().find(|line| line["type"] == "step_error");
        assert_eq!(
            failed.expect("an error")["error"]["code"],
            "RESPONSE_TOO_LARGE"
        );
        let rows = lines.iter().filter(|line| line["type"] == "row");
        assert_eq!(rows.count(), 1, "the next step runs");
    }
    world.stop().await;
}

/// Goal: a row that comes alone is written at once, not with others that come later. Method: a statement that
/// yields a row and then works on for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_written_before_the_next_one_is_there() {
    let endless =
        "(with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n)";
    let short = "(with recursive n(x) as (select 1 union all select x + 1 from n limit 3000000) select count(*) from n)";
    let sql = format!("select {short} union all select {endless}");
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": sql } }] } });
    // On a busy machine the end may come before the row is made, or read: then again, with a later end.
    let (mut text, mut before) = (String::new(), false);
    for query_ms in [3_000, 15_000, 60_000] {
        let mut config = Preset::Development.config();
        config.limits.query_ms = query_ms;
        let world = filled(World::of(config).await).await;
        let sent = world.ask(Method::POST, CURSOR).json(&body).send().await;
        let mut pieces = sent.expect("an answer").bytes_stream();
        text.clear();
        while let Some(piece) = pieces.next().await {
            text.push_str(&String::from_utf8_lossy(&piece.expect("whole")));
            before |= text.contains("\"row\"") && !text.contains("step_error");
        }
        assert!(text.contains("SQLITE_INTERRUPT"), "{text}");
        world.stop().await;
        if before {
            return;
        }
    }
    panic!("the row came with the end: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_lasts_over_requests_and_batons_work_once() {
    let world = started().await;
    let (results, first) = world
        .piped(&Json::Null, json!([execute("begin"), execute("insert into t(b) values(1)"), { "type": "get_autocommit" }]))
        .await;
    assert_eq!(results[2]["response"]["is_autocommit"], false);
    assert_eq!(world.count().await, 0);
    let (_, second) = world
        .piped(&first, json!([execute("insert into t(b) values(2)")]))
        .await;
    assert_ne!(first, second);
    failed(&world.hrana(&first, json!([])).await, 400, "BATON_INVALID");
    let got = world
        .hrana(&second, json!([execute("commit"), close()]))
        .await;
    assert!(got.body["baton"].is_null() && got.header("db-bookmark").is_some());
    assert_eq!(world.count().await, 2);
    failed(
        &world.hrana(&second, json!([execute("select 1")])).await,
        400,
        "STREAM_EXPIRED",
    );
    // Closing rolls back.
    let (_, baton) = world
        .piped(
            &Json::Null,
            json!([execute("begin immediate"), execute("delete from t")]),
        )
        .await;
    world.piped(&baton, json!([close()])).await;
    assert_eq!(world.count().await, 2);
    // An empty pipeline keeps its stream.
    let (_, baton) = world.piped(&Json::Null, json!([])).await;
    assert!(baton.is_string());
    world.piped(&baton, json!([close()])).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_statements_have_the_codes_that_clients_know() {
    let world = started().await;
    world
        .piped(
            &Json::Null,
            json!([execute("insert into t values(1, 1)"), close()]),
        )
        .await;
    let stmt = |stmt: Json| json!({ "type": "execute", "stmt": stmt });
    let nil = json!({ "type": "null" });
    let both =
        json!({ "sql": "select ?", "args": [nil], "named_args": [{ "name": "a", "value": nil }] });
    for (request, code) in [
        (execute("selec 1"), "SQL_PARSE_ERROR"),
        (execute("select none"), "SQL_INPUT_ERROR"),
        (execute("select 1; select 2"), "SQL_MANY_STATEMENTS"),
        (execute(" -- nothing"), "SQL_NO_STATEMENT"),
        (execute("select ?"), "ARGS_INVALID"),
        (execute("attach 'x' as y"), "SQLITE_AUTH"),
        (execute("insert into t values(1, 1)"), "SQLITE_CONSTRAINT"),
        (execute("commit"), "SQLITE_ERROR"),
        (stmt(both), "ARGS_BOTH_POSITIONAL_AND_NAMED"),
        (stmt(json!({})), "SQL_INPUT_ERROR"),
        (
            stmt(json!({ "sql": "select 1", "args": [nil] })),
            "ARGS_INVALID",
        ),
        (
            stmt(json!({ "sql": "select :a", "named_args": [{ "name": "b", "value": nil }] })),
            "ARGS_INVALID",
        ),
        (stmt(json!({ "sql_id": 7 })), "SQL_NOT_STORED"),
    ] {
        for alone in [true, false] {
            let requests = if alone {
                json!([request, close()])
            } else {
                json!([request, execute("select 1"), close()])
            };
            let (results, _) = world.piped(&Json::Null, requests).await;
            assert_eq!(error_code(&results[0]), code, "{request}");
            assert_eq!(
                results.last().expect("some")["type"],
                "ok",
                "later requests run"
            );
        }
    }
    let (results, _) = world
        .piped(
            &Json::Null,
            json!([execute("insert into t values(1, 1)"), close()]),
        )
        .await;
    assert_eq!(
        results[0]["error"]["extended_code"],
        "SQLITE_CONSTRAINT_PRIMARYKEY"
    );
    let (results, _) = world
        .piped(&Json::Null, json!([{ "type": "describe", "sql": "insert into t values(?, :b)" },
            { "type": "describe", "sql": "selec" }, { "type": "sequence", "sql": "delete from t; nonsense; select 1" },
            close()]))
        .await;
    let described = &results[0]["response"]["result"];
    assert_eq!(
        described["params"],
        json!([{ "name": null }, { "name": ":b" }])
    );
    assert_eq!(
        (&described["is_readonly"], &described["is_explain"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(
        error_code(&results[1]),
        "SQL_INPUT_ERROR".replace("INPUT", "PARSE")
    );
    assert_eq!(error_code(&results[2]), "SQL_PARSE_ERROR");
    assert_eq!(world.count().await, 0, "what ran before the error stays");
    let reader = world
        .token(json!({ "kind": "live", "scopes": ["read"] }))
        .await;
    for (sql, good) in [
        ("select 1", true),
        ("delete from t", false),
        ("begin immediate", false),
    ] {
        let body = json!({ "requests": [execute(sql), close()] });
        let sent = world
            .client
            .post(format!("{}{PIPELINE}", world.base))
            .bearer_auth(&reader)
            .json(&body);
        let got = read(sent).await;
        let result = &got.body["results"][0];
        assert_eq!(result["type"] == "ok", good, "{sql}: {got:?}");
        assert!(good || result["error"]["code"] == "BLOCKED", "{got:?}");
    }
    let request = world.ask(Method::PATCH, "/v1/namespaces/default/databases/orders");
    assert_eq!(
        read(request.json(&json!({ "block_writes": true })))
            .await
            .status,
        200
    );
    for requests in [
        json!([execute("delete from t"), close()]),
        json!([execute("delete from t"), execute("select 1")]),
    ] {
        let (results, _) = world.piped(&Json::Null, requests).await;
        assert_eq!(error_code(&results[0]), "BLOCKED");
    }
    world.stop().await;
}

/// Goal: what is refused inside an answer of 200 is on record as if the call had been refused, and so is a change of
/// the schema, whatever way the statement took.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_inside_an_answer_is_on_record() {
    let world = started().await;
    let reader = world
        .token(json!({ "kind": "live", "scopes": ["read"] }))
        .await;
    let batch = |sql: &str| json!({ "steps": [{ "stmt": { "sql": "select 1" } }, { "stmt": { "sql": sql } }] });
    let ways = |sql: &str| {
        [
            (PIPELINE, json!({ "requests": [execute(sql), close()] })),
            (
                PIPELINE,
                json!({ "requests": [execute("select 1"), execute(sql), execute(sql), close()] }),
            ),
            (
                PIPELINE,
                json!({ "requests": [{ "type": "batch", "batch": batch(sql) }, close()] }),
            ),
            (
                PIPELINE,
                json!({ "requests": [{ "type": "sequence", "sql": sql }, close()] }),
            ),
            (
                PIPELINE,
                json!({ "requests": [{ "type": "describe", "sql": sql }, close()] }),
            ),
            (CURSOR, json!({ "batch": batch(sql) })),
        ]
    };
    let told = async |event: &str, code: &str| {
        let all = lines(&world, &format!("&action={event}")).await;
        all.iter()
            .filter(|line| line["error_code"].as_str().unwrap_or_default() == code)
            .count()
    };
    let ask = async |token: &str, (path, body): (&str, Json)| {
        let url = format!("{}{path}", world.base);
        let sent = world.client.post(url).bearer_auth(token).json(&body).send();
        let response = sent.await.expect("an answer");
        assert_eq!(response.status(), 200, "{body}");
        response.text().await.expect("whole")
    };
    for (token, sql, event, code) in [
        (
            &reader,
            "delete from t",
            "authz.denied",
            "insufficient-permissions",
        ),
        (
            &world.owner,
            "attach 'x' as y",
            "security.sql_denied",
            "sql-error",
        ),
    ] {
        for (done, way) in ways(sql).into_iter().enumerate() {
            assert_eq!(told(event, code).await, done, "{way:?}");
            let text = ask(token, way.clone()).await;
            assert!(text.contains("error"), "{text}");
            assert_eq!(told(event, code).await, done + 1, "{way:?}");
        }
    }
    for (way, name) in [(0, "u"), (1, "v"), (2, "w"), (3, "x"), (5, "y")] {
        let before = told("admin.schema_change", "").await;
        let made = ways(&format!("create table if not exists {name}(a)"));
        ask(&world.owner, made[way].clone()).await;
        assert_eq!(told("admin.schema_change", "").await, before + 1, "{way}");
    }
    // What ran before a request failed whole stands, and is on record all the same.
    let late = json!({ "requests": [execute("attach 'x' as y"), { "type": "batch", "batch": { "steps": [
        { "condition": { "type": "ok", "step": 5 }, "stmt": { "sql": "select 1" } }] } }] });
    let count = told("security.sql_denied", "sql-error").await;
    let got = read(world.ask(Method::POST, PIPELINE).json(&late)).await;
    failed(&got, 400, "INVALID_REQUEST");
    assert_eq!(told("security.sql_denied", "sql-error").await, count + 1);
    let patch = world.ask(Method::PATCH, "/v1/namespaces/default/databases/orders");
    assert_eq!(
        read(patch.json(&json!({ "block_writes": true })))
            .await
            .status,
        200
    );
    for (done, way) in ways("delete from t").into_iter().enumerate() {
        if done == 4 {
            // Describing runs nothing.
            continue;
        }
        let before = told("authz.denied", "database-read-only").await;
        ask(&world.owner, way.clone()).await;
        assert_eq!(
            told("authz.denied", "database-read-only").await,
            before + 1,
            "{way:?}"
        );
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_texts_are_bounded_replaced_and_gone_with_the_stream() {
    let world = started().await;
    let store = |id: i32, sql: &str| json!({ "type": "store_sql", "sql_id": id, "sql": sql });
    let run = |id: i32| json!({ "type": "execute", "stmt": { "sql_id": id } });
    let (results, baton) = world
        .piped(
            &Json::Null,
            json!([store(1, "select 1"), run(1), store(1, "select 2"), run(1),
            store(2, &"x".repeat(5_001)), { "type": "close_sql", "sql_id": 9 }]),
        )
        .await;
    assert_eq!(results[3]["response"]["result"]["rows"][0][0]["value"], "2");
    assert_eq!(error_code(&results[4]), "SQL_STORE_TOO_LARGE");
    assert_eq!(results[5]["type"], "ok");
    let many: Vec<Json> = (2..52).map(|id| store(id, "select 1")).collect();
    let (results, baton) = world.piped(&baton, json!(many)).await;
    assert_eq!(error_code(&results[49]), "SQL_STORE_TOO_MANY");
    assert_eq!(results[48]["type"], "ok");
    let (results, _) = world
        .piped(
            &baton,
            json!([{ "type": "close_sql", "sql_id": 1 }, run(1), close()]),
        )
        .await;
    assert_eq!(error_code(&results[1]), "SQL_NOT_STORED");
    world.stop().await;
}

/// The shape of `batch()` of `@libsql/client`.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_follows_its_conditions() {
    let world = started().await;
    let batch = |second: &str| {
        let ok = |step: usize| json!({ "type": "ok", "step": step });
        json!([{ "type": "batch", "batch": { "steps": [
            { "stmt": { "sql": "begin immediate" } },
            { "condition": ok(0), "stmt": { "sql": "insert into t(b) values(1)" } },
            { "condition": ok(1), "stmt": { "sql": second } },
            { "condition": ok(2), "stmt": { "sql": "commit" } },
            { "condition": { "type": "not", "cond": ok(3) }, "stmt": { "sql": "rollback" } },
        ] } }, close()])
    };
    let (results, _) = world
        .piped(&Json::Null, batch("insert into t(b) values(2) returning b"))
        .await;
    let result = &results[0]["response"]["result"];
    assert_eq!(result["step_errors"], json!([null, null, null, null, null]));
    assert!(result["step_results"][4].is_null(), "skipped");
    assert_eq!(result["step_results"][2]["rows"][0][0]["value"], "2");
    let (results, _) = world
        .piped(&Json::Null, batch("insert into none values(2)"))
        .await;
    let result = &results[0]["response"]["result"];
    assert_eq!(result["step_errors"][2]["code"], "SQLITE_ERROR");
    assert!(result["step_results"][3].is_null() && result["step_errors"][3].is_null());
    assert!(result["step_results"][4].is_object(), "rolled back");
    assert_eq!(world.count().await, 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_writes_lines_and_its_baton_goes_on() {
    let world = started().await;
    let steps = json!({ "steps": [{ "stmt": { "sql": "begin" } }, { "stmt": { "sql": "insert into t(b) values('x') returning a" } },
        { "stmt": { "sql": "nonsense" } }, { "condition": { "type": "ok", "step": 2 }, "stmt": { "sql": "select 1" } }] });
    let lines = world.lines(json!({ "batch": steps })).await;
    let kinds: Vec<&str> = lines[1..]
        .iter()
        .map(|line| line["type"].as_str().expect("a type"))
        .collect();
    let expected = [
        "step_begin",
        "step_end",
        "step_begin",
        "row",
        "step_end",
        "step_error",
        "replication_index",
    ];
    assert_eq!(kinds, expected);
    assert_eq!(
        lines[4]["row"],
        json!([{ "type": "integer", "value": "1" }])
    );
    assert_eq!(lines[5]["last_insert_rowid"], "1");
    assert_eq!(lines[6]["error"]["code"], "SQL_PARSE_ERROR");
    let baton = &lines[0]["baton"];
    let (results, _) = world
        .piped(
            baton,
            json!([{ "type": "get_autocommit" }, execute("commit"), close()]),
        )
        .await;
    assert_eq!(results[0]["response"]["is_autocommit"], false);
    assert_eq!(world.count().await, 1);
    let bad = json!({ "batch": { "steps": [{ "condition": { "type": "ok", "step": 5 }, "stmt": { "sql": "x" } }] } });
    failed(
        &read(world.ask(Method::POST, CURSOR).json(&bad)).await,
        400,
        "INVALID_REQUEST",
    );
    failed(
        &read(world.ask(Method::POST, CURSOR).json(&json!({}))).await,
        400,
        "INVALID_REQUEST",
    );
    world.stop().await;
}

/// Goal: a result of any size passes, and one that nobody reads neither fills memory nor keeps a connection or the
/// lock. Method: over 100 MB of rows read whole, more than either limit; the same begun inside a transaction that writes, and let go.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_larger_than_every_limit_streams_and_one_let_go_ends() {
    let world = started().await;
    let rows = 120_000;
    let sql = format!(
        "with recursive n(x) as (select 1 union all select x + 1 from n limit {rows}) select x, zeroblob(700) from n"
    );
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": sql } }] } });
    let sent = world.ask(Method::POST, CURSOR).json(&body).send().await;
    let mut pieces = sent.expect("an answer").bytes_stream();
    let (mut bytes, mut lines, mut tail) = (0, 0, Vec::new());
    while let Some(piece) = pieces.next().await {
        let piece = piece.expect("whole");
        bytes += piece.len();
        lines += newlines(&piece);
        tail = piece.to_vec();
    }
    assert!(bytes > 100 << 20, "{bytes}");
    assert_eq!(lines, rows + 4);
    assert!(String::from_utf8_lossy(&tail).ends_with("\"type\":\"replication_index\"}\n"));
    // The baton that came first may still be used.
    let kept = world.engine.stream_count();
    assert!(kept <= 1, "{kept}");
    let body = json!({ "batch": { "steps": [{ "stmt": { "sql": "begin immediate" } }, { "stmt": { "sql": sql } }] } });
    let sent = world.ask(Method::POST, CURSOR).json(&body).send().await;
    let mut pieces = sent.expect("an answer").bytes_stream();
    pieces.next().await.expect("a piece").expect("sound");
    drop(pieces);
    let insert = json!([execute("insert into t(b) values(1)"), close()]);
    let (results, _) = world.piped(&Json::Null, insert).await;
    assert_eq!(results[0]["type"], "ok", "{results:?}");
    for _ in 0..12_000 {
        if world.engine.stream_count() <= kept {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = world.engine.stream_count();
    assert!(left <= kept, "{left} streams, {kept} before");
    world.stop().await;
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count() - 1
}

/// Goal: 20 clients in transactions of several requests over HTTP never meet each other's (an earlier design handed
/// out a connection that was still inside one).
#[tokio::test(flavor = "multi_thread")]
async fn twenty_clients_in_transactions() {
    let world = std::sync::Arc::new(started().await);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..20 {
        let world = std::sync::Arc::clone(&world);
        clients.spawn(async move {
            for round in 0..3 {
                // A loaded machine may keep somebody waiting for longer than a writer waits for the gate.
                let baton = loop {
                    let begin = json!([execute("begin immediate")]);
                    let (results, baton) = world.piped(&Json::Null, begin).await;
                    if results[0]["type"] == "ok" {
                        break baton;
                    }
                    assert_eq!(error_code(&results[0]), "TRANSACTION_BUSY");
                };
                let insert =
                    json!([execute("insert into t(b) values('x')"), { "type": "get_autocommit" }]);
                let (results, baton) = world.piped(&baton, insert).await;
                assert_eq!(results[0]["type"], "ok", "{client}/{round}: {results:?}");
                assert_eq!(results[1]["response"]["is_autocommit"], false);
                let (results, _) = world
                    .piped(&baton, json!([execute("commit"), close()]))
                    .await;
                assert_eq!(results[0]["type"], "ok", "{client}/{round}: {results:?}");
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client fails");
    }
    assert_eq!(world.count().await, 60);
    std::sync::Arc::into_inner(world)
        .expect("all ended")
        .stop()
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_found_by_path_header_host_and_default() {
    let mut config = Preset::Development.config();
    config.http.database_hosts = vec!["db.example.org".to_owned()];
    let world = World::of(config.clone()).await;
    for name in ["orders", "v9"] {
        world.database(name).await;
    }
    let body = json!({ "requests": [execute("select 1"), close()] });
    let ask = |path: &str| -> RequestBuilder { world.ask(Method::POST, path).json(&body) };
    for path in [
        "/default/orders/v2/pipeline",
        "/default/orders/v3/pipeline",
        "/orders/v2/pipeline",
        "/orders/v3/pipeline",
        "/dev/orders/v2/pipeline",
        "/dev/orders/v3/pipeline",
    ] {
        assert_eq!(read(ask(path)).await.status, 200, "{path}");
    }
    let got = read(ask("/v2/pipeline")).await;
    failed(&got, 404, "NOT_FOUND");
    assert!(
        got.body["message"]
            .as_str()
            .expect("a text")
            .contains("slash")
    );
    assert_eq!(
        read(ask("/v2/pipeline").header("x-namespace", "orders"))
            .await
            .status,
        200
    );
    assert_eq!(
        read(ask("/v3/pipeline").header("host", "orders.db.example.org:80"))
            .await
            .status,
        200
    );
    failed(
        &read(ask("/v3/pipeline").header("host", "none.db.example.org")).await,
        404,
        "DATABASE_NOT_FOUND",
    );
    // The path counts before the header, the header before the host.
    let (header, host) = ("x-namespace", "host");
    for (path, namespace, name, status) in [
        (
            "/default/orders/v3/pipeline",
            "none",
            "none.db.example.org",
            200,
        ),
        (
            "/default/none/v3/pipeline",
            "orders",
            "orders.db.example.org",
            404,
        ),
        ("/v3/pipeline", "orders", "none.db.example.org", 200),
        ("/v3/pipeline", "none", "orders.db.example.org", 404),
    ] {
        let asked = ask(path).header(header, namespace).header(host, name);
        let got = read(asked).await;
        assert_eq!(got.status, status, "{path} {namespace} {name}: {got:?}");
    }
    for bad in ["../orders", "A", "v1", "", "orders/../v9", "a\u{7f}"] {
        let Ok(value) = reqwest::header::HeaderValue::from_str(bad) else {
            continue;
        };
        let got = read(ask("/v3/pipeline").header(header, value)).await;
        assert!((400..500).contains(&got.status), "{bad:?}: {got:?}");
    }
    // A token for one database reaches no other by any of them.
    let bound = world
        .token(json!({ "scopes": ["read"], "databases": ["v9"] }))
        .await;
    for (path, name, value) in [
        ("/default/orders/v3/pipeline", "x-other", "x"),
        ("/orders/v3/pipeline", "x-other", "x"),
        ("/v3/pipeline", header, "orders"),
        ("/v3/pipeline", host, "orders.db.example.org"),
    ] {
        let sent = world.client.post(format!("{}{path}", world.base));
        let sent = sent.bearer_auth(&bound).header(name, value).json(&body);
        failed(&read(sent).await, 403, "INSUFFICIENT_PERMISSIONS");
    }
    let sent = world.client.post(format!("{}/v3/pipeline", world.base));
    let sent = sent.bearer_auth(&bound).header(header, "v9").json(&body);
    assert_eq!(read(sent).await.status, 200);
    failed(
        &read(ask("/v3/pipeline").header("host", "orders.example.org")).await,
        404,
        "NOT_FOUND",
    );
    failed(
        &read(ask("/none/v3/pipeline")).await,
        404,
        "DATABASE_NOT_FOUND",
    );
    // Probes need no token; a version that is not spoken is not there.
    for (path, status) in [
        ("/v2", 200),
        ("/v3", 200),
        ("/default/orders/v2", 200),
        ("/orders/v3", 200),
        ("/v3-protobuf", 404),
        ("/default/orders/v3-protobuf", 404),
    ] {
        let got = read(world.client.get(format!("{}{path}", world.base))).await;
        assert_eq!(got.status, status, "{path}");
    }
    world.stop().await;
    config.http.default_database = Some("orders".to_owned());
    let world = World::of(config).await;
    world.database("orders").await;
    let sent = world.ask(Method::POST, "/v2/pipeline").json(&body);
    assert_eq!(read(sent).await.status, 200);
    let sent = world.ask(Method::POST, "/v2/pipeline").json(&body);
    let got = read(sent.header(host, "none.db.example.org")).await;
    failed(&got, 404, "DATABASE_NOT_FOUND");
    world.stop().await;
}

/// Goal: a stream goes on through a rewind between its transactions, and inside one that reads it keeps its state
/// and cannot write to it (HAZARDS W0d).
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_lives_on_through_a_rewind() {
    let world = started().await;
    let (_, baton) = world
        .piped(
            &Json::Null,
            json!([execute("insert into t(b) values('kept')")]),
        )
        .await;
    let database = "/v1/namespaces/default/databases/orders";
    let at = world
        .get(&format!(
            "{database}/bookmarks/current?wait_durable_ms=5000"
        ))
        .await;
    let store = json!({ "type": "store_sql", "sql_id": 1, "sql": "select b from t" });
    let (_, baton) = world
        .piped(&baton, json!([execute("drop table t"), store]))
        .await;
    let made = execute("create table t(a integer primary key, b)");
    let (_, other) = world
        .piped(
            &Json::Null,
            json!([made, execute("insert into t(b) values('seen')")]),
        )
        .await;
    // One that reads in a transaction keeps what it sees.
    let select = execute("select b from t");
    let value = |result: &Json| result["response"]["result"]["rows"][0][0]["value"].clone();
    let (results, other) = world.piped(&other, json!([execute("begin"), select])).await;
    assert_eq!(value(&results[1]), "seen");
    let target = json!({ "target": { "bookmark": at.body["bookmark"] } });
    let done = world.keyed(&format!("{database}/restores"), target).await;
    assert_eq!(done.status, 200, "{done:?}");
    let stored = json!({ "type": "execute", "stmt": { "sql_id": 1 } });
    let (results, _) = world.piped(&baton, json!([stored, close()])).await;
    assert_eq!(
        value(&results[0]),
        "kept",
        "a stored text, on the restored state"
    );
    let write = execute("insert into t(b) values('late')");
    let (results, other) = world.piped(&other, json!([select, write])).await;
    assert_eq!(value(&results[0]), "seen");
    assert_eq!(error_code(&results[1]), "TRANSACTION_BUSY");
    let (results, _) = world
        .piped(&other, json!([execute("rollback"), select, close()]))
        .await;
    assert_eq!(value(&results[1]), "kept");
    world.stop().await;
}
