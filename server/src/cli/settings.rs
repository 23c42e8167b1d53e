//! Settings as the command line gives them: which flag is which key, and `tidelog config check`.

use serde_json::json;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::MasterKeys;
use toml::Value;

use super::args::{ConfigOptions, Place};
use super::exit::Failure;
use super::keys::read_key;
use super::output::Output;
use crate::config::Config;
use crate::config::load::Sources;
use crate::config::show::shown;

/// The effective settings of these flags, over the environment and the file.
pub(super) fn load(place: Place, options: &ConfigOptions) -> Result<Config, Failure> {
    if place.url.is_some() || place.token.is_some() {
        return Err(Failure::usage(
            "this command takes --store, not --url or --token",
        ));
    }
    let mut flags: Vec<(&'static str, Value)> = Vec::new();
    let mut text =
        |key, value: Option<String>| flags.extend(value.map(|value| (key, Value::String(value))));
    let path =
        |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    text("preset", options.preset.clone());
    text("data", path(&options.data));
    text("store", place.store);
    text("listen", options.listen.map(|address| address.to_string()));
    text(
        "admin_listen",
        options.admin_listen.map(|address| address.to_string()),
    );
    text(
        "durability",
        options.durability.map(|level| level.to_string()),
    );
    text("tls.cert", path(&options.tls_cert));
    text("tls.key", path(&options.tls_key));
    for (key, value) in [
        ("ship_interval_ms", options.ship_interval_ms),
        ("journal_max_bytes", options.journal_max_bytes),
        ("durability_timeout_ms", options.durability_timeout_ms),
        ("idle_close_ms", options.idle_close_ms),
        ("drill_every_seconds", options.drill_every_seconds),
    ] {
        let Some(value) = value else { continue };
        let value = i64::try_from(value)
            .map_err(|_| Failure::usage(format!("{key} is at most {}", i64::MAX)))?;
        flags.push((key, Value::Integer(value)));
    }
    for (key, given) in [
        ("insecure_listen", options.insecure_listen),
        ("log.json", options.log_json),
    ] {
        if given {
            flags.push((key, Value::Boolean(true)));
        }
    }
    let sources = Sources::of_process(options.config.clone(), flags);
    sources.load().map_err(Failure::usage)
}

/// Prints the effective settings; reads the files they name, so that a server that starts with them would.
pub(super) fn check(place: Place, options: &ConfigOptions, output: Output) -> Result<(), Failure> {
    let config = load(place, options)?;
    readable(&config)?;
    let text = shown(&config);
    let document: toml::Table = text.parse().unwrap_or_default();
    output.result(&json!(document), || text.clone());
    Ok(())
}

/// The master keys that the settings name.
pub(super) fn master_keys(config: &Config) -> Result<MasterKeys, Failure> {
    let files = &config.encryption.master_keys;
    let keys = files.iter().map(|one| read_key(&one.id, &one.file));
    MasterKeys::new(keys.collect::<Result<_, _>>()?)
        .map_err(|error| Failure::usage(error.to_string()))
}

/// Reads what the settings name, before anything is started with them: files, the store's URL, the log's filter.
pub(super) fn readable(config: &Config) -> Result<(), Failure> {
    super::serve::filter(&config.log)?;
    // Opening a folder would make it.
    if !config.store.starts_with("file://") {
        Store::open(&config.store, StoreOptions::default())
            .map_err(|error| Failure::usage(format!("store: {error}")))?;
    }
    if let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) {
        crate::tls::Certificate::read(cert.clone(), key.clone()).map_err(Failure::usage)?;
    }
    if let Some(jwt) = &config.auth.jwt {
        crate::http::signed::Signed::new(jwt.clone()).map_err(Failure::usage)?;
    }
    master_keys(config)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;

    /// Goal: what `config check` lets pass, a server starts with.
    #[test]
    fn a_filter_or_a_store_that_cannot_be_used_is_told_before_the_start() {
        let config = Preset::Development.config();
        assert!(readable(&config).is_ok());
        for (filter, store) in [
            ("tidelog=loudly", "memory:"),
            ("info", "s4://bucket/prefix"),
            ("info", "s3://"),
            ("info", "bucket/prefix"),
        ] {
            let mut config = config.clone();
            filter.clone_into(&mut config.log.filter);
            store.clone_into(&mut config.store);
            assert!(readable(&config).is_err(), "{filter} {store}");
        }
    }
}
