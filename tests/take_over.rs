//! Another server goes on from the bucket: after the loss of the machine, and beside a zombie that still runs
//! (RELIABILITY 3 and 8; I1 to I4). `TIDELOG_KILL_ROUNDS` and `TIDELOG_TEST_SEED` as in `kill9`.

mod world;

use std::path::Path;
use std::process::Command;

use serde_json::json;
use tidelog_engine::bucket::Bucket;
use tidelog_testkit::counting::{Acknowledged, Counting, Found};
use tidelog_testkit::proxy::{Fault, Gate, Match};
use tidelog_testkit::s3;
use tidelog_testkit::sealing::masters;
use tidelog_testkit::server::{Launch, PATIENCE, Server, deadline};

/// Goal: `remote` survives the machine; the rest is a prefix; a bookmark is its state or an error. Method: kill,
/// delete the data folder, be refused, take over; at the end bookmarks of rows kept and of rows lost from the
/// bucket alone.
#[tokio::test(flavor = "multi_thread")]
async fn remote_rows_survive_the_loss_of_the_machine() {
    let (seed, mut chance, rounds) = world::plan(5);
    let home = tempfile::tempdir().expect("a temporary folder");
    let launch = Launch::below(home.path());
    let take_over = launch.clone().with(&["--take-over", "all"]);
    let mut server = launch.start().await;
    let mut writers = world::writers(&server).await;
    let mut lost: Vec<(&str, Acknowledged)> = Vec::new();
    for round in 0..rounds {
        let when = format!("seed {seed}, round {round}");
        writers = world::killed_under_load(server, writers, &mut chance).await;
        std::fs::remove_dir_all(launch.data()).expect("the disk is lost");
        let (failed, said) = launch.refused();
        assert!(failed, "{when}: {said}");
        assert!(said.contains("--take-over all"), "{when}: {said}");
        server = take_over.start().await;
        for writer in &mut writers {
            let least = writer.last(&["remote"]);
            let gone = writer.check(&server.address(), least, &when).await;
            lost.extend(gone.into_iter().map(|row| (writer.database, row)));
        }
    }
    for writer in &mut writers {
        let status = writer.write(&server.address(), "remote").await;
        assert_eq!(status.map(|status| status.as_u16()), Some(200));
    }
    server.kill();
    let bucket = Bucket::open_with_keys(launch.store(), &masters())
        .await
        .expect("the bucket opens");
    for writer in &writers {
        for row in world::some(&writer.acknowledged, &mut chance) {
            let found = world::restored(&bucket, writer.database, &row.bookmark).await;
            let wanted = Ok(Found::prefix(row.row));
            assert_eq!(found, wanted, "seed {seed}: {} {row:?}", writer.database);
        }
    }
    for (database, row) in lost.iter().rev().take(8) {
        let found = world::restored(&bucket, database, &row.bookmark).await;
        assert_eq!(
            found,
            Err("bookmark-lost".to_owned()),
            "seed {seed}: {database} {row:?}"
        );
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("cp runs").success());
}

async fn status_of(writer: &mut Counting, server: &Server, level: &'static str) -> Option<u16> {
    let status = writer.write(&server.address(), level).await;
    status.map(|status| status.as_u16())
}

/// Goal: a fenced writer acknowledges no `remote` write and changes nothing a reader sees (I4). Method: the first
/// server is stopped, a second one serves from a copy of its folder, the first is continued with requests waiting.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_copies_of_one_folder() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let original = Launch::below(home.path());
    let zombie = original.start().await;
    let mut by_zombie = Counting::create(&zombie.address(), "orders", &["remote"], 20_000).await;
    for level in ["remote", "memory", "local", "remote"] {
        assert_eq!(status_of(&mut by_zombie, &zombie, level).await, Some(200));
    }
    zombie.signal("STOP");
    let other = home.path().join("copy");
    copy(original.data(), &other);
    let heir = Launch::on(other, original.store().to_owned()).with(&["--take-over", "all"]);
    let heir = heir.start().await;

    // The zombie's clients have sent theirs while it stood still; the heir's count on from the same row.
    let waiting = tokio::spawn({
        let address = zombie.address();
        let (mut sent, mut answers) = (by_zombie.clone(), Vec::new());
        async move {
            for level in ["remote", "local", "memory", "remote", "remote"] {
                let status = sent.write(&address, level).await;
                answers.push((level, status.map(|status| status.as_u16())));
            }
            answers
        }
    });
    let mut by_heir = by_zombie.clone();
    by_heir.check(&heir.address(), 4, "the heir").await;
    for _ in 0..3 {
        assert_eq!(status_of(&mut by_heir, &heir, "remote").await, Some(200));
    }
    zombie.signal("CONT");
    let answers = waiting.await.expect("the zombie answers or hangs up");
    for (level, status) in &answers {
        assert!(
            *level != "remote" || *status != Some(200),
            "a fenced writer acknowledged a remote write: {answers:?}"
        );
    }
    for _ in 0..3 {
        assert_eq!(status_of(&mut by_heir, &heir, "remote").await, Some(200));
    }
    by_heir
        .check(&heir.address(), 10, "beside the zombie")
        .await;
    zombie.kill();
    heir.kill();

    let bucket = Bucket::open_with_keys(original.store(), &masters())
        .await
        .expect("the bucket opens");
    for row in &by_heir.acknowledged {
        let found = world::restored(&bucket, "orders", &row.bookmark).await;
        assert_eq!(found, Ok(Found::prefix(row.row)), "{row:?}");
    }

    // The folder of the zombie is a cache now: it serves what the heir wrote, and keeps its own apart.
    let again = original.clone().with(&["--take-over", "all"]).start().await;
    by_heir
        .check(&again.address(), 10, "the zombie again")
        .await;
    let rows = "select count(*) from t where n > 4 and level <> 'remote'";
    let foreign = again.address().rows("orders", rows).await;
    assert_eq!(foreign, json!([[0]]), "rows of the zombie after its fence");
    assert!(again.log().contains("fenced-"), "{}", again.log());
    assert_eq!(status_of(&mut by_heir, &again, "remote").await, Some(200));
}

/// Writes a row that only the zombie would, and answers the status.
async fn mark(zombie: &Server, level: &str) -> Option<u16> {
    let sql = "insert into t values((select max(n) + 1 from t), 'after the fence', x'00')";
    let body = json!({ "sql": sql, "durability": level });
    let answer = zombie.address().post("databases/orders/query", &body).await;
    answer.map(|(status, _)| status.as_u16())
}

async fn held(gate: &Gate, applied: bool, what: &str) {
    let late = deadline(PATIENCE);
    while (if applied { gate.applied() } else { gate.held() }) == 0 {
        assert!(!late(), "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Goal: as above, when a PUT of the zombie lands after its term was closed (I4). Method: the PUT is held in a proxy,
/// the zombie stopped, an heir serves from a copy of its folder, the zombie goes on and its PUT is let through.
#[tokio::test(flavor = "multi_thread")]
async fn a_put_of_the_zombie_that_lands_after_its_fence_changes_nothing() {
    if !s3::notice() {
        return;
    }
    for store in s3::stores() {
        a_put_lands_late(&store).await;
    }
}

async fn a_put_lands_late(store: &str) {
    let (proxy, through) = world::s3::proxied(store);
    let home = tempfile::tempdir().expect("a temporary folder");
    let original = Launch::on(home.path().join("data"), through).with(&["--take-over", "all"]);
    let zombie = original.start().await;
    let mut by_zombie = Counting::create(&zombie.address(), "orders", &["remote"], 20_000).await;
    for level in ["remote", "local", "memory", "remote"] {
        assert_eq!(status_of(&mut by_zombie, &zombie, level).await, Some(200));
    }
    let gate = Gate::new();
    let journal = Match::new("PUT", "/journal/");
    proxy.rule(journal, Fault::Hold(gate.clone()), usize::MAX);
    let waiting = tokio::spawn({
        let (address, mut sent) = (zombie.address(), by_zombie.clone());
        async move {
            sent.write(&address, "remote")
                .await
                .map(|status| status.as_u16())
        }
    });
    held(&gate, false, "no PUT of the zombie was held").await;
    zombie.signal("STOP");
    let other = home.path().join("copy");
    copy(original.data(), &other);
    let heir = Launch::on(other, store.to_owned()).with(&["--take-over", "all"]);
    let heir = heir.start().await;
    // Row 5 was committed before the fence: the copy of the folder has it, stored or not.
    let mut by_heir = by_zombie.clone();
    let status = by_heir.write(&heir.address(), "remote").await;
    let had_five = status.map(|status| status.as_u16()) != Some(200);
    if had_five {
        by_heir.check(&heir.address(), 5, "the heir").await;
    }
    for _ in 0..3 {
        assert_eq!(status_of(&mut by_heir, &heir, "remote").await, Some(200));
    }

    zombie.signal("CONT");
    gate.release();
    held(&gate, true, "the held PUT never reached the store").await;
    let answer = waiting.await.expect("the zombie answers or hangs up");
    assert_ne!(answer, Some(200), "the held write was acknowledged");
    for level in ["remote", "local", "memory", "remote"] {
        let status = mark(&zombie, level).await;
        assert!(
            level != "remote" || status != Some(200),
            "{level}: {status:?}"
        );
    }
    for _ in 0..3 {
        assert_eq!(status_of(&mut by_heir, &heir, "remote").await, Some(200));
    }
    let last = by_heir.last(&["remote"]);
    by_heir
        .check(&heir.address(), last, "beside the zombie")
        .await;
    zombie.kill();
    heir.kill();

    world::verify(store);
    let opened = Bucket::open_with_keys(store, &masters()).await;
    let bucket = opened.expect("the bucket opens");
    for row in &by_heir.acknowledged {
        let found = world::restored(&bucket, "orders", &row.bookmark).await;
        assert_eq!(found, Ok(Found::prefix(row.row)), "{row:?}");
    }
    // Nothing the zombie wrote after its fence is in the newest state.
    let again = Launch::on(home.path().join("third"), store.to_owned());
    let again = again.with(&["--take-over", "all"]).start().await;
    by_heir
        .check(&again.address(), last, "from the bucket")
        .await;
    let rows = "select count(*) from t where level = 'after the fence'";
    assert_eq!(again.address().rows("orders", rows).await, json!([[0]]));
}
