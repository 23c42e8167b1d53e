//! `tidelog archive`: self-contained exports of a server's databases.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::args::{At, Name};
use super::client::Client;
use super::exit::Failure;
use super::operation::followed;
use super::output::{Output, cell};
use super::remote::{confirm, database, download, fields, items, listed};
use crate::time;

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
    /// Download an archive as it is stored: compressed with zstd
    Download {
        /// NAMESPACE/DATABASE
        database: Name,
        /// Its id
        id: String,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: std::path::PathBuf,
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
