//! `kill -9` of the real server at random instants, real clients recording what was acknowledged
//! (RELIABILITY 3; I1, I2, I3). `TIDELOG_KILL_ROUNDS` raises the count, `TIDELOG_TEST_SEED` repeats a run.

mod world;

use tidelog_engine::bucket::Bucket;
use tidelog_testkit::counting::Found;
use tidelog_testkit::sealing::masters;
use tidelog_testkit::server::Launch;

/// Goal: what was answered at any level survives the death of the process. Method: writers at every level, small
/// and spooled commits, killed and started again on the same folder; at the end the folder is not used any more:
/// the bookmarks of all rounds are restored from the bucket alone.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_survive_kill_nine_on_the_same_disk() {
    let (seed, mut chance, rounds) = world::plan(20);
    let home = tempfile::tempdir().expect("a temporary folder");
    let launch = Launch::below(home.path());
    let mut server = launch.start().await;
    let mut writers = world::writers(&server).await;
    for round in 0..rounds {
        writers = world::killed_under_load(server, writers, &mut chance).await;
        // Half of the lives close idle databases at once, so that recovery meets files in every state.
        server = match round % 2 {
            0 => launch.clone().with(&["--idle-close-ms", "5"]).start().await,
            _ => launch.start().await,
        };
        let when = format!("seed {seed}, round {round}");
        for writer in &mut writers {
            let least = writer.last(&["memory", "local", "remote"]);
            let lost = writer.check(&server.address(), least, &when).await;
            assert_eq!(lost.len(), 0, "{when}");
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
            assert_eq!(
                found,
                Ok(Found::prefix(row.row)),
                "seed {seed}: {} {row:?}",
                writer.database
            );
        }
    }
}

/// Goal: one process a folder. Method: a second start on a folder in use; the first goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_folder_is_refused() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let launch = Launch::below(home.path());
    let first = launch.start().await;
    let before = std::fs::read(launch.data().join("node.json")).expect("a folder has an identity");
    for arguments in [&[][..], &["--take-over", "all"]] {
        let (failed, said) = launch.clone().with(arguments).refused();
        assert!(failed, "{said}");
        assert!(
            said.contains(&launch.data().display().to_string()),
            "it names the folder: {said}"
        );
    }
    let after = std::fs::read(launch.data().join("node.json")).expect("a folder has an identity");
    assert_eq!(before, after, "a refused start changes nothing");
    let address = first.address();
    let mut writers = world::writers(&first).await;
    let status = writers[0].write(&address, "remote").await;
    assert_eq!(status.map(|status| status.as_u16()), Some(200));
}
