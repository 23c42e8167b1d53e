//! `tidelog serve`: start the engine, listen, and stop in order.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidelog_engine::{Code, Engine, MasterKeys, Parts, Settings, TakeOver};
use tokio::net::TcpListener;
use tracing_subscriber::filter::FilterExt as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use super::args::{Place, ServeOptions};
use super::exit::Failure;
use super::output::Output;
use crate::app::App;
use crate::config;
use crate::config::Preset;
use crate::config::show::masked_url;
use crate::first::first_start;
use crate::serve;
use crate::settings::Limits;
use crate::telemetry::{Traces, is_for_lines};

/// How often a store that was away at the start is asked whether it is back.
const ASK_STORE: Duration = Duration::from_secs(2);
/// Files that an open database takes.
const DATABASE_FILES: usize = 12;
/// Files that everything else takes: chunks, scratch files, the store's connections.
const OTHER_FILES: usize = 256;
/// Where bodies and exports are staged, below the data folder.
const SCRATCH: &str = "scratch";

pub(super) async fn run(
    place: Place,
    keys: MasterKeys,
    options: ServeOptions,
    output: &Output,
) -> Result<(), Failure> {
    let config = super::settings::load(place, &options.settings)?;
    super::settings::readable(&config)?;
    let room = descriptors();
    let traces = Traces::begin(&config.telemetry).map_err(Failure::usage)?;
    log(&config.log, traces.as_ref())?;
    let wanted = descriptors_wanted(&config);
    if room.is_some_and(|room| room < wanted) {
        tracing::warn!(
            ?room,
            wanted,
            "this process may open too few files for open_databases_max and limits.connections_max: raise its hard limit"
        );
    }
    let mut settings = config.engine().map_err(Failure::usage)?;
    settings.take_over = take_over(options.take_over.as_deref())?;
    settings.master_keys = if keys.is_empty() {
        super::settings::master_keys(&config)?
    } else {
        keys
    };
    if settings.master_keys.is_empty() && config.preset != Preset::Development {
        return Err(Failure::usage(
            "this preset does not start without encryption: give [encryption] master_keys = [{ id = \"k1\", \
             file = \"PATH\" }] or --master-key-file k1=PATH; a key is made by: head -c 32 /dev/urandom | base64",
        ));
    }
    // The address first: one in use must not cost a term.
    let listen = config.listen;
    let encrypted = config.tls.cert.is_some();
    let listener = serve::bind(listen, config.insecure_listen || encrypted)
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => Failure::usage(error.to_string()),
            _ => Failure::failed(format!("cannot listen on {listen}: {error}")),
        })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::failed(format!("cannot listen on {listen}: {error}")))?;
    let mut operator = operator_listener(&config, encrypted).await?;
    let stop = serve::stop_signal();
    output.remark(&format!(
        "data in {}, history in {}",
        settings.data.display(),
        masked_url(&settings.store_url)
    ));
    let (data, store_url) = (settings.data.clone(), settings.store_url.clone());
    let durability = settings.durability;
    let take_over = settings.take_over;
    let mut engine = Engine::start(settings.clone(), Parts::production()).await?;
    for notice in engine.notices() {
        output.remark(notice);
    }
    let taken_over = !matches!(take_over, TakeOver::None);
    let said = first_start(&engine, &data, taken_over)
        .await
        .map_err(|error| Failure::failed(format!("{error}: {}", crate::problem::causes(&error))))?;
    for notice in said {
        output.remark(&notice);
    }
    if let Some(folder) = store_url
        .strip_prefix("file://")
        .filter(|folder| same_device(folder, &data))
    {
        output.remark(&format!(
            "{folder} is on the same device as the data folder: `remote` means no more than `local` here, and \
             losing the device loses both"
        ));
    }
    output.remark(&format!(
        "a write is answered at `{durability}`: {}",
        meaning(durability)
    ));
    let scheme = if encrypted { "https" } else { "http" };
    output.remark(&format!("listening on {scheme}://{address}"));
    let mut stop = std::pin::pin!(stop);
    let mut listener = listener;
    let ended = loop {
        let app = App::new(engine.clone(), Limits::default(), scratch(&data)?);
        let app = Arc::new(app.configured(&config).map_err(Failure::usage)?);
        let reloading = tokio::spawn(serve::reload_on_signal(Arc::clone(&app)));
        let mut returned = false;
        let ended = async {
            tokio::select! {
                stopped = &mut stop => {
                    // Without signals to wait for, a server runs until it is killed, which is safe.
                    if stopped.is_err() {
                        std::future::pending::<()>().await;
                    }
                    output.remark("stopping: finishing requests, shipping what is pending");
                }
                () = engine.store_returned(ASK_STORE) => {
                    returned = true;
                    output.remark("the store is back: finishing requests, and starting anew");
                }
            }
        };
        let (stop_operator, operator_stops) = tokio::sync::oneshot::channel::<()>();
        let serving = operator.take().map(|listener| {
            if let Ok(address) = listener.local_addr() {
                output.remark(&format!("operator's routes on {scheme}://{address}"));
            }
            let stops = async move {
                // Also when the other side is gone.
                let _ = operator_stops.await;
            };
            tokio::spawn(serve::serve_operator(listener, Arc::clone(&app), stops))
        });
        serve::serve(listener, app, ended).await;
        drop(stop_operator);
        if let Some(serving) = serving {
            let _ = serving.await;
        }
        reloading.abort();
        let stopped = engine.shutdown().await;
        if !returned || stopped.is_err() {
            break stopped;
        }
        drop(engine);
        engine = start_anew(&settings).await?;
        for notice in engine.notices() {
            output.remark(notice);
        }
        listener = serve::bind(address, config.insecure_listen || encrypted)
            .await
            .map_err(|error| Failure::failed(format!("cannot listen on {address}: {error}")))?;
        operator = operator_listener(&config, encrypted).await?;
        output.remark(&format!("listening on {scheme}://{address}"));
    };
    if let Some(traces) = traces {
        // Their sending is this runtime's work, so waiting for it is not.
        let _ = tokio::task::spawn_blocking(move || traces.end()).await;
    }
    ended?;
    output.remark("stopped");
    Ok(())
}

/// Lets this process open as many files as its hard limit allows, and says how many that is.
fn descriptors() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => found.maximum,
        Err(_) => found.current,
    }
}

/// How many files a server of this configuration may have open: databases, connections, and what else it works with.
fn descriptors_wanted(config: &config::Config) -> u64 {
    let databases = config.open_databases_max.saturating_mul(DATABASE_FILES);
    let all = databases.saturating_add(config.limits.connections_max);
    u64::try_from(all.saturating_add(OTHER_FILES)).unwrap_or(u64::MAX)
}

/// The operator's own address, where one is configured.
async fn operator_listener(
    config: &config::Config,
    encrypted: bool,
) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = config.admin_listen else {
        return Ok(None);
    };
    let bound = serve::bind(address, encrypted).await;
    bound.map(Some).map_err(|error| {
        Failure::failed(format!(
            "cannot listen on {address} for the operator: {error}"
        ))
    })
}

/// Starts the engine of a node whose store came back; a store that goes away again meanwhile is waited for.
async fn start_anew(settings: &Settings) -> Result<Engine, Failure> {
    loop {
        match Engine::start(settings.clone(), Parts::production()).await {
            Err(error) if error.code() == Code::StorageUnavailable => {
                tracing::warn!(%error, "not started anew yet");
                tokio::time::sleep(ASK_STORE).await;
            }
            started => return Ok(started?),
        }
    }
}

/// What `--take-over` names.
pub(super) fn take_over(wanted: Option<&str>) -> Result<TakeOver, Failure> {
    Ok(match wanted {
        None => TakeOver::None,
        Some("all") => TakeOver::All,
        Some(node) => TakeOver::Node(node.parse().map_err(|_| {
            Failure::usage(format!(
                "--take-over takes a node id or `all`, not {node:?}"
            ))
        })?),
    })
}

/// Whether a store folder lies on the device of the data folder.
fn same_device(store: &str, data: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let store = device(Path::new(store));
    store.is_some() && store == device(data)
}

/// What a level promises, in a sentence.
fn meaning(durability: tidelog_engine::Durability) -> &'static str {
    use tidelog_engine::Durability::{Local, Memory, Remote};
    match durability {
        Memory => "it survives a crash of this process, not of the machine",
        Local => "it survives power loss; the loss of this machine can take the last second",
        Remote => "it is in the store and survives the loss of this machine",
    }
}

/// An empty scratch folder: what an earlier life staged is of no use.
fn scratch(data: &Path) -> Result<PathBuf, Failure> {
    let folder = data.join(SCRATCH);
    let failed = |error: std::io::Error| {
        Failure::failed(format!(
            "cannot make the scratch folder {}: {error}",
            folder.display()
        ))
    };
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::create_dir_all(&folder).map_err(failed)?;
    Ok(folder)
}

/// The filter of the log.
pub(super) fn filter(settings: &config::Log) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(&settings.filter)
        .map_err(|error| Failure::usage(format!("log.filter is not a filter: {error}")))
}

fn log(settings: &config::Log, traces: Option<&Traces>) -> Result<(), Failure> {
    let filter = filter(settings)?;
    let lines = tracing_subscriber::fmt::layer::<Registry>()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = if settings.json {
        lines.json().boxed()
    } else {
        lines.boxed()
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter.and(is_for_lines())))
        .with(traces.map(|traces| traces.layer()))
        .try_init()
        .map_err(|error| Failure::failed(format!("cannot set up the log: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_starts_empty() {
        let data = tempfile::tempdir().expect("a temporary folder");
        let folder = scratch(data.path()).expect("made");
        std::fs::write(folder.join("body-1"), b"old").expect("written");
        let folder = scratch(data.path()).expect("made again");
        assert_eq!(std::fs::read_dir(folder).expect("listed").count(), 0);
    }
}
