//! Clients that are slow, endless or oversized, while others are served.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tidelog_server::settings::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::neighbours::completed;
use crate::world::{World, patient};

/// How long a client may have to wait to be let go: far beyond the deadlines of this test.
const PATIENCE: Duration = Duration::from_mins(2);

/// Bytes an endless client would send if nobody stopped it; nowhere near them may be read.
const ENDLESS: usize = 1 << 30;

/// Clients that are under way: what the server said, and the bytes it took.
type Clients = Vec<JoinHandle<(String, usize)>>;

/// Sends `begin`, then `more` again and again with pauses, until the server ends the connection; what it said, and
/// how many bytes it took.
async fn insist(address: String, begin: String, more: Vec<u8>, pause: Duration) -> (String, usize) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let (mut answer, sent) = (Vec::new(), AtomicUsize::new(begin.len()));
    let (mut reader, mut writer) = stream.split();
    let write = async {
        let mut open = writer.write_all(begin.as_bytes()).await.is_ok();
        while open && !more.is_empty() && sent.load(Ordering::Relaxed) < ENDLESS {
            open = writer.write_all(&more).await.is_ok();
            sent.fetch_add(more.len(), Ordering::Relaxed);
            tokio::time::sleep(pause).await;
        }
        // What the server said may still be on its way.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        // A reset is an end, too.
        _ = reader.read_to_end(&mut answer) => {}
    }
    (
        String::from_utf8_lossy(&answer).into_owned(),
        sent.into_inner(),
    )
}

fn head(path: &str, token: &str, rest: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n{rest}"
    )
}

/// Goal: RELIABILITY 14. Method: twenty clients of each bad kind, all held open while another client completes at least half
/// of what it completes without them; then each must have been let go, with the right answer where one can be sent. A busy
/// machine may spend the time that they have before the other client was looked at, or its other work may fall on one
/// side of the comparison: then again, with more time.
#[tokio::test(flavor = "multi_thread")]
async fn slow_and_oversized_requests_harm_nobody_else_and_end() {
    let mut seen = Vec::new();
    for seconds in [2, 6, 15, 15] {
        let (stayed, beside, alone) = beside_bad_clients(Duration::from_secs(seconds)).await;
        if stayed && alone > 0 && beside * 2 >= alone {
            return;
        }
        seen.push((stayed, beside, alone));
    }
    panic!("stayed all the time, completed beside them, without: {seen:?}");
}

/// Whether those who had so much time were there all the while that the other client was looked at, and what it completed
/// beside them and without them.
async fn beside_bad_clients(deadline: Duration) -> (bool, u32, u32) {
    let limits = Limits {
        head_deadline: deadline,
        body_deadline: deadline,
        body_bytes_max: 64 << 10,
        ..patient()
    };
    let world = World::with(limits).await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let quiet = world.database("quiet").await;
    world.run(&quiet, "create table t(a)").await;
    let window = Duration::from_millis(600);
    let mut alone = completed(&world, &quiet, window).await;
    let query = format!("{database}/query");
    let address = world.base.trim_start_matches("http://").to_owned();
    let drip = Duration::from_millis(50);
    let start = |begin: String, more: &[u8], pause: Duration| {
        tokio::spawn(insist(address.clone(), begin, more.to_vec(), pause))
    };
    let several = |make: &dyn Fn() -> JoinHandle<(String, usize)>| -> Clients {
        (0..20).map(|_| make()).collect()
    };
    // A head that never ends, a body that drips, one that stands still, one without end.
    let heads = several(&|| start(head(&query, &world.owner, ""), b"X-A: b\r\n", drip));
    let long = "Content-Length: 60000\r\n\r\n{";
    let bodies = several(&|| start(head(&query, &world.owner, long), b" ", drip));
    let still = several(&|| start(head(&query, &world.owner, long), b" ", PATIENCE));
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
    let endless = several(&|| {
        start(
            head(&query, &world.owner, chunked),
            chunk.as_bytes(),
            Duration::from_millis(1),
        )
    });
    let unknown = several(&|| start(head(&query, "tl_live_x", chunked), chunk.as_bytes(), drip));
    let beside = completed(&world, &quiet, 2 * window).await;
    let stayed = bodies.iter().chain(&still).all(|one| !one.is_finished());

    let ended = |clients: Clients| async {
        let all = tokio::time::timeout(PATIENCE, futures::future::join_all(clients)).await;
        let all = all.expect("every client is let go");
        all.into_iter()
            .map(|one| one.expect("no panic"))
            .collect::<Vec<_>>()
    };
    for (answer, sent) in ended(heads).await {
        assert!(sent < 64 << 10, "a head took {sent} bytes: {answer}");
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    for (answer, _) in ended(bodies).await.into_iter().chain(ended(still).await) {
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("\"request-timeout\""), "{answer}");
    }
    for (answer, sent) in ended(endless).await {
        assert!(sent < ENDLESS / 10, "{sent} bytes were taken");
        assert!(
            answer.is_empty() || answer.contains("body-too-large"),
            "{answer}"
        );
    }
    for (answer, sent) in ended(unknown).await {
        assert!(sent < ENDLESS / 10, "{sent} bytes were taken");
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 401 "),
            "{answer}"
        );
    }
    alone += completed(&world, &quiet, window).await;
    let count = world.run(&database, "select count(*) from t").await;
    assert_eq!(
        count.body["rows"],
        json!([[0]]),
        "none of them did anything"
    );
    world.stop().await;
    (stayed, beside, alone)
}

/// Goal: oversized heads are refused by size, not by patience.
#[tokio::test(flavor = "multi_thread")]
async fn oversized_heads_and_paths_are_refused() {
    let world = World::start().await;
    let address = world.base.trim_start_matches("http://").to_owned();
    let token = &world.owner;
    let long = "x".repeat(1 << 20);
    for begin in [
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /v1/{long} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"),
        format!(
            "GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n",
            "A: b\r\n".repeat(10_000)
        ),
    ] {
        let (answer, _) = insist(address.clone(), begin, Vec::new(), PATIENCE).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
        assert_eq!(world.get("/healthz").await.status, 200);
    }
    world.stop().await;
}
