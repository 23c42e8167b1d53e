//! The crate `libsql` as it is, against a running server; the environment is that of libsql.mjs.

use std::error::Error;
use std::time::{Duration, Instant};

use libsql::{Builder, Connection, Database, TransactionBehavior, Value, params};

type Outcome = Result<(), Box<dyn Error>>;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Whether the server is another one: what is Tidelog's own is left out.
fn is_peer() -> bool {
    std::env::var_os("PEER").is_some()
}

async fn database(url: &str, token: &str) -> Result<Database, libsql::Error> {
    let url = variable(url).trim_end_matches('/').to_owned();
    Builder::new_remote(url, token.to_owned()).build().await
}

async fn connect() -> Result<Connection, libsql::Error> {
    let database = database("TIDELOG_URL", &variable("TIDELOG_TOKEN")).await?;
    database.connect()
}

async fn row(db: &Connection, sql: &str) -> Result<Vec<Value>, libsql::Error> {
    let mut rows = db.query(sql, ()).await?;
    let row = rows.next().await?.expect("a row");
    (0..row.column_count())
        .map(|at| row.get_value(at))
        .collect()
}

async fn number(db: &Connection, sql: &str) -> Result<i64, libsql::Error> {
    match row(db, sql).await?.remove(0) {
        Value::Integer(number) => Ok(number),
        other => panic!("{sql}: {other:?}"),
    }
}

/// The error of what must fail holds this text.
fn refused<T>(outcome: Result<T, libsql::Error>, text: &str) {
    match outcome {
        Ok(_) => panic!("it was not refused: {text}"),
        Err(error) => assert!(error.to_string().contains(text), "{error}"),
    }
}

async fn values_pass() -> Outcome {
    let db = connect().await?;
    db.execute("create table rv(a, b, c, d, e, f)", ()).await?;
    let given = vec![
        Value::Integer(i64::MAX),
        Value::Integer(i64::MIN),
        Value::Blob(vec![0, 255]),
        Value::Null,
        Value::Text("x\u{1f600}".to_owned()),
        Value::Real(1.5),
    ];
    let changed = db
        .execute("insert into rv values(?, ?, ?, ?, ?, ?)", given.clone())
        .await?;
    assert_eq!(changed, 1);
    assert_eq!(row(&db, "select * from rv").await?, given);
    let named = db
        .query("select :x as x", libsql::named_params! { ":x": 7 })
        .await?
        .next()
        .await?;
    assert_eq!(named.expect("a row").get::<i64>(0)?, 7);
    db.execute("create table ri(a integer primary key, b)", ())
        .await?;
    db.execute("insert into ri(b) values('x')", ()).await?;
    assert_eq!(db.last_insert_rowid(), 1);
    let mut none = db
        .query("select * from ri where a > ?", params![100])
        .await?;
    assert!(none.next().await?.is_none());
    Ok(())
}

async fn transactions_commit_and_roll_back() -> Outcome {
    let db = connect().await?;
    db.execute("create table rt(a unique)", ()).await?;
    let kept = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .await?;
    kept.execute("insert into rt values(1)", ()).await?;
    assert_eq!(number(&kept, "select count(*) from rt").await?, 1);
    kept.commit().await?;
    let undone = db.transaction().await?;
    undone.execute("insert into rt values(2)", ()).await?;
    undone.rollback().await?;
    let dropped = db.transaction().await?;
    dropped.execute("insert into rt values(3)", ()).await?;
    drop(dropped);
    let other = connect().await?;
    assert_eq!(number(&other, "select count(*) from rt").await?, 1);
    refused(
        db.execute("insert into rt values(1)", ()).await,
        "UNIQUE constraint failed",
    );
    Ok(())
}

async fn batches_migrate() -> Outcome {
    let db = connect().await?;
    db.execute_batch(
        "create table rb(a integer primary key); \
         create trigger rbt after insert on rb begin select 1; end; \
         alter table rb add column b default 5; insert into rb(a) values(1);",
    )
    .await?;
    assert_eq!(number(&db, "select b from rb").await?, 5);
    db.execute_transactional_batch("insert into rb(a) values(2); insert into rb(a) values(3);")
        .await?;
    assert_eq!(number(&db, "select count(*) from rb").await?, 3);
    let failed = db
        .execute_transactional_batch("insert into rb(a) values(4); insert into rb(a) values(1);")
        .await;
    refused(failed, "UNIQUE constraint failed");
    let other = connect().await?;
    assert_eq!(number(&other, "select count(*) from rb").await?, 3);
    Ok(())
}

async fn large_results_come_by_cursor() -> Outcome {
    let db = connect().await?;
    let sql = "with recursive n(x) as (select 1 union all select x + 1 from n limit 50000) \
               select x, hex(zeroblob(100)) from n";
    let mut rows = db.query(sql, ()).await?;
    let mut count = 0;
    while let Some(row) = rows.next().await? {
        count += 1;
        assert_eq!(row.get::<i64>(0)?, count);
        assert_eq!(row.get_str(1)?.len(), 200);
    }
    assert_eq!(count, 50_000);
    Ok(())
}

async fn twenty_at_once() -> Outcome {
    connect().await?.execute("create table rc(a)", ()).await?;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..20_i64 {
        clients.spawn(async move {
            let db = connect().await.expect("connects");
            let inserted = db
                .execute("insert into rc values(?)", params![client])
                .await;
            assert_eq!(inserted.expect("inserted"), 1);
            let sql = format!("select count(*) from rc where a = {client}");
            assert_eq!(number(&db, &sql).await.expect("read"), 1);
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    let sql = "select count(distinct a) from rc";
    assert_eq!(number(&connect().await?, sql).await?, 20);
    Ok(())
}

async fn errors_are_told() -> Outcome {
    let db = connect().await?;
    refused(
        db.query("select * from nowhere", ()).await.map(|_| ()),
        "no such table: nowhere",
    );
    refused(
        db.execute("insert into nowhere values(1)", ()).await,
        "no such table",
    );
    if is_peer() {
        return Ok(());
    }
    db.execute("create table re(a)", ()).await?;
    let made: serde_json::Value = ureq::post(format!(
        "{}/v1/namespaces/default/tokens",
        variable("TIDELOG_API")
    ))
    .header(
        "authorization",
        format!("Bearer {}", variable("TIDELOG_TOKEN")),
    )
    .send_json(serde_json::json!({ "scopes": ["read"] }))?
    .body_mut()
    .read_json()?;
    let reader = made["token"].as_str().expect("a token");
    let reader = database("TIDELOG_URL", reader).await?.connect()?;
    assert_eq!(number(&reader, "select count(*) from re").await?, 0);
    refused(
        reader.execute("insert into re values(1)", ()).await,
        "BLOCKED",
    );
    let foreign = database("TIDELOG_URL", "tl_live_wrong").await?.connect()?;
    assert!(foreign.query("select 1", ()).await.is_err());
    Ok(())
}

async fn an_unused_stream_expires_and_leaves_no_lock() -> Outcome {
    if is_peer() {
        return Ok(());
    }
    let token = variable("TIDELOG_SHORT_TOKEN");
    let short = async || database("TIDELOG_SHORT_URL", &token).await?.connect();
    let db = short().await?;
    db.execute("create table rx(a)", ()).await?;
    let slow = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .await?;
    slow.execute("insert into rx values(1)", ()).await?;
    // Waits for the lock, and has it once the transaction was rolled back.
    short()
        .await?
        .execute("insert into rx values(2)", ())
        .await?;
    let deadline = Instant::now() + Duration::from_mins(3);
    loop {
        let text = ureq::get(format!("{}/metrics", variable("TIDELOG_SHORT_API")))
            .call()?
            .body_mut()
            .read_to_string()?;
        if text.contains("\ntidelog_client_streams 0\n") {
            break;
        }
        assert!(Instant::now() < deadline, "the stream never ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = slow.execute("insert into rx values(3)", ()).await;
    refused(late, "STREAM_EXPIRED");
    drop(slow);
    let left = row(&short().await?, "select group_concat(a) from rx").await?;
    assert_eq!(left, [Value::Text("2".to_owned())]);
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    macro_rules! run {
        ($($test:ident)*) => {$(
            $test().await.map_err(|error| format!("{}: {error}", stringify!($test)))?;
            println!("ok {}", stringify!($test));
        )*};
    }
    run! {
        values_pass
        transactions_commit_and_roll_back
        batches_migrate
        large_results_come_by_cursor
        twenty_at_once
        errors_are_told
        an_unused_stream_expires_and_leaves_no_lock
    }
    Ok(())
}
