//! The configuration of a server: one TOML file, the environment, flags, each stronger than the one before.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`load`] | layers the sources over a preset; an unknown key is an error |
//! | [`presets`] | the figures of `development`, `production` and `strict` |
//! | [`show`] | the effective settings as text, secrets masked |
//!
//! A variable is `TIDELOG_` and the key in capitals, dots as underscores: `limits.rows_max` is
//! `TIDELOG_LIMITS_ROWS_MAX`. A figure of 0 switches a bound off where the key says so. Secrets stand in files
//! that the configuration names; a file is preferred wherever both exist.

pub mod load;
pub mod presets;
pub mod show;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidelog_engine::Settings as EngineSettings;

use crate::settings::Limits;

pub use presets::Preset;

/// The fewest places for open databases that a server can work with.
const OPEN_DATABASES_MIN: usize = 4;

/// Everything a server is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which figures hold where nothing else is said.
    pub preset: Preset,
    /// The data folder.
    pub data: PathBuf,
    /// The store URL.
    pub store: String,
    /// A file that holds the store URL, for URLs with secrets in them; preferred to `store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_file: Option<PathBuf>,
    /// The region that the store lies in, as databases show it.
    pub region: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the operator's routes are served, if anywhere: with the server token alone, and off the open network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// Plain HTTP beyond loopback.
    pub insecure_listen: bool,
    /// When a write is answered unless something else asks: `memory`, `local` or `remote`.
    pub durability: String,
    /// How long commits are collected before they are shipped.
    pub ship_interval_ms: u64,
    /// Bytes of the local journal.
    pub journal_max_bytes: u64,
    /// How long a write waits for its durability.
    pub durability_timeout_ms: u64,
    /// How long an unused database stays open.
    pub idle_close_ms: u64,
    /// How long a stream of a client of libSQL lives unused.
    pub stream_idle_ms: u64,
    /// How long such a stream may keep other writers waiting while its client does nothing.
    pub stream_gate_idle_ms: u64,
    /// How often a restore drill proves one database; 0 for never.
    pub drill_every_seconds: u64,
    /// How many days the bucket's own rules keep old versions of objects, where it keeps any; 0 if not known.
    pub old_versions_days: u64,
    /// Databases open at once, of which one tenant has at most half.
    pub open_databases_max: usize,
    /// SQL jobs at once.
    pub workers: usize,
    /// SQL jobs of one tenant at once.
    pub workers_per_tenant: usize,
    /// TLS.
    pub tls: Tls,
    /// The log.
    pub log: Log,
    /// What a request may cost.
    pub limits: LimitsConfig,
    /// Who may call.
    pub auth: Auth,
    /// Browsers and proxies.
    pub http: Http,
    /// What is on record.
    pub audit: Audit,
    /// Bounds of the engine that are seldom touched.
    pub engine: Bounds,
    /// Sealing what is stored.
    #[serde(default)]
    pub encryption: Encryption,
    /// Traces.
    pub telemetry: Telemetry,
}

/// Bounds of the engine, the figures of [`EngineSettings`], times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "each is the field of the same name in the engine's settings"
)]
pub struct Bounds {
    pub streams_per_principal: usize,
    pub streams_per_database: usize,
    pub streams_per_tenant: usize,
    pub streams_max: usize,
    pub gate_queue_max: usize,
    pub gate_timeout_ms: u64,
    pub restores_max: usize,
    pub disk_reserve_bytes: u64,
    pub reader_max_age_ms: u64,
    pub wal_hard_bytes: u64,
    pub turns_at_once: usize,
}

/// Traces of requests, sent to a collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// The base URL of an OTLP collector that takes protobuf over HTTP, like `http://127.0.0.1:4318`; nothing is
    /// traced without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// How many requests of a hundred are traced. More: more to send and to keep.
    pub sample_percent: u8,
}

/// Sealing what is stored. Master keys given as flags or variables count instead of these.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Encryption {
    /// The master keys, the newest last.
    pub master_keys: Vec<MasterKeyFile>,
}

/// A master key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MasterKeyFile {
    /// Its id.
    pub id: String,
    /// The file that holds it.
    pub file: PathBuf,
}

/// The certificate of the server. Both files or neither; read again on SIGHUP.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file with the chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file with the private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// What is logged: a filter of `tracing`.
    pub filter: String,
    /// Lines as JSON.
    pub json: bool,
}

/// What a request may cost; the figures of [`Limits`], times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "each is the field of the same name in settings.rs"
)]
pub struct LimitsConfig {
    pub body_bytes_max: usize,
    pub import_bytes_max: u64,
    pub sql_bytes_max: usize,
    pub params_max: usize,
    pub batch_max: usize,
    pub tables_max: u32,
    pub rows_max: usize,
    pub result_bytes_max: usize,
    pub query_ms: u64,
    pub request_ms: u64,
    pub head_ms: u64,
    pub body_ms: u64,
    pub import_pause_ms: u64,
    pub cursor_pause_ms: u64,
    pub drain_ms: u64,
    pub page_default: usize,
    pub page_max: usize,
    pub connections_max: usize,
    pub connections_per_peer_max: usize,
    pub connections_per_principal_max: usize,
    pub untaken_bytes_per_namespace: u64,
    pub streams_per_principal_max: usize,
    pub in_flight_per_principal: usize,
    pub in_flight_per_namespace: usize,
    pub requests_per_minute_token: u32,
    pub requests_per_minute_namespace: u32,
    pub requests_per_minute_peer: u32,
    pub auth_failures_per_minute: u32,
    pub slow_query_ms: u64,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Whether a live token that does not say may change schemas.
    pub live_tokens_allow_ddl: bool,
    /// Signed tokens of somebody else; refused without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
}

/// Whose signed tokens count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// What `aud` must hold.
    pub audience: String,
    /// What `iss` must be, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The claim that names the namespace.
    #[serde(default = "Jwt::namespace_claim")]
    pub namespace_claim: String,
    /// A JWKS file. Read again when it changes, and on SIGHUP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// Single keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<JwtKey>,
}

impl Jwt {
    fn namespace_claim() -> String {
        "tenant_id".to_owned()
    }
}

/// One key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKey {
    /// `EdDSA`, `RS256` or `HS256`.
    pub alg: String,
    /// The file: a public key as PEM, or the secret of HS256.
    pub file: PathBuf,
    /// Its name in the header of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
}

/// Browsers and proxies.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Origins that a browser may call from; none by default.
    pub cors_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    /// Domains whose first label names a database to a client of libSQL; none by default.
    #[serde(default)]
    pub database_hosts: Vec<String>,
    /// The database of a client of libSQL that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_database: Option<String>,
}

/// What is on record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The regulation whose figure counts instead of `retention_days`: `soc2`, `hipaa`, `gdpr` or `pci`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Regulation>,
    /// How long lines are kept.
    pub retention_days: u64,
    /// How often they leave for the bucket.
    pub ship_interval_s: u64,
}

/// A regulation that names how long records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the name it is known by")]
pub enum Regulation {
    Soc2,
    Hipaa,
    Gdpr,
    Pci,
}

impl Regulation {
    /// The regulation of a name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "soc2" => Some(Self::Soc2),
            "hipaa" => Some(Self::Hipaa),
            "gdpr" => Some(Self::Gdpr),
            "pci" => Some(Self::Pci),
            _ => None,
        }
    }

    /// Days that audit lines are kept.
    pub const fn audit_days(self) -> u64 {
        match self {
            Self::Soc2 => 90,
            Self::Hipaa => 2_190,
            Self::Gdpr => 30,
            Self::Pci => 365,
        }
    }

    /// Days that every commit of a database is kept.
    pub const fn window_days(self) -> u64 {
        match self {
            Self::Soc2 => 30,
            Self::Hipaa | Self::Pci => 90,
            Self::Gdpr => 7,
        }
    }

    /// Days that an archive is kept at least.
    pub const fn archive_days(self) -> u64 {
        match self {
            Self::Soc2 => 90,
            Self::Hipaa | Self::Pci => 365,
            Self::Gdpr => 30,
        }
    }
}

impl Audit {
    /// How long lines are kept.
    pub fn days(&self) -> u64 {
        self.preset
            .map_or(self.retention_days, Regulation::audit_days)
    }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl LimitsConfig {
    /// The figures as handlers use them.
    pub fn limits(&self) -> Limits {
        Limits {
            body_bytes_max: self.body_bytes_max,
            import_bytes_max: self.import_bytes_max,
            sql_bytes_max: self.sql_bytes_max,
            params_max: self.params_max,
            batch_max: self.batch_max,
            tables_max: Some(self.tables_max).filter(|max| *max != 0),
            rows_max: self.rows_max,
            result_bytes_max: self.result_bytes_max,
            query_deadline: millis(self.query_ms),
            request_deadline: millis(self.request_ms),
            head_deadline: millis(self.head_ms),
            body_deadline: millis(self.body_ms),
            import_pause: millis(self.import_pause_ms),
            cursor_pause: millis(self.cursor_pause_ms),
            drain_deadline: millis(self.drain_ms),
            page_default: self.page_default,
            page_max: self.page_max,
            connections_max: self.connections_max,
            connections_per_peer_max: self.connections_per_peer_max,
            connections_per_principal_max: self.connections_per_principal_max,
            untaken_bytes_per_namespace: self.untaken_bytes_per_namespace,
            streams_per_principal_max: self.streams_per_principal_max,
            in_flight_per_principal: self.in_flight_per_principal,
            in_flight_per_namespace: self.in_flight_per_namespace,
            requests_per_minute_token: self.requests_per_minute_token,
            requests_per_minute_namespace: self.requests_per_minute_namespace,
            requests_per_minute_peer: self.requests_per_minute_peer,
            auth_failures_per_minute: self.auth_failures_per_minute,
            slow_query: millis(self.slow_query_ms),
        }
    }
}

impl Config {
    /// What the engine is told. `take_over` and the like are the command line's alone.
    pub fn engine(&self) -> Result<EngineSettings, String> {
        let engine = &self.engine;
        let settings = EngineSettings {
            data: self.data.clone(),
            store_url: self.store.clone(),
            durability: self.durability.parse()?,
            ship_interval: millis(self.ship_interval_ms),
            journal_max_bytes: self.journal_max_bytes,
            durability_timeout: millis(self.durability_timeout_ms),
            idle_close: millis(self.idle_close_ms),
            stream_idle: millis(self.stream_idle_ms),
            stream_gate_idle: millis(self.stream_gate_idle_ms),
            drill_interval: Some(self.drill_every_seconds)
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
            old_versions: Some(self.old_versions_days)
                .filter(|days| *days > 0)
                .map(|days| Duration::from_secs(days.saturating_mul(86_400))),
            open_databases_max: self.open_databases_max,
            workers: self.workers,
            workers_per_tenant: self.workers_per_tenant,
            streams_per_principal: engine.streams_per_principal,
            streams_per_database: engine.streams_per_database,
            streams_per_tenant: engine.streams_per_tenant,
            streams_max: engine.streams_max,
            gate_queue_max: engine.gate_queue_max,
            gate_timeout: millis(engine.gate_timeout_ms),
            restores_max: engine.restores_max,
            disk_reserve_bytes: engine.disk_reserve_bytes,
            reader_max_age: millis(engine.reader_max_age_ms),
            wal_hard_bytes: engine.wal_hard_bytes,
            turns_at_once: engine.turns_at_once,
            audit_ship_interval: Duration::from_secs(self.audit.ship_interval_s),
            audit_retention: Duration::from_secs(self.audit.days().saturating_mul(86_400)),
            ..EngineSettings::default()
        };
        Ok(settings)
    }

    /// What is wrong with it beyond its grammar.
    pub fn check(&self) -> Result<(), String> {
        self.engine()?;
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return Err("tls.cert and tls.key belong together: give both or neither".to_owned());
        }
        let limits = &self.limits;
        if limits.page_default == 0
            || limits.page_default > limits.page_max
            || limits.page_max > 500
        {
            return Err("limits.page_default is at least 1 and at most limits.page_max, which is at most 500".to_owned());
        }
        if limits.batch_max == 0 || limits.batch_max > 100 {
            return Err("limits.batch_max is from 1 to 100".to_owned());
        }
        for (name, figure) in [
            ("body_bytes_max", limits.body_bytes_max),
            ("sql_bytes_max", limits.sql_bytes_max),
            ("params_max", limits.params_max),
            ("rows_max", limits.rows_max),
            ("result_bytes_max", limits.result_bytes_max),
        ] {
            if figure == 0 {
                return Err(format!("limits.{name} is at least 1: 0 is not `no bound`"));
            }
        }
        for (name, figure) in [
            ("import_bytes_max", limits.import_bytes_max),
            ("query_ms", limits.query_ms),
            ("request_ms", limits.request_ms),
            ("head_ms", limits.head_ms),
            ("body_ms", limits.body_ms),
            ("import_pause_ms", limits.import_pause_ms),
        ] {
            if figure == 0 {
                return Err(format!("limits.{name} is at least 1: 0 is not `no bound`"));
            }
        }
        if self.open_databases_max < OPEN_DATABASES_MIN {
            return Err(format!(
                "open_databases_max is at least {OPEN_DATABASES_MIN}: a tenant has half of them"
            ));
        }
        if self.stream_idle_ms == 0 || self.stream_gate_idle_ms == 0 {
            return Err("stream_idle_ms and stream_gate_idle_ms are at least 1".to_owned());
        }
        if limits.connections_max == 0 || self.workers == 0 || self.workers_per_tenant == 0 {
            return Err(
                "limits.connections_max, workers and workers_per_tenant are at least 1".to_owned(),
            );
        }
        let engine = &self.engine;
        if [
            engine.streams_per_principal,
            engine.streams_per_database,
            engine.streams_per_tenant,
            engine.gate_queue_max,
            engine.turns_at_once,
        ]
        .contains(&0)
        {
            return Err(
                "engine.streams_per_principal, streams_per_database, streams_per_tenant, gate_queue_max and \
                 turns_at_once are at least 1"
                    .to_owned(),
            );
        }
        // Each may hold one of the runtime's threads, of which there are as many.
        let most = EngineSettings::default().streams_max;
        if !(1..=most).contains(&engine.streams_max) {
            return Err(format!("engine.streams_max is from 1 to {most}"));
        }
        if self.region.is_empty() {
            return Err("region is a name, like auto or weur".to_owned());
        }
        let open = |address: &SocketAddr| !address.ip().is_loopback();
        if self.admin_listen.as_ref().is_some_and(open) && self.tls.cert.is_none() {
            return Err(
                "admin_listen is a loopback address, or tls.cert and tls.key are given".to_owned(),
            );
        }
        if let Some(origin) = self.http.cors_origins.iter().find(|origin| {
            !(origin.starts_with("https://") || origin.starts_with("http://"))
                || origin.ends_with('/')
        }) {
            return Err(format!(
                "http.cors_origins holds {origin:?}: an origin is a scheme and a host, like https://app.example.org"
            ));
        }
        let telemetry = &self.telemetry;
        if telemetry.sample_percent > 100 {
            return Err("telemetry.sample_percent is at most 100".to_owned());
        }
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        if telemetry
            .otlp_endpoint
            .as_ref()
            .is_some_and(|url| !is_url(url))
        {
            return Err("telemetry.otlp_endpoint is a URL, like http://127.0.0.1:4318".to_owned());
        }
        if let Some(jwt) = &self.auth.jwt {
            if jwt.keys.is_empty() && jwt.jwks_file.is_none() {
                return Err("auth.jwt needs keys or a jwks_file".to_owned());
            }
            if jwt.audience.is_empty() {
                return Err("auth.jwt.audience is required".to_owned());
            }
        }
        Ok(())
    }
}
