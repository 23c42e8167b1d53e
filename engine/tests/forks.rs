//! Forks: independent copies by reference, of forks and of the past, that outlive restarts and machines, and
//! share nothing once they are detached.

mod rig;

use std::path::Path;
use std::time::Duration;

use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::operations::{Handle, Operation, OperationState};
use tidelog_engine::travel::branches::Branched;
use tidelog_engine::travel::forks::Fork;
use tidelog_engine::travel::rewind::{RestoreTarget, Rewind};
use tidelog_engine::{
    Code, Database, Durability, Engine, NewDatabase, Parts, Request, Settings, TakeOver, Value,
};
use tidelog_testkit::sealing::masters;
use tidelog_wal::{NamespaceId, Position};

const DEADLINE: Duration = Duration::from_mins(1);

fn settings(folder: &Path) -> Settings {
    Settings {
        data: folder.join("data"),
        store_url: format!("file://{}", folder.join("store").display()),
        ship_interval: Duration::from_millis(20),
        settle_bytes: 4 << 10,
        settle_pause: Duration::from_millis(1),
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        take_over: TakeOver::All,
        master_keys: masters(),
        ..Settings::default()
    }
}

async fn start(folder: &Path) -> Engine {
    let started = Engine::start(settings(folder), Parts::production()).await;
    started.expect("start")
}

async fn run(database: &Database, sql: &str) -> Position {
    let request = request(sql, Durability::Memory);
    let response = database.execute(request).await;
    response.unwrap_or_else(|e| panic!("{sql}: {e:?}")).bookmark
}

fn request(sql: &str, durability: Durability) -> Request {
    rig::request(&[sql], durability)
}

async fn sum(database: &Database) -> i64 {
    let sql = "SELECT coalesce(sum(a), 0) FROM t";
    let response = database.execute(request(sql, Durability::Memory)).await;
    let response = response.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    match response.results[0].rows[0][0] {
        Value::Integer(number) => number,
        ref other => panic!("{other:?}"),
    }
}

async fn done(handle: Result<Handle, tidelog_engine::Error>) -> Operation {
    let operation = handle.expect("accepted").wait(DEADLINE).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation
}

async fn fork(parent: &Database, engine: &Engine, name: &str, at: At) -> Database {
    let fork = Fork {
        at,
        ..Fork::named(name)
    };
    done(parent.fork(fork).await).await;
    engine
        .database(parent.row().namespace, name)
        .await
        .expect("the fork")
}

async fn made(engine: &Engine) -> (NamespaceId, Database) {
    let namespace = engine.namespace_create("acme").await.expect("namespace").id;
    let new = NewDatabase::named("orders");
    let database = engine
        .database_create(namespace, new)
        .await
        .expect("create");
    run(&database, "CREATE TABLE t(a)").await;
    (namespace, database)
}

/// What the bucket alone restores.
async fn stored(folder: &Path, name: &str, at: At) -> Result<i64, tidelog_engine::Error> {
    let url = format!("file://{}", folder.join("store").display());
    let bucket = Bucket::open_with_keys(&url, &masters()).await?;
    let found = bucket.find("acme", name).await?;
    let out = tempfile::tempdir().expect("tempdir");
    let file = out.path().join("out.db");
    bucket.restore(&found, at, &file, false).await?;
    let connection = rusqlite::Connection::open(&file).expect("open");
    let sql = "SELECT coalesce(sum(a), 0) FROM t";
    Ok(connection
        .query_row(sql, [], |row| row.get(0))
        .expect("sum"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_and_its_parent_go_their_own_ways_for_ever() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let (namespace, parent) = made(&engine).await;
    let one = run(&parent, "INSERT INTO t VALUES(1)").await;
    let two = run(&parent, "INSERT INTO t VALUES(10)").await;
    let child = fork(&parent, &engine, "child", At::Bookmark(one)).await;
    assert_eq!((sum(&child).await, sum(&parent).await), (1, 11));
    assert_eq!(child.row().parent.expect("a parent").at, one);
    let own = run(&child, "INSERT INTO t VALUES(100)").await;
    run(&parent, "INSERT INTO t VALUES(1000)").await;
    assert_eq!((sum(&child).await, sum(&parent).await), (101, 1011));

    // The parent's past up to there is the child's past; what came later is not, and the other way round.
    assert_eq!(
        child
            .state_at(At::Bookmark(one))
            .await
            .expect("shared")
            .position,
        one
    );
    let foreign = child.state_at(At::Bookmark(two)).await;
    assert_eq!(
        foreign.expect_err("the parent's").code(),
        Code::BookmarkForeign
    );
    let foreign = parent.state_at(At::Bookmark(own)).await;
    assert_eq!(
        foreign.expect_err("the child's").code(),
        Code::BookmarkForeign
    );

    // A rewind across the point where it began, and back.
    let back = Rewind::to(RestoreTarget::At(At::Bookmark(one)));
    done(child.rewind(back).await).await;
    assert_eq!(sum(&child).await, 1);
    let forth = Rewind::to(RestoreTarget::At(At::Bookmark(own)));
    done(child.rewind(forth).await).await;
    assert_eq!(sum(&child).await, 101);

    // Forks of a fork: at its own state, and at one that is older than itself.
    let grandchild = fork(&child, &engine, "grandchild", At::Bookmark(own)).await;
    let cousin = fork(&child, &engine, "cousin", At::Bookmark(one)).await;
    assert_eq!(
        cousin.row().parent.expect("a parent").database,
        parent.row().id
    );
    run(&grandchild, "INSERT INTO t VALUES(7)").await;
    run(&cousin, "INSERT INTO t VALUES(8)").await;
    let names: Vec<String> = parent
        .forks()
        .await
        .expect("list")
        .into_iter()
        .map(|row| row.name)
        .collect();
    assert_eq!(names, ["child", "cousin"]);
    let taken = parent.fork(Fork::named("child")).await.map(drop);
    assert_eq!(taken.expect_err("taken").code(), Code::NameTaken);
    engine.shutdown().await.expect("shutdown");
    drop((parent, child, grandchild, cousin, engine));

    for (name, total) in [
        ("orders", 1011),
        ("child", 101),
        ("grandchild", 108),
        ("cousin", 9),
    ] {
        assert_eq!(
            stored(folder.path(), name, At::Latest)
                .await
                .expect("restore"),
            total,
            "{name}"
        );
    }
    assert_eq!(
        stored(folder.path(), "grandchild", At::Bookmark(own))
            .await
            .expect("restore"),
        101
    );
    assert_eq!(
        stored(folder.path(), "grandchild", At::Bookmark(one))
            .await
            .expect("restore"),
        1
    );

    // The machine is lost; the next one has them all.
    std::fs::remove_dir_all(folder.path().join("data")).expect("lose the machine");
    let engine = start(folder.path()).await;
    for (name, total) in [
        ("cousin", 9),
        ("grandchild", 108),
        ("child", 101),
        ("orders", 1011),
    ] {
        let database = engine.database(namespace, name).await.expect(name);
        run(&database, "INSERT INTO t VALUES(10000)").await;
        assert_eq!(sum(&database).await, total + 10000, "{name}");
    }
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_fork_needs_its_parent_no_more() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let (namespace, parent) = made(&engine).await;
    let one = run(&parent, "INSERT INTO t VALUES(1)").await;
    let child = fork(&parent, &engine, "child", At::Bookmark(one)).await;
    let own = run(&child, "INSERT INTO t VALUES(100)").await;
    let untouched = fork(&parent, &engine, "untouched", At::Bookmark(one)).await;
    let detached = done(child.detach(None).await).await;
    assert_eq!(detached.result.expect("a result")["detached"], true);
    done(untouched.detach(None).await).await;
    let again = done(child.detach(None).await).await;
    assert_eq!(again.result.expect("a result")["detached"], false);
    assert!(parent.forks().await.expect("list").is_empty());
    let child = engine.database(namespace, "child").await.expect("child");
    assert_eq!(child.row().parent, None);
    let later = run(&child, "INSERT INTO t VALUES(1000)").await;
    let url = parent.row().id.to_string();
    engine.shutdown().await.expect("shutdown");
    drop((parent, child, untouched, engine));

    // Every object of the parent goes away.
    let mut gone = 0;
    let tenants = folder.path().join("store").join("tenants");
    for tenant in std::fs::read_dir(&tenants).expect("tenants") {
        let place = tenant.expect("an entry").path().join(&url);
        if place.exists() {
            std::fs::remove_dir_all(&place).expect("remove");
            gone += 1;
        }
    }
    assert_eq!(gone, 1);
    assert_eq!(
        stored(folder.path(), "child", At::Latest)
            .await
            .expect("restore"),
        1101
    );
    assert_eq!(
        stored(folder.path(), "child", At::Bookmark(own))
            .await
            .expect("restore"),
        101
    );
    assert_eq!(
        stored(folder.path(), "child", At::Bookmark(later))
            .await
            .expect("restore"),
        1101
    );
    assert_eq!(
        stored(folder.path(), "untouched", At::Latest)
            .await
            .expect("restore"),
        1
    );
}

/// A fork that nobody writes to is stored like any other: its first record counts, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_is_only_read_lags_no_longer_than_others() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let (_, parent) = made(&engine).await;
    let child = fork(&parent, &engine, "child", At::Latest).await;
    sum(&child).await;
    let begun = tokio::time::Instant::now();
    loop {
        let at = child.bookmark().await.expect("where it stands");
        if at.durable_bookmark == Some(at.bookmark) {
            assert_eq!((at.lag_commits, at.lag_bytes), (0, 0));
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{at:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_only_fork_has_the_tables_of_then_and_no_rows() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let (namespace, parent) = made(&engine).await;
    run(&parent, "CREATE VIRTUAL TABLE f USING fts5(x)").await;
    let then = run(&parent, "INSERT INTO t VALUES(1)").await;
    run(&parent, "CREATE TABLE later(a)").await;
    let empty = Fork {
        schema_only: true,
        at: At::Bookmark(then),
        ..Fork::named("empty")
    };
    done(parent.fork(empty).await).await;
    let empty = engine.database(namespace, "empty").await.expect("fork");
    assert_eq!((sum(&empty).await, empty.row().parent), (0, None));
    run(&empty, "INSERT INTO f VALUES('text')").await;
    let missing = empty
        .execute(request("SELECT * FROM later", Durability::Memory))
        .await;
    assert_eq!(missing.expect_err("made later").code(), Code::SqlError);
    engine.shutdown().await.expect("shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_made_once_and_made_anew_when_asked() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let (namespace, parent) = made(&engine).await;
    let one = run(&parent, "INSERT INTO t VALUES(1)").await;
    let put = async |at| {
        parent
            .branch_put("Feature/X", at, None, None)
            .await
            .expect("branch")
    };
    let Branched::Begun(handle) = put(At::Bookmark(one)).await else {
        panic!("there was none");
    };
    done(Ok(handle)).await;
    let row = parent.branch("Feature/X").await.expect("the branch");
    assert!(row.name.starts_with("orders--feature-x-"), "{}", row.name);
    assert!(
        matches!(put(At::Bookmark(one)).await, Branched::Stands(stands) if stands.id == row.id)
    );
    let branch = engine.database(namespace, &row.name).await.expect("branch");
    run(&branch, "INSERT INTO t VALUES(5)").await;
    let Branched::Begun(handle) = put(At::Bookmark(one)).await else {
        panic!("it was written to");
    };
    done(Ok(handle)).await;
    let anew = parent.branch("Feature/X").await.expect("the branch");
    assert_ne!(anew.id, row.id);
    let branch = engine
        .database(namespace, &anew.name)
        .await
        .expect("branch");
    assert_eq!(sum(&branch).await, 1);
    parent.branch_delete("Feature/X").await.expect("delete");
    let gone = parent.branch("Feature/X").await;
    assert_eq!(gone.expect_err("deleted").code(), Code::DatabaseNotFound);
    let bad = parent.branch_put("a b", At::Latest, None, None).await;
    assert_eq!(bad.expect_err("a space").code(), Code::NameInvalid);
    engine.shutdown().await.expect("shutdown");
}

/// Goal: a branch belongs to the database it was made of, wherever the state it begins with was written; no other
/// database finds it, or replaces it. Method: a fork's branch at a state of its parent's, beside the parent's own of
/// the same name.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_its_own_databases_though_another_wrote_its_state() {
    let folder = tempfile::tempdir().expect("tempdir");
    let engine = start(folder.path()).await;
    let (namespace, parent) = made(&engine).await;
    let one = run(&parent, "INSERT INTO t VALUES(1)").await;
    let two = run(&parent, "INSERT INTO t VALUES(10)").await;
    let child = fork(&parent, &engine, "child", At::Bookmark(two)).await;
    let put = async |database: &Database, at| {
        let put = database.branch_put("x", At::Bookmark(at), None, None).await;
        match put.expect("branch") {
            Branched::Begun(handle) => drop(done(Ok(handle)).await),
            Branched::Stands(_) => {}
        }
        database.branch("x").await.expect("the branch")
    };
    // Older than the fork, and where it begins.
    for at in [one, two] {
        let of_child = put(&child, at).await;
        let hangs_on = of_child.parent.expect("it shares its state").database;
        assert_eq!(hangs_on, parent.row().id);
        assert_eq!(put(&child, at).await.id, of_child.id, "it stands");
        let none = parent.branch("x").await.expect_err("none of the parent's");
        assert_eq!(none.code(), Code::DatabaseNotFound);
    }
    let of_child = child.branch("x").await.expect("the branch");
    let of_parent = put(&parent, one).await;
    assert_ne!(of_parent.id, of_child.id);
    for (database, branch) in [(&child, &of_child), (&parent, &of_parent)] {
        let listed = database.branches().await.expect("list");
        let ids: Vec<_> = listed.iter().map(|row| row.id).collect();
        assert_eq!(ids, [branch.id]);
    }
    // Independent of both, it is a branch all the same.
    let branch = engine.database(namespace, &of_child.name).await;
    done(branch.expect("the branch").detach(None).await).await;
    assert_eq!(child.branch("x").await.expect("it stands").id, of_child.id);
    let anew = put(&child, two).await;
    assert_ne!(anew.id, of_child.id);
    child.branch_delete("x").await.expect("deleted");
    let still = parent.branch("x").await.expect("another's was deleted");
    assert_eq!(still.id, of_parent.id);
    engine.shutdown().await.expect("shutdown");
}
