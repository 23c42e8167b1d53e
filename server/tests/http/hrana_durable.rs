//! When a commit through Hrana is answered: as durable as the header, the database or the server asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_server::config::Preset;
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};

use crate::hrana::{CURSOR, PIPELINE, close, execute, failed, filled};
use crate::world::{Got, World, read};

const INSERT: &str = "insert into t(b) values(1)";

/// A server whose store fails every call while the switch is on, and that waits for it for 300 ms.
async fn world(durability: &str) -> (World, Arc<AtomicBool>) {
    let away = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&away);
    let plan = script(move |_| {
        if switch.load(Ordering::SeqCst) {
            Fault::Before
        } else {
            Fault::None
        }
    });
    let options = StoreOptions {
        settings: StoreSettings {
            attempts_max: 2,
            backoff_max: Duration::from_millis(100),
            ..StoreSettings::default()
        },
        ..StoreOptions::default()
    };
    let objects = Arc::new(Shared(FaultStore::in_memory(plan)));
    let store = Store::from_object_store(objects, "", options).expect("a store");
    let mut config = Preset::Development.config();
    config.durability = durability.to_owned();
    config.durability_timeout_ms = 300;
    let world = filled(World::on_store(store, config).await).await;
    (world, away)
}

impl World {
    /// A pipeline or a cursor with the header, if there is one.
    async fn durable(&self, header: Option<&str>, path: &str, body: Json) -> Got {
        let mut request = self.ask(Method::POST, path).json(&body);
        if let Some(header) = header {
            request = request.header("db-durability", header);
        }
        read(request).await
    }

    async fn piped_durably(&self, header: Option<&str>, baton: &Json, requests: Json) -> Got {
        let body = json!({ "baton": baton, "requests": requests });
        self.durable(header, PIPELINE, body).await
    }
}

impl World {
    /// The store is back, and everything is in it.
    async fn caught_up(&self) {
        let path =
            "/v1/namespaces/default/databases/orders/bookmarks/current?wait_durable_ms=10000";
        for _ in 0..10 {
            let got = self.get(path).await;
            if got.body["lag_commits"] == 0 {
                return;
            }
        }
        panic!("nothing is stored although the store is back");
    }
}

fn is_stored(got: &Got) {
    assert_eq!(got.status, 200, "{got:?}");
    let at = got.header("db-bookmark");
    assert!(
        at.is_some() && at == got.header("db-durable-bookmark"),
        "{got:?}"
    );
}

/// Goal: `remote` waits for the store on every way a commit takes, whoever asks for it, and one that is late is told
/// and stands. Method: the store is there, then away; without the wait the second half would be answered 200.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_answered_when_it_is_as_durable_as_asked() {
    let (world, away) = world("memory").await;
    let remote = Some("remote");
    let begin = async || {
        let (_, baton) = world
            .piped(&Json::Null, json!([execute("begin"), execute(INSERT)]))
            .await;
        baton
    };
    let alone = json!([execute(INSERT), close()]);
    is_stored(
        &world
            .piped_durably(remote, &Json::Null, alone.clone())
            .await,
    );
    let autocommit = json!([execute(INSERT), execute("select 1")]);
    let got = world
        .piped_durably(remote, &Json::Null, autocommit.clone())
        .await;
    is_stored(&got);
    world.piped(&got.body["baton"], json!([close()])).await;
    let commit = json!([execute("commit"), close()]);
    is_stored(
        &world
            .piped_durably(remote, &begin().await, commit.clone())
            .await,
    );
    assert_eq!(world.count().await, 3);

    let path = "/v1/namespaces/default/databases/orders";
    let patch = async |body: Json| {
        let patched = read(world.ask(Method::PATCH, path).json(&body)).await;
        assert_eq!(patched.status, 200, "{patched:?}");
    };
    let late = async |header, baton: &Json, requests: &Json| {
        let got = world.piped_durably(header, baton, requests.clone()).await;
        failed(&got, 504, "DURABILITY_TIMEOUT");
    };
    let open = begin().await;
    away.store(true, Ordering::SeqCst);
    late(remote, &open, &commit).await;
    late(remote, &Json::Null, &alone).await;
    late(remote, &Json::Null, &autocommit).await;
    assert_eq!(world.count().await, 6, "what is late stands");
    let (results, _) = world.piped(&Json::Null, alone.clone()).await;
    assert_eq!(
        results[0]["type"], "ok",
        "nothing holds the lock: {results:?}"
    );

    away.store(false, Ordering::SeqCst);
    world.caught_up().await;
    patch(json!({ "durability": "remote" })).await;
    is_stored(&world.piped_durably(None, &Json::Null, alone.clone()).await);
    away.store(true, Ordering::SeqCst);
    late(None, &Json::Null, &alone).await;
    late(None, &Json::Null, &autocommit).await;
    let got = world
        .piped_durably(Some("memory"), &Json::Null, alone)
        .await;
    assert_eq!(got.status, 200, "the header counts first: {got:?}");
    away.store(false, Ordering::SeqCst);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_durability_of_the_server_holds_where_nothing_else_is_asked() {
    let (world, away) = world("remote").await;
    away.store(true, Ordering::SeqCst);
    let requests = json!([execute(INSERT), close()]);
    let got = world
        .piped_durably(None, &Json::Null, requests.clone())
        .await;
    failed(&got, 504, "DURABILITY_TIMEOUT");
    let got = world
        .piped_durably(Some("local"), &Json::Null, requests)
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    away.store(false, Ordering::SeqCst);
    world.stop().await;
}

/// Goal: a cursor whose commit is late ends with `error` as its last line, and its stream with it (HRANA 5). Method: the
/// store is away, and two steps write.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_fails_whole_says_so_in_its_last_line() {
    let (world, away) = world("memory").await;
    away.store(true, Ordering::SeqCst);
    let steps = [INSERT, "insert into t(b) values('never')"];
    let steps = steps.map(|sql| json!({ "stmt": { "sql": sql } }));
    let sent = world
        .ask(Method::POST, CURSOR)
        .header("db-durability", "remote")
        .json(&json!({ "batch": { "steps": steps } }));
    let text = sent.send().await.expect("an answer").text().await;
    let text = text.expect("whole");
    let lines: Vec<Json> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON line"))
        .collect();
    let last = lines.last().expect("a line");
    assert_eq!(
        (&last["type"], &last["error"]["code"]),
        (&json!("error"), &json!("DURABILITY_TIMEOUT")),
        "{text}"
    );
    assert!(last["error"]["message"].is_string());
    let told = lines.iter().filter(|line| line["type"] == "step_end");
    assert_eq!(told.count(), 0, "no step is said to have ended: {text}");
    let baton = &lines[0]["baton"];
    failed(&world.hrana(baton, json!([])).await, 400, "STREAM_EXPIRED");
    assert_eq!(world.engine.stream_count(), 0);
    assert_eq!(
        world.count().await,
        1,
        "the first stands, the second did not run"
    );
    let (results, _) = world
        .piped(&Json::Null, json!([execute(INSERT), close()]))
        .await;
    assert_eq!(
        results[0]["type"], "ok",
        "nothing holds the lock: {results:?}"
    );
    away.store(false, Ordering::SeqCst);
    world.stop().await;
}
