//! A whole node on one thread: with the inline executor every statement, merge and upload runs where it is asked for.
//! What a simulation needs to decide the order of everything; nothing may wait for a thread that is not there.

mod rig;

use std::sync::Arc;

use rig::{PATIENCE, numbers, orders, restored, run, settings, until, verify};
use tidelog_engine::bucket::At;
use tidelog_engine::executor::{Executor, Inline, Work};
use tidelog_engine::operations::OperationState;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{Durability, Engine, Parts};

/// Inline, and on the thread of the test alone.
#[derive(Debug)]
struct Here(std::thread::ThreadId);

impl Executor for Here {
    fn run(&self, work: Work) {
        assert_eq!(
            std::thread::current().id(),
            self.0,
            "work on another thread"
        );
        Inline.run(work);
    }
}

fn parts() -> Parts {
    Parts {
        executor: Arc::new(Here(std::thread::current().id())),
        ..Parts::production()
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_lives_on_one_thread() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = Engine::start(settings(folder.path()), parts()).await;
    let engine = engine.expect("start");
    let database = orders(&engine).await;
    run(&database, "CREATE TABLE t(a)", Durability::Memory).await;
    let one = run(&database, "INSERT INTO t VALUES(1)", Durability::Remote).await;
    for n in 2..50 {
        let sql = format!("INSERT INTO t VALUES({n})");
        run(&database, &sql, Durability::Local).await;
    }
    let two = run(&database, "INSERT INTO t VALUES(50)", Durability::Remote).await;
    let to = RestoreTarget::At(At::Bookmark(one));
    let mut rewound = database.rewind(Rewind::to(to)).await.expect("accepted");
    let ended = rewound.wait(PATIENCE).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    let sum = "SELECT sum(a) FROM t";
    assert_eq!(numbers(&database, sum).await, [1]);
    let fork = Fork {
        at: At::Bookmark(two),
        ..Fork::named("fork")
    };
    let ended = database
        .fork(fork)
        .await
        .expect("accepted")
        .wait(PATIENCE)
        .await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    let forked = engine.database(database.row().namespace, "fork").await;
    assert_eq!(numbers(&forked.expect("the fork"), sum).await, [1275]);
    engine.shutdown().await.expect("shutdown");

    let engine = Engine::start(settings(folder.path()), parts()).await;
    let engine = engine.expect("start again");
    let database = orders(&engine).await;
    assert_eq!(numbers(&database, sum).await, [1]);
    let last = run(&database, "INSERT INTO t VALUES(7)", Durability::Remote).await;
    until("everything is shipped", || async {
        engine.durable_of(database.row().id) == Some(last)
    })
    .await;
    engine.shutdown().await.expect("shutdown");

    let bucket = rig::bucket(folder.path()).await.expect("bucket");
    let found = bucket.find("acme", "orders").await.expect("the database");
    let (_folder, file) = restored(&bucket, &found, At::Bookmark(two))
        .await
        .expect("restored");
    let sum: i64 = file
        .query_row("SELECT sum(a) FROM t", [], |row| row.get(0))
        .expect("rows");
    assert_eq!(sum, 1275);
    verify(&bucket).await;
}
