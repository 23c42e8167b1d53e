//! The store of the real server is away for a while under load, and comes back (I8). `TIDELOG_OUTAGE_SECONDS` (default
//! 5) and `TIDELOG_OUTAGE_JOURNAL_MIB` (default 8) choose for how long, and how much may wait on disk.

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;
use tidelog_testkit::proxy::{Fault, FaultProxy, Match};
use tidelog_testkit::s3;
use tidelog_testkit::server::{Address, Launch, PATIENCE, deadline};

fn wanted(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What the writer of one database saw.
#[derive(Debug, Default, Clone)]
struct Saw {
    /// The highest row that stands.
    standing: i64,
    /// Answers with 200 while the store was away, before the journal was full.
    ok: u64,
    /// Answers that say committed, but not yet as safe as asked for.
    late: u64,
    /// Answers that say the journal is full.
    full: u64,
    /// Answers with 200 after it was full.
    healed: u64,
}

/// How long a `remote` writer waits for the store: as long as a busy machine may take for what needs no store.
const DURABLE_MS: &str = "15000";

/// Writes until `done`. Anything but what the level promises fails the test. Whoever has seen all that an outage brings
/// counts itself in `met`.
async fn write(
    server: Address,
    level: &'static str,
    done: Arc<AtomicBool>,
    met: Arc<AtomicUsize>,
) -> Saw {
    let mut saw = Saw::default();
    while !done.load(Ordering::SeqCst) {
        let body = json!({
            "sql": "insert into t values(?, randomblob(20000))",
            "params": [saw.standing + 1],
            "durability": level,
        });
        let path = format!("databases/{level}/query");
        let answer = server.post(&path, &body).await;
        let (status, answer) = answer.expect("a server that runs answers");
        match (status, answer["code"].as_str().unwrap_or_default()) {
            (StatusCode::OK, _) if saw.full == 0 => saw.ok += 1,
            (StatusCode::OK, _) => saw.healed += 1,
            (StatusCode::SERVICE_UNAVAILABLE, "journal-full") => {
                saw.full += 1;
                if saw.full == 1 {
                    met.fetch_add(1, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            (StatusCode::GATEWAY_TIMEOUT, "durability-timeout") if level == "remote" => {
                assert_eq!(answer["committed"], true, "{answer}");
                saw.late += 1;
            }
            _ => panic!("{level}: row {}: {status} {answer}", saw.standing + 1),
        }
        saw.standing += 1;
    }
    saw
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test of real processes lives in real time"
)]
async fn outage(store: &str) {
    let seconds = wanted("TIDELOG_OUTAGE_SECONDS", 5);
    let bound = wanted("TIDELOG_OUTAGE_JOURNAL_MIB", 8) << 20;
    let (proxy, through): (FaultProxy, String) = world::s3::proxied(store);
    let home = tempfile::tempdir().expect("a temporary folder");
    let launch = Launch::on(home.path().join("data"), through).with(&[
        "--take-over",
        "all",
        "--durability-timeout-ms",
        DURABLE_MS,
        "--journal-max-bytes",
        &bound.to_string(),
    ]);
    let server = launch.start().await;
    let address = server.address();
    let levels = ["memory", "local", "remote"];
    for level in levels {
        let made = address.post("databases", &json!({ "name": level })).await;
        assert_eq!(made.expect("an answer").0, StatusCode::CREATED);
        address
            .rows(level, "create table t(n integer primary key, b)")
            .await;
    }
    let (done, met) = (
        Arc::new(AtomicBool::new(false)),
        Arc::<AtomicUsize>::default(),
    );
    let began = std::time::Instant::now();
    proxy.rule(Match::any(), Fault::ResetBefore, usize::MAX);
    let writers = levels.map(|level| {
        let (done, met) = (Arc::clone(&done), Arc::clone(&met));
        tokio::spawn(write(server.address(), level, done, met))
    });
    // At least so long, and until the journal is full and every writer has heard it.
    let late = deadline(PATIENCE + Duration::from_secs(seconds));
    let probe = json!({ "sql": "insert into t values(-1, x'00') on conflict do nothing" });
    loop {
        let (status, answer) = address
            .post("databases/memory/query", &probe)
            .await
            .expect("a server that runs answers");
        let full = status == StatusCode::SERVICE_UNAVAILABLE && answer["code"] == "journal-full";
        let all_met = met.load(Ordering::SeqCst) == levels.len();
        if full && all_met && began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        assert!(!late(), "the journal never fills: {status} {answer}");
        assert!(
            !writers.iter().any(tokio::task::JoinHandle::is_finished),
            "a writer saw what it may not"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let away = began.elapsed();
    address.rows("local", "select count(*) from t").await;

    proxy.clear_rules();
    let back = std::time::Instant::now();
    let late = deadline(PATIENCE);
    loop {
        let (status, _) = address
            .post("databases/memory/query", &probe)
            .await
            .expect("a server that runs answers");
        if status == StatusCode::OK {
            break;
        }
        assert!(!late(), "writes do not go on: {}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let healed = back.elapsed();
    let late = deadline(PATIENCE);
    loop {
        let mut lags = Vec::new();
        for level in levels {
            let path = format!("databases/{level}/bookmarks/current");
            let (_, at) = address.get(&path).await.expect("an answer");
            lags.push(at["lag_ms"].as_f64().expect("a lag"));
        }
        if lags.iter().all(|lag| *lag < 2_000.0) {
            break;
        }
        assert!(!late(), "the lag stays at {lags:?} ms");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let caught_up = back.elapsed();
    done.store(true, Ordering::SeqCst);
    let mut seen = Vec::new();
    for (writer, level) in writers.into_iter().zip(levels) {
        let saw = writer.await.expect("a writer saw only what it may see");
        assert!(
            saw.full > 0 && (saw.ok > 0 || saw.late > 0),
            "{level}: {saw:?}"
        );
        assert!(level != "remote" || saw.late > 0, "{level}: {saw:?}");
        seen.push((level, saw));
    }
    eprintln!(
        "away {away:.1?} with a bound of {} MiB; writes went on {healed:.1?} after it came back, lag under 2 s \
         after {caught_up:.1?}; {seen:?}",
        bound >> 20
    );
    // Stopping ships what is pending.
    let count = "select count(*), max(n) from t where n > 0";
    for (level, saw) in &seen {
        let rows = address.rows(level, count).await;
        assert_eq!(rows, json!([[saw.standing, saw.standing]]), "{level}");
    }
    server.stop().await;
    world::verify(store);
    for (level, saw) in &seen {
        let out = home.path().join(format!("{level}.db"));
        world::restore_latest(store, level, &out).await;
        let restored = rusqlite::Connection::open(&out).expect("a restored file opens");
        let found: (i64, i64) = restored
            .query_row(count, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("rows");
        assert_eq!(found, (saw.standing, saw.standing), "{level}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_store_is_survived_by_the_real_server() {
    if !s3::notice() {
        return;
    }
    for store in s3::stores() {
        outage(&store).await;
    }
}
