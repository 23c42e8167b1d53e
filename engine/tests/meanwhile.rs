//! What is committed while a rewind waits for its turn.

use std::sync::mpsc;
use std::time::Duration;

use tidelog_engine::bucket::At;
use tidelog_engine::operations::OperationState;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{Durability, Engine, Parts};

mod rig;

const COUNT: &str = "SELECT count(*) FROM t";

/// Goal: I3: a rewind whose pages were made already takes back what is committed before it has the gate, too, and an
/// undo brings it back. Method: a transaction that holds the gate writes, changes and grows pages while the rewind waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_while_a_rewind_waits_is_taken_back_too() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = Engine::start(rig::settings(folder.path()), Parts::production());
    let engine = engine.await.expect("start");
    let database = rig::orders(&engine).await;
    rig::run(&database, "CREATE TABLE t(a, b)", Durability::Remote).await;
    let first = "INSERT INTO t VALUES(1, randomblob(9000))";
    let then = rig::run(&database, first, Durability::Remote).await;
    let more = "INSERT INTO t VALUES(2, randomblob(9000))";
    rig::run(&database, more, Durability::Remote).await;

    let writer = database.writer().await.expect("a writer");
    let (entered, inside) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let writing = tokio::task::spawn_blocking(move || {
        let written = writer.transaction(|connection| {
            entered.send(()).expect("the test waits");
            let _ = released.recv();
            connection.execute_batch(
                "UPDATE t SET a = a + 10, b = randomblob(9000);
                 INSERT INTO t VALUES(3, randomblob(90000))",
            )?;
            Ok(())
        });
        written.expect("written");
    });
    inside.await.expect("it has begun");
    let back = Rewind::to(RestoreTarget::At(At::Bookmark(then)));
    let mut handle = database.rewind(back).await.expect("begun");
    rig::until("the rewind waits", async || {
        handle.current().phase == "wait_for_writers"
    })
    .await;
    drop(release);
    writing.await.expect("no panic");
    let ended = handle.wait(Duration::from_mins(1)).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{ended:?}");
    assert_eq!(rig::numbers(&database, COUNT).await, [1]);
    assert_eq!(rig::numbers(&database, "SELECT a FROM t").await, [1]);
    let result = ended.result.expect("a result");
    let id = result["restore"]["id"].as_str().expect("an id");
    let mut undo = database.undo(id, None, None).await.expect("begun");
    let undone = undo.wait(Duration::from_mins(1)).await;
    assert_eq!(undone.state, OperationState::Succeeded, "{undone:?}");
    assert_eq!(
        rig::numbers(&database, "SELECT count(*), sum(a), max(a) FROM t").await,
        [3, 26, 12]
    );
    engine.shutdown().await.expect("shutdown");
}
