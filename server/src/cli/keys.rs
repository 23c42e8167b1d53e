//! Master keys on the command line, and `tidelog keys`.
//!
//! `--master-key-file ID=PATH`, once a key, the newest last; or `TIDELOG_MASTER_KEY_FILES` with the same, separated by
//! commas; or `TIDELOG_MASTER_KEYS` with `ID=BASE64`, separated by commas, for where there are no files. The first of
//! these that is given counts.

use serde_json::json;
use tidelog_archive::seal::{MasterKey, MasterKeys};
use tidelog_engine::bucket::Bucket;
use tidelog_wal::Timestamp;

use super::args::{KeysCommand, Place, variable};
use super::exit::Failure;
use super::output::{Output, table};
use crate::time;

const HEADINGS: [&str; 5] = [
    "database",
    "state",
    "data_keys",
    "newest_made_at",
    "masters",
];

impl Place {
    /// The master keys that were given; none if there are none.
    pub(crate) fn master_keys(&self) -> Result<MasterKeys, Failure> {
        let mut files = self.master_key_file.clone();
        if files.is_empty() {
            files = listed("TIDELOG_MASTER_KEY_FILES");
        }
        let mut keys = Vec::new();
        for file in &files {
            let (id, path) = pair(file, "ID=PATH")?;
            keys.push(read_key(id, path.as_ref())?);
        }
        if files.is_empty() {
            for key in listed("TIDELOG_MASTER_KEYS") {
                let (id, text) = pair(&key, "ID=BASE64")?;
                let key = MasterKey::parse(id, text.as_bytes());
                keys.push(key.map_err(|e| Failure::usage(e.to_string()))?);
            }
        }
        MasterKeys::new(keys).map_err(|e| Failure::usage(e.to_string()))
    }
}

fn listed(name: &str) -> Vec<String> {
    let value = variable(name).unwrap_or_default();
    let items = value.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

fn pair<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), Failure> {
    // What follows the id may be a secret: it is never shown.
    let wrong = || Failure::usage(format!("a master key is given as {form}"));
    text.split_once('=').ok_or_else(wrong)
}

/// Reads the master key `id` from a file.
pub(crate) fn read_key(id: &str, path: &std::path::Path) -> Result<MasterKey, Failure> {
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::failed(format!(
            "cannot read master key {id:?} from {}: {error}",
            path.display()
        ))
    })?;
    MasterKey::parse(id, &bytes).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
}

/// `tidelog keys`.
pub(super) async fn keys(
    url: &str,
    masters: &MasterKeys,
    command: KeysCommand,
    output: &Output,
) -> Result<(), Failure> {
    let bucket = Bucket::open_with_keys(url, masters).await?;
    match command {
        KeysCommand::Status => status(&bucket, masters, output).await,
        KeysCommand::Audit { key } => {
            let lines = bucket.audit_lines(&key).await?;
            output.result(
                &json!({ "key": key, "lines": lines.lines().collect::<Vec<_>>() }),
                || lines.clone(),
            );
            Ok(())
        }
        KeysCommand::Rotate {
            data_keys,
            database,
        } => {
            if masters.is_empty() {
                return Err(Failure::usage(
                    "rotating needs the master keys: --master-key-file ID=PATH, the newest last",
                ));
            }
            if !data_keys {
                if database.is_some() {
                    return Err(Failure::usage(
                        "a database is named to rotate its data key: add --data-keys",
                    ));
                }
                let count = bucket.rewrap_keys().await?;
                let newest = masters.newest().map_or("", |key| key.id()).to_owned();
                output.result(&json!({ "rewrapped": count, "master": newest }), || {
                    format!("{count} data keys were wrapped anew by master key {newest:?}\n")
                });
                return Ok(());
            }
            let wanted = match database {
                Some(name) => vec![bucket.find(&name.namespace, &name.database).await?],
                None => {
                    let mut all = vec![bucket.system()];
                    all.extend(bucket.databases().await?);
                    all
                }
            };
            let mut names = Vec::new();
            for database in wanted {
                let shredded = bucket
                    .key_status_of(&database)
                    .await?
                    .is_some_and(|status| status.shredded.is_some());
                if !shredded {
                    bucket.rotate_data_key(&database).await?;
                    names.push(format!("{}/{}", database.namespace, database.name));
                }
            }
            output.result(&json!({ "rotated": names }), || {
                format!(
                    "{} databases have a new data key; a running server uses it soon after it opens them again\n",
                    names.len()
                )
            });
            Ok(())
        }
    }
}

async fn status(bucket: &Bucket, masters: &MasterKeys, output: &Output) -> Result<(), Failure> {
    let now = bucket.now();
    let (mut items, mut rows) = (Vec::new(), Vec::new());
    for found in bucket.key_status().await? {
        let name = format!("{}/{}", found.database.namespace, found.database.name);
        let Some(keys) = found.keys else {
            items.push(json!({ "database": name, "state": "plain" }));
            rows.push(vec![
                name,
                "plain".into(),
                "0".into(),
                String::new(),
                String::new(),
            ]);
            continue;
        };
        let state = if keys.shredded.is_some() {
            "shredded"
        } else {
            "sealed"
        };
        let newest = masters.newest().map(MasterKey::id);
        let due = keys.masters.iter().any(|id| Some(id.as_str()) != newest);
        let made = keys.newest.map(|(_, at)| at);
        items.push(json!({
            "database": name,
            "state": state,
            "data_keys": keys.keys,
            "newest_key": keys.newest.map(|(id, _)| id.to_string()),
            "newest_made_at": made.map(time::format),
            "age_seconds": made.map(|at| age(now, at)),
            "masters": keys.masters,
            "rewrap_due": newest.is_some() && due && keys.shredded.is_none(),
            "plain_before": keys.plain_before,
            "shredded_at": keys.shredded.map(time::format),
        }));
        rows.push(vec![
            name,
            state.to_owned(),
            keys.keys.to_string(),
            made.map(time::format).unwrap_or_default(),
            keys.masters.join(", "),
        ]);
    }
    output.result(&json!({ "items": items }), || table(&HEADINGS, &rows));
    Ok(())
}

fn age(now: Timestamp, made: Timestamp) -> u64 {
    now.micros_since(made) / 1_000_000
}
