//! A server in a folder of its own, and a client that knows its tokens.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use reqwest::header::HeaderValue;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tidelog_archive::store::Store;
use tidelog_engine::{Engine, Parts, Settings, Writer};
use tidelog_server::app::App;
use tidelog_server::config::Config;
use tidelog_server::first::first_start;
use tidelog_server::serve::{bind, serve};
use tidelog_server::settings::Limits;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::contract;

/// A running server. Call [`World::stop`] at the end, so that the shutdown is part of every test.
pub(crate) struct World {
    pub(crate) base: String,
    pub(crate) owner: String,
    pub(crate) server: String,
    pub(crate) client: Client,
    pub(crate) engine: Engine,
    pub(crate) app: Arc<App>,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
    _folder: Arc<TempDir>,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Json,
}

impl Got {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The code of a problem, which must be whole.
    pub(crate) fn code(&self) -> &str {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        for member in ["type", "title", "detail", "instance", "request_id"] {
            assert!(
                self.body[member].is_string(),
                "{member} is missing: {}",
                self.body
            );
        }
        assert_eq!(self.body["status"], self.status);
        assert_eq!(
            self.body["request_id"].as_str(),
            self.header("x-request-id")
        );
        assert!(self.body["retryable"].is_boolean());
        self.body["code"].as_str().expect("a problem has a code")
    }
}

/// Limits under which a machine that is busy with something else makes no call fail.
pub(crate) fn patient() -> Limits {
    const LONG: Duration = Duration::from_mins(5);
    Limits {
        query_deadline: LONG,
        head_deadline: LONG,
        body_deadline: LONG,
        cursor_pause: LONG,
        ..Limits::default()
    }
}

/// Settings under which nobody gives up soon; what a test expects to be given up it sets itself.
pub(crate) fn unhurried() -> Settings {
    Settings {
        gate_timeout: Duration::from_mins(1),
        durability_timeout: Duration::from_mins(1),
        stream_idle: Duration::from_mins(10),
        stream_gate_idle: Duration::from_mins(10),
        ..Settings::default()
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(patient()).await
    }

    /// The same with other limits.
    pub(crate) fn with(limits: Limits) -> BoxFuture<'static, Self> {
        Box::pin(Self::launch(None, limits, None))
    }

    /// The same on a clock, a disk and a store of the test's; history is settled at once.
    pub(crate) fn on(parts: Parts, store: Store) -> BoxFuture<'static, Self> {
        Box::pin(Self::launch(None, patient(), Some((parts, store))))
    }

    /// The same as a configuration says; its data folder, store and address are the test's, and of the engine's
    /// settings it has those of streams, of the write gate and of durability.
    pub(crate) fn of(config: Config) -> BoxFuture<'static, Self> {
        let limits = config.limits.limits();
        Box::pin(Self::launch(Some(config), limits, None))
    }

    async fn launch(config: Option<Config>, limits: Limits, on: Option<(Parts, Store)>) -> Self {
        let folder = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let asked = config
            .as_ref()
            .map(|config| config.engine().expect("sound"));
        let asked = asked.unwrap_or_else(unhurried);
        let mut settings = Settings {
            stream_idle: asked.stream_idle,
            stream_gate_idle: asked.stream_gate_idle,
            streams_per_principal: asked.streams_per_principal,
            streams_per_database: asked.streams_per_database,
            streams_per_tenant: asked.streams_per_tenant,
            streams_max: asked.streams_max,
            durability: asked.durability,
            durability_timeout: asked.durability_timeout,
            gate_timeout: asked.gate_timeout,
            data: folder.path().join("data"),
            store_url: "memory:".to_owned(),
            ship_interval: Duration::from_millis(20),
            master_keys: tidelog_testkit::sealing::masters(),
            ..Settings::default()
        };
        let started = match on {
            None => Box::pin(Engine::start(settings, Parts::production())).await,
            Some((parts, store)) => {
                if config.is_none() {
                    settings.settle_bytes = 1;
                    settings.settle_age = Duration::ZERO;
                    settings.settle_pause = Duration::from_millis(1);
                }
                Box::pin(Engine::start_on(settings, parts, store)).await
            }
        };
        let engine = started.expect("the engine starts");
        Self::around(engine, folder, config, limits).await
    }

    /// The same around an engine of the test's own, whose data folder is `data` in this one.
    pub(crate) async fn around(
        engine: Engine,
        folder: Arc<TempDir>,
        config: Option<Config>,
        limits: Limits,
    ) -> Self {
        let data = folder.path().join("data");
        first_start(&engine, &data, false)
            .await
            .expect("the first start ends");
        let token = |name: &str| {
            let text = std::fs::read_to_string(data.join(name)).expect("a token file");
            text.trim().to_owned()
        };
        let (owner, server) = (token("owner.token"), token("server.token"));
        let scratch = data.join("scratch");
        std::fs::create_dir_all(&scratch).expect("a scratch folder");
        let listener = bind(([127, 0, 0, 1], 0).into(), false)
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut app = App::new(engine.clone(), limits, scratch);
        if let Some(config) = &config {
            app = app.configured(config).expect("a sound configuration");
        }
        let app = Arc::new(app);
        let scheme = if app.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        let served = Arc::clone(&app);
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(serve(listener, served, async {
            let _ = stopped.await;
        }));
        Self {
            base: format!("{scheme}://{address}"),
            app,
            owner,
            server,
            client: Client::builder()
                .no_proxy()
                // The server closes what is idle for longer than a head may take.
                .pool_idle_timeout(Duration::from_secs(1))
                .tls_danger_accept_invalid_certs(true)
                .build()
                .expect("a client"),
            engine,
            stop,
            done,
            _folder: folder,
        }
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.done.await.expect("the server ends in order");
        self.engine
            .shutdown()
            .await
            .expect("the engine ends in order");
    }

    /// The end of a machine that others took for lost: how its engine ends is nobody's business.
    pub(crate) async fn lose(self) {
        let _ = self.stop.send(());
        self.done.await.expect("the server ends in order");
        let _ = self.engine.shutdown().await;
    }

    /// A request with the owner's token.
    pub(crate) fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(&self.owner)
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        read(self.ask(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Json) -> Got {
        read(self.ask(Method::POST, path).json(&body)).await
    }

    /// A POST with an Idempotency-Key of its own, for calls that must have one.
    pub(crate) async fn keyed(&self, path: &str, body: Json) -> Got {
        read(self.ask_keyed(path).json(&body)).await
    }

    /// The same, to be completed.
    pub(crate) fn ask_keyed(&self, path: &str) -> RequestBuilder {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = format!("key-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.ask(Method::POST, path).header("idempotency-key", key)
    }

    /// Makes a database of the default namespace and gives its path.
    pub(crate) async fn database(&self, name: &str) -> String {
        let made = self
            .post("/v1/namespaces/default/databases", json!({ "name": name }))
            .await;
        assert_eq!(made.status, 201, "{made:?}");
        format!("/v1/namespaces/default/databases/{name}")
    }

    /// Runs one statement, which must succeed.
    pub(crate) async fn run(&self, database: &str, sql: &str) -> Got {
        let got = self
            .post(&format!("{database}/query"), json!({ "sql": sql }))
            .await;
        assert_eq!(got.status, 200, "{sql}: {got:?}");
        got
    }

    /// The secret of a new token of the default namespace.
    pub(crate) async fn token(&self, body: Json) -> String {
        let made = self.post("/v1/namespaces/default/tokens", body).await;
        assert_eq!(made.status, 201, "{made:?}");
        made.body["token"].as_str().expect("a secret").to_owned()
    }
}

/// Sends a request and reads its answer; a body that is not JSON reads as null. The answer must be one that the
/// OpenAPI document declares. What is begun is waited for as long as may be, unless the request says otherwise.
pub(crate) async fn read(request: RequestBuilder) -> Got {
    let (client, request) = request.build_split();
    let mut request = request.expect("a request can be built");
    let headers = request.headers_mut();
    if !headers.contains_key("prefer") {
        headers.insert("prefer", HeaderValue::from_static("wait=30"));
    }
    read_as_is(RequestBuilder::from_parts(client, request)).await
}

/// The same, and nothing is added to the request.
pub(crate) async fn read_as_is(request: RequestBuilder) -> Got {
    try_read(request).await.expect("the server answers")
}

/// The same of a request that is refused before its body is sent: a client that still sends it may find the connection
/// closed and miss the answer, and then asks again.
pub(crate) async fn read_refused(request: impl Fn() -> RequestBuilder) -> Got {
    for _ in 0..100 {
        match try_read(request()).await {
            Ok(got) => return got,
            Err(error) => assert!(error.is_request() || error.is_body(), "{error:?}"),
        }
    }
    panic!("the server never answers");
}

async fn try_read(request: RequestBuilder) -> Result<Got, reqwest::Error> {
    let (client, request) = request.build_split();
    let request = request?;
    let (method, path) = (request.method().clone(), request.url().path().to_owned());
    let response = client.execute(request).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await?;
    let got = Got {
        status,
        headers,
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
    };
    contract::declared(&method, &path, &got);
    Ok(got)
}

/// A path of the surface with its placeholders filled in.
pub(crate) fn fill(path: &str, namespace: &str, database: &str) -> String {
    path.replace("{ns}", namespace)
        .replace("{db}", database)
        .replace("{to}", "none")
        .replace("{token}", "tok_none")
        .replace("{operation}", "op_none")
        .replace("{principal}", "nobody")
        .replace("{restore}", "rs_none")
        .replace("{ref}", "none")
        .replace("{snapshot}", "none")
        .replace("{archive}", "none")
}

/// A transaction that is open until what is answered is dropped.
pub(crate) async fn hold(session: Writer) -> (JoinHandle<()>, std::sync::mpsc::Sender<()>) {
    let (release, released) = std::sync::mpsc::channel();
    let (begun, begins) = oneshot::channel();
    let held = tokio::task::spawn_blocking(move || {
        let held = session.transaction(|_| {
            begun.send(()).expect("somebody waits");
            // The other end is dropped, not sent to.
            let _ = released.recv();
            Ok(())
        });
        held.expect("a transaction");
    });
    begins.await.expect("it begins");
    (held, release)
}
