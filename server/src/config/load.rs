//! Layers: the preset, the file, the environment, the flags; merged key by key, then read as one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, Preset};

/// The prefix of variables.
const PREFIX: &str = "TIDELOG_";

/// Keys that a preset leaves out because they have no value unless given.
const OPTIONAL: [&str; 12] = [
    "store_file",
    "tls.cert",
    "tls.key",
    "http.default_database",
    "auth.jwt.audience",
    "auth.jwt.issuer",
    "auth.jwt.namespace_claim",
    "auth.jwt.jwks_file",
    "auth.jwt.keys",
    "telemetry.otlp_endpoint",
    "admin_listen",
    "audit.preset",
];

/// Variables of another name, for keys that had them first.
const ALIASES: [(&str, &str); 1] = [("LOG", "log.filter")];

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file.
    pub file: Option<PathBuf>,
    /// The environment.
    pub variables: Vec<(String, String)>,
    /// Flags, by key.
    pub flags: Vec<(&'static str, Value)>,
}

impl Sources {
    /// The environment of the process and these flags.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(&'static str, Value)>) -> Self {
        // What is not UTF-8 names no setting.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            file,
            variables,
            flags,
        }
    }

    /// The effective configuration, or a sentence that names what is wrong.
    pub fn load(&self) -> Result<Config, String> {
        let file = self
            .file
            .as_deref()
            .map(read)
            .transpose()?
            .unwrap_or_default();
        let environment = self.environment()?;
        let mut flags = Table::new();
        for (key, value) in &self.flags {
            put(&mut flags, key, value.clone())?;
        }
        let named = [&flags, &environment, &file]
            .into_iter()
            .find_map(|layer| layer.get("preset"));
        let preset: Preset = match named {
            None => Preset::default(),
            Some(Value::String(name)) => name.parse()?,
            Some(other) => return Err(format!("preset is a text, not {other}")),
        };
        let mut all = Table::try_from(preset.config())
            .map_err(|error| format!("a preset cannot be written: {error}"))?;
        for layer in [file, environment, flags] {
            merge(&mut all, layer);
        }
        let mut config: Config = all.try_into().map_err(|error: toml::de::Error| {
            let source = self
                .file
                .as_deref()
                .map(|file| format!(" (file {})", file.display()));
            format!("{}{}", error.message(), source.unwrap_or_default())
        })?;
        if let Some(file) = &config.store_file {
            config.store = secret_file(file)?;
        }
        config.check()?;
        Ok(config)
    }

    fn environment(&self) -> Result<Table, String> {
        let mut table = Table::new();
        let variable_of = |key: &str| {
            let key = key.to_ascii_uppercase().replace('.', "_");
            format!("{PREFIX}{key}")
        };
        let keys = keys();
        for key in &keys {
            let name = variable_of(key);
            let alias = ALIASES.iter().find(|(_, of)| of == key);
            let alias = alias.map(|(short, _)| format!("{PREFIX}{short}"));
            let found = self.variables.iter().find(|(variable, value)| {
                !value.is_empty() && (*variable == name || Some(variable) == alias.as_ref())
            });
            if let Some((_, text)) = found {
                put(&mut table, key, value(key, text))?;
            }
        }
        // Outside of the tables there are variables that are no settings of a server.
        let tables = keys.iter().filter_map(|key| key.split_once('.'));
        let tables: BTreeSet<String> = tables
            .map(|(table, _)| format!("{}_", variable_of(table)))
            .collect();
        let strange = self.variables.iter().find(|(variable, value)| {
            !value.is_empty()
                && tables.iter().any(|table| variable.starts_with(table))
                && !keys.iter().any(|key| variable_of(key) == *variable)
        });
        match strange {
            Some((variable, _)) => Err(format!("{variable} names no setting")),
            None => Ok(table),
        }
    }
}

/// Reads a file with a secret in it: its content without the line end.
pub fn secret_file(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
        .map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn read(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.parse()
        .map_err(|error: toml::de::Error| format!("{}: {error}", path.display()))
}

/// Every key there is, with dots.
pub fn keys() -> Vec<String> {
    fn walk(table: &Table, prefix: &str, found: &mut Vec<String>) {
        for (name, value) in table {
            match value {
                Value::Table(inner) => walk(inner, &format!("{prefix}{name}."), found),
                _ => found.push(format!("{prefix}{name}")),
            }
        }
    }
    let mut found: Vec<String> = OPTIONAL.iter().map(|&key| key.to_owned()).collect();
    // A preset always serialises: it is made of texts, numbers and tables.
    if let Ok(table) = Table::try_from(Preset::default().config()) {
        walk(&table, "", &mut found);
    }
    found
}

/// A text of the environment as the kind of value its key has.
fn value(key: &str, text: &str) -> Value {
    let preset = Table::try_from(Preset::default().config()).unwrap_or_default();
    let mut kind = Some(&Value::Table(preset)).cloned();
    for part in key.split('.') {
        kind = kind.and_then(|value| value.get(part).cloned());
    }
    let as_toml = || {
        let line: Option<Table> = format!("v = {text}").parse().ok();
        line.and_then(|mut line| line.remove("v"))
    };
    match kind {
        Some(Value::String(_)) => Value::String(text.to_owned()),
        None if key != "auth.jwt.keys" => Value::String(text.to_owned()),
        // A list may also come as its items with commas between.
        Some(Value::Array(_)) => as_toml().filter(Value::is_array).unwrap_or_else(|| {
            let items = text
                .split(',')
                .map(|item| Value::String(item.trim().to_owned()));
            Value::Array(items.collect())
        }),
        _ => as_toml().unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

fn put(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((head, rest)) => {
            let inner = table
                .entry(head)
                .or_insert_with(|| Value::Table(Table::new()));
            let inner = inner
                .as_table_mut()
                .ok_or_else(|| format!("{head} is a table"))?;
            put(inner, rest, value)
        }
    }
}

/// Lays `over` onto `base`: tables key by key, everything else whole.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &Path, variables: &[(&str, &str)]) -> Sources {
        Sources {
            file: Some(file.to_owned()),
            variables: variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            flags: Vec::new(),
        }
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tidelog.toml");
        std::fs::write(&path, text).expect("written");
        (folder, path)
    }

    #[test]
    fn flags_beat_variables_beat_the_file_beats_the_preset() {
        let text = "preset = \"strict\"\nworkers = 3\n[limits]\nrows_max = 7\nparams_max = 8\nquery_ms = 9\n";
        let (_folder, path) = file(text);
        let variables = [
            ("TIDELOG_LIMITS_PARAMS_MAX", "18"),
            ("TIDELOG_LIMITS_QUERY_MS", "19"),
        ];
        let mut sources = sources(&path, &variables);
        sources.flags = vec![("limits.query_ms", Value::Integer(29))];
        let config = sources.load().expect("sound");
        let limits = &config.limits;
        assert_eq!(
            (limits.rows_max, limits.params_max, limits.query_ms),
            (7, 18, 29)
        );
        assert_eq!((config.workers, limits.sql_bytes_max), (3, 10_000));
    }

    #[test]
    fn unknown_keys_are_errors_wherever_they_stand() {
        for text in [
            "row_max = 1",
            "[limits]\nrow_max = 1",
            "[limit]\nrows_max = 1",
            "[tls]\ncertificate = \"x\"",
            "[[auth.jwt.keys]]\nalg = \"HS256\"\nfile = \"x\"\nsecret = \"y\"",
        ] {
            let (_folder, path) = file(text);
            let error = sources(&path, &[]).load().expect_err(text);
            assert!(
                error.contains("unknown field") || error.contains("missing field"),
                "{text}: {error}"
            );
        }
    }

    /// Goal: a variable that is spelt wrong is told, and what is no setting of a server is left alone.
    #[test]
    fn a_variable_that_names_no_setting_of_its_table_is_an_error() {
        let (_folder, path) = file("");
        for name in [
            "TIDELOG_LIMITS_ROW_MAX",
            "TIDELOG_AUTH_JWT_AUDIENCES",
            "TIDELOG_TLS_CERTIFICATE",
            "TIDELOG_LOG_LEVEL",
        ] {
            let error = sources(&path, &[(name, "5")]).load().expect_err(name);
            assert!(error.contains(name), "{name}: {error}");
        }
        for name in [
            "TIDELOG_TOKEN",
            "TIDELOG_URL",
            "TIDELOG_TEST_S3",
            "LIMITS_ROW_MAX",
        ] {
            sources(&path, &[(name, "5")]).load().expect(name);
        }
    }

    #[test]
    fn wrong_kinds_presets_and_halves_are_told() {
        for (text, word) in [
            ("workers = \"many\"", "invalid type"),
            ("preset = \"loose\"", "development, production or strict"),
            ("durability = \"paper\"", "memory, local or remote"),
            ("[tls]\ncert = \"c.pem\"", "belong together"),
            ("[http]\ncors_origins = [\"*\"]", "origin"),
            ("store_file = \"/nowhere/at/all\"", "cannot read"),
            ("admin_listen = \"0.0.0.0:9\"", "loopback"),
            ("[audit]\npreset = \"iso\"", "unknown variant"),
            (
                "[telemetry]\notlp_endpoint = \"127.0.0.1:4318\"",
                "is a URL",
            ),
            ("[telemetry]\nsample_percent = 101", "at most 100"),
            ("open_databases_max = 0", "open_databases_max is at least"),
            (
                "[engine]\nturns_at_once = 0",
                "turns_at_once are at least 1",
            ),
            (
                "[engine]\nstreams_max = 100000",
                "engine.streams_max is from",
            ),
            ("[limits]\nrows_max = 0", "limits.rows_max is at least 1"),
            (
                "[limits]\nbody_bytes_max = 0",
                "limits.body_bytes_max is at",
            ),
            ("[limits]\nquery_ms = 0", "limits.query_ms is at least 1"),
            ("[limits]\nhead_ms = 0", "limits.head_ms is at least 1"),
            ("x = ", "tidelog.toml"),
        ] {
            let (_folder, path) = file(text);
            let error = sources(&path, &[]).load().expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn variables_take_the_kind_of_their_key() {
        let (_folder, path) = file("");
        let variables = [
            ("TIDELOG_LISTEN", "127.0.0.1:9"),
            ("TIDELOG_STORE", "memory:"),
            ("TIDELOG_LOG", "debug"),
            ("TIDELOG_LOG_JSON", "true"),
            (
                "TIDELOG_HTTP_CORS_ORIGINS",
                "https://a.example,https://b.example",
            ),
            ("TIDELOG_DATA", "123"),
            ("TIDELOG_IDLE_CLOSE_MS", ""),
        ];
        let config = sources(&path, &variables).load().expect("sound");
        assert_eq!(
            (config.listen.port(), config.store.as_str()),
            (9, "memory:")
        );
        assert_eq!(
            (config.log.filter.as_str(), config.log.json),
            ("debug", true)
        );
        assert_eq!(
            config.http.cors_origins,
            ["https://a.example", "https://b.example"]
        );
        assert_eq!(config.data, Path::new("123"));
        assert_eq!(
            config.idle_close_ms,
            Preset::Development.config().idle_close_ms
        );
    }

    /// Goal: what is set is what the engine gets.
    #[test]
    fn bounds_of_the_engine_reach_it() {
        let text = "open_databases_max = 60\n[engine]\nstreams_per_principal = 3\nstreams_per_database = 4\n\
                    streams_per_tenant = 5\nstreams_max = 6\ngate_queue_max = 7\ngate_timeout_ms = 8\n\
                    restores_max = 9\ndisk_reserve_bytes = 10\nreader_max_age_ms = 11\nwal_hard_bytes = 12\n";
        let (_folder, path) = file(text);
        let variables = [("TIDELOG_ENGINE_TURNS_AT_ONCE", "13")];
        let config = sources(&path, &variables).load().expect("sound");
        let settings = config.engine().expect("settings");
        assert_eq!(settings.open_databases_max, 60);
        assert_eq!(
            [
                settings.streams_per_principal,
                settings.streams_per_database,
                settings.streams_per_tenant,
                settings.streams_max,
                settings.gate_queue_max,
                settings.restores_max,
                settings.turns_at_once,
            ],
            [3, 4, 5, 6, 7, 9, 13]
        );
        assert_eq!(
            (
                settings.gate_timeout.as_millis(),
                settings.reader_max_age.as_millis(),
                settings.disk_reserve_bytes,
                settings.wal_hard_bytes,
            ),
            (8, 11, 10, 12)
        );
    }

    #[test]
    fn a_regulation_sets_how_long_audit_lines_are_kept() {
        for (name, days) in [("soc2", 90), ("hipaa", 2_190), ("gdpr", 30), ("pci", 365)] {
            let (_folder, path) =
                file(&format!("[audit]\nretention_days = 1\npreset = {name:?}\n"));
            let config = sources(&path, &[]).load().expect("sound");
            let kept = config.engine().expect("settings").audit_retention;
            assert_eq!(kept.as_secs(), days * 86_400, "{name}");
            let variables = [("TIDELOG_AUDIT_PRESET", name)];
            let (_folder, path) = file("");
            let config = sources(&path, &variables).load().expect("sound");
            assert_eq!(config.audit.days(), days, "{name} from the environment");
        }
    }

    #[test]
    fn a_store_url_in_a_file_wins() {
        let (folder, path) = file("store = \"memory:\"\nstore_file = \"STORE\"");
        let secret = folder.path().join("store");
        std::fs::write(&secret, "s3://b/p?secret_access_key=x\n").expect("written");
        let text = format!(
            "store = \"memory:\"\nstore_file = {:?}",
            secret.display().to_string()
        );
        std::fs::write(&path, text).expect("written");
        let config = sources(&path, &[]).load().expect("sound");
        assert_eq!(config.store, "s3://b/p?secret_access_key=x");
    }
}
