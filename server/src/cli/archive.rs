//! `tidelog archive`: self-contained exports of a server's databases.

use std::path::PathBuf;

use bytes::Bytes;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value as Json, json};

use tidelog_archive::seal::{KeyObject, MasterKeys};
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_engine::travel::archives;

use super::args::{At, Name, Place};
use super::bucket::restore::{beside, place as place_file};
use super::client::Client;
use super::exit::Failure;
use super::operation::followed;
use super::output::{Output, cell};
use super::remote::{confirm, database, download, fields, items, listed, refuse_existing};
use crate::time;

/// `tidelog archive decrypt`.
#[derive(Debug, Args)]
pub(crate) struct DecryptOptions {
    /// The archive as it is stored: a copy of `tenants/NS/DB/archives/ID.db.zst` of the bucket
    pub(crate) file: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Leave it compressed with zstd, as a server's download is
    #[arg(long)]
    pub(crate) compressed: bool,
    /// A copy of `tenants/NS/DB/key` of the bucket, which holds the wrapped data keys. Without it, that of the bucket
    /// that --store names, else `../key` as seen from the archive, where it lies in a copy of the bucket
    #[arg(long, value_name = "FILE")]
    pub(crate) key_object: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArchiveCommand {
    /// Make an archive of a state; it is kept until it is deleted
    Create {
        /// NAMESPACE/DATABASE
        database: Name,
        #[command(flatten)]
        at: At,
        /// sqlite, the file page for page, or sql, the text of a dump
        #[arg(long, default_value = "sqlite")]
        format: String,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
        /// Refuse to delete it before this time: RFC 3339 or Unix milliseconds
        #[arg(long, value_name = "TIME")]
        retain_until: Option<String>,
        /// Refuse to delete it until the hold is lifted
        #[arg(long)]
        legal_hold: bool,
    },
    /// List the archives of a database
    List {
        /// NAMESPACE/DATABASE
        database: Name,
    },
    /// Show an archive
    Show {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its id
        id: String,
    },
    /// Download an archive, compressed with zstd; of a sealed one, what it seals
    Download {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its id
        id: String,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Replace the file if it exists
        #[arg(long)]
        force: bool,
    },
    /// Prove that an archive is whole
    Verify {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its id
        id: String,
    },
    /// Put off the time until which an archive is retained, set or lift its legal hold
    Hold {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its id
        id: String,
        /// Not to be deleted before
        #[arg(long, value_name = "TIME")]
        retain_until: Option<String>,
        /// true or false
        #[arg(long, value_name = "BOOL")]
        legal_hold: Option<bool>,
    },
    /// Make a new database of an archive
    Restore {
        /// NAMESPACE/DATABASE to make
        database: Name,
        /// The archive's id
        id: String,
    },
    /// Open a sealed archive that lies in a file as it is stored, with the master key; needs neither server nor bucket
    Decrypt(DecryptOptions),
    /// Delete an archive
    Delete {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its id
        id: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// The `key` object that goes with a sealed archive: the file that is named, the bucket's, or the one that lies where
/// it lies in a bucket.
async fn key_object(store: Option<String>, options: &DecryptOptions) -> Result<Bytes, Failure> {
    let unreadable = |path: &std::path::Path, error: std::io::Error| {
        Failure::failed(format!("cannot read {}: {error}", path.display()))
    };
    if let Some(path) = &options.key_object {
        return match std::fs::read(path) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(unreadable(path, error)),
        };
    }
    let (namespace, database) = archives::owner(&options.file)?;
    let place = KeyObject::place(namespace, database);
    if let Some(url) = store {
        return Ok(Store::open(&url, StoreOptions::default())?
            .get(&place)
            .await?);
    }
    let beside = options.file.parent().map(|folder| folder.join("../key"));
    match beside.map(|path| (std::fs::read(&path), path)) {
        Some((Ok(bytes), _)) => Ok(bytes.into()),
        Some((Err(error), path)) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(unreadable(&path, error))
        }
        _ => Err(Failure::usage(format!(
            "the wrapped data keys are wanted, too: {place} of the bucket, as --key-object FILE or by --store URL"
        ))),
    }
}

/// `tidelog archive decrypt`.
pub(super) async fn decrypt(
    place: Place,
    masters: &MasterKeys,
    options: DecryptOptions,
    output: &Output,
) -> Result<(), Failure> {
    if place.url.is_some() {
        return Err(Failure::usage(
            "this command asks no server: leave --url out",
        ));
    }
    refuse_existing(&options.out, options.force)?;
    let keys = key_object(place.named_store(), &options).await?;
    let made = beside(&options.out);
    let unwritable = |error: std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", options.out.display()))
    };
    match std::fs::remove_file(&made) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(unwritable(error));
        }
        _ => {}
    }
    let length = std::fs::metadata(&options.file).map_or(0, |meta| meta.len());
    let bar = output.bar(length, "opening");
    let progress = |done, _| bar.set_position(done);
    let opened = archives::decrypt(
        &options.file,
        &made,
        &keys,
        masters,
        options.compressed,
        &progress,
    );
    bar.finish_and_clear();
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _ = std::fs::remove_file(&made);
            return Err(error.into());
        }
    };
    place_file(&made, &options.out, options.force).map_err(unwritable)?;
    let file = options.out.display().to_string();
    let done = json!({ "file": file, "archive": opened.id, "bytes": opened.bytes });
    output.result(&done, || {
        format!(
            "{file}: archive {}, {}\n",
            opened.id,
            super::output::bytes(opened.bytes)
        )
    });
    Ok(())
}

/// The state that `--at`, `--bookmark` and `--snapshot` mean, as a body names it.
pub(super) fn target(at: &At) -> Option<Json> {
    let bookmark = at
        .bookmark
        .map(|bookmark| json!({ "bookmark": bookmark.to_string() }));
    let time = at.at.map(|at| json!({ "timestamp": time::format(at) }));
    let snapshot = at.snapshot.as_ref().map(|name| json!({ "snapshot": name }));
    bookmark.or(time).or(snapshot)
}

pub(super) async fn archive(
    client: &Client,
    command: ArchiveCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        ArchiveCommand::Decrypt(_) => return Err(Failure::usage("decrypt asks no server")),
        ArchiveCommand::Create {
            database: of,
            at,
            format,
            name,
            retain_until,
            legal_hold,
        } => {
            let mut body = json!({ "format": format, "legal_hold": legal_hold });
            for (field, value) in [
                ("target", target(&at)),
                ("name", name.map(Json::from)),
                ("retain_until", retain_until.map(Json::from)),
            ] {
                if let Some(value) = value {
                    body[field] = value;
                }
            }
            let request = client.request(Method::POST, &database(&of, &["archives"]));
            let request = request.json(&body);
            let done = followed(client, &of.namespace, request, output).await?;
            fields(*output, &done["archive"]);
        }
        ArchiveCommand::List { database: of } => {
            let path = database(&of, &["archives"]);
            let found = items(client, &path, &[], usize::MAX).await?;
            let headings = [
                "id",
                "name",
                "format",
                "committed_at",
                "bytes",
                "stored_bytes",
                "integrity",
                "retain_until",
                "legal_hold",
            ];
            listed(*output, &found, &headings);
        }
        ArchiveCommand::Show { database: of, id } => {
            let path = database(&of, &["archives", &id]);
            fields(
                *output,
                &client.json(client.request(Method::GET, &path)).await?,
            );
        }
        ArchiveCommand::Download {
            database: of,
            id,
            out,
            force,
        } => {
            let path = database(&of, &["archives", &id, "content"]);
            let request = client.request(Method::GET, &path);
            let (received, headers) = download(client, request, &out, force, *output).await?;
            let tag = headers.get("etag").and_then(|tag| tag.to_str().ok());
            let sum = tag.map(|tag| tag.trim_matches('"'));
            let file = out.display().to_string();
            let done = json!({ "file": file, "bytes": received, "stored_sha256": sum });
            output.result(&done, || {
                let sum = sum.unwrap_or_default();
                format!(
                    "{file}: {}, SHA-256 {sum}\n",
                    super::output::bytes(received)
                )
            });
        }
        ArchiveCommand::Verify { database: of, id } => {
            let path = database(&of, &["archives", &id, "verify"]);
            let request = client.request(Method::POST, &path);
            let done = followed(client, &of.namespace, request, output).await?;
            fields(*output, &done);
            super::verify::judge(&cell(&done["outcome"]))?;
        }
        ArchiveCommand::Hold {
            database: of,
            id,
            retain_until,
            legal_hold,
        } => {
            let mut body = json!({});
            if let Some(time) = retain_until {
                body["retain_until"] = json!(time);
            }
            if let Some(hold) = legal_hold {
                body["legal_hold"] = json!(hold);
            }
            let path = database(&of, &["archives", &id]);
            let request = client.request(Method::PATCH, &path).json(&body);
            fields(*output, &client.json(request).await?);
        }
        ArchiveCommand::Restore { database: of, id } => {
            let body = json!({ "name": of.database, "seed": { "archive": id } });
            let path = ["namespaces", of.namespace.as_str(), "databases"];
            let request = client.request(Method::POST, &path).json(&body);
            let done = followed(client, &of.namespace, request, output).await?;
            fields(*output, &done["database"]);
        }
        ArchiveCommand::Delete {
            database: of,
            id,
            yes,
        } => {
            if !yes {
                confirm(&format!("delete archive {id} of {of} for good?"))?;
            }
            let path = database(&of, &["archives", &id]);
            client.json(client.request(Method::DELETE, &path)).await?;
            output.result(&json!({ "deleted": id }), || format!("{id} is deleted\n"));
        }
    }
    Ok(())
}
