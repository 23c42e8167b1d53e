//! When a commit through Hrana is answered: as durable as the header, the database or the server asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tidelog_archive::store::{Store, StoreOptions, StoreSettings};
use tidelog_engine::{Durability, Engine, Parts, Settings};
use tidelog_testkit::faultstore::{Fault, FaultStore, Shared, script};
use tidelog_testkit::sealing::masters;

use crate::hrana::{CURSOR, PIPELINE, close, execute, failed, filled};
use crate::world::{Got, World, patient, read, unhurried};

const INSERT: &str = "insert into t(b) values(1)";
/// How long a server waits for a store that comes, and for one that does not.
const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_secs(3);

/// Lives of a server whose store fails every call while the switch is on. What has to be stored is written in a life that
/// waits for it, what must not be in one that soon gives up.
struct Bench {
    away: Arc<AtomicBool>,
    store: Store,
    folder: Arc<TempDir>,
    durability: Durability,
}

impl Bench {
    /// One whose database is there.
    async fn new(durability: Durability) -> Self {
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
        let bench = Self {
            away,
            store: Store::from_object_store(objects, "", options).expect("a store"),
            folder: Arc::new(tempfile::tempdir().expect("a temporary folder")),
            durability,
        };
        filled(bench.first_life(LONG).await).await.stop().await;
        bench
    }

    /// A life that waits so long for the store, and has opened the database: an earlier life made it, and that needs the
    /// store.
    async fn life(&self, durability_timeout: Duration) -> World {
        let world = self.first_life(durability_timeout).await;
        world.count().await;
        world
    }

    async fn first_life(&self, durability_timeout: Duration) -> World {
        let settings = Settings {
            data: self.folder.path().join("data"),
            store_url: "memory:".to_owned(),
            ship_interval: Duration::from_millis(20),
            durability: self.durability,
            durability_timeout,
            master_keys: masters(),
            ..unhurried()
        };
        let engine = Engine::start_on(settings, Parts::production(), self.store.clone());
        let engine = Box::pin(engine).await.expect("the engine starts");
        let world = World::around(engine, Arc::clone(&self.folder), None, patient());
        Box::pin(world).await
    }

    /// The store goes away, or comes back.
    fn cut(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
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

/// A transaction on a stream that has written a row.
async fn begun(world: &World) -> Json {
    let begin = json!([execute("begin"), execute(INSERT)]);
    world.piped(&Json::Null, begin).await.1
}

/// What is asked for is committed, and not stored in time.
async fn is_late(world: &World, header: Option<&str>, baton: &Json, requests: &Json) {
    let got = world.piped_durably(header, baton, requests.clone()).await;
    failed(&got, 504, "DURABILITY_TIMEOUT");
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
    let bench = Bench::new(Durability::Memory).await;
    let remote = Some("remote");
    let world = bench.life(LONG).await;
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
            .piped_durably(remote, &begun(&world).await, commit.clone())
            .await,
    );
    assert_eq!(world.count().await, 3);
    world.stop().await;

    let world = bench.life(SHORT).await;
    let open = begun(&world).await;
    bench.cut(true);
    is_late(&world, remote, &open, &commit).await;
    is_late(&world, remote, &Json::Null, &alone).await;
    is_late(&world, remote, &Json::Null, &autocommit).await;
    assert_eq!(world.count().await, 6, "what is late stands");
    let (results, _) = world.piped(&Json::Null, alone.clone()).await;
    assert_eq!(
        results[0]["type"], "ok",
        "nothing holds the lock: {results:?}"
    );

    bench.cut(false);
    world.stop().await;
    let world = bench.life(LONG).await;
    let path = "/v1/namespaces/default/databases/orders";
    let patch = world.ask(Method::PATCH, path);
    let patched = read(patch.json(&json!({ "durability": "remote" }))).await;
    assert_eq!(patched.status, 200, "{patched:?}");
    is_stored(&world.piped_durably(None, &Json::Null, alone.clone()).await);
    world.stop().await;

    let world = bench.life(SHORT).await;
    bench.cut(true);
    is_late(&world, None, &Json::Null, &alone).await;
    is_late(&world, None, &Json::Null, &autocommit).await;
    let got = world
        .piped_durably(Some("memory"), &Json::Null, alone)
        .await;
    assert_eq!(got.status, 200, "the header counts first: {got:?}");
    bench.cut(false);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_durability_of_the_server_holds_where_nothing_else_is_asked() {
    let bench = Bench::new(Durability::Remote).await;
    let world = bench.life(SHORT).await;
    bench.cut(true);
    let requests = json!([execute(INSERT), close()]);
    let got = world
        .piped_durably(None, &Json::Null, requests.clone())
        .await;
    failed(&got, 504, "DURABILITY_TIMEOUT");
    // What needs the disk alone may take as long as the disk.
    bench.cut(false);
    world.stop().await;
    let world = bench.life(LONG).await;
    bench.cut(true);
    let got = world
        .piped_durably(Some("local"), &Json::Null, requests)
        .await;
    assert_eq!(got.status, 200, "{got:?}");
    bench.cut(false);
    world.stop().await;
}

/// Goal: a cursor whose commit is late ends with `error` as its last line, and its stream with it (HRANA 5). Method: the
/// store is away, and two steps write.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_fails_whole_says_so_in_its_last_line() {
    let bench = Bench::new(Durability::Memory).await;
    let world = bench.life(SHORT).await;
    bench.cut(true);
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
    bench.cut(false);
    world.stop().await;
}
