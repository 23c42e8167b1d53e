//! What the tests of real processes share: writers under load, and the bucket read without a server.

#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod s3;

use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_testkit::counting::{Acknowledged, Counting, FOUND, Found};
use tidelog_testkit::sealing;
use tidelog_testkit::server::{PATIENCE, Server, deadline};
use tidelog_wal::Position;

/// Databases and the levels their writers ask for.
const WRITERS: [(&str, &[&str]); 6] = [
    ("memory", &["memory"]),
    ("local", &["local"]),
    ("remote", &["remote"]),
    ("mixed", &["memory", "local", "memory", "remote", "local"]),
    ("large", &["local", "memory"]),
    ("larger", &["remote", "memory"]),
];

/// The seed of a run: `TIDELOG_TEST_SEED`, or chance; and the rounds: `TIDELOG_KILL_ROUNDS`, or the default.
pub(crate) fn plan(rounds: usize) -> (u64, StdRng, usize) {
    let wanted = |name: &str| std::env::var(name).ok()?.parse().ok();
    let seed = wanted("TIDELOG_TEST_SEED").unwrap_or_else(rand::random);
    let rounds = wanted("TIDELOG_KILL_ROUNDS").map_or(rounds, |n| usize::try_from(n).unwrap_or(1));
    (seed, StdRng::seed_from_u64(seed), rounds)
}

/// Makes every writer with its database.
pub(crate) async fn writers(server: &Server) -> Vec<Counting> {
    let mut made = Vec::new();
    for (database, levels) in WRITERS {
        // Past a megabyte a commit is spooled to a file of its own.
        let large = match database {
            "large" => 1_300_000,
            "larger" => 2_200_000,
            _ => 20_000,
        };
        made.push(Counting::create(&server.address(), database, levels, large).await);
    }
    made
}

/// Lets every writer write, and kills the server at a random instant.
pub(crate) async fn killed_under_load(
    server: Server,
    writers: Vec<Counting>,
    chance: &mut StdRng,
) -> Vec<Counting> {
    let all = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = writers
        .into_iter()
        .map(|mut writer| {
            let (address, all) = (server.address(), Arc::clone(&all));
            tokio::spawn(async move {
                writer.write_until_it_dies(&address, &all).await;
                writer
            })
        })
        .collect();
    // In the first commits, between two ships, after many: and then somewhere inside a commit or a ship.
    let scale: u32 = chance.random_range(3..10);
    let wanted = chance.random_range(1..1_usize << scale);
    let late = deadline(PATIENCE);
    while all.load(Ordering::Relaxed) < wanted {
        assert!(!late(), "the writers make no progress: {}", server.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_micros(chance.random_range(0..20_000))).await;
    server.kill();
    let mut back = Vec::new();
    for task in tasks {
        back.push(task.await.expect("a writer saw only what it may see"));
    }
    back
}

/// Restores a bookmark from the bucket alone: what is in it, or the code of the refusal.
pub(crate) async fn restored(
    bucket: &Bucket,
    database: &str,
    bookmark: &str,
) -> Result<Found, String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("restored.db");
    let position = Position::from_str(bookmark).expect("a server answers bookmarks");
    let named = bucket.find("default", database).await;
    let named = named.expect("the bucket knows the database");
    let at = At::Bookmark(position);
    match bucket.restore(&named, at, &file, false).await {
        Ok(_) => Ok(read(&file)),
        Err(error) => Err(error.code().as_str().to_owned()),
    }
}

/// A random few of what was acknowledged, and always the last.
pub(crate) fn some<'a>(
    acknowledged: &'a [Acknowledged],
    chance: &mut StdRng,
) -> Vec<&'a Acknowledged> {
    let Some(last) = acknowledged.last() else {
        return Vec::new();
    };
    let mut picked = vec![last];
    for _ in 0..3 {
        picked.push(&acknowledged[chance.random_range(0..acknowledged.len())]);
    }
    picked
}

fn read(file: &Path) -> Found {
    let connection = Connection::open(file).expect("a restored file opens");
    let check: String = connection
        .query_row("pragma integrity_check", (), |row| row.get(0))
        .expect("a restored file can be checked");
    assert_eq!(check, "ok", "{}", file.display());
    let found = connection.query_row(FOUND, (), |row| {
        Ok(Found(row.get(0)?, row.get(1)?, row.get(2)?))
    });
    found.expect("a restored file can be read")
}

/// Runs `tidelog verify` on a store: everything in it is whole.
pub(crate) fn verify(store: &str) {
    let verified = std::process::Command::new(tidelog_testkit::server::binary())
        .args(["verify", "--store", store, "--level", "restore"])
        .envs(sealing::environment())
        .output();
    let verified = verified.expect("the program runs");
    assert!(
        verified.status.success(),
        "{}{}",
        String::from_utf8_lossy(&verified.stdout),
        String::from_utf8_lossy(&verified.stderr)
    );
}

/// Restores the newest stored state of a database from the bucket alone.
pub(crate) async fn restore_latest(store: &str, database: &str, out: &Path) {
    let opened = Bucket::open_with_keys(store, &sealing::masters()).await;
    let bucket = opened.expect("the bucket opens");
    let named = bucket.find("default", database).await;
    let named = named.expect("the bucket knows the database");
    let restored = bucket.restore(&named, At::Latest, out, false).await;
    restored.expect("the newest state restores");
}
