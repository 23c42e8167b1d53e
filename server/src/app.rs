//! What the handlers share.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tidelog_archive::{Clock, Entropy, SystemClock, SystemEntropy};
use tidelog_engine::Engine;

use crate::config::Config;
use crate::guards::Guards;
use crate::hrana::table::Table;
use crate::http::signed::Signed;
use crate::http::streams::Streams;
use crate::settings::Limits;
use crate::tls::Certificate;

/// A key for the batons of this process.
fn baton_key() -> [u8; 32] {
    let mut key = [0; 32];
    SystemEntropy.fill(&mut key);
    key
}

/// The engine and what surrounds it.
pub struct App {
    /// The engine that holds every database.
    pub engine: Engine,
    /// What a request may cost.
    pub limits: Limits,
    /// Where imports and exports are staged; emptied at start.
    pub scratch: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// The certificate, where TLS is spoken.
    pub certificate: Option<Arc<Certificate>>,
    pub(crate) signed: Option<Arc<Signed>>,
    pub(crate) cors_origins: Vec<String>,
    pub(crate) trusted_proxies: Vec<IpAddr>,
    pub(crate) live_tokens_allow_ddl: bool,
    /// The region of the store.
    pub(crate) region: String,
    /// Event streams that are open.
    pub(crate) event_streams: Streams,
    pub(crate) guards: Guards,
    /// Streams of Hrana that clients hold.
    pub(crate) hrana: Table,
    /// Domains whose first label names a database.
    pub(crate) database_hosts: Vec<String>,
    /// The database of a Hrana request that names none.
    pub(crate) default_database: Option<String>,
}

impl App {
    /// An application with the clocks and the chance of the operating system.
    pub fn new(engine: Engine, limits: Limits, scratch: PathBuf) -> Self {
        Self {
            engine,
            limits,
            scratch,
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
            certificate: None,
            signed: None,
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            live_tokens_allow_ddl: true,
            region: "auto".to_owned(),
            event_streams: Streams::default(),
            guards: Guards::default(),
            hrana: Table::new(baton_key()),
            database_hosts: Vec::new(),
            default_database: None,
        }
    }

    /// The same as a configuration says; reads the files it names.
    pub fn configured(mut self, config: &Config) -> Result<Self, String> {
        self.limits = config.limits.limits();
        if let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) {
            let certificate = Certificate::read(cert.clone(), key.clone())?;
            self.certificate = Some(Arc::new(certificate));
        }
        if let Some(jwt) = &config.auth.jwt {
            self.signed = Some(Arc::new(Signed::new(jwt.clone())?));
        }
        self.cors_origins.clone_from(&config.http.cors_origins);
        self.trusted_proxies
            .clone_from(&config.http.trusted_proxies);
        self.database_hosts.clone_from(&config.http.database_hosts);
        self.default_database
            .clone_from(&config.http.default_database);
        self.live_tokens_allow_ddl = config.auth.live_tokens_allow_ddl;
        self.region.clone_from(&config.region);
        Ok(self)
    }

    /// Reads certificate and keys again; what cannot be read stays as it was, and is said in the log.
    pub fn reload(&self) {
        let certificate = self.certificate.as_ref().map(|one| one.reload());
        let signed = self.signed.as_ref().map(|one| one.reload());
        for (what, outcome) in [
            ("certificate", certificate),
            ("keys of signed tokens", signed),
        ] {
            match outcome {
                None => {}
                Some(Ok(())) => tracing::info!(what, "read again"),
                Some(Err(error)) => {
                    tracing::error!(what, error, "not read again; the old ones stay");
                }
            }
        }
    }

    /// Reads keys of signed tokens again if their files have changed.
    pub fn reload_if_changed(&self) {
        if self.signed.as_ref().is_some_and(|signed| signed.is_stale()) {
            self.reload();
        }
    }

    /// An id for a request.
    pub(crate) fn request_id(&self) -> String {
        format!("req_{:032x}", u128::from_be_bytes(self.entropy.bytes16()))
    }
}

impl fmt::Debug for App {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("App")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
